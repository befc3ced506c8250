// The models side by side: a row each, with every quantity.

const models = rowsOf(data.models);
models.forEach((row, place) => { row.name = data.names[place]; });
const largest = (name) => Math.max(...models.map((row) => size(row.amounts.get(name))));
const FEW = 25; // rows that need no search and no pages

function percentColumn() {
  return {
    title: "top-1 (%)", className: "number", name: "top1", data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    render: (row, type) => {
      const one = amount(row.text("top1"));
      if (type !== "display") return one === null ? -1 : size(one);
      return number(one, "%", one === null ? "–" : String(one.exact));
    },
  };
}

let modelTable;

function makeModels() {
  const texts = [["input", "shape"], ["run", "word"]].filter(([name]) => data.models.columns.includes(name));
  modelTable = summedTable({
    id: "model-table", matches: "models-said", noun: "models", rows: models, summed: false, paged: models.length > FEW,
    columns: [
      textColumn("model", (row) => row.name, "path"),
      shareColumn("of the largest", () => largest(state.quantity)),
      ...data.quantities.map(({ name, title, unit }) => numberColumn(title, (row) => row.amounts.get(name), unit, name)),
      ...(data.models.columns.includes("top1") ? [percentColumn()] : []),
      ...texts.map(([name, kind]) => textColumn(name, (row) => row.text(name), kind)),
      placeColumn(),
    ],
    say: (there, searching) => (searching ? `${plural(there.length, "model", "models")} match` : "A heading sorts. Models do not add up, so there is no total."),
  });
  document.getElementById("models-notes").append(...data.notes.map((note) => element("li", {}, note)));
}
