"""How long torchledger and other counters take over a model, and what memory they take: `peers.py --speed`.

A pair of counter and model, on meta or on a CPU, has a process of its own with one thread. The same model's bare
forward on meta (eval mode, no_grad, batch 1) is timed in it too, in turns with the counter, and the ratio is that of
the medians. Results go to results/speed.csv; `make docs` makes docs/performance.md of them (speed_page.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import resident
import speed_cases
import speed_page
import torch
from peer_calls import PEERS, Peer
from peers import HERE, Row, hosted, installed, read, shown, stamped, write
from speed_cases import LIBRARIES, Case
from speed_page import COLUMNS, KEY, RESULTS
from torch import nn

COMPARED = (
    "torchledger", "torchinfo", "fvcore", "ptflops aten", "ptflops pytorch", "thop", "calflops", "FlopCounterMode",
    "FlopCounterMode, no_grad", "torchlens", "torchscan",
)  # fmt: skip
DEVICES = ("meta", "cpu")
# Rounds go on until there are enough for a median and they have taken long enough, or have taken too long.
FEWEST, MOST = 5, 25
LONG_ENOUGH, TOO_LONG = 1.0, 10.0  # seconds
Call = Callable[[], object]


class Small(nn.Module):
    """What is counted first in each process, so that what it pays once lies behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


SMALL = Case("small", "small", Small, lambda _: (((3, 32, 32),), {}))


def emptied() -> None:
    """Empty what torchledger keeps of earlier models: memo, prices, and each cache of a function of its modules.

    What it found out about torch's operations and about classes of modules stays, as it does from model to model.
    """
    from torchledger import pricing
    from torchledger.capture.shapes import MEMO

    MEMO.clear()
    pricing.forget()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "torchledger":
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def called(peer: Peer, case: Case, device: str) -> Call:
    """Build a model on a device, and return the call that counts it.

    torchledger is given sizes of images, and returns its ledger, of which a table has been made.
    """
    model = case.model(device)
    given = case.given(model)  # sizes alone, or tensors by keyword
    inputs, keywords = speed_cases.tensors(given, device)
    if peer.name != "torchledger":
        return lambda: peer.call(model, inputs, keywords)
    if device == "meta" or not given[1]:
        inputs, keywords = given

    def analysis() -> object:
        from torchledger import analyze

        ledger = analyze(model, *inputs, kwargs=keywords)
        ledger.by_layer()
        return ledger

    return analysis


def measured(peer: Peer, case: Case, device: str) -> Row:
    """Measure one pair; what goes wrong is raised."""
    warnings.simplefilter("ignore")
    row: Row = {}
    with contextlib.suppress(Exception):  # what cannot count this one may count another
        small = called(peer, SMALL, device)
        row["first_ms"] = f"{1e3 * seconds(small):.1f}"
    ours = peer.name == "torchledger"
    bare, counter = forward(case), called(peer, case, device)
    bare()
    gc.collect()
    if ours:
        emptied()
    started = time.perf_counter()
    given, row["memory_mb"] = grown(counter)
    row["fresh_ms"] = f"{1e3 * (time.perf_counter() - started):.3f}"
    if ours:
        row["operations"] = str(given.totals()["operations"])
    del given
    bare()
    times = timed(bare, counter, emptied if ours else None)
    forward_ms, *others = (1e3 * statistics.median(found) if found else None for found in times)
    row |= {"state": "ok", "bare_ms": f"{forward_ms:.3f}", "rounds": str(len(times[0]))}
    for name, value in zip(("cold", "warm"), others, strict=True):
        if value is not None:
            row |= {name: f"{value / forward_ms:.4f}", f"{name}_ms": f"{value:.3f}"}
    return row


def forward(case: Case) -> Call:
    """Build a model on meta, and return its forward alone."""
    model = case.model("meta")
    inputs, keywords = speed_cases.tensors(case.given(model), "meta")

    def run() -> object:
        with torch.no_grad():
            return model(*inputs, **keywords)

    return run


def grown(call: Call) -> tuple[Any, str]:
    """Return what a call gives, and by how many MB the most that the process holds grows in it."""
    resident.forget_peak()
    before = resident.peak()
    given = call()
    after = resident.peak()
    return given, "" if before is None or after is None else f"{after - before:.1f}"


def timed(bare: Call, counter: Call, empty: Call | None) -> tuple[list[float], list[float], list[float]]:
    """Return seconds of the bare forward, and of the counter with nothing kept from before (if it keeps), and again."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    gc.collect()
    gc.freeze()  # of what is there, so that collecting between rounds takes no time
    gc.disable()
    took, started = 0.0, time.perf_counter()
    try:
        while took < TOO_LONG and len(times[0]) < (MOST if took < LONG_ENOUGH else FEWEST):
            gc.collect()
            times[0].append(seconds(bare))
            if empty is not None:
                empty()
                times[1].append(seconds(counter))
            times[2].append(seconds(counter))
            took = time.perf_counter() - started
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def seconds(call: Call) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# ---- all pairs


def versions_of(peer: Peer, group: str) -> str:
    """Return the versions that a row hangs on, and a digest of the code that makes it."""
    files = ("speed.py", "speed_cases.py", "peer_calls.py", "resident.py")
    return stamped(("torch", LIBRARIES[group], peer.package), [HERE / name for name in files])


def chosen(names: list[str] | None) -> list[Case]:
    """Return the models that are asked for, of the libraries that are installed."""
    cases: list[Case] = []
    for group, listed in speed_cases.GROUPS.items():
        if installed(LIBRARIES[group]):
            cases += listed()
        else:
            print(f"{LIBRARIES[group]} is not installed: none of its models is timed", file=sys.stderr)
    if missing := set(names or ()).difference(case.name for case in cases):
        raise SystemExit(f"no model is called {', '.join(sorted(missing))}")
    return [case for case in cases if not names or case.name in names]


def run(args: argparse.Namespace) -> None:
    """Measure the pairs that have no row of these versions yet, then say which bars are missed."""
    torch.set_num_threads(1)
    if unknown := set(args.peer or ()).difference(COMPARED):
        raise SystemExit(f"not timed: {', '.join(sorted(unknown))}; these are: {', '.join(COMPARED)}")
    path = args.output or RESULTS
    peers = [peer for peer in PEERS if peer.name in COMPARED and (not args.peer or peer.name in args.peer)]
    if absent := dict.fromkeys(peer.package for peer in peers if not installed(peer.package)):
        print(f"not installed, and left out: {', '.join(absent)}", file=sys.stderr)
    peers = [peer for peer in peers if peer.package not in absent]
    cases = chosen(args.case)
    rows = {key: dict.fromkeys(COLUMNS, "") | row for key, row in read(path, KEY).items()}
    now = {(peer.name, group): versions_of(peer, group) for peer in peers for group in {case.group for case in cases}}
    wanted: dict[str, list[tuple[Case, str]]] = {}
    for peer in peers:
        for device in DEVICES:
            for case in cases:
                row = rows.get((case.group, case.name, peer.name, device))
                if args.again or row is None or row["versions"] != now[peer.name, case.group]:
                    wanted.setdefault(peer.name, []).append((case, device))
    places = speed_page.places([(case.group, case.name) for case in (cases if args.case else chosen(None))], rows)
    with shown(sum(map(len, wanted.values()))) as advance:
        for peer in peers:
            acts = [functools.partial(measured, peer, case, device) for case, device in wanted.get(peer.name, [])]
            for (case, device), found in zip(wanted.get(peer.name, []), hosted(peer, acts, args.seconds), strict=True):
                key = (case.group, case.name, peer.name, device)
                stamp = {"date": date.today().isoformat(), "versions": now[peer.name, case.group]}
                row = dict.fromkeys(COLUMNS, "") | {"state": "failed"} | stamp | dict(zip(KEY, key, strict=True))
                rows[key] = row | found
                write(path, (rows[key] for key in sorted(rows, key=places)), COLUMNS)
                advance(f"{peer.name}, {device}: {case.name}")
    bars = speed_page.bars(list(rows.values()))
    print("\n".join(f"{bar.text}: {bar.said}" for bar in bars))
    sys.exit(any(bar.missed for bar in bars))
