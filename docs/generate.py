"""Write what README and docs say in figures: `make docs`. The tests compare all but the timings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torchledger.pricing import CONVENTIONS, FULL, TORCHSTAT, full, rules, torchstat

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


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
            lines += ["", f"Free: {listed(full.FREE_OPERATIONS)}."]
        if convention is TORCHSTAT:
            lines += ["", "| operation | what it counts |", "| --- | --- |"]
            formulas: dict[str, list[str]] = {}
            for name, formula in torchstat.RULES.items():
                formulas.setdefault((formula.__doc__ or "").rstrip("."), []).append(name)
            lines += [f"| {listed(names)} | {text} |" for text, names in formulas.items()]
            lines += [
                "",
                "In leaf modules, with the number of dimensions that torchstat knows; every other priced operation is",
                "outside of it. Inputs and outputs are read and written once; all is for one sample, times the batch.",
            ]
    return "\n".join(lines) + "\n"


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
    """Write README.md and docs/conventions.md."""
    (ROOT / "docs" / "conventions.md").write_text(conventions(), encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(benchmarks(readme(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
