"""Several ledgers side by side, and the difference of two, row by row. Reads, prices and draws without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torchledger import page, pricing
from torchledger.amounts import Limit, parse_threshold
from torchledger.differences import Change, Costs, Row, changes, layer_rows, parted
from torchledger.errors import UserError, close_matches
from torchledger.ledger import Ledger
from torchledger.memory_report import MemoryReport
from torchledger.report import cell_to_json, scatter
from torchledger.tables import Table
from torchledger.views import AtLeast, Cell, Column
from torchledger.writing import check_writable, write_whole

Threshold = str | int | float

_OF_LAYERS = ("params", "macs", "flops", "bytes_read", "bytes_written", "activation_bytes")
_WITH_LAYERS = (*_OF_LAYERS, "peak")  # what a difference can be of
QUANTITIES = (*_WITH_LAYERS, "top1")
DEFAULT = ("params", "macs", "peak")
_COLUMNS = {
    "params": Column("params", "params"),
    **{quantity.name: Column(quantity.name, quantity.title, quantity.unit) for quantity in pricing.FULL.quantities},
    "peak": Column("peak_bytes", "peak", "B"),
    "top1": Column("top1", "top-1", "%"),
}
_MEANINGS = {
    "params": "elements of parameters, each tensor once",
    **{quantity.name: quantity.meaning for quantity in pricing.FULL.quantities},
    "peak": "most bytes alive at one moment; in a difference split by the modules that what is alive then belongs to",
}
WHOLE_TREE = 1 << 30  # a depth below every module
AT_THE_PEAK = "alive at the peak"  # the kind of a row for a module that has none of its own
UNKNOWN = "?"  # a change of which a part has no rule


def compare(
    *ledgers: Ledger,
    names: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    device: str = "cuda",
    top1: Sequence[float | None] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Set ledgers side by side: one row each; for two of them also what changed, layer by layer.

    Args:
        ledgers: two or more, of `analyze` or `Ledger.load`.
        names: what each goes by. Default: the class of its model.
        by: quantities, in this order: params, macs, flops, bytes_read, bytes_written, activation_bytes, peak, top1.
            Default: params, macs, peak, and top1 where one is given.
        device: "cuda" or "cpu", whose memory `peak` is of (see `Ledger.memory`).
        top1: for each ledger the accuracy in percent that was published, None where none was.
        notes: lines that stand below the table.

    Raises:
        UserError: for an argument that is wrong.

    Examples:
        >>> from torch import nn
        >>> from torchledger import analyze
        >>> wide, narrow = (analyze(nn.Sequential(nn.Linear(4, size)), (4,)) for size in (8, 6))
        >>> compare(wide, narrow).difference("macs").total["macs_change"]  # 4 x 6 - 4 x 8
        -8
    """
    for ledger in ledgers:
        if not isinstance(ledger, Ledger):
            raise UserError(
                f"compare got {_said(ledger)}, expected ledgers: analyze(model, ...) makes one of a model, "
                "Ledger.load(path) reads one"
            )
    if len(ledgers) < 2:
        raise UserError(f"compare got {len(ledgers)} ledger{'s' * (len(ledgers) != 1)}, expected two or more")
    if names is None:
        names = [ledger.record.model for ledger in ledgers]
    if not _is_list(names, len(ledgers)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"names is {names!r}, expected {len(ledgers)} texts, one for each ledger")
    if top1 is None:
        top1 = [None] * len(ledgers)
    if not _is_list(top1, len(ledgers)) or not all(p is None or _is_percent(p) for p in top1):
        raise UserError(
            f"top1 is {top1!r}, expected {len(ledgers)} numbers of percent, from 0 to 100, None where one is not known"
        )
    if isinstance(notes, str):
        raise UserError(f"notes is {notes!r}, expected a list of texts")
    chosen = (*DEFAULT, *(["top1"] if any(p is not None for p in top1) else [])) if by is None else checked(by)
    models = tuple(
        Compared(name, ledger, ledger.memory(device), None if percent is None else float(percent))
        for name, ledger, percent in zip(_apart(names), ledgers, top1, strict=True)
    )
    return Comparison(models, chosen, tuple(notes))


@dataclass(frozen=True)
class Compared:
    """One of the models of a comparison: its name, ledger, memory, and the published accuracy in percent."""

    name: str
    ledger: Ledger
    memory: MemoryReport
    top1: float | None

    @property
    def peak(self) -> int | None:
        """Bytes at the peak; None for a run without allocations, where they are not counted."""
        return self.memory.peak_bytes if self.ledger.record.allocations else None

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All quantities, by the names that `by` takes."""
        totals = self.ledger.totals()
        return {name: totals[name] for name in _OF_LAYERS} | {"peak": self.peak, "top1": self.top1}

    @property
    def run(self) -> str:
        """How the model ran: mode or training step, autocast, batch."""
        record = self.ledger.record
        autocast = f", autocast {record.autocast}" if record.autocast is not None else ""
        return f"{record.step or f'{record.mode} mode'}{autocast}, batch {record.batch}"

    @property
    def input(self) -> str:
        """Shapes of the first call's tensors."""
        calls = self.ledger.record.calls
        return ", ".join("x".join(map(str, shape)) or "scalar" for shape in calls[0].inputs) if calls else ""

    def rows(self, by: Sequence[str]) -> list[Row]:
        """Return the rows by layer with these quantities; with `peak` also what is alive then, by module."""
        rows = layer_rows(self.ledger.by_layer(), [name for name in by if name != "peak"])
        if "peak" not in by:
            return rows
        own = {row.module: row for row in rows if row.is_module}
        paths = set(self.ledger.record.modules.paths)
        for row in rows:
            row.costs["peak"] = 0
        for held in self.memory.by_module(WHOLE_TREE).rows:
            module, size = str(held["module"]), int(held["bytes"] or 0)
            if module in own:
                own[module].costs["peak"] = size
                continue
            path, kind = (
                (module, AT_THE_PEAK) if module in paths else ("", module)
            )  # "inputs", the allocator's rounding
            costs: Costs = {**dict.fromkeys(by, 0), "peak": size}
            rows.append(Row(path, kind, is_module=False, costs=costs, memory_alone=True))
        return rows


@dataclass(frozen=True)
class Comparison:
    """Ledgers side by side: print it, or take its `table`, the `difference` of two, the picture and the page of all."""

    models: tuple[Compared, ...]
    by: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(model.name for model in self.models)}>"

    def __str__(self) -> str:
        return self.table.to_text()

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    @property
    def table(self) -> Table:
        """One row a model, with the quantities of `by`; models do not add up, so there is no total."""
        columns = [Column("model", "model", text=True, weight=100)]
        columns += [_weighed(_COLUMNS[name], 90 - place) for place, name in enumerate(self.by)]
        columns.append(Column("input", "input", text=True, weight=60))
        runs = {model.run for model in self.models}
        if len(runs) > 1:
            columns.append(Column("run", "run", text=True, weight=65))
        rows: list[dict[str, Cell]] = []
        for model in self.models:
            cells = {_COLUMNS[name].name: model.cells[name] for name in self.by}
            row: dict[str, Cell] = {"model": model.name, **cells, "input": model.input, "run": model.run}
            rows.append({column.name: row[column.name] for column in columns})
        parts = [f"{len(self.models)} models, convention full", *(runs if len(runs) == 1 else ["runs that differ"])]
        parts += [f"memory on {self.models[0].memory.device}"] if "peak" in self.by and self._some_peak else []
        lines = [*self.notes, *_remarks(self.models, "peak" in self.by)]
        return Table(", ".join(parts), "full", tuple(columns), rows, {}, lines)

    @property
    def _some_peak(self) -> bool:
        return any(model.peak is not None for model in self.models)

    @property
    def _every_peak(self) -> bool:
        return all(model.peak is not None for model in self.models)

    def difference(self, by: Sequence[str] | None = None, threshold: Threshold = 0) -> Table:
        """Return what the second of two ledgers changes in the first: rows added, removed and changed, with signs.

        Layers match by module path, operations outside of layers by the module that runs them and their kind. Rows
        stand in the order of the second; what is removed, at its old place. What is not shown makes one last row, so
        that each column adds up to its total.

        Args:
            by: quantities as for `compare`, without top1. Default: those of the comparison. `peak` is split by the
                modules that what is alive at the peak belongs to; it is not counted where one run has no allocations.
            threshold: hide rows of which each change is smaller: a text such as "1%", of the largest change of its
                quantity, or a number ("10M", 10_000_000).

        Raises:
            UserError: where there are more than two ledgers, or an argument is wrong.
        """
        if len(self.models) != 2:
            raise UserError(f"a difference is that of two ledgers, and {len(self.models)} are compared")
        chosen = tuple(name for name in self.by if name != "top1") if by is None else checked(by)
        if "top1" in chosen or not chosen:
            raise UserError("top1 has no layers: a difference is by params, macs, flops, bytes or peak")
        limit = parse_threshold(threshold)
        counted = self._counted(chosen)
        found = self._changes(counted)
        hidden = [change for change in found if not change.differs]
        unchanged, differing = len(hidden), [change for change in found if change.differs]
        free = [change for change in differing if change.free]
        differing = [change for change in differing if not change.free]
        shown, small = parted(differing, counted, limit)
        hidden += free + small
        columns = _difference_columns(chosen)
        rows = [_row_of(change, chosen, counted) for change in shown]
        notes = [_tally(differing)]
        if hidden:
            rows.append(_difference_row("other", f"({_rows(len(hidden))} not shown)", "", hidden, chosen, counted))
            counts = ((unchanged, "unchanged"), (len(small), f"below the threshold of {limit.text}"))
            parts = [f"{count} {text}" for count, text in (*counts, (len(free), "free by rule")) if count]
            notes.append(f"not shown: {', '.join(parts)}")
        total = _difference_row("total", "", "", found, chosen, counted)
        notes += [*self._peaks(chosen), *self.notes, *_remarks(self.models, "peak" in chosen)]
        outside = frozenset(place for place, change in enumerate(shown) if not change.is_module)
        return Table(self._difference_title(chosen), "full", columns, rows, total, notes, operation_rows=outside)

    def _counted(self, by: Sequence[str]) -> tuple[str, ...]:
        """Return the quantities that both runs count."""
        return tuple(name for name in by if name != "peak" or self._every_peak)

    def _changes(self, by: Sequence[str]) -> list[Change]:
        before, after = self.models
        return changes(before.rows(by), after.rows(by))

    def _difference_title(self, by: Sequence[str]) -> str:
        before, after = self.models
        run = before.run if before.run == after.run else f"{before.run} -> {after.run}"
        memory = f", memory on {after.memory.device}" if "peak" in by and self._every_peak else ""
        return f"{before.name} -> {after.name}, difference by layer, convention full, {run}{memory}"

    def _peaks(self, by: Sequence[str]) -> list[str]:
        """Return where each model has its peak."""
        told = "peak" in by and self._every_peak
        return [f"peak of {model.name}: {model.memory.at}" for model in self.models] if told else []

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw macs against parameters to a .png or .svg file, each dot as large as the peak of its memory.

        All are of one size where a run has no allocations. Needs matplotlib (`torchledger[plot]`). Raise UserError
        where that cannot be.
        """
        dots = [
            scatter.Dot(
                model.name,
                int(model.cells["params"] or 0),
                int(model.cells["macs"] or 0),
                model.peak if self._every_peak else None,
                model.top1,
            )
            for model in self.models
        ]
        runs = {model.run for model in self.models}
        run = runs.pop() if len(runs) == 1 else "runs that differ"
        scatter.draw(path, dots, f"macs against parameters, {run}", f"peak on {self.models[0].memory.device}")

    def save_html(self, path: str | os.PathLike[str], threshold: Threshold = 0) -> None:
        """Write a page to look at: table, picture, and of two ledgers the difference, with all quantities.

        One HTML file that works offline. Needs plotly and itables (`torchledger[report]`).

        Args:
            path: an existing file is replaced whole or not at all.
            threshold: as for `difference`; where the page starts.
        """
        limit = parse_threshold(threshold)
        page.check_libraries()
        check_writable(path)
        names = [model.name for model in self.models]
        with_top1 = any(model.top1 is not None for model in self.models)
        offered = _WITH_LAYERS if self._some_peak else _OF_LAYERS
        table = replace(self, by=(*offered, *(["top1"] if with_top1 else []))).table
        start = next((name for name in self.by if name in offered and name != "params"), DEFAULT[0])
        quantities = {_COLUMNS[name]: _MEANINGS[name] for name in offered}
        difference = self._page_of_two(offered, limit) if len(self.models) == 2 else None
        data = page.comparison_contents(table, names, quantities, _COLUMNS[start].name, difference)
        write_whole(path, page.document(page.COMPARISON, page.comparison_title(names), data))

    def _page_of_two(self, by: Sequence[str], limit: Limit) -> page.Difference:
        """Return the difference with every row and these quantities: the page hides and counts by itself."""
        counted = self._counted(by)
        found = self._changes(counted)
        table = Table(
            self._difference_title(by),
            "full",
            _difference_columns(by),
            [_row_of(change, by, counted) for change in found],
            _difference_row("total", "", "", found, by, counted),
            self._peaks(by),
            free_rows=frozenset(place for place, change in enumerate(found) if change.free),
            operation_rows=frozenset(place for place, change in enumerate(found) if not change.is_module),
        )
        replaced = [place for place, change in enumerate(found) if change.replaced]
        memory_alone = [place for place, change in enumerate(found) if change.memory_alone]
        return page.Difference(table, replaced, memory_alone, limit)

    def to_json(self) -> dict[str, object]:
        """Return every model with its name, run and all quantities, for `json.dumps`."""
        found = []
        for model in self.models:
            about = {"name": model.name, "model": model.ledger.record.model, "run": model.run, "input": model.input}
            values = {_COLUMNS[name].name: cell_to_json(model.cells[name]) for name in QUANTITIES}
            found.append({**about, **values, "unknown": model.ledger.unknown})
        return {"device": self.models[0].memory.device, "models": found}


def _is_list(value: object, length: int) -> bool:
    """Whether a value is a sequence of so many items, in an order of their own."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def checked(by: Sequence[str] | str) -> tuple[str, ...]:
    """Return quantities by name, given as a sequence or with commas between. Raise UserError for one that is none."""
    if not isinstance(by, Sequence):
        raise UserError(f"by is {by!r}, expected quantities: {', '.join(QUANTITIES)}")
    names = [name.strip() for name in by.split(",")] if isinstance(by, str) else list(by)
    for place, name in enumerate(names):
        known = "peak" if name == "peak_bytes" else name
        if known not in QUANTITIES:
            raise UserError(
                f"unknown quantity {name!r}.{close_matches(str(name), QUANTITIES)} "
                f"The quantities are {', '.join(QUANTITIES)}."
            )
        names[place] = known
    if not names or len(set(names)) < len(names):
        raise UserError(f"by is {','.join(names)!r}, expected quantities, each once: {', '.join(QUANTITIES)}")
    return tuple(names)


def _difference_columns(by: Sequence[str]) -> tuple[Column, ...]:
    columns = [
        Column("change", "change", text=True, weight=95),
        Column("module", "module", text=True, weight=100),
        Column("kind", "kind", text=True, weight=68),
    ]
    for place, name in enumerate(by):
        base = _COLUMNS[name]
        columns += [
            Column(f"{base.name}_before", f"{base.title} before", base.unit, weight=60 - 2 * place),
            Column(f"{base.name}_after", f"{base.title} after", base.unit, weight=61 - 2 * place),
            Column(f"{base.name}_change", f"± {base.title}", base.unit, weight=90 - place, signed=True),
        ]
    return tuple(columns)


def _row_of(change: Change, by: Sequence[str], counted: Sequence[str]) -> dict[str, Cell]:
    return _difference_row(change.what, change.module, change.kind, [change], by, counted)


def _difference_row(
    what: str, module: str, kind: str, of: Sequence[Change], by: Sequence[str], counted: Sequence[str]
) -> dict[str, Cell]:
    """Return one row, or the sum of several; quantities that are not counted have empty cells."""
    row: dict[str, Cell] = {"change": what, "module": module, "kind": kind}
    for name in by:
        column = _COLUMNS[name].name
        if name not in counted:
            row |= dict.fromkeys((f"{column}_before", f"{column}_after", f"{column}_change"))
            continue
        amounts = [change.amount(name) for change in of]
        known = [amount for amount in amounts if amount is not None]
        row[f"{column}_before"] = _summed(change.before.costs[name] for change in of if change.before is not None)
        row[f"{column}_after"] = _summed(change.after.costs[name] for change in of if change.after is not None)
        row[f"{column}_change"] = sum(known) if len(known) == len(amounts) else UNKNOWN
    return row


def _summed(cells: Iterable[int | None]) -> int | None:
    """Add up; None where there is nothing that counts, at least so much where a part of it has no rule."""
    found = [cell for cell in cells if cell is not None]
    if not found:
        return None
    return AtLeast(sum(found)) if any(isinstance(cell, AtLeast) for cell in found) else sum(found)


def _tally(differing: Sequence[Change]) -> str:
    counts = {what: sum(change.what == what for change in differing) for what in ("added", "removed", "changed")}
    return f"rows: {', '.join(f'{count} {what}' for what, count in counts.items())}"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _remarks(models: Sequence[Compared], with_memory: bool) -> list[str]:
    """Return what stands in the way of the figures: unknown operations, assumptions, a forward that failed."""
    of: dict[str, list[str]] = {}
    for model in models:
        record = model.ledger.record
        said = [f"assumed: {assumption}" for assumption in record.assumptions]
        if model.ledger.unknown:
            missing = ", ".join(f"{name} ({calls})" for name, calls in model.ledger.unknown.items())
            said.insert(0, f"unknown: {missing}")
        if record.error:
            said.append(f"incomplete: {record.error}")
        if with_memory and model.peak is None:
            said.append("peak: not counted, the run has no allocations")
        for text in said:
            of.setdefault(text, []).append(model.name)
    lines = [text if len(names) == len(models) else f"{text} [{', '.join(names)}]" for text, names in of.items()]
    if with_memory and any(model.peak is not None for model in models):
        lines += [f"not in peak: {name}, {size}" for name, size in models[0].memory.workspaces.items()]
    return lines


def _apart(names: Sequence[str]) -> list[str]:
    """Number the names that occur again: `ResNet`, `ResNet (2)`."""
    found: list[str] = []
    for name in names:
        number, told = 1, name
        while told in found:
            number += 1
            told = f"{name} ({number})"
        found.append(told)
    return found


def _weighed(column: Column, weight: int) -> Column:
    return Column(column.name, column.title, column.unit, column.text, weight)


def _is_percent(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _said(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"
