// What the second of two models changes in the first, row by row: signs, bars, and what is hidden, counted.

const difference = data.difference;
const rowsThat = (name) => new Set(difference ? difference[name] : []);
const [areFree, areReplaced, areMemoryAlone] = ["free", "replaced", "memory_alone"].map(rowsThat);
const places = new Map(difference ? difference.columns.map((name, place) => [name, place]) : []);
const SHARES = [0, 0.001, 0.01, 0.05, 0.1, 0.25]; // of the largest change

// Amounts before, after and of the change, by quantity; which quantities differ.
function changedRow(cells, index) {
  const read = (suffix) => new Map(data.quantities.map(({ name }) => [name, amount(cells[places.get(`${name}_${suffix}`)])]));
  const told = (name, suffix) => JSON.stringify(cells[places.get(`${name}_${suffix}`)]);
  const what = cells[places.get("change")];
  return {
    index,
    came: what === "added" || what === "removed" ? what : null,
    path: cells[places.get("module")],
    kind: cells[places.get("kind")],
    amounts: read("change"),
    before: read("before"),
    after: read("after"),
    free: areFree.has(index),
    differs: new Set(data.quantities.map(({ name }) => name).filter((name) => told(name, "before") !== told(name, "after") || told(name, "change") === '"?"')),
    replaced: areReplaced.has(index),
    memoryAlone: areMemoryAlone.has(index),
  };
}

const changed = difference ? difference.rows.map(changedRow) : [];
const word = (row) => row.came ?? (row.replaced || row.differs.has(state.quantity) ? "changed" : "unchanged");
const absolute = (row) => Math.abs(size(chosen(row)));
const direction = (one) => (one === null || one.unknown || !size(one) ? "" : size(one) > 0 ? "more" : "less");

const signed = (one, unit) => (direction(one) === "more" ? "+" : "") + written(one, unit);
const signedNumber = (one, unit) => {
  const made = number(one, unit, signed(one, unit));
  if (direction(one)) made.className = direction(one);
  return made;
};

// Rows of what is alive at the peak are none of the other quantities.
const MEMORY_ALONE = "only of the peak";
const concerned = (row) => !row.memoryAlone || state.quantity === "peak_bytes";

let limit = null; // {amount, is_share, text}
let largestChange = 0;

// Why a row is hidden, or null. As in Comparison.difference: what is not known is always shown.
function reason(row) {
  if (!concerned(row)) return MEMORY_ALONE;
  if (word(row) === "unchanged") return "unchanged";
  if (row.free) return "free by rule";
  if (!limit.amount || chosen(row)?.unknown) return null;
  const least = limit.is_share ? limit.amount * largestChange : limit.amount;
  return absolute(row) === 0 || absolute(row) < least ? `below ${limit.text}` : null;
}

function weigh() {
  const differing = changed.filter((row) => concerned(row) && word(row) !== "unchanged" && !row.free);
  largestChange = differing.reduce((most, row) => Math.max(most, absolute(row)), 0);
  for (const row of changed) row.hidden = reason(row);
}

const tally = (rows, of) => {
  const counts = new Map();
  for (const row of rows) counts.set(of(row), (counts.get(of(row)) ?? 0) + 1);
  return counts;
};

function leftOut() {
  const rows = state.expanded ? [] : changed.filter((row) => row.hidden);
  const counts = tally(rows, (row) => row.hidden);
  const reasons = ["unchanged", "free by rule", `below ${limit.text}`, MEMORY_ALONE].filter((text) => counts.has(text));
  return { rows, text: `${plural(rows.length, "row", "rows")} hidden: ${reasons.map((text) => `${counts.get(text).toLocaleString("en")} ${text}`).join(", ")}` };
}

// A bar from the middle: to the right what is more, to the left what is less.
function changeBar(row) {
  const filled = element("span", { class: direction(chosen(row)) });
  filled.style.width = `${largestChange ? (50 * absolute(row)) / largestChange : 0}%`;
  return element("span", { class: "track middle", "aria-hidden": "true" }, filled);
}

const relative = (before, after) => {
  if (!before || !after || before.atLeast || after.atLeast || !size(before)) return "";
  const share = (100 * (size(after) - size(before))) / size(before);
  return `${share > 0 ? "+" : ""}${share.toFixed(1)} %`;
};

const unitNow = () => byName.get(state.quantity).unit;
const titleNow = () => byName.get(state.quantity).title;

function chosenColumn() {
  return {
    title: "±", className: "share", name: "share", data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    heading: () => `± ${titleNow()}`,
    foot: (rows) => signedNumber(sum(rows.map(chosen)), unitNow()),
    render: (row, type) => {
      if (type !== "display") return chosen(row)?.unknown ? Infinity : absolute(row); // the size, whatever the sign
      const numbers = element("span", { class: "amount" }, signedNumber(chosen(row), unitNow()), element("span", {}, relative(row.before.get(state.quantity), row.after.get(state.quantity))));
      return element("div", {}, numbers, changeBar(row));
    },
  };
}

function sideColumn(side, gone) {
  const read = (row) => row[side].get(state.quantity);
  return {
    title: side, className: "number", name: side, data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    heading: () => `${titleNow()} ${side}`,
    foot: (rows) => number(sum(rows.map(read)), unitNow()),
    render: (row, type) => {
      if (type !== "display") return read(row) === null ? -1 : size(read(row));
      const made = number(read(row), unitNow());
      if (row.came === gone) made.title = `${gone}: there is none ${side}`;
      return made;
    },
  };
}

function signedColumn({ name, title, unit }) {
  const read = (row) => row.amounts.get(name);
  return {
    title: `± ${title}`, className: "number", name, data: null, type: "num", searchable: false, orderSequence: ["desc", "asc", ""],
    foot: (rows) => signedNumber(sum(rows.map(read)), unit),
    render: (row, type) => (type === "display" ? signedNumber(read(row), unit) : read(row)?.unknown ? Infinity : size(read(row))),
  };
}

function wordColumn() {
  return textColumn("change", word, "what", (row, value) => {
    const way = direction(chosen(row));
    const mark = element("span", { "aria-hidden": "true" }, { more: "▲ ", less: "▼ ", "": "" }[way]);
    return element("span", { class: way }, mark, value);
  });
}

let differenceTable;

function saidOfChanges(there, searching) {
  if (searching) {
    const [before, after] = ["before", "after"].map((side) => written(sum(there.map((row) => row[side].get(state.quantity))), unitNow()));
    return `${plural(there.length, "row matches", "rows match")}: ${signed(sum(there.map(chosen)), unitNow())} ${titleNow()}, ${before} → ${after}`;
  }
  const counts = tally(changed.filter((row) => concerned(row) && !row.free), word);
  const left = leftOut();
  const words = ["added", "removed", "changed"].map((what) => `${(counts.get(what) ?? 0).toLocaleString("en")} ${what}`);
  return `${words.join(", ")}${left.rows.length ? `; ${left.text}` : ""}`;
}

function drawDifference() {
  if (!difference) return;
  weigh();
  const [before, after, change] = ["before", "after", "change"].map((side) => amount(difference.total[`${state.quantity}_${side}`]));
  const grown = relative(before, after);
  document.getElementById("difference-summary").replaceChildren(
    "In all ", element("strong", {}, signedNumber(change, unitNow())), ` ${titleNow()}${grown ? ` (${grown})` : ""}: `,
    number(before, unitNow()), " → ", number(after, unitNow()));
  differenceTable.draw();
}

function makeThreshold() {
  const limits = SHARES.map((share) => ({ amount: share, is_share: true, text: `${Number((100 * share).toPrecision(3))} %` }));
  const given = difference.limit;
  let first = limits.findIndex((one) => one.amount === given.amount && (one.is_share === given.is_share || !given.amount));
  if (first < 0) first = limits.push(given) - 1;
  limit = limits[first];
  const choice = document.getElementById("threshold");
  choice.append(...limits.map((one, place) => element("option", { value: place },
    !one.amount ? "no threshold" : one.is_share && one !== given ? `${one.text} of the largest change` : one.text)));
  choice.value = String(first);
  choice.addEventListener("change", () => { limit = limits[Number(choice.value)]; drawDifference(); });
}

function makeDifference() {
  document.getElementById("difference-run").textContent = difference.run;
  document.getElementById("difference-notes").append(...difference.notes.map((note) => element("li", {}, note)));
  makeThreshold();
  makeExpand("Hide rows again", "Show every row", drawDifference);
  weigh();
  differenceTable = summedTable({
    id: "difference-table", matches: "difference-matches", noun: "changes", none: "no change to show", rows: changed, left: leftOut, say: saidOfChanges,
    columns: [
      textColumn("module", (row) => row.path || "(root)", "path"),
      chosenColumn(),
      sideColumn("before", "added"),
      sideColumn("after", "removed"),
      wordColumn(),
      textColumn("kind", (row) => row.kind, "word"),
      ...data.quantities.map(signedColumn),
      placeColumn(),
    ],
    // A search looks at every row, hidden or not.
    shown: (row, searching) => state.expanded || searching || row.hidden === null,
  });
}
