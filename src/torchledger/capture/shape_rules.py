"""Output metadata of the commonest operations by plain arithmetic.

torch's own meta kernels for these take up to a millisecond, and the first convolution imports sympy, the first matrix
product torch._dynamo: a second and 70 MB that nothing here needs.

A rule answers for plain cases only (contiguous tensors, for some also channels-last ones, of one dtype) and else
returns None, also where the operation would fail: the kernel runs then. Every rule is compared with its kernel in the
tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from torchledger.capture.operations import overloads
from torchledger.capture.shapes import Outline, Output

Outputs = tuple[Output, ...]
_TENSORS = (torch.Tensor, Outline)
_SHARED = frozenset((torch.float32, torch.float64))  # statistics have the dtype of the input


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Output:
    """Return a contiguous output in a storage of its own."""
    return Output(None, False, torch.Size(shape), _contiguous(shape), dtype, 0)


@functools.lru_cache(maxsize=4096)  # each result is an input next
def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        stride[dim] = stride[dim + 1] * max(shape[dim + 1], 1)
    return tuple(stride)


def _is_channels_last(tensor: Any) -> bool:
    """Whether channels lie innermost, and not by chance (one channel, or one place, is contiguous as well)."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim())
    return wanted is not None and not tensor.is_contiguous() and bool(tensor.is_contiguous(memory_format=wanted))


def _plain(tensor: Any) -> bool:
    # is_contiguous() would not do: a dimension of size 1 may have any stride then; without elements, so may all.
    shape = tensor.shape
    return tensor.stride() == _contiguous(shape) and 0 not in shape


def _like(x: Any) -> Output | None:
    """Return what an elementwise operation makes of `x`: laid out alike, for what is plain or channels-last."""
    if _plain(x):
        return fresh(x.shape, x.dtype)
    if len(x.shape) not in _IMAGES or 0 in x.shape:
        return None
    # A dimension of size 1 may have any stride, by which kernels do not go alike; and what is contiguous as well is
    # laid out as that.
    stride = _channels_last(x.shape)
    return None if x.stride() != stride or x.is_contiguous() else Output(None, False, x.shape, stride, x.dtype, 0)


_IMAGES = (4, 5)  # dimensions that images and volumes have, of which the second is that of channels


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of images or volumes whose channels lie innermost."""
    inner = _contiguous((*shape[2:], shape[1]))
    return (math.prod(shape[1:]), 1, *inner[:-1])


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
) -> Outputs | None:
    sizes, kernel, dtype = x.shape, weight.shape, x.dtype
    spatial = len(kernel) - 2
    if transposed or len(sizes) != len(kernel) or spatial < 1 or dtype != weight.dtype:
        return None
    channels_last = False
    if not (_plain(x) and _plain(weight)) and not (x.is_contiguous() and weight.is_contiguous()):
        channels_last = _is_channels_last(x) or _is_channels_last(weight)
        if not channels_last and not x.is_contiguous():
            return None
    channels = kernel[0]
    if sizes[1] != kernel[1] * groups or channels % groups or 0 in sizes:
        return None
    if bias is not None and (bias.shape != (channels,) or bias.dtype != dtype):
        return None
    if not len(stride) == len(padding) == len(dilation) == spatial:
        if not {len(stride), len(padding), len(dilation)} <= {1, spatial}:
            return None
        # A list of one stands for all dimensions.
        stride, padding, dilation = (v if len(v) == spatial else [*v] * spatial for v in (stride, padding, dilation))
    made = [sizes[0], channels]
    for place in range(spatial):
        step, pad, dilate = stride[place], padding[place], dilation[place]
        room = sizes[place + 2] + 2 * pad - dilate * (kernel[place + 2] - 1) - 1
        if room < 0 or step < 1 or pad < 0 or dilate < 1:
            return None
        made.append(room // step + 1)
    output = fresh(tuple(made), dtype)
    if not channels_last:
        return (output,)
    # As real kernels do, on CPU and CUDA; torch's meta kernel forgets the layout.
    return (output._replace(stride=_channels_last(output.size)),)


def _max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil_mode: bool = False
) -> Outputs | None:
    pooled = _pooled(x, kernel, stride or kernel, padding, dilation, ceil_mode)
    return None if pooled is None else (pooled, fresh(pooled.size, torch.int64))


def _avg_pool(
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Outputs | None:
    if divisor_override is not None and not 0 < abs(divisor_override) < 1 << 63:
        return None
    pooled = _pooled(x, kernel, stride or kernel, padding, (1,), ceil_mode)
    return None if pooled is None else (pooled,)


def _pooled(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Output | None:
    if x.dim() not in (3, 4) or not _plain(x) or not x.is_floating_point():
        return None
    if any(len(values) not in (1, 2) for values in (kernel, stride, padding, dilation)):
        return None
    sizes = []
    for dim in range(2):
        window, step, pad, dilate = (v[dim if len(v) > 1 else 0] for v in (kernel, stride, padding, dilation))
        length = x.shape[dim - 2]
        room = length + 2 * pad - dilate * (window - 1) - 1
        if room < 0 or step < 1 or window < 1 or not 0 <= 2 * pad <= window or dilate < 1:
            return None
        size = (room + (step - 1 if ceil_mode else 0)) // step + 1
        if ceil_mode and (size - 1) * step >= length + pad:
            size -= 1  # a window must not start in the padding on the right
        sizes.append(size)
    return fresh((*x.shape[:-2], *sizes), x.dtype)


def _adaptive_avg_pool(x: Any, sizes: Any) -> Outputs | None:
    if x.dim() != 4 or not _plain(x) or not x.is_floating_point() or len(sizes) != 2 or min(sizes) < 1:
        return None
    return (fresh((*x.shape[:-2], *sizes), x.dtype),)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Outputs | None:
    if x.dim() < 2 or not _plain(x) or x.dtype not in _SHARED or not x.numel() or not eps >= 0:
        return None
    if not training and (mean is None or var is None):
        return None
    channels = (x.shape[1],)
    if any(t is not None and (tuple(t.shape) != channels or t.dtype != x.dtype) for t in (weight, bias, mean, var)):
        return None
    return fresh(x.shape, x.dtype), fresh(channels, x.dtype), fresh(channels, x.dtype)


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Outputs | None:
    shape = tuple(shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape or x.dtype not in _SHARED or 0 in x.shape:
        return None
    if any(t is not None and (tuple(t.shape) != shape or t.dtype != x.dtype) for t in (weight, bias)):
        return None
    rows = (*x.shape[: -len(shape)], *(1,) * len(shape))
    return fresh(x.shape, x.dtype), fresh(rows, x.dtype), fresh(rows, x.dtype)


def _unary(x: Any, *_: Any, **__: Any) -> Outputs | None:
    made = _like(x) if x.is_floating_point() else None
    return None if made is None else (made,)


def _gelu(x: Any, *, approximate: str = "none") -> Outputs | None:
    return _unary(x) if approximate in ("none", "tanh") else None


def _clamp(x: Any, low: Any = None, high: Any = None) -> Outputs | None:
    limits = {type(low), type(high)} - {type(None)}
    return _unary(x) if limits and limits <= {int, float} else None


def _unary_in_place(x: Any, *_: Any, **__: Any) -> Outputs | None:
    if not x.is_floating_point() or _like(x) is None:
        return None
    return (Output(0, True, x.shape, x.stride(), x.dtype, 0),)


def _binary(x: Any, y: Any, *, alpha: Any = 1) -> Outputs | None:
    if type(alpha) not in (int, float) or not isinstance(x, _TENSORS) or not x.is_floating_point():
        return None
    if not isinstance(y, _TENSORS):
        return _unary(x) if type(y) in (int, float) else None
    if x.dtype != y.dtype:
        return None
    if x.shape == y.shape:
        made = _like(x)
        return None if made is None or made.stride != y.stride() else (made,)
    # One is spread over the other, which has the shape of the result.
    small, large = sorted((x, y), key=lambda tensor: (len(tensor.shape), tensor.numel()))
    made = _like(large)
    lead = len(large.shape) - len(small.shape)
    sizes = small.shape
    if made is None or any(own not in (1, size) for own, size in zip(sizes, large.shape[lead:], strict=True)):
        return None
    # The result is laid out as the large one, but where the small one has its dimensions in another order.
    has_order = sum(size != 1 for size in sizes) > 1
    return (made,) if _plain(small) and (_plain(large) or not has_order) else None


def _mm(left: Any, right: Any) -> Outputs | None:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0] or left.dtype != right.dtype:
        return None
    return (fresh((left.shape[0], right.shape[1]), left.dtype),)


def _addmm(bias: Any, left: Any, right: Any, **_: Any) -> Outputs | None:
    outputs = _mm(left, right)
    if outputs is None or bias.dtype != left.dtype or tuple(bias.shape) not in ((right.shape[1],), outputs[0].size):
        return None
    return outputs


def _bmm(left: Any, right: Any) -> Outputs | None:
    if left.dim() != 3 or right.dim() != 3 or left.dtype != right.dtype:
        return None
    if left.shape[0] != right.shape[0] or left.shape[2] != right.shape[1]:
        return None
    return (fresh((*left.shape[:2], right.shape[2]), left.dtype),)


def _grouped_mm(left: Any, right: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Outputs | None:
    """Rows of one matrix each, (n, k) by (g, k, m), and the like; torch's meta kernel knows bfloat16 alone."""
    if left.dtype != right.dtype or bias is not None or (offs is None) != (left.dim() == right.dim() == 3):
        return None
    groups = offs.shape[0] if offs is not None else left.shape[0]
    kinds = (left.dim(), right.dim())
    fits = left.shape[-1] == right.shape[-2] and all(t.shape[0] == groups for t in (left, right) if t.dim() == 3)
    if not fits or not set(kinds) <= {2, 3}:
        return None
    shape = (left.shape[-2], right.shape[-1])
    return (fresh((groups, *shape) if kinds in ((2, 2), (3, 3)) else shape, out_dtype or left.dtype),)


def _mean(x: Any, dims: Any, keepdim: bool = False, *, dtype: Any = None) -> Outputs | None:
    if dims is None or dtype is not None or not x.is_floating_point() or not _plain(x):
        return None
    count = x.dim()
    gone = {dim % count for dim in dims if -count <= dim < count}
    if len(gone) != len(dims) or not gone:
        return None
    shape = tuple(1 if dim in gone else size for dim, size in enumerate(x.shape) if keepdim or dim not in gone)
    return (fresh(shape, x.dtype),)


def _transpose(x: Any) -> Outputs | None:
    if x.dim() != 2:
        return None
    rows, columns = x.stride()
    return (Output(0, False, torch.Size((x.shape[1], x.shape[0])), (columns, rows), x.dtype, 0),)


def _view(x: Any, shape: Any) -> Outputs | None:
    if not _plain(x):
        return None
    if -1 in shape:
        place, rest = shape.index(-1), -math.prod(shape)
        if rest < 1 or x.numel() % rest:
            return None
        shape = [*shape[:place], x.numel() // rest, *shape[place + 1 :]]
    if (shape and min(shape) < 0) or math.prod(shape) != x.numel():
        return None
    return (Output(0, False, torch.Size(shape), _contiguous(tuple(shape)), x.dtype, 0),)


def _binary_in_place(x: Any, y: Any, *, alpha: Any = 1) -> Outputs | None:
    if type(alpha) not in (int, float) or not isinstance(x, _TENSORS):
        return None
    if not isinstance(y, _TENSORS):
        return _unary_in_place(x) if type(y) in (int, float) else None
    if x.dtype != y.dtype or not x.is_floating_point() or _like(x) is None:
        return None
    lead = len(x.shape) - len(y.shape)
    if lead < 0 or any(own not in (1, size) for own, size in zip(y.shape, x.shape[lead:], strict=True)):
        return None
    return (Output(0, True, x.shape, x.stride(), x.dtype, 0),)


def _seen(x: Any, sizes: Any, strides: Any, offset: int = 0) -> Outputs:
    """Return a view of `x`."""
    return (Output(0, False, torch.Size(sizes), tuple(strides), x.dtype, offset),)


def _wrapped(dim: Any, count: int) -> int | None:
    """Return a dimension counted from the front, of so many; None where there is none such."""
    return dim % count if -count <= dim < count else None


def _permute(x: Any, dims: Any) -> Outputs | None:
    count = x.dim()
    order = [_wrapped(dim, count) for dim in dims]
    if sorted(dim for dim in order if dim is not None) != list(range(count)) or len(order) != count:
        return None
    sizes, strides = x.shape, x.stride()
    return _seen(x, [sizes[dim] for dim in order], [strides[dim] for dim in order])


def _transpose_two(x: Any, one: int, other: int) -> Outputs | None:
    count = x.dim()
    first, second = _wrapped(one, count), _wrapped(other, count)
    if first is None or second is None:
        return None
    order = list(range(count))
    order[first], order[second] = second, first
    return _permute(x, order)


def _unsqueeze(x: Any, dim: int) -> Outputs | None:
    count = x.dim()
    place = _wrapped(dim, count + 1)
    if place is None:
        return None
    sizes, strides = list(x.shape), list(x.stride())
    step = sizes[place] * strides[place] if place < count else 1
    return _seen(x, [*sizes[:place], 1, *sizes[place:]], [*strides[:place], step, *strides[place:]])


def _select(x: Any, dim: int, index: int) -> Outputs | None:
    place = _wrapped(dim, x.dim())
    at = None if place is None else _wrapped(index, x.shape[place])
    if place is None or at is None:
        return None
    sizes, strides = list(x.shape), list(x.stride())
    step = strides.pop(place)
    del sizes[place]
    return _seen(x, sizes, strides, at * step)


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Outputs | None:
    place = _wrapped(dim, x.dim())
    if place is None or step < 1:
        return None
    sizes, strides = list(x.shape), list(x.stride())
    first, last, _ = slice(start, end).indices(sizes[place])
    sizes[place] = max(0, -(-(last - first) // step))
    offset = first * strides[place]
    strides[place] *= step
    return _seen(x, sizes, strides, offset) if sizes[place] else None


def _expand(x: Any, size: Any, *, implicit: bool = False) -> Outputs | None:
    lead = len(size) - x.dim()
    if lead < 0:
        return None
    sizes: list[int] = []
    strides: list[int] = []
    for place in range(len(size) - 1, -1, -1):
        own = x.shape[place - lead] if place >= lead else 1
        step = x.stride()[place - lead] if place >= lead else sizes[-1] * strides[-1] if x.dim() else 0
        wanted = size[place]
        if wanted == -1 and place >= lead:
            wanted = own
        if wanted < 0 or (wanted != own and own != 1):
            return None
        sizes.append(wanted)
        strides.append(step if wanted == own else 0)
    return _seen(x, reversed(sizes), reversed(strides))


def _clone(x: Any, *, memory_format: Any = None) -> Outputs | None:
    if memory_format is not torch.contiguous_format and not _plain(x):
        return None
    return (fresh(x.shape, x.dtype),) if memory_format in (None, *_FORMATS) and 0 not in x.shape else None


_FORMATS = (torch.contiguous_format, torch.preserve_format)


def _softmax(x: Any, dim: int, half_to_float: bool) -> Outputs | None:
    if half_to_float or _wrapped(dim, x.dim()) is None or not _plain(x) or not x.is_floating_point():
        return None
    return (fresh(x.shape, x.dtype),)


def _split(x: Any, size: int, dim: int = 0) -> Outputs | None:
    place = _wrapped(dim, x.dim())
    if place is None or size < 1 or not x.shape[place]:
        return None
    length, step = x.shape[place], x.stride()[place]
    before, after = x.shape[:place], x.shape[place + 1 :]
    parts = [(start, min(size, length - start)) for start in range(0, length, size)]
    return tuple([_seen(x, (*before, width, *after), x.stride(), start * step)[0] for start, width in parts])


def _roll(x: Any, shifts: Any, dims: Any = ()) -> Outputs | None:
    if not dims or len(shifts) != len(dims) or not _plain(x):
        return None
    if any(_wrapped(dim, x.dim()) is None for dim in dims):
        return None
    return (fresh(x.shape, x.dtype),)


def _cat(tensors: Any, dim: int = 0) -> Outputs | None:
    first = tensors[0]
    sizes, dtype = first.shape, first.dtype
    count = len(sizes)
    if not -count <= dim < count:
        return None
    dim %= count
    before, after = sizes[:dim], sizes[dim + 1 :]
    total, alike = 0, None
    for tensor in tensors:
        shape, strides = tensor.shape, tensor.stride()
        if alike == (shape, strides, tensor.dtype):  # as many are
            total += shape[dim]
            continue
        alike = shape, strides, tensor.dtype
        if len(shape) != count or tensor.dtype != dtype or shape[:dim] != before or shape[dim + 1 :] != after:
            return None
        # Of channels-last alone, as it may be where channels do not lie before places, is the result that too.
        if strides != _contiguous(shape) and count in _IMAGES and not strides[1] > strides[-1]:
            return None
        total += shape[dim]
    return (fresh((*before, total, *after), dtype),) if total and 0 not in before and 0 not in after else None


def _table() -> dict[str, Callable[..., Outputs | None]]:
    table: dict[str, Callable[..., Outputs | None]] = {
        "convolution.default": _convolution,
        "max_pool2d_with_indices.default": _max_pool,
        "avg_pool2d.default": _avg_pool,
        "_adaptive_avg_pool2d.default": _adaptive_avg_pool,
        "native_batch_norm.default": _batch_norm,
        "native_layer_norm.default": _layer_norm,
        "cat.default": _cat,
        "split.Tensor": _split,
        "roll.default": _roll,
        "clamp.default": _clamp,
        "mm.default": _mm,
        "addmm.default": _addmm,
        "bmm.default": _bmm,
        "_grouped_mm.default": _grouped_mm,
        "mean.dim": _mean,
        "t.default": _transpose,
        "view.default": _view,
        "_unsafe_view.default": _view,
        "permute.default": _permute,
        "transpose.int": _transpose_two,
        "unsqueeze.default": _unsqueeze,
        "select.int": _select,
        "slice.Tensor": _slice,
        "expand.default": _expand,
        "clone.default": _clone,
        "_softmax.default": _softmax,
        "add_.Tensor": _binary_in_place,
        "mul_.Tensor": _binary_in_place,
        "add.Tensor": _binary,
        "sub.Tensor": _binary,
        "mul.Tensor": _binary,
        "div.Tensor": _binary,
    }
    table["gelu.default"] = _gelu
    for name in (
        "relu",
        "silu",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "exp",
    ):
        table[f"{name}.default"] = _unary
    for name in ("relu_", "silu_", "hardswish_", "hardsigmoid_", "hardtanh_", "sigmoid_"):
        table[f"{name}.default"] = _unary_in_place
    return table


RULES = overloads(_table())
_GROUPED_MM, _CONVOLUTION = (overloads({name: name}) for name in ("_grouped_mm.default", "convolution.default"))


def corrects(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the rule knows what torch's meta kernel does not: grouped products of any dtype, or channels-last."""
    return func in _GROUPED_MM or (func in _CONVOLUTION and any(map(_is_channels_last, args[:2])))
