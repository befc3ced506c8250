"""Table -> a piece of HTML for a notebook's output, with the numbers and the choice of columns of the text format.

No scripts, nothing from elsewhere. Colours follow the text around, for light themes and dark ones; where a viewer takes
the style away (a notebook that is not trusted), a plain table is left.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from torchledger.errors import printable
from torchledger.report.text import cell_text, heading, shown_columns, shown_rows
from torchledger.views import AtLeast, Cell, Column, Table

MOST_ROWS = 200  # more make a notebook slow, and nobody reads them there
STYLE = """
.torchledger{overflow-x:auto}
.torchledger .title{font-weight:bold;padding:.3em 0}
.torchledger table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.torchledger th,.torchledger td{padding:.15em .6em .35em;text-align:right;white-space:nowrap}
.torchledger .name{text-align:left}
.torchledger thead th{border-bottom:1px solid}
.torchledger tfoot td{border-top:1px solid;font-weight:bold}
.torchledger .share{background:linear-gradient(#0072b2,#0072b2) no-repeat content-box border-box}
.torchledger .share{background-position:right bottom -.25em}
.torchledger ul{margin:.4em 0;padding-left:1.2em;opacity:.8}
"""
LEAST_SHARE = 0.5  # percent: less is no pixel


def to_html(table: Table, most_rows: int = MOST_ROWS) -> str:
    """Return title, table and notes; of the rows the first `most_rows`, and one for the sum of the others.

    A bar under a number is its share of the column's total, in columns whose rows add up to it.
    """
    rows, notes = shown_rows(table)
    columns = shown_columns(table, rows)
    if len(rows) > most_rows:
        others = len(rows) - most_rows
        notes.append(f"the first {most_rows:,} of {len(rows):,} rows; .rows, .to_csv() and .to_pandas() have all")
        left = rows[most_rows:]
        more: dict[str, Cell] = {c.name: _sum([row.get(c.name) for row in left]) for c in columns}
        rows = [*rows[:most_rows], more | {columns[0].name: f"{others:,} more row{'s' * (others != 1)}"}]
    wholes = {column: _whole(table, column) for column in columns}
    parts = [f'<div class="torchledger tex2jax_ignore mathjax_ignore"><style>{STYLE}</style>']
    parts.append(f'<div class="title">{_escaped(table.title)}</div><table><thead><tr>')
    parts += [f'<th scope="col"{_named(column)}>{html.escape(heading(column))}</th>' for column in columns]
    parts.append("</tr></thead><tbody>")
    for row in rows:
        cells = (_cell(table, column, row.get(column.name), wholes[column]) for column in columns)
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</tbody>")
    if table.total:
        totals = ((c, cell_text(table, c, table.total.get(c.name, ""), total=True)) for c in columns)
        cells = (f"<td{_named(column)}>{html.escape(text)}</td>" for column, text in totals)
        parts.append(f"<tfoot><tr>{''.join(cells)}</tr></tfoot>")
    parts.append("</table>")
    listed = "".join(f"<li>{_escaped(note)}</li>" for note in [*notes, *table.notes])
    return "".join(parts) + (f"<ul>{listed}</ul>" if listed else "") + "</div>"


def _named(column: Column) -> str:
    return ' class="name"' if column.text else ""


def _cell(table: Table, column: Column, cell: Cell, whole: float) -> str:
    text = html.escape(cell_text(table, column, cell))
    if column.text:
        return f'<td class="name">{text}</td>'
    share = 100 * cell / whole if whole and isinstance(cell, int | float) else 0
    if share < LEAST_SHARE:
        return f"<td>{text}</td>"
    return f'<td class="share" style="background-size:{share:.1f}% .2em">{text}</td>'


def _whole(table: Table, column: Column) -> float:
    """Return a column's total where its rows, none below zero, add up to it; else 0."""
    total = table.total.get(column.name)
    cells = [cell for row in table.rows if isinstance(cell := row.get(column.name), int | float)]
    if not isinstance(total, int | float) or not total or not cells or min(cells) < 0:
        return 0
    return total if math.isclose(sum(cells), total, rel_tol=1e-9) else 0


def _sum(cells: Sequence[Cell]) -> Cell:
    """Return a sum, an `AtLeast` where a part is one, and None where nothing counts; of texts an empty one."""
    if any(isinstance(cell, str) for cell in cells):
        return ""
    counted = [cell for cell in cells if isinstance(cell, int | float)]
    if not counted:
        return None
    whole = sum(map(float, counted)) if any(isinstance(c, float) for c in counted) else sum(int(c) for c in counted)
    return AtLeast(whole) if any(isinstance(cell, AtLeast) for cell in counted) else whole


def _escaped(text: str) -> str:
    return html.escape(printable(text))
