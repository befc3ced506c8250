// The page of one ledger: what is said in words, the tabs, and what is drawn when.

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
  document.getElementById("counting").append(
    element("p", {}, `Convention ${data.convention}: ${data.summary}.`),
    element("h3", {}, "Quantities"),
    meanings(),
    element("h3", {}, "Units"),
    definitions([ofNumbers[0], ["–", "not counted under this convention"], ofNumbers[1]]),
    element("h3", {}, "Rows"),
    definitions([
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
  if (!layerTable) return; // the tables come up a moment later
  layerTable.draw();
  operationTable.draw();
}

function drawCharts() {
  drawIcicle();
  if (memory && !document.getElementById("panel-memory").hidden) drawTimeline();
}

start(() => {
  followScheme(drawCharts);
  document.getElementById("run").textContent = `${data.run}${data.inputs.length ? "; input " + data.inputs.join(", ") : ""}`;
  makeNotices();
  makeSwitch(offered, offered.find(({ name }) => name !== "params" && size(total(name)) > 0) ?? offered[0],
    ({ name, unit }) => number(total(name), unit), drawAll);
  makeCounting();
}, () => {
  makeTables();
  makeTabs();
  makeExpand("Collapse all", "Expand all", () => { drawAll(); if (memory) showMoment(momentShown); });
  if (memory) makeMemory();
  drawAll();
}, () => {
  drawCharts();
  preparePrint({
    tables: [layerTable, operationTable],
    draw: drawCharts,
    open: () => { for (const name of tabs) document.getElementById(`panel-${name}`).hidden = false; },
    close: () => choose(tabs.find((name) => document.getElementById(`tab-${name}`).getAttribute("aria-selected") === "true")),
  });
}).catch(failed);
