"""Table -> text for a terminal, as wide as asked; also what text and markdown share: which cells show, and how."""

from __future__ import annotations

import functools
import math
import os
import random
import shutil
from io import StringIO
from typing import TYPE_CHECKING, TextIO

from rich.cells import cell_len

from torchledger.errors import printable
from torchledger.views import COUNTS, AtLeast, Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


@functools.cache
def _rich() -> tuple[type[Console], type[Text]]:
    """Import what draws: half of what an import of torchledger would take, and for printed tables alone."""
    state = random.getstate()  # rich draws random numbers while it is imported; the user's own stay as they were
    try:
        from rich.console import Console
        from rich.text import Text
    finally:
        random.setstate(state)
    return Console, Text


LETTERS = ("", "K", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
GAP = 2  # between two columns
DISPENSABLE = 70  # columns below this weight go before any text is shortened
DIRECTIONS = {"+": "yellow", "-": "cyan"}  # which people who see colours otherwise can tell apart
SHORTEST = 12  # what shortening leaves of a text column
SHORTEST_NAME = 24  # and of the weightiest one, which tells the rows apart


def to_text(table: Table, width: int | None, color: bool = False) -> str:
    """Return title, table, total and notes, no line wider than `width` (None: as wide as it gets).

    What gives way when the table is too wide, in this order, until it fits:
    1. columns of a weight below 70 are left out, lowest weight first, of equals the rightmost first;
    2. text is shortened in the middle, the widest column first, down to 12 characters (24 for the weightiest column);
    3. the other columns are left out, in the same order, but for the weightiest.
    Numbers are never cut. A note names the columns that were left out.
    """
    Console, Text = _rich()
    rows, notes = shown_rows(table)
    columns = shown_columns(table, rows)
    grid = {column: [cell_text(table, column, row.get(column.name)) for row in rows] for column in columns}
    totals = {c: cell_text(table, c, table.total.get(c.name, ""), total=True) for c in columns}
    widths = _widths(grid, totals, width)
    kind, name = (next((c for c in columns if c.name == wanted), None) for wanted in ("kind", "module"))
    if kind is not None and name is not None and kind not in widths:
        # An operation outside of a leaf module is told from its module, and from others there, by its kind alone.
        for place, index in enumerate(_shown_indices(table)):
            if index in table.operation_rows:
                grid[name][place] += f" {grid[kind][place]}"
        widths = _widths({c: cells for c, cells in grid.items() if c is not kind}, totals, width)
    missing = [printable(column.title) for column in columns if column not in widths]
    if missing:
        notes.append(f"not shown at this width: {', '.join(missing)} (--width or --format csv shows all)")
    notes += [printable(note) for note in table.notes]

    title = printable(table.title)
    table_width = _span(widths)
    summary = _torchstat_summary(table, table_width)
    console = Console(
        file=StringIO(),
        width=max(map(cell_len, [title, *notes, *summary, "─" * table_width])) if width is None else width,
        color_system="standard" if color else None,
        no_color=not color,
        force_terminal=color,
        force_jupyter=False,
        legacy_windows=False,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(Text(title, style="bold"), overflow="fold")
        rule = "─" * table_width
        console.print(Text(_line({c: heading(c) for c in widths}, widths), style="bold"), overflow="crop", no_wrap=True)
        console.print(Text(rule), overflow="crop", no_wrap=True)
        if rows:
            body = (_line({c: grid[c][place] for c in widths}, widths) for place in range(len(rows)))
            drawn = Text("\n".join(body))
            if color:
                _paint(drawn, grid, widths)
            console.print(drawn, overflow="crop", no_wrap=True)
        if table.total:
            last = _line({c: totals[c] for c in widths}, widths)
            console.print(Text(rule), overflow="crop", no_wrap=True)
            console.print(Text(last, style="bold"), overflow="crop", no_wrap=True)
        for note in notes:
            console.print(Text(note, style="dim"), overflow="fold")
        for line in summary:
            console.print(Text(line), overflow="fold")
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


def for_stream(table: Table, stream: TextIO | None) -> str:
    """Return the table for a stream: a terminal's width and colours, plain and whole where it is none.

    COLUMNS sets the width in either case; NO_COLOR keeps colours out.
    """
    on_terminal = stream is not None and stream.isatty()
    columns = os.environ.get("COLUMNS", "")
    width = shutil.get_terminal_size().columns if on_terminal or (columns.isdigit() and int(columns)) else None
    return to_text(table, width, color=on_terminal and not os.environ.get("NO_COLOR"))


def shown_rows(table: Table) -> tuple[list[dict[str, Cell]], list[str]]:
    """Return the rows that are not free by rule, and the note that counts the others."""
    rows = [table.rows[index] for index in _shown_indices(table)]
    hidden = len(table.rows) - len(rows)
    return rows, [f"{hidden} row{'s' * (hidden != 1)} of free operations not shown"] if hidden else []


def _line(cells: dict[Column, str], widths: dict[Column, int]) -> str:
    """Return one line of the table. Drawn by hand: rich's own table takes a millisecond a row."""
    parts = []
    for column, room in widths.items():
        text = _shortened(cells[column], room)
        gap = " " * (room - cell_len(text))
        parts.append(text + gap if column.text else gap + text)
    return (" " * GAP).join(parts)


def _paint(drawn: Text, grid: dict[Column, list[str]], widths: dict[Column, int]) -> None:
    """Colour changes by their direction, which the sign says as well."""
    at = 0
    for place in range(len(next(iter(grid.values())))):
        for column, room in widths.items():
            text = _shortened(grid[column][place], room)
            at += len(text) + room - cell_len(text)
            if column.signed and text.startswith(tuple(DIRECTIONS)):
                drawn.stylize(DIRECTIONS[text[0]], at - len(text), at)
            at += GAP
        at += 1 - GAP  # a line break where the last gap would be


def _shown_indices(table: Table) -> list[int]:
    return [index for index in range(len(table.rows)) if index not in table.free_rows]


def shown_columns(table: Table, rows: list[dict[str, Cell]]) -> list[Column]:
    """Leave out counts of operations (the coverage note says them), and columns in which nothing stands out."""

    def above(name: str, limit: int) -> bool:
        cells = [row.get(name) for row in rows]
        return any(isinstance(cell, int | float) and cell > limit for cell in cells)

    needed = {name: False for name in COUNTS}
    needed["unknown"] = above("unknown", 0)
    needed["calls"] = above("calls", 1)
    needed["note"] = any(row.get("note") for row in rows)
    return [column for column in table.columns if needed.get(column.name, True)]


def heading(column: Column) -> str:
    """Return the column's title, with the unit where the title lacks it."""
    title = printable(column.title)
    return f"{title} (B)" if column.unit == "B" and not title.endswith("(B)") else title


def cell_text(table: Table, column: Column, cell: Cell, total: bool = False) -> str:
    """Return a cell as text and markdown show it."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return printable(cell) or ("(root)" if column.name == "module" and not total else "")
    if isinstance(cell, AtLeast):
        return f">={_number(int(cell), column.unit, table.exact)}" if cell else "?"
    text = _number(cell, column.unit, table.exact)
    return f"+{text}" if column.signed and cell > 0 else text


def _number(value: int | float, unit: str, exact: bool) -> str:
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{value:.2f}%"
    if unit == "MiB":
        return f"{value:.2f}"
    if unit == "s":
        return _seconds(value)
    if exact:
        return f"{value:,}"
    return _scaled(value, unit)


def _scaled(value: int | float, unit: str) -> str:
    """Write four significant digits and an SI letter.

    >>> [_scaled(n, "B") for n in (0, 999, 1250, 999_999, 695_296, -1250)]
    ['0', '999 B', '1.25 KB', '1 MB', '695.3 KB', '-1.25 KB']
    """
    if value == 0:
        return "0"
    if value < 0:
        return f"-{_scaled(-value, unit)}"
    power = 0
    while power < len(LETTERS) - 1 and float(f"{value / 1000**power:.4g}") >= 1000:
        power += 1
    return f"{value / 1000**power:.4g} {LETTERS[power]}{unit}".rstrip()


def short_size(size: int) -> str:
    """Write a number of bytes with four significant digits."""
    return _scaled(size, "B")


def short_amount(value: int, unit: str = "") -> str:
    """Write an amount with four significant digits; one that unknown operations are missing from as `>=n` or `?`."""
    if isinstance(value, AtLeast):
        return f">={_scaled(int(value), unit)}" if value else "?"
    return _scaled(value, unit)


def _seconds(value: float) -> str:
    """Write three significant digits and a unit.

    >>> [_seconds(t) for t in (0.0, 0.00123, 0.9999, 2.5e-7, 1234.5)]
    ['0', '1.23 ms', '1 s', '250 ns', '1,234 s']
    """
    if value == 0:
        return "0"
    if value >= 999.5:
        return f"{value:,.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if float(f"{value * factor:.3g}") >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _span(widths: dict[Column, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _widths(grid: dict[Column, list[str]], totals: dict[Column, str], width: int | None) -> dict[Column, int]:
    """Return the columns that are shown, and how wide each is."""
    natural = {c: max(map(cell_len, [heading(c), totals[c], *cells])) for c, cells in grid.items()}
    return natural if width is None else _fit(natural, width)


def _fit(natural: dict[Column, int], width: int) -> dict[Column, int]:
    """Return the columns that stay and their widths, in the order that `to_text` promises."""
    widths = dict(natural)
    while _span(widths) > width:
        last = min(reversed(widths), key=lambda column: column.weight)
        if last.weight >= DISPENSABLE or len(widths) == 1:
            floor = {c: min(room, _shortest(c, natural)) if c.text else room for c, room in widths.items()}
            if _span(floor) <= width:
                return _narrowed(widths, floor, width)
            if len(widths) == 1:
                return {last: width}
        del widths[last]
    return widths


def _shortest(column: Column, columns: dict[Column, int]) -> int:
    return SHORTEST_NAME if column is max(columns, key=lambda other: other.weight) else SHORTEST


def _narrowed(widths: dict[Column, int], floor: dict[Column, int], width: int) -> dict[Column, int]:
    while _span(widths) > width:
        widest = max((column for column in widths if widths[column] > floor[column]), key=lambda c: widths[c])
        widths[widest] -= 1
    return widths


def _shortened(text: str, room: int) -> str:
    """Cut the middle out.

    >>> _shortened("backbone.layer4.conv1", 12)
    'backb….conv1'
    """
    if cell_len(text) <= room:
        return text
    head = tail = ""
    for mark in text:
        if cell_len(head + mark) > (room - 1) // 2:
            break
        head += mark
    for mark in reversed(text):
        if cell_len(mark + tail) > room - 1 - cell_len(head):
            break
        tail = mark + tail
    return f"{head}…{tail}"


def _torchstat_summary(table: Table, width: int) -> list[str]:
    """Return the block that torchstat prints under its table."""
    if table.convention != "torchstat" or all(column.name != "memory_mb" for column in table.columns):
        return []

    def total(name: str, form: str = "", binary: bool = False) -> str:
        cell = table.total.get(name)
        if cell is None or isinstance(cell, str):
            return "-"
        if isinstance(cell, AtLeast) and not cell:
            return "?"
        return ">=" * isinstance(cell, AtLeast) + (format(cell, form) if form else _torchstat_round(cell, binary))

    return [
        "=" * width,
        f"Total params: {total('params', ',')}",
        "-" * width,
        f"Total memory: {total('memory_mb', '.2f')}MB",
        f"Total MAdd: {total('madd')}MAdd",
        f"Total Flops: {total('flops')}Flops",
        f"Total MemR+W: {total('mem_rw_b', binary=True)}B",
    ]


def _torchstat_round(value: int | float, binary: bool) -> str:
    """Round as torchstat does: a trailing zero is lost, `1.4G` rather than `1.40G`."""
    divisor = 1024 if binary else 1000
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if value // divisor**power > 0:
            return f"{round(value / divisor**power, 2)}{letter}"
    return str(value)
