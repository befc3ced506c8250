"""Set torchledger beside the other counters of a model's arithmetic: are they right, and do they leave the model alone?

    make peers                                  in environments of its own; goes on where it stopped
    benchmarks/peers.py --peer fvcore --again   one counter anew
    benchmarks/peers.py --speed                 how long each takes and what it holds (speed.py), part of `make bench`

Every counter is called as its own documentation says (peer_calls.py) on the same models (peer_cases.py): the modules of
tests/catalog, with hand-derived macs, networks of torchvision, against the published `_ops`, and a model in use, which
is compared before and after (untouched.py). Each pair of counter and model has a process of its own with a time limit.
Results go to results/peers.csv; `make docs` makes docs/comparison.md of them. Only counters that are installed run.
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
import json
import logging
import os
import re
import select
import signal
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import peer_calls
from peer_calls import PEERS, Peer

if TYPE_CHECKING:
    from peer_cases import Built, Case

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers.csv"
CATALOG = HERE.parent / "tests" / "catalog" / "modules.py"
SECONDS = 60
COLUMNS = "group family case peer state macs agreement left_out changed seconds error date versions".split()
Row = dict[str, str]
KEY = ("group", "case", "peer")
Key = tuple[str, ...]


# ---- one pair, in a process of its own


def outcome(peer: Peer, case: Case, built: Built | Exception) -> Row:
    """Call a counter on a model that is built; what goes wrong becomes the row's error."""
    import torch
    import untouched

    if isinstance(built, Exception):
        return {"error": f"not built: {said_by(built)}"}
    model, inputs, keywords = built
    if peer.on_meta:
        model, inputs, keywords = on_meta(built)
    printed = io.StringIO()
    logging.basicConfig(stream=printed, level=logging.WARNING, format="%(message)s")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.manual_seed(0)
        count, raised, changed = untouched.attempted(model, lambda: peer.call(model, inputs, keywords))
    row = {"changed": "; ".join(changed)}
    if raised is not None:
        swallowed = re.search(r"because of the following exception: \n(.*)", printed.getvalue())
        return row | {"error": re.sub(r"<class '(\S+)'>", r"\1", swallowed[1]) if swallowed else said_by(raised)}
    left_out = count.left_out or peer_calls.said(printed.getvalue())
    row |= {"state": "ok", "macs": f"{count.macs:.10g}" if count.macs % 1 else str(int(count.macs))}
    return row | {"agreement": agreement(count.macs, case.macs, case.under, case.over), "left_out": shortened(left_out)}


def on_meta(built: Built) -> Built:
    import torch
    from torch.utils import _pytree

    model, inputs, keywords = built

    def move(value: object) -> object:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    return model.to("meta"), _pytree.tree_map(move, inputs), _pytree.tree_map(move, dict(keywords))


def agreement(macs: float, expected: float | None, under: float, over: float) -> str:
    """Return `exact`, `close` (within these shares, with how far apart), or how far apart alone."""
    if expected is None:
        return ""
    if macs == expected:
        return "exact"
    if not expected:
        return f"{macs:g} for 0"
    apart = macs / expected - 1
    return f"{'close ' * (-under <= apart <= over)}{apart:+.2%}"


def said_by(error: BaseException) -> str:
    """Return what is at the root of an error in one line, without addresses and the folder that packages lie in."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"/[^ ]*/(?:site-packages|src|benchmarks)/|(?<= at) 0x[0-9a-f]+", "", " ".join(str(error).split()))
    text = text or str(traceback.extract_tb(error.__traceback__)[-1].line)
    return shortened(f"{type(error).__name__}: {text}")


def shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


class Forked:
    """A process that begins as a copy of this one, and the lines of JSON that it sends.

    A plain fork: torchlens refuses to work in processes of `multiprocessing`.
    """

    def __init__(self, work: Callable[[Callable[[Row], None]], None]) -> None:
        reads, writes = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reads)
            with contextlib.suppress(BaseException), open(writes, "w") as pipe:
                work(lambda row: print(json.dumps(row), file=pipe, flush=True))
            os._exit(0)
        os.close(writes)
        self.pipe = os.fdopen(reads)

    def row(self, limit: float | None = None) -> Row | None:
        """Wait for a line, at most `limit` seconds; None where none comes."""
        if not select.select([self.pipe], [], [], limit)[0]:
            return None
        line = self.pipe.readline()
        return json.loads(line) if line else None

    def end(self) -> int:
        """End it, and return its exit code (a signal's is negative)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.pipe.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def alone(act: Callable[[], Row], limit: float) -> Row:
    """Return what an act in a forked process gives; what ends or outlasts the process is the row's error."""

    def work(send: Callable[[Row], None]) -> None:
        with open(os.devnull, "w") as nowhere:  # for what is printed from below Python
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            row = act()
        except BaseException as error:
            row = {"error": said_by(error)}
        send(row)

    started = time.monotonic()
    process = Forked(work)
    try:
        row = process.row(limit)
    finally:
        took = time.monotonic() - started
        process.end()
    if row is None:
        row = {"error": f"took more than {limit:g} s" if took >= limit else "its process ended without a word"}
    return row | {"seconds": f"{took:.2f}"}


def host(send: Callable[[Row], None], peer: Peer, acts: Sequence[Callable[[], Row]], limit: float) -> None:
    """Import a counter once, and send the row of each act, which has a process of its own."""
    error = ""
    try:
        peer_calls.prepare()
        importlib.import_module(peer.package)
    except Exception as problem:
        error = said_by(problem)
    for act in acts:
        send({"error": error} if error else alone(act, limit))


def hosted(peer: Peer, acts: Sequence[Callable[[], Row]], limit: float) -> Iterator[Row]:
    """Yield the row of each act as it comes."""
    process = Forked(lambda send: host(send, peer, acts, limit))
    try:
        for _ in acts:
            row = process.row()
            assert row is not None, f"{peer.name} ended the process that runs it"
            yield row
    finally:
        process.end()


# ---- all pairs


def run_all(wanted: dict[str, list[Case]], limit: float) -> Iterator[tuple[Peer, Case, Row]]:
    """Yield each pair's row as they come: one counter after the other, so that none sees what another one patched."""
    models: dict[tuple[str, str], Built | Exception] = {}
    for peer in PEERS:
        cases = wanted.get(peer.name, [])
        if not cases:
            continue
        for case in cases:
            if (case.group, case.name) not in models:
                models[case.group, case.name] = made(case)
        acts = [functools.partial(outcome, peer, case, models[case.group, case.name]) for case in cases]
        for case, row in zip(cases, hosted(peer, acts, limit), strict=True):
            yield peer, case, row


def made(case: Case) -> Built | Exception:
    import torch

    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case.build()
    except Exception as error:
        return error


def families(cases: Sequence[Case]) -> dict[str, str]:
    """Return the list of the catalog that each module stands in, in small letters."""
    if not any(case.group == "catalog" for case in cases):
        return {}
    lists = vars(importlib.import_module("catalog.modules")).items()
    return {
        entry.name: name.lower()
        for name, entries in lists
        if isinstance(entries, list) and name != "CASES"
        for entry in entries
    }


def installed(package: str) -> str:
    """Return the version of a package, or nothing; torchledger is the one of this folder."""
    if package == "torchledger":
        return str(tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions_of(peer: Peer, group: str, catalog: Path) -> str:
    """Return the versions that a row of a group hangs on, and a digest of the code that makes it."""
    paths = [HERE / name for name in ("peer_calls.py", "peer_cases.py", "untouched.py")]
    if group == "catalog":
        paths += [path for path in sorted(catalog.parent.glob("*.py")) if not path.name.startswith("test_")]
    return stamped(("torch", "torchvision", peer.package), paths)


def stamped(packages: Iterable[str], paths: Iterable[Path]) -> str:
    """Return the versions of packages and a digest of files, for torchledger of all its files."""
    names, code = dict.fromkeys(packages), hashlib.sha256()
    for path in (*paths, *(sorted((HERE.parent / "src").rglob("*.py")) if "torchledger" in names else ())):
        code.update(path.read_bytes())
    versions = [f"{name} {installed(name)}".strip() for name in names]
    return f"{', '.join(versions)} ({code.hexdigest()[:8]})"


def read(path: Path, key: Sequence[str] = KEY) -> dict[Key, Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {tuple(row[name] for name in key): row for row in csv.DictReader(lines)}


def write(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write the whole file beside the old one and put it in its place, so that it is never half a file."""
    path.parent.mkdir(exist_ok=True, parents=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def chosen(args: argparse.Namespace) -> list[Case]:
    """Return the models that are asked for; torchvision is imported wherever it is, as some counters import it."""
    import peer_cases

    cases = peer_cases.catalog_cases(args.catalog)
    networks = [name for name in peer_cases.FAMILIES if not args.case or name in args.case]
    if networks or args.all or installed("torchvision"):
        peer_cases.import_torchvision()
    if networks or args.all:
        cases += peer_cases.torchvision_cases(None if args.all else networks)
    cases = [case for case in cases + peer_cases.untouched_cases() if not args.case or case.name in args.case]
    if missing := set(args.case or ()).difference(case.name for case in cases):
        raise SystemExit(f"no model is called {', '.join(sorted(missing))}: {args.output} has their names under `case`")
    return cases


def run(args: argparse.Namespace) -> None:
    """Run the pairs that have no row of these versions yet."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # it wraps functions of torch then: no doing of the counter that needs it
    cases = chosen(args)
    rows = {key: dict.fromkeys(COLUMNS, "") | row for key, row in read(args.output).items()}
    wanted: dict[str, list[Case]] = {}
    now: dict[tuple[str, str], str] = {}
    for peer in PEERS:
        if (args.peer and peer.name not in args.peer) or not installed(peer.package):
            continue
        now |= {(peer.name, group): versions_of(peer, group, args.catalog) for group in {case.group for case in cases}}
        for case in cases:
            row = rows.get((case.group, case.name, peer.name))
            if args.again or row is None or row["versions"] != now[peer.name, case.group]:
                wanted.setdefault(peer.name, []).append(case)
    if args.catalog.exists() and not args.case:  # what the catalog no longer has
        kept = {case.name for case in cases if case.group == "catalog"}
        rows = {key: row for key, row in rows.items() if key[0] != "catalog" or key[1] in kept}
    family = families(cases)
    named, there = [(case.group, case.name) for case in cases], [key[:2] for key in rows]
    places = {key: place for place, key in enumerate(dict.fromkeys(there + named if args.case else named + there))}
    order = {peer.name: place for place, peer in enumerate(PEERS)}

    def put() -> None:
        for (group, name, _), row in rows.items():
            row["family"] = family.get(name, row["family"]) if group == "catalog" else ""
        write(
            args.output, (rows[key] for key in sorted(rows, key=lambda key: (places[key[:2]], order.get(key[2], 99))))
        )

    with shown(sum(map(len, wanted.values()))) as advance:
        for peer, case, result in run_all(wanted, args.seconds):
            stamp = {"date": date.today().isoformat(), "versions": now[peer.name, case.group]}
            key = (case.group, case.name, peer.name)
            blank = dict.fromkeys(COLUMNS, "") | {"state": "failed"} | stamp
            rows[key] = blank | dict(zip(("group", "case", "peer"), key, strict=True)) | result
            put()
            advance(f"{peer.name}: {case.name}")
    put()  # also where nothing was left to run


@contextlib.contextmanager
def shown(total: int) -> Iterator[Callable[[str], None]]:
    """Show how many pairs are done; what it gives is called with each one's name."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # without a thread of its own: processes are forked while it is shown
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("pairs", total=total)
        yield lambda name: bar.update(task, advance=1, description=name, refresh=True)


# ---- the page

PREFACE = """\
# Comparison with other counters

Is a counter right, does it say what it leaves out, and is the model afterwards as it was before? Asked of {modules}
small modules, each a trap for counters, with macs derived by hand ([the catalog](../tests/catalog/modules.py)), of
{networks} classifiers of torchvision, against the `_ops` that it publishes, and of a model in use.

| | counter | catalog: right | exact | more | fewer, said so | fewer, in silence | no figure | \
torchvision: within 1% | more | fewer | no figure | all left as it was |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""
READING = """
- `right`: exact, or more by at most a quarter, which biases and norms add in modules of this size.
- `more`: by more than that, or, on torchvision, than 1%. It is a mistake in some; in others it is the convention: with
  norms, activations and pools a network has up to 9% more than its contractions. [One by one](#one-by-one) has what
  each counter counts.
- `fewer`: contractions are missing. `said so`: the counter named something that it had not counted, in what it prints
  or returns. Some name every operation without a formula, views too, also where their count is right.
- `no figure`: it raised an error, gave `None`, took more than {limit} s, or takes no such inputs.
- `all left as it was`: the model and torch itself, also when the model trains and when its forward fails
  (`in eval mode`: only there); [below](#what-a-call-leaves-changed) is what changes.

How far to trust it:

- The catalog was made for torchledger, whose tests hold it to these figures: that it has them is no surprise. Its
  modules were chosen for what counters stumble over; a share of them is no share of real models. `macs` are those of
  [conventions.md](conventions.md), products of two factors that are added up, and a few modules hang on that:
  `cdist` and `weighted embedding_bag` are no matrix products.
- {own}
- Forward alone, eval mode, float32 but where a module says otherwise, each model as its builder makes it, on a CPU.
- Each counter is called as its own documentation says, with its defaults and without rules of ours; what it calls its
  total is compared. One that takes no keyword inputs, or not several inputs, gets them through a module around the
  model. Each pair of counter and model has a process of its own.
- {when}; {packages}. Made by `make docs` from [peers.csv](../benchmarks/results/peers.csv), which `make peers` writes.
"""
NOTES = {
    "torchinfo": "It books a linear layer once a sample, however many rows a sample has.",
    "fvcore": "It counts norms and leaves fused attention out. In the catalog's encoder layers the two happen to be "
    "equal, so that their sums are exact.",
    "thop": "With `report_missing=True` it names the modules that it has no rule for; by default it does not.",
    "FlopCounterMode": "It watches a forward that its user runs: what changes in train mode, a forward changes.",
    "calflops": "It imports transformers, which it does not ask for when it is installed.",
    "torchlens": "It keeps torch's functions wrapped after the first call, and refuses processes of multiprocessing.",
    "torchstat": "It takes one image, and no module of the catalog is given that. In an environment of its own, with "
    "numpy 1.23.5 and pandas 1.5.3: on pandas 2 and later its own example ends with `AttributeError: 'DataFrame' "
    "object has no attribute 'append'`.",
}
SYMBOLS = {"exact": "=", "close": "≈", "more": "+", "fewer": "−", "failed": "×"}
SILENT = "!"
OF_TORCH = ("classes", "functions of torch", "hooks of all modules", "grad mode", "default dtype", "random state")


def verdict(row: Row) -> str:
    """Return `exact`, `close`, `more`, `fewer` or `failed`."""
    if row["state"] != "ok":
        return "failed"
    said = row["agreement"].split()[0]
    if said in ("exact", "close"):
        return said
    return "fewer" if said.startswith("-") else "more"


def in_silence(row: Row) -> bool:
    """Return whether a count is too small, and the counter has named nothing that it had not counted."""
    return verdict(row) == "fewer" and not row["left_out"]


def aspects(row: Row, *, of_torch: bool) -> list[str]:
    """Return what a call left changed, of the model or of torch, each under the first aspect that shows it."""
    told: dict[str, str] = {}
    for text in filter(None, row["changed"].split("; ")):
        aspect, _, names = text.partition(" (")
        if aspect.startswith(OF_TORCH) == of_torch:
            told.setdefault(names, aspect)
    return [f"{aspect} ({names}" for names, aspect in told.items()]


def page(path: Path = RESULTS) -> str:
    """Return docs/comparison.md: what the results say of every counter."""
    rows = list(read(path).values())
    of_peer = {peer.name: [row for row in rows if row["peer"] == peer.name] for peer in PEERS}
    ran = {name: own for name, own in of_peer.items() if own}
    packages = dict.fromkeys(text for row in rows for text in row["versions"].rpartition(" (")[0].split(", "))
    dates = sorted({row["date"] for row in rows})
    catalog = {row["case"]: row for row in rows if row["group"] == "catalog"}
    networks = {row["case"]: row for row in rows if row["group"] == "torchvision"}
    lines = PREFACE.format(modules=len(catalog), networks=len(networks)).splitlines()
    lines += [f"| {place} | {name} | {' | '.join(summary(own))} |" for place, (name, own) in enumerate(ran.items(), 1)]
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    own = own_words(ran[PEERS[0].name])
    lines += READING.format(limit=SECONDS, own=own, when=when, packages=", ".join(packages)).splitlines()
    lines += ["", "## Where the catalog is missed", "", *by_family(ran), "", "## What a call leaves changed", ""]
    lines += [*left_changed(ran), "", "## torchvision", "", *by_network(ran, list(networks)), ""]
    lines += ["## One by one"]
    for peer in PEERS:
        if peer.name in ran:
            lines += ["", f"### {peer.name}", "", *one(peer, ran[peer.name])]
    lines += ["", "## Module by module", "", *by_module(ran, list(catalog))]
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the cells of a counter in the first table."""
    small = Counter(verdict(row) for row in rows if row["group"] == "catalog")
    large = Counter(verdict(row) for row in rows if row["group"] == "torchvision")
    silent = sum(in_silence(row) for row in rows if row["group"] == "catalog")
    counts = [small["exact"] + small["close"], small["exact"], small["more"], small["fewer"] - silent, silent]
    counts += [small["failed"], large["exact"] + large["close"], large["more"], large["fewer"], large["failed"]]
    probes = {row["case"]: row for row in rows if row["group"] == "untouched"}
    left = "yes" if not any(row["changed"] for row in probes.values()) else "no"
    if left == "no" and not probes["eval"]["changed"]:
        left = "in eval mode"
    return [*map(str, counts), left]


def own_words(rows: Sequence[Row]) -> str:
    """Return where torchledger, too, is not exact."""
    missed = [row for row in rows if row["group"] == "catalog" and verdict(row) != "exact"]
    texts = [
        f"`{row['case']}` ({row['agreement'] or row['error']}), of which it says: {row['left_out'] or 'nothing'}"
        for row in missed
    ]
    return f"Where torchledger is not exact: {'; '.join(texts) or 'nowhere'}."


def by_family(ran: dict[str, list[Row]]) -> list[str]:
    """Return how many modules of each list in the catalog a counter has right."""
    first = next(iter(ran.values()))
    sizes = Counter(row["family"] for row in first if row["group"] == "catalog")
    lines = [
        "How many modules of each list in `tests/catalog/modules.py` a counter has right; `gradients` are modules",
        "whose backward is the trap, of which the forward alone is compared.",
        "",
        f"| counter | {' | '.join(f'{name} ({size})' for name, size in sizes.items())} |",
        f"| --- |{' ---: |' * len(sizes)}",
    ]
    for name, own in ran.items():
        found = Counter(row["family"] for row in own if row["group"] == "catalog" and right(row))
        lines.append(f"| {name} | {' | '.join(str(found[family]) for family in sizes)} |")
    return lines


def right(row: Row) -> bool:
    return verdict(row) in ("exact", "close")


def left_changed(ran: dict[str, list[Row]]) -> list[str]:
    """Return what each counter left changed of a model in use, and of torch."""
    lines = [
        "A model in use (frozen parts, hooks, gradients, running statistics), compared before and after the call: in",
        "eval mode, while it trains (parts of it in eval mode, as a frozen norm is), and when its forward raises an",
        "error while it trains. In the catalog any forward changes three modules: lazy layers get their weights, and",
        "the hook of `weight_norm` writes an attribute.",
        "",
    ]
    modes = {"eval": "in eval mode", "train": "training", "raises": "raising"}
    for name, own in ran.items():
        probes = {row["case"]: row for row in own if row["group"] == "untouched"}
        told: dict[str, list[str]] = {}
        for mode, text in modes.items():
            told.setdefault("; ".join(aspects(probes[mode], of_torch=False)) or "nothing", []).append(text)
        of_torch = dict.fromkeys(text for row in probes.values() for text in aspects(row, of_torch=True))
        if list(told) == ["nothing"] and not of_torch:
            lines.append(f"- {name}: nothing")
            continue
        texts = [f"{', '.join(when)}: {what}" for what, when in told.items()]
        texts += [f"of torch: {'; '.join(of_torch)}"] if of_torch else []
        lines.append(f"- {name}: {'. '.join(f'{text[0].upper()}{text[1:]}' for text in texts)}")
    return lines


def by_network(ran: dict[str, list[Row]], networks: Sequence[str]) -> list[str]:
    """Return how far each counter is from what torchvision publishes."""
    lines = [
        "Percent above or below the `_ops` of the default weights, which have one to three digits after the point in",
        f"GMACs. {numbers(ran)}",
        "",
        f"| network | {' | '.join(map(str, range(1, len(ran) + 1)))} |",
        f"| --- |{' ---: |' * len(ran)}",
    ]
    cells = {(row["case"], name): far(row) for name, own in ran.items() for row in own if row["group"] == "torchvision"}
    return lines + [f"| {case} | {' | '.join(cells.get((case, name), '') for name in ran)} |" for case in networks]


def far(row: Row) -> str:
    """Return how far a count is off in percent, to a tenth."""
    if row["state"] != "ok":
        return SYMBOLS["failed"]
    percent = row["agreement"].split()[-1].rstrip("%")
    rounded = 0.0 if percent == "exact" else round(float(percent), 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def numbers(ran: Iterable[str]) -> str:
    """Return which counter has which number."""
    return f"{'; '.join(f'{place} {name}' for place, name in enumerate(ran, 1))}."


def by_module(ran: dict[str, list[Row]], modules: Sequence[str]) -> list[str]:
    """Return what each counter made of each module of the catalog, a sign each."""
    lines = [
        f"`{SYMBOLS['exact']}` exact, `{SYMBOLS['close']}` more by at most a quarter, `{SYMBOLS['more']}` more, "
        f"`{SYMBOLS['fewer']}` fewer, said so, `{SILENT}` fewer, in silence, `{SYMBOLS['failed']}` no figure.",
        numbers(ran),
        "",
        f"| module | {' | '.join(map(str, range(1, len(ran) + 1)))} |",
        f"| --- |{' --- |' * len(ran)}",
    ]
    signs = {
        (row["case"], name): SILENT if in_silence(row) else SYMBOLS[verdict(row)]
        for name, own in ran.items()
        for row in own
        if row["group"] == "catalog"
    }
    return lines + [f"| {case} | {' | '.join(signs.get((case, name), '') for name in ran)} |" for case in modules]


def one(peer: Peer, rows: Sequence[Row]) -> list[str]:
    """Return how a counter was called, what it counts, why it gave no figure, and what it leaves changed elsewhere."""
    lines = [f"- `{peer.written}` ({peer.source})", f"- counts {peer.counts}"]
    lines += [f"- {NOTES[peer.name]}"] if peer.name in NOTES else []
    for group in ("torchvision", "catalog"):
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row["group"] == group and verdict(row) == "failed":
                reasons.setdefault(shortened(row["error"], 110), []).append(row["case"])
        lines += [
            f"- {group}, no figure: {few(cases)}: `{reason.replace('`', '')}`" for reason, cases in reasons.items()
        ]
    changed = [row for row in rows if row["group"] != "untouched" and aspects(row, of_torch=False)]
    lines += [f"- left {len(changed)} of the modules and networks changed"] if changed else []
    return lines


def few(names: Sequence[str], most: int = 6) -> str:
    """Return at most some names, and how many more there are."""
    return (
        ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    )


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=[p.name for p in PEERS], help="only this one (repeatable)")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this model (repeatable)")
    parser.add_argument("--all", action="store_true", help="every classifier of torchvision, as with --speed")
    parser.add_argument("--speed", action="store_true", help="how long they take, and the memory (speed.py)")
    parser.add_argument("--again", action="store_true", help="also pairs that have a row of these versions")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit of a pair  (default: {SECONDS})")
    parser.add_argument("--catalog", type=Path, default=CATALOG, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where results go  (default: in results/)")
    args = parser.parse_args()
    if args.speed:
        importlib.import_module("speed").run(args)
        return
    args.output = args.output or RESULTS
    run(args)


if __name__ == "__main__":
    main()
