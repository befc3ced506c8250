// The page of a comparison: what is said in words, and what is drawn when.

const IN_THE_WAY = [
  ["incomplete", "bad", "A forward that failed: what ran before is counted"],
  ["unknown", "bad", "Operations without a rule: sums that miss them are at least what is shown"],
  ["assumed", "warn", "Taken for granted"],
];

function makeNotices() {
  const place = document.getElementById("notices");
  for (const [name, kind, title] of IN_THE_WAY) {
    if (data.in_the_way[name].length) place.append(listed(kind, title, data.in_the_way[name]));
  }
  if (!place.childElementCount) place.append(listed("good", "Every operation has a rule, and nothing was taken for granted.", []));
}

function makeCounting() {
  const ofPeak = byName.has(PEAK) ? ", only of the peak (what is alive then and belongs to no row of a layer)" : "";
  const ofRows = [
    ["added, removed", "a layer that only the second, or only the first, model has; layers match by the path of their module, operations outside of layers by the module that runs them and their kind"],
    ["changed, unchanged", "whether the chosen quantity or the kind of layer is another one"],
    ["±, ▲, ▼", "the second less the first: more, or less; the bar's length is the size of the change beside the largest"],
    ["hidden", `rows that are unchanged, free by rule (they cost nothing)${ofPeak} or below the threshold; they are in the total, and a search finds them`],
  ];
  document.getElementById("counting").append(
    element("h3", {}, "Quantities"), meanings(), element("h3", {}, "Units"), definitions(ofNumbers),
    ...(difference ? [element("h3", {}, "Rows of the difference"), definitions(ofRows)] : []),
  );
}

function drawAll() {
  modelTable.draw();
  drawDifference();
}

// Below a quantity's name in the switch: by how much the second model has more of it.
const inAll = ({ name, unit }) => (difference ? number(amount(difference.total[`${name}_change`]), unit, signed(amount(difference.total[`${name}_change`]), unit)) : null);

start(() => {
  followScheme(drawScatter);
  document.getElementById("run").textContent = data.run;
  makeNotices();
  makeSwitch(data.quantities, byName.get(data.chosen), inAll, drawAll);
  makeCounting();
  if (!difference) document.getElementById("difference").remove();
}, () => {
  makeModels();
  makeScatter();
  if (difference) makeDifference();
  drawAll();
}, () => {
  drawScatter();
  preparePrint({ tables: difference ? [modelTable, differenceTable] : [modelTable], draw: drawScatter });
}).catch(failed);
