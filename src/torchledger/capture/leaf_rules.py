"""What calls of torch.nn's leaf modules come to: the ATen operations that they make in eval mode, and their arguments.

A rule is the module's forward down to these operations, without the way there, for the plain cases alone. What the
operations return is as torchledger's shape rules have it; where one of them has no answer, the module runs. In the mode
that checks (`Memo.is_checked`) each answer is compared with what a run books.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

aten = torch.ops.aten

Run = Callable[..., torch.Tensor]  # an operation and its arguments -> the tensor that it returns, or the first of them
Rule = Callable[..., torch.Tensor]  # Run, attributes of the module, input, tensors of the module -> output


class Unforeseen(Exception):
    """No rule tells what a call comes to."""


def _convolution(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
    stride, padding, dilation, groups, padding_mode = values
    if padding_mode != "zeros" or isinstance(padding, str):
        raise Unforeseen
    nothing = (0,) * len(stride)
    return run(aten.convolution.default, x, weight, bias, stride, padding, dilation, False, nothing, groups)


def _linear(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
    if x.dim() < 2 or not x.is_contiguous():
        raise Unforeseen
    if x.dim() == 2:
        turned = run(aten.t.default, weight)
        return run(aten.mm.default, x, turned) if bias is None else run(aten.addmm.default, bias, x, turned)
    rows = (x.numel() // (x.shape[-1] or 1), x.shape[-1])
    if bias is None:
        turned = run(aten.t.default, weight)
        product = run(aten.mm.default, run(aten.view.default, x, rows), turned)
    else:
        flat = run(aten.view.default, x, rows)
        product = run(aten.addmm.default, bias, flat, run(aten.t.default, weight))
    return run(aten.view.default, product, (*x.shape[:-1], product.shape[1]))


def _batch_norm(*dims: int) -> Rule:
    """Return the rule of a batch norm that takes inputs of these numbers of dimensions."""

    def rule(run: Run, values: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, _: Any) -> torch.Tensor:
        track_running_stats, momentum, eps = values
        if x.dim() not in dims or not track_running_stats or mean is None or var is None:
            raise Unforeseen
        momentum = 0.0 if momentum is None else momentum
        return run(aten.native_batch_norm.default, x, weight, bias, mean, var, False, momentum, eps)

    return rule


def _layer_norm(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
    return run(aten.native_layer_norm.default, x, values[0], weight, bias, values[1])


def _max_pool(run: Run, values: Any, x: Any) -> torch.Tensor:
    kernel, stride, padding, ceil_mode, dilation, return_indices = values
    if return_indices:
        raise Unforeseen
    kernel, stride, padding, dilation = map(_pair, (kernel, stride, padding, dilation))
    return run(aten.max_pool2d_with_indices.default, x, kernel, stride, padding, dilation, ceil_mode)


def _adaptive_pool(run: Run, values: Any, x: Any) -> torch.Tensor:
    if values[0] not in (1, (1, 1)) or x.dim() != 4:
        raise Unforeseen
    return run(aten.mean.dim, x, (-1, -2), True)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _activation(name: str) -> Rule:
    """Return the rule of a module that may write into its input, and has no more to say."""
    new, in_place = getattr(aten, name).default, getattr(aten, f"{name}_").default

    def rule(run: Run, values: Any, x: Any) -> torch.Tensor:
        return run(in_place if values[0] else new, x)

    return rule


def _relu6(run: Run, values: Any, x: Any) -> torch.Tensor:
    inplace, low, high = values
    return run(aten.hardtanh_.default if inplace else aten.hardtanh.default, x, low, high)


def _gelu(run: Run, values: Any, x: Any) -> torch.Tensor:
    return run(aten.gelu.default, x, approximate=values[0])


def _unary(name: str) -> Rule:
    func = getattr(aten, name).default
    return lambda run, values, x: run(func, x)


RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm(2, 3),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.LayerNorm: _layer_norm,
    nn.ReLU: _activation("relu"),
    nn.SiLU: _activation("silu"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.ReLU6: _relu6,
    nn.GELU: _gelu,
    nn.Sigmoid: _unary("sigmoid"),
    nn.Tanh: _unary("tanh"),
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
}
