"""What a page has in it: the cells of the tables, what repeats, and the lives of storages, for `json.dumps`."""

from __future__ import annotations

import dataclasses
import itertools

from torchledger import __version__
from torchledger.errors import printable
from torchledger.memory.timeline import Timeline
from torchledger.memory_report import MemoryReport
from torchledger.page.cells import cells, quantity
from torchledger.page.folds import folds
from torchledger.pricing import Convention
from torchledger.record import Record
from torchledger.report.axis import SUMS
from torchledger.report.picture import COLOURS
from torchledger.views import AtLeast, Cell, Column, Table

PARAMS = Column("params", "params", weight=90)
MOVED = Column("bytes", "bytes", "B", weight=72)
SECONDS = Column("seconds_measured", "seconds", "s", weight=65)


def ledger_contents(
    record: Record, convention: Convention, layers: Table, operations: Table, memory: MemoryReport | None
) -> dict[str, object]:
    """Return all that the page shows; cells are those of the tables, exactly.

    `layers`, `operations`: of this record under this convention. `memory`: None for a run without allocations.
    """
    kinds = dict(zip(record.modules.paths, record.modules.kinds, strict=True))
    folded, named, times = folds(layers, kinds)
    inner = {module.path: module.kind for module in record.modules if not module.leaf}
    return {
        "format": "torchledger page",
        "version": __version__,
        "model": printable(record.model),
        "run": _run(record, convention),
        "inputs": [printable(text) for text in record.inputs],
        "convention": convention.name,
        "summary": convention.summary,
        "exact": convention.exact,
        "quantities": _quantities(convention, layers),
        "layers": cells(_with_moved(layers)),
        "operations": cells(_with_moved(operations)),
        "folds": [[printable(fold.path), list(fold.rows)] for fold in folded],
        "kinds": {printable(path): printable(kind) for path, kind in (inner | named).items()},
        "times": {printable(path): count for path, count in times.items()},
        "unknown": {printable(name): calls for name, calls in _unknown(operations).items()},
        "assumptions": [printable(text) for text in record.assumptions],
        "error": record.error and printable(record.error),
        "notes": [printable(note) for note in layers.notes if not note.startswith(("unknown:", "assumed:"))],
        "memory": None if memory is None else _memory(record, memory),
    }


def _run(record: Record, convention: Convention) -> str:
    parts = [record.step or f"{record.mode} mode", f"batch {record.batch}", f"convention {convention.name}"]
    if record.autocast is not None:
        parts.insert(1, f"autocast {record.autocast}")
    return printable(", ".join([*parts, f"torch {record.torch_version}"]))


def _quantities(convention: Convention, layers: Table) -> list[dict[str, object]]:
    """Return name, title, unit, meaning; `part_of` where another quantity has it in it, which the switch offers."""
    parts = {part: whole for whole, names in SUMS.items() for part in names}
    counted = [*convention.of_calls, *convention.quantities]
    found = [quantity(PARAMS, "elements of parameters, each tensor once")]
    for q in counted:
        found.append(quantity(Column(q.name, q.title, q.unit), q.meaning, parts.get(q.name)))
        if q.name == SUMS["bytes"][-1]:
            found.append(quantity(MOVED, "read + written: what an unfused operation must move"))
    if any(column.name == SECONDS.name for column in layers.columns):
        found.append(quantity(SECONDS, "median time of the row's own operations in a real run on one machine"))
    return found


def _with_moved(table: Table) -> Table:
    """Return a table that has what is read and written also as one column."""
    if not all(name in [column.name for column in table.columns] for name in SUMS["bytes"]):
        return table
    rows = [row | {MOVED.name: _moved(row)} for row in table.rows]
    total = table.total | {MOVED.name: _moved(table.total)}
    return dataclasses.replace(table, columns=(*table.columns, MOVED), rows=rows, total=total)


def _moved(row: dict[str, Cell]) -> Cell:
    parts = [row[name] for name in SUMS["bytes"]]
    if all(part is None for part in parts):
        return None
    added = sum(part for part in parts if isinstance(part, int))
    return AtLeast(added) if any(isinstance(part, AtLeast) for part in parts) else added


def _unknown(operations: Table) -> dict[str, int]:
    counts = ((str(row["operation"]), row.get("unknown")) for row in operations.rows)
    found = {name: count for name, count in counts if isinstance(count, int) and count}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _memory(record: Record, memory: MemoryReport) -> dict[str, object]:
    """Return the life of each storage, the bytes that the allocator hands out at each moment, and what runs then."""
    blocks = Timeline(record, memory.form).blocks
    categories = list(memory.timeline)
    modules = [printable(record.modules.paths[module]) for module in record.calls.modules]
    paths: dict[str, int] = {}
    lives = [
        [
            block.bytes,
            block.born,
            block.died,
            categories.index(block.category),
            paths.setdefault(printable(block.module), len(paths)),
            -1 if block.entry is None else block.entry,
        ]
        for block in blocks
    ]
    at = [paths.setdefault(modules[call], len(paths)) for call in record.entries.calls]
    return {
        "device": memory.device,
        "allocator": memory.allocator,
        "peak": memory.peak,
        "reserved_bytes": memory.reserved_bytes,
        "live": memory.live,
        "categories": categories,
        "colours": [COLOURS[name] for name in categories],
        "blocks": lives,
        "modules": list(paths),
        "operations": [printable(operation.name) for operation in record.operations],
        "entries": list(record.entries.operations),
        "at": at,
        "phases": _phases(record),
        "notes": [printable(note) for note in memory.notes() if not note.startswith(("assumed:", "incomplete:"))],
    }


def _phases(record: Record) -> list[list[object]]:
    """Return where each stretch of one phase begins; the loss is one, and the moment after all operations."""
    names: list[str] = [*record.entries.phases]
    for place in range(len(names) if record.loss_at is None else record.loss_at, len(names)):
        names[place] = "loss" if names[place] == "forward" else names[place]
    place = 0
    found: list[list[object]] = []
    for name, stretch in itertools.groupby([*names, "end"]):
        found.append([place, name])
        place += sum(1 for _ in stretch)
    return found
