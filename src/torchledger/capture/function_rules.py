"""What calls of torch's functions come to in inference: the ATen operations that they make, and their arguments.

As leaf_rules.py for modules. A rule has the parameters of its function, with outlines for tensors; what it is not
written for raises, and the function runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from torchledger.capture import leaf_rules
from torchledger.capture.foresight import Foresight
from torchledger.capture.leaf_rules import Unforeseen
from torchledger.capture.shapes import Outline

aten = torch.ops.aten
Rule = Callable[..., "Outline | tuple[Outline, ...]"]  # what notes operations, a function's arguments -> its result


def _binary(func: Any) -> Rule:
    def rule(ahead: Foresight, x: Any, y: Any) -> Outline:
        if type(x) is not Outline or type(y) not in (Outline, int, float):
            raise Unforeseen
        return ahead.run(func, x, y)

    return rule


def _unary(func: Any) -> Rule:
    return lambda ahead, x: ahead.run(func, x)


def _cat(ahead: Foresight, tensors: Any, dim: int = 0) -> Outline:
    return ahead.run(aten.cat.default, list(tensors), *([dim] if dim else []))


def _relu(ahead: Foresight, x: Any, inplace: bool = False) -> Outline:
    return leaf_rules.relu(ahead.run, (inplace,), x)


def _flatten(ahead: Foresight, x: Any, start_dim: int = 0, end_dim: int = -1) -> Outline:
    return leaf_rules.flatten(ahead.run, (start_dim, end_dim), x)


def _sizes(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes or dimensions that were given one by one, or in one tuple or list."""
    listed = values[0] if len(values) == 1 and type(values[0]) in (tuple, list) else values
    if not all(type(value) is int for value in listed):
        raise Unforeseen
    return tuple(listed)


def _view(ahead: Foresight, x: Any, *size: Any) -> Outline:
    return ahead.run(aten.view.default, x, _sizes(size))


def _reshape(ahead: Foresight, x: Any, *shape: Any) -> Outline:
    if not x.is_contiguous():  # a view or a copy, by the strides; of what is contiguous always a view
        raise Unforeseen
    return ahead.run(aten.view.default, x, _sizes(shape))


def _permute(ahead: Foresight, x: Any, *dims: Any) -> Outline:
    return ahead.run(aten.permute.default, x, _sizes(dims))


def _transpose(ahead: Foresight, x: Any, dim0: int, dim1: int) -> Outline:
    return ahead.run(aten.transpose.int, x, dim0, dim1)


def _contiguous(ahead: Foresight, x: Outline) -> Outline:
    if x.is_contiguous():
        return x  # the same tensor, and no operation
    return ahead.run(aten.clone.default, x, memory_format=torch.contiguous_format)


def _chunk(ahead: Foresight, x: Any, chunks: int, dim: int = 0) -> tuple[Outline, ...]:
    if type(chunks) is not int or chunks < 1 or not x.shape[dim]:
        raise Unforeseen
    return ahead.parts(aten.split.Tensor, x, -(-x.shape[dim] // chunks), dim)


def _unsqueeze(ahead: Foresight, x: Any, dim: int) -> Outline:
    return ahead.run(aten.unsqueeze.default, x, dim)


_END = sys.maxsize  # of a slice without one
_FAR = 1 << 62  # torch does not keep numbers from here on as they are


def _get_item(ahead: Foresight, x: Outline, index: Any) -> Outline:
    """Whole numbers, slices, None and an ellipsis: a view for each, but for what leaves a dimension as it is."""
    listed = index if type(index) is tuple else (index,)
    taken = sum(type(part) in (int, slice) for part in listed)
    if taken > len(x.shape):
        raise Unforeseen
    dim, found = 0, x
    for part in listed:
        if type(part) is int:
            found = ahead.run(aten.select.int, found, dim, part)
        elif type(part) is slice:
            start, stop, step = part.start, part.stop, part.step
            if not all(value is None or (type(value) is int and abs(value) < _FAR) for value in (start, stop, step)):
                raise Unforeseen
            start, stop, step = start or 0, _END if stop is None else stop, 1 if step is None else step
            if index is part or start or step != 1 or stop < found.shape[dim]:
                found = ahead.run(aten.slice.Tensor, found, dim, start, stop, *([step] if step != 1 else []))
            dim += 1
        elif part is None:
            found = ahead.run(aten.unsqueeze.default, found, dim)
            dim += 1
        elif part is Ellipsis and listed.count(Ellipsis) == 1:
            dim += len(x.shape) - taken
        else:
            raise Unforeseen
    if found is x:  # another tensor, all the same
        raise Unforeseen
    return found


def _mean(ahead: Foresight, x: Any, dim: Any, keepdim: bool = False) -> Outline:
    return ahead.run(aten.mean.dim, x, dim if type(dim) in (tuple, list) else (dim,), *([True] if keepdim else []))


def _roll(ahead: Foresight, x: Any, shifts: Any, dims: Any) -> Outline:
    return ahead.run(aten.roll.default, x, _sizes((shifts,)), _sizes((dims,)))


def _softmax(ahead: Foresight, x: Any, dim: int) -> Outline:
    return ahead.run(aten._softmax.default, x, dim, False)


def _layer_norm(
    ahead: Foresight, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Outline:
    shape = tuple(normalized_shape) if type(normalized_shape) is list else normalized_shape
    return leaf_rules.layer_norm(ahead.run, (shape, eps), x, weight, bias)


def _linear(ahead: Foresight, x: Any, weight: Any, bias: Any = None) -> Outline:
    return leaf_rules.linear(ahead.run, (), x, weight, bias)


def _max_pool(
    ahead: Foresight,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Outline:
    values = (kernel_size, stride, padding, ceil_mode, dilation, return_indices)
    return leaf_rules.max_pool(ahead.run, values, x)


def _avg_pool(
    ahead: Foresight,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Outline:
    values = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return leaf_rules.avg_pool(ahead.run, values, x)


def _adaptive_pool(ahead: Foresight, x: Any, output_size: Any) -> Outline:
    return leaf_rules.adaptive_pool(ahead.run, (output_size,), x)


def _with_methods(name: str, rule: Rule) -> dict[Any, Rule]:
    """Return the rule of a function that stands in torch, and is a method of tensors."""
    return dict.fromkeys((getattr(torch, name), getattr(torch.Tensor, name)), rule)


# Of those that networks call most: the way through torch's dispatcher takes several times as long.
RULES: dict[Any, Rule] = {
    **_with_methods("add", _binary(aten.add.Tensor)),
    **_with_methods("sub", _binary(aten.sub.Tensor)),
    **_with_methods("mul", _binary(aten.mul.Tensor)),
    **_with_methods("div", _binary(aten.div.Tensor)),
    torch.Tensor.add_: _binary(aten.add_.Tensor),
    torch.Tensor.mul_: _binary(aten.mul_.Tensor),
    torch.cat: _cat,
    F.relu: _relu,
    **_with_methods("relu", _relu),
    **_with_methods("sigmoid", _unary(aten.sigmoid.default)),
    **_with_methods("exp", _unary(aten.exp.default)),
    **_with_methods("flatten", _flatten),
    torch.Tensor.view: _view,
    torch.Tensor.reshape: _reshape,
    **_with_methods("permute", _permute),
    **_with_methods("transpose", _transpose),
    torch.Tensor.contiguous: _contiguous,
    **_with_methods("chunk", _chunk),
    **_with_methods("unsqueeze", _unsqueeze),
    torch.Tensor.__getitem__: _get_item,
    torch.Tensor.mean: _mean,
    torch.roll: _roll,
    torch.Tensor.softmax: _softmax,
    torch.softmax: _softmax,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
}
