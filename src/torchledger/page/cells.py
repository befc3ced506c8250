"""Tables -> what stands in a page: numbers exact in JavaScript too, names that cannot move the cursor."""

from __future__ import annotations

from torchledger.errors import printable
from torchledger.report.chrome import exact
from torchledger.views import AtLeast, Cell, Column, Table


def cells(table: Table) -> dict[str, object]:
    """Return columns, rows as lists in their order, total, and which rows are free or operations outside of a leaf."""
    names = [column.name for column in table.columns]
    return {
        "columns": names,
        "rows": [[value(row[name]) for name in names] for row in table.rows],
        "total": {name: value(cell) for name, cell in table.total.items()},
        "free": sorted(table.free_rows),
        "operations": sorted(table.operation_rows),
    }


def value(cell: Cell) -> object:
    """Return a cell as in a table's JSON, but names cannot move the cursor, and large integers are text."""
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, AtLeast):
        return {"at_least": value(int(cell))}
    return exact(cell)


def quantity(column: Column, meaning: str, part_of: str | None = None) -> dict[str, object]:
    """Return what a page says of a quantity; `part_of`: another one that has it in it, which the switch offers."""
    return {
        "name": column.name,
        "title": column.title,
        "unit": column.unit,
        "meaning": meaning,
        "part_of": part_of,
    }
