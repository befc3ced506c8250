"""A run as a flame graph with live bytes below it -> the Trace Event Format, which Perfetto and speedscope read.

A run that computes nothing has no time: the horizontal axis is a quantity (axis.py). Format: "Trace Event Format",
Google; begin and end ("B", "E"), instant ("i"), counter ("C") and metadata ("M") events.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torchledger import __version__
from torchledger.errors import printable
from torchledger.pricing.convention import State
from torchledger.record import Record
from torchledger.report.axis import Axis, Step
from torchledger.writing import write_whole

PROCESS, THREAD = 1, 1
LARGEST = 2**53 - 1  # a larger integer is no number of JavaScript's: it stands as a string of digits

Event = dict[str, object]
Frame = tuple[int | str, str, str]  # call, or path where no call is behind it; name; kind
Cut = dict[str, Counter[str]]  # by kind and name: amounts of what has no bar, being cut to nothing on a rounded axis


def trace(record: Record, axis: Axis, by_category: Mapping[str, Sequence[int]], convention: str = "") -> Event:
    """Return bars for phases, calls of modules and operations, as wide as what they take, and counters by category.

    A bar says in its arguments exactly what all that ran within it takes, also what has no bar of its own. An operation
    that takes nothing has no bar: its width would be zero, which viewers draw anywhere. One without a rule is marked at
    its place, and counted in the bars around it. What a rounded axis cuts to nothing has no bar either: `otherData`
    says how much that is.
    """
    run = record.step or f"{record.mode} mode"
    title = printable(f"{record.model}, {run}, batch {record.batch}")
    total = axis.total
    unknown = axis.unknown
    empty = Counter(step.state.value for step in axis.steps if not step.amount)
    cut: Cut = {"phase": Counter(), "module": Counter(), "operation": Counter()}
    bars = list(_bars(record, axis, cut))
    about: Event = {
        "format": "torchledger trace",
        "version": __version__,
        "model": printable(record.model),
        "run": printable(run),
        "batch": record.batch,
        "convention": convention,
        "by": axis.by,
        "total": _exact(axis, total),
        "scale": axis.scale,
        "rounded": axis.is_rounded,
        "without_bars": dict(empty),
        "cut": {kind: {name: _exact(axis, n) for name, n in found.items()} for kind, found in cut.items() if found},
        "unknown": {printable(name): calls for name, calls in unknown.most_common()},
        "assumptions": [printable(text) for text in record.assumptions],
        "error": record.error and printable(record.error),
    }
    shown = f"{axis.by}: {axis.scale}"
    if unknown:
        shown += f"; operations without a rule, not in it: {unknown.total()}"
    events: list[Event] = [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": title}},
        {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": THREAD, "args": {"name": shown}},
        *_counters(record, axis, by_category),
        *bars,
    ]
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def save(path: str | os.PathLike[str], drawn: Event) -> None:
    """Write a trace to a JSON file. An existing file is replaced whole or not at all."""
    write_whole(path, json.dumps(drawn, separators=(",", ":")) + "\n")


def exact(value: object) -> object:
    """Return a value as JavaScript reads it exactly: a large integer as text."""
    return str(value) if isinstance(value, int) and abs(value) > LARGEST else value


def _counters(record: Record, axis: Axis, by_category: Mapping[str, Sequence[int]]) -> Iterator[Event]:
    """Yield what is alive wherever it changes; of moments at one place the heaviest and the last."""
    moments = len(record.entries) + 1
    at = [0] * moments
    position = 0
    steps = iter(axis.steps)
    step = next(steps, None)
    for moment in range(moments):
        at[moment] = position
        while step is not None and step.moment <= moment:
            at[moment] = position  # after what stands before the entry of this moment
            position += step.amount
            step = next(steps, None)
    at[-1] = position
    before = None
    for place, alive in _by_place([axis.microseconds(amount) for amount in at], by_category):
        if alive != before:
            yield {"ph": "C", "name": "bytes alive", "pid": PROCESS, "ts": place, "args": alive}
        before = alive


def _by_place(
    places: Sequence[int | float], by_category: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int | float, dict[str, int]]]:
    heaviest, most = 0, -1
    for moment, place in enumerate(places if by_category else ()):
        now = sum(sizes[moment] for sizes in by_category.values())
        if now > most:
            heaviest, most = moment, now
        if moment + 1 < len(places) and places[moment + 1] == place:
            continue
        for chosen in dict.fromkeys((heaviest, moment)):
            yield place, {name: sizes[chosen] for name, sizes in by_category.items()}
        most = -1


def _bars(record: Record, axis: Axis, cut: Cut) -> Iterator[Event]:
    """Yield a bar for each phase, for each stretch of one call of a module, and for each operation; fill `cut`.

    What a bar takes stands in its end alone: speedscope takes the arguments of a beginning into the name, where equal
    operations of different size would be apart, and takes an end and a beginning at one place that are alike for one
    empty bar. A stretch opens with the first operation in it that takes something or has no rule, but is drawn only
    from the first on that is not cut to nothing. Its beginning is at the same place then.
    """
    frames = _Frames(record)
    opened: list[tuple[Frame, int, int]] = []  # with the position and the unknown operations before it
    shown = 0  # so many of them have begun in the trace
    position = unknown = 0

    def close(count: int) -> Iterator[Event]:
        nonlocal shown
        while len(opened) > count:
            frame, started, before = opened.pop()
            if len(opened) < shown:
                shown -= 1
                yield _end(frame, position, _args(axis, position - started, unknown - before), axis)
            elif position > started:
                cut[frame[2]][frame[1]] += position - started

    for step in axis.steps:
        is_unknown = step.state is State.UNKNOWN
        if not step.amount and not is_unknown:
            continue
        around = frames.around(step)
        same = 0
        while same < min(len(around), len(opened)) and opened[same][0] == around[same]:
            same += 1
        yield from close(same)
        opened.extend((frame, position, unknown) for frame in around[same:])
        if is_unknown:
            unknown += 1
            yield _mark(record, step, axis.microseconds(position))
        end = position + step.amount
        operation: Frame = ("", printable(step.name or ""), "operation")
        if axis.microseconds(end) > axis.microseconds(position):
            for frame, started, _ in opened[shown:]:
                yield _begin(frame, started, axis)
            shown = len(opened)
            if step.name is not None:
                yield _begin(operation, position, axis)
                yield _end(operation, end, _args(axis, step.amount), axis)
        elif step.amount and step.name is not None:
            cut["operation"][operation[1]] += step.amount
        position = end
    yield from close(0)


class _Frames:
    """The bars around a step: its phase, then the modules of its path, each the call that was under way."""

    def __init__(self, record: Record) -> None:
        self._parents = record.calls.parents
        self._paths = [record.modules.paths[module] for module in record.calls.modules]
        self._root = printable(record.model)
        self._known: dict[tuple[str, int | None], tuple[Frame, ...]] = {}

    def around(self, step: Step) -> tuple[Frame, ...]:
        found = self._known.get((step.phase, step.call))
        if found is None:
            phase: Frame = (step.phase, step.phase, "phase")
            found = self._known[step.phase, step.call] = (phase, *self._modules(step.call))
        return found

    def _modules(self, call: int | None) -> Iterator[Frame]:
        """Yield the frames of a call by its path, as the tables add up; a container is there without being called."""
        path = "" if call is None else self._paths[call]
        chain: list[int] = []
        while call is not None:
            above = self._paths[call]
            if not above or path == above or path.startswith(above + "."):
                chain.append(call)
            call = self._parents[call]
        parts = path.split(".") if path else []
        depth = -1  # of the frame before
        for number in reversed(chain):
            deeper = len(self._paths[number].split(".")) if self._paths[number] else 0
            yield from (self._frame(None, ".".join(parts[:between])) for between in range(depth + 1, deeper))
            yield self._frame(number, self._paths[number])
            depth = deeper
        if not chain:
            yield self._frame(None, "")

    def _frame(self, call: int | None, path: str) -> Frame:
        return path if call is None else call, printable(path) or self._root, "module"


def _args(axis: Axis, amount: int, unknown: int = 0) -> Event:
    return {axis.by: _exact(axis, amount), **({"unknown": unknown} if unknown else {})}


def _exact(axis: Axis, amount: int) -> object:
    return exact(axis.value(amount))


def _mark(record: Record, step: Step, at: int | float) -> Event:
    path = "" if step.call is None else record.modules.paths[record.calls.modules[step.call]]
    args = {"module": printable(path), "phase": step.phase}
    name = printable(f"unknown: {step.name}")
    return {"ph": "i", "s": "t", "name": name, "cat": "unknown", "pid": PROCESS, "tid": THREAD, "ts": at, "args": args}


def _begin(frame: Frame, at: int, axis: Axis) -> Event:
    _, name, kind = frame
    return {"ph": "B", "name": name, "cat": kind, "pid": PROCESS, "tid": THREAD, "ts": axis.microseconds(at)}


def _end(frame: Frame, at: int, args: Event, axis: Axis) -> Event:
    return {"ph": "E", "name": frame[1], "pid": PROCESS, "tid": THREAD, "ts": axis.microseconds(at), "args": args}
