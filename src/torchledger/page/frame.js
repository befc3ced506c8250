// What every page has: the switch of the quantity, notices, dark and light, paper, and how it starts.

const state = { quantity: null, expanded: false, paper: false };

function listed(kind, title, items) {
  const box = element("div", { class: `notice ${kind}` }, element("strong", {}, title));
  if (items.length) box.append(element("ul", {}, ...items.map((item) => element("li", {}, item))));
  return box;
}

// `said`: what stands below a quantity's name, or null. `draw`: what follows a choice.
function makeSwitch(offered, start, said, draw) {
  state.quantity = start.name;
  const group = document.getElementById("switch");
  for (const quantity of offered) {
    const { name, title, meaning } = quantity;
    const radio = element("input", { type: "radio", name: "quantity", value: name, id: `by-${name}` });
    radio.checked = name === state.quantity;
    radio.addEventListener("change", () => {
      state.quantity = name;
      try { draw(); } catch (error) { failed(error); }
    });
    const label = element("label", { for: radio.id, title: meaning }, radio, element("span", {}, title));
    const below = said(quantity);
    if (below !== null) label.append(element("strong", {}, below));
    group.append(label);
  }
}

// A button that stays pressed: everything is shown, folded or hidden or not.
function makeExpand(pressed, released, draw) {
  const button = document.getElementById("expand");
  button.textContent = released;
  button.addEventListener("click", () => {
    state.expanded = !state.expanded;
    button.setAttribute("aria-pressed", String(state.expanded));
    button.textContent = state.expanded ? pressed : released;
    draw();
  });
}

const definitions = (pairs) => element("dl", {}, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
const units = { B: " (bytes)", MiB: " (MiB, 2^20 bytes)", s: " (seconds)", "%": " (%)", "": "" };
const meanings = () => definitions(data.quantities.map((quantity) => [quantity.title + units[quantity.unit], quantity.meaning]));
const ofNumbers = [
  ["K, M, G, T", "10^3, 10^6, 10^9, 10^12; so 1 GB is 10^9 bytes. Numbers show four digits; pointing at one shows it in full."],
  ["≥ n, ?", "operations without a rule are missing from the sum; nothing is known of it"],
];

// Charts take their colours when they are drawn.
function followScheme(draw) {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    document.documentElement.classList.toggle("dark", query.matches);
    if (Plotly) draw();
  };
  query.addEventListener("change", apply);
  apply();
}

// On paper: light, every row that is not folded away or hidden, charts as wide as a sheet.
function preparePrint({ tables, draw, open = () => {}, close = () => {} }) {
  let dark = false;
  const toPaper = (paper) => {
    state.paper = paper;
    for (const table of tables) table.all(paper);
    (paper ? open : close)();
    draw();
  };
  window.addEventListener("beforeprint", () => {
    dark = document.documentElement.classList.contains("dark");
    document.documentElement.classList.remove("dark");
    toPaper(true);
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.toggle("dark", dark);
    toPaper(false);
  });
}

// What can be read is there before the charts, which take longer to load.
async function start(say, drawTables, drawCharts) {
  say();
  await loadTables();
  drawTables();
  document.documentElement.dataset.ready = "tables";
  await painted();
  await loadCharts();
  drawCharts();
  document.documentElement.dataset.ready = "all";
}

function failed(error) {
  const place = document.getElementById("failed");
  place.textContent = `The page could not be drawn: ${error.message}. It needs a browser of 2023 or newer.`;
  place.hidden = false;
  for (const part of document.querySelectorAll("main > section, #controls")) part.hidden = true; // numbers may be of another choice
  throw error;
}
