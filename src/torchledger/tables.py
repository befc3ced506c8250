"""The Table that people get: rows of cells, and the formats that it is written in."""

from __future__ import annotations

import dataclasses

from torchledger import views
from torchledger.errors import UserError
from torchledger.report import table_to_json, to_csv, to_markdown, to_text


class Table(views.Table):
    """Rows of cells by column name and their exact `total`; print it, or take it as text, CSV, markdown or JSON.

    `rows` holds a dict for each row; a cell is None where the convention does not count it, and an `AtLeast` where
    unknown operations are missing from it.
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

    def __str__(self) -> str:
        return self.to_text()

    @classmethod
    def of(cls, table: views.Table) -> Table:
        """Return a view's table with its formats."""
        return cls(**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
