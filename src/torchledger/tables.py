"""The Table that people get: rows of cells, and the formats that it is written in."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from torchledger import views
from torchledger.errors import UserError
from torchledger.report import table_to_json, to_csv, to_html, to_markdown, to_text
from torchledger.views import AtLeast, Cell, Column

LARGEST = 2**63 - 1  # of a whole number in a data frame


class Table(views.Table):
    """Rows of cells by column name and their exact `total`; print it, or take it as text, CSV, markdown or JSON.

    `rows` holds a dict for each row, as data-frame libraries take them; a cell is None where the convention does not
    count it, and an `AtLeast` where unknown operations are missing from it. A notebook shows the table as HTML.
    """

    def to_text(self, width: int | None = None, color: bool = False) -> str:
        """Return the table for a terminal of `width` columns (None: as wide as it gets)."""
        if width is not None and (not isinstance(width, int) or width < 1):
            raise UserError(f"width is {width!r}, expected a whole number of columns from 1")
        return to_text(self, width, color)

    def to_csv(self) -> str:
        """Return every row under the names of the quantities, without a total."""
        return to_csv(self)

    def to_markdown(self) -> str:
        """Return a GitHub table with the total in bold."""
        return to_markdown(self)

    def to_json(self) -> dict[str, object]:
        """Return columns, rows, total and notes as values for `json.dumps`."""
        return table_to_json(self)

    def to_pandas(self) -> Any:
        """Return every row as a pandas.DataFrame, under the names of the quantities, without a total.

        Where the convention does not count a quantity, or unknown operations are missing from it, the cell is missing
        (`pandas.NA`); `.attrs` has the title and the notes, which name them. Raise UserError without pandas.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise UserError("to_pandas needs pandas: pip install pandas; .rows is a list of dicts") from error
        frame = pandas.DataFrame({column.name: self._series(pandas, column) for column in self.columns})
        frame.attrs = {"title": self.title, "notes": list(self.notes)}
        return frame

    def _series(self, pandas: Any, column: Column) -> Any:
        cells: list[Cell] = [row.get(column.name) for row in self.rows]
        if column.text:
            return pandas.Series(cells, dtype="object")
        known = [None if isinstance(cell, AtLeast | str) else cell for cell in cells]
        if any(isinstance(cell, float) for cell in known):
            return pandas.Series(known, dtype="Float64")
        fits = all(cell is None or abs(int(cell)) <= LARGEST for cell in known)
        return pandas.Series(known, dtype="Int64" if fits else "object")

    def _repr_html_(self) -> str:
        return to_html(self)

    def __str__(self) -> str:
        return self.to_text()

    @classmethod
    def of(cls, table: views.Table) -> Table:
        """Return a view's table with its formats."""
        return cls(**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
