"""The Ledger: a record with the methods that people call. Reads, prices and draws without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from torchledger import pricing, views
from torchledger.errors import UserError
from torchledger.record import Phase, Record, read_record
from torchledger.report import table_to_json, to_csv, to_markdown, to_text
from torchledger.views import Cell

PHASES = get_args(Phase)


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


class Ledger:
    """What one run of a model did, entry by entry; every number is computed from it when it is asked for."""

    def __init__(self, record: Record, rules: Mapping[str, pricing.Rule | Callable[..., Any]] | None = None) -> None:
        """Keep a record, and rules of custom operations for this ledger alone, which are not saved with it."""
        self.record = record
        self._rules = pricing.checked_rules(rules)
        self._priced: pricing.Priced = {}

    def __reduce__(self) -> tuple[type[Ledger], tuple[Record, dict[str, Any]]]:
        """Return what pickle needs: a worker process may hand the ledger on."""
        return type(self), (self.record, dict(self._rules))

    def __repr__(self) -> str:
        record = self.record
        return f"<Ledger of {record.model}: {len(record.entries)} operations, {record.mode} mode, batch {record.batch}>"

    @property
    def unknown(self) -> dict[str, int]:
        """Return {operation: calls} for the operations that have no rule, most frequent first."""
        return views.unknown(self.record, self._convention("full"))

    @property
    def assumptions(self) -> list[str]:
        """Return what the capture took for granted."""
        return list(self.record.assumptions)

    def totals(self, convention: str = "full", phase: str | None = None) -> dict[str, Cell]:
        """Return the sums of the whole ledger, by name: parameters, the convention's quantities, operations by state.

        `phase`: only the operations of "forward", "backward" or "optimizer". A sum that unknown operations are missing
        from is an `AtLeast`, an int that prints as `>=n`.
        """
        return views.totals(self.record, self._convention(convention), _checked(phase))

    def by_layer(self, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a leaf module, and one for each operation that ran outside of one; `phase` as in `totals`."""
        return _table(views.by_layer(self.record, self._convention(convention), _checked(phase)))

    def by_operation(self, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a kind of operation, heaviest first."""
        return _table(views.by_operation(self.record, self._convention(convention), _checked(phase)))

    def by_module(self, depth: int = 1, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a module of the tree down to `depth` (0: the whole model), with all that ran below it."""
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise UserError(f"depth is {depth!r}, expected a whole number from 0")
        return _table(views.by_module(self.record, self._convention(convention), depth, _checked(phase)))

    def _convention(self, name: str) -> pricing.Convention:
        return pricing.convention(name, self._rules, self._priced)

    def to_json(self) -> dict[str, object]:
        """Return the whole ledger as values for `json.dumps`; `Ledger.from_json` is its inverse."""
        return self.record.to_json()

    @classmethod
    def from_json(cls, data: object, source: str = "the data") -> Ledger:
        """Build a ledger from what `to_json` gave. Raise UserError for anything else, or for a newer schema."""
        return cls(Record.from_json(data, source))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger as JSON. An existing file is replaced whole or not at all."""
        write_whole(path, json.dumps(self.to_json(), separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a saved ledger. Raise UserError where the file is missing, is no ledger, is cut off or is newer."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{os.fspath(path)!r} is no ledger: it is not text ({error.reason})") from error
        except OSError as error:
            raise UserError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
        except (TypeError, ValueError) as error:  # no path at all, or one with a null in it
            raise UserError(f"{path!r} is no path of a file: {error}") from error
        return cls(read_record(text, repr(os.fspath(path))))


class ForwardError(Exception):
    """The model's own forward failed: says where and what would fit. `ledger` holds what ran before."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger

    def __reduce__(self) -> tuple[type[ForwardError], tuple[str, Ledger]]:
        """Return what pickle needs: a worker process may hand the error on."""
        return type(self), (str(self), self.ledger)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return where `path` leads. Raise UserError where that is a folder, or its folder is missing."""
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays a link: what it points to is replaced
    except (TypeError, ValueError) as error:
        raise UserError(f"{path!r} is no path of a file: {error}") from error
    shown = repr(os.fspath(path))
    try:
        if not target.parent.is_dir():
            raise UserError(f"cannot write {shown}: there is no folder {str(target.parent)!r}; make it first")
        if target.is_dir():
            raise UserError(f"cannot write {shown}: it is a folder; name a file in it")
        target.exists()
    except OSError as error:  # a name that is too long, for one
        raise UserError(f"cannot write {shown}: {error.strerror}") from error
    return target


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` so that a file there is replaced whole or stays as it was.

    Raise UserError where the folder is missing or cannot be written to.
    """
    target = check_writable(path)
    shown = repr(os.fspath(path))
    temporary = None
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8", errors="replace")  # a device or a pipe, such as /dev/stdout
            return
        name = f".{target.name[:100]}.{secrets.token_hex(4)}.tmp"
        descriptor = os.open(target.parent / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        temporary = target.parent / name
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {shown}: {error.strerror}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _checked(phase: str | None) -> str | None:
    if phase is not None and phase not in PHASES:
        raise UserError(f"phase is {phase!r}; the phases are {', '.join(PHASES)}")
    return phase


def _table(table: views.Table) -> Table:
    return Table(**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
