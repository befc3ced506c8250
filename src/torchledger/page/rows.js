// The rows of a ledger's tables, and those that stand for several equal ones.

const layers = rowsOf(data.layers);
const operations = rowsOf(data.operations);
for (const row of layers) row.path = row.text("module");

// Rows that stand for several equal ones, and the rows that they stand for.
const foldedIn = new Set();
const folds = data.folds.map(([path, members]) => {
  const rows = members.map((index) => layers[index]);
  members.forEach((index) => foldedIn.add(index));
  return {
    ...rows[0],
    index: layers.length + members[0],
    place: members[0],
    path,
    members: rows,
    times: rows.length,
    calls: rows.reduce((calls, row) => calls + row.calls, 0),
    unknown: rows.reduce((unknown, row) => unknown + row.unknown, 0),
    amounts: new Map(data.quantities.map(({ name }) => [name, sum(rows.map((row) => row.amounts.get(name)))])),
  };
});
const foldedRows = [...layers.filter((row) => !foldedIn.has(row.index)), ...folds].sort(
  (one, other) => (one.members ?? [one])[0].index - (other.members ?? [other])[0].index);

const total = (name) => amount(data.layers.total[name]);
