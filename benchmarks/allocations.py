"""What a real run allocates, in order, and what of it is a kernel's own scratch space: read from torch's profiler.

The profiler notes every block that the allocator gives out or takes back, and the operations that run, as a tree. A
block belongs to the *call* that it is made in: the outermost operation that has a kernel of its own, which is what a
TorchDispatchMode sees. (`aten::linear` has none: it is always taken apart, so a call is the `aten::addmm` in it. What a
kernel calls in turn belongs to it.) A block that is made and freed within one call is **scratch**: no tensor that the
call takes or returns has it, and another kernel for the same operation would have another. Everything else is *kept*.

    live at a moment = held before the run + kept blocks         peak = most of that
    scratch = most bytes of scratch that one call has at a moment, beside the peak and not in it
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import RecordScope, _EventType, _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

PHASES = ("forward", "backward", "optimizer")
MODEL = "model"  # the part of the forward phase before the loss
_MARK = "torchledger: "
OUTSIDE = "(outside of operations)"


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark what runs within as a phase, one of `PHASES`, or as the `MODEL`."""
    with record_function(_MARK + name):
        yield


@dataclass(frozen=True)
class Call:
    """One call of an operation with a kernel: its name, the operation it is part of, the autograd node, the phase."""

    name: str
    part_of: str
    node: str
    phase: str
    start: int

    def __str__(self) -> str:
        part = f" in {self.part_of}" if self.part_of != self.name else ""
        return f"{self.name}{part}{f' of {self.node}' if self.node else ''}"


@dataclass(frozen=True)
class Change:
    """A block that is made (`size` above zero) or freed at `time`, in the call of that number or in none."""

    time: int
    pointer: int
    size: int
    call: int | None


@dataclass(frozen=True)
class Moment:
    """What a call does to the live bytes: before it, the most during it, after it, and the most of its scratch."""

    call: Call | None
    before: int
    most: int
    after: int
    scratch: int


@dataclass(frozen=True)
class Measured:
    """A run's memory in bytes. `operation` and `phase` are those of the peak, `moments` one for each call in order.

    `held` was there before, `after_model` is live when the model has returned, `final` when the run is over.
    """

    held: int
    peak: int
    phase: str
    operation: str
    scratch: int
    scratch_operation: str
    peak_with_scratch: int
    after_model: int
    final: int
    moments: tuple[Moment, ...]


@functools.cache
def _is_operation(name: str) -> bool:
    """Whether a name is that of a dispatched operation, rather than of a range, a node or a function of Python."""
    if name.count("::") != 1 or " " in name:
        return False
    return bool(torch._C._jit_get_schemas_for_operator(name))


@functools.cache
def _has_kernel(name: str, overload: str) -> bool:
    """Whether a dispatch mode sees the operation: those that are composites of others are taken apart before it."""
    full = f"{name}.{overload}" if overload else name
    return not torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd")


Spans = dict[str, list[tuple[int, int]]]


def _read(roots: Iterable[Any], device: str) -> tuple[list[Call], list[Change], Spans]:
    """Return calls, changes on a device of this type, and the marked spans of time, of a tree of events."""
    found: list[tuple[str, str, str, int]] = []
    changes: list[Change] = []
    spans: Spans = {}
    # Depth first, as recorded: an event with the number of the call that it is in, the operation and the node.
    stack: list[tuple[Any, int | None, str, str]] = [(root, None, "", "") for root in reversed(list(roots))]
    while stack:
        event, call, part_of, node = stack.pop()
        kind, fields = event.typed
        if kind == _EventType.Allocation:
            if fields.device.type == device:
                changes.append(Change(event.start_time_ns, fields.ptr, fields.alloc_size, call))
        elif kind == _EventType.TorchOp and call is None:
            name = event.name
            if name.startswith(_MARK):
                spans.setdefault(name.removeprefix(_MARK), []).append((event.start_time_ns, event.end_time_ns))
            elif fields.scope == RecordScope.BACKWARD_FUNCTION:
                node = name
            elif _is_operation(name):
                part_of = part_of or name
                if _has_kernel(name, event.overload_name):
                    call = len(found)
                    found.append((name, part_of, node, event.start_time_ns))
        stack.extend((child, call, part_of, node) for child in reversed(event.children))
    calls = [Call(name, part_of, node, _phase_at(start, spans), start) for name, part_of, node, start in found]
    # Each thread has a tree of its own: on a GPU the backward runs in another. The sort keeps the order of equal times.
    return calls, sorted(changes, key=lambda change: change.time), spans


def _phase_at(time: int, spans: Spans) -> str:
    return next((name for name in PHASES for start, end in spans.get(name, ()) if start <= time <= end), "")


def _scratch(changes: list[Change]) -> set[int]:
    """Return the numbers of the changes that make or free a block which lives within one call."""
    made: dict[int, int] = {}
    scratch: set[int] = set()
    for number, change in enumerate(changes):
        if change.size > 0:
            made[change.pointer] = number
            continue
        made_at = made.pop(change.pointer, None)
        if made_at is not None and change.call is not None and changes[made_at].call == change.call:
            scratch |= {made_at, number}
    return scratch


def reckon(calls: list[Call], changes: list[Change], spans: Spans, held: int) -> Measured:
    """Follow the live bytes through `changes`, from `held` before them."""
    scratch = _scratch(changes)
    live = all_live = peak = peak_with_scratch = after_model = held
    at: Change | None = None
    own = most_own = 0  # scratch of the call that runs: by its end there is none
    most_own_call: int | None = None
    model_ends = max((end for _, end in spans.get(MODEL, ())), default=0)
    by_call: dict[int, list[int]] = {}  # live before, most, after; most scratch
    outside: list[tuple[int, Moment]] = []
    for number, change in enumerate(changes):
        before = live
        all_live += change.size
        peak_with_scratch = max(peak_with_scratch, all_live)
        if number in scratch:
            own += change.size
            if own > most_own:
                most_own, most_own_call = own, change.call
        else:
            live += change.size
        if live > peak:
            peak, at = live, change
        if change.time <= model_ends:
            after_model = live
        if change.call is None:
            outside.append((change.time, Moment(None, before, max(before, live), live, 0)))
        else:
            row = by_call.setdefault(change.call, [before, before, before, 0])
            row[1:] = [max(row[1], live), live, max(row[3], own)]
    where = calls[at.call] if at is not None and at.call is not None else None
    return Measured(
        held,
        peak,
        "" if at is None else _phase_at(at.time, spans),
        OUTSIDE if where is None else str(where),
        most_own,
        "" if most_own_call is None else str(calls[most_own_call]),
        peak_with_scratch,
        after_model,
        live,
        tuple(_moments(calls, by_call, outside, held)),
    )


def _moments(
    calls: list[Call], by_call: dict[int, list[int]], outside: list[tuple[int, Moment]], held: int
) -> Iterator[Moment]:
    """Yield what each call does in order of time, with what is freed between calls."""
    inside = [(call.start, (call, by_call.get(number))) for number, call in enumerate(calls)]
    live = held
    for _, entry in sorted([*inside, *outside], key=lambda pair: pair[0]):
        if isinstance(entry, Moment):
            yield entry
            live = entry.after
        else:
            call, row = entry
            before, most, after, own = row or (live, live, live, 0)
            yield Moment(call, before, most, after, own)
            live = after


def measure(run: Callable[[], object], held: int, device: str = "cpu") -> Measured:
    """Run once under the profiler, with `held` bytes live before; what the run returns is gone at its end.

    Cycles wait for the collector, which is off meanwhile, so that the figures are the same each time.
    """
    config = _ExperimentalConfig(capture_overload_names=True)
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, experimental_config=config) as profiler:
            run()
    finally:
        gc.enable()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    return reckon(*_read(results.experimental_event_tree(), device), held)


def stored(*tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the tensors' storages, each once."""
    storages = {}
    for tensor in (tensor for group in tensors for tensor in group):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
