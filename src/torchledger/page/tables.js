// The tables of layers and of kinds of operations: DataTables, as itables packs it.

const PAGE = 50;
let ITable; // once it is loaded
const escapedText = (value, type) => (type === "filter" ? escaped(value) : value);

// A column of text. DataTables takes strings for markup: it gets nodes to show, and escaped text to search in.
function textColumn(title, read, className, show = null) {
  return {
    title, className, data: null, type: "string", orderSequence: ["asc", "desc", ""],
    render: (row, type) => {
      const value = read(row);
      if (type !== "display") return escapedText(value, type);
      return show ? show(row, value) : element("span", {}, value);
    },
  };
}

const MOST_SHAPES = 4;

// An optimizer takes hundreds of tensors at once: equal shapes in a row are counted, and of many the first are shown.
function shapesText(text) {
  const runs = [];
  for (const shape of text.split(", ")) {
    const last = runs.at(-1);
    if (last && last.shape === shape) last.times += 1;
    else runs.push({ shape, times: 1 });
  }
  const shown = runs.slice(0, MOST_SHAPES).map(({ shape, times }) => (times > 1 ? `${times} × ${shape}` : shape)).join(", ");
  const rest = runs.slice(MOST_SHAPES).reduce((count, { times }) => count + times, 0);
  return rest ? `${shown} and ${rest.toLocaleString("en")} more` : shown;
}

const shapeColumn = (title, name) => textColumn(title, (row) => row.text(name), "shape", (row, value) => element("span", {}, shapesText(value)));

function numberColumn(title, read, unit, name) {
  return {
    title, className: "number", name, data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    render: (row, type) => (type === "display" ? number(read(row), unit) : read(row) === null ? -1 : size(read(row))),
  };
}

function shareColumn() {
  return {
    title: "share", className: "share", name: "share", data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    render: (row, type) => {
      const one = row.amounts.get(state.quantity);
      if (type !== "display") return one === null ? -1 : size(one);
      const whole = size(total(state.quantity));
      const numbers = element("span", { class: "amount" }, number(one, byName.get(state.quantity).unit), element("span", {}, percent(size(one), whole)));
      return element("div", {}, numbers, bar(whole ? size(one) / whole : 0));
    },
  };
}

// Rows that weigh the same stand in the order in which they ran.
const placeColumn = () => ({ title: "place", name: "place", data: null, type: "num", visible: false, searchable: false, render: (row) => row.place ?? row.index });

function layerName(row, value) {
  const name = element("span", {}, value);
  if (row.times > 1) name.append(element("span", { class: "times", title: `${row.times} equal rows` }, `×${row.times}`));
  if (row.unknown) name.append(element("span", { class: "unknown" }, " unknown"));
  return name;
}

const shownIn = (table) => data.quantities.filter(({ name }) => table.columns.includes(name));
const count = (value) => ({ exact: BigInt(value), atLeast: false });

function layerColumns() {
  const columns = [textColumn("module", (row) => row.path || "(root)", "path", layerName), shareColumn()];
  if (data.layers.columns.includes("kind")) columns.push(textColumn("kind", (row) => row.text("kind"), "word"));
  columns.push(...shownIn(data.layers).map(({ name, title, unit }) => numberColumn(title, (row) => row.amounts.get(name), unit, name)));
  if (layers.some((row) => row.calls > 1)) columns.push(numberColumn("calls", (row) => count(row.calls), "", "calls"));
  columns.push(shapeColumn("input shape", "input_shape"), shapeColumn("output shape", "output_shape"));
  if (layers.some((row) => row.text("note"))) columns.push(textColumn("note", (row) => row.text("note"), "word"));
  return [...columns, placeColumn()];
}

function operationColumns() {
  return [
    textColumn("operation", (row) => row.text("operation"), "path", layerName),
    shareColumn(),
    numberColumn("calls", (row) => count(row.calls), "", "calls"),
    ...shownIn(data.operations).map(({ name, title, unit }) => numberColumn(title, (row) => row.amounts.get(name), unit, name)),
    placeColumn(),
  ];
}

// What a table shows besides its rows: which rows there are while nothing is searched, and the total of those there.
function summedTable({ id, matches, columns, rows, shown, noun }) {
  const holder = document.getElementById(id);
  const foot = element("tr", {}, ...columns.map((column, place) => element(place ? "td" : "th", { class: column.className ?? "" })));
  const sums = element("tfoot", {}, foot);
  holder.append(sums);
  const widget = new ITable(holder, {
    columns,
    order: [[1, "desc"]],
    orderFixed: { post: [[columns.length - 1, "asc"]] },
    pageLength: PAGE,
    lengthMenu: [[25, PAGE, 200, -1], [25, PAGE, 200, "all"]],
    autoWidth: false,
    deferRender: true,
    layout: { topStart: "search", topEnd: "pageLength", bottomStart: "info", bottomEnd: "paging" },
    language: {
      search: `Search ${noun[1]}:`, lengthMenu: "_MENU_ rows a page", zeroRecords: "nothing matches", emptyTable: "no rows",
      info: "rows _START_ to _END_ of _TOTAL_", infoEmpty: "no rows", infoFiltered: "",
    },
  }).dt;
  const scroll = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Table of ${noun[1]}` });
  holder.replaceWith(scroll);
  scroll.append(holder);
  holder.append(sums); // below the rows also on paper
  const searching = () => widget.search() !== "";
  widget.search.fixed("shown", (_, row) => shown(row, searching()));
  widget.rows.add(rows);
  let read = state.quantity; // what DataTables has read of the share's column

  function add() {
    const there = widget.rows({ search: "applied" }).data().toArray();
    const whole = total(state.quantity);
    const { title, unit } = byName.get(state.quantity);
    const cells = columns.map((column, place) => {
      if (column.visible === false) return null;
      if (place === 0) return searching() ? `total of ${plural(there.length, "match", "matches")}` : "total";
      if (column.name === "share") return number(sum(there.map((row) => row.amounts.get(state.quantity))), unit);
      if (!byName.has(column.name)) return "";
      return number(sum(there.map((row) => row.amounts.get(column.name))), byName.get(column.name).unit);
    });
    cells.forEach((cell, place) => { if (cell !== null) foot.children[place].replaceChildren(cell); });
    const found = sum(there.map((row) => row.amounts.get(state.quantity)));
    const said = `${plural(there.length, noun[0], noun[1])} match`;
    const counted = columns.some((column) => column.name === state.quantity);
    const sums = `${written(found, unit)}${unit === "s" ? "" : " " + title}, ${percent(size(found), size(whole))} of ${written(whole, unit)}`;
    document.getElementById(matches).textContent = !counted
      ? `This table has no ${title}: they are a layer's. ${searching() ? said : ""}`
      : searching() ? `${said}: ${sums}` : "";
    columns.forEach((column, place) => {
      if (column.visible === false) return;
      const chosen = column.name === state.quantity || column.name === "share";
      widget.column(place).header().classList.toggle("chosen", chosen);
    });
  }
  widget.on("draw", add);

  return {
    // Numbers are the same, but for the share: order and total follow the quantity.
    draw() {
      const header = widget.column(1).header().querySelector(".dt-column-title");
      header.textContent = `${byName.get(state.quantity).title}, share`;
      if (read !== state.quantity) widget.rows().invalidate("data");
      read = state.quantity;
      widget.draw();
    },
    all(every) { widget.page.len(every ? -1 : PAGE).draw(); },
  };
}

let layerTable;
let operationTable;

function makeTables() {
  layerTable = summedTable({
    id: "layer-table", matches: "layer-matches", columns: layerColumns(), rows: [...layers, ...folds], noun: ["row", "layers"],
    // A search looks at every row; what repeats is folded, and what is free left out, while nothing is searched.
    shown: (row, searching) => {
      const every = state.expanded || searching;
      if (row.members) return !every && !row.free;
      return every || !(row.free || foldedIn.has(row.index));
    },
  });
  operationTable = summedTable({
    id: "operation-table", matches: "operation-matches", columns: operationColumns(), rows: operations, noun: ["kind", "operations"],
    shown: (row, searching) => state.expanded || searching || !row.free,
  });
}
