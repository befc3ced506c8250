"""Output metadata of the commonest operations by plain arithmetic, where torch's meta kernel takes a millisecond.

A rule answers for plain cases only (contiguous tensors of one shape and dtype) and else returns None, also where the
operation would fail: the kernel runs then. Every rule is compared with its kernel in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchledger.capture.shapes import Output

Outputs = tuple[Output, ...]
_SHARED = frozenset((torch.float32, torch.float64))  # statistics have the dtype of the input


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Output:
    """Return a contiguous output in a storage of its own."""
    stride = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        stride[dim] = stride[dim + 1] * max(shape[dim + 1], 1)
    return Output(None, False, torch.Size(shape), tuple(stride), dtype, 0)


def _plain(tensor: Any) -> bool:
    # A dimension of size 1 may have any stride and still count as contiguous.
    return bool(tensor.is_contiguous()) and 1 not in tensor.shape[1:]


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *_: Any) -> Outputs | None:
    if x.dim() < 2 or not _plain(x) or x.dtype not in _SHARED or not x.numel():
        return None
    channels = (x.shape[1],)
    if any(t is not None and (tuple(t.shape) != channels or t.dtype != x.dtype) for t in (weight, bias, mean, var)):
        return None
    return fresh(x.shape, x.dtype), fresh(channels, x.dtype), fresh(channels, x.dtype)


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Outputs | None:
    shape = tuple(shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape or not _plain(x) or x.dtype not in _SHARED or not x.numel():
        return None
    if any(t is not None and (tuple(t.shape) != shape or t.dtype != x.dtype) for t in (weight, bias)):
        return None
    rows = (*x.shape[: -len(shape)], *(1,) * len(shape))
    return fresh(x.shape, x.dtype), fresh(rows, x.dtype), fresh(rows, x.dtype)


def _unary(x: Any, *_: Any, **__: Any) -> Outputs | None:
    return (fresh(x.shape, x.dtype),) if _plain(x) and x.is_floating_point() else None


def _unary_in_place(x: Any, *_: Any, **__: Any) -> Outputs | None:
    if not _plain(x) or not x.is_floating_point():
        return None
    return (Output(0, True, x.shape, x.stride(), x.dtype, 0),)


def _binary(x: Any, y: Any, **_: Any) -> Outputs | None:
    if not isinstance(y, torch.Tensor) or x.shape != y.shape or x.dtype != y.dtype or not x.is_floating_point():
        return None
    return (fresh(x.shape, x.dtype),) if _plain(x) and _plain(y) else None


def _cat(tensors: Any, dim: int = 0) -> Outputs | None:
    first = tensors[0]
    if not first.dim():
        return None
    dim %= first.dim()
    rest = (*first.shape[:dim], *first.shape[dim + 1 :])
    total = 0
    for tensor in tensors:
        shape = tensor.shape
        if tensor.dtype != first.dtype or (*shape[:dim], *shape[dim + 1 :]) != rest or not _plain(tensor):
            return None
        total += shape[dim]
    shape = (*first.shape[:dim], total, *first.shape[dim + 1 :])
    return (fresh(shape, first.dtype),) if math.prod(shape) else None


def _table() -> dict[Any, Callable[..., Outputs | None]]:
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Outputs | None]] = {
        aten.native_batch_norm.default: _batch_norm,
        aten.native_layer_norm.default: _layer_norm,
        aten.cat.default: _cat,
        aten.add.Tensor: _binary,
        aten.sub.Tensor: _binary,
        aten.mul.Tensor: _binary,
    }
    for name in ("relu", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid"):
        table[getattr(aten, name).default] = _unary
    for name in ("relu_", "silu_", "hardswish_", "hardsigmoid_", "hardtanh_", "sigmoid_"):
        table[getattr(aten, name).default] = _unary_in_place
    return table


RULES = _table()
