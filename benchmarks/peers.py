"""Set torchledger beside the other counters of a model's arithmetic: are they right, and do they leave the model alone?

    make peers                                  in environments of its own; goes on where it stopped
    benchmarks/peers.py --peer fvcore --again   one counter anew

Every counter is called as its own documentation says (peer_calls.py) on the same models (peer_cases.py): the modules of
tests/catalog, with hand-derived macs, networks of torchvision, against the published `_ops`, and a model in use, which
is compared before and after (untouched.py). Each pair of counter and model has a process of its own with a time limit.
Results go to results/peers.csv; `make docs` makes docs/comparison.md of them. Only counters that are installed run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
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
COLUMNS = "group case peer state macs agreement left_out changed seconds error date versions".split()
Row = dict[str, str]
Key = tuple[str, str, str]
Pair = tuple["Case", "Built | Exception"]


# ---- one pair, in a process of its own


def outcome(peer: Peer, case: Case, built: Built) -> Row:
    """Call a counter on a model that is built; what goes wrong becomes the row's error."""
    import torch
    import untouched

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
    move = lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value  # noqa: E731
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


def host(
    send: Callable[[Row], None], peer: Peer, cases: Sequence[tuple[Case, Built | Exception]], limit: float
) -> None:
    """Import a counter once, and send the row of each case."""
    error = ""
    try:
        peer_calls.prepare()
        importlib.import_module(peer.package)
    except Exception as problem:
        error = said_by(problem)
    for case, built in cases:
        if isinstance(built, Exception):
            row = {"error": f"not built: {said_by(built)}"}
        elif error:
            row = {"error": error}
        else:
            row = alone(lambda case=case, built=built: outcome(peer, case, built), limit)
        send(row)


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
        pairs = [(case, models[case.group, case.name]) for case in cases]
        process = Forked(lambda send, peer=peer, pairs=pairs: host(send, peer, pairs, limit))
        try:
            for case in cases:
                row = process.row()
                assert row is not None, f"{peer.name} ended the process that runs it"
                yield peer, case, row
        finally:
            process.end()


def made(case: Case) -> Built | Exception:
    import torch

    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case.build()
    except Exception as error:
        return error


def installed(package: str) -> str:
    """Return the version of a package, or nothing; torchledger is the one of this folder."""
    if package == "torchledger":
        return str(tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions_of(peer: Peer, catalog: Path) -> str:
    """Return the versions that a row hangs on, and a digest of the code that makes it."""
    code = hashlib.sha256()
    paths = [HERE / name for name in ("peer_calls.py", "peer_cases.py", "untouched.py")]
    paths += [path for path in sorted(catalog.parent.glob("*.py")) if not path.name.startswith("test_")]
    if peer.package == "torchledger":
        paths += sorted((HERE.parent / "src").rglob("*.py"))
    for path in paths:
        code.update(path.read_bytes())
    names = dict.fromkeys(("torch", "torchvision", peer.package))
    versions = [f"{name} {installed(name)}".strip() for name in names]
    return f"{', '.join(versions)} ({code.hexdigest()[:8]})"


def read(path: Path) -> dict[Key, Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {(row["group"], row["case"], row["peer"]): row for row in csv.DictReader(lines)}


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


def run(args: argparse.Namespace) -> None:
    """Run the pairs that have no row of these versions yet."""
    import peer_cases
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.set_num_threads(1)
    peer_cases.import_torchvision()
    networks = None if args.all else peer_cases.FAMILIES
    cases = [
        *peer_cases.catalog_cases(args.catalog),
        *peer_cases.torchvision_cases(networks),
        *peer_cases.untouched_cases(),
    ]
    cases = [case for case in cases if not args.case or case.name in args.case]
    rows = read(args.output)
    wanted: dict[str, list[Case]] = {}
    now = {}
    for peer in PEERS:
        if (args.peer and peer.name not in args.peer) or not installed(peer.package):
            continue
        now[peer.name] = versions_of(peer, args.catalog)
        for case in cases:
            row = rows.get((case.group, case.name, peer.name))
            if args.again or row is None or row["versions"] != now[peer.name]:
                wanted.setdefault(peer.name, []).append(case)
    if args.catalog.exists() and not args.case:  # what the catalog no longer has
        kept = {case.name for case in cases if case.group == "catalog"}
        rows = {key: row for key, row in rows.items() if key[0] != "catalog" or key[1] in kept}
    places = {(case.group, case.name): place for place, case in enumerate(cases)}
    order = {peer.name: place for place, peer in enumerate(PEERS)}
    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # without a thread of its own: processes are forked while it is shown
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("pairs", total=sum(map(len, wanted.values())))
        for peer, case, result in run_all(wanted, args.seconds):
            stamp = {"date": date.today().isoformat(), "versions": now[peer.name]}
            key = (case.group, case.name, peer.name)
            blank = dict.fromkeys(COLUMNS, "") | {"state": "failed"} | stamp
            rows[key] = blank | dict(zip(("group", "case", "peer"), key, strict=True)) | result
            ordered = sorted(rows, key=lambda key: (places.get(key[:2], len(places)), key[:2], order.get(key[2], 99)))
            write(args.output, (rows[key] for key in ordered))
            bar.update(task, advance=1, description=f"{peer.name}: {case.name}", refresh=True)


# ---- the page

PREFACE = """\
# Comparison with other counters

Made by `make docs` from [peers.csv](../benchmarks/results/peers.csv), which `make peers` writes.

- {when}, {packages}; on a CPU, one thread
- `catalog`: the {modules} small modules of `tests/catalog`, each a trap, with macs derived by hand. They were
  chosen for what counters stumble over: the share of them that a counter gets right is no share of real models.
  `close`: over by at most a quarter, which biases and norms add in modules of this size where a convention
  counts them; more than that, or too few, is `apart`.
- `torchvision`: {networks} classifiers, one a family, against the `_ops` of their default weights, within 1%;
  a convention that counts norms and activations comes out up to a few percent above them, which is no mistake.
- Forward alone, eval mode, float32 but where a module says otherwise, the model as its builder makes it.
- Each counter is called as its own documentation says, with its defaults and without rules for operations of
  our own; what it calls its total is compared. One that takes no keyword inputs, or not several inputs, gets them
  through a module around the model. Each pair of counter and model has a process of its own.
- `said so`: it named, in what it prints or returns, something that it had not counted. Some name every
  operation without a formula, also where their count is right.

## Are they right?

| counter | catalog: exact | close | apart, and said so | apart | failed | torchvision: within 1% | apart | failed |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
NOTES = {
    "torchinfo": "It books a linear layer once a sample, however many rows a sample has.",
    "FlopCounterMode": "It watches a forward that its user runs: what changes in train mode, a forward changes.",
    "calflops": "It imports transformers, which it does not ask for when it is installed.",
    "torchlens": "It keeps torch's functions wrapped after the first call, and refuses processes of multiprocessing.",
    "torchstat": "In an environment of its own, with numpy 1.23.5 and pandas 1.5.3: on pandas 2 and later its own "
    "example ends with `AttributeError: 'DataFrame' object has no attribute 'append'`.",
}
OF_TORCH = ("classes", "functions of torch", "hooks of all modules", "grad mode", "default dtype", "random state")


def right(row: Row) -> bool:
    return row["agreement"] == "exact" or row["agreement"].startswith("close")


def verdict(row: Row) -> str:
    """Return `exact`, `close`, `apart, and said so`, `apart` or `failed`; said so: it named what it left out."""
    if row["state"] != "ok":
        return "failed"
    if right(row):
        return row["agreement"].split()[0]
    return "apart, and said so" if row["left_out"] else "apart"


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
    ran = {peer.name: [row for row in rows if row["peer"] == peer.name] for peer in PEERS}
    ran = {name: own for name, own in ran.items() if own}
    packages = dict.fromkeys(text for row in rows for text in row["versions"].rpartition(" (")[0].split(", "))
    dates = sorted({row["date"] for row in rows})
    modules = len({row["case"] for row in rows if row["group"] == "catalog"})
    networks = len({row["case"] for row in rows if row["group"] == "torchvision"})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    text = PREFACE.format(when=when, packages=", ".join(packages), modules=modules, networks=networks)
    lines = text.splitlines()
    for name, own in ran.items():
        small = Counter(verdict(row) for row in own if row["group"] == "catalog")
        large = Counter(verdict(row) for row in own if row["group"] == "torchvision")
        counts = [small[kind] for kind in ("exact", "close", "apart, and said so", "apart", "failed")]
        counts += [large["exact"] + large["close"], large["apart, and said so"] + large["apart"], large["failed"]]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        "## Do they leave the model alone?",
        "",
        "A model in use (frozen parts, hooks, gradients, running statistics), compared before and after the call.",
        "",
        "| counter | in eval mode | while it trains | when its forward raises | torch's own functions and classes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, own in ran.items():
        probes = {row["case"]: row for row in own if row["group"] == "untouched"}
        if probes:
            cells = ["; ".join(aspects(probes[mode], of_torch=False)) or "unchanged" for mode in probes]
            torch_wide = dict.fromkeys(text for row in probes.values() for text in aspects(row, of_torch=True))
            lines.append(f"| {name} | {' | '.join(cells)} | {'; '.join(torch_wide) or 'unchanged'} |")
    lines += ["", "## One by one"]
    for peer in PEERS:
        if peer.name in ran:
            lines += ["", f"### {peer.name}", "", *one(peer, ran[peer.name])]
    return "\n".join(lines) + "\n"


def one(peer: Peer, rows: Sequence[Row]) -> list[str]:
    """Return how a counter was called, what it counts, and where it was apart."""
    lines = [f"- `{peer.written}` ({peer.source})", f"- counts {peer.counts}"]
    lines += [f"- {NOTES[peer.name]}"] if peer.name in NOTES else []
    for group in ("torchvision", "catalog"):
        own = [row for row in rows if row["group"] == group]
        for kind in ("apart, and said so", "apart"):
            texts = [f"{row['case']} {row['agreement']}" for row in own if verdict(row) == kind]
            lines += [f"- {group}, {kind}: {'; '.join(texts)}"] if texts else []
        reasons: dict[str, list[str]] = {}
        for row in own:
            if verdict(row) == "failed":
                reasons.setdefault(row["error"], []).append(row["case"])
        lines += [f"- {group}, failed: {', '.join(cases)}: `{reason}`" for reason, cases in reasons.items()]
    changed = [row for row in rows if row["group"] != "untouched" and aspects(row, of_torch=False)]
    lines += [f"- left {len(changed)} of these models changed"] if changed else []
    return lines


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=[p.name for p in PEERS], help="only this one (repeatable)")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this model (repeatable)")
    parser.add_argument("--all", action="store_true", help="every classifier of torchvision, not one a family")
    parser.add_argument("--again", action="store_true", help="also pairs that have a row of these versions")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of a pair  (default: 60)")
    parser.add_argument("--catalog", type=Path, default=CATALOG, metavar="FILE")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
