// The tables of layers and of kinds of operations.

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

const ofTotal = () => shareColumn("share", () => size(total(state.quantity)));

function layerName(row, value) {
  const name = element("span", {}, value);
  if (row.times > 1) name.append(element("span", { class: "times", title: `${row.times} equal rows` }, `×${row.times}`));
  if (row.unknown) name.append(element("span", { class: "unknown" }, " unknown"));
  return name;
}

const shownIn = (table) => data.quantities.filter(({ name }) => table.columns.includes(name));

function layerColumns() {
  const columns = [textColumn("module", (row) => row.path || "(root)", "path", layerName), ofTotal()];
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
    ofTotal(),
    numberColumn("calls", (row) => count(row.calls), "", "calls"),
    ...shownIn(data.operations).map(({ name, title, unit }) => numberColumn(title, (row) => row.amounts.get(name), unit, name)),
    placeColumn(),
  ];
}

// What the matches of a search add up to, or that a table lacks the quantity.
const said = (columns, noun) => (there, searching) => {
  const { title, unit } = byName.get(state.quantity);
  const matches = `${plural(there.length, ...noun)} match`;
  if (!columns.some((column) => column.name === state.quantity)) {
    return `This table has no ${title}: they are a layer's. ${searching ? matches : ""}`;
  }
  if (!searching) return "";
  const found = sum(there.map((row) => row.amounts.get(state.quantity)));
  const whole = total(state.quantity);
  return `${matches}: ${written(found, unit)}${unit === "s" ? "" : " " + title}, ${percent(size(found), size(whole))} of ${written(whole, unit)}`;
};

let layerTable;
let operationTable;

function makeTables() {
  const ofLayers = layerColumns();
  const ofOperations = operationColumns();
  layerTable = summedTable({
    id: "layer-table", matches: "layer-matches", columns: ofLayers, rows: [...layers, ...folds], noun: "layers",
    say: said(ofLayers, ["row", "layers"]),
    // A search looks at every row; what repeats is folded, and what is free left out, while nothing is searched.
    shown: (row, searching) => {
      const every = state.expanded || searching;
      if (row.members) return !every && !row.free;
      return every || !(row.free || foldedIn.has(row.index));
    },
  });
  operationTable = summedTable({
    id: "operation-table", matches: "operation-matches", columns: ofOperations, rows: operations, noun: "operations",
    say: said(ofOperations, ["kind", "operations"]),
    shown: (row, searching) => state.expanded || searching || !row.free,
  });
}
