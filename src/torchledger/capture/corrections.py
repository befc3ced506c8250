"""What torch's meta kernels return otherwise than every real kernel does, set right.

Found by running operations on a CPU and on meta (torch 2.13); the tests hold both sides together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchledger.capture.operations import overloads


def _group_norm(result: Any, x: Any, weight: Any, bias: Any, *_: Any) -> Any:
    """Take the statistics in the dtype of the weight: a float32 layer of a bfloat16 input."""
    scale = weight if weight is not None else bias
    if scale is None or scale.dtype == x.dtype:
        return result
    made, *statistics = result
    return (made, *(tensor.to(scale.dtype) for tensor in statistics))


def _group_norm_backward(result: Any, gradient: Any, x: Any, *_: Any) -> Any:
    """Return the input's gradient in the input's dtype."""
    of_input, *others = result
    return (of_input if of_input is None else of_input.to(x.dtype), *others)


def _gelu_backward(result: Any, gradient: Any, x: Any, **_: Any) -> Any:
    """Lay out what has lower precision than float32 as every pointwise operation does."""
    return torch.ops.aten.silu_backward(gradient, x)


CORRECTIONS: dict[Any, Callable[..., Any]] = overloads(
    {
        "native_group_norm.default": _group_norm,
        "native_group_norm_backward.default": _group_norm_backward,
        "gelu_backward.default": _gelu_backward,
    }
)
