"""Write what README and docs say in figures: `make docs`. The tests compare all but the timings."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from torchledger import analyze
from torchledger.models import registry
from torchledger.pricing import CONVENTIONS, FULL, FVCORE, TORCHSTAT, full, fvcore, rules, torchstat
from torchledger.report import catalog
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


def filled(text: str, kind: str, name: str, content: str) -> str:
    """Return `text` with `content` between `<!-- kind: name -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {kind}: {re.escape(name)} -->)(.*?)(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"no <!-- {kind}: {name} -->"
    return pattern.sub(lambda match: match[1] + content + match[3], text)


def readme(text: str) -> str:
    """Return README.md with the tables as the tests have them."""
    for path in sorted(GOLDEN.glob("alexnet_*_80.txt")):
        text = filled(text, "table", path.name, f"\n\n```text\n{path.read_text(encoding='utf-8')}```\n\n")
    return text


def benchmarks(text: str) -> str:
    """Return README.md with ratios measured now."""
    run = subprocess.run([sys.executable, "benchmarks/trace.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    first, _, *rows, _ = run.stdout.splitlines()
    lines = ["| model | forward on meta | cold (empty memo) | warm |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        name, milliseconds, unit, cold, warm, *_ = row.split()
        lines.append(f"| {name} | {milliseconds} {unit} | {cold} | {warm} |")
    text = filled(text, "bench", "date", first.removesuffix(", one thread"))
    return filled(text, "bench", "table", "\n" + "\n".join(lines) + "\n")


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
    return "\n".join(lines) + "\n"


@cache
def script(folder: str, name: str) -> ModuleType:
    """Return the script `name` of a folder of the repository."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def coverage() -> str:
    """Return docs/coverage.md, from the results that `make coverage` left."""
    page: str = script("benchmarks", "coverage").page()
    return page


def degradation(text: str, lines: Iterable[str]) -> tuple[str, str]:
    """Return docs/degradation.md with what the rows of a run say in figures, and the picture of the run."""
    run = script("examples", "degradation")
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


def main() -> None:
    """Write README.md, the pages of docs and the figures of the networks."""
    FIGURES.write_text(figures(), encoding="utf-8")
    registry.figures.cache_clear()
    (ROOT / "docs" / "models.md").write_text(models(), encoding="utf-8")
    (ROOT / "docs" / "conventions.md").write_text(conventions(), encoding="utf-8")
    (ROOT / "docs" / "coverage.md").write_text(coverage(), encoding="utf-8")
    page, rows = ROOT / "docs" / "degradation.md", (ROOT / "docs" / "degradation.csv").read_text(encoding="utf-8")
    text, picture = degradation(page.read_text(encoding="utf-8"), rows.splitlines())
    page.write_text(text, encoding="utf-8")
    page.with_suffix(".svg").write_text(picture, encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(benchmarks(readme(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
