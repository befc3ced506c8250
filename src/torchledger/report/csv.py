"""Table -> CSV: every row, exact integers, no total row."""

from __future__ import annotations

import re

from torchledger.errors import printable
from torchledger.views import AtLeast, Cell, Column, Table

# What would move the cursor or turn the direction of the text where a file is shown, and what no file can hold.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
EVALUATED = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula


def to_csv(table: Table) -> str:
    """Return the table under its column names; text that a spreadsheet would evaluate gets a leading apostrophe."""
    lines = [[column.name for column in table.columns]]
    lines += [[_cell(column, row.get(column.name)) for column in table.columns] for row in table.rows]
    return "".join(",".join(map(quoted, line)) + "\n" for line in lines)


def _cell(column: Column, cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, AtLeast):
        return f">={int(cell)}" if cell else "?"
    if isinstance(cell, str):
        cell = CONTROL.sub(lambda match: printable(match[0]), cell)
        return f"'{cell}" if column.text and cell.startswith(EVALUATED) else cell
    if column.unit == "MiB":
        return f"{cell:.2f}"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def quoted(value: str) -> str:
    r"""Quote by hand: Python's own writer leaves a lone `\r` bare before 3.13."""
    return '"' + value.replace('"', '""') + '"' if any(mark in value for mark in ',"\r\n') else value
