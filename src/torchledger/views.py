"""Record + convention -> Table: by layer, by operation, by module to a depth. Every view adds up to one total."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchledger.active import active_parameters
from torchledger.errors import UserError
from torchledger.pricing.convention import EXCLUDED, UNKNOWN, Convention, Price, Quantity, State
from torchledger.record import ModuleCall, Operation, Record, RowKey, Shape


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


class _Sums:
    """What operations add up to: amounts by quantity, and how many of them are in each state."""

    def __init__(self, prices: Sequence[Price]) -> None:
        """Add up prices, of which many are one and the same."""
        self.operations = len(prices)
        self.amounts: dict[str, int] = {}
        self.states: dict[str, int] = {}
        distinct = dict(zip(map(id, prices), prices, strict=True))
        calls = Counter(map(id, prices)) if len(distinct) > 1 else dict.fromkeys(distinct, len(prices))
        for key, times in calls.items():
            price = distinct[key]
            self.states[price.state] = self.states.get(price.state, 0) + times
            for name, amount in price.amounts.items():
                self.amounts[name] = self.amounts.get(name, 0) + amount * times

    def cells(self, names: Iterable[str]) -> dict[str, Cell]:
        """Return the sums by name; None where every operation is outside the convention."""
        states = self.states
        is_counted = "excluded" in states or "priced" in states
        state = State.UNKNOWN if "unknown" in states else State.PRICED if is_counted else State.FREE
        return _cells_of(Price(state, self.amounts), names)

    def counts(self) -> dict[str, Cell]:
        found = self.states.get
        return {
            "operations": self.operations,
            "priced": found("priced", 0),
            "free": found("free", 0),
            "excluded": found("excluded", 0),
            "unknown": found("unknown", 0),
        }


def _cells_of(price: Price, names: Iterable[str]) -> dict[str, Cell]:
    """Return the amounts of a price by name; None where they are outside the convention."""
    amounts = price.amounts
    if price.state is State.UNKNOWN:
        return {name: AtLeast(amounts.get(name, 0)) for name in names}
    # What is priced but lacks a quantity is outside what the convention counts.
    missing = 0 if price.state is State.FREE else None
    return {name: amounts.get(name, missing) for name in names}


_COUNTS_OF_ONE = {state: _Sums([Price(state, {})]).counts() for state in State}


class _Row:
    """One row while it is filled: what ran in it, by price.

    `first`: a place in the order of entries, and of calls before them. `ran`: to the end. `is_outside`: of a convention
    that counts leaf modules, there for its parameters alone. `of_calls`: where the convention has any.
    """

    # A table may have 100,000 rows, of which few have another value than these.
    calls = 0
    of_calls: dict[str, float] | None = None
    note = ""
    seconds = 0.0
    is_module = ran = True
    is_outside = False

    def __init__(
        self,
        module: str,
        kind: str,
        inputs: tuple[Shape, ...] = (),
        outputs: tuple[Shape, ...] = (),
        first: int = 0,
        params: int = 0,
    ) -> None:
        self.module, self.kind, self.inputs, self.outputs = module, kind, inputs, outputs
        self.first, self.params = first, params
        self.prices: list[Price] = []

    @classmethod
    def of_operation(cls, *values: Any) -> _Row:
        """Make the row of an operation outside of a leaf module."""
        row = cls(*values)
        row.is_module = False
        return row

    def begin(self, path: str, kind: str) -> _Row:
        """Make this the row of the module at `path`, which others join."""
        self.module, self.kind, self.note = path, kind, ""
        self.is_module, self.ran, self.is_outside = True, True, False
        return self

    def join(self, other: _Row) -> None:
        self.prices += other.prices
        for name, amount in (other.of_calls or {}).items():
            self.add_of_call(name, amount)
        self.params += other.params
        self.seconds += other.seconds

    def add_of_call(self, name: str, amount: float) -> None:
        if self.of_calls is None:
            self.of_calls = {}
        self.of_calls[name] = self.of_calls.get(name, 0.0) + amount


class _Parameters:
    """Elements of parameters and buffers, each tensor once."""

    def __init__(self, record: Record) -> None:
        self.total = self.trainable = 0
        self.by_module: dict[str, int] = {}
        self.shared: dict[str, str] = {}  # by module: the path of a parameter that another module owns
        for module, elements, trained, shared_with in record.parameters.sizes():
            if shared_with is not None:
                self.shared.setdefault(module, shared_with)
                continue
            self.total += elements
            self.trainable += trained
            self.by_module[module] = self.by_module.get(module, 0) + elements
        self.buffers = sum([elements for _, elements, _, shared_with in record.buffers.sizes() if shared_with is None])


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


def totals(record: Record, convention: Convention, phase: str | None = None) -> dict[str, Cell]:
    """Return the sums of the whole ledger: parameters, the convention's quantities, operations by state."""
    return _totals(record, convention, prices_of_entries(record, convention, phase), _Parameters(record))


def _totals(record: Record, convention: Convention, priced: Prices, parameters: _Parameters) -> dict[str, Cell]:
    sums = _Sums([price for price in priced if price is not None])
    result: dict[str, Cell] = {
        "params": parameters.total,
        "trainable_params": parameters.trainable,
        "active_params": parameters.total if record.routing is None else active_parameters(record),
        "buffers": parameters.buffers,
    }
    for quantity, formula in convention.of_calls.items():
        result[quantity.name] = sum(
            formula(call) for call in record.calls if not convention.leaves_only or record.modules.leaves[call.module]
        )
    for quantity in convention.quantities:
        amount = sums.amounts.get(quantity.name, 0)
        result[quantity.name] = AtLeast(amount) if State.UNKNOWN in sums.states else amount
    return result | sums.counts()


def prices_of_entries(record: Record, convention: Convention, phase: str | None = None) -> Prices:
    """Return each entry's price, None for one of another phase than `phase`.

    What the convention leaves out for standing outside a leaf, or after the forward, is excluded. Only a forward makes
    activations.
    """
    table = prices(record, convention)
    entries = record.entries
    found: Prices = [table[operation] for operation in entries.operations]
    if convention.leaves_only:
        leaf = [record.modules.leaves[module] for module in record.calls.modules]
        of_calls = zip(found, entries.calls, strict=True)
        found = [p if leaf[call] or p is None or p.state is State.FREE else EXCLUDED for p, call in of_calls]
    if record.step is None and phase is None:
        return found
    later: dict[int, Price] = {}  # by operation
    for place, (operation, own) in enumerate(zip(entries.operations, entries.phases, strict=True)):
        if phase is not None and own != phase:
            found[place] = None
        elif own != "forward":
            price = later.get(operation)
            if price is None:
                price = later[operation] = _later(table[operation], convention)
            found[place] = price
    return found


def _later(price: Price, convention: Convention) -> Price:
    """Return the price of an operation of the backward or the optimizer."""
    if convention.forward_only:
        return price if price.state is State.FREE else EXCLUDED
    if not price.amounts.get("activation_bytes"):
        return price
    return Price(price.state, {**price.amounts, "activation_bytes": 0})


def _layer_rows(
    record: Record, convention: Convention, priced: Prices, parameters: _Parameters, is_joined: bool = False
) -> list[_Row]:
    """Return rows in order of first execution (modules that did not run last), or of registration.

    `is_joined`: what a module ran outside of leaves may be one row.
    """
    owned, of_calls = parameters.by_module, convention.of_calls
    known, calls = record.modules, record.calls
    paths, kinds, are_leaves, same_as = known.paths, known.kinds, known.leaves, known.same_as
    span = len(calls) + 1
    modules: dict[str, _Row] = {}
    leaves: list[_Row | None] = []  # of each call: the row of a leaf module
    of_each = zip(calls.modules, calls.parents, calls.started, calls.inputs, calls.outputs, strict=True)
    for number, (module, parent, started, inputs, outputs) in enumerate(of_each):
        path, leaf = paths[module], are_leaves[module]
        if not leaf and not owned.get(path):
            leaves.append(None)
            continue
        row = modules.get(path)
        if row is None:
            first, params = started * span + number, owned.get(path, 0)
            row = modules[path] = _Row(path, kinds[module], inputs, outputs, first, params)
            if convention.leaves_only and not leaf:
                row.is_outside = True
            if same_as[module] is not None or path in parameters.shared:
                row.note = f"shared with {same_as[module] or parameters.shared[path]}"
        row.calls += 1
        leaves.append(row if leaf else None)
        if of_calls and (leaf or not convention.leaves_only):
            call = ModuleCall(module, parent, started, inputs, outputs)
            for quantity, formula in of_calls.items():
                row.add_of_call(quantity.name, formula(call))
    outside = _fill(record, priced, leaves, is_joined and record.measurement is None)
    others: dict[RowKey, _Row] = {}
    for measured in record.measurement.rows if record.measurement is not None else ():
        path, name, ordinal = key = (measured.path, measured.operation, measured.ordinal)
        found = outside.get((path, name), {}).get(ordinal) if name or ordinal else modules.get(path)
        if found is None:
            found = others.setdefault(key, _Row(path, name))
            found.note, found.is_module = "measured only", not name
        found.seconds = measured.seconds
    if record.failed_call is not None:
        failed = modules.get(paths[calls.modules[record.failed_call]])
        if failed is not None:
            failed.ran, failed.note = False, failed.note or "failed"
    called = set(calls.modules)
    idle = [number for number, path in enumerate(paths) if number not in called and owned.get(path)]
    ran = {paths[number] for number in called} if idle else set()
    for number in idle:
        path = paths[number]
        if path not in ran and same_as[number] is None:
            row = others[path, "", 0] = _Row(path, kinds[number], params=owned[path])
            row.note, row.ran = "not run", False
    if convention.leaves_only:
        place = {module.path: module.registered for module in record.modules if module.registered is not None}
        kept = [row for row in (*modules.values(), *others.values()) if row.is_module]
        return sorted(kept, key=lambda row: place.get(row.module, len(record.modules)))
    rows = [*modules.values(), *(row for found in outside.values() for row in found.values())]
    rows.sort(key=operator.attrgetter("first"))
    return [*rows, *others.values()]


def _fill(
    record: Record, priced: Prices, leaves: Sequence[_Row | None], is_joined: bool
) -> dict[tuple[str, str], dict[int, _Row]]:
    """Give each entry's price to its row, see `Record.row_keys`.

    Return the rows of what ran outside of leaves, by path and operation, then by ordinal; of a path where `is_joined`.
    """
    operations, entries, span = record.operations, record.entries, len(record.calls) + 1
    outside: dict[tuple[str, str], dict[int, _Row]] = {}
    seen: dict[tuple[int, str], int] = {}
    shapes: dict[int, tuple[tuple[Shape, ...], tuple[Shape, ...]]] = {}  # of each operation: inputs and outputs
    for number, (price, made, call) in enumerate(zip(priced, entries.operations, entries.calls, strict=True)):
        row = leaves[call]
        if row is None:
            operation, ordinal = operations[made], 0
            name = "" if is_joined else operation.name
            if not is_joined:
                place = call, name
                ordinal = seen.get(place, 0)
                seen[place] = ordinal + 1
            if price is None:
                continue
            path = record.modules.paths[record.calls.modules[call]]
            rows = outside.get((path, name))
            if rows is None:
                rows = outside[path, name] = {}
            row = rows.get(ordinal)
            if row is None:
                shown = shapes.get(made)
                if shown is None:
                    shown = shapes[made] = (
                        tuple(tensor.shape for tensor in operation.inputs),
                        tuple(output.tensor.shape for output in operation.outputs),
                    )
                row = rows[ordinal] = _Row.of_operation(path, name, *shown, (number + 1) * span - 1)
            row.calls += 1
        if price is not None:
            row.prices.append(price)
    return outside


@functools.lru_cache(maxsize=4096)
def _shapes(shapes: tuple[Shape, ...]) -> str:
    """Write shapes as `1x3x224x224`, several apart by a comma."""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


_MODULE = Column("module", "module", text=True, weight=100)
_KIND = Column("kind", "kind", text=True, weight=60)
_OPERATION = Column("operation", "operation", text=True, weight=100)
_CALLS = Column("calls", "calls", weight=10)
_INPUT_SHAPE = Column("input_shape", "input shape", text=True, weight=20)
_OUTPUT_SHAPE = Column("output_shape", "output shape", text=True, weight=70)
_PARAMS = Column("params", "params", weight=90)
_SECONDS = Column("seconds_measured", "seconds", "s", weight=65)
_COUNTS = [Column(name, name, weight=1) for name in COUNTS]
_NOTE = Column("note", "note", text=True, weight=40)


def by_layer(record: Record, convention: Convention, phase: str | None = None) -> Table:
    """Return one row a leaf module and one for each operation that ran outside of one."""
    priced = prices_of_entries(record, convention, phase)
    parameters = _Parameters(record)
    rows = _layer_rows(record, convention, priced, parameters)
    if convention.leaves_only:
        columns, fill = [_MODULE, _INPUT_SHAPE, _OUTPUT_SHAPE, _PARAMS], _fill_leaf
    else:
        columns, fill = [_MODULE, _KIND, _CALLS, _INPUT_SHAPE, _OUTPUT_SHAPE, _PARAMS], _fill_layer
    return _table(record, convention, priced, parameters, "by layer", rows, columns, fill, phase)


Cells = dict[str, Cell]


def _fill_layer(row: _Row, cells: Cells) -> None:
    cells["module"] = row.module
    cells["kind"] = row.kind
    cells["calls"] = row.calls
    cells["input_shape"] = _shapes(row.inputs)
    cells["output_shape"] = _shapes(row.outputs)
    cells["params"] = row.params


def _fill_leaf(row: _Row, cells: Cells) -> None:
    """As torchstat has them: the first shape, without the batch."""
    inputs, outputs = ("x".join(map(str, shapes[0][1:])) if shapes else "" for shapes in (row.inputs, row.outputs))
    cells |= {"module": row.module, "input_shape": inputs, "output_shape": outputs, "params": row.params}


def _fill_module(row: _Row, cells: Cells) -> None:
    cells |= {"module": row.module, "kind": row.kind, "params": row.params}


def _fill_operation(row: _Row, cells: Cells) -> None:
    cells |= {"operation": row.kind, "calls": row.calls}


def by_operation(record: Record, convention: Convention, phase: str | None = None) -> Table:
    """Return one row a kind of operation, heaviest first."""
    rows: dict[str, _Row] = {}
    priced = prices_of_entries(record, convention, phase)
    for price, operation in zip(priced, record.entries.operations, strict=True):
        if price is None:
            continue
        name = record.operations[operation].name
        row = rows.get(name)
        if row is None:
            row = rows[name] = _Row.of_operation("", name)
        row.calls += 1
        row.prices.append(price)
    weight = [quantity.name for quantity in convention.quantities]
    sums = {name: _Sums(row.prices).amounts for name, row in rows.items()}
    ordered = sorted(rows.values(), key=lambda row: [-sums[row.kind].get(name, 0) for name in weight])
    columns, fill = [_OPERATION, Column("calls", "calls", weight=50)], _fill_operation
    return _table(record, convention, priced, _Parameters(record), "by operation", ordered, columns, fill, phase)


def by_module(record: Record, convention: Convention, depth: int = 1, phase: str | None = None) -> Table:
    """Return one row a module down to `depth` (0: the whole model), holding all below it; rows do not overlap."""
    kinds = dict(zip(record.modules.paths, record.modules.kinds, strict=True))
    rows: dict[str, _Row] = {}
    priced = prices_of_entries(record, convention, phase)
    parameters = _Parameters(record)
    for layer in _layer_rows(record, convention, priced, parameters, is_joined=True):
        path = layer.module
        if path.count(".") >= depth:
            path = ".".join(path.split(".", depth)[:depth])
        row = rows.get(path)
        if row is None:
            rows[path] = layer.begin(path, kinds.get(path, ""))
        else:
            row.join(layer)
    view, columns = f"by module to depth {depth}", [_MODULE, _KIND, _PARAMS]
    found = list(rows.values())
    return _table(record, convention, priced, parameters, view, found, columns, _fill_module, phase)


def _table(
    record: Record,
    convention: Convention,
    priced: Prices,
    parameters: _Parameters,
    view: str,
    rows: list[_Row],
    columns: list[Column],
    fill: Callable[[_Row, Cells], None],
    phase: str | None,
) -> Table:
    """Return the table of `rows`, whose first `columns` hold what `fill` puts there."""
    by_kind, has_counts = columns[0] is _OPERATION, not convention.leaves_only
    has_note = has_counts and not by_kind
    of_calls = () if by_kind else tuple(convention.of_calls)
    columns = columns + [Column(q.name, q.title, q.unit, weight=30) for q in of_calls]
    columns += _quantity_columns(convention.quantities)
    measured = record.measurement is not None and not by_kind
    run = record.step or f"{record.mode} mode"
    run += f", autocast {record.autocast}" if record.autocast is not None else ""
    if phase is not None:
        run = f"{phase} of the {run}" if record.step else f"{run}, {phase}"
    if measured:
        share = "duration[%]" if convention.exact else "duration"
        columns += [_SECONDS, Column("duration_percent", share, "%", weight=66)]
    if has_counts:
        columns += _COUNTS
    if has_note:
        columns.append(_NOTE)
    all_seconds = sum(row.seconds for row in rows)
    quantities = [quantity.name for quantity in convention.quantities]
    blank: Cells = {column.name: "" if column.text else None for column in columns}
    nothing = blank | (_Sums([]).counts() if has_counts else {})
    # By the prices in a row, which many have the same of: the cells that follow from them, and whether all are free.
    known: dict[int | tuple[int, ...], tuple[Cells, bool]] = {}
    of_rows: list[Cells] = []
    free: list[int] = []
    for index, row in enumerate(rows):
        prices = row.prices
        key = id(prices[0]) if len(prices) == 1 else tuple(map(id, prices))
        found = known.get(key)
        if found is None:
            if len(prices) == 1:  # as most
                cells_of = _cells_of(prices[0], quantities)
                counts = _COUNTS_OF_ONE[prices[0].state] if has_counts else {}
                is_free = prices[0].state is State.FREE
            else:
                sums = _Sums(prices)
                cells_of = sums.cells(quantities)
                counts = sums.counts() if has_counts else {}
                is_free = list(sums.states) == ["free"]
            found = known[key] = {**blank, **cells_of, **counts}, is_free
        by_price, is_free = found
        has_run = row.ran or bool(prices)
        values = (by_price if has_run and not row.is_outside else nothing).copy()
        fill(row, values)
        if of_calls and has_run:
            for quantity in of_calls:
                values[quantity.name] = (row.of_calls or {}).get(quantity.name, 0.0)
        if measured:
            values["seconds_measured"] = row.seconds
            values["duration_percent"] = 100 * row.seconds / all_seconds if all_seconds else 0.0
        if row.note and has_note:
            values["note"] = row.note
        of_rows.append(values)
        if is_free and not row.is_module and not row.seconds:  # of a real run: what it took is in the total
            free.append(index)
    total = _totals(record, convention, priced, parameters)
    remarks = notes(record, convention, total, priced, by_phase=phase is None)
    # `calls` has no total: rows of free operations, which text leaves out, would be in it.
    total |= {
        "seconds_measured": all_seconds,
        "duration_percent": 100.0 if all_seconds else 0.0,
    }
    return Table(
        title=f"{record.model}, {view}, convention {convention.name}, {run}, batch {record.batch}",
        convention=convention.name,
        columns=tuple(columns),
        rows=of_rows,
        total={column.name: total.get(column.name, "total" if column is columns[0] else "") for column in columns},
        notes=remarks,
        exact=convention.exact,
        free_rows=frozenset(free),
        operation_rows=frozenset([index for index, row in enumerate(rows) if not row.is_module]),
    )


@functools.lru_cache(maxsize=16)
def _quantity_columns(quantities: tuple[Quantity, ...]) -> list[Column]:
    return [Column(q.name, q.title, q.unit, weight=80 - 5 * place) for place, q in enumerate(quantities)]


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
    found: dict[str, list[Price]] = {}
    for price, phase in zip(priced, record.entries.phases, strict=True):
        if price is not None:
            found.setdefault(phase, []).append(price)
    sums = {phase: _Sums(prices).amounts for phase, prices in found.items()}
    shown = convention.quantities[:2]
    parts = (f"{phase} {', '.join(f'{of.get(q.name, 0):,} {q.title}' for q in shown)}" for phase, of in sums.items())
    return f"by phase: {'; '.join(parts)}"


def unknown(record: Record, convention: Convention) -> dict[str, int]:
    """Return {operation: calls} for the operations that have no rule, most frequent first."""
    return _unknown(record, prices_of_entries(record, convention))


def _unknown(record: Record, priced: Prices) -> dict[str, int]:
    entries = zip(record.entries.operations, priced, strict=True)
    missing = (operation for operation, price in entries if price is not None and price.state is State.UNKNOWN)
    return dict(Counter(record.operations[operation].name for operation in missing).most_common())
