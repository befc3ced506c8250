"""What a ledger counts against limits: what exceeds them, by how much, and in which layers that lies."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from torchledger.amounts import parse_bytes, parse_count
from torchledger.errors import UserError, check_accepted, close_matches
from torchledger.ledger import Ledger
from torchledger.memory_report import ROOT, MemoryReport
from torchledger.report import table_to_json
from torchledger.report.text import short_amount
from torchledger.tables import Table
from torchledger.views import AtLeast, Cell, Column

QUANTITIES = {
    "params": "", "trainable_params": "", "macs": "", "flops": "", "bytes_read": "B", "bytes_written": "B",
    "activation_bytes": "B", "peak": "B", "unknown": "",
}  # fmt: skip
HEAVIEST = 5  # layers that are shown of a quantity that is too much
HEADLINE = 3  # limits that the title has figures of
WITHIN, EXCEEDED, NOT_KNOWN = "within", "exceeded", "not known"
DEEPEST = 10**6  # levels of the tree of modules: all of them
TOLD = ("operations:", "unknown:", "assumed:")  # the notes under a table of layers that belong here too
TOLD_OF_PEAK = ("peak:", "not in it:")


@dataclass(frozen=True)
class Bound:
    """One quantity against one limit; `baseline` is what it was there, where the limit comes from one."""

    quantity: str
    value: int
    limit: int
    baseline: int | None = None

    @property
    def against(self) -> str:
        """Where the limit comes from."""
        return "max" if self.baseline is None else "baseline"

    @property
    def over(self) -> int:
        """By how much the value is above the limit; 0 where it is not."""
        return max(0, int(self.value) - self.limit)

    @property
    def growth(self) -> int | None:
        """By how much the value is above the baseline, or below it."""
        return None if self.baseline is None else int(self.value) - int(self.baseline)

    @property
    def excess(self) -> str:
        """What is too much, to read: `macs by 3.089 G (308.9%)`."""
        more, of = (self.over, self.limit) if self.growth is None else (self.growth, int(self.baseline or 0))
        share = f" ({100 * more / of:.4g}%)" if of else ""
        return f"{self.quantity} by {short_amount(more, QUANTITIES[self.quantity])}{share}"

    def __str__(self) -> str:
        unit = QUANTITIES[self.quantity]
        limit = short_amount(self.limit, unit)
        if self.baseline is None:
            return f"{self.excess} over the maximum of {limit}"
        allowed = f"; up to {limit} is allowed" if self.limit != self.baseline else ""
        return f"{self.excess} over the baseline's {short_amount(self.baseline, unit)}{allowed}"


@dataclass(frozen=True)
class Check:
    """The quantities of a ledger beside their limits; `memory` and `memory_before` where the peak is among them."""

    ledger: Ledger
    bounds: Sequence[Bound]
    memory: MemoryReport | None = None
    baseline: Ledger | None = None
    memory_before: MemoryReport | None = None

    @property
    def within(self) -> bool:
        """Whether all quantities are known to be within their limits."""
        return self._verdict == WITHIN

    @property
    def _verdict(self) -> str:
        results = {self.result(bound) for bound in self.bounds}
        return next((result for result in (EXCEEDED, NOT_KNOWN) if result in results), WITHIN)

    def result(self, bound: Bound) -> str:
        """Return "within", "exceeded" or, for a sum that unknown operations are missing from, "not known"."""
        if bound.over:
            return EXCEEDED
        return NOT_KNOWN if isinstance(bound.value, AtLeast) and not self._unknown_allowed else WITHIN

    @cached_property
    def _unknown_allowed(self) -> bool:
        """Whether so many unknown operations were said to be all right: then sums without them count as they are."""
        asked = [bound for bound in self.bounds if bound.quantity == "unknown"]
        return bool(asked) and not any(bound.over for bound in asked)

    def _with(self, result: str) -> list[Bound]:
        return [bound for bound in self.bounds if self.result(bound) == result]

    # --- tables ------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What came out, in one line."""
        record = self.ledger.record
        run = f"{record.step or f'{record.mode} mode'}, batch {record.batch}"
        run += f", autocast {record.autocast}" if record.autocast is not None else ""
        run += f", memory on {self.memory.device}" if self.memory is not None else ""
        exceeded = [bound.excess for bound in self._with(EXCEEDED)]
        if len(exceeded) > HEADLINE:
            exceeded = list(dict.fromkeys(bound.quantity for bound in self._with(EXCEEDED)))
        missing = dict.fromkeys(bound.quantity for bound in self._with(NOT_KNOWN))
        said = [f"exceeds its limits, {', '.join(exceeded)}"] if exceeded else []
        said += [f"is not known to be within its limits, {', '.join(missing)}"] if missing else []
        return f"{record.model} {', and '.join(said) or 'is within its limits'}; {run}"

    @property
    def table(self) -> Table:
        """One row for each quantity and limit, with exact numbers."""
        compared = self.baseline is not None
        columns = [Column("quantity", "quantity", text=True, weight=100)]
        columns += [Column("against", "against", text=True, weight=93)] * compared
        columns += [Column("value", "value", weight=95)]
        columns += [Column("baseline", "baseline", weight=65), Column("growth", "growth", weight=68)] * compared
        columns += [
            Column("limit", "limit", weight=90),
            Column("of_limit", "of limit", "%", weight=60),
            Column("over", "over", weight=69),
            Column("unit", "unit", text=True, weight=62),
            Column("result", "result", text=True, weight=99),
        ]
        rows = [self._row(bound) for bound in self.bounds]
        names = [column.name for column in columns]
        total: dict[str, Cell] = dict.fromkeys(names, "")
        kept = f"{len(self._with(WITHIN))} of {len(self.bounds)} within"
        total |= {"quantity": kept, "result": self._verdict}
        cells = [{name: row[name] for name in names} for row in rows]
        return Table(self.title, "full", tuple(columns), cells, total, self._notes(), exact=True)

    def _row(self, bound: Bound) -> dict[str, Cell]:
        return {
            "quantity": bound.quantity,
            "against": bound.against,
            "value": bound.value,
            "baseline": bound.baseline,
            "growth": bound.growth,
            "limit": bound.limit,
            "of_limit": 100 * int(bound.value) / bound.limit if bound.limit else None,
            "over": bound.over,
            "unit": QUANTITIES[bound.quantity],
            "result": self.result(bound),
        }

    def _notes(self) -> list[str]:
        lines = [f"exceeded: {bound}" for bound in self._with(EXCEEDED)]
        if missing := self._with(NOT_KNOWN):
            names = ", ".join(dict.fromkeys(bound.quantity for bound in missing))
            lines.append(
                f"not known: {names}, which unknown operations are missing from; a maximum for unknown allows some"
            )
        lines += [note for note in self.ledger.by_layer().notes if note.startswith(TOLD)]
        if self.memory is not None:
            alive = ", ".join(f"{name} {short_amount(size, 'B')}" for name, size in self.memory.alive.items())
            peak, *others = [note for note in self.memory.notes() if note.startswith(TOLD_OF_PEAK)]
            lines += [peak, f"alive at the peak: {alive}", *others]
        return list(dict.fromkeys(lines))

    @cached_property
    def layers(self) -> list[tuple[Bound, Table]]:
        """Where each quantity lies that is not within: its heaviest layers, against a baseline those that grew most.

        What the others have is one row, so that the rows add up to the value.
        """
        return [(bound, self._of_layers(bound)) for bound in self.bounds if self.result(bound) != WITHIN]

    def _of_layers(self, bound: Bound) -> Table:
        now = of_layers(self.ledger, bound.quantity, self.memory)
        if self.baseline is None or bound.baseline is None:
            return _heaviest(bound, now)
        return _most_grown(bound, of_layers(self.baseline, bound.quantity, self.memory_before), now)

    # --- formats -----------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> list[Table]:
        """All values beside their limits, then the layers of what is not within."""
        return [self.table, *(table for _, table in self.layers)]

    def to_csv(self) -> str:
        """Return one line for each quantity and limit; the layers of what is not within are its last cell."""
        table = self.table
        found = {(bound.quantity, bound.against): _in_a_line(layers) for bound, layers in self.layers}
        for bound, row in zip(self.bounds, table.rows, strict=True):
            row["layers"] = found.get((bound.quantity, bound.against), "")
        return dataclasses.replace(table, columns=(*table.columns, Column("layers", "layers", text=True))).to_csv()

    def to_json(self) -> dict[str, object]:
        """Return whether all is within, and the layers of what is not, for `json.dumps`; `table` has the values."""
        layers = [{"quantity": b.quantity, "against": b.against, **table_to_json(found)} for b, found in self.layers]
        return {"within": self.within, "layers": layers}

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables))


def check(
    ledger: Ledger,
    limits: Mapping[str, int],
    baseline: Ledger | None = None,
    tolerance: Fraction = Fraction(0),
    memory: Mapping[str, Any] | None = None,
) -> Check:
    """Set the quantities of a ledger beside limits.

    Args:
        limits: the most that a quantity may be, by name.
        baseline: an earlier ledger of such a run: no quantity may have grown by more than the tolerance.
        tolerance: a share of what the quantity was in the baseline.
        memory: arguments of `Ledger.memory`, for the peak.

    Raises:
        UserError: where there is nothing to check, for a run that failed, and for a baseline of another kind of run.
    """
    check_asked(limits, baseline, tolerance, memory)
    _check_whole(ledger, "the ledger")
    if baseline is not None:
        _check_whole(baseline, "the baseline")
        _check_same_run(ledger, baseline)
    if baseline is not None or "peak" in limits:
        _check_storages(ledger, "the ledger")
    if baseline is not None:
        _check_storages(baseline, "the baseline")
    report = ledger.memory(**memory or {}) if baseline is not None or "peak" in limits else None
    before = None if baseline is None else baseline.memory(**memory or {})
    now = _values(ledger, report)
    bounds = [Bound(quantity, now[quantity], limits[quantity]) for quantity in QUANTITIES if quantity in limits]
    if baseline is not None:
        earlier = _values(baseline, before)
        bounds += [
            Bound(quantity, now[quantity], int(int(earlier[quantity]) * (1 + tolerance)), earlier[quantity])
            for quantity in QUANTITIES
        ]
    return Check(ledger, bounds, report, baseline, before)


def check_asked(
    limits: Mapping[str, int], baseline: object, tolerance: Fraction, memory: Mapping[str, Any] | None
) -> None:
    """Raise UserError, before anything is captured, where there is nothing to check or an option has no use."""
    if not limits and baseline is None:
        raise UserError("nothing to check: give a maximum, such as macs=1G, or a baseline")
    if tolerance and baseline is None:
        raise UserError("a tolerance is a share of a baseline: give a baseline too, or leave it out")
    if memory is not None and not isinstance(memory, Mapping):
        raise UserError(f'memory is {memory!r}, expected arguments of Ledger.memory, such as {{"device": "cpu"}}')
    check_accepted("memory", MemoryReport, [name for name in memory or () if name != "record"])
    if memory and baseline is None and "peak" not in limits:
        raise UserError(f"{', '.join(memory)} is for the peak, which has no limit: give one, such as peak=2GB")


def parse_limit(quantity: str, amount: int | str, name: str) -> int:
    """Return a limit as a number; `name` is what it goes by in an error. Raise UserError for what is none."""
    if quantity not in QUANTITIES:
        near = close_matches(quantity, QUANTITIES)
        raise UserError(f"{name}: no quantity {quantity!r}; the quantities are {', '.join(QUANTITIES)}.{near}")
    return parse_bytes(amount, name, least=0) if QUANTITIES[quantity] == "B" else parse_count(amount, name)


def _values(ledger: Ledger, report: MemoryReport | None) -> dict[str, int]:
    found: dict[str, Any] = dict(ledger.totals())
    if report is not None:
        found["peak"] = report.peak_bytes
    return {quantity: found[quantity] for quantity in QUANTITIES if quantity in found}


def _check_whole(ledger: Ledger, what: str) -> None:
    if ledger.record.error is not None:
        raise UserError(f"{what} is of a forward that failed, and counts what ran before: {ledger.record.error}")


def _check_storages(ledger: Ledger, what: str) -> None:
    if ledger.record.entries and not ledger.record.allocations:
        raise UserError(f"{what} has operations and no storages, so its peak is not known: analyse the model again")


def _check_same_run(ledger: Ledger, baseline: Ledger) -> None:
    """Raise UserError where two ledgers differ in what was asked for rather than in the model."""
    for what, name in (("mode", "mode"), ("batch", "batch"), ("step", "training"), ("autocast", "autocast")):
        now, before = getattr(ledger.record, what), getattr(baseline.record, what)
        if now != before:
            raise UserError(
                f"the baseline is of another run: {name} {before or 'off'} there, {now or 'off'} here; make it again "
                "with the options of this one"
            )
    if ledger.record.inputs != baseline.record.inputs:
        now, before = (", ".join(one.record.inputs) or "none" for one in (ledger, baseline))
        raise UserError(f"the baseline is of another run: inputs {before} there, {now} here; make it again with these")


# --- which layers ----------------------------------------------------------------------------------------------------


def of_layers(ledger: Ledger, quantity: str, report: MemoryReport | None = None) -> dict[str, int]:
    """Return a quantity by layer, which adds up to its total: paths of modules, and of operations outside of leaves.

    `report`: where the peak is asked for, which lies in modules.
    """
    sums: defaultdict[str, int] = defaultdict(int)
    if quantity == "peak":
        for row in report.by_module(DEEPEST).rows if report is not None else ():
            sums[str(row["module"]) or ROOT] += int(row["bytes"] or 0)
    elif quantity in ("params", "trainable_params"):
        for parameter in ledger.record.parameters:
            if parameter.shared_with is None and (parameter.trainable or quantity == "params"):
                sums[parameter.module or ROOT] += parameter.elements
    else:
        table = ledger.by_layer()
        for place, row in enumerate(table.rows):
            cell = row[quantity]
            if isinstance(cell, int):
                name = str(row["module"]) or ROOT
                name += f" {row['kind']}" * (place in table.operation_rows)
                sums[name] = _plus(sums[name], cell)
    return dict(sums)


def _plus(one: int, other: int) -> int:
    whole = int(one) + int(other)
    return AtLeast(whole) if isinstance(one, AtLeast) or isinstance(other, AtLeast) else whole


def _sum(parts: Iterable[int]) -> int:
    whole = 0
    for part in parts:
        whole = _plus(whole, part)
    return whole


def _heaviest(bound: Bound, now: Mapping[str, int]) -> Table:
    unit = QUANTITIES[bound.quantity]
    columns = (
        Column("layer", "layer", text=True, weight=100),
        Column(bound.quantity, bound.quantity, unit, weight=95),
        Column("share", "share", "%", weight=80),
    )
    ordered = sorted(
        (name for name, value in now.items() if value or isinstance(value, AtLeast)), key=lambda n: -now[n]
    )
    parts: list[tuple[str, int]] = [(name, now[name]) for name in ordered[:HEAVIEST]]
    if others := ordered[HEAVIEST:]:
        parts.append((_others(others), _sum(now[name] for name in others)))
    whole = int(bound.value)
    rows: list[dict[str, Cell]] = [
        {"layer": name, bound.quantity: value, "share": 100 * int(value) / whole if whole else 0.0}
        for name, value in parts
    ]
    total: dict[str, Cell] = {"layer": "total", bound.quantity: bound.value, "share": 100.0 if whole else 0.0}
    return Table(f"{bound.quantity} by layer, the heaviest", "full", columns, rows, total)


def _most_grown(bound: Bound, before: Mapping[str, int], now: Mapping[str, int]) -> Table:
    unit = QUANTITIES[bound.quantity]
    columns = (
        Column("layer", "layer", text=True, weight=100),
        Column("baseline", "baseline", unit, weight=70),
        Column(bound.quantity, bound.quantity, unit, weight=80),
        Column("growth", "growth", unit, weight=95),
    )
    growth = {name: int(now.get(name, 0)) - int(before.get(name, 0)) for name in {**before, **now}}
    ordered = sorted(growth, key=lambda name: -growth[name])
    shown = [name for name in ordered[:HEAVIEST] if growth[name] > 0]
    others = [name for name in ordered[len(shown) :] if now.get(name) or before.get(name)]

    def row(label: str, names: Sequence[str]) -> dict[str, Cell]:
        return {
            "layer": label,
            "baseline": _sum(before.get(name, 0) for name in names),
            bound.quantity: _sum(now.get(name, 0) for name in names),
            "growth": sum(growth[name] for name in names),
        }

    rows = [row(name, [name]) for name in shown] + ([row(_others(others), others)] if others else [])
    total: dict[str, Cell] = {"layer": "total", "baseline": bound.baseline, bound.quantity: bound.value}
    total["growth"] = bound.growth
    return Table(f"{bound.quantity} by layer, grown most since the baseline", "full", columns, rows, total)


def _others(names: Sequence[str]) -> str:
    return f"{len(names):,} other layer{'s' * (len(names) != 1)}"


def _in_a_line(layers: Table) -> str:
    """Return the layers that a table names, each with its exact number."""
    column = layers.columns[-1].name if layers.columns[-1].name == "growth" else layers.columns[1].name
    parts = (f"{row['layer']} {'>=' * isinstance(row[column], AtLeast)}{row[column]}" for row in layers.rows)
    return "; ".join(parts)
