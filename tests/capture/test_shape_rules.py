"""Each shape rule, and each replay from the memo, against torch's own meta kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torchledger.capture.shape_rules import RULES, corrects
from torchledger.capture.shapes import Outline

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


# ---- each rule, over arguments that torch takes and that it refuses


Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments, and those by name
Drawn = Callable[[st.DrawFn], Call]
RARELY = st.integers(0, 9).map(lambda place: not place)


def answers(func: Any, *args: Any, **kwargs: Any) -> bool | None:
    """Compare the rule with the kernel; None where the kernel refuses the arguments, for which there is no answer."""
    outputs = RULES[func](*args, **kwargs)
    with torch.no_grad():
        try:
            func(*args, **kwargs)
        except Exception as error:  # of Python's own kernels too, which assert
            assert outputs is None, (func, args, kwargs, error)
            return None
        if outputs is None or func is not aten.convolution.default or not corrects(func, args):
            return check(func, *args, **kwargs)
        # The meta kernel forgets the layout: a real one keeps it.
        result = func(*[real(arg) if isinstance(arg, torch.Tensor) else arg for arg in args])
        assert [(tuple(o.size), o.stride, o.dtype) for o in outputs] == metadata(result), args
        return True


def real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@st.composite
def plain_or_any(draw: st.DrawFn, shape: Any = sizes) -> torch.Tensor:
    """Draw what a rule answers for, or a tensor of any strides and dtype."""
    if shape is sizes and draw(RARELY):
        return images(draw, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return draw(tensors(shape)) if draw(st.booleans()) else empty(*draw(shape))


def lists(low: int, high: int, shortest: int = 0, longest: int = 4) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=shortest, max_size=longest)


def places(x: torch.Tensor, beyond: int = 2) -> st.SearchStrategy[int]:
    """Dimensions of `x` from either end, and some that it does not have."""
    return st.integers(-x.dim() - beyond, x.dim() + beyond - 1)


def one(draw: st.DrawFn) -> Call:
    return (draw(plain_or_any()),), {}


def with_numbers(*most: float) -> Drawn:
    """Return a draw of a tensor and up to so many numbers, `most` unless others are drawn."""

    def drawn(draw: st.DrawFn) -> Call:
        numbers = [draw(st.sampled_from([value, 0, -0.5])) for value in most[: draw(st.integers(0, len(most)))]]
        return (draw(plain_or_any()), *numbers), {}

    return drawn


def two(draw: st.DrawFn) -> Call:
    """A tensor with itself, a part of itself, one like it, one spread over it, a number, or any other."""
    x = draw(plain_or_any())
    spread = [size if draw(st.booleans()) else 1 for size in x.shape]
    others = [x, x[:1] if x.dim() else x, torch.empty_like(x), empty(*x.shape), empty(*spread, dtype=x.dtype)]
    others += [empty(*spread[1:], dtype=x.dtype), empty(*(size if dim == 1 else 1 for dim, size in enumerate(x.shape)))]
    y = draw(st.sampled_from([*others, empty(*spread[1:]), 2, 2.5])) if draw(st.booleans()) else draw(tensors())
    return (x, y) if draw(st.booleans()) else (y, x), {}


def scaled_two(draw: st.DrawFn) -> Call:
    args, _ = two(draw)
    return args, draw(st.sampled_from([{}, {}, {"alpha": 2}, {"alpha": 0.5}]))


def permuted(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    order = draw(st.permutations(range(x.dim())))
    dims = [dim - x.dim() if draw(st.booleans()) else dim for dim in order]
    return (x, draw(st.lists(places(x, 1), max_size=5)) if draw(RARELY) else dims), {}


def with_two_places(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    return (x, draw(places(x, 1)), draw(places(x, 1))), {}


def with_place(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    return (x, draw(places(x))), {}


def selected(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    return (x, draw(places(x, 1)), draw(st.integers(-5, 5))), {}


def apart(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    return (x, draw(st.integers(-1, 5)), *draw(st.sampled_from([(), (draw(places(x, 1)),)]))), {}


def rolled(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any(lists(1, 4, 1)))
    dims = draw(st.lists(places(x, int(draw(RARELY))), min_size=1, max_size=3))
    shifts = draw(lists(-3, 3, longest=3)) if draw(RARELY) else [draw(st.integers(-3, 3)) for _ in dims]
    return (x, shifts) if draw(RARELY) else (x, shifts, dims), {}


def clamped(draw: st.DrawFn) -> Call:
    limit = st.sampled_from([None, 0, -0.5, 4.0, True])
    return (draw(plain_or_any()), draw(limit), draw(limit)), {}


def sliced(draw: st.DrawFn) -> Call:
    x = draw(tensors())
    ends = st.none() | st.integers(-6, 6) | st.sampled_from([2**63 - 1, -(2**63)])
    args = (draw(places(x, 1)), draw(ends), draw(ends), draw(st.integers(-1, 4)))
    return (x, *args[: draw(st.integers(0, 4))]), {}


def expanded(draw: st.DrawFn) -> Call:
    x = draw(tensors(st.lists(st.integers(0, 3), max_size=3)))
    wanted = [draw(st.sampled_from([size, size, -1, 3])) for size in x.shape]
    lead = draw(lists(0, 3, longest=2))
    if draw(RARELY):
        wanted = draw(lists(-2, 3, longest=5))
    return (x, [*lead, *wanted]), draw(st.sampled_from([{}, {"implicit": True}]))


def cloned(draw: st.DrawFn) -> Call:
    formats = [None, torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d]
    chosen = draw(st.sampled_from(formats))
    x = draw(plain_or_any(lists(0, 4) | lists(1, 4, 4, 5)))
    return (x,), {} if chosen is None and draw(st.booleans()) else {"memory_format": chosen}


def softmaxed(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any())
    return (x, draw(places(x, 1)), draw(RARELY)), {}


def viewed(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any())
    count = x.numel()
    fitting = [[count], [1, count, 1], [*x.shape, 1], [1, *x.shape], [-1], [count, -1], [*x.shape[:1], -1], [-1, -1]]
    refused = [[count + 1], [-count], [-1, -count], [-2, -1], [0, -1], []]
    return (x, draw(st.sampled_from(fitting + refused) | lists(-2, 4))), {}


def averaged(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any())
    own = st.lists(st.integers(0, x.dim() - 1), min_size=1, unique=True) if x.dim() else st.just([])
    dims = draw(st.none() | st.lists(places(x, 1), max_size=3) if draw(RARELY) else own)
    return (x, dims, *draw(st.sampled_from([(), (True,), (False,)]))), draw(
        st.sampled_from([{}, {}, {}, {"dtype": torch.float64}])
    )


def joined(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any())
    if draw(st.booleans()) and x.dim() > 1:
        x = x[:, ::2]
    parts = [x]
    for _ in range(draw(st.integers(0, 2))):
        other = list(x.shape)
        if other:
            other[draw(st.integers(0, len(other) - 1))] = draw(st.integers(0, 4))
        parts.append(draw(st.sampled_from([x, torch.empty_like(x), empty(*x.shape), empty(*other), empty(0)])))
    if draw(RARELY):
        parts.append(draw(tensors()))
    dim = draw(places(x)) if draw(RARELY) or not x.dim() else draw(places(x, 0))
    return (parts, dim) if draw(st.booleans()) else (parts,), {}


def multiplied(*sizes_of: str, bias: bool = False) -> Drawn:
    """Return a draw of two matrices whose dimensions are named, after a bias of the product's shape or last size."""

    def drawn(draw: st.DrawFn) -> Call:
        size = {name: draw(st.integers(0, 3)) for name in "bnkm"}

        def tensor(names: str) -> torch.Tensor:
            shape = [draw(st.integers(0, 3)) if draw(RARELY) else size[name] for name in names]
            made = draw(tensors(st.just(shape)))
            return draw(tensors(lists(0, 3))) if draw(RARELY) else made if draw(RARELY) else made.float()

        def laid(names: str) -> torch.Tensor:
            if draw(RARELY):
                return tensor(names)
            made = empty(*[size[name] for name in names])
            return made.mT.contiguous().mT if draw(st.booleans()) else made

        factors = [laid(names) for names in sizes_of]
        if not bias:
            return tuple(factors), {}
        added = laid(draw(st.sampled_from(["nm", "nm", "bnm"]))) if draw(st.booleans()) else empty(size["m"])
        return (added, *factors), draw(st.sampled_from([{}, {}, {"beta": 0.5, "alpha": 2}]))

    return drawn


def grouped(draw: st.DrawFn) -> Call:
    """In bfloat16 and whole times sixteen bytes, which is all that the meta kernel knows."""
    size = {"g": draw(st.integers(1, 3)), **{name: 8 * draw(st.integers(1, 2)) for name in "nkm"}}
    kinds = draw(st.sampled_from([("nk", "km"), ("gnk", "km"), ("nk", "gkm"), ("gnk", "gkm"), ("k", "km")]))
    factors = [empty(*(size[n] for n in names), dtype=torch.bfloat16) for names in kinds]
    if draw(st.booleans()):
        factors[1] = factors[1].transpose(-1, -2).contiguous().transpose(-1, -2)
    groups = size["g"] + draw(RARELY)
    has_ends = (kinds != ("gnk", "gkm")) != draw(RARELY)
    return (*factors, *((empty(groups, dtype=torch.int32),) if has_ends else ())), {}


def images(draw: st.DrawFn, spatial: int, channels: int) -> torch.Tensor:
    """Draw images, in either layout or any other, of one channel and place as well."""
    shape = [draw(st.integers(1, 2)), channels, *draw(lists(1, 7, spatial, spatial))]
    if draw(RARELY):
        return draw(tensors(st.just(shape)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    if draw(st.booleans()):
        return empty(*shape, dtype=dtype)
    return empty(shape[0], *shape[2:], shape[1], dtype=dtype).movedim(-1, 1)


def steps(draw: st.DrawFn, low: int, high: int, spatial: int) -> list[int]:
    """Draw a number for each dimension, or one for all; sometimes too many, too few, or one below `low`."""
    many = draw(st.sampled_from([spatial] * 6 + [1] * 6 + [spatial + 1, 0]))
    return draw(lists(low - draw(RARELY), high, many, many))


def convolved(draw: st.DrawFn) -> Call:
    spatial, groups, channels = (draw(st.integers(1, most)) for most in (3, 2, 2))
    x = images(draw, spatial, groups * channels)
    weight = empty(groups * draw(st.integers(1, 3)), channels + draw(RARELY), *draw(lists(1, 3, spatial, spatial)))
    weight = weight.to(x.dtype) if not draw(RARELY) else weight
    bias = draw(st.sampled_from([None, empty(weight.shape[0]).to(x.dtype), empty(weight.shape[0] + 1)]))
    args = (steps(draw, 1, 3, spatial), steps(draw, 0, 2, spatial), steps(draw, 1, 2, spatial))
    return (x, weight, bias, *args, draw(RARELY), [0] * spatial, groups + draw(RARELY)), {}


def pooled(has_dilation: bool) -> Drawn:
    def drawn(draw: st.DrawFn) -> Call:
        x = images(draw, 3 if draw(RARELY) else 2, draw(st.integers(1, 2)))
        x = x[0] if draw(st.booleans()) else x
        stride = [] if draw(RARELY) else steps(draw, 1, 3, 2)
        args: list[Any] = [steps(draw, 1, 3, 2), stride, steps(draw, 0, 1, 2)]
        args += [steps(draw, 1, 2, 2)] * has_dilation + [draw(st.booleans())]
        if not has_dilation:
            args += [draw(st.booleans()), draw(st.sampled_from([None, 1, -2, 0]))]
        return (x, *args[: draw(st.integers(1, len(args)))]), {}

    return drawn


def adaptively_pooled(draw: st.DrawFn) -> Call:
    x = images(draw, draw(st.sampled_from([2, 2, 2, 1, 3])), draw(st.integers(1, 2)))
    return (x, draw(lists(0, 4, 2, 2) | lists(-1, 4, 1, 3))), {}


def normalised_by_batch(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any(lists(0, 4, 2) | lists(0, 4)))
    channels = x.shape[1] if x.dim() > 1 else 1

    def one_each(rare: int) -> torch.Tensor | None:
        return draw(st.sampled_from([empty(channels + rare), empty(channels).to(x.dtype), None]))

    wrong = draw(RARELY)
    affine = [one_each(wrong) for _ in range(2)]
    statistics = [one_each(0) for _ in range(2)] if draw(RARELY) else [empty(channels + wrong).to(x.dtype)] * 2
    eps = draw(st.sampled_from([1e-5, 0.0, 1, -1.0, float("nan")]))
    # Of one value a channel, torch's meta kernel divides by zero; real ones do not.
    is_training = draw(st.booleans()) and x.numel() > channels
    return (x, *affine, *statistics, is_training, draw(st.sampled_from([0.1, 0, 1.5])), eps), {}


def normalised_by_layer(draw: st.DrawFn) -> Call:
    x = draw(plain_or_any(lists(0, 4, 1) | lists(0, 4)))
    shape = list(x.shape[-draw(st.integers(1, 2)) :])
    shape = draw(lists(0, 4, longest=3)) if draw(RARELY) else shape
    affine = [draw(st.sampled_from([None, empty(*shape).to(x.dtype), empty(*shape), empty(2)])) for _ in range(2)]
    return (x, draw(st.sampled_from([shape, tuple(shape)])), *affine, draw(st.sampled_from([1e-5, 0.0, 1]))), {}


def gelu(draw: st.DrawFn) -> Call:
    approximate = draw(st.sampled_from(["none", "tanh", "sigmoid", ""]))
    return (draw(plain_or_any()),), draw(st.sampled_from([{}, {"approximate": approximate}]))


DRAWN: dict[str, Drawn] = {
    "convolution.default": convolved,
    "max_pool2d_with_indices.default": pooled(has_dilation=True),
    "avg_pool2d.default": pooled(has_dilation=False),
    "_adaptive_avg_pool2d.default": adaptively_pooled,
    "native_batch_norm.default": normalised_by_batch,
    "native_layer_norm.default": normalised_by_layer,
    "cat.default": joined,
    "split.Tensor": apart,
    "roll.default": rolled,
    "clamp.default": clamped,
    "mm.default": multiplied("nk", "km"),
    "addmm.default": multiplied("nk", "km", bias=True),
    "bmm.default": multiplied("bnk", "bkm"),
    "_grouped_mm.default": grouped,
    "mean.dim": averaged,
    "t.default": one,
    "view.default": viewed,
    "_unsafe_view.default": viewed,
    "permute.default": permuted,
    "transpose.int": with_two_places,
    "unsqueeze.default": with_place,
    "select.int": selected,
    "slice.Tensor": sliced,
    "expand.default": expanded,
    "clone.default": cloned,
    "_softmax.default": softmaxed,
    **dict.fromkeys(("add.Tensor", "sub.Tensor", "add_.Tensor"), scaled_two),
    **dict.fromkeys(("mul.Tensor", "mul_.Tensor", "div.Tensor"), two),
    "gelu.default": gelu,
    **dict.fromkeys(
        [f"{name}.default" for name in "relu silu hardswish hardsigmoid sigmoid tanh exp".split()]
        + [f"{name}_.default" for name in "relu silu hardswish hardsigmoid sigmoid".split()],
        one,
    ),
    **dict.fromkeys(("hardtanh.default", "hardtanh_.default"), with_numbers(-1, 6)),
    "leaky_relu.default": with_numbers(0.01),
    "elu.default": with_numbers(1.0, 2.0, 0.5),
}


def named(func: Any) -> str:
    return f"{func.overloadpacket.__name__}.{func._overloadname}"


side = empty(2, 4, 4, 1).movedim(-1, 1)  # one channel, laid out as channels-last
three = empty(3)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        pytest.param(aten.expand.default, (empty(), [1]), id="stride 0 for what a number is expanded to"),
        pytest.param(aten.max_pool2d_with_indices.default, (side, [2]), id="the layout of a maximum"),
        pytest.param(aten.avg_pool2d.default, (side, [2]), id="the layout of an average"),
        pytest.param(
            aten.native_batch_norm.default,
            (empty(2, 3), three, three, None, None, False, 0.1, 1e-5),
            id="evaluation without statistics is refused",
        ),
    ],
)
def test_what_rules_were_wrong_about(func: Any, args: Any) -> None:
    answers(func, *args)


@pytest.mark.parametrize("func", RULES, ids=named)
def test_a_rule_equals_its_kernel_over_any_arguments(func: Any) -> None:
    """Each rule there is: one that no draw stands for fails, and so does one that hardly ever answers."""
    found: Counter[bool | None] = Counter()

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        args, kwargs = data.draw(st.composite(DRAWN[named(func)])())
        found[answers(func, *args, **kwargs)] += 1

    compare()
    assert found[True] >= 10, found


# ---- what rules ask a tensor


FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


@settings(max_examples=400, deadline=None)
@given(tensors(lists(0, 4, longest=5) | lists(1, 3, 4, 5)))
def test_an_outline_answers_as_its_tensor_does(tensor: torch.Tensor) -> None:
    outline = Outline(tensor.shape, tensor.stride(), tensor.dtype)

    def answered(asked: Any) -> list[Any]:
        layouts = [asked.is_contiguous(), *(asked.is_contiguous(memory_format=of) for of in FORMATS)]
        counts = [asked.dim(), asked.numel(), asked.is_floating_point()]
        return [asked.shape, asked.stride(), asked.dtype, asked.layout, *counts, *layouts]

    assert answered(outline) == answered(tensor)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 1, 1), (2, 3, 4, 2, 5), (0, 3, 4, 5), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("innermost", range(4))
def test_an_outline_is_contiguous_as_its_tensor_is(shape: tuple[int, ...], innermost: int) -> None:
    """With any dimension innermost, and dimensions of size 1 that have any stride."""
    tensor = torch.empty([*shape[:innermost], *shape[innermost + 1 :], shape[innermost]], device="meta")
    tensor = tensor.movedim(-1, innermost)
    strides = [7 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    for laid in (tensor, torch.empty_strided(tensor.shape, strides, device="meta")):
        outline = Outline(laid.shape, laid.stride(), laid.dtype)
        for of in FORMATS:
            assert outline.is_contiguous(memory_format=of) == laid.is_contiguous(memory_format=of), (laid.stride(), of)
