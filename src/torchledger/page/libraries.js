// The libraries, packed into the file: plotly draws charts, DataTables (by way of itables) sorts and searches.

let Plotly; // once it is loaded
let ITable;

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) packed[place] = text.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return URL.createObjectURL(new Blob([await new Response(stream).blob()], { type: "text/javascript" }));
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

const SHEET = 700; // pixels across of what a printer gets

const widthOf = (place) => (state.paper ? SHEET : place.clientWidth);

// What all charts look alike in; colours are those of the moment when a chart is drawn.
function chartLayout(own) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ink("--card"), bordercolor: ink("--line"), font: { color: ink("--ink") } },
    ...own,
    ...(state.paper ? { width: SHEET, autosize: false } : { autosize: true }),
    font: { color: ink("--ink"), family: "system-ui, sans-serif", size: 12, ...own.font },
  };
}

const chartOptions = { displayModeBar: false, responsive: true };
