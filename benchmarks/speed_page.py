"""What the results of speed.py and scale.py say: docs/performance.md, and which bars are held."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_calls import PEERS
from peers import HERE, Key, Row, few, read, shortened

RESULTS = HERE / "results" / "speed.csv"
SCALE = HERE / "results" / "scale.json"
KEY = ("group", "model", "peer", "device")
COLUMNS = (
    *KEY, "state", "operations", "rounds", "bare_ms", "cold", "warm", "cold_ms", "warm_ms", "first_ms", "fresh_ms",
    "memory_mb", "seconds", "error", "date", "versions",
)  # fmt: skip
OURS = "torchledger"
Scale = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """Say what a figure may be at most, and what it is; None where nothing was measured.

    A figure over models of which some have none (`lacking`) misses its bar.
    """

    text: str
    most: float
    value: float | None
    unit: str = ""
    note: str = ""
    lacking: int = 0

    @property
    def missed(self) -> bool:
        return self.value is not None and (self.value > self.most or self.lacking > 0)

    @property
    def said(self) -> str:
        if self.value is None:
            return "not measured"
        return f"{self.shown}, {'missed' if self.missed else 'held'} ({self.limit})"

    @property
    def shown(self) -> str:
        return "" if self.value is None else f"{self.value:.3g}{self.unit}{f' ({self.note})' * bool(self.note)}"

    @property
    def limit(self) -> str:
        return f"at most {self.most:g}{self.unit}"


def places(cases: Sequence[tuple[str, str]], rows: Iterable[Key]) -> Callable[[Key], tuple[int, ...]]:
    """Return the place of a row in the file: models as they are listed, those that are no longer listed last."""
    models = {key: place for place, key in enumerate(dict.fromkeys([*cases, *(key[:2] for key in rows)]))}
    peers = {peer.name: place for place, peer in enumerate(PEERS)}
    return lambda key: (models[key[0], key[1]], peers.get(key[2], len(peers)), key[3] != "meta")


def measured(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Return the rows that have a figure and these texts."""
    return [row for row in rows if row["state"] == "ok" and all(row[name] == text for name, text in wanted.items())]


def worst(rows: Sequence[Row], column: str) -> Row:
    return max(rows, key=lambda row: float(row[column]))


def middle(rows: Iterable[Row], column: str) -> float | None:
    found = [float(row[column]) for row in rows if row[column]]
    return statistics.median(found) if found else None


def bars(rows: Sequence[Row], scale: Scale | None = None) -> list[Bar]:
    """Return what was asked for, beside what is."""
    found = []
    for device, cold, warm in (("meta", 0.20, 0.14), ("cpu", 0.25, 0.18)):
        own = measured(rows, group="torchvision", peer=OURS, device=device)
        asked = sum((row["group"], row["peer"], row["device"]) == ("torchvision", OURS, device) for row in rows)
        lacking = asked - len(own)
        note = f"{len(own)} models" + f", {lacking} without a figure" * (lacking > 0)
        for column, most in (("cold", cold), ("warm", warm)):
            text = f"{PLACED[device]}, {column}: median"
            found.append(Bar(text, most, middle(own, column), note=note, lacking=lacking))
        if device == "meta":
            text, row = f"{PLACED[device]}, cold: worst", worst(own, "cold") if own else {"model": ""}
            found.append(Bar(text, 0.8, float(row["cold"]) if own else None, note=row["model"], lacking=lacking))
    if scale is None:
        return found
    start, training, llama = (scale.get(name, {}) for name in ("start", "training", "llama"))
    found.append(Bar("what a fresh process pays once, beyond `import torch`", 0.3, start.get("beyond_s"), " s"))
    for name in ("resnet50", "vit_b_16"):
        found.append(Bar(f"training step of {name}, warm", 0.25, training.get(name, {}).get("warm")))
    found.append(Bar("Llama-405B, cold", 0.4, llama.get("cold")))
    found.append(Bar("Llama-405B, warm", 0.3, llama.get("warm")))
    found.append(
        Bar("Llama-405B, all that the process holds", 500, scale.get("llama-memory", {}).get("peak_mb"), " MB")
    )
    found.append(Bar("VGG-16 on a CPU, memory added", 40, scale.get("vgg16-memory", {}).get("added_mb"), " MB"))
    chains = scale.get("growth", {}).get("chains", {})
    for chain in ("functions", "layers"):
        text = f"time an operation in a chain of 100,000 {chain}, over that of 1,000"
        found.append(Bar(text, 1.2, chains.get(chain, {}).get("100000", {}).get("relative")))
    return found


# ---- the page

PLACED = {"meta": "model on meta", "cpu": "model on a CPU"}
PREFACE = """\
# Performance

How long does an analysis take, what memory, and how do both grow? An analysis is `analyze(model, size).by_layer()`:
capture, pricing and the table. It is set against what nothing that runs a model once can do without: the bare forward
of the same model on meta (eval mode, `no_grad`, batch 1), which computes shapes alone. A ratio of 0.2 means that the
analysis takes a fifth of that.

- One process for each pair of counter and model, one thread, garbage collection off while the clock runs. Forward and
  counter take turns; a ratio is that of the medians of 5 to 25 rounds (fewer where they take more than 10 s).
- `cold`: what torchledger keeps of earlier models (its memo of shapes, prices, cached results) is emptied before each
  call. `warm`: the same model again. Other counters have one figure: they are called again and again.
- `first time`: the first call on a model in its process, once. What torchledger learns then of torch's operations and
  of the Python code of a model's classes it does not learn again, cold or warm.
- What is paid once in a process, such as imports that wait for a first call, is not in the ratios: each counter first
  counts a net of three layers (`first call`).
- `memory`: by how much the most that the process holds grows when the model is counted for the first time.
- `on meta` and `on a CPU` say where the model is. On a CPU most counters compute the forward for real; on meta, where
  they work there, they do not. For these models torchledger does not in either place.
- Each counter is called as its own documentation says, as in the [comparison](comparison.md), which says whether their
  figures are right.
"""


def page(results: Path = RESULTS, scale_file: Path = SCALE) -> str:
    """Return docs/performance.md."""
    rows = list(read(results, KEY).values())
    scale: Scale = json.loads(scale_file.read_text(encoding="utf-8")) if scale_file.exists() else {}
    lines = [*PREFACE.splitlines(), *stamps(rows, scale), "", "## Bars", ""]
    lines += ["| figure | bar | measured | |", "| --- | --- | --- | --- |"]
    for bar in bars(rows, scale):
        end = "not measured" if bar.value is None else "missed" if bar.missed else "held"
        lines.append(f"| {bar.text} | {bar.limit} | {bar.shown} | {end} |")
    lines += ["", "The first five are ratios over torchvision's classification models.", ""]
    scale_lines = [*llama(scale), *growth(scale.get("growth", {}))]
    for title, table in (
        ("Counters", by_peer(rows)),
        ("Training", training(scale.get("training", {}))),
        ("Scale", scale_lines),
        ("Start and memory", start(scale)),
        ("Model by model", by_model(rows)),
    ):
        if table:
            lines += [f"## {title}", "", *table, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def stamps(rows: Sequence[Row], scale: Scale) -> list[str]:
    """Return when, on what and with which versions everything was measured."""
    dates = sorted({row["date"] for row in rows} | {part["date"] for part in scale.values()})
    texts = [*(row["versions"] for row in rows), *(part["versions"] for part in scale.values())]
    packages = dict.fromkeys(text for versions in texts for text in versions.rpartition(" (")[0].split(", "))
    machines = dict.fromkeys(part["machine"] for part in scale.values())
    lines = ["- Made by `make docs` from what `make bench` writes to `benchmarks/results`: `speed.csv`, `scale.json`."]
    if dates:
        when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
        where = f" on one core, `scale.json` on {', '.join(machines)}" * bool(machines)
        lines.append(f"- {when}{where}; {', '.join(packages)}.")
        lines.append(
            "- Rows are measured anew where code or versions changed, on the machine at hand: compare ratios alone."
        )
    return lines


def by_peer(rows: Sequence[Row]) -> list[str]:
    """Return what each counter takes over all models of a group, on each device."""
    if not rows:
        return []
    lines = [
        "Medians over the models of a library that a counter gives a figure for; `models` says how many these are."
    ]
    for group, title in GROUPS.items():
        here = [row for row in rows if row["group"] == group]
        lines += ["", f"### {title}", "", HEADING, RULE] if here else []
        for peer in dict.fromkeys(row["peer"] for row in here):
            for device in PLACED:
                own = [row for row in here if (row["peer"], row["device"]) == (peer, device)]
                lines += [f"| {peer}{told} | {cells}" for told, cells in told_of(own, device)]
    return [*lines, *failures(rows)]


GROUPS = {"torchvision": "torchvision's classifiers", "timm": "timm", "hf": "transformers"}
HEADING = "| counter | model on | models | median ratio | worst | median | memory, median | most | first call |"
RULE = "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"


def told_of(rows: Sequence[Row], device: str) -> list[tuple[str, str]]:
    """Return a line, or one cold and one warm, for a counter on a device; none where it has no figure."""
    found, lines = measured(rows), []
    for column in ("cold", "warm"):
        if not any(row[column] for row in found):
            continue
        slowest = worst(found, column)
        told = f", {column}" if all(row["cold"] for row in found) else ""
        texts = (
            *(PLACED[device].removeprefix("model on ").removeprefix("a "), f"{len(found)} of {len(rows)}"),
            *(f"{middle(found, column):.2f}", f"{float(slowest[column]):.2f} ({slowest['model']})"),
            *(f"{middle(found, f'{column}_ms'):.1f} ms", memory(middle(found, "memory_mb"))),
            memory(max((float(row["memory_mb"]) for row in found if row["memory_mb"]), default=None)),
            f"{middle(found, 'first_ms') or 0:.0f} ms",
        )
        lines.append((told, f"{' | '.join(texts)} |"))
    return lines


def memory(amount: float | None) -> str:
    return "" if amount is None else f"{amount:.0f} MB"


def failures(rows: Sequence[Row]) -> list[str]:
    """Return why there is no figure."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["state"] != "ok":
            error = shortened(row["error"], 110).replace("`", "")
            reasons.setdefault((row["peer"], row["device"], error), []).append(row["model"])
    if not reasons:
        return []
    return [
        "",
        "No figure:",
        "",
        *(f"- {peer}, {PLACED[device]}: {few(models)}: `{error}`" for (peer, device, error), models in reasons.items()),
    ]


def training(figures: dict[str, Any]) -> list[str]:
    """Return the ratios of training steps."""
    if not figures:
        return []
    lines = [
        "A step (forward in train mode, cross entropy, backward, AdamW with its state there; batch 1), over the same",
        "step bare on meta:",
        "",
        "| model | operations | bare step on meta | cold | warm |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, of in figures.items():
        if isinstance(of, dict):
            lines.append(
                f"| {name} | {of['operations']:,} | {of['bare_ms']:.0f} ms | {of['cold']:.2f} | {of['warm']:.2f} |"
            )
    return lines


def llama(scale: Scale) -> list[str]:
    """Return what a Llama of 405 billion parameters takes."""
    of, alone = scale.get("llama"), scale.get("llama-memory")
    if not of or not alone:
        return []
    return [
        f"Llama 3.1 405B from its config, built on meta: {of['params'] / 1e9:.1f} billion parameters, a prompt of",
        f"2,048 tokens, {of['operations']:,} operations. The bare forward takes {of['bare_ms'] / 1e3:.2f} s, the full",
        f"ledger with its table {of['cold']:.2f} of that cold and {of['warm']:.2f} warm. A process that does only this",
        f"holds {alone['peak_mb']:.0f} MB at most; with the imports and the model it held {alone['before_mb']:.0f} MB.",
        f"As JSON the ledger has {of['json_bytes'] / 1e6:.1f} MB.",
        "",
    ]


def growth(figures: dict[str, Any]) -> list[str]:
    """Return the time an operation in longer and longer chains."""
    if not figures:
        return []
    lines = [
        "Chains of small operations, warm: of `functions` (x + 1 and relu in a loop, all in one module), and of",
        "`layers` (LayerNorm and ReLU in a Sequential, a module each):",
        "",
        "| chain of | operations | analysis | an operation | over that of the shortest | of it the table |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for chain, sizes in figures["chains"].items():
        for size, of in sizes.items():
            texts = (
                *(chain, f"{int(size):,}", f"{of['ms']:,.0f} ms", f"{1e3 * of['ms'] / int(size):.1f} us"),
                *(f"{of['relative']:.2f}", f"{of['table_ms']:,.0f} ms"),
            )
            lines.append(f"| {' | '.join(texts)} |")
    return lines


def start(scale: Scale) -> list[str]:
    """Return what a fresh process pays, and what memory a model with values takes beside it."""
    lines = []
    if of := scale.get("start"):
        lines.append(
            f"- A fresh process that imports torch alone takes {of['torch_s']:.2f} s; one that then analyses a net of"
            f" five layers takes {of['beyond_s']:.2f} s more (median of {of['rounds']} turns)."
        )
    if of := scale.get("vgg16-memory"):
        lines.append(
            f"- A process with torchvision's VGG-16 on a CPU holds {of['before_mb']:.0f} MB; its analysis, with the"
            f" import of torchledger, adds {of['added_mb']:.0f} MB at most."
        )
    return lines


def ratios_of(row: Row | None) -> tuple[str, ...]:
    """Return a model's ratios on a device: the first time, cold and warm."""
    if row is None:
        return ("", "", "")
    first = float(row["fresh_ms"]) / float(row["bare_ms"])
    return tuple(f"{value:.2f}" for value in (first, float(row["cold"]), float(row["warm"])))


def by_model(rows: Sequence[Row]) -> list[str]:
    """Return torchledger's figures for each model."""
    own = [row for row in rows if row["peer"] == OURS]
    if not own:
        return []
    lines = [
        "torchledger's ratios to the bare forward on meta:",
        "",
        "| model | of | operations | forward on meta | on meta: first time | cold | warm "
        "| on a CPU: first time | cold | warm |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, model in dict.fromkeys((row["group"], row["model"]) for row in own):
        found = {row["device"]: row for row in measured(own, group=group, model=model)}
        row = found.get("meta") or found.get("cpu")
        bare = (f"{int(row['operations']):,}", f"{float(row['bare_ms']):.1f} ms") if row else ("", "")
        ratios = [text for device in PLACED for text in ratios_of(found.get(device))]
        lines.append(
            f"| {' | '.join((model, GROUPS[group].removesuffix(chr(39) + 's classifiers'), *bare, *ratios))} |"
        )
    return lines
