"""What a call will book, told before it runs: by rules down to ATen operations, from outlines of its tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchledger.capture.leaf_rules import Unforeseen
from torchledger.capture.recorder import Recorder
from torchledger.capture.shapes import Outline
from torchledger.record import Operation


class Made(NamedTuple):
    """A storage that a call makes: bytes, and how many entries of the call are booked when it is born and dies."""

    bytes: int
    born: int
    died: int | None  # None: an output lies in it


class Foresight:
    """Notes what the operations of one call would book, in the order in which a rule goes through them.

    `storages`: what they make. `made`: what lies in each of these, or None where that is dropped at once. `given`: what
    operations were given.
    """

    __slots__ = ("_foreseen", "given", "made", "operations", "storages")

    def __init__(self, recorder: Recorder) -> None:
        self._foreseen = recorder.foreseen
        self.operations: list[Operation] = []
        self.storages: list[Made] = []
        self.made: list[Outline | None] = []
        self.given: list[Outline] = []

    def run(self, func: Any, *args: Any, **kwargs: Any) -> Outline:
        """Return what an operation returns, or the first tensor of that; what it makes beside it is dropped at once."""
        template, given = self._foreseen(func, args, kwargs)
        place = len(self.operations)
        self.operations.append(template.operation)
        self.given += given
        first: Outline | None = None
        for source, is_argument, size, stride, dtype, offset in template.outputs:
            if source is None:  # dense, by any rule
                bytes_ = size.numel() * dtype.itemsize
                if first is None:
                    first = Outline(size, stride, dtype)
                    self.made.append(first)
                    self.storages.append(Made(bytes_, place, None))
                else:
                    self.made.append(None)
                    self.storages.append(Made(bytes_, place, place + 1))
            elif first is None:
                base = given[source]
                first = base if is_argument else _view_of(base, size, stride, offset)
        if first is None:
            raise Unforeseen
        return first

    def parts(self, func: Any, *args: Any) -> tuple[Outline, ...]:
        """Return the views that an operation returns."""
        template, given = self._foreseen(func, args, {})
        views = [
            _view_of(given[source], size, stride, offset)
            for source, is_argument, size, stride, _, offset in template.outputs
            if source is not None and not is_argument
        ]
        if len(views) < len(template.outputs):
            raise Unforeseen
        self.operations.append(template.operation)
        self.given += given
        return tuple(views)


def _view_of(base: Outline, size: Any, stride: tuple[int, ...], offset: int) -> Outline:
    return Outline(size, stride, base.dtype, base.root or base, base.offset + offset)
