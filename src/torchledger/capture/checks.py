"""What torch's meta kernels let pass and every real kernel refuses, so that a wrong model fails here as it would there.

Found by running wrong calls on a CPU and on meta (torch 2.13); the tests hold both sides together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchledger.capture.operations import overloads


def _one_dtype(*tensors: Any) -> None:
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) > 1:
        written = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise RuntimeError(f"expected one dtype, got {written}")


def _floating(x: Any, *_: Any, **__: Any) -> None:
    if not (x.is_floating_point() or x.is_complex()):
        raise RuntimeError(f"not implemented for {str(x.dtype).removeprefix('torch.')}")


def _product(left: Any, right: Any, *_: Any, **__: Any) -> None:
    _one_dtype(left, right)


def _product_and_sum(bias: Any, left: Any, right: Any, *_: Any, **__: Any) -> None:
    _one_dtype(bias, left, right)


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> None:
    _one_dtype(x, weight, bias)
    if weight.dim() < 3 or x.dim() != weight.dim():
        raise RuntimeError(f"input has {x.dim()} dimensions and weight {weight.dim()}, expected one number from 3 up")
    if any(size < 0 for size in padding):
        raise RuntimeError(f"padding is {tuple(padding)}, expected no negative size")
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    if transposed and x.shape[1] != weight.shape[0]:
        raise RuntimeError(f"expected {weight.shape[0]} channels, got {x.shape[1]}")
    if weight.shape[0] % groups:
        raise RuntimeError(f"weight has {weight.shape[0]} filters, which {groups} groups do not divide")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise RuntimeError(f"bias has shape {tuple(bias.shape)}, expected ({outputs},)")


def _softmax(x: Any, dim: int, *_: Any) -> None:
    _floating(x)
    _index_in(dim, x)


def _index_in(dim: int, x: Any) -> None:
    span = max(x.dim(), 1)
    if not -span <= dim < span:
        raise IndexError(f"dim is {dim}, expected {-span} to {span - 1}")


def _index_select(x: Any, dim: int, index: Any) -> None:
    if index.dim() > 1:
        raise IndexError(f"index has {index.dim()} dimensions, expected at most 1")


def _index_add(x: Any, dim: int, index: Any, source: Any, **_: Any) -> None:
    _one_dtype(x, source)


def _class_indices(x: Any, target: Any, *_: Any) -> None:
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target has dtype {str(target.dtype).removeprefix('torch.')}, expected int64")


def _table() -> dict[str, Callable[..., None]]:
    table: dict[str, Callable[..., None]] = {
        "convolution.default": _convolution,
        "mm.default": _product,
        "bmm.default": _product,
        "addmm.default": _product_and_sum,
        "baddbmm.default": _product_and_sum,
        "addmm_.default": _product_and_sum,
        "baddbmm_.default": _product_and_sum,
        "_softmax.default": _softmax,
        "_log_softmax.default": _softmax,
        "index_select.default": _index_select,
        "index_add.default": _index_add,
        "index_add_.default": _index_add,
        "nll_loss_forward.default": _class_indices,
        "nll_loss2d_forward.default": _class_indices,
    }
    for name in ("native_batch_norm", "native_layer_norm", "native_group_norm", "gelu", "silu", "elu", "softplus"):
        table[f"{name}.default"] = _floating
    return table


CHECKS = overloads(_table())
