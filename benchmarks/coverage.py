"""Run a whole library of models and set what is counted beside what others published.

    benchmarks/coverage.py timm --published FILE    FILE: model,infer_img_size,param_count,infer_gmacs,infer_macts
    benchmarks/coverage.py torchvision              set against `_ops` of the default weights
    benchmarks/coverage.py hf [--only TYPE ...]     set against an independent count of a real run, see real_run.py

Each model is built, without weights and on meta where it can be, and analysed in a worker process that is ended when it
takes too long. Results go to results/coverage_LIBRARY.csv after each model. A model whose row there was made with the
same code and the same versions is not run again, so that a run that was broken off goes on where it stopped. Rows say
whether a published figure agrees, and by how much it does not; the published figures themselves stay where they are.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fnmatch import fnmatch
from multiprocessing import connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    *("model", "kind", "input", "form", "state", "unknown", "params", "macs", "fvcore_macs", "fvcore_activations"),
    *("reference", "agreement", "seconds", "error", "date", "versions"),
)
KEY = COLUMNS[:3]
Key = tuple[str, str, str]
Row = dict[str, str]


@dataclass(frozen=True)
class Figure:
    """A published amount in units of `unit`, rounded to `digits` decimals; `tolerance` is a share of it."""

    value: float
    unit: float
    digits: int
    tolerance: float = 0.0

    def agrees(self, amount: float) -> bool:
        """Whether a count comes to this figure within its rounding or its tolerance, whichever is wider."""
        apart = abs(amount / self.unit - self.value)
        return apart <= max(0.5 * 10**-self.digits * (1 + 1e-9), self.tolerance * self.value)

    def apart(self, amount: float) -> str:
        """Return how far a count is from this figure."""
        return f"{amount / self.unit / self.value - 1:+.2%}" if self.value else f"{amount:g} for 0"


@dataclass(frozen=True)
class Case:
    """One model at one size of input, and what others published of it by quantity; `reference` says where."""

    model: str
    kind: str
    input: str
    reference: str = ""
    published: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.model, self.kind, self.input


@dataclass(frozen=True)
class Built:
    """A model with the inputs of its forward, and what was done to it where that is worth telling."""

    model: Any
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True)
class Library:
    """What it takes to run a library.

    `packages`: whose versions the figures hang on. `cases`: all models, given a file of published figures or None.
    `booked`: how many have to run without an unknown operation. `bars`: {quantity: how many figures have to agree}. A
    bar is a share, or a whole number, which of a smaller choice of models asks for all. `causes`: {pattern of names:
    why figures differ}. `real` counts the macs of a case in a real run, where nobody published them, or raises
    `LookupError` for why it does not. `note` says of the rows what they do not show.
    """

    packages: tuple[str, ...]
    cases: Callable[[Path | None], list[Case]]
    build: Callable[[Case], Built]
    booked: float
    bars: Mapping[str, float]
    causes: Mapping[str, str] = field(default_factory=dict)
    real: Callable[[Case, Built], int] | None = None
    note: str = ""


def sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def on_meta(make: Callable[[], Any]) -> Any:
    """Build on meta; a constructor that computes with the values of tensors builds for real."""
    import torch

    try:
        with torch.device("meta"):
            return make()
    except Exception:
        return make()


# ---- timm


def timm_cases(published: Path | None) -> list[Case]:
    """Each row of the published figures; without these, every model at its default size."""
    import timm

    if published is None:
        configs = {name: timm.models.get_pretrained_cfg(name) for name in timm.list_models()}
        return [Case(name, "", "x".join(map(str, c.input_size))) for name, c in configs.items() if c is not None]
    cases = []
    with published.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            figures = {
                "params": Figure(float(row["param_count"]), 1e6, 2),
                "fvcore_macs": Figure(float(row["infer_gmacs"]), 1e9, 2, 0.005),
                "fvcore_activations": Figure(float(row["infer_macts"]), 1e6, 2, 0.005),
            }
            size = row["infer_img_size"]
            cases.append(Case(row["model"], "", f"3x{size}x{size}", published.name, figures))
    return cases


def timm_build(case: Case) -> Built:
    """Build as timm's benchmark does: with the configuration of weights made for this size, or made to this size.

    Of the forms that a model comes in (with the heads of several weights; re-parameterised for inference, or not) that
    one counts which has the published number of parameters, re-parameterised first.
    """
    import timm
    from timm.utils import reparameterize_model

    size, figure = sizes(case.input), case.published.get("params")
    plain: Built | None = None
    for name, options in timm_forms(case.model, size):
        create = functools.partial(timm.create_model, name, **options)
        built = Built(on_meta(create).eval(), (size,))
        if figure is None:
            return built
        fused = on_meta(lambda create=create: reparameterize_model(create().eval()))
        if modules(fused) != modules(built.model) and figure.agrees(parameters(fused)):
            return Built(fused, (size,), form="re-parameterised")
        if figure.agrees(parameters(built.model)):
            return built
        plain = plain or built
    assert plain is not None
    return plain


def modules(model: Any) -> int:
    return sum(1 for _ in model.modules())


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def timm_forms(name: str, size: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each form of a model for this size: made for weights of it, or made to it."""
    from timm.models import get_arch_pretrained_cfgs

    configs = get_arch_pretrained_cfgs(name)
    for tagged, config in configs.items():
        if config.input_size == size:
            yield tagged, {}
    for tagged, config in configs.items():
        if config.test_input_size == size and not config.fixed_input_size:
            yield tagged, {}
    takes_any_size = not any(config.fixed_input_size for config in configs.values())
    yield name, {} if takes_any_size else {"img_size": size[-2:]}


TIMM_CAUSES = {
    "convmixer_*": "fvcore has no handle for a convolution with padding='same' (aten::_convolution_mode)",
    "ecaresnext50t_32x4d": "published with the 2, 2, 2, 2 blocks that timm built under this name then; now 3, 4, 6, 3",
    "vit_*_rope_mixed_*": "timm took an outer product by matmul then, which fvcore counts, and elementwise now",
}

# ---- torchvision

KINDS = {
    "detection": ((3, 800, 800),),
    "segmentation": ((3, 520, 520),),
    "video": ((3, 16),),  # and the crop of its weights
    "optical_flow": ((3, 520, 960), (3, 520, 960)),
    "quantization": ((3,),),
    "classification": ((3,),),
}


def torchvision_cases(published: Path | None) -> list[Case]:
    """Every builder; the quantised ones also with `quantize=True`. `_ops` of classification is their reference."""
    from torchvision import models

    cases = []
    for name in models.list_models():
        package = models.get_model_builder(name).__module__.removeprefix("torchvision.models.").split(".")[0]
        kind = package if package in KINDS else "classification"
        weights = models.get_model_weights(name).DEFAULT
        crop = getattr(weights.transforms, "keywords", {}).get("crop_size", ())
        crop = (crop, crop) if isinstance(crop, int) else tuple(crop)
        shapes = [shape + crop for shape in KINDS[kind]]
        given = ",".join("x".join(map(str, shape)) for shape in shapes)
        figures = {}
        if kind in ("classification", "quantization"):
            figures["macs"] = Figure(weights.meta["_ops"], 1e9, 3, 0.001)
        cases.append(Case(name, kind, given, "_ops" * bool(figures), figures))
        if kind == "quantization":
            cases.append(Case(name, "quantize=True", given, "_ops", figures))
    return cases


def torchvision_build(case: Case) -> Built:
    import torch
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if case.kind in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if case.kind == "quantize=True":
        options["quantize"] = True
    if models.get_model_builder(case.model).__module__.endswith("vision_transformer"):
        options["image_size"] = sizes(case.input)[-1]  # as the builder does with weights
    model = on_meta(lambda: models.get_model(case.model, **options)).eval()
    inputs: tuple[Any, ...] = tuple(sizes(size) for size in case.input.split(","))
    if case.kind == "detection":
        inputs = ([torch.empty(inputs[0], device="meta")],)  # a list of images without a batch
    return Built(model, inputs)


# ---- transformers

REAL = "a real run on the CPU"
LARGEST = 1_500_000_000  # parameters of what is run for real: 6 GB
HF_CAUSES = {
    "vits": "how long its speech gets hangs on durations that it computes, and the two runs drew other weights",
    "superglue": "the ledger keeps every pixel that may be a keypoint, an upper bound; the real run found fewer",
}
UNCOMPARED = "not compared: "


def hf_cases(published: Path | None) -> list[Case]:
    """Every model type, with few layers; batch 1, the inputs that `hf:TYPE` makes."""
    from hf_models import kinds

    return [Case(kind, "", "", REAL) for kind in kinds()]


def hf_build(case: Case) -> Built:
    return hf_built(case, on_meta=True)


def hf_built(case: Case, on_meta: bool) -> Built:
    import torch
    from hf_models import arguments

    from torchledger.sources import build, resolve

    source = build(resolve(f"hf:{case.model}"), arguments(case.model), device="meta" if on_meta else None)
    assert source.example is not None
    example = source.example(1, torch.float32)
    return Built(source.model.eval(), tuple(example.args), example.kwargs)


def hf_real(case: Case, built: Built) -> int:
    """Return the macs of the same model with random weights and inputs, by formulas that are not torchledger's."""
    import real_run
    from transformers.initialization import no_init_weights

    if (count := parameters(built.model)) > LARGEST:
        raise LookupError(f"{count / 1e9:.1f} billion parameters")
    with no_init_weights():
        real = hf_built(case, on_meta=False)
    real_run.draw(real.model)
    return real_run.count(real.model, real_run.drawn(real.inputs), real_run.drawn(dict(real.kwargs)))


LIBRARIES = {
    "timm": Library(
        packages=("torch", "timm"),
        cases=timm_cases,
        build=timm_build,
        booked=0.99,
        bars={"fvcore_macs": 0.97, "fvcore_activations": 0.97},
        causes=TIMM_CAUSES,
    ),
    "torchvision": Library(
        packages=("torch", "torchvision"),
        cases=torchvision_cases,
        build=torchvision_build,
        booked=1.0,
        bars={"macs": 1.0},
    ),
    "hf": Library(
        packages=("torch", "transformers"),
        cases=hf_cases,
        build=hf_build,
        booked=120,
        bars={"macs": 120},
        causes=HF_CAUSES,
        real=hf_real,
        note="few layers and small vocabularies; every model type that `benchmarks/hf_models.py --list` names",
    ),
}


# ---- one model, in a worker


def failed(case: Case, versions: str, why: str = "") -> Row:
    """Return the row of a model that has not come through."""
    row = dict.fromkeys(COLUMNS, "") | dict(zip(KEY, case.key, strict=True))
    now = {"date": date.today().isoformat(), "versions": versions}
    return row | {"state": "failed", "reference": case.reference, "error": why} | now


def result(library: str, case: Case, versions: str) -> Row:
    """Build and analyse one model; what goes wrong becomes the row's error."""
    started = time.perf_counter()
    row = failed(case, versions)
    try:
        row |= counted(library, case)
        row["state"] = "ok"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {without_folders(' '.join(str(error).split()))[:300]}"
    row["seconds"] = f"{time.perf_counter() - started:.2f}"
    return row


def without_folders(text: str) -> str:
    """Return an error without the folder that packages happen to lie in."""
    return re.sub(r"/\S*/(?:site-packages|src)/", "", text)


def counted(library: str, case: Case) -> Row:
    from torchledger import analyze

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        built = LIBRARIES[library].build(case)
        ledger = analyze(built.model, *built.inputs, kwargs=built.kwargs)
        case, uncompared = with_real_run(library, case, built)
    full, fvcore = ledger.totals(), ledger.totals("fvcore")
    amounts = {
        "params": full["params"],
        "macs": full["macs"],
        "fvcore_macs": fvcore["macs"],
        "fvcore_activations": fvcore["activations"],
    }
    row = {name: str(int(amount)) for name, amount in amounts.items()}
    row["unknown"] = ", ".join(f"{name} ({calls})" for name, calls in ledger.unknown.items())
    row["agreement"] = uncompared or agreement(amounts, case)
    row["form"] = built.form or without_folders("; ".join(ledger.assumptions))
    return row


def with_real_run(library: str, case: Case, built: Built) -> tuple[Case, str]:
    """Return the case with the count of a real run as its figure, or why there is none."""
    real = LIBRARIES[library].real
    if real is None:
        return case, ""
    try:
        return replace(case, published={"macs": Figure(real(case, built), 1.0, 0)}), ""
    except Exception as error:
        return case, UNCOMPARED + without_folders(" ".join(str(error).split()))[:200]


def agreement(amounts: Mapping[str, float], case: Case) -> str:
    """Return `yes`, or how far each figure that does not agree is from the published one; empty without reference."""
    missed = {name: figure for name, figure in case.published.items() if not figure.agrees(amounts[name])}
    apart = "; ".join(f"{name} {figure.apart(amounts[name])}" for name, figure in missed.items())
    return apart or ("yes" if case.published else "")


def work(pipe: connection.Connection, library: str, versions: str) -> None:
    """Answer each case that comes through the pipe with its row."""
    import torch

    prepare()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            pipe.send(result(library, pipe.recv(), versions))


def prepare() -> None:
    """Let torchvision be imported where its compiled part does not fit this torch."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    importlib.import_module("conftest")
    importlib.import_module("torchvision_ops").provide()


# ---- all models


@dataclass
class Worker:
    """A process that takes one case at a time."""

    library: str
    versions: str

    def __post_init__(self) -> None:
        self.case: Case | None = None
        self.started = 0.0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.library, self.versions), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, case: Case) -> None:
        self.case, self.started = case, time.monotonic()
        self.pipe.send(case)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def lost(self, why: str) -> Row:
        """Begin anew after a model that took too long or took the process with it; return its row."""
        assert self.case is not None
        self.end()
        row = failed(self.case, self.versions, why)
        row["seconds"] = f"{time.monotonic() - self.started:.2f}"
        self._start()
        return row


def run_all(
    library: str, cases: Sequence[Case], versions: str, workers: int, limit: float
) -> Iterator[tuple[Case, Row]]:
    """Yield each case with its row, as they come."""
    waiting = list(reversed(cases))
    team = [Worker(library, versions) for _ in range(min(workers, len(cases)))]
    try:
        while waiting or any(worker.case for worker in team):
            for worker in team:
                if worker.case is None and waiting:
                    worker.give(waiting.pop())
            ready = connection.wait([worker.pipe for worker in team if worker.case], timeout=0.2)
            for worker in team:
                case, row = worker.case, None
                if case is None:
                    continue
                if worker.pipe in ready:
                    try:
                        row = worker.pipe.recv()
                    except (EOFError, ConnectionError):
                        worker.process.join(5)
                        row = worker.lost(f"the worker ended with exit code {worker.process.exitcode}")
                elif time.monotonic() - worker.started > limit:
                    row = worker.lost(f"took more than {limit:g} s")
                if row is not None:
                    worker.case = None
                    yield case, row
    finally:
        for worker in team:
            worker.end()


def spread(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """Return `limit` cases, evenly spread over all."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[place * len(cases) // limit] for place in range(limit)]


def versions_of(packages: Iterable[str]) -> str:
    """Return the versions of the packages, and a digest of this program's code: rows made with other code are stale."""
    code = hashlib.sha256()
    here = (Path(__file__).with_name(f"{name}.py") for name in ("coverage", "hf_models", "real_run", "torchvision_ops"))
    for path in [*sorted((ROOT / "src" / "torchledger").rglob("*.py")), *here]:
        code.update(path.read_bytes())
    names = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([*names, f"torchledger {importlib.metadata.version('torchledger')} ({code.hexdigest()[:8]})"])


def read(path: Path) -> dict[Key, Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {(row["model"], row["kind"], row["input"]): row for row in csv.DictReader(lines)}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the whole file beside the old one and put it in its place, so that it is never half a file."""
    path.parent.mkdir(exist_ok=True, parents=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_suffix(".new")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)


def run(library: str, args: argparse.Namespace) -> int:
    """Run what has no row of these versions yet, and print the summary; return 1 where a bar is missed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    prepare()
    known = LIBRARIES[library]
    path: Path = args.output or RESULTS / f"coverage_{library}.csv"
    versions, rows = versions_of(known.packages), read(path)
    everything = known.cases(args.published)
    cases = spread([case for case in everything if not args.only or case.model in args.only], args.limit)
    made = {key: (row["versions"], row["reference"]) for key, row in rows.items() if not args.again}
    missing = [case for case in cases if made.get(case.key) != (versions, case.reference)]
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(library, total=len(missing))
        for case, row in run_all(library, missing, versions, args.workers, args.seconds):
            rows[case.key] = row
            places = {case.key: place for place, case in enumerate(everything)}
            write(path, (rows[key] for key in sorted(rows, key=lambda key: (places.get(key, len(places)), key))))
            bar.update(task, advance=1, description=f"{library} {case.model}")
    lines, missed = said(library, [rows[case.key] for case in cases])
    print("\n".join(lines))
    return int(missed)


def differing(row: Row) -> set[str]:
    """Return the quantities that do not agree."""
    if row["agreement"].startswith(UNCOMPARED):
        return set()
    return {text.split()[0] for text in row["agreement"].split("; ") if text and text != "yes"}


def passed(number: int, of: int, bar: float) -> bool:
    """Whether `number` of `of` come up to a bar."""
    return number >= (min(bar, of) if isinstance(bar, int) else bar * of)


def stated(bar: float, missed: bool) -> str:
    """Return a bar in words."""
    text = f"at least {bar}" if isinstance(bar, int) else f"{bar:.0%}"
    return f"(bar {text}{', missed' * missed})"


def said(library: str, rows: Sequence[Row]) -> tuple[list[str], bool]:
    """Return the summary of a library's rows, and whether a bar is missed."""
    known = LIBRARIES[library]
    done = [row for row in rows if row["state"] == "ok"]
    whole = [row for row in done if not row["unknown"]]
    missed = not passed(len(whole), len(rows), known.booked)
    lines = [
        f"{len(done)} of {len(rows)} ran, {len(whole)} without an unknown operation {stated(known.booked, missed)}"
    ]
    for (name, bar), kind in itertools.product(known.bars.items(), dict.fromkeys(row["kind"] for row in rows)):
        compared = [row for row in rows if row["reference"] and row["kind"] == kind]
        compared = [row for row in compared if not row["agreement"].startswith(UNCOMPARED)]
        if not compared:
            continue
        apart = [row for row in compared if row["state"] != "ok" or name in differing(row)]
        agree = len(compared) - len(apart)
        below = not passed(agree, len(compared), bar)
        missed |= below
        line = f"{kind} {name}".strip() + f": {agree} of {len(compared)} agree, {agree / len(compared):.2%}"
        lines.append(f"{line} {stated(bar, below)}")
    for row in rows:
        unknown = f"unknown: {row['unknown']}" if row["unknown"] else ""
        what = "; ".join(filter(None, (row["error"], row["agreement"].removeprefix("yes"), unknown)))
        if what:
            named = (text for pattern, text in known.causes.items() if fnmatch(row["model"], pattern))
            cause = next(named, "cause not known") if differing(row) else ""
            name = " ".join(row[column] for column in KEY if row[column])
            lines.append(f"- {name}: {what}{'. ' * bool(cause)}{cause}")
    return lines, missed


def page(folder: Path = RESULTS) -> str:
    """Return docs/coverage.md: the summary of each library's results."""
    lines = [
        "# Coverage",
        "",
        "Made by `make docs` from `benchmarks/results`, which `make coverage` writes: whole libraries of models, each",
        "analysed at batch 1 in eval mode, without weights. `macs` is what the convention `full` counts, `fvcore_macs`",
        "and `fvcore_activations` what the convention `fvcore` does. A figure agrees with a published one within the",
        "rounding of its printed digits, or within 0.5% (timm) or 0.1% (torchvision); for transformers it has to be",
        "equal to the count of a real run by formulas of their own (`benchmarks/real_run.py`). The digits in brackets",
        "stand for the code that was run.",
    ]
    for library in LIBRARIES:
        path = folder / f"coverage_{library}.csv"
        rows = list(read(path).values())
        if not rows:
            continue
        texts, _ = said(library, rows)
        made = dict.fromkeys(f"{row['date']}, {row['versions']}" for row in rows)
        references = ", ".join(dict.fromkeys(f"`{row['reference']}`" for row in rows if row["reference"]))
        lines += ["", f"## {library}", "", f"Every model: [{path.name}](../benchmarks/results/{path.name}).", ""]
        lines += [f"- {text}" for text in made]
        lines += [f"- {note}"] if (note := LIBRARIES[library].note) else []
        lines += [f"- set against {references}"] if references else []
        lines += [f"- {text}" for text in texts if not text.startswith("- ")]
        forms = Counter(row["form"].split(", since ")[0] for row in rows if row["form"])
        lines += [f"- {number} of them: {form}" for form, number in forms.items()]
        exceptions = [text for text in texts if text.startswith("- ")]
        lines += ["", "Exceptions:", "", *map(coded, exceptions)] if exceptions else []
    return "\n".join(lines) + "\n"


def coded(text: str) -> str:
    """Mark the model's name and what was counted in a line of the summary."""
    name, _, rest = text.removeprefix("- ").partition(" ")
    return f"- `{name}` {rest}"


def main() -> None:
    """Run a library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--limit", type=int, metavar="N", help="only so many models, evenly spread over all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models alone")
    parser.add_argument("--published", type=Path, metavar="FILE", help="figures to compare with (timm)")
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) - 1, 1), metavar="N")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of a model  (default: 300)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the results, instead of benchmarks/results/...")
    parser.add_argument("--again", action="store_true", help="also what has a row of these versions")
    args = parser.parse_args()
    if args.published is not None and not args.published.is_file():
        parser.error(f"--published {args.published}: no such file")
    sys.exit(run(args.library, args))


if __name__ == "__main__":
    main()
