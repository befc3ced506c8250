"""What the horizontal axis of a trace is: how much of one quantity each operation of a run takes, in order.

Viewers know a time axis alone. One second stands for 10^9 of the quantity, so that their ms and s read as M and G.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchledger.errors import UserError, close_matches
from torchledger.pricing.convention import Convention, State
from torchledger.record import Record, RowKey
from torchledger.views import prices_of_entries

SUMS = {"bytes": ("bytes_read", "bytes_written"), "mem_rw_b": ("mem_read_b", "mem_write_b")}  # and what they add up
OPERATIONS, SECONDS = "operations", "seconds_measured"
ALIAS = "seconds"  # of SECONDS
OF_NO_OPERATION = ("params", "trainable_params", "active_params", "buffers", "peak", "peak_bytes")
NANO = 10**9

# Viewers read microseconds as a 64-bit float and keep nanoseconds: below this many nanoseconds none is off by one.
MOST_NANOSECONDS = 2**50
MOST_MICROSECONDS = 2**53  # integers that a 64-bit float holds, each of them


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of the axis. `moment`: entries before it; `name`: its operation, None where a module is one stretch."""

    moment: int
    call: int | None
    phase: str
    name: str | None
    amount: int
    state: State = State.PRICED


@dataclass(frozen=True)
class Axis:
    """The stretches of a run by one quantity; amounts are whole numbers, for seconds of nanoseconds.

    `per`: how much of it a microsecond of the trace stands for. `is_rounded`: some stretches end between two
    microseconds and are cut; all others are exact.
    """

    by: str
    unit: str
    steps: Sequence[Step]
    per: int
    is_rounded: bool = False

    @property
    def total(self) -> int:
        return sum(step.amount for step in self.steps)

    @property
    def unknown(self) -> Counter[str]:
        """How often operations without a rule ran, which the total is missing."""
        return Counter(step.name or "" for step in self.steps if step.state is State.UNKNOWN)

    @property
    def scale(self) -> str:
        """What the viewer's time stands for."""
        if self.by == SECONDS:
            return "1 s = 1 s"
        if self.per == 1000:
            return f"1 s = 1 G{self.unit}"
        return f"1 us = {self.per:,} {self.by}" if self.per > 1 else f"1 us = 1 {self.by.removesuffix('s')}"

    def microseconds(self, amount: int) -> int | float:
        """Return where on the viewer's axis an amount lies."""
        whole, rest = divmod(amount, self.per)
        return amount / self.per if rest and not self.is_rounded else whole

    def value(self, amount: int) -> int | float:
        """Return an amount in the quantity's own unit."""
        return amount / NANO if self.by == SECONDS else amount


def choices(convention: Convention, is_measured: bool = True) -> list[str]:
    """Return the quantities that operations have under a convention."""
    names = [quantity.name for quantity in convention.quantities]
    sums = [name for name, parts in SUMS.items() if set(parts) <= set(names) and name not in names]
    return [*names, *sums, *([SECONDS] if is_measured else []), OPERATIONS]


def check(by: str, convention: Convention, is_measured: bool = True) -> str:
    """Return the name of a quantity, which may be given by its alias. Raise UserError where operations have no such."""
    offered = choices(convention, is_measured)
    by = SECONDS if by == ALIAS else by
    if by in offered:
        return by
    if by == SECONDS:
        raise UserError("no seconds were measured: --measure, or stat(..., measure=True), runs the model for real")
    why = f"{by!r} is no sum over operations" if by in OF_NO_OPERATION else f"unknown quantity {by!r}"
    raise UserError(
        f"{why}; under convention {convention.name} a trace is by {', '.join(offered)}."
        f"{close_matches(str(by), offered)}"
    )


def priced(record: Record, convention: Convention, by: str) -> Axis:
    """Return the axis of a quantity that operations are priced at, or of seconds where they were measured."""
    by = check(by, convention, record.measurement is not None)
    if by == OPERATIONS:
        return operations(record)
    if by == SECONDS:
        return Axis(by, "s", list(_measured(record)), 1000)
    parts = SUMS.get(by, (by,))
    units = {quantity.name: quantity.unit for quantity in convention.quantities}
    steps = []
    for moment, (price, entry) in enumerate(zip(prices_of_entries(record, convention), record.entries, strict=True)):
        assert price is not None, "no phase was chosen"
        amount = sum(price.amounts.get(part, 0) for part in parts)
        name = record.operations[entry.operation].name
        steps.append(Step(moment, entry.call, entry.phase, name, amount, price.state))
    per, is_rounded = _per_microsecond([step.amount for step in steps])
    return Axis(by, units[parts[0]], steps, per, is_rounded)


def operations(record: Record) -> Axis:
    """Return the axis on which each operation takes one microsecond."""
    entries = enumerate(record.entries)
    steps = [Step(m, e.call, e.phase, record.operations[e.operation].name, 1) for m, e in entries]
    return Axis(OPERATIONS, "", steps, 1)


def _per_microsecond(amounts: Sequence[int]) -> tuple[int, bool]:
    """Return how much a microsecond stands for, and whether that cuts some amounts.

    10^3 as long as viewers keep each nanosecond apart; then what all amounts are a multiple of, which large networks
    have a large one of; then, where even that is too long, something coarser.
    """
    total = sum(amounts)
    if total < MOST_NANOSECONDS:
        return 1000, False
    per = math.gcd(*amounts)
    is_rounded = total // per >= MOST_MICROSECONDS
    while total // per >= MOST_MICROSECONDS:
        per *= 10
    return per, is_rounded


def _measured(record: Record) -> Iterator[Step]:
    """Yield the measured rows in order, each dealt out to its entries; one without entries to its module's calls.

    Inside of a leaf module no operation was measured apart, so that its steps have no names.
    """
    assert record.measurement is not None, "checked"
    seconds: Counter[RowKey] = Counter()
    for row in record.measurement.rows:
        seconds[row.path, row.operation, row.ordinal] += round(row.seconds * NANO)
    keys = record.row_keys()
    entries: Counter[RowKey] = Counter(keys)
    calls: defaultdict[str, list[int]] = defaultdict(list)
    for place, module in enumerate(record.calls.modules):
        calls[record.modules.paths[module]].append(place)
    steps = []
    for key, whole in seconds.items():
        if key in entries:
            continue
        path, name, _ = key
        there = calls[path]
        for place, call in enumerate(there):
            moment = record.calls.started[call]
            steps.append(Step(moment, call, "forward", name or None, _share(whole, place, len(there))))
        if not there:  # it ran in the measured run alone
            root = next(iter(calls[""]), None)
            steps.append(Step(len(keys), root, "forward", name or path, whole))
    steps.sort(key=lambda step: step.moment)
    waiting = iter(steps)
    step = next(waiting, None)
    seen: Counter[RowKey] = Counter()
    for moment, (key, entry) in enumerate(zip(keys, record.entries, strict=True)):
        while step is not None and step.moment <= moment:
            yield step
            step = next(waiting, None)
        amount = _share(seconds[key], seen[key], entries[key])
        seen[key] += 1
        yield Step(moment, entry.call, entry.phase, key[1] or None, amount)
    while step is not None:
        yield step
        step = next(waiting, None)


def _share(whole: int, place: int, parts: int) -> int:
    """Return one of so many nearly equal parts, which add up to the whole."""
    return whole * (place + 1) // parts - whole * place // parts
