"""What calls of torch.nn's leaf modules come to: the ATen operations that they make in eval mode, and their arguments.

A rule is the module's forward down to these operations, without the way there, for the plain cases alone. What the
operations return is as torchledger's shape rules have it; where one of them has no answer, the module runs. In the mode
that checks (`Memo.is_checked`) each answer is compared with what a run books.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchledger.capture.shapes import Outline

aten = torch.ops.aten

Run = Callable[..., Outline]  # an operation and its arguments -> what it returns, or the first of that
Rule = Callable[..., Outline]  # Run, attributes of the module, input, tensors of the module -> output


class Unforeseen(Exception):
    """No rule tells what a call comes to."""


def _convolution(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> Outline:
    stride, padding, dilation, groups, padding_mode = values
    if padding_mode != "zeros" or not all(map(_are_sizes, (stride, padding, dilation))) or type(groups) is not int:
        raise Unforeseen
    nothing = (0,) * (weight.dim() - 2)
    return run(aten.convolution.default, x, weight, bias, stride, padding, dilation, False, nothing, groups)


def linear(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> Outline:
    if x.dim() < 2 or not x.is_contiguous():
        raise Unforeseen
    if x.dim() > 2 and bias is not None and bias.dim() != 1:  # is added afterwards
        raise Unforeseen
    if x.dim() == 2:
        turned = run(aten.t.default, weight)
        return run(aten.mm.default, x, turned) if bias is None else run(aten.addmm.default, bias, x, turned)
    rows = (x.numel() // (x.shape[-1] or 1), x.shape[-1])
    if bias is None:  # a product of a batch, which torch lays flat itself
        turned = run(aten.t.default, weight)
        product = run(aten.mm.default, run(aten.view.default, x, rows), turned)
        return run(aten._unsafe_view.default, product, (*x.shape[:-1], product.shape[1]))
    flat = run(aten.view.default, x, rows)
    product = run(aten.addmm.default, bias, flat, run(aten.t.default, weight))
    return run(aten.view.default, product, (*x.shape[:-1], product.shape[1]))


def _batch_norm(*dims: int) -> Rule:
    """Return the rule of a batch norm that takes inputs of these numbers of dimensions."""

    def rule(run: Run, values: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, _: Any) -> Outline:
        track_running_stats, momentum, eps = values
        if x.dim() not in dims or not track_running_stats or mean is None or var is None:
            raise Unforeseen
        momentum = 0.0 if momentum is None else momentum
        if type(eps) is not float or type(momentum) is not float:
            raise Unforeseen
        return run(aten.native_batch_norm.default, x, weight, bias, mean, var, False, momentum, eps)

    return rule


def layer_norm(run: Run, values: Any, x: Any, weight: Any, bias: Any) -> Outline:
    shape, eps = values
    if not _are_sizes(shape) or type(eps) is not float:
        raise Unforeseen
    return run(aten.native_layer_norm.default, x, shape, weight, bias, eps)


def max_pool(run: Run, values: Any, x: Any) -> Outline:
    kernel, stride, padding, ceil_mode, dilation, return_indices = values
    if return_indices or type(ceil_mode) is not bool:
        raise Unforeseen
    kernel, padding, dilation = map(_pair, (kernel, padding, dilation))
    args = [kernel, () if stride is None else _pair(stride), padding, dilation, ceil_mode]
    for default in (False, (1, 1), (0, 0), ()):  # torch leaves these out from the end
        if args[-1] != default:
            break
        args.pop()
    return run(aten.max_pool2d_with_indices.default, x, *args)


def adaptive_pool(run: Run, values: Any, x: Any) -> Outline:
    if x.dim() != 4:
        raise Unforeseen
    wanted = values[0] if type(values[0]) is tuple else (values[0], values[0])
    if values[0] is None or len(wanted) != 2:
        raise Unforeseen
    sizes = tuple(own if size is None else size for size, own in zip(wanted, x.shape[2:], strict=True))
    if not _are_sizes(sizes):
        raise Unforeseen
    if sizes == (1, 1):
        return run(aten.mean.dim, x, (-1, -2), True)
    return run(aten._adaptive_avg_pool2d.default, x, sizes)


def _are_sizes(values: Any) -> bool:
    """Whether these are whole numbers in a tuple, and of Python's own sort."""
    return type(values) is tuple and _WHOLE.issuperset(map(type, values))


_WHOLE = frozenset({int})


def _pair(value: Any) -> tuple[int, int]:
    if type(value) is int:
        return value, value
    if not _are_sizes(value) or len(value) != 2:
        raise Unforeseen
    return value  # type: ignore[no-any-return]


def _activation(name: str) -> Rule:
    """Return the rule of a module that may write into its input, and has no more to say."""
    new, in_place = getattr(aten, name).default, getattr(aten, f"{name}_").default

    def rule(run: Run, values: Any, x: Any) -> Outline:
        return run(in_place if values[0] else new, x)

    return rule


relu = _activation("relu")


def _relu6(run: Run, values: Any, x: Any) -> Outline:
    inplace, low, high = values
    if not (type(low) in (int, float) and type(high) in (int, float) and low <= high):
        raise Unforeseen
    return run(aten.hardtanh_.default if inplace else aten.hardtanh.default, x, low, high)


def _gelu(run: Run, values: Any, x: Any) -> Outline:
    if values[0] == "none":  # as torch leaves it out
        return run(aten.gelu.default, x)
    return run(aten.gelu.default, x, approximate=values[0])


def _identity(run: Run, values: Any, x: Any) -> Outline:
    return x  # type: ignore[no-any-return]


def _dropout(run: Run, values: Any, x: Any) -> Outline:
    if not 0 <= values[0] <= 1:
        raise Unforeseen
    return x  # type: ignore[no-any-return]


def flatten(run: Run, values: Any, x: Any) -> Outline:
    start, end = values
    shape, count = x.shape, len(x.shape)
    if not (type(start) is type(end) is int and -count <= start < count and -count <= end < count):
        raise Unforeseen
    start, end = start % count, end % count
    if start >= end:  # all is as it was
        raise Unforeseen
    return run(aten.view.default, x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def avg_pool(run: Run, values: Any, x: Any) -> Outline:
    kernel, stride, padding, ceil_mode, count_include_pad, divisor_override = values
    kernel, padding = map(_pair, (kernel, padding))
    is_plain = type(ceil_mode) is type(count_include_pad) is bool and type(divisor_override) in (int, type(None))
    if not is_plain or divisor_override == 0:
        raise Unforeseen
    given = () if stride is None else _pair(stride)
    args = [kernel, given, padding, ceil_mode, count_include_pad, divisor_override]
    for default in (None, True, False, (0, 0), ()):  # torch leaves these out from the end
        if args[-1] != default:
            break
        args.pop()
    return run(aten.avg_pool2d.default, x, *args)


def _unary(name: str) -> Rule:
    func = getattr(aten, name).default
    return lambda run, values, x: run(func, x)


RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.Linear: linear,
    nn.BatchNorm1d: _batch_norm(2, 3),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.LayerNorm: layer_norm,
    nn.ReLU: relu,
    nn.SiLU: _activation("silu"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.ReLU6: _relu6,
    nn.GELU: _gelu,
    nn.Sigmoid: _unary("sigmoid"),
    nn.Tanh: _unary("tanh"),
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: avg_pool,
    nn.AdaptiveAvgPool2d: adaptive_pool,
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    nn.Flatten: flatten,
}
