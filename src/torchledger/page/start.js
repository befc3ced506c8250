// The libraries, the switch, the tabs, and what is said in words.


async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) packed[place] = text.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" }));
}

async function loadTables() {
  const url = await unpacked("tables");
  ({ ITable } = await import(url));
  URL.revokeObjectURL(url);
}

async function loadCharts() {
  const url = await unpacked("plotly");
  const script = element("script", { src: url });
  const loaded = new Promise((resolve, reject) => { script.onload = resolve; script.onerror = () => reject(new Error("plotly did not load")); });
  document.head.append(script);
  await loaded;
  Plotly = window.Plotly;
  URL.revokeObjectURL(url);
}

const painted = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); setTimeout(resolve, 200); });

function makeHeader() {
  document.getElementById("model").textContent = data.model;
  document.getElementById("run").textContent = `${data.run}${data.inputs.length ? "; input " + data.inputs.join(", ") : ""}`;
  document.getElementById("made").textContent = `Made by torchledger ${data.version}. Charts: plotly.js; tables: DataTables, by way of itables.`;
}

function listed(kind, title, items) {
  const box = element("div", { class: `notice ${kind}` }, element("strong", {}, title));
  if (items.length) box.append(element("ul", {}, ...items.map((item) => element("li", {}, item))));
  return box;
}

function makeNotices() {
  const place = document.getElementById("notices");
  if (data.error) place.append(listed("bad", `Incomplete: ${data.error}`, []));
  const unknown = Object.entries(data.unknown);
  if (unknown.length) {
    place.append(listed("bad", `${plural(unknown.length, "kind of operation has", "kinds of operations have")} no rule: sums that miss them are at least what is shown`,
      unknown.map(([name, calls]) => `${name}, ${plural(calls, "call", "calls")}`)));
  }
  if (data.assumptions.length) place.append(listed("warn", "Taken for granted", data.assumptions));
  if (!data.error && !unknown.length && !data.assumptions.length) {
    place.append(listed("good", "Every operation has a rule, and nothing was taken for granted.", []));
  }
}

// Quantities that the switch offers: those that are no part of another.
const offered = data.quantities.filter(({ part_of: whole }) => whole === null || !byName.has(whole));

function makeSwitch() {
  const start = offered.find(({ name }) => name !== "params" && size(total(name)) > 0) ?? offered[0];
  state.quantity = start.name;
  const group = document.getElementById("switch");
  for (const { name, title, unit, meaning } of offered) {
    const radio = element("input", { type: "radio", name: "quantity", value: name, id: `by-${name}` });
    radio.checked = name === state.quantity;
    radio.addEventListener("change", () => { state.quantity = name; drawAll(); });
    group.append(element("label", { for: radio.id, title: meaning }, radio, element("span", {}, title), element("strong", {}, number(total(name), unit))));
  }
}

function makeExpand() {
  const button = document.getElementById("expand");
  button.addEventListener("click", () => {
    state.expanded = !state.expanded;
    button.setAttribute("aria-pressed", String(state.expanded));
    button.textContent = state.expanded ? "Collapse all" : "Expand all";
    drawAll();
    if (memory) showMoment(momentShown);
  });
}

const tabs = ["layers", "operations", "memory", "counting"].filter((name) => name !== "memory" || memory);

function choose(name, focus = false) {
  for (const other of tabs) {
    const tab = document.getElementById(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    document.getElementById(`panel-${other}`).hidden = other !== name;
    if (other === name && focus) tab.focus();
  }
  if (name === "memory") drawTimeline();
}

function makeTabs() {
  if (!memory) for (const part of ["tab", "panel"]) document.getElementById(`${part}-memory`).remove();
  tabs.forEach((name, place) => {
    const tab = document.getElementById(`tab-${name}`);
    tab.addEventListener("click", () => choose(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose(tabs[(step + tabs.length) % tabs.length], true);
    });
  });
  choose("layers");
}

function makeCounting() {
  const list = (pairs) => element("dl", {}, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
  const unit = { B: " (bytes)", MiB: " (MiB, 2^20 bytes)", s: " (seconds)", "": "" };
  document.getElementById("counting").append(
    element("p", {}, `Convention ${data.convention}: ${data.summary}.`),
    element("h3", {}, "Quantities"),
    list(data.quantities.map((quantity) => [quantity.title + unit[quantity.unit], quantity.meaning])),
    element("h3", {}, "Units"),
    list([
      ["K, M, G, T", "10^3, 10^6, 10^9, 10^12; so 1 GB is 10^9 bytes. Numbers show four digits; pointing at one shows it in full."],
      ["–", "not counted under this convention"],
      ["≥ n, ?", "operations without a rule are missing from the sum; nothing is known of it"],
    ]),
    element("h3", {}, "Rows"),
    list([
      ["module", "one row for each layer, and one for each operation that ran outside of one, under the module that ran it; they add up to the total"],
      ["×n", "n equal blocks, or rows of them, folded into one; the number is the sum of all. A search and “Expand all” show each"],
      ["free", "operations that cost nothing by rule, such as views; their rows show in a search and with “Expand all”"],
      ["share", "of the chosen quantity's total; the total below a table is that of the rows in it, also of a search's matches"],
    ]),
    element("h3", {}, "This run"),
    element("ul", {}, ...data.notes.map((note) => element("li", {}, note))),
  );
}

function drawAll() {
  drawIcicle();
  drawOutline();
  layerTable.draw();
  operationTable.draw();
}

// Charts take their colours when they are drawn.
function follow(query, name) {
  const apply = () => {
    document.documentElement.classList.toggle(name, query.matches);
    if (!Plotly) return;
    drawIcicle();
    if (memory && document.getElementById("timeline").dataset.ready) drawTimeline();
  };
  query.addEventListener("change", apply);
  apply();
}

// On paper: light, every tab, every row that is not folded away.
function preparePrint() {
  let dark = false;
  window.addEventListener("beforeprint", () => {
    dark = document.documentElement.classList.contains("dark");
    document.documentElement.classList.remove("dark");
    layerTable.all(true);
    operationTable.all(true);
    for (const name of tabs) document.getElementById(`panel-${name}`).hidden = false;
    if (memory) drawTimeline();
    drawIcicle();
    for (const chart of ["icicle", "timeline"]) {
      const place = document.getElementById(chart);
      if (place && !place.hidden && place.data) Plotly.relayout(place, { width: 700, autosize: false });
    }
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.toggle("dark", dark);
    layerTable.all(false);
    operationTable.all(false);
    for (const chart of ["icicle", "timeline"]) {
      const place = document.getElementById(chart);
      if (place && place.data) Plotly.relayout(place, { width: null, autosize: true });
    }
    choose(tabs.find((name) => document.getElementById(`tab-${name}`).getAttribute("aria-selected") === "true"));
    drawIcicle();
  });
}

async function start() {
  follow(matchMedia("(prefers-color-scheme: dark)"), "dark");
  makeHeader();
  makeNotices();
  makeSwitch();
  makeCounting();
  await loadTables();
  makeTables();
  makeTabs();
  makeExpand();
  if (memory) makeMemory();
  drawAll();
  document.documentElement.dataset.ready = "tables";
  await painted(); // what can be read is there before the charts, which take longer to load
  await loadCharts();
  drawIcicle();
  if (memory && !document.getElementById("panel-memory").hidden) drawTimeline();
  preparePrint();
  document.documentElement.dataset.ready = "all";
}

start().catch((error) => {
  const place = document.getElementById("failed");
  place.textContent = `The page could not be drawn: ${error.message}. It needs a browser of 2023 or newer.`;
  place.hidden = false;
  throw error;
});
