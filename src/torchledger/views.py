"""Record + convention -> Table: by layer, by operation, by module to a depth. Every view adds up to one total."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field

from torchledger.active import active_parameters
from torchledger.errors import UserError
from torchledger.pricing.convention import EXCLUDED, UNKNOWN, Convention, Price, State
from torchledger.record import ModuleInfo, Operation, Record, RowKey, Shape


class AtLeast(int):
    """A sum that unknown operations are missing from: prints as `>=n`, or `?` where nothing is known."""


Cell = str | int | float | None  # None: not counted under this convention, prints as `-`


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `unit` is B, MiB, s, %, or empty; `text` aligns left; a higher `weight` stays longer when narrow.

    `signed`: a change, whose increase is shown with its sign.
    """

    name: str
    title: str
    unit: str = ""
    text: bool = False
    weight: int = 0
    signed: bool = False


@dataclass
class Table:
    """Rows of cells by column name, and their sums. `free_rows` lie in `rows` too: they cost nothing by rule.

    `total` is empty where rows do not add up, as those of different models.
    """

    title: str
    convention: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Cell]]
    total: dict[str, Cell]
    notes: list[str] = field(default_factory=list)
    exact: bool = False
    free_rows: frozenset[int] = frozenset()
    operation_rows: frozenset[int] = frozenset()


COUNTS = ("operations", "priced", "free", "excluded", "unknown")


@dataclass(slots=True)
class _Row:
    """Sums of one row while it is filled."""

    module: str
    kind: str
    calls: int = 0
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()
    amounts: dict[str, int] = field(default_factory=dict)
    of_calls: dict[str, float] = field(default_factory=dict)
    priced: int = 0  # operations by state, as numbers: an enumeration takes long to look up
    free: int = 0
    excluded: int = 0
    unknown: int = 0
    params: int = 0
    note: str = ""
    seconds: float = 0.0
    is_module: bool = True
    ran: bool = True  # to the end
    is_outside: bool = False  # of a convention that counts leaf modules: there for its parameters alone

    def add(self, price: Price, times: int = 1) -> None:
        state = price.state
        if state is State.PRICED:
            self.priced += times
        elif state is State.FREE:
            self.free += times
        elif state is State.EXCLUDED:
            self.excluded += times
        else:
            self.unknown += times
        amounts = self.amounts
        for name, amount in price.amounts.items():
            amounts[name] = amounts.get(name, 0) + amount * times

    def join(self, other: _Row) -> None:
        for name, amount in other.amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount
        for name, of_calls in other.of_calls.items():
            self.of_calls[name] = self.of_calls.get(name, 0.0) + of_calls
        self.priced += other.priced
        self.free += other.free
        self.excluded += other.excluded
        self.unknown += other.unknown
        self.params += other.params
        self.seconds += other.seconds

    def amount(self, name: str) -> int | None:
        """Return the sum; None where every operation is outside the convention."""
        if self.is_outside or not (self.ran or self.operations):
            return None
        amount = self.amounts.get(name)
        if self.unknown:
            return AtLeast(amount or 0)
        # A row whose operations are priced but lack this quantity is outside what the convention counts.
        return 0 if amount is None and not (self.excluded or self.priced) else amount

    @property
    def operations(self) -> int:
        return self.priced + self.free + self.excluded + self.unknown

    def counts(self) -> dict[str, Cell]:
        return {
            "operations": self.operations,
            "priced": self.priced,
            "free": self.free,
            "excluded": self.excluded,
            "unknown": self.unknown,
        }


Prices = list[Price | None]  # of each entry; None: it is of another phase than the one asked for


def prices(record: Record, convention: Convention) -> list[Price]:
    """Price each distinct operation once, in the order of `record.operations`."""
    return [_price(operation, convention) for operation in record.operations]


def _price(operation: Operation, convention: Convention) -> Price:
    try:
        return convention.price(operation)
    except UserError:
        raise  # a rule of the user's own
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError):
        return UNKNOWN  # not the arguments that the rule knows: another version's, or a damaged ledger's


def totals(
    record: Record, convention: Convention, phase: str | None = None, priced: Prices | None = None
) -> dict[str, Cell]:
    """Return the sums of the whole ledger: parameters, the convention's quantities, operations by state.

    `priced`: what `prices_of_entries` gave, where it is at hand.
    """
    row = _Row("", "")
    priced = prices_of_entries(record, convention, phase) if priced is None else priced
    chosen = [price for price in priced if price is not None]
    distinct = {id(price): price for price in chosen}
    for key, times in Counter(map(id, chosen)).items():
        row.add(distinct[key], times)
    parameters = [p for p in record.parameters if p.shared_with is None]
    result: dict[str, Cell] = {
        "params": sum(p.elements for p in parameters),
        "trainable_params": sum(p.elements for p in parameters if p.trainable),
        "active_params": active_parameters(record),
        "buffers": sum(b.elements for b in record.buffers if b.shared_with is None),
    }
    for quantity, formula in convention.of_calls.items():
        result[quantity.name] = sum(
            formula(call) for call in record.calls if not convention.leaves_only or record.modules[call.module].leaf
        )
    for quantity in convention.quantities:
        amount = row.amounts.get(quantity.name, 0)
        result[quantity.name] = AtLeast(amount) if row.unknown else amount
    return result | row.counts()


def prices_of_entries(record: Record, convention: Convention, phase: str | None = None) -> Prices:
    """Return each entry's price, None for one of another phase than `phase`.

    What the convention leaves out for standing outside a leaf, or after the forward, is excluded. Only a forward makes
    activations.
    """
    table = prices(record, convention)
    found: Prices = [table[entry.operation] for entry in record.entries]
    if convention.leaves_only:
        leaf = [record.modules[call.module].leaf for call in record.calls]
        entries = zip(found, record.entries, strict=True)
        found = [p if leaf[entry.call] or p is None or p.state is State.FREE else EXCLUDED for p, entry in entries]
    if record.step is None and phase is None:
        return found
    later = [_later(price, convention) for price in table]
    for place, entry in enumerate(record.entries):
        if phase is not None and entry.phase != phase:
            found[place] = None
        elif entry.phase != "forward":
            found[place] = later[entry.operation]
    return found


def _later(price: Price, convention: Convention) -> Price:
    """Return the price of an operation of the backward or the optimizer."""
    if convention.forward_only:
        return price if price.state is State.FREE else EXCLUDED
    if "activation_bytes" not in price.amounts:
        return price
    return Price(price.state, {**price.amounts, "activation_bytes": 0})


def _layer_rows(record: Record, convention: Convention, priced: Prices) -> list[_Row]:
    """Return rows in order of first execution (modules that did not run last), or of registration."""
    owned: Counter[str] = Counter()
    shared: dict[str, str] = {}
    for parameter in record.parameters:
        if parameter.shared_with is None:
            owned[parameter.module] += parameter.elements
        else:
            shared.setdefault(parameter.module, parameter.shared_with)
    rows: dict[RowKey, _Row] = {}
    first: dict[RowKey, tuple[int, int, int]] = {}  # entries booked before, a call before its entries, in calls' order
    ran: set[str] = set()
    for number, call in enumerate(record.calls):
        module = record.modules[call.module]
        ran.add(module.path)
        if not module.leaf and not owned[module.path]:
            continue
        key = (module.path, "", 0)
        row = rows.get(key)
        if row is None:
            row = rows[key] = _Row(module.path, module.kind, inputs=call.inputs, outputs=call.outputs)
            row.params, row.note = owned[module.path], _sharing(module, shared)
            row.is_outside = convention.leaves_only and not module.leaf
            first[key] = (call.started, 0, number)
        row.calls += 1
        if module.leaf or not convention.leaves_only:
            for quantity, formula in convention.of_calls.items():
                row.of_calls[quantity.name] = row.of_calls.get(quantity.name, 0.0) + formula(call)
    entries = zip(priced, record.row_keys(), record.entries, strict=True)
    for number, (price, key, entry) in enumerate(entries):
        if price is None:
            continue
        row = rows.get(key)
        if row is None:
            operation = record.operations[entry.operation]
            row = rows[key] = _Row(key[0], operation.name, is_module=False)
            row.inputs = tuple(t.shape for t in operation.inputs)
            row.outputs = tuple(o.tensor.shape for o in operation.outputs)
            first[key] = (number, 1, 0)
        if not row.is_module:
            row.calls += 1
        row.add(price)
    for measured in record.measurement.rows if record.measurement is not None else ():
        key = (measured.path, measured.operation, measured.ordinal)
        if key not in rows:
            rows[key] = _Row(measured.path, measured.operation, note="measured only", is_module=bool(not key[1]))
        rows[key].seconds = measured.seconds
    if record.failed_call is not None:
        failed = rows.get((record.modules[record.calls[record.failed_call].module].path, "", 0))
        if failed is not None:
            failed.ran, failed.note = False, failed.note or "failed"
    for module in record.modules:
        if module.path not in ran and module.same_as is None and owned[module.path]:
            row = _Row(module.path, module.kind, params=owned[module.path], note="not run", ran=False)
            rows[module.path, "", 0] = row
    if convention.leaves_only:
        place = {module.path: module.registered for module in record.modules if module.registered is not None}
        kept = [row for row in rows.values() if row.is_module]
        return sorted(kept, key=lambda row: place.get(row.module, len(record.modules)))
    last = (len(record.entries) + 1, 0, 0)
    return [rows[key] for key in sorted(rows, key=lambda key: first.get(key, last))]


def _sharing(module: ModuleInfo, shared: dict[str, str]) -> str:
    if module.same_as is not None:
        return f"shared with {module.same_as}"
    return f"shared with {shared[module.path]}" if module.path in shared else ""


@functools.lru_cache(maxsize=4096)
def _shapes(shapes: tuple[Shape, ...], skip_batch: bool) -> str:
    """Write shapes as `1x3x224x224`, several apart by a comma; torchstat shows the first one, without the batch."""
    if skip_batch:
        return "x".join(map(str, shapes[0][1:])) if shapes else ""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def by_layer(record: Record, convention: Convention, phase: str | None = None) -> Table:
    """Return one row a leaf module and one for each operation that ran outside of one."""
    priced = prices_of_entries(record, convention, phase)
    rows = _layer_rows(record, convention, priced)
    columns = [Column("module", "module", text=True, weight=100)]
    if not convention.leaves_only:
        columns.append(Column("kind", "kind", text=True, weight=60))
        columns.append(Column("calls", "calls", weight=10))
    columns += [
        Column("input_shape", "input shape", text=True, weight=20),
        Column("output_shape", "output shape", text=True, weight=70),
        Column("params", "params", weight=90),
    ]
    return _table(record, convention, priced, "by layer", rows, columns, phase)


def by_operation(record: Record, convention: Convention, phase: str | None = None) -> Table:
    """Return one row a kind of operation, heaviest first."""
    rows: dict[str, _Row] = {}
    priced = prices_of_entries(record, convention, phase)
    for price, entry in zip(priced, record.entries, strict=True):
        if price is None:
            continue
        name = record.operations[entry.operation].name
        row = rows.setdefault(name, _Row("", name, is_module=False))
        row.calls += 1
        row.add(price)
    weight = [quantity.name for quantity in convention.quantities]
    ordered = sorted(rows.values(), key=lambda row: [-row.amounts.get(name, 0) for name in weight])
    columns = [Column("operation", "operation", text=True, weight=100), Column("calls", "calls", weight=50)]
    return _table(record, convention, priced, "by operation", ordered, columns, phase)


def by_module(record: Record, convention: Convention, depth: int = 1, phase: str | None = None) -> Table:
    """Return one row a module down to `depth` (0: the whole model), holding all below it; rows do not overlap."""
    kinds = {module.path: module.kind for module in record.modules}
    rows: dict[str, _Row] = {}
    priced = prices_of_entries(record, convention, phase)
    for layer in _layer_rows(record, convention, priced):
        path = ".".join(layer.module.split(".")[:depth]) if depth else ""
        row = rows.setdefault(path, _Row(path, kinds.get(path, "")))
        row.join(layer)
    columns = [
        Column("module", "module", text=True, weight=100),
        Column("kind", "kind", text=True, weight=60),
        Column("params", "params", weight=90),
    ]
    return _table(record, convention, priced, f"by module to depth {depth}", list(rows.values()), columns, phase)


def _table(
    record: Record,
    convention: Convention,
    priced: Prices,
    view: str,
    rows: list[_Row],
    columns: list[Column],
    phase: str | None,
) -> Table:
    by_kind = columns[0].name == "operation"
    of_calls = () if by_kind else tuple(convention.of_calls)
    weights = {quantity.name: 80 - 5 * place for place, quantity in enumerate(convention.quantities)}
    columns = columns + [Column(q.name, q.title, q.unit, weight=30) for q in of_calls]
    columns += [Column(q.name, q.title, q.unit, weight=weights[q.name]) for q in convention.quantities]
    measured = record.measurement is not None and not by_kind
    run = record.step or f"{record.mode} mode"
    run += f", autocast {record.autocast}" if record.autocast is not None else ""
    if phase is not None:
        run = f"{phase} of the {run}" if record.step else f"{run}, {phase}"
    if measured:
        columns += [
            Column("seconds_measured", "seconds", "s", weight=65),
            Column("duration_percent", "duration[%]" if convention.exact else "duration", "%", weight=66),
        ]
    if not convention.leaves_only:
        columns += [Column(name, name, weight=1) for name in COUNTS]
        if not by_kind:
            columns.append(Column("note", "note", text=True, weight=40))
    all_seconds = sum(row.seconds for row in rows)
    cells: list[dict[str, Cell]] = []
    names = [column.name for column in columns]
    for row in rows:
        values: dict[str, Cell] = {
            "module": row.module,
            "kind": row.kind,
            "operation": row.kind,
            "calls": row.calls,
            "input_shape": _shapes(row.inputs, convention.leaves_only),
            "output_shape": _shapes(row.outputs, convention.leaves_only),
            "params": row.params,
            "seconds_measured": row.seconds,
            "duration_percent": 100 * row.seconds / all_seconds if all_seconds else 0.0,
            "note": row.note,
        }
        for quantity in of_calls:
            values[quantity.name] = row.of_calls.get(quantity.name, 0.0) if row.ran or row.operations else None
        for quantity in convention.quantities:
            values[quantity.name] = row.amount(quantity.name)
        values |= row.counts()
        cells.append({name: values[name] for name in names})
    total = totals(record, convention, priced=priced)
    remarks = notes(record, convention, total, priced, by_phase=phase is None)
    # `calls` has no total: rows of free operations, which text leaves out, would be in it.
    total |= {
        "seconds_measured": all_seconds,
        "duration_percent": 100.0 if all_seconds else 0.0,
    }
    free = frozenset(
        index
        for index, row in enumerate(rows)
        if not row.is_module
        and row.free
        and row.free == row.operations
        and not row.seconds  # of a real run: what it took is in the total
    )
    return Table(
        title=f"{record.model}, {view}, convention {convention.name}, {run}, batch {record.batch}",
        convention=convention.name,
        columns=tuple(columns),
        rows=cells,
        total={column.name: total.get(column.name, "total" if column is columns[0] else "") for column in columns},
        notes=remarks,
        exact=convention.exact,
        free_rows=free,
        operation_rows=frozenset(index for index, row in enumerate(rows) if not row.is_module),
    )


def notes(
    record: Record, convention: Convention, total: dict[str, Cell], priced: Prices, by_phase: bool = True
) -> list[str]:
    """Return the coverage line, active parameters, sums by phase, unknown operations, assumptions, remarks."""
    line = f"operations: {total['priced']} priced, {total['free']} free, {total['unknown']} unknown"
    if total["excluded"]:
        line += f", {total['excluded']} outside convention {convention.name}"
    lines = [line]
    if total["active_params"] != total["params"]:
        lines.append(f"parameters: {total['params']:,} in all, {total['active_params']:,} active for a token")
    if record.step is not None and by_phase and not convention.forward_only:
        lines.append(_phases(record, convention, priced))
    if total["unknown"]:
        missing = _unknown(record, priced)
        lines.append("unknown: " + ", ".join(f"{name} ({calls})" for name, calls in missing.items()))
    lines += [f"assumed: {assumption}" for assumption in record.assumptions]
    if record.measurement is not None:
        m = record.measurement
        wall = f"{m.wall_seconds * 1e3:.4g} ms a forward without instruments"
        lines.append(f"measured on {m.device}: median of {m.repeats} runs, {wall}")
    lines += list(convention.notes)
    if record.error:
        lines.append(f"incomplete: {record.error}")
    return lines


def _phases(record: Record, convention: Convention, priced: Prices) -> str:
    """Return the first two quantities of each phase in one line."""
    sums: dict[str, Counter[str]] = {}
    for price, entry in zip(priced, record.entries, strict=True):
        if price is not None:
            sums.setdefault(entry.phase, Counter()).update(price.amounts)
    shown = convention.quantities[:2]
    parts = (f"{phase} {', '.join(f'{found[q.name]:,} {q.title}' for q in shown)}" for phase, found in sums.items())
    return f"by phase: {'; '.join(parts)}"


def unknown(record: Record, convention: Convention) -> dict[str, int]:
    """Return {operation: calls} for the operations that have no rule, most frequent first."""
    return _unknown(record, prices_of_entries(record, convention))


def _unknown(record: Record, priced: Prices) -> dict[str, int]:
    entries = zip(record.entries, priced, strict=True)
    missing = (entry for entry, price in entries if price is not None and price.state is State.UNKNOWN)
    return dict(Counter(record.operations[entry.operation].name for entry in missing).most_common())
