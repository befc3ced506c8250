"""A model's parameters and buffers as a record lists them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload


class ParameterInfo(NamedTuple):
    """A parameter or buffer. `shared_with`: the path that owns the same tensor, when this one is an alias."""

    path: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    shared_with: str | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class HeldByModule(NamedTuple):
    """The parameters or buffers that one module holds, none of which is an alias.

    `layouts`: of each name shape, stride and dtype as torch has them; None where there is no tensor. `trainable`: of
    those that are there.
    """

    module: str
    names: tuple[str, ...]
    layouts: tuple[tuple[tuple[int, ...], tuple[int, ...], object] | None, ...]
    trainable: tuple[bool, ...]

    def rows(self) -> list[ParameterInfo]:
        prefix = f"{self.module}." if self.module else ""
        found = [(name, layout) for name, layout in zip(self.names, self.layouts, strict=True) if layout is not None]
        return [
            ParameterInfo(prefix + name, self.module, tuple(shape), str(dtype).removeprefix("torch."), trains)
            for (name, (shape, _, dtype)), trains in zip(found, self.trainable, strict=True)
        ]


class ParameterRows(Sequence[ParameterInfo]):
    """A model's parameters or buffers, in order: a sequence of rows.

    A model has hundreds, and most who look at a ledger want their sums alone: what modules hold is written out when
    somebody asks for a row.
    """

    def __init__(self, rows: Iterable[ParameterInfo] = ()) -> None:
        # Rows, and what comes after them and is not written out; together, for threads that read.
        self._found: tuple[list[ParameterInfo], list[HeldByModule]] = ([*rows], [])

    def append(self, row: ParameterInfo) -> None:
        self._written().append(row)

    def hold(self, held: list[HeldByModule]) -> None:
        """Append what modules hold."""
        self._found[1].extend(held)

    def clear(self) -> None:
        self._found = [], []

    def sizes(self) -> Iterator[tuple[str, int, int, str | None]]:
        """Yield modules, elements of what they hold and of those that train, and what it is an alias of; in order."""
        rows, held = self._found
        for row in rows:
            yield row.module, row.elements, row.elements if row.trainable else 0, row.shared_with
        for module, _, layouts, trainable in held:
            sizes = [math.prod(layout[0]) for layout in layouts if layout is not None]
            elements = trained = sum(sizes)
            if not all(trainable):
                trained = sum([size for size, trains in zip(sizes, trainable, strict=True) if trains])
            yield module, elements, trained, None

    def _written(self) -> list[ParameterInfo]:
        rows, held = self._found
        if held:
            rows = rows + [row for one in held for row in one.rows()]
            self._found = rows, []
        return rows

    def __reduce__(self) -> tuple[type[ParameterRows], tuple[list[ParameterInfo]]]:
        """Return what a copy is made of: rows, which have nothing of torch's."""
        return ParameterRows, (self._written(),)

    def __len__(self) -> int:
        return len(self._written())

    @overload
    def __getitem__(self, place: int) -> ParameterInfo: ...
    @overload
    def __getitem__(self, place: slice) -> list[ParameterInfo]: ...
    def __getitem__(self, place: int | slice) -> ParameterInfo | list[ParameterInfo]:
        return self._written()[place]

    def __iter__(self) -> Iterator[ParameterInfo]:
        return iter(self._written())

    def __eq__(self, other: object) -> bool:
        return self._written() == (other._written() if isinstance(other, ParameterRows) else other)

    def __repr__(self) -> str:
        return repr(self._written())
