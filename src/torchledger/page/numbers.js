// The data, exact sums of it, and how a number is written: as in the terminal (report/text.py).

const data = JSON.parse(document.getElementById("data").textContent);
const byName = new Map(data.quantities.map((quantity) => [quantity.name, quantity]));
const LETTERS = ["", "K", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"];

// A cell is null where it is not counted, an integer (a string of digits where it is large), a float, or
// {at_least: n} where unknown operations are missing from it, "?" a change of which a part has no rule. An amount is
// {exact, atLeast, unknown}: exact is a BigInt, or a Number for what is no count.
function amount(cell) {
  if (cell === null || cell === undefined || cell === "") return null;
  if (cell === "?") return { exact: 0n, atLeast: false, unknown: true };
  if (typeof cell === "object") return { exact: BigInt(cell.at_least), atLeast: true };
  if (typeof cell === "number" && !Number.isInteger(cell)) return { exact: cell, atLeast: false };
  return { exact: BigInt(cell), atLeast: false };
}

// Cells that are not counted add nothing; a sum of those alone is not counted either.
function sum(amounts) {
  let exact = 0n;
  let float = 0;
  let atLeast = false;
  let unknown = false;
  let any = false;
  let isFloat = false;
  for (const one of amounts) {
    if (one === null) continue;
    any = true;
    atLeast ||= one.atLeast;
    unknown ||= one.unknown === true;
    if (typeof one.exact === "bigint") exact += one.exact;
    else { float += one.exact; isFloat = true; }
  }
  if (!any) return null;
  return { exact: isFloat ? float + Number(exact) : exact, atLeast, unknown };
}

const count = (value) => ({ exact: BigInt(value), atLeast: false });
// No rows add up to nothing.
const added = (amounts) => (amounts.length ? sum(amounts) : { exact: 0n, atLeast: false });

const size = (one) => (one === null ? 0 : Number(one.exact));

function scaled(value, unit) {
  if (value === 0) return "0";
  if (value < 0) return "-" + scaled(-value, unit);
  let power = 0;
  while (power < LETTERS.length - 1 && Number((value / 1000 ** power).toPrecision(4)) >= 1000) power += 1;
  return `${Number((value / 1000 ** power).toPrecision(4))} ${LETTERS[power]}${unit}`.trim();
}

function seconds(value) {
  if (value === 0) return "0";
  if (value >= 999.5) return `${Math.round(value).toLocaleString("en")} s`;
  for (const [factor, unit] of [[1, "s"], [1e3, "ms"], [1e6, "µs"]]) {
    if (Number((value * factor).toPrecision(3)) >= 1) return `${Number((value * factor).toPrecision(3))} ${unit}`;
  }
  return `${Number((value * 1e9).toPrecision(3))} ns`;
}

function written(one, unit) {
  if (one === null) return "–";
  const value = Number(one.exact);
  if (one.unknown || (one.atLeast && value === 0)) return "?";
  let text;
  if (unit === "s") text = seconds(value);
  else if (unit === "MiB") text = value.toFixed(2);
  else if (data.exact) text = one.exact.toLocaleString("en");
  else text = scaled(value, unit);
  return one.atLeast ? "≥" + text : text;
}

const inFull = (one, unit) => (one === null ? "not counted" : one.unknown ? "not known: a part has no rule" : `${one.atLeast ? "at least " : ""}${one.exact.toLocaleString("en")}${unit ? " " + unit : ""}`);
const bytes = (value) => scaled(value, "B");
const percent = (part, whole) => `${(whole ? (100 * part) / whole : 0).toFixed(1)} %`;
const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// Every text of the page goes through here: names in a model are data, and stay text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A number as an element that carries its exact value.
function number(one, unit, text = written(one, unit)) {
  const value = one === null ? "" : one.unknown ? "?" : `${one.atLeast ? ">=" : ""}${one.exact}`;
  return element("data", { value, title: inFull(one, unit) }, text);
}

function bar(share) {
  const filled = element("span");
  filled.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  const track = element("span", { class: "track", "aria-hidden": "true" }, filled);
  return track;
}

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
