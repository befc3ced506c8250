"""What kernels keep for their backward, and hold while they run, by device: a trace on meta shows neither.

Where a device's kernel for an operation is made of several, what these hand to one another counts as `tensors`; what a
single kernel allocates and frees for itself as `scratch`, as far as it follows from the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torchledger.record import Operation, TensorInfo

Device = Literal["cpu", "cuda"]


class Passing(NamedTuple):
    """The most bytes that an operation holds while it runs, beyond what it takes, keeps and puts out."""

    tensors: int = 0
    scratch: int = 0


def kept_bytes(operation: Operation, device: Device) -> int:
    """Return the bytes that an operation which is booked whole keeps for its backward, beyond inputs and outputs."""
    rule = _KEPT.get(operation.name.removesuffix("_"))
    return rule(operation, device) if rule is not None else 0


def passing_bytes(operation: Operation, device: Device, trains: bool) -> Passing:
    """Return what an operation holds while it runs; `trains`: in a forward whose gradients will be asked for."""
    rule = _PASSING.get(operation.name.removesuffix("_"))
    return rule(operation, device, trains) if rule is not None else Passing()


# --- products ------------------------------------------------------------------------------------------------------


def _product(operation: Operation, device: Device, trains: bool) -> Passing:
    """Copies of operands that no BLAS takes as they lie: ATen's `mm` and `bmm` clone those, on either device.

    A matrix has to be contiguous along rows or columns (aten/src/ATen/native/LinearAlgebra.cpp, cuda/Blas.cpp); the
    gradient of a sum, spread out with strides of 0, is not.
    """
    matrices = [t for t in operation.inputs if len(t.shape) >= 2 and not _is_matrix(t)]
    return Passing(scratch=max((t.elements * t.item_size for t in matrices), default=0))


def _is_matrix(tensor: TensorInfo) -> bool:
    (rows, columns), (down, across) = tensor.shape[-2:], tensor.stride[-2:]
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


# --- dropout -------------------------------------------------------------------------------------------------------


def _mask(operation: Operation, device: Device) -> int:
    """A CPU multiplies by noise in the input's dtype, a GPU's fused kernel keeps a bool an element.

    aten/src/ATen/native/Dropout.cpp.
    """
    x = operation.inputs[0]
    return x.elements * (x.item_size if device == "cpu" else 1)


def _channel_mask(operation: Operation, device: Device) -> int:
    """One number a channel of each sample, in the input's dtype."""
    x = operation.inputs[0]
    return math.prod(x.shape[:2]) * x.item_size


def _unkept(kept: Callable[[Operation, Device], int]) -> Callable[[Operation, Device, bool], Passing]:
    """What would be kept for a backward lives only as long as the operation where there is none."""

    def rule(operation: Operation, device: Device, trains: bool) -> Passing:
        return Passing() if trains else Passing(tensors=kept(operation, device))

    return rule


_KEPT: dict[str, Callable[[Operation, Device], int]] = {
    "dropout": _mask,
    "feature_dropout": _channel_mask,
}
_PASSING: dict[str, Callable[[Operation, Device, bool], Passing]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    "dropout": _unkept(_mask),
    "feature_dropout": _unkept(_channel_mask),
}

# What libraries take for themselves, outside of what a model asks for.
WORKSPACES: dict[Device, dict[str, str]] = {"cpu": {}, "cuda": {}}
