"""What `Ledger.memory` returns: the peak, what is alive then or at any other moment, and how it got there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from torchledger.errors import UserError, close_matches
from torchledger.memory.caching import SEGMENT_STEP, CachingAllocator, OutOfMemory
from torchledger.memory.kernels import WORKSPACES, Device
from torchledger.memory.timeline import CATEGORIES, Block, Form, Timeline
from torchledger.record import Record
from torchledger.report import axis, chrome, picture
from torchledger.report.text import short_size
from torchledger.tables import Table
from torchledger.views import Cell, Column

ALLOCATORS = ("exact", "cuda")
ROUNDING = "allocator's rounding"
ROOT = "(root)"


@dataclass(frozen=True)
class Moment:
    """What is alive while one operation runs: bytes by category, which add up to `bytes`.

    `operation` and `module` are None at the last moment, after all operations.
    """

    index: int
    phase: str
    operation: str | None
    module: str | None
    bytes: int
    alive: dict[str, int]

    def __str__(self) -> str:
        if self.operation is None:
            return "after the last operation"
        return f"{self.operation} in {self.module or ROOT}, {self.phase}"


class MemoryReport:
    """Bytes alive over the operations of a run, on a device and with an allocator."""

    def __init__(
        self,
        record: Record,
        device: str = "cuda",
        allocator: str | None = None,
        first_step: bool = False,
        accumulate: int = 1,
        set_to_none: bool = True,
    ) -> None:
        """Follow the storages of `record`; see `Ledger.memory`. Raise UserError for an argument that is wrong."""
        self.device: Device = _device(device)
        allocator = ("cuda" if self.device == "cuda" else "exact") if allocator is None else allocator
        if allocator not in ALLOCATORS:
            raise UserError(
                f"unknown allocator {allocator!r}; the allocators are {', '.join(ALLOCATORS)}."
                f"{close_matches(allocator, ALLOCATORS)}"
            )
        if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
            raise UserError(f"accumulate is {accumulate!r}, expected a whole number of micro-batches from 1")
        if record.step is None and (first_step or accumulate > 1 or not set_to_none):
            raise UserError(
                "first_step, accumulate and set_to_none are of a training step, and this ledger is of a forward alone: "
                "analyze(..., training=True)"
            )
        self.allocator = allocator
        self.record = record
        if record.step is not None and record.loss_at is None and not record.error:
            raise UserError(
                "this ledger of a training step was saved by an older torchledger, which did not keep what storages "
                "belong to: analyse the model again"
            )
        stay = accumulate > 1 or (not set_to_none and not first_step)  # before the first step there are none
        self.form = Form(self.device, first_step, gradients_stay=stay)
        self._accumulate = accumulate
        self._timeline = Timeline(record, self.form)

    def __repr__(self) -> str:
        return f"<MemoryReport of {self.record.model}: peak {self.peak_bytes:,} bytes at {self.at}>"

    def _repr_html_(self) -> str:
        return self.by_category()._repr_html_()

    # --- the bytes ---------------------------------------------------------------------------------------------------

    @property
    def peak_bytes(self) -> int:
        """The most bytes allocated at one moment, as the allocator counts them."""
        return self.live[self.peak]

    @property
    def reserved_bytes(self) -> int | None:
        """The most bytes that the allocator takes from the device; None for `exact`, which takes what is asked for."""
        return max(self._replayed[1]) if self.allocator == "cuda" else None

    def fits(self, memory: int) -> bool:
        """Whether the run gets by with `memory` bytes.

        torch's caching allocator gives back what it has cached before it gives up; what it has cut up it cannot.
        """
        if self.allocator == "exact":
            return self.peak_bytes <= memory
        try:
            replay(self._timeline, CachingAllocator(limit=memory))
        except OutOfMemory:
            return False
        return True

    @cached_property
    def least_bytes(self) -> int:
        """The least memory that the run gets by with, to the 2 MiB by which segments grow."""
        low, high = self.peak_bytes, max(self.reserved_bytes or 0, self.peak_bytes)
        if self.allocator == "exact":
            return low
        while high - low > SEGMENT_STEP:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(middle) else (middle, high)
        return high

    @property
    def moments(self) -> int:
        """The number of moments: one an operation, and one after the last."""
        return self._timeline.moments

    @property
    def live(self) -> list[int]:
        """Bytes allocated at each moment, as the allocator counts them."""
        return self._replayed[0] if self.allocator == "cuda" else self._timeline.live

    @property
    def timeline(self) -> dict[str, list[int]]:
        """Bytes asked for that are alive at each moment, for each category that occurs."""
        return {str(name): list(sizes) for name, sizes in self._timeline.by_category.items()}

    @cached_property
    def peak(self) -> int:
        """The first moment at which most bytes are allocated."""
        return max(range(self.moments), key=self.live.__getitem__)

    @property
    def at(self) -> Moment:
        """The moment of the peak."""
        return self.moment(self.peak)

    @property
    def alive(self) -> dict[str, int]:
        """Bytes alive at the peak, by category; they add up to `peak_bytes`."""
        return self.at.alive

    @property
    def after_forward(self) -> int:
        """Bytes asked for that are alive when forward has returned, with what its backward will need."""
        end = self.moments - 1 if self.record.loss_at is None else self.record.loss_at
        blocks = self._timeline.blocks
        there = (b for b in blocks if b.born < end or (b.born == 0 and b.entry is None))
        return sum(block.bytes for block in there if block.died > end)

    @property
    def workspaces(self) -> dict[str, str]:
        """What libraries take besides, which no figure here has in it: name -> how much, and by whose word."""
        return dict(WORKSPACES[self.device])

    def moment(self, index: int) -> Moment:
        """Return what is alive while operation `index` runs. Raise UserError where there is none."""
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < self.moments:
            raise UserError(f"moment is {index!r}, expected a whole number from 0 to {self.moments - 1}")
        found = {name: sizes[index] for name, sizes in self._timeline.by_category.items() if sizes[index]}
        alive: dict[str, int] = {name: found[name] for name in CATEGORIES if name in found}
        total = self.live[index]
        if rounding := total - sum(alive.values()):
            alive[ROUNDING] = rounding
        if index == self.moments - 1:
            return Moment(index, "end", None, None, total, alive)
        entry = self.record.entries[index]
        module = self.record.modules.paths[self.record.calls.modules[entry.call]]
        phase = "loss" if self._is_loss(index) else entry.phase
        return Moment(index, phase, self.record.operations[entry.operation].name, module, total, alive)

    def _is_loss(self, index: int) -> bool:
        at = self.record.loss_at
        return at is not None and index >= at and self.record.entries.phases[index] == "forward"

    @cached_property
    def _replayed(self) -> tuple[list[int], list[int]]:
        """Bytes allocated and reserved at each moment, as torch's caching allocator has them."""
        return replay(self._timeline, CachingAllocator())

    # --- tables ------------------------------------------------------------------------------------------------------

    def by_category(self, moment: int | None = None) -> Table:
        """Return one row a category of what is alive at the peak, or at another moment."""
        there = self.at if moment is None else self.moment(moment)
        return self._table("category", there.alive.items(), there)

    def by_module(self, depth: int = 1, moment: int | None = None) -> Table:
        """Return one row a module down to `depth` (0: the whole model), with all that is below it; heaviest first."""
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise UserError(f"depth is {depth!r}, expected a whole number from 0")
        there = self.at if moment is None else self.moment(moment)
        sums: Counter[str] = Counter()
        for block in self._timeline.alive(there.index):
            if block.category == "inputs":
                sums["inputs"] += block.bytes
            else:
                sums[".".join(block.module.split(".")[:depth]) if depth else ""] += block.bytes
        return self._table("module", self._heaviest(sums, there), there)

    def by_operation(self, moment: int | None = None) -> Table:
        """Return one row for each kind of operation that made what is alive, and for what was there before."""
        there = self.at if moment is None else self.moment(moment)
        sums: Counter[str] = Counter()
        for block in self._timeline.alive(there.index):
            sums[self._made_by(block)] += block.bytes
        return self._table("operation", self._heaviest(sums, there), there)

    def _made_by(self, block: Block) -> str:
        if block.entry is None:
            return block.category
        return self.record.operations[self.record.entries.operations[block.entry]].name

    @staticmethod
    def _heaviest(sums: Counter[str], there: Moment) -> list[tuple[str, int]]:
        rounding = there.alive.get(ROUNDING)
        return [*sums.most_common(), *([(ROUNDING, rounding)] if rounding else [])]

    def _table(self, by: str, rows: Iterable[tuple[str, int]], there: Moment) -> Table:
        columns = (
            Column(by, by, text=True, weight=100),
            Column("bytes", "bytes", "B", weight=90),
            Column("share", "share", "%", weight=80),
        )
        whole = there.bytes or 1
        cells: list[dict[str, Cell]] = [{by: name, "bytes": size, "share": 100 * size / whole} for name, size in rows]
        run = self.record.step or f"{self.record.mode} mode"
        what = "at the peak" if there.index == self.peak else f"at operation {there.index:,}"
        title = f"{self.record.model}, memory {what} by {by}, {run}, batch {self.record.batch}, {self.device}"
        total: dict[str, Cell] = {by: "total", "bytes": there.bytes, "share": 100.0 if there.bytes else 0.0}
        return Table(title, "memory", columns, cells, total, self.notes(there))

    def notes(self, there: Moment | None = None) -> list[str]:
        """Return what stands under a table: when it is, the device's memory, what was taken for granted."""
        there = self.at if there is None else there
        count = self.moments - 1
        lines = [f"peak: {size_text(self.peak_bytes)} at operation {self.peak + 1:,} of {count:,}, {self.at}"]
        if self.peak == count:
            lines = [f"peak: {size_text(self.peak_bytes)} {self.at}"]
        if there.index != self.peak:
            lines.append(f"here: {size_text(there.bytes)} at operation {there.index + 1:,} of {count:,}, {there}")
        if self.reserved_bytes is not None:
            lines.append(f"reserved by torch's caching allocator: {size_text(self.reserved_bytes)}")
        lines.append(f"after forward: {size_text(self.after_forward)}")
        if self.record.step is not None:
            lines.append(
                "step: the first, which makes the optimizer's state" if self.form.first else "step: one of many"
            )
        if self._accumulate > 1:
            lines.append(f"gradients of {self._accumulate} micro-batches of {self.record.batch} are added up")
        lines += [f"not in it: {name}, {size}" for name, size in self.workspaces.items()]
        lines += [f"assumed: {assumption}" for assumption in self.record.assumptions]
        if self.record.error:
            lines.append(f"incomplete: {self.record.error}")
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the peak, what is alive then, and the bytes by category at every moment, for `json.dumps`."""
        at = self.at
        return {
            "device": self.device,
            "allocator": self.allocator,
            "peak_bytes": self.peak_bytes,
            "reserved_bytes": self.reserved_bytes,
            "after_forward_bytes": self.after_forward,
            "at": {"index": at.index, "phase": at.phase, "operation": at.operation, "module": at.module},
            "alive": at.alive,
            "live": list(self.live),
            "timeline": self.timeline,
        }

    # --- pictures ----------------------------------------------------------------------------------------------------

    def to_chrome_trace(self) -> dict[str, object]:
        """Return bars and counters by category over the operations, one a microsecond, as Perfetto and speedscope read.

        `Ledger.save_trace` writes the same by another quantity.
        """
        return chrome.trace(self.record, axis.operations(self.record), self._timeline.by_category)

    def save_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write `to_chrome_trace` to a JSON file. An existing file is replaced whole or not at all."""
        chrome.save(path, self.to_chrome_trace())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw what is alive over the operations to a .png or .svg file. Needs matplotlib (`torchledger[plot]`)."""
        picture.draw(path, self.record, self._timeline.by_category, self.peak, self.by_category().title)


def replay(timeline: Timeline, allocator: CachingAllocator) -> tuple[list[int], list[int]]:
    """Return the bytes allocated and reserved at each moment when an allocator serves the blocks of a timeline."""
    dying: list[list[int]] = [[] for _ in range(timeline.moments + 1)]
    allocated, reserved = [], []
    blocks = iter(timeline.blocks)
    block = next(blocks, None)
    for moment in range(timeline.moments):
        for handle in dying[moment]:
            allocator.free(handle)
        while block is not None and block.born == moment:
            dying[block.died].append(allocator.allocate(block.bytes))
            block = next(blocks, None)
        allocated.append(allocator.allocated)
        reserved.append(allocator.reserved)
    return allocated, reserved


def size_text(size: int) -> str:
    """Write a size to read, and to compare: `3.142 GB (3,141,592,653 bytes)`."""
    return f"{short_size(size)} ({size:,} bytes)" if size >= 1000 else f"{size} bytes"


def _device(device: object) -> Device:
    name = str(device).partition(":")[0]
    if name not in get_args(Device):
        choices = get_args(Device)
        raise UserError(
            f"unknown device {str(device)!r}; memory is known for {', '.join(choices)}.{close_matches(name, choices)}"
        )
    return name  # type: ignore[return-value]
