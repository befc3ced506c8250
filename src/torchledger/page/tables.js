// Tables that sort, search and add up: DataTables, as itables packs it.

const PAGE = 50;

function rowsOf(table) {
  const place = new Map(table.columns.map((name, index) => [name, index]));
  const free = new Set(table.free);
  const operations = new Set(table.operations);
  return table.rows.map((cells, index) => ({
    index,
    free: free.has(index),
    isOperation: operations.has(index),
    text: (name) => (place.has(name) ? cells[place.get(name)] : "") ?? "",
    amounts: new Map(data.quantities.map(({ name }) => [name, place.has(name) ? amount(cells[place.get(name)]) : null])),
    unknown: place.has("unknown") ? cells[place.get("unknown")] : 0,
    calls: place.has("calls") ? cells[place.get("calls")] : 1,
    times: 1,
  }));
}

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

function numberColumn(title, read, unit, name) {
  return {
    title, className: "number", name, data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    foot: byName.has(name) ? (rows) => number(added(rows.map(read)), unit) : null,
    render: (row, type) => (type === "display" ? number(read(row), unit) : read(row) === null ? -1 : size(read(row))),
  };
}

const chosen = (row) => row.amounts.get(state.quantity);

// The chosen quantity with a bar: its share of a whole.
function shareColumn(of, whole) {
  return {
    title: of, className: "share", name: "share", data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    heading: () => `${byName.get(state.quantity).title}, ${of}`,
    foot: (rows) => number(added(rows.map(chosen)), byName.get(state.quantity).unit),
    render: (row, type) => {
      const one = chosen(row);
      if (type !== "display") return one === null ? -1 : size(one);
      const all = whole();
      const numbers = element("span", { class: "amount" }, number(one, byName.get(state.quantity).unit), element("span", {}, one === null ? "" : percent(size(one), all)));
      return element("div", {}, numbers, bar(all ? size(one) / all : 0));
    },
  };
}

// Rows that weigh the same stand in the order in which they ran.
const placeColumn = () => ({ title: "place", name: "place", data: null, type: "num", visible: false, searchable: false, render: (row) => row.place ?? row.index });

// A table and its total. Columns may say their `foot`, a sum of rows, and a `heading` that follows the quantity, as the
// column "share" does. `shown`: which rows there are while nothing is searched; `left`: those that are not, in words and
// with their sum, above the total of all; `say`: what stands above the table.
function summedTable({ id, matches, columns, rows, shown = () => true, noun, say, left = null, none = "nothing matches", summed = true, paged = true }) {
  const holder = document.getElementById(id);
  const line = (name) => element("tr", { class: name }, ...columns.map((column, place) => element(place ? "td" : "th", { class: column.className ?? "" })));
  const [rest, foot] = [line("left"), line("total")];
  const sums = element("tfoot", {}, ...(left ? [rest] : []), foot);
  if (summed) holder.append(sums);
  const widget = new ITable(holder, {
    columns,
    order: [[1, "desc"]],
    orderFixed: { post: [[columns.length - 1, "asc"]] },
    pageLength: PAGE,
    lengthMenu: [[25, PAGE, 200, -1], [25, PAGE, 200, "all"]],
    autoWidth: false,
    deferRender: true,
    layout: paged
      ? { topStart: "search", topEnd: "pageLength", bottomStart: "info", bottomEnd: "paging" }
      : { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    paging: paged,
    language: {
      search: `Search ${noun}:`, lengthMenu: "_MENU_ rows a page", zeroRecords: none, emptyTable: "no rows",
      info: "rows _START_ to _END_ of _TOTAL_", infoEmpty: "no rows", infoFiltered: "",
    },
  }).dt;
  const scroll = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Table of ${noun}` });
  holder.replaceWith(scroll);
  scroll.append(holder);
  if (summed) holder.append(sums); // below the rows also on paper
  else holder.tFoot?.remove(); // DataTables makes one
  const searching = () => widget.search() !== "";
  widget.search.fixed("shown", (_, row) => shown(row, searching()));
  widget.rows.add(rows);
  let read = state.quantity; // what DataTables has read of the columns that follow it

  function fill(cells, title, of) {
    columns.forEach((column, place) => {
      if (column.visible === false) return;
      cells.children[place].replaceChildren(place === 0 ? title : column.foot ? column.foot(of) : "");
    });
  }

  function add() {
    const there = widget.rows({ search: "applied" }).data().toArray();
    const hidden = left && !searching() ? left() : { rows: [], text: "" };
    if (summed) {
      fill(foot, searching() ? `total of ${plural(there.length, "match", "matches")}` : "total", [...there, ...hidden.rows]);
      fill(rest, hidden.text, hidden.rows);
      rest.hidden = !hidden.rows.length;
    }
    document.getElementById(matches).textContent = say(there, searching());
    columns.forEach((column, place) => {
      if (column.visible === false) return;
      const header = widget.column(place).header();
      header.classList.toggle("chosen", column.name === state.quantity || column.name === "share");
      if (column.heading) header.querySelector(".dt-column-title").textContent = column.heading();
    });
  }
  widget.on("draw", add);
  let kept = null; // rows a page and which page, while paper shows all

  return {
    // Numbers are the same, but for columns with a heading of their own: order and total follow the quantity.
    draw() {
      if (read !== state.quantity) widget.rows().invalidate("data");
      read = state.quantity;
      widget.draw();
    },
    all(every) {
      if (!paged || every === (kept !== null)) return;
      if (every) {
        kept = { length: widget.page.len(), page: widget.page() };
        widget.page.len(-1).draw();
      } else {
        widget.page.len(kept.length).page(kept.page).draw("page");
        kept = null;
      }
    },
  };
}
