// The memory timeline: bytes alive by category at each moment, and what is alive at one of them.

const MOST_POINTS = 1500; // more would lie within one pixel
const MOST_ROWS = 12;
const memory = data.memory;

// Bytes of each category at each moment, summed from the lives of the storages.
function byCategory() {
  const moments = memory.live.length;
  const changes = memory.categories.map(() => new Float64Array(moments + 1));
  for (const [length, born, died, category] of memory.blocks) {
    changes[category][born] += length;
    changes[category][died] -= length;
  }
  for (const line of changes) for (let place = 1; place <= moments; place += 1) line[place] += line[place - 1];
  return changes;
}

// All moments, or of a long run the highest of each stretch.
function drawnMoments() {
  const moments = memory.live.length;
  if (moments <= MOST_POINTS) return memory.live.map((_, moment) => moment);
  const chosen = new Set([0, memory.peak, moments - 1]);
  for (let stretch = 0; stretch < MOST_POINTS; stretch += 1) {
    const [start, end] = [stretch, stretch + 1].map((edge) => Math.floor((edge * moments) / MOST_POINTS));
    let highest = start;
    for (let moment = start; moment < end; moment += 1) if (memory.live[moment] > memory.live[highest]) highest = moment;
    chosen.add(highest);
  }
  return [...chosen].sort((one, other) => one - other);
}

const phaseAt = (moment) => memory.phases.findLast(([start]) => start <= moment)[1];
const operationAt = (moment) => (moment < memory.entries.length ? memory.operations[memory.entries[moment]] : null);
const placeName = (path) => path || "(root)";

function momentText(moment) {
  const operation = operationAt(moment);
  return operation === null ? "after the last operation" : `${operation} in ${placeName(memory.modules[memory.at[moment]])}, ${phaseAt(moment)}`;
}

// Where phases begin, but for those too short for their name, when there is more than one.
function longPhases() {
  const moments = memory.live.length;
  const ends = [...memory.phases.slice(1).map(([start]) => start), moments];
  const long = memory.phases.filter(([start], place) => ends[place] - start > 0.08 * moments);
  return memory.phases.length > 2 ? long : [];
}

let categoryLines = null;

function drawTimeline() {
  if (!Plotly) return;
  categoryLines ??= byCategory();
  const moments = drawnMoments();
  const place = document.getElementById("timeline");
  const traces = memory.categories.map((name, category) => ({
    type: "scatter", mode: "lines", name, stackgroup: "bytes", x: moments.map((moment) => moment + 1),
    y: moments.map((moment) => categoryLines[category][moment]), line: { width: 0, shape: "hv" }, fillcolor: memory.colours[category],
    hovertemplate: "%{y:.4s}B",
  }));
  const layout = {
    margin: { l: 60, r: 10, t: 26, b: 40 },
    xaxis: { title: { text: "operation" }, gridcolor: ink("--line"), zeroline: false, fixedrange: true, range: [1, Math.max(2, memory.live.length)] },
    yaxis: { title: { text: "bytes alive" }, gridcolor: ink("--line"), tickformat: "~s", ticksuffix: "B", rangemode: "tozero", fixedrange: true },
    hovermode: "x unified",
    showlegend: innerWidth > 640, // the table below has the colours too
    legend: { orientation: "h", y: -0.2 },
    shapes: shapes(),
    annotations: longPhases().map(([start, name]) => (
      { x: start + 1, y: 1, yref: "paper", yanchor: "bottom", xanchor: "left", text: escaped(name), showarrow: false })),
  };
  Plotly.react(place, traces, chartLayout(layout), chartOptions);
  if (!place.dataset.ready) {
    place.dataset.ready = "yes";
    place.on("plotly_click", ({ points }) => showMoment(points[0].x - 1));
  }
}

let momentShown = 0;
const shapes = () => [{ type: "line", x0: momentShown + 1, x1: momentShown + 1, y0: 0, y1: 1, yref: "paper", line: { color: ink("--ink"), width: 2, dash: "dot" } }];

function showMoment(moment) {
  momentShown = moment;
  const slider = document.getElementById("moment");
  slider.value = moment + 1;
  slider.setAttribute("aria-valuetext", `operation ${moment + 1}: ${momentText(moment)}`);
  const live = memory.live[moment];
  const peak = moment === memory.peak ? ", the peak" : "";
  const said = document.getElementById("moment-said");
  said.replaceChildren(element("strong", {}, number(count(live), "B")), ` alive at operation ${(moment + 1).toLocaleString("en")}: ${momentText(moment)}${peak}`);
  drawAlive(moment, live);
  const place = document.getElementById("timeline");
  if (place.dataset.ready) Plotly.relayout(place, { shapes: shapes() });
}

function drawAlive(moment, live) {
  const alive = memory.blocks.filter(([, born, died]) => born <= moment && moment < died);
  const categories = new Map();
  const groups = new Map();
  for (const [length, , , category, module, entry] of alive) {
    categories.set(category, (categories.get(category) ?? 0) + length);
    const key = `${category} ${module} ${entry < 0 ? -1 : memory.entries[entry]}`;
    const group = groups.get(key) ?? { length: 0, blocks: 0, category, module, operation: operationAt(entry < 0 ? Infinity : entry) };
    group.length += length;
    group.blocks += 1;
    groups.set(key, group);
  }
  const rounding = live - alive.reduce((sum, [length]) => sum + length, 0);
  const kinds = [...categories].sort((one, other) => one[0] - other[0]).map(([category, length]) => [memory.categories[category], length, memory.colours[category]]);
  if (rounding) kinds.push(["allocator's rounding", rounding, "transparent"]);
  const heaviest = [...groups.values()].sort((one, other) => other.length - one.length);
  const shown = state.expanded ? heaviest : heaviest.slice(0, MOST_ROWS);
  const place = (group) => `${placeName(memory.modules[group.module])}${group.operation ? ": " + group.operation : ""}${group.blocks > 1 ? ` (${group.blocks} storages)` : ""}`;
  const byKind = plainTable("By category", ["category", "bytes", "share"], kinds.map(([name, length, colour]) => {
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour;
    return [element("span", {}, swatch, name), number(count(length), "B"), percent(length, live)];
  }));
  const byPlace = plainTable(`Heaviest of ${plural(alive.length, "storage", "storages")} alive`, ["module, and what made it", "category", "bytes"],
    shown.map((group) => [place(group), memory.categories[group.category], number(count(group.length), "B")]));
  const rest = heaviest.length - shown.length;
  if (rest) byPlace.append(element("tfoot", {}, element("tr", {}, element("td", { colspan: "3" }, `and ${rest.toLocaleString("en")} more: “Expand all” lists them`))));
  document.getElementById("alive").replaceChildren(byKind, byPlace);
}

function plainTable(caption, heads, rows) {
  const numeric = (place) => heads[place] === "bytes" || heads[place] === "share";
  const cell = (tag, place, content) => element(tag, numeric(place) ? { class: "number" } : {}, content);
  return element("table", { class: "plain" }, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head, place) => { const made = cell("th", place, head); made.scope = "col"; return made; }))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((content, place) => cell("td", place, content))))));
}

function makeMemory() {
  const peak = memory.live[memory.peak];
  const reserved = memory.reserved_bytes === null ? "" : `, ${bytes(memory.reserved_bytes)} reserved by torch's caching allocator`;
  document.getElementById("memory-summary").replaceChildren(
    "Peak ", element("strong", {}, number(count(peak), "B")), ` on ${memory.device}${reserved}. Click a moment to list what is alive then.`);
  const notes = memory.notes.map((note) => element("li", {}, note));
  document.getElementById("memory-notes").replaceChildren(...notes);
  const slider = document.getElementById("moment");
  slider.max = memory.live.length;
  slider.addEventListener("input", () => showMoment(Number(slider.value) - 1));
  document.getElementById("to-peak").addEventListener("click", () => showMoment(memory.peak));
  document.getElementById("timeline").setAttribute("aria-label", "Bytes alive at each operation by category; the slider below chooses a moment, the tables below it list what is alive.");
  showMoment(memory.peak);
}
