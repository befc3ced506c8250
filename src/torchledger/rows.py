"""Sequences of a record's rows that hold no object a row: a model has thousands, and most ask for sums alone."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, overload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Unwritten(Protocol[T_co]):
    """What stands for rows until somebody asks for one."""

    def __len__(self) -> int: ...
    def rows(self) -> Sequence[T_co]:
        """Return the rows."""
        ...


class Rows(Sequence[T], Generic[T]):
    """A sequence of rows, of which some are not written out yet."""

    def __init__(self, rows: Iterable[T] = ()) -> None:
        # In order, how many rows these are, and the rows after them; together, for threads that read.
        self._found: tuple[list[list[T] | Unwritten[T]], int, list[T]] = ([], 0, [*rows])

    @property
    def latest(self) -> list[T]:
        """The rows after all that is not written out. The same list until something is held, or a row is asked for."""
        return self._found[2]

    def append(self, row: T) -> None:
        """Append a row."""
        self.latest.append(row)

    def hold(self, unwritten: Unwritten[T]) -> None:
        """Append rows that are not written out."""
        parts, count, latest = self._found
        parts += [latest, unwritten]
        self._found = parts, count + len(latest) + len(unwritten), []

    def clear(self) -> None:
        """Drop all rows."""
        self._found = [], 0, []

    def _written(self) -> list[T]:
        parts, _, latest = self._found
        if parts:
            latest = [row for part in (*parts, latest) for row in (part if isinstance(part, list) else part.rows())]
            self._found = [], 0, latest
        return latest

    def __reduce__(self) -> tuple[type[Rows[T]], tuple[list[T]]]:
        """Return what a copy is made of: rows, which have nothing of torch's."""
        return type(self), (self._written(),)

    def __len__(self) -> int:
        _, count, latest = self._found
        return count + len(latest)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        return self._written()[place]

    def __iter__(self) -> Iterator[T]:
        return iter(self._written())

    def __eq__(self, other: object) -> bool:
        return self._written() == (cast("Rows[T]", other)._written() if isinstance(other, Rows) else other)

    def __repr__(self) -> str:
        return repr(self._written())


class Columns(Sequence[T], Generic[T]):
    """A sequence of rows, named tuples, that is kept as one list a column; a row is made when somebody asks for it.

    A subclass has an attribute for each column, and names them in the order of a row's fields.
    """

    __slots__ = ()
    names: ClassVar[tuple[str, ...]]
    row: ClassVar[Callable[..., Any]]  # the class of a row
    _columns: ClassVar[Callable[[Any], tuple[list[Any], ...]]]

    def __init_subclass__(cls) -> None:
        cls._columns = operator.attrgetter(*cls.names)

    def __init__(self, rows: Iterable[T] = ()) -> None:
        for name in self.names:
            setattr(self, name, [])
        for row in rows:
            self.append(row)

    @classmethod
    def of(cls, *columns: list[Any]) -> Any:
        """Return the sequence that has these lists for columns. Raise ValueError where they are not equally long."""
        lengths = [len(column) for column in columns]
        if len(columns) != len(cls.names) or len(set(lengths)) > 1:
            raise ValueError(f"{cls.__name__} of {', '.join(map(str, lengths))} values")
        made = cls()
        for name, column in zip(cls.names, columns, strict=True):
            setattr(made, name, column)
        return made

    def append(self, row: T) -> None:
        """Append a row. Raise TypeError for what is none."""
        values = self.row(*cast("tuple[Any, ...]", row))
        for column, value in zip(type(self)._columns(self), values, strict=True):
            column.append(value)

    def clear(self) -> None:
        """Drop all rows."""
        for column in type(self)._columns(self):
            column.clear()

    def __copy__(self) -> Any:
        return self.of(*map(list, type(self)._columns(self)))

    def __len__(self) -> int:
        return len(getattr(self, self.names[0]))

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        found = [column[place] for column in type(self)._columns(self)]
        return list(self._rows(*found)) if isinstance(place, slice) else cast(T, self.row(*found))

    def __iter__(self) -> Iterator[T]:
        return self._rows(*type(self)._columns(self))

    def _rows(self, *columns: list[Any]) -> Iterator[T]:
        # Past the constructor of named tuples, which Python runs: there may be a million.
        return map(tuple.__new__, itertools.repeat(cast(Any, self.row)), zip(*columns, strict=True))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Columns):
            return type(self) is type(other) and type(self)._columns(self) == type(self)._columns(other)
        return list(self) == other

    def __repr__(self) -> str:
        return repr(list(self))
