"""Live bytes over the operations of a record, by category.

A *moment* is the time that one operation takes: moment i has what was alive before entry i and outlasts it, and what it
puts out. A last moment, after all entries, has what is still alive then. Where a training step is asked for in another
form than the captured one (the first step, gradients that stay, a device that takes one parameter after another), the
lives of storages are changed, not the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torchledger.memory.kernels import Device, Passing, kept_bytes, output_bytes, passing_bytes, released_bytes
from torchledger.record import Record

Category = Literal[
    "parameters",
    "buffers",
    "inputs",
    "optimizer state",
    "gradients",
    "saved activations",
    "recomputed activations",
    "temporaries",
    "outputs",
    "kernel scratch",
]
CATEGORIES: tuple[Category, ...] = Category.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Block:
    """A storage: its bytes, the moments from which and before which it is alive, and what it is.

    `entry`: the operation that made it, None for what was there before. `module`: the path of the module that it
    belongs to, or whose operation made it.
    """

    bytes: int
    born: int
    died: int
    category: Category
    module: str
    entry: int | None = None


@dataclass(frozen=True)
class Form:
    """What form of the captured run is asked for.

    `first`: the first training step, in which the optimizer makes its state. `gradients_stay`: those of an earlier
    micro-batch, or zeros, are there from the start, and new ones are added to them.
    """

    device: Device = "cuda"
    first: bool = False
    gradients_stay: bool = False


class Timeline:
    """Blocks in the order of their births, and the bytes alive at each moment."""

    def __init__(self, record: Record, form: Form) -> None:
        self.record = record
        self.form = form
        self.moments = len(record.entries) + 1
        self.blocks = sorted(_blocks(record, form, self.moments), key=lambda block: block.born)

    @cached_property
    def live(self) -> list[int]:
        """Bytes alive at each moment."""
        return _summed(self.blocks, self.moments)

    @cached_property
    def by_category(self) -> dict[str, list[int]]:
        """Bytes alive at each moment, for each category that occurs."""
        parts: dict[Category, list[Block]] = {}
        for block in self.blocks:
            parts.setdefault(block.category, []).append(block)
        return {name: _summed(parts[name], self.moments) for name in CATEGORIES if name in parts}

    def alive(self, moment: int) -> list[Block]:
        """Return the blocks alive at a moment."""
        return [block for block in self.blocks if block.born <= moment < block.died]


def _summed(blocks: Sequence[Block], moments: int) -> list[int]:
    changes = [0] * (moments + 1)
    for block in blocks:
        changes[block.born] += block.bytes
        changes[block.died] -= block.bytes
    return list(itertools.accumulate(changes[:-1]))


def _blocks(record: Record, form: Form, moments: int) -> list[Block]:
    """Return the storages of a run as `form` has it."""
    operations, calls, phases = record.entries.operations, record.entries.calls, record.entries.phases
    backward = phases.index("backward") if "backward" in phases else None
    optimizer = phases.index("optimizer") if "optimizer" in phases else moments - 1
    one_by_one = form.device == "cpu" and record.one_by_one is not None and optimizer < moments - 1
    paths = [record.modules.paths[module] for module in record.calls.modules]
    recomputing = [backward is not None and started > backward for started in record.calls.started]
    in_place = frozenset(record.in_place)
    found: list[Block] = []

    def add(size: int, born: int, died: int, category: Category, module: str, entry: int | None = None) -> None:
        if size and died > born:
            found.append(Block(size, born, died, category, module, entry))

    for a in record.allocations:
        died = moments if a.died is None else a.died
        if a.kind in ("parameter", "buffer"):
            owners = record.parameters if a.kind == "parameter" else record.buffers
            module = owners[a.owner].module if a.owner is not None else ""
            add(a.bytes, a.born, died, "parameters" if a.kind == "parameter" else "buffers", module)
            continue
        if a.kind in ("input", "constant"):
            add(a.bytes, a.born, died, "inputs", "")
            continue
        owner = record.parameters[a.owner].module if a.owner is not None and a.kind != "kernel" else ""
        if a.kind == "host" and form.device != "cpu":
            continue
        if a.kind in ("optimizer", "host"):
            add(a.bytes, optimizer if form.first else a.born, died, "optimizer state", owner)
            continue
        if a.born >= len(operations):
            continue  # made after all that is booked
        call, phase = calls[a.born], phases[a.born]
        module = paths[call]
        if a.kind == "gradient":
            if form.gradients_stay:
                add(a.bytes, 0, moments, "gradients", owner)
                if a.born not in in_place:
                    add(a.bytes, a.born, a.born + 1, "temporaries", module, a.born)
            else:
                add(a.bytes, a.born + (a.born in in_place), died, "gradients", owner, a.born)
            continue
        operation = record.operations[operations[a.born]]
        if a.kind == "kernel":
            size = kept_bytes(operation, form.device, a.owner)
            if a.died is not None and 0 < a.died <= len(operations):
                # What the backward lets go of before it is at its largest dies one operation earlier.
                early = released_bytes(record.operations[operations[a.died - 1]], form.device)
                add(min(early, size), a.born, died - 1, "saved activations", module, a.born)
                size -= min(early, size)
        else:
            size = output_bytes(operation, form.device, a.bytes)
        if one_by_one and phase == "optimizer":
            continue
        category: Category = "temporaries"
        if a.died is None and a.kind == "activation":
            category = "outputs"
        elif backward is not None and phase == "forward" and died > backward:
            category = "saved activations"
        elif recomputing[call]:
            category = "recomputed activations"
        add(size, a.born + (a.born in in_place), died, category, module, a.born)
    if one_by_one:
        add(record.one_by_one or 0, optimizer, moments - 1, "temporaries", "", optimizer)
    trains = record.step is not None
    passing: dict[int, Passing] = {}
    for place, (number, call) in enumerate(zip(operations, calls, strict=True)):
        sizes = passing.get(number)
        if sizes is None:
            sizes = passing[number] = passing_bytes(record.operations[number], form.device, trains)
        add(sizes.tensors, place, place + 1, "temporaries", paths[call], place)
        add(sizes.scratch, place, place + 1, "kernel scratch", paths[call], place)
    return found
