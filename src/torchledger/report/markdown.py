"""Table -> a GitHub pipe table, with the numbers and the choice of rows and columns of the text format."""

from __future__ import annotations

import re

from torchledger.errors import printable
from torchledger.report.text import cell_text, heading, shown_columns, shown_rows
from torchledger.views import Table


def to_markdown(table: Table) -> str:
    """Return title, table (total in bold) and notes as a list; names and notes cannot open markup of their own."""
    rows, hidden = shown_rows(table)
    columns = shown_columns(table, rows)
    body = [[_escaped(cell_text(table, column, row.get(column.name))) for column in columns] for row in rows]
    total = [_escaped(cell_text(table, column, table.total.get(column.name, ""), total=True)) for column in columns]
    lines = [
        [_escaped(heading(column)) for column in columns],
        [":---" if column.text else "---:" for column in columns],
        *body,
        *([[f"**{cell}**" if cell else "" for cell in total]] if table.total else []),
    ]
    drawn = [f"### {_escaped(printable(table.title))}", ""]
    drawn += ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {_escaped(printable(note))}" for note in [*hidden, *table.notes]]
    return "\n".join([*drawn, *([""] if notes else []), *notes]) + "\n"


def _escaped(text: str) -> str:
    """Return text that renders as itself, in a table cell too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
