"""Table -> what `json.dumps` takes, all rows and the total, numbers in full."""

from __future__ import annotations

from torchledger.views import AtLeast, Cell, Table


def table_to_json(table: Table) -> dict[str, object]:
    """Return title, convention, columns, rows, total and notes; a sum with unknown parts is `{"at_least": n}`."""
    return {
        "title": table.title,
        "convention": table.convention,
        "columns": [{"name": column.name, "unit": column.unit} for column in table.columns],
        "rows": [_values(row) for row in table.rows],
        "total": _values(table.total),
        "notes": list(table.notes),
    }


def _values(cells: dict[str, Cell]) -> dict[str, object]:
    return {name: cell_to_json(cell) for name, cell in cells.items()}


def cell_to_json(cell: Cell) -> object:
    """Return a cell as a value for `json.dumps`; a sum with unknown parts is `{"at_least": n}`."""
    return {"at_least": int(cell)} if isinstance(cell, AtLeast) else cell
