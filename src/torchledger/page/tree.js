// The module tree, as an icicle (plotly) and as a list that opens with the keyboard.

const PALETTE = ["#8fbfe8", "#f2c879", "#9ed9b4", "#e6a5c9", "#c9b8ec", "#f0a98f", "#a9dbe0", "#d8d58a"];
const MOST_AREAS = 300; // side by side: what would be narrower than some four pixels waits until one goes into what holds it
const LEVELS = 5; // that the icicle shows at once
const NARROWEST_NAME = 24; // pixels of an area that has room for letters; plotly measures every text, which takes its time

// A name may be that of a member of every object, such as "constructor": maps have none.
const kinds = new Map(Object.entries(data.kinds));
const folded = new Map(Object.entries(data.times)); // several modules in one, when nothing is expanded

// Nodes: {id, path, name, kind, times, amounts: rows of its own and below, children}.
function grown(rows) {
  const root = { id: "", path: "", name: data.model, kind: "", times: 1, rows: [], children: [], parent: null };
  const nodes = new Map([["", root]]);
  const all = [root];
  const add = (node) => { all.push(node); node.parent.children.push(node); return node; };
  for (const row of rows) {
    let node = root;
    let path = "";
    for (const name of row.path === "" ? [] : row.path.split(".")) {
      path = path === "" ? name : `${path}.${name}`;
      if (!nodes.has(path)) {
        nodes.set(path, add({ id: path, path, name, kind: kinds.get(path) ?? "", times: folded.get(path) ?? 1, rows: [], children: [], parent: node }));
      }
      node = nodes.get(path);
    }
    if (row.isOperation) {
      const label = row.text("kind");
      node = add({ id: `${path}\n${row.index}`, path, name: label, kind: "operation", times: row.times, rows: [], children: [], parent: node });
    } else {
      node.kind = node.kind || row.text("kind");
    }
    node.rows.push(row);
  }
  for (const node of all.reverse()) {
    node.amounts = new Map(data.quantities.map(({ name }) => [
      name, sum([...node.rows.map((row) => row.amounts.get(name)), ...node.children.map((child) => child.amounts.get(name))])]));
  }
  for (const { name } of data.quantities) if (root.amounts.get(name) === null) root.amounts.set(name, total(name)); // no rows at all
  return root;
}

const trees = new Map();
function tree() {
  if (!trees.has(state.expanded)) trees.set(state.expanded, grown(state.expanded ? layers : foldedRows));
  return trees.get(state.expanded);
}

function nodesOf(root) {
  const found = [root];
  for (let place = 0; place < found.length; place += 1) found.push(...found[place].children);
  return found;
}

const heaviestFirst = (nodes) => [...nodes].sort((one, other) => size(other.amounts.get(state.quantity)) - size(one.amounts.get(state.quantity)));

// A module has the colour of its branch: branches begin where there is more than one.
function branchColours(nodes) {
  const colours = new Map();
  const below = new Map(nodes.map((node) => [node, []]));
  for (const node of nodes) if (node.parent) below.get(node.parent).push(node);
  let place = 0;
  for (const node of nodes) {
    const alone = node.parent === null || (colours.get(node.parent) === null && below.get(node.parent).length === 1);
    if (alone) colours.set(node, null);
    else colours.set(node, colours.get(node.parent) ?? PALETTE[place++ % PALETTE.length]);
  }
  return colours;
}

let entered = ""; // the module that the icicle shows

// The module that was gone into, or the whole where it has none of the quantity or is folded away.
const enteredOf = (root, nodes) => nodes.find((node) => node.id === entered && node.children.length) ?? root;

// What is above a module, itself, and what is below it to a depth and wide enough to see.
function visible(level, name) {
  const found = [];
  for (let above = level.parent; above; above = above.parent) found.unshift(above);
  found.push(level);
  let left = 0;
  let line = [level];
  for (let depth = 1; depth < LEVELS; depth += 1) {
    const below = line.flatMap((node) => node.children).filter((node) => size(node.amounts.get(name)) > 0);
    line = below.filter((node) => size(node.amounts.get(name)) * MOST_AREAS > size(level.amounts.get(name)));
    left += below.length - line.length;
    found.push(...line);
  }
  return { shown: found, left };
}

function drawIcicle() {
  const root = tree();
  const { unit, title, name } = byName.get(state.quantity);
  const place = document.getElementById("icicle");
  const whole = size(root.amounts.get(name));
  const hint = document.getElementById("tree-hint");
  hint.textContent = whole
    ? `Width is ${title}. Click a module to go into it, and the bar above to come back. The list below says the same.`
    : `There are no ${title} here, so there is nothing to draw.`;
  place.hidden = !whole;
  if (!whole || !Plotly) return;
  place.setAttribute("aria-label", `Icicle of the module tree by ${title}; the list below it says the same.`);
  const all = nodesOf(root).filter((node) => size(node.amounts.get(name)) > 0);
  const level = enteredOf(root, all);
  const { shown, left } = visible(level, name);
  if (left) hint.textContent += ` ${plural(left, "module or operation is", "modules and operations are")} too small to see from here: go into what holds them.`;
  const colours = branchColours(all);
  const label = (node) => escaped(node.name) + (node.times > 1 ? ` ×${node.times}` : "");
  const id = (node) => `/${node.id}`; // plotly looks ids up in an object, which has members of its own
  const isNarrow = (node) => size(node.amounts.get(name)) * widthOf(place) < NARROWEST_NAME * size(level.amounts.get(name));
  const trace = {
    type: "icicle",
    branchvalues: "total",
    level: id(level),
    ids: shown.map(id),
    parents: shown.map((node) => (node.parent === null ? "" : id(node.parent))),
    labels: shown.map(label),
    values: shown.map((node) => size(node.amounts.get(name))),
    text: shown.map((node) => written(node.amounts.get(name), unit)),
    customdata: shown.map((node) => [escaped(node.path || "the whole model"), escaped(node.kind), inFull(node.amounts.get(name), unit),
      percent(size(node.amounts.get(name)), whole)]),
    hovertemplate: "<b>%{customdata[0]}</b> %{customdata[1]}<br>%{customdata[2]}<br>%{customdata[3]}<extra></extra>",
    texttemplate: shown.map((node) => (isNarrow(node) ? "" : "%{label}<br>%{text}")),
    marker: { colors: shown.map((node) => colours.get(node) ?? ink("--card")), line: { width: 1, color: ink("--paper") } },
    textfont: { color: shown.map((node) => (colours.get(node) === null ? ink("--ink") : "#14181d")) },
    maxdepth: LEVELS,
    leaf: { opacity: 1 },
    sort: true,
    tiling: { orientation: "v", pad: 0 },
    pathbar: { visible: true, thickness: 26, textfont: { color: "#14181d" } },
  };
  const layout = { margin: { l: 0, r: 0, t: 28, b: 0 }, font: { size: 13 }, uniformtext: { minsize: 10, mode: "hide" } };
  Plotly.react(place, [trace], chartLayout(layout), chartOptions);
  place.removeAllListeners("plotly_icicleclick");
  place.on("plotly_icicleclick", ({ points }) => enter(shown[points[0].pointNumber], level));
}

// A click goes into a module, and on the one that fills the width back out. Drawn anew, so that what is small shows.
function enter(node, level) {
  const next = node === level ? node.parent : node;
  if (next && next.children.length) {
    entered = next.id;
    drawIcicle();
  }
  return false; // plotly's own way shows what it has already
}

// Open branches of the list, which stay open while the quantity changes.
const open = new Set([""]);

function line(node, whole) {
  const one = node.amounts.get(state.quantity);
  const name = element("span", { class: "name" }, node.name || "(unnamed)");
  if (node.times > 1) name.append(element("span", { class: "times" }, `×${node.times}`));
  if (node.kind) name.append(element("span", { class: "kind" }, node.kind));
  return [name, bar(whole ? size(one) / whole : 0), element("span", { class: "number" }, number(one, byName.get(state.quantity).unit)),
    element("span", { class: "number" }, percent(size(one), whole))];
}

// What has none of the quantity, out of the way.
function others(nodes, whole) {
  const { title } = byName.get(state.quantity);
  const details = element("details", {}, element("summary", {}, element("span", { class: "kind" }, `${nodes.length.toLocaleString("en")} without ${title}`)));
  details.addEventListener("toggle", () => {
    if (details.childElementCount < 2) details.append(element("div", {}, ...nodes.map((node) => branch(node, whole))));
  });
  return details;
}

function branch(node, whole) {
  if (!node.children.length) return element("div", { class: "leaf" }, ...line(node, whole));
  const details = element("details", {}, element("summary", {}, ...line(node, whole)));
  const fill = () => {
    if (details.childElementCount > 1) return;
    const children = heaviestFirst(node.children);
    const heavy = state.expanded ? children : children.filter((child) => size(child.amounts.get(state.quantity)) > 0);
    const rest = children.slice(heavy.length);
    const below = element("div", {}, ...heavy.map((child) => branch(child, whole)));
    if (rest.length) below.append(others(rest, whole));
    details.append(below);
  };
  if (state.expanded || open.has(node.id)) { details.open = true; fill(); }
  details.addEventListener("toggle", () => {
    if (details.open) fill();
    if (state.expanded) return;
    if (details.open) open.add(node.id);
    else open.delete(node.id);
  });
  return details;
}

function drawOutline() {
  const root = tree();
  document.getElementById("outline").replaceChildren(branch(root, size(root.amounts.get(state.quantity))));
}
