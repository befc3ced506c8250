"""Several ledgers side by side, and the difference of two, row by row. Reads, prices and draws without torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torchledger import page, pricing
from torchledger.differences import Change, Costs, Row, changes, layer_rows
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
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
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
    if isinstance(names, str) or len(names) != len(ledgers) or not all(isinstance(name, str) for name in names):
        raise UserError(f"names is {names!r}, expected {len(ledgers)} texts, one for each ledger")
    if top1 is None:
        top1 = [None] * len(ledgers)
    if isinstance(top1, str) or len(top1) != len(ledgers) or not all(p is None or _is_number(p) for p in top1):
        raise UserError(f"top1 is {top1!r}, expected {len(ledgers)} numbers of percent, None where one is not known")
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

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All quantities, by the names that `by` takes."""
        totals = self.ledger.totals()
        return {name: totals[name] for name in _OF_LAYERS} | {"peak": self.memory.peak_bytes, "top1": self.top1}

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
        paths = {info.path for info in self.ledger.record.modules}
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
        parts += [f"memory on {self.models[0].memory.device}"] if "peak" in self.by else []
        lines = [*self.notes, *_remarks(self.models, "peak" in self.by)]
        return Table(", ".join(parts), "full", tuple(columns), rows, {}, lines)

    def difference(self, by: Sequence[str] | None = None, threshold: Threshold = 0) -> Table:
        """Return what the second of two ledgers changes in the first: rows added, removed and changed, with signs.

        Layers match by module path, operations outside of layers by the module that runs them and their kind. Rows
        stand in the order of the second; what is removed, at its old place. What is not shown makes one last row, so
        that each column adds up to its total.

        Args:
            by: quantities as for `compare`, without top1. Default: those of the comparison. `peak` is split by the
                modules that what is alive at the peak belongs to.
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
        found = self._changes(chosen)
        hidden = [change for change in found if not change.differs]
        unchanged, differing = len(hidden), [change for change in found if change.differs]
        free = [change for change in differing if change.free]
        differing = [change for change in differing if not change.free]
        shown = _above(differing, chosen, limit)
        small = [change for change in differing if not any(change is other for other in shown)]
        hidden += free + small
        columns = _difference_columns(chosen)
        rows = [_difference_row(change.what, change.module, change.kind, [change], chosen) for change in shown]
        notes = [_counted(differing)]
        if hidden:
            rows.append(_difference_row("other", f"({_rows(len(hidden))} not shown)", "", hidden, chosen))
            counts = ((unchanged, "unchanged"), (len(small), f"below the threshold of {_limit_text(threshold)}"))
            parts = [f"{count} {text}" for count, text in (*counts, (len(free), "free by rule")) if count]
            notes.append(f"not shown: {', '.join(parts)}")
        total = _difference_row("total", "", "", found, chosen)
        notes += [*self._peaks(chosen), *self.notes, *_remarks(self.models, "peak" in chosen)]
        outside = frozenset(place for place, change in enumerate(shown) if not change.is_module)
        return Table(self._difference_title(chosen), "full", columns, rows, total, notes, operation_rows=outside)

    def _changes(self, by: Sequence[str]) -> list[Change]:
        before, after = self.models
        return changes(before.rows(by), after.rows(by))

    def _difference_title(self, by: Sequence[str]) -> str:
        before, after = self.models
        run = before.run if before.run == after.run else f"{before.run} -> {after.run}"
        memory = f", memory on {after.memory.device}" if "peak" in by else ""
        return f"{before.name} -> {after.name}, difference by layer, convention full, {run}{memory}"

    def _peaks(self, by: Sequence[str]) -> list[str]:
        """Return where each model has its peak."""
        return [f"peak of {model.name}: {model.memory.at}" for model in self.models] if "peak" in by else []

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw macs against parameters to a .png or .svg file, each dot as large as the peak of its memory.

        Needs matplotlib (`torchledger[plot]`). Raise UserError where that cannot be.
        """
        dots = [
            scatter.Dot(
                model.name,
                int(model.cells["params"] or 0),
                int(model.cells["macs"] or 0),
                model.memory.peak_bytes,
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
        table = replace(self, by=(*_WITH_LAYERS, *(["top1"] if with_top1 else []))).table
        start = next((name for name in self.by if name not in ("params", "top1")), self.by[0])
        quantities = {_COLUMNS[name]: _MEANINGS[name] for name in _WITH_LAYERS}
        chosen = _COLUMNS[start if start in _WITH_LAYERS else DEFAULT[0]].name
        difference = self._page_of_two(limit, _limit_text(threshold)) if len(self.models) == 2 else None
        data = page.comparison.contents(table, names, quantities, chosen, difference)
        write_whole(path, page.document(page.COMPARISON, page.comparison.title(names), data))

    def _page_of_two(self, limit: Limit, text: str) -> page.Difference:
        """Return the difference with every row and quantity: the page hides and counts by itself."""
        found = self._changes(_WITH_LAYERS)
        rows = [_difference_row(change.what, change.module, change.kind, [change], _WITH_LAYERS) for change in found]
        table = Table(
            self._difference_title(_WITH_LAYERS),
            "full",
            _difference_columns(_WITH_LAYERS),
            rows,
            _difference_row("total", "", "", found, _WITH_LAYERS),
            self._peaks(_WITH_LAYERS),
            free_rows=frozenset(place for place, change in enumerate(found) if change.free),
            operation_rows=frozenset(place for place, change in enumerate(found) if not change.is_module),
        )
        replaced = [place for place, change in enumerate(found) if change.replaced]
        memory_alone = [place for place, change in enumerate(found) if change.memory_alone]
        return page.Difference(table, replaced, memory_alone, limit.amount, limit.is_share, text)

    def to_json(self) -> dict[str, object]:
        """Return every model with its name, run and all quantities, for `json.dumps`."""
        found = []
        for model in self.models:
            about = {"name": model.name, "model": model.ledger.record.model, "run": model.run, "input": model.input}
            values = {_COLUMNS[name].name: cell_to_json(model.cells[name]) for name in QUANTITIES}
            found.append({**about, **values, "unknown": model.ledger.unknown})
        return {"device": self.models[0].memory.device, "models": found}


def checked(by: Sequence[str] | str) -> tuple[str, ...]:
    """Return quantities by name, given as a sequence or with commas between. Raise UserError for one that is none."""
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


@dataclass(frozen=True)
class Limit:
    """What a change must reach to be shown: an amount, or a share of the largest one."""

    amount: float
    is_share: bool = False


def parse_threshold(value: Threshold, name: str = "threshold") -> Limit:
    """Return the limit that a number or a text names: 1% of the largest change, or 10M, 2.5GB, 1000.

    >>> parse_threshold("1%"), parse_threshold("10M").amount, parse_threshold("2KiB").amount
    (Limit(amount=0.01, is_share=True), 10000000.0, 2048.0)
    """
    if _is_number(value) and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return Limit(float(value))
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(%)|([KMGTP]?)(i?)B?)\s*", str(value), re.IGNORECASE | re.ASCII)
    if isinstance(value, str) and found is not None:
        number, percent, letter, binary = found.groups()
        if percent and float(number) <= 100:
            return Limit(float(number) / 100, is_share=True)
        if not percent and (letter or not binary):
            return Limit(float(number) * (1024 if binary else 1000) ** _POWERS[letter.upper()])
    raise UserError(f"{name} is {value!r}; write a share of the largest change, such as 1%, or an amount such as 10M")


def _above(differing: Sequence[Change], by: Sequence[str], limit: Limit) -> list[Change]:
    """Return the changes of which one quantity reaches the limit, or is not known; without a limit, all."""
    least = {}
    for name in by:
        largest = max((abs(amount) for c in differing if (amount := c.amount(name)) is not None), default=0)
        least[name] = limit.amount * largest if limit.is_share else limit.amount
    if not limit.amount:
        return list(differing)

    def reaches(change: Change) -> bool:
        amounts = {name: change.amount(name) for name in by}
        return any(amount is None or (amount != 0 and abs(amount) >= least[name]) for name, amount in amounts.items())

    return [change for change in differing if reaches(change)]


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


def _difference_row(what: str, module: str, kind: str, of: Sequence[Change], by: Sequence[str]) -> dict[str, Cell]:
    """Return one row, or the sum of several."""
    row: dict[str, Cell] = {"change": what, "module": module, "kind": kind}
    for name in by:
        amounts = [change.amount(name) for change in of]
        known = [amount for amount in amounts if amount is not None]
        column = _COLUMNS[name].name
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


def _counted(differing: Sequence[Change]) -> str:
    counts = {what: sum(change.what == what for change in differing) for what in ("added", "removed", "changed")}
    return f"rows: {', '.join(f'{count} {what}' for what, count in counts.items())}"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _limit_text(threshold: Threshold) -> str:
    text = str(threshold).strip()
    return f"{text} of the largest change" if text.endswith("%") else text


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
        for text in said:
            of.setdefault(text, []).append(model.name)
    lines = [text if len(names) == len(models) else f"{text} [{', '.join(names)}]" for text, names in of.items()]
    if with_memory:
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"
