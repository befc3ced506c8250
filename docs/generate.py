"""Write what README and docs show and say in figures: `make docs`; with --timings, README's timings: `make timings`.

The tests compare all but the timings.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from torchledger import analyze
from torchledger.models import registry
from torchledger.pricing import CONVENTIONS, FULL, FVCORE, TORCHSTAT, full, fvcore, rules, torchstat
from torchledger.report import catalog, scatter
from torchledger.sources import networks

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
FIGURES = ROOT / "src" / "torchledger" / "models" / "figures.json"


STEPS = (
    "A step of SGD, Adam, AdamW, Adagrad, RMSprop, Adamax, NAdam or Adadelta costs the same an element whether torch",
    "takes its parameters one by one, as lists or in one fused kernel (which also corrects biases and decays rates:",
    "7 a tensor for Adam, 4 for Adagrad). RAdam (11 one by one, 14 as lists), ASGD (3 and 8) and Rprop (12 and 13)",
    "compute other things as lists, and are booked as what they run. The factors alpha and beta of addmm and its kin",
    "belong to the product, and are not counted.",
)


# Each README, and the heading of its timings.
READMES = {
    ROOT / "README.md": "| model | forward on meta | cold (empty memo) | warm |",
    ROOT / "README.zh-CN.md": "| 模型 | meta 上的前向 | 冷启动（空缓存） | 热启动 |",
}


def filled(text: str, kind: str, name: str, content: str) -> str:
    """Return `text` with `content` between `<!-- kind: name -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {kind}: {re.escape(name)} -->)(.*?)(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"no <!-- {kind}: {name} -->"
    return pattern.sub(lambda match: match[1] + content + match[3], text)


def readme(text: str) -> str:
    """Return a README with the tables as the tests have them."""
    for name in re.findall(r"<!-- table: (\S+) -->", text):
        table = (GOLDEN / name).read_text(encoding="utf-8")
        text = filled(text, "table", name, f"\n\n```text\n{table}```\n\n")
    return text


def timings() -> None:
    """Write the READMEs with ratios measured now."""
    run = subprocess.run([sys.executable, "benchmarks/trace.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    first, _, *rows, _ = run.stdout.splitlines()
    lines = ["| --- | ---: | ---: | ---: |"]
    for row in rows:
        name, milliseconds, unit, cold, warm, *_ = row.split()
        lines.append(f"| {name} | {milliseconds} {unit} | {cold} | {warm} |")
    for path, heading in READMES.items():
        text = filled(path.read_text(encoding="utf-8"), "bench", "date", first.removesuffix(", one thread"))
        path.write_text(filled(text, "bench", "table", "\n".join(["", heading, *lines, ""])), encoding="utf-8")


WEIGHTS = (
    "A checkpoint is data: nothing in it is run. With weights, `googlenet` and `inception_v3` have",
    "`transform_input=True`, as in torchvision. That the images of `inception_v2` are BGR, the command line says.",
    "Auxiliary heads run in train mode alone.",
)

PARAMETERS = {
    "params": "elements of all parameters, each tensor once",
    "trainable_params": "those of them that ask for a gradient",
    "active_params": "the parameters that one token uses in the forward, on average: every parameter counts whole, but"
    " in a block where the model's own choice (top-k, argmax) says what runs, a parameter counts by the share of the"
    " tokens chosen for that go through it, by the rows of the operations that take it: k of E experts of one size are"
    " k E-ths of their parameters. Tables to look up in (embeddings) count whole, and so does what also runs outside of"
    " such a block. Equal to `params` where nothing is routed",
    "buffers": "elements of all buffers, each tensor once",
}


def conventions() -> str:
    """Return docs/conventions.md: every rule of every convention."""
    lines = [
        "# Conventions",
        "",
        "Made by `make docs` from the rules in `src/torchledger/pricing`. An operation has its ATen name without",
        "overload, or the one name that stands for all that devices run in its place (`batch_norm`,",
        "`scaled_dot_product_attention`); in place (`relu_`) it is priced as the plain form. n is the number of",
        "elements that a row or a result is made of. Inputs are read once: what comes twice, and a dimension of",
        "stride 0, counts once, and what is only written to is not read.",
        "",
        "## Parameters",
        "",
        "The same under every convention, in `totals()`:",
        "",
        "| name | what it counts |",
        "| --- | --- |",
        *(f"| `{name}` | {meaning} |" for name, meaning in PARAMETERS.items()),
    ]
    for convention in CONVENTIONS.values():
        lines += ["", f"## {convention.name}", "", f"{convention.summary[0].upper()}{convention.summary[1:]}.", ""]
        lines += ["| column | unit | what it counts |", "| --- | --- | --- |"]
        for quantity in (*convention.of_calls, *convention.quantities):
            lines.append(f"| `{quantity.name}` | {quantity.unit} | {quantity.meaning} |")
        if convention is FULL:
            lines += ["", "| operation | flops | reads | writes |", "| --- | --- | --- | --- |"]
            groups: dict[tuple[str, str, str], list[str]] = {}
            for name, rule in full.RULES.items():
                groups.setdefault((rule.text, said(rule.bytes_read), said(rule.bytes_written)), []).append(name)
            lines += [f"| {listed(names)} | {' | '.join(texts)} |" for texts, names in groups.items()]
            lines += ["", f"Free: {listed(full.FREE_OPERATIONS)}.", "", *STEPS]
        if convention is TORCHSTAT:
            lines += formulas(torchstat.RULES)
            lines += [
                "",
                "In leaf modules, with the number of dimensions that torchstat knows; every other priced operation is",
                "outside of it. Inputs and outputs are read and written once; all is for one sample, times the batch.",
            ]
        if convention is FVCORE:
            lines += formulas(fvcore.RULES)
            lines += [
                "",
                "Every other priced operation is outside of it, as fvcore has no handle for it: activation functions,",
                "sums, softmax, means, the other pools, RMSNorm, `baddbmm`, products with a vector, embeddings.",
                "",
                "fvcore counts the functions that a model calls, the ledger what they come down to. The totals differ",
                "for a model that",
                "",
                "- calls `scaled_dot_product_attention`, which fvcore leaves out: here it is the two products that it",
                "  stands for, as in a model that writes them out;",
                "- calls `torch.mm`, `tensordot` or `linalg.multi_dot` by name: fvcore counts no activations of the",
                "  first, and nothing of the others, which the ledger cannot tell from a linear layer's product;",
                "- multiplies a matrix by a batch of them: fvcore counts one product, and not one for each;",
                "- writes an outer product, or one of more than two factors, as an `einsum`: fvcore counts half",
                "  a multiply-accumulate an element of the former, of the latter the last product's activations alone;",
                "- takes `mean(x, (-1, -2), keepdim=True)`, which the ledger cannot tell from an adaptive pool to 1x1;",
                "- has InstanceNorm with running statistics in eval mode: fvcore counts it at the rate of training.",
            ]
    return "\n".join(lines) + "\n"


def formulas(rules: Mapping[str, Callable[..., object]]) -> list[str]:
    """Return a table of operations and the first line that a formula's docstring has on them."""
    texts: dict[str, list[str]] = {}
    for name, formula in rules.items():
        texts.setdefault((formula.__doc__ or "").split("\n")[0].rstrip("."), []).append(name)
    table = [f"| {listed(names)} | {text} |" for text, names in texts.items()]
    return ["", "| operation | what it counts |", "| --- | --- |", *table]


def figures() -> str:
    """Return figures.json: what the ledger counts for every network as `build(name)` makes it, for one sample."""
    counted = {}
    for name, entry in registry.REGISTRY.items():
        with torch.device("meta"):
            network = entry.load()()
        totals = analyze(network, entry.input_size).totals()
        counted[name] = {"params": totals["params"], "macs": totals["macs"]}
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in counted.items()) + "\n}\n"


def models() -> str:
    """Return docs/models.md: the table of all networks."""
    rows = [row for row in networks() if not registry.entry(str(row["name"])).of_article]
    lines = [
        "# Networks",
        "",
        "Made by `make docs`: `params` and GMACs (multiply-accumulates of one sample in eval mode) are counted by the",
        "ledger, with auxiliary heads in the parameters where a network has them; top-1 is what others published, with",
        "its source below. `torchledger models` lists these and the article's own, `torchledger.models.build(name)`",
        "builds one, and `torchledger stat NAME` shows where it spends what.",
        "",
        "![macs of one image against the parameters of fourteen networks of the four families](families.svg)",
        "",
        catalog.written(rows, "markdown").rstrip(),
        "",
        "## Papers",
        "",
    ]
    papers = {f"{row['authors']} {row['year']}": row["title"] for row in rows}
    assert len(set(papers.values())) == len(papers), "two papers of the same authors and year"
    lines += [f"- {cite}: {title}" for cite, title in papers.items()]
    lines += ["", "## Weights", "", "`build(name, weights=FILE)` and `--weights FILE` load these, key for key:", ""]
    fitting: dict[str, list[str]] = {}
    for row in rows:
        fitting.setdefault(str(row["weights"]), []).append(str(row["name"]))
    lines += [f"- `{'`, `'.join(names)}`: {text}" for text, names in fitting.items() if text]
    lines += ["", *WEIGHTS]
    return "\n".join(lines) + "\n"


@cache
def script(folder: str, name: str) -> ModuleType:
    """Return the script `name` of a folder of the repository."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    sys.path.insert(0, str(ROOT / folder))  # where it finds those that it imports
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / folder))
    return module


FAMILIES = {
    "AlexNet": "alexnet",
    "VGG": "vgg11 vgg13 vgg16 vgg19",
    "GoogLeNet, Inception": "googlenet_v1 inception_v2 inception_v3 inception_v4",
    "ResNet": "resnet18 resnet34 resnet50 resnet101 resnet152",
}


def families() -> str:
    """Return the picture of the article's four families, from figures.json: macs against parameters."""
    counted, dots = registry.figures(), []
    for family, names in FAMILIES.items():
        for name in names.split():
            found = counted[name]
            dots.append(scatter.Dot(name, found.params, found.macs, None, registry.entry(name).top1, family))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "families.svg"
        scatter.draw(path, dots, "macs of one image against parameters, published top-1 in brackets")
        return "\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n"


def coverage() -> str:
    """Return docs/coverage.md, from the results that `make coverage` left."""
    page: str = script("benchmarks", "coverage").page()
    return page


def comparison() -> str:
    """Return docs/comparison.md, from the results that `make peers` left."""
    page: str = script("benchmarks", "peers").page()
    return page


def performance() -> str:
    """Return docs/performance.md, from the results that `make bench` left."""
    page: str = script("benchmarks", "speed_page").page()
    return page


def memory(page: str, *readmes: str) -> tuple[str, ...]:
    """Return docs/memory.md and the READMEs with how far predicted peaks are from those of real steps on a CPU."""
    with (ROOT / "benchmarks" / "results" / "memory_cpu.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if not row["error"]]
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["dtype"]), []).append(row)
    table = ["| step | dtype | networks | cases | median apart | worst | scratch beside the peak, median |"]
    table.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (mode, dtype), found in groups.items():
        worst = max((abs(float(row["apart"])), row["network"]) for row in found)
        cells = (
            *("inference" if mode == "inference" else f"training, {mode}", dtype),
            *(len({row["network"] for row in found}), len(found)),
            f"{statistics.median(abs(float(row['apart'])) for row in found):.2%}",
            f"{worst[0]:.2%} ({worst[1]})",
            f"{statistics.median(int(row['scratch']) / int(row['peak']) for row in found):.1%}",
        )
        table.append(f"| {' | '.join(map(str, cells))} |")
    versions = ", ".join(sorted({f"{row['date']}, {row['versions']}" for row in rows}))
    count = len({row["network"] for row in rows})
    table += ["", f"{len(rows)} cases of {count} networks, first and second step of each training; {versions}."]
    apart = [abs(float(row["apart"])) for row in rows]
    for name, value in (("median", statistics.median(apart)), ("worst", max(apart))):
        readmes = tuple(filled(text, "memory", name, f"{value:.2%}") for text in readmes)
    return filled(page, "memory", "table", "\n" + "\n".join(table) + "\n"), *readmes


def degradation(text: str, lines: Iterable[str]) -> tuple[str, str]:
    """Return docs/degradation.md with what the rows of a run say in figures, and the picture of the run."""
    run = script("benchmarks", "degradation")
    rows, options, data = run.from_csv(lines), run.parse([]), run.load(None, None)
    epochs, seeds = max(row.epoch for row in rows), len({row.seed for row in rows})
    height, width = data.images.shape[2:]
    setting = (
        f"{len(data.images):,} images of {height} x {width} pixels (scikit-learn's digits; {len(data.test_images)} more"
        f" are held out), batches of {options.batch}, {epochs} epochs, SGD with momentum 0.9 and weight decay 0.0001,"
        f" a rate of {options.rate} that falls to a tenth after {epochs // 2} and {epochs * 3 // 4} epochs;"
        f" {seeds} seeds."
    )
    ends: dict[str, list[float]] = {}
    for row in rows:
        if row.epoch == epochs:
            ends.setdefault(row.network, []).append(row.training_error)
    bounds = {name: dict.fromkeys((f"{min(errors):.0f}", f"{max(errors):.0f}")) for name, errors in ends.items()}
    spans = {name: f"{' to '.join(found)} %" for name, found in bounds.items()}
    finding = (
        f"plain56 ends with {spans['plain56']} of its own training images wrong, over the seeds, where plain20 has"
        f" {spans['plain20']}, resnet20 {spans['resnet20']} and resnet56 {spans['resnet56']}."
    )
    for name, content in (("setting", setting), ("table", run.table(rows)), ("finding", finding)):
        text = filled(text, "degradation", name, f"\n{content}\n")
    return text, run.draw(rows, run.title(data, seeds))


def listed(names: Iterable[str]) -> str:
    """Return names as code, in order."""
    return ", ".join(f"`{name}`" for name in sorted(names))


def said(formula: Callable[..., int]) -> str:
    """Return the first sentence of a formula's docstring."""
    if formula is rules.inputs_bytes:
        return "inputs"
    text = (getattr(formula, "func", formula).__doc__ or "").strip().split("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def shown(name: str, text: str) -> str:
    """Return the page `name` with what its Python and its commands print."""
    page: str = script("docs", "shown").shown(text, f"{name}.md")
    return page


def main(arguments: Sequence[str]) -> None:
    """Write the READMEs, the pages of docs and the figures of the networks; or the READMEs' timings alone."""
    if "--timings" in arguments:
        timings()
        return
    FIGURES.write_text(figures(), encoding="utf-8")
    registry.figures.cache_clear()
    (ROOT / "docs" / "families.svg").write_text(families(), encoding="utf-8")
    (ROOT / "docs" / "models.md").write_text(models(), encoding="utf-8")
    (ROOT / "docs" / "conventions.md").write_text(conventions(), encoding="utf-8")
    (ROOT / "docs" / "coverage.md").write_text(coverage(), encoding="utf-8")
    (ROOT / "docs" / "comparison.md").write_text(comparison(), encoding="utf-8")
    (ROOT / "docs" / "performance.md").write_text(performance(), encoding="utf-8")
    page, rows = ROOT / "docs" / "degradation.md", (ROOT / "docs" / "degradation.csv").read_text(encoding="utf-8")
    text, picture = degradation(page.read_text(encoding="utf-8"), rows.splitlines())
    page.write_text(text, encoding="utf-8")
    page.with_suffix(".svg").write_text(picture, encoding="utf-8")
    page = ROOT / "docs" / "memory.md"
    text, *fronts = memory(*(path.read_text(encoding="utf-8") for path in (page, *READMES)))
    page.write_text(text, encoding="utf-8")
    for path, front in zip(READMES, fronts, strict=True):
        path.write_text(readme(front), encoding="utf-8")
    for name in script("docs", "shown").PAGES:
        page = ROOT / "docs" / f"{name}.md"
        page.write_text(shown(name, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
