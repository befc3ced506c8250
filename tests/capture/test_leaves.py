"""Calls of leaf modules that are answered from earlier ones: the record is as if each had run."""

from __future__ import annotations

import contextlib
import copy
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from catalog.modules import CASES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchledger import ForwardError, Ledger, analyze
from torchledger.capture import leaves
from torchledger.capture.shapes import MEMO
from torchledger.models import build, registry

NETS = ("alexnet", "vgg11_bn", "googlenet", "inception_v4", "resnet50", "resnet20")
LEAVES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 16)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 1), dilation=2, groups=2, bias=False), (4, 16, 16)),
    "conv2d, circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 16, 16)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (4, 16, 16)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), (4, 8, 8, 8)),
    "linear": (lambda: nn.Linear(16, 5), (16,)),
    "linear of rows": (lambda: nn.Linear(16, 5), (7, 16)),
    "linear without bias": (lambda: nn.Linear(16, 5, bias=False), (7, 16)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (4, 16)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4, affine=False), (4, 16, 16)),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 16, 16)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(4), (4, 3, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(16), (4, 16)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 16, 16)),
    **{kind.__name__: (kind, (4, 16)) for kind in (nn.ReLU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.ELU)},
    **{kind.__name__: (kind, (4, 16)) for kind in (nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.Sigmoid, nn.Tanh)},
    "relu in place": (lambda: nn.ReLU(inplace=True), (4, 16)),
    "softmax": (lambda: nn.Softmax(-1), (4, 16)),
    "identity": (nn.Identity, (4, 16)),
    "dropout": (nn.Dropout, (4, 16)),
    "flatten": (nn.Flatten, (4, 16, 2)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (4, 16, 16)),
    "max pool with indices": (lambda: nn.MaxPool2d(2, return_indices=True), (4, 16, 16)),
    "average pool": (lambda: nn.AvgPool2d(2, ceil_mode=True), (4, 15, 15)),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((3, 5)), (4, 16, 16)),
    "adaptive pool to one": (lambda: nn.AdaptiveAvgPool2d(1), (4, 16, 16)),
}

MODULE: Any = nn.Module  # whose private names mypy does not know


class Around(nn.Module):
    """A leaf twice, with results that live on, so that lifetimes show."""

    def __init__(self, leaf: nn.Module, before: Callable[[torch.Tensor], torch.Tensor] = lambda x: x * 1.5) -> None:
        super().__init__()
        self.leaf, self.other = leaf, copy.deepcopy(leaf)
        self.before = before

    def forward(self, x: torch.Tensor) -> Any:
        kept = self.leaf(self.before(x))
        again = self.other(self.before(x))
        first = [out[0] if isinstance(out, tuple) else out for out in (kept, again)]
        return first[0].sin() + self.leaf(self.before(x))[0] if isinstance(kept, tuple) else (first[0].sin(), again)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    MEMO.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    MEMO.clear()


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the calls that were answered."""
    counter, count = itertools.count(), leaves.Leaves._book

    def counted(*args: Any) -> Any:
        next(counter)
        return count(*args)

    monkeypatch.setattr(leaves.Leaves, "_book", counted)
    return lambda: next(counter)


def record(model: nn.Module, *sizes: Any, **options: Any) -> dict[str, Any]:
    return analyze(model, *sizes, **options).to_json()


def check(model: nn.Module, *sizes: Any, **options: Any) -> None:
    """Assert that the first run, the second, and one in which every call runs leave the same record."""
    first, second = (record(model, *sizes, **options) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves, "_is_unpatched", lambda: False)
        MEMO.clear()
        plain = record(model, *sizes, **options)
    assert first == plain
    assert second == plain


def check_outcome(model: nn.Module, *sizes: Any, **options: Any) -> Any:
    """As `check`, where the model may fail; return what came out."""

    def outcome() -> Any:
        try:
            return record(model, *sizes, **options)
        except ForwardError as error:
            return str(error), error.ledger.record.to_json()

    found = [outcome(), outcome()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves, "_is_unpatched", lambda: False)
        MEMO.clear()
        plain = outcome()
    assert found == [plain, plain]
    return plain


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_a_network(name: str, mode: str, replays: Callable[[], int]) -> None:
    check(build(name), registry.entry(name).input_size, batch=2, mode=mode)
    assert (replays() > 10) == (mode == "eval")


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf(name: str, replays: Callable[[], int]) -> None:
    make, size = LEAVES[name]
    check(Around(make()), size, batch=2)
    # Of two runs of two or three calls the first call of each shape runs; a pair of tensors is never remembered.
    # What a circular padding pads is told when the layer is made, by what the layer need not say.
    assert bool(replays()) == (name not in ("max pool with indices", "conv2d, circular"))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.transpose(0, -1),
    "one place": lambda x: x[..., :1, :1] if x.dim() == 4 else x[..., :1],
    "one place, channels last": lambda x: x.to(memory_format=torch.channels_last)[..., :1, :1] if x.dim() == 4 else x,
    "a part": lambda x: x[..., ::2],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "one channel": lambda x: x[:, :1],
    "nothing": lambda x: x[:0],
    "one sample": lambda x: x[0],
    "a dimension more": lambda x: x[None],
    "float64": lambda x: x.double(),
    "whole numbers": lambda x: x.long(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_on_other_layouts(name: str, layout: str) -> None:
    """What fails, fails alike."""
    make, size = LEAVES[name]
    check_outcome(Around(make(), lambda x: LAYOUTS[layout](x * 1.5)), size, batch=2)


def test_every_kind_is_tested() -> None:
    tested = {type(make()) for make, _ in LEAVES.values()}
    assert tested == set(leaves._ATTRIBUTES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_catalogue_in_the_mode_that_checks_every_hit(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_checked in (False, True):
        monkeypatch.setattr(MEMO, "is_checked", is_checked)
        torch.manual_seed(0)
        ledger = analyze(case.build(), *case.inputs(), kwargs=case.keywords(), execute=False)
        assert ledger.unknown == {}


def test_the_mode_that_checks_finds_a_wrong_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    analyze(model, (4,))
    key = next(key for key, done in MEMO.calls.items() if done.operations[0].name != "relu")
    right = MEMO.calls[key]
    monkeypatch.setattr(MEMO, "is_checked", True)
    analyze(model, (4,))
    MEMO.calls[key] = right._replace(writes=1)
    with pytest.raises(ForwardError, match="Linear: the memo has"):
        analyze(model, (4,))


# ---- what must run as it is written


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + super().forward(x)


def macs(model: nn.Module, *sizes: Any, **options: Any) -> Any:
    return analyze(model, *sizes, **options).totals()["macs"]


def test_a_subclass_and_an_overridden_forward() -> None:
    assert macs(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), (4,)) == 32
    assert macs(nn.Sequential(nn.Linear(4, 4), Doubled(4, 4)), (4,)) == 16 + 32
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].forward = lambda x: F.linear(F.linear(x, model[1].weight), model[1].weight)  # type: ignore[method-assign]
    assert macs(model, (4,)) == 16 + 32


def test_hooks_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert macs(model, (4,)) == 48
    model[1].register_forward_hook(lambda module, args, output: output @ torch.ones(4, 4))
    assert macs(model, (4,)) == 48 + 16
    model[2].register_forward_pre_hook(lambda module, args: (args[0] @ torch.ones(4, 4),))
    assert macs(model, (4,)) == 48 + 32


def test_hooks_on_all_modules_run() -> None:
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []
    analyze(model, (4,))
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        analyze(model, (4,))
    finally:
        handle.remove()
    assert seen == [model[0], model[1], model]


def test_a_patched_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert macs(model, (4,)) == 32
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: linear(linear(x, weight), weight, bias))
    assert macs(model, (4,)) == 64
    monkeypatch.undo()
    assert macs(model, (4,)) == 32


class Own(nn.Module):
    """A forward of the test's, with one leaf."""

    def __init__(self, leaf: nn.Module, function: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.leaf, self.function = leaf, function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def test_another_weight_in_mid_forward() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        x = net.leaf(x)
        net.leaf.weight = nn.Parameter(torch.ones(2, 4))
        return net.leaf(torch.cat([x, x], 1)[:, :4])

    model = Own(nn.Linear(4, 4, bias=False), forward)
    for _ in range(2):
        assert macs(model, (4,)) == 16 + 8
    assert model.leaf.weight.shape == (4, 4)


def test_an_attribute_that_changes_in_mid_forward() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        net.leaf(x)
        net.leaf.stride = (2, 2)
        return net.leaf(x)

    model = Own(nn.Conv2d(1, 1, 1, bias=False), forward)
    for _ in range(2):
        assert macs(model, (1, 4, 4)) == 16 + 4
    assert model.leaf.stride == (1, 1)


def test_a_mode_that_forward_enters_sees_all() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def forward(net: Any, x: torch.Tensor) -> Any:
        with Names():
            return net.leaf(x)

    seen: list[str] = []
    model = Own(nn.ReLU(), forward)
    for _ in range(3):
        analyze(model, (4,))
    assert seen == ["aten.relu.default"] * 3


def test_what_was_used_before_a_choice_is_remembered() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.experts = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            chosen = self.gate(x).topk(1).indices
            return torch.cat([self.experts(x[torch.where(chosen == place)[0]]) for place in range(3)])

    check(Routed(), (4,), batch=6)
    assert "routing" in record(Routed(), (4,), batch=6)


def test_a_weight_that_is_the_input() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        net.leaf(x)
        net.leaf.weight = nn.Parameter(x)
        return net.leaf(x)

    check(Own(nn.Linear(4, 4, bias=False), forward), (4,), batch=4)


def test_under_vmap_and_autocast_and_gradients() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        one = net.leaf(x)
        two = torch.vmap(net.leaf)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            three = net.leaf(x)
        with torch.enable_grad():
            four = net.leaf(x.detach().requires_grad_())
        assert three.dtype == torch.bfloat16 and four.requires_grad
        return one, two, three, four

    check(Own(nn.Linear(4, 4), forward), (4,), batch=2)


def test_values_that_are_known_stay_known() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        kept = net.leaf(torch.ones(3))
        return x * int(kept.sum().item())

    for _ in range(2):
        ledger = analyze(Own(nn.ReLU(), forward), (4,), execute=False)
        assert ledger.assumptions == []
        analyze(nn.Sequential(nn.ReLU()), torch.ones(3))  # the same call, of values that are not known


def test_writes_in_place_are_counted_as_writes() -> None:
    seen = []

    def forward(net: Any, x: torch.Tensor) -> Any:
        x = x * 2
        before = x._version
        out = net.leaf(x)
        assert out is x
        seen.append(x._version - before)
        return out

    model = Own(nn.ReLU(inplace=True), forward)
    for _ in range(3):
        analyze(model, (4,))
    assert len(set(seen)) == 1 and seen[0] == 1


def test_what_was_patched_for_a_run_is_put_back() -> None:
    call = MODULE._call_impl
    before = call.__code__, call.__kwdefaults__

    def forward(net: Any, x: torch.Tensor) -> Any:
        assert call.__code__ is not before[0]
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        analyze(Own(nn.ReLU(), forward), (4,))
    assert MODULE._call_impl is call
    assert (call.__code__, call.__kwdefaults__) == before == (call.__code__, None)
    assert nn.Linear(2, 2)(torch.ones(2)).shape == (2,)


def test_a_call_that_forward_replaces_is_put_back() -> None:
    call = MODULE._call_impl

    def forward(net: Any, x: torch.Tensor) -> Any:
        MODULE._call_impl = lambda self, *args: call(self, *args)
        return net.leaf(x)

    assert macs(Own(nn.Linear(4, 4), forward), (4,)) == 16
    assert MODULE._call_impl is call


def test_no_class_of_modules_is_changed_for_a_run() -> None:
    seen: list[dict[str, Any]] = []

    def forward(net: Any, x: torch.Tensor) -> Any:
        seen.append(dict(vars(nn.Module)))
        return net.leaf(x)

    before = dict(vars(nn.Module))
    analyze(Own(nn.ReLU(), forward), (4,))
    assert seen == [before] and dict(vars(nn.Module)) == before


def test_modules_nest_as_deep_as_the_stack_lets_them() -> None:
    """Four fifths as deep as in torch itself, whose call of a module takes four frames here: ours takes one more."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, depth: int) -> Any:
            return self(self.layer(x), depth - 1) if depth else x

    model, depth = Cell().eval(), 0
    with contextlib.suppress(RecursionError):
        while True:
            model(torch.ones(1, 4), depth + 10)
            depth += 10
    depth = depth * 3 // 4
    ledger = analyze(model, (4,), kwargs={"depth": depth})
    assert ledger.totals()["macs"] == 16 * depth


@pytest.mark.parametrize("name", ["_torchledger", "module", "args", "kwargs", "may_answer"])
def test_keywords_of_modules_reach_them(name: str) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor, **given: Any) -> torch.Tensor:
            return x * given[name]

    model = Own(Named(), lambda net, x: net.leaf(x, **{name: 3}))
    assert [row["kind"] for row in analyze(model, (4,)).by_layer().rows] == ["Named"]
    assert analyze(model.leaf, (4,), kwargs={name: 2}).totals()["flops"] == 4


def test_who_put_other_code_into_a_modules_call_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    call = MODULE._call_impl
    as_written = types.FunctionType(call.__code__, call.__globals__)
    model = nn.Sequential(nn.Linear(8, 8))
    assert macs(model, (8,)) == 64

    def twice(self: Any, *args: Any, _as_written: Any, **kwargs: Any) -> Any:
        return _as_written(self, *args, **kwargs) + _as_written(self, *args, **kwargs)

    monkeypatch.setattr(call, "__kwdefaults__", {"_as_written": as_written})
    monkeypatch.setattr(call, "__code__", twice.__code__)
    assert macs(model, (8,)) == macs(model, (8,)) == 256  # of the Sequential and of what is in it
    assert call.__code__ is twice.__code__


def test_a_copy_made_in_forward_runs() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        return copy.deepcopy(net.leaf)(net.leaf(x))

    for _ in range(2):
        assert macs(Own(nn.Linear(4, 4), forward), (4,)) == 32


# ---- the table of attributes


def names_read(leaf: nn.Module, size: tuple[int, ...]) -> set[str]:
    """Return the attributes with data that one real forward reads, besides tensors and `training`."""
    kind, read = type(leaf), set()

    class Noting(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    x = torch.ones(2, *size)
    leaf.__class__ = Noting
    read.clear()
    Noting.forward(leaf, x)
    leaf.__class__ = kind
    states = {*leaf._parameters, *leaf._buffers, "training"}
    return {name for name in read - states if not name.startswith("__") and not callable(getattr(kind, name, None))}


VARIANTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **LEAVES,
    "conv1d, same": (lambda: nn.Conv1d(4, 6, 3, padding="same", groups=2), (4, 16)),
    "conv3d with all": (lambda: nn.Conv3d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 8, 8, 8)),
    "batch norm of rows": (lambda: nn.BatchNorm1d(4, momentum=None), (4,)),
    "batch norm 2d without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 5, 5)),
    "layer norm without bias": (lambda: nn.LayerNorm((4, 16), bias=False), (4, 16)),
    "group norm without weights": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 5, 5)),
    "dropout in place": (lambda: nn.Dropout(0.2, inplace=True), (4, 16)),
    "gelu, tanh": (lambda: nn.GELU("tanh"), (4, 16)),
    "average pool with a divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (4, 15, 15)),
    "adaptive pool of one side": (lambda: nn.AdaptiveAvgPool2d((None, 2)), (4, 16, 16)),
}


@pytest.mark.parametrize("kind", leaves._ATTRIBUTES, ids=lambda kind: kind.__name__)
def test_the_table_has_what_forward_reads_and_no_more(kind: type[nn.Module]) -> None:
    listed = set(leaves._ATTRIBUTES[kind].split())
    read: set[str] = set()
    for make, size in VARIANTS.values():
        leaf = make()
        if type(leaf) is kind and getattr(leaf, "padding_mode", "zeros") == "zeros":
            found = names_read(leaf.eval(), size)
            assert found <= listed, leaf
            read |= found | names_read(leaf.train(), size)
    assert read == listed


def spread(value: int, dims: int) -> tuple[int, ...]:
    return (value,) * dims


_POOLED = {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True}
# Class -> a layer, the size of its input, and another value for each attribute.
DIFFERENT: dict[type[nn.Module], tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    **{
        kind: (
            lambda kind=kind: kind(4, 6, 3, padding=1),  # type: ignore[misc]
            (4, *spread(9, dims)),
            {
                "stride": spread(2, dims),
                "padding": spread(2, dims),
                "dilation": spread(2, dims),
                "groups": 2,
                "padding_mode": "circular",
            },
        )
        for dims, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)
    },
    **{
        kind: (
            lambda kind=kind: kind(4),  # type: ignore[misc]
            (4, *spread(5, dims)),
            {"track_running_stats": False, "momentum": 0.5, "eps": 0.25},
        )
        for dims, kind in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1)
    },
    nn.Linear: (lambda: nn.Linear(16, 5), (16,), {}),
    nn.LayerNorm: (lambda: nn.LayerNorm(16), (16, 16), {"normalized_shape": (16, 16), "eps": 0.25}),
    nn.GroupNorm: (lambda: nn.GroupNorm(2, 4), (4, 5), {"num_groups": 4, "eps": 0.25}),
    **{kind: (kind, (4,), {"inplace": True}) for kind in (nn.ReLU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid)},
    nn.ReLU6: (nn.ReLU6, (4,), {"inplace": True, "min_val": -1.0, "max_val": 5.0}),
    nn.ELU: (nn.ELU, (4,), {"alpha": 2.0, "inplace": True}),
    nn.LeakyReLU: (nn.LeakyReLU, (4,), {"negative_slope": 0.5, "inplace": True}),
    nn.GELU: (nn.GELU, (4,), {"approximate": "tanh"}),
    **{kind: (kind, (4,), {}) for kind in (nn.Sigmoid, nn.Tanh, nn.Identity)},
    nn.Softmax: (lambda: nn.Softmax(1), (4, 5), {"dim": 2}),
    nn.Dropout: (nn.Dropout, (4,), {"p": 2.0, "inplace": True}),
    nn.Flatten: (nn.Flatten, (4, 5, 6), {"start_dim": 2, "end_dim": 2}),
    nn.MaxPool2d: (
        lambda: nn.MaxPool2d(2),
        (4, 9, 9),
        {**_POOLED, "dilation": 2, "return_indices": True},
    ),
    nn.AvgPool2d: (
        lambda: nn.AvgPool2d(2),
        (4, 9, 9),
        {**_POOLED, "count_include_pad": False, "divisor_override": 3},
    ),
    nn.AdaptiveAvgPool2d: (lambda: nn.AdaptiveAvgPool2d(3), (4, 9, 9), {"output_size": (3, 2)}),
}


class Both(nn.Module):
    """Two layers, of the same input."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: torch.Tensor) -> Any:
        return self.one(x * 1.5), self.other(x * 1.5), self.one(x * 1.5)


def test_every_attribute_of_the_table_is_changed_once() -> None:
    listed = {(kind, name) for kind, names in leaves._ATTRIBUTES.items() for name in names.split()}
    assert {(kind, name) for kind, (*_, others) in DIFFERENT.items() for name in others} == listed


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.__name__}-{name}")
        for kind, (*_, other) in DIFFERENT.items()
        for name in other
    ],
)
def test_layers_that_differ_in_one_attribute_do_not_answer_for_each_other(
    kind: type[nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, size, others = DIFFERENT[kind]
    one, other = make(), make()
    assert getattr(one, name) != others[name]
    setattr(other, name, others[name])
    held_by, keys = leaves.Leaves._held_by, {}

    def noted(self: leaves.Leaves, module: nn.Module) -> Any:
        held = held_by(self, module)
        keys[id(module)] = held and held[0]
        return held

    monkeypatch.setattr(leaves.Leaves, "_held_by", noted)
    for model in (Both(one, other), Both(other, one)):
        keys.clear()
        MEMO.clear()
        check_outcome(model, size, batch=2)
        found = list(map(repr, keys.values()))  # of one alone where its call fails; None for one that has to run
        assert found and len(set(found)) == len(found), "the keys are equal"


# ---- what a layer may have beside what torch gave it, or in its place


def check_in_each_mode(model: nn.Module, *sizes: Any, **options: Any) -> None:
    """As `check`, and in the mode that checks every hit, in which no rule may stumble."""
    check(model, *sizes, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MEMO, "is_checked", True)
        MEMO.clear()
        analyze(model, *sizes, **options)


@pytest.mark.parametrize("name", ["linear", "conv2d", "ReLU", "batch norm 2d"])
@pytest.mark.parametrize("sort", ["parameter", "buffer"])
def test_a_tensor_more_than_the_class_has(name: str, sort: str) -> None:
    make, size = LEAVES[name]
    leaf = make()
    if sort == "parameter":
        leaf.extra = nn.Parameter(torch.ones(3))
    else:
        leaf.register_buffer("extra", torch.ones(3))
    check_in_each_mode(Both(make(), leaf), size, batch=2)
    check_in_each_mode(Around(leaf), size, batch=2)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_its_count_of_batches(affine: bool) -> None:
    norm = nn.BatchNorm2d(4, affine=affine)
    del norm.num_batches_tracked
    check_in_each_mode(Both(nn.BatchNorm2d(4, affine=affine), norm), (4, 5, 5), batch=2)
    check_in_each_mode(Around(norm), (4, 5, 5), batch=2)


def test_a_weight_that_is_no_parameter_any_more() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        first = net.leaf(x)
        del net.leaf.weight
        net.leaf.weight = torch.cat([first, first])[:2]
        return net.leaf(x)

    for _ in range(2):
        assert macs(Own(nn.Linear(4, 4, bias=False), forward), (4,), batch=4) == 4 * (16 + 8)
    check_in_each_mode(Own(nn.Linear(4, 4, bias=False), forward), (4,), batch=4)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 4)], ids=["layer", "group"])
def test_weights_in_another_order(make: Callable[[], nn.Module]) -> None:
    """By place, the bias of the one would be the weight of the other."""
    one, other = make(), make()
    one.weight = None
    other._parameters = {"bias": None, "weight": other.weight}
    check(Both(one, other), (4,), batch=2)
    check(Both(other, one), (4,), batch=2)


def doubled(self: nn.Module, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    return F.conv2d(x, weight, bias) + F.conv2d(x, weight, bias)


def test_the_inner_forward_of_a_convolution_patched_on_it() -> None:
    one, other = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    other._conv_forward = doubled.__get__(other)  # type: ignore[method-assign]
    for _ in range(2):
        assert macs(Both(one, other), (1, 4, 4)) == 16 + 32 + 16


def test_the_inner_forward_of_a_convolution_patched_on_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    assert macs(model, (1, 4, 4)) == 16
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", doubled)
    assert macs(model, (1, 4, 4)) == 32
    monkeypatch.undo()
    assert macs(model, (1, 4, 4)) == 16


def test_a_weight_that_stands_before_the_parameter() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        net.leaf(x)
        net.leaf.__dict__["weight"] = torch.ones(2, 4, 1, 1)
        try:
            return net.leaf(x)
        finally:
            del net.leaf.__dict__["weight"]

    model = Own(nn.Conv2d(4, 4, 1, bias=False), forward)
    for _ in range(2):
        assert macs(model, (4, 1, 1)) == 16 + 8
    check(model, (4, 1, 1))


def test_numbers_of_numpy_are_as_plain_ones(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")

    def net(two: Any, three: Any) -> nn.Module:
        convolution = nn.Conv2d(3, 4, three, stride=two, padding=two, bias=False)
        return nn.Sequential(
            convolution,
            nn.MaxPool2d(two, stride=two),
            nn.AvgPool2d(two, two),
            nn.LayerNorm((three, three)),
            nn.Flatten(),
        )

    plain, other = net(2, 3), net(numpy.int64(2), numpy.int64(3))
    for _ in range(2):
        expected, found = (analyze(model, (3, 24, 24), batch=2) for model in (plain, other))
        assert found.totals() == expected.totals()
        found.save(tmp_path / "found.json")
        assert Ledger.load(tmp_path / "found.json").totals() == expected.totals()
        plain, other = other, plain
    check(Both(plain[0], other[0]), (3, 24, 24))


def test_circular_padding_that_is_changed_afterwards() -> None:
    """What such a convolution pads is told when it is made."""
    one = nn.Conv2d(1, 1, 1, padding=1, padding_mode="circular", bias=False)
    other = nn.Conv2d(1, 1, 1, padding=2, padding_mode="circular", bias=False)
    other.padding = (1, 1)
    for _ in range(2):
        assert macs(Both(one, other), (1, 4, 4)) == 6 * 6 + 8 * 8 + 6 * 6
    check(Both(one, other), (1, 4, 4))


def test_what_is_made_in_inference_mode_stays_so() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        with torch.inference_mode():
            x = x * 2
        flat = net.leaf(x)
        assert flat.is_inference()
        return F.relu(flat, inplace=True) if net.writes else flat

    model = Own(nn.Flatten(), forward)
    model.writes = False
    check(model, (4, 2), batch=2)
    model.writes = True
    for net in (model, Own(nn.ReLU(inplace=True), forward_in_inference)):
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            net(torch.ones(2, 4, 2))
        for _ in range(2):
            analyze(nn.Sequential(nn.Flatten()), (4, 2), batch=2)
            analyze(nn.Sequential(nn.ReLU(inplace=True)), (4, 2), batch=2)
            with pytest.raises(ForwardError, match="Inplace update to inference tensor"):
                analyze(net, (4, 2), batch=2)


def forward_in_inference(net: Any, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        x = x * 2
    return net.leaf(x)


def parts(value: Any) -> Iterator[Any]:
    yield value
    for part in value if isinstance(value, tuple) else ():
        yield from parts(part)


def test_no_object_of_the_users_is_kept() -> None:
    class Number(float):
        pass

    model = nn.Sequential(nn.ELU(Number(2.0)), nn.Softmax(-1), nn.ELU(2.0))
    for _ in range(2):
        analyze(model, (4,))
    assert len(MEMO.calls) >= 2
    assert not [part for key in MEMO.calls for part in parts(key) if isinstance(part, Number)]
    check(model, (4,))


def test_writes_within_a_sequential_are_counted() -> None:
    """Of a tensor that is made once the last layer has written to it."""
    seen = []

    def forward(net: Any, x: torch.Tensor) -> Any:
        out = net.leaf(x)
        seen.append(out._version)
        return out

    model = Own(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.ReLU(inplace=True)), forward)
    for _ in range(2):
        analyze(model, (3, 4, 4))
    assert seen == [model.leaf(torch.ones(1, 3, 4, 4))._version] * 2 == [2, 2]


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_a_class_that_is_called_otherwise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a Sequential as outside of one."""
    model = nn.Sequential(nn.Linear(8, 8))
    assert macs(model, (8,)) == 64
    monkeypatch.setattr(nn.Linear, name, lambda self, x: nn.Linear.forward(self, nn.Linear.forward(self, x)))
    assert macs(model, (8,)) == macs(model, (8,)) == 128
