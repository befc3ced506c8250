// The models as dots: macs against parameters, each as large as the peak of its memory.

const WIDEST = 54; // pixels across of the largest dot
const NARROWEST = 7;
const LONGEST_NAME = 32;
const MARGIN = { l: 70, r: 16, t: 10, b: 48 };

// Where a run has no allocations, nothing is known of its peak: all dots are of one size.
const PEAK = "peak_bytes";
const sized = models.every((row) => (row.amounts.get(PEAK) ?? null) !== null);
const EQUAL = 20;

const exactly = (row, name) => inFull(row.amounts.get(name), byName.get(name).unit);

function dotName(row) {
  const name = row.name.length <= LONGEST_NAME ? row.name : `${row.name.slice(0, 15)}…${row.name.slice(-16)}`;
  const top1 = amount(row.text("top1"));
  return top1 === null ? name : `${name} (${Number(top1.exact).toFixed(1)} %)`;
}

// The area is in proportion to the bytes.
function across(row) {
  const most = sized ? largest(PEAK) : 0;
  return most ? Math.max(NARROWEST, WIDEST * Math.sqrt(size(row.amounts.get(PEAK)) / most)) : EQUAL;
}

// A logarithmic axis where values lie far apart, else one from 0; both with room for dots and names.
function axis(name, title) {
  const values = models.map((row) => size(row.amounts.get(name)));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const own = { title: { text: title }, gridcolor: ink("--line"), zeroline: false, fixedrange: true, tickformat: "~s" };
  if (!data.logarithmic[name]) return { ...own, range: [0, 1.2 * high || 1] };
  const room = Math.max(1.3, (high / low) ** 0.14);
  return { ...own, type: "log", dtick: high / low > 3000 ? 1 : "D2", range: [Math.log10(low / room), Math.log10(high * room)] };
}

const shareOf = ({ type, range }, value) => ((type === "log" ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);

const overlap = (one, other) => Math.max(0, Math.min(one.right, other.right) - Math.max(one.left, other.left))
  * Math.max(0, Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top));

// Each name at the side of its dot where it covers least.
function sides(rows, x, y, width, height) {
  const centres = rows.map((row) => [shareOf(x, size(row.amounts.get("params"))) * width, (1 - shareOf(y, size(row.amounts.get("macs")))) * height]);
  const box = (left, top, wide, high) => ({ left, top, right: left + wide, bottom: top + high });
  const taken = rows.map((row, place) => box(centres[place][0] - across(row) / 2, centres[place][1] - across(row) / 2, across(row), across(row)));
  return rows.map((row, place) => {
    const [wide, high, radius] = [7 * dotName(row).length + 6, 17, across(row) / 2];
    const ways = [["right", 0], ["left", 0], ["center", -1], ["center", 1], ["right", -1], ["left", -1], ["right", 1], ["left", 1]];
    let best = null;
    for (const [aside, above] of ways) {
      const left = centres[place][0] + { right: radius, left: -radius - wide, center: -wide / 2 }[aside];
      const there = box(left, centres[place][1] - high / 2 + above * (radius + high / 2), wide, high);
      const covered = taken.reduce((all, other) => all + overlap(there, other), 0) + 10 * (wide * high - overlap(there, box(0, 0, width, height)));
      if (best === null || covered < best.covered) best = { covered, there, side: `${{ "-1": "top", 0: "middle", 1: "bottom" }[above]} ${aside}` };
    }
    taken.push(best.there);
    return best.side;
  });
}

function drawScatter() {
  if (!Plotly) return;
  const place = document.getElementById("scatter");
  const rows = [...models].sort((one, other) => across(other) - across(one)); // small dots lie on top
  const [x, y] = [axis("params", "parameters"), axis("macs", "macs")];
  const room = [widthOf(place) - MARGIN.l - MARGIN.r, place.clientHeight - MARGIN.t - MARGIN.b];
  const trace = {
    type: "scatter", mode: "markers+text",
    x: rows.map((row) => size(row.amounts.get("params"))),
    y: rows.map((row) => size(row.amounts.get("macs"))),
    text: rows.map((row) => escaped(dotName(row))),
    textposition: sides(rows, x, y, ...room),
    cliponaxis: false,
    marker: { size: rows.map(across), color: ink("--bar"), opacity: 0.8, line: { color: ink("--ink"), width: 1 } },
    customdata: rows.map((row) => [escaped(row.name), exactly(row, "params"), exactly(row, "macs"), byName.has(PEAK) ? exactly(row, PEAK) : "",
      amount(row.text("top1")) === null ? "" : `<br>top-1 ${row.text("top1")} %`]),
    hovertemplate: `<b>%{customdata[0]}</b><br>%{customdata[1]} params<br>%{customdata[2]} macs${byName.has(PEAK) ? "<br>peak %{customdata[3]}" : ""}%{customdata[4]}<extra></extra>`,
  };
  Plotly.react(place, [trace], chartLayout({ margin: MARGIN, xaxis: x, yaxis: y, showlegend: false, hovermode: "closest" }), chartOptions);
}

function makeScatter() {
  const place = document.getElementById("scatter");
  const most = sized ? models.reduce((one, other) => (size(other.amounts.get(PEAK)) > size(one.amounts.get(PEAK)) ? other : one)) : null;
  const logarithmic = ["params", "macs"].filter((name) => data.logarithmic[name]).map((name) => ({ params: "parameters", macs: "macs" })[name]);
  document.getElementById("scatter-hint").textContent = [
    ...(most ? [`The area of a dot is the peak of its memory, at most ${written(most.amounts.get(PEAK), "B")} (${most.name}).`] : []),
    ...(logarithmic.length ? [`The scale of ${logarithmic.join(" and ")} is logarithmic.`] : []),
    "The table above says the same.",
  ].join(" ");
  place.setAttribute("aria-label", `Macs against parameters, a dot for each model${most ? ", as large as its memory's peak" : ""}; the table of models says the same.`);
}
