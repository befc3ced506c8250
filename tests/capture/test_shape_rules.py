"""Each shape rule, and each replay from the memo, against torch's own meta kernel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torchledger.capture.shape_rules import RULES

aten = torch.ops.aten


def metadata(value: Any) -> list[tuple[Any, ...]]:
    tensors = [value] if isinstance(value, torch.Tensor) else value
    return [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]


def check(func: Any, *args: Any, **kwargs: Any) -> bool:
    """Compare the rule's answer with the kernel's; return whether the rule gave one."""
    outputs = RULES[func](*args, **kwargs)
    if outputs is None:
        return False
    result = func(*args, **kwargs)
    assert [(tuple(o.size), o.stride, o.dtype) for o in outputs] == metadata(result), (func, args, kwargs)
    given = [arg for arg in args if isinstance(arg, torch.Tensor)]
    storages = [arg.untyped_storage()._cdata for arg in given]
    for output, tensor in zip(outputs, [result] if isinstance(result, torch.Tensor) else result, strict=True):
        assert output.is_argument == any(tensor is arg for arg in args)
        storage = tensor.untyped_storage()._cdata
        assert (output.source is None) == (storage not in storages)
        if output.source is not None:
            assert storages[output.source] == storage
            assert given[output.source].storage_offset() + output.offset == tensor.storage_offset()
    return True


class Checked(TorchDispatchMode):
    """Check every operation of a run that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        x = args[0] if args else None
        laid_out = func is aten.convolution.default and not (x.is_contiguous() and args[1].is_contiguous())
        if func in RULES and not laid_out:  # its layout is that of real kernels, see below
            self.answered[func] += check(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


NETWORKS = ("alexnet", "googlenet", "mobilenet_v3_small", "densenet121", "vit_b_16", "convnext_tiny", "efficientnet_b0")


def test_rules_equal_kernels_over_networks() -> None:
    import torchvision.models

    answered: Counter[Any] = Counter()
    for name in NETWORKS:
        with torch.device("meta"):
            model = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.empty(2, 3, 224, 224, dtype=dtype, device="meta").contiguous(memory_format=layout)
                with Checked() as checked, torch.no_grad():
                    model.to(dtype).train(dtype == torch.float64)(x)
                answered += checked.answered
    heard = {func.overloadpacket.__name__ for func, count in answered.items() if count}
    assert heard >= {"convolution", "native_batch_norm", "native_layer_norm", "addmm", "cat", "relu_", "gelu"}
    assert heard >= {"max_pool2d_with_indices", "avg_pool2d", "hardswish_", "silu_", "mul", "t", "view", "mean"}


sizes = st.lists(st.integers(0, 4), min_size=0, max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64])


@st.composite
def tensors(draw: st.DrawFn, shape: Any = sizes) -> torch.Tensor:
    """Draw a meta tensor of any strides: permuted, expanded, sliced."""
    size = draw(shape)
    tensor = torch.empty(size, dtype=draw(DTYPES), device="meta")
    if size and draw(st.booleans()):
        tensor = tensor.permute(draw(st.permutations(range(len(size)))))
    if size and draw(st.booleans()):
        tensor = tensor[::2]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    return tensor


@settings(max_examples=150, deadline=None)
@given(tensors(), st.data())
def test_elementwise_and_cat(x: torch.Tensor, data: st.DataObject) -> None:
    others = (x, torch.empty_like(x), torch.empty(x.shape, device="meta"), data.draw(tensors()))
    for func in RULES:
        name = func.overloadpacket.__name__
        if RULES[func].__name__.startswith("_unary"):
            check(func, x)
        elif RULES[func].__name__ == "_binary":
            for y in others:
                check(func, x, y)
            spread = [size if data.draw(st.booleans()) else 1 for size in x.shape]
            y = torch.empty(spread, dtype=x.dtype, device="meta")
            check(func, x, y)
            check(func, y, x)
        elif name == "t" and x.dim() == 2:
            assert check(func, x)
        elif name == "view" and x.is_contiguous():
            factors = data.draw(st.sampled_from([(x.numel(),), (1, x.numel(), 1), (*x.shape, 1), (1, *x.shape)]))
            check(func, x, list(factors))
        elif name == "mean" and x.dim() and x.is_floating_point():
            dims = data.draw(st.lists(st.integers(-x.dim(), x.dim() - 1), min_size=1, max_size=x.dim()))
            if len({dim % x.dim() for dim in dims}) == len(dims):
                check(func, x, dims, data.draw(st.booleans()))
        elif name == "cat" and x.dim():
            check(func, [x, data.draw(st.sampled_from(others)), x], data.draw(st.integers(-x.dim(), x.dim() - 1)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_convolutions_and_pools(data: st.DataObject) -> None:
    draw = data.draw
    spatial = draw(st.integers(1, 3))
    groups, batch = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.lists(st.integers(1, 4), min_size=spatial, max_size=spatial))
    image = draw(st.lists(st.integers(1, 9), min_size=spatial, max_size=spatial))
    stride, dilation = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    padding = draw(st.integers(0, 2))
    x = torch.empty(batch, 2 * groups, *image, device="meta")
    weight = torch.empty(3 * groups, 2, *kernel, device="meta")
    bias = draw(st.sampled_from([None, torch.empty(3 * groups, device="meta")]))
    many = [stride] * draw(st.sampled_from([1, spatial]))
    zeros, fits = (
        [0] * spatial,
        all(i + 2 * padding >= dilation * (k - 1) + 1 for i, k in zip(image, kernel, strict=True)),
    )
    if fits:
        pads, steps = [padding] * spatial, [dilation] * spatial
        assert check(aten.convolution.default, x, weight, bias, many, pads, steps, False, zeros, groups)
    if spatial == 2:
        ceil = draw(st.booleans())
        pad = min(padding, min(kernel) // 2)
        if all(i + 2 * pad >= dilation * (k - 1) + 1 for i, k in zip(image, kernel, strict=True)):
            assert check(aten.max_pool2d_with_indices.default, x, kernel, many, [pad], [dilation], ceil)
        if all(i + 2 * pad >= k for i, k in zip(image, kernel, strict=True)):
            assert check(aten.avg_pool2d.default, x, kernel, many, [pad], ceil)


@pytest.mark.parametrize("which", ["input", "weight", "both", "neither"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_keeps_channels_last_as_a_cpu_does(which: str, kernel: int) -> None:
    x, weight = torch.zeros(2, 4, 6, 5), torch.zeros(3, 4, kernel, kernel)
    if which in ("input", "both"):
        x = x.contiguous(memory_format=torch.channels_last)
    if which in ("weight", "both"):
        weight = weight.contiguous(memory_format=torch.channels_last)
    arguments = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    (output,) = RULES[aten.convolution.default](x.to("meta"), weight.to("meta"), *arguments) or (None,)
    assert output is not None
    assert output.stride == aten.convolution.default(x, weight, *arguments).stride()


@pytest.mark.parametrize(
    ("left", "right", "has_ends"),
    [((6, 8), (2, 8, 16), True), ((2, 6, 8), (2, 8, 16), False), ((8, 16), (16, 32), True), ((2, 6, 8), (8, 16), True)],
)
def test_grouped_products(left: tuple[int, ...], right: tuple[int, ...], has_ends: bool) -> None:
    """In bfloat16, the only dtype that torch's meta kernel knows; the same in others."""
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        x, y = (torch.empty(shape, dtype=dtype, device="meta") for shape in (left, right))
        ends = (torch.empty(2, dtype=torch.int32, device="meta"),) if has_ends else ()
        if dtype == torch.bfloat16:
            assert check(aten._grouped_mm.default, x, y, *ends)
        (output,) = RULES[aten._grouped_mm.default](x, y, *ends) or ()
        made.append((output.size, output.stride))
    assert made[0] == made[1]


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_products_and_norms(rows: int, dtype: torch.dtype) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    assert check(aten.mm.default, empty(rows, 4), empty(4, 5))
    assert check(aten.mm.default, empty(4, rows).t(), empty(5, 4).t())
    assert check(aten.addmm.default, empty(5), empty(rows, 4), empty(4, 5))
    assert check(aten.addmm.default, empty(rows, 5), empty(rows, 4), empty(4, 5))
    assert check(aten.bmm.default, empty(2, rows, 4), empty(2, 4, 5))
    for shape in ((rows, 6, 4), (rows, 4), (2, 3, rows, 4)):
        answered = check(aten.native_layer_norm.default, empty(*shape), [4], empty(4), None, 1e-5)
        assert answered == (bool(rows) and dtype != torch.float16)
    for training in (False, True):
        statistics = [empty(6)] * 4
        answered = check(aten.native_batch_norm.default, empty(rows, 6, 4), *statistics, training, 0.1, 1e-5)
        assert answered == (bool(rows) and dtype != torch.float16)


@pytest.mark.parametrize(
    ("func", "shapes"),
    [
        (aten.mm.default, ((2, 3), (4, 5))),
        (aten.addmm.default, ((5,), (2, 3), (4, 5))),
        (aten.addmm.default, ((6,), (2, 4), (4, 5))),
        (aten.bmm.default, ((2, 3, 4), (3, 4, 5))),
        (aten.add.Tensor, ((2, 3), (3, 2))),
    ],
)
def test_no_answer_where_the_operation_fails(func: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
    args = [torch.empty(shape, device="meta") for shape in shapes]
    assert RULES[func](*args) is None
    with pytest.raises(RuntimeError):
        func(*args)


def test_no_answer_for_wrong_channels() -> None:
    x, weight = torch.empty(1, 3, 8, 8, device="meta"), torch.empty(4, 2, 3, 3, device="meta")
    assert RULES[aten.convolution.default](x, weight, None, [1], [0], [1], False, [0], 1) is None
    five = torch.empty(5, device="meta")
    assert RULES[aten.native_batch_norm.default](x, five, five, five, five, False, 0.1, 1e-5) is None
    assert RULES[aten.cat.default]([x, torch.empty(1, 3, 8, 9, device="meta")], 1) is None
