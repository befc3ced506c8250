"""Rows by layer of two ledgers -> which row became which: added, removed, changed or as it was."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from torchledger.amounts import Limit
from torchledger.views import AtLeast, Table

What = Literal["added", "removed", "changed", "unchanged"]
Costs = dict[str, int | None]  # by quantity; None: not counted, as for a module that did not run


@dataclass
class Row:
    """A layer, or an operation outside of one, with what it costs.

    `memory_alone`: neither, but what is alive at the peak and belongs to a module without a row of its own, or to none.
    """

    module: str
    kind: str
    is_module: bool
    costs: Costs
    free: bool = False
    shapes: tuple[object, ...] = ()
    memory_alone: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What a row is found again by: a layer by its path, an operation by its module and kind."""
        return self.module, "" if self.is_module else self.kind

    @property
    def content(self) -> Hashable:
        """What tells rows of one key apart."""
        return self.kind, self.shapes, tuple(map(_told, self.costs.values()))


@dataclass(frozen=True)
class Change:
    """A row before and after; None where there was none."""

    before: Row | None
    after: Row | None

    @property
    def what(self) -> What:
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        return "changed" if self.differs else "unchanged"

    @property
    def module(self) -> str:
        return self._now.module

    @property
    def is_module(self) -> bool:
        return self._now.is_module

    @property
    def _now(self) -> Row:
        """The row after, or the one before where it was removed."""
        row = self.after or self.before
        assert row is not None, "a change has a row before or after"
        return row

    @property
    def kind(self) -> str:
        """The kind of layer or operation; of one that was replaced, both."""
        kinds = dict.fromkeys(row.kind for row in (self.before, self.after) if row is not None)
        return " -> ".join(kinds)

    @property
    def differs(self) -> bool:
        """Whether there is anything to tell: another cost, one that may be another, or another kind of layer."""
        if self.before is None or self.after is None or self.replaced:
            return True
        costs = self.before.costs.items()
        return any(_told(cost) != _told(self.after.costs[name]) or self.amount(name) is None for name, cost in costs)

    @property
    def replaced(self) -> bool:
        """Whether a layer or operation became one of another kind."""
        return self.before is not None and self.after is not None and self.before.kind != self.after.kind

    @property
    def free(self) -> bool:
        """Whether it is an operation that costs nothing by rule, before and after."""
        return all(row is None or row.free for row in (self.before, self.after))

    @property
    def memory_alone(self) -> bool:
        return self._now.memory_alone

    def amount(self, name: str) -> int | None:
        """Return after less before, where missing and not counted are nothing; None where a part has no rule.

        What runs in the same way has changed by nothing, also where it holds an operation without a rule.
        """
        cells = [None if row is None else row.costs[name] for row in (self.before, self.after)]
        old, new = (0 if cell is None else cell for cell in cells)
        if isinstance(old, AtLeast) or isinstance(new, AtLeast):
            return 0 if self._runs_alike and _told(old) == _told(new) else None
        return new - old

    @property
    def _runs_alike(self) -> bool:
        if self.before is None or self.after is None:
            return False
        return (self.before.kind, self.before.shapes) == (self.after.kind, self.after.shapes)


def parted(differing: Sequence[Change], by: Sequence[str], limit: Limit) -> tuple[list[Change], list[Change]]:
    """Return the changes of which one quantity reaches the limit, or is not known, and the others.

    Without a limit all are among the first.
    """
    if not limit.amount:
        return list(differing), []
    least = {}
    for name in by:
        largest = max((abs(amount) for c in differing if (amount := c.amount(name)) is not None), default=0)
        least[name] = limit.amount * largest if limit.is_share else limit.amount
    reaching: list[Change] = []
    small: list[Change] = []
    for change in differing:
        amounts = {name: change.amount(name) for name in by}
        reaches = any(size is None or (size != 0 and abs(size) >= least[name]) for name, size in amounts.items())
        (reaching if reaches else small).append(change)
    return reaching, small


def layer_rows(table: Table, quantities: Sequence[str]) -> list[Row]:
    """Return the rows of a table by layer with the costs of these quantities."""
    rows = []
    for place, cells in enumerate(table.rows):
        costs = {name: _cost(cells[name]) for name in quantities}
        shapes = (cells["calls"], cells["input_shape"], cells["output_shape"], cells["params"])
        is_module = place not in table.operation_rows
        rows.append(Row(str(cells["module"]), str(cells["kind"]), is_module, costs, place in table.free_rows, shapes))
    return rows


def _cost(cell: object) -> int | None:
    return cell if isinstance(cell, int) else None


def _told(cost: int | None) -> Hashable:
    """Tell a sum from one that unknown operations are missing from."""
    return isinstance(cost, AtLeast), cost


def changes(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Match rows by key and return them in the order of `after`; what is removed stands behind what it stood behind."""
    partner = _matched(before, after)  # place in before -> place in after
    placed: dict[int | None, list[Change]] = {}
    behind: int | None = None  # the place in `after` that the removed rows follow; None: in front of all
    for place, row in enumerate(before):
        if place in partner:
            behind = partner[place]
        else:
            placed.setdefault(behind, []).append(Change(row, None))
    origin = {there: here for here, there in partner.items()}
    found = placed.get(None, [])
    for place, row in enumerate(after):
        found.append(Change(before[origin[place]] if place in origin else None, row))
        found += placed.get(place, [])
    return found


def _matched(before: Sequence[Row], after: Sequence[Row]) -> dict[int, int]:
    """Pair rows of one key. Where a module runs an operation several times, those that are equal find each other first,
    so that one more in front does not shift all."""
    places: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for side, rows in enumerate((before, after)):
        for place, row in enumerate(rows):
            places.setdefault(row.key, ([], []))[side].append(place)
    partner: dict[int, int] = {}
    for old, new in places.values():
        first, second = ([rows[place].content for place in own] for rows, own in ((before, old), (after, new)))
        for a, b, c, d in _stretches(first, second):
            partner.update(zip(old[a:b], new[c:d], strict=False))  # what is left over came or went
    return partner


def _stretches(old: Sequence[Hashable], new: Sequence[Hashable]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the stretches old[a:b] and new[c:d] that are equal or stand in each other's place."""
    shorter = min(len(old), len(new))
    start = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    end = next((i for i in range(shorter - start) if old[-1 - i] != new[-1 - i]), shorter - start)
    yield 0, start, 0, start
    yield len(old) - end, len(old), len(new) - end, len(new)
    # Equal ends are cut off first: matching takes the square of the length.
    matcher = SequenceMatcher(None, old[start : len(old) - end], new[start : len(new) - end], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            yield start + a, start + b, start + c, start + d
