"""The memo: what an operation returns for given shapes, computed once by torch's meta kernel and then replayed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchledger.record import Operation

_META = torch.device("meta")


class Output(NamedTuple):
    """How to make one output: argument `source` itself, a view of it, or (source None) a fresh tensor."""

    source: int | None
    is_argument: bool
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # a view's, relative to its source


class Outline:
    """Sizes, strides and dtype of a tensor that is not there, as shape rules ask a tensor for them.

    `root`: the outline whose storage it lies in, `offset` elements from where that begins; None: its own.
    """

    __slots__ = ("dtype", "offset", "root", "shape", "strides")
    layout = torch.strided

    def __init__(
        self,
        shape: torch.Size,
        strides: tuple[int, ...],
        dtype: torch.dtype,
        root: Outline | None = None,
        offset: int = 0,
    ) -> None:
        self.shape, self.strides, self.dtype = shape, strides, dtype
        self.root, self.offset = root, offset

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        return _is_contiguous(self.shape, self.strides, memory_format)


@functools.lru_cache(maxsize=4096)  # each result is an input next
def _is_contiguous(shape: torch.Size, strides: tuple[int, ...], memory_format: torch.memory_format) -> bool:
    order = _INNERMOST_FIRST.get(memory_format)
    if order is None:
        if 0 in shape:  # whatever the strides
            return True
        order = range(len(shape) - 1, -1, -1)
    elif len(order) != len(shape):
        return False
    step = 1
    for dim in order:
        size = shape[dim]
        if size != 1:
            if strides[dim] != step:
                return False
            step *= size
    return True


_INNERMOST_FIRST: dict[torch.memory_format, Sequence[int]] = {
    torch.channels_last: (1, 3, 2, 0),
    torch.channels_last_3d: (1, 4, 3, 2, 0),
}


class Nothing(NamedTuple):
    """What an operation returns that only writes: None."""

    def __call__(self, tensors: list[torch.Tensor]) -> None:
        return None


class Holes(NamedTuple):
    """A tuple that an operation returns, with None where no tensor `is_there`, such as a gradient nobody asked for."""

    is_there: tuple[bool, ...]

    def __call__(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        made = iter(tensors)
        return tuple(next(made) if there else None for there in self.is_there)


class Template(NamedTuple):
    """A remembered operation: its record entry and how to make what it returns.

    `container` makes that of the tensors; it is None for one tensor.
    """

    operation: Operation
    outputs: tuple[Output, ...]
    container: Callable[[list[torch.Tensor]], Any] | None

    def replay(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs for these tensor arguments, without running a kernel."""
        made = []
        for source, is_argument, size, stride, dtype, offset in self.outputs:
            if source is None:
                made.append(torch.empty_strided(size, stride, dtype=dtype, device=_META))
            elif is_argument:
                made.append(tensors[source])
            else:
                base = tensors[source]
                made.append(torch.as_strided(base, size, stride, base.storage_offset() + offset))
        return made


class Memo:
    """A bounded map from a key to its template; the oldest entries go first."""

    def __init__(self, limit: int = 20_000) -> None:
        self.limit = limit
        self._templates: dict[Any, Template] = {}
        self.calls: dict[Any, Any] = {}  # of leaf modules, see leaves.py
        self.is_checked = False  # for tests: each hit runs as if there were none, and both must agree

    def __len__(self) -> int:
        return len(self._templates)

    def get(self, key: Any) -> Template | None:
        return self._templates.get(key)

    def put(self, key: Any, template: Template) -> None:
        while len(self._templates) >= self.limit:
            del self._templates[next(iter(self._templates))]
        self._templates[key] = template

    def put_call(self, key: Any, call: Any) -> None:
        while len(self.calls) >= self.limit:
            del self.calls[next(iter(self.calls))]
        self.calls[key] = call

    def clear(self) -> None:
        self._templates.clear()
        self.calls.clear()


MEMO = Memo()  # one for the process: the second network finds the first one's shapes


def classify(returned: list[torch.Tensor], tensors: list[torch.Tensor]) -> tuple[tuple[Output, ...], bool]:
    """Say how each returned tensor came about, and whether a replay makes the same.

    By identity and storage rather than by schema (`_unsafe_view` shares a storage). Fresh outputs that share one
    storage between them, another dtype's view or another layout cannot be replayed.
    """
    outputs = []
    places: dict[int, int] = {}  # by id and by storage: the first argument; lists of thousands come in
    storages: dict[int, int] = {}
    for index, given in enumerate(tensors):
        places.setdefault(id(given), index)
        storages.setdefault(_storage(given), index)
    fresh: set[int] = set()
    can_replay = True
    for tensor in returned:
        strided = tensor.layout == torch.strided
        source = places.get(id(tensor))
        is_argument, offset = source is not None, 0
        if source is None:
            storage = _storage(tensor)
            if storage in storages and storage:
                source = storages[storage]
                offset = int(tensor.storage_offset() - tensors[source].storage_offset())
                can_replay &= tensor.dtype == tensors[source].dtype and tensor.is_conj() == tensors[source].is_conj()
                can_replay &= tensor.is_neg() == tensors[source].is_neg()
            else:
                can_replay &= storage not in fresh
                fresh.add(storage)
        can_replay &= (strided and type(tensor) is torch.Tensor) or is_argument
        outputs.append(
            Output(source, is_argument, tensor.shape, tensor.stride() if strided else (), tensor.dtype, offset)
        )
    return tuple(outputs), can_replay


def _storage(tensor: torch.Tensor) -> int:
    """Return what identifies the tensor's storage, 0 where it has none of its own (sparse layouts)."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0
