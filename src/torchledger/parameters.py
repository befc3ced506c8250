"""A model's parameters and buffers as a record lists them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from torchledger.rows import Rows


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


Layouts = tuple[tuple[tuple[int, ...], tuple[int, ...], object] | None, ...]


class HeldByModules:
    """The parameters or buffers that modules hold, none of which is an alias.

    By module: its path; names; of each name shape, stride and dtype as torch has them, None where there is no tensor;
    whether those that are there train.
    """

    __slots__ = ("layouts", "modules", "names", "trainable")

    def __init__(
        self,
        modules: list[str],
        names: list[tuple[str, ...]],
        layouts: list[Layouts],
        trainable: list[tuple[bool, ...]],
    ) -> None:
        self.modules, self.names, self.layouts, self.trainable = modules, names, layouts, trainable

    def __len__(self) -> int:
        return sum(map(len, self.trainable))

    def rows(self) -> list[ParameterInfo]:
        """Return the rows, module by module."""
        found: list[ParameterInfo] = []
        for module, names, layouts, trainable in zip(
            self.modules, self.names, self.layouts, self.trainable, strict=True
        ):
            prefix = f"{module}." if module else ""
            there = [(name, layout) for name, layout in zip(names, layouts, strict=True) if layout is not None]
            found += [
                ParameterInfo(prefix + name, module, tuple(shape), str(dtype).removeprefix("torch."), trains)
                for (name, (shape, _, dtype)), trains in zip(there, trainable, strict=True)
            ]
        return found

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Yield modules, elements of what they hold, and of those that train."""
        sizes = [[math.prod(layout[0]) for layout in layouts if layout is not None] for layouts in self.layouts]
        for module, own, trainable in zip(self.modules, sizes, self.trainable, strict=True):
            elements = trained = sum(own)
            if False in trainable:
                trained = sum([size for size, trains in zip(own, trainable, strict=True) if trains])
            yield module, elements, trained


class ParameterRows(Rows[ParameterInfo]):
    """A model's parameters or buffers, in order."""

    def sizes(self) -> Iterator[tuple[str, int, int, str | None]]:
        """Yield modules, elements of what they hold and of those that train, and what it is an alias of; in order."""
        parts, _, latest = self._found
        for part in (*parts, latest):
            if isinstance(part, HeldByModules):
                for module, elements, trained in part.sizes():
                    yield module, elements, trained, None
                continue
            for row in part if isinstance(part, list) else part.rows():
                yield row.module, row.elements, row.elements if row.trainable else 0, row.shared_with
