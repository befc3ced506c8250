"""Calls of torch's functions that are answered from earlier ones: the record is as if each had run."""

from __future__ import annotations

import itertools
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchledger import ForwardError, analyze
from torchledger.capture import frontdoor, functions
from torchledger.capture.shapes import MEMO

Forward = Callable[[Any, torch.Tensor], Any]


class Own(nn.Module):
    """A forward of the test's, with a weight, a mask and a table."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))
        self.register_buffer("mask", torch.tensor([True, False] * 4))
        self.own = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.own(self, x)


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
    counter, replay = itertools.count(), functions.Functions._replay

    def counted(*args: Any) -> Any:
        next(counter)
        return replay(*args)

    monkeypatch.setattr(functions.Functions, "_replay", counted)
    return lambda: next(counter)


def outcome(model: nn.Module, *sizes: Any, **options: Any) -> Any:
    try:
        return analyze(model, *sizes, **options).to_json()
    except ForwardError as error:
        return str(error), error.ledger.to_json()


def check(forward: Forward, size: tuple[int, ...] = (8, 8), **options: Any) -> Any:
    """Assert that the first run, the second, one that checks, and one without answers leave the same record."""
    model = Own(forward)
    first, second = (outcome(model, size, batch=2, **options) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MEMO, "is_checked", True)
        checked = outcome(model, size, batch=2, **options)
        patch.undo()
        MEMO.clear()
        patch.setattr(frontdoor, "PURE", frozenset())
        plain = outcome(model, size, batch=2, **options)
    assert first == plain
    assert second == plain
    assert spelled_out(checked) == spelled_out(plain)
    return plain


def spelled_out(outcome: Any) -> Any:
    """Return an outcome with each operation at its entry: the mode that checks lists equal ones apart."""
    *error, record = outcome if isinstance(outcome, tuple) else (outcome,)
    operations = record["operations"]
    entries = record["entries"] | {"operation": [operations[place] for place in record["entries"]["operation"]]}
    return error, record | {"operations": [], "entries": entries}


def kept(*results: Any) -> Any:
    """Return results, so that they live on."""
    return results


def heads(net: Any, x: torch.Tensor) -> Any:
    q, k, v = F.linear(x, torch.cat([net.weight] * 3)).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def many_heads(net: Any, x: torch.Tensor) -> Any:
    weight, bias = torch.cat([net.weight] * 3), net.weight[0].repeat(3)
    options = {"training": False, "need_weights": True}
    out, scores = F.multi_head_attention_forward(
        x, x, x, 8, 2, weight, bias, None, None, False, 0.0, net.weight, net.weight[0], **options
    )
    return kept(out, scores, x + out)


CALLS: dict[str, Forward] = {
    "sums and products": lambda net, x: (x + 1) * x - x / 2 + x.add(x, alpha=2) @ net.weight,
    "spread": lambda net, x: kept(x + x[:, :1], x[:1, :1] * x, x * net.weight[0], x.mul(net.weight)),
    "the same twice": lambda net, x: kept(x + x, x * x, x @ x.transpose(1, 2), torch.cat([x, x], -1)),
    "of whole numbers": lambda net, x: kept(x * net.mask, x + torch.arange(8), x.masked_fill(net.mask, 0.0) + x),
    "number by number": lambda net, x: kept(x * True, x * 1, x * 1.0, x + 2, 3 - x, x**2, 2**x, -x),
    "in place": lambda net, x: kept((x + 1).add_(1), (x * 2).mul_(x), (x + 2).relu_(), F.relu(x + 3, inplace=True)),
    "in place of a part": lambda net, x: (y := x * 2, y[:, :2].add_(1), y[0].mul_(x[1]), y + 1)[1:],
    "in place, spread": lambda net, x: kept((x + 0.5).add_(x[:, :1]), (x + 1.5).mul_(net.weight[0])),
    "views": lambda net, x: kept(
        x.view(2, -1), x.reshape(-1), x.permute(2, 0, 1), x.transpose(0, -1), x.unsqueeze(-1), x[:, None, 1:5:2, -1]
    ),
    "views of views": lambda net, x: kept(x.transpose(1, 2)[..., 2:].unsqueeze(1).expand(-1, 3, -1, -1).reshape(-1)),
    "views of a weight": lambda net, x: kept(x @ net.weight.t(), x @ net.weight[:, :3], net.weight.flatten()),
    "slices": lambda net, x: kept(x[5:], x[:, -3:], x[..., ::3], x[:0], x[0, 0, 0], x[()], x[None, ...], x[-1]),
    "as it is": lambda net, x: kept(x.contiguous(), x.float(), x.reshape(x.shape), x.expand(-1, -1, -1), x.view_as(x)),
    "copies": lambda net, x: kept(x.transpose(1, 2).contiguous(), x.permute(2, 1, 0).flatten(), x.roll(1, 0)),
    "parts": lambda net, x: kept(*x.chunk(3, 1), *x.split([3, 5], 2), *x.chunk(2)),
    "joined": lambda net, x: kept(torch.cat([x, x[:, :3]], 1), torch.stack([x, x + 1], -1), torch.cat((x,), dim=2)),
    "sums over dimensions": lambda net, x: kept(x.mean((1, 2)), x.sum(), x.mean(-1, keepdim=True), x.sum(1)),
    "softmax": lambda net, x: kept(x.softmax(-1), F.softmax(x, 1), torch.softmax(x.transpose(1, 2), -1)),
    "layers": lambda net, x: kept(
        F.linear(x, net.weight), F.linear(x, net.weight, net.weight[0]), F.layer_norm(x, (8,), net.weight[0]), F.gelu(x)
    ),
    "images": lambda net, x: kept(
        F.conv1d(x, net.weight[:, :, None]), F.max_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1), F.pad(x, (1, 2))
    ),
    "products": lambda net, x: kept(x @ net.weight, net.weight @ net.weight, x[0] @ net.weight[0], torch.bmm(x, x)),
    "attention": heads,
    "attention of many heads": many_heads,
    "other dtypes": lambda net, x: kept(x.double() + 1, x.half() * x.half(), x.half() @ net.weight.half()),
    "as another dtype": lambda net, x: kept(
        x.softmax(-1, dtype=torch.float64), x.sum(dtype=torch.float64), x + x.half()
    ),
    "of nothing": lambda net, x: kept(x[:0] + 1, torch.cat([x[:0], x]), x[:0] @ net.weight, x[:0].flatten()),
    "indices": lambda net, x: kept(
        x[:],
        x[:, :],
        x[1:][:, 2],
        x[:, 0, None, 1:],
        x[..., 0, :],
        x[0, ..., 1],
        x[None, 0],
        x[::2, :, -3:-1],
        x[:, 9:],
        x[0][0],
        x[(slice(1, 2),)],
        x[:, :8, :9],
        x[:8],
        x[-8:, -9:],
        x[[0, 1]],
        x[x[:, 0, 0] > 0],
        x[..., None, None],
        x[True],
        x[:, net.mask],
    ),
    "windows": lambda net, x: kept(
        F.max_pool2d(x, 3, 1, 1),
        F.max_pool2d(x, (2, 1), stride=(1, 2), ceil_mode=True),
        F.avg_pool2d(x, 2),
        F.avg_pool2d(x[None], 3, stride=1, padding=1, count_include_pad=False),
        F.max_pool2d(x, 2, return_indices=True),
        F.adaptive_avg_pool2d(x[None], (1, None)),
        F.adaptive_avg_pool2d(x[None], 3),
    ),
    "channels last": lambda net, x: kept(
        y := x[None].permute(0, 3, 1, 2),
        y + y,
        y * net.weight[0, :2, None, None],
        F.relu(y),
        y.mul_(2),
        y.mean((2, 3)),
        torch.cat([y, y], 1),
        F.layer_norm(y, (2, 8)),
        F.layer_norm(y.permute(0, 2, 3, 1), (8,)),
        y.add_(x[:, :, 1]),
        F.adaptive_avg_pool2d(y, 1),
        F.adaptive_avg_pool2d(y, 2),
        y.contiguous(),
        y.reshape(-1),
        y.chunk(2, 1),
        y.exp(),
    ),
    "rolled": lambda net, x: kept(x.roll(1, 0), torch.roll(x, 2), torch.roll(x, (1, 2), (0, 1)), torch.roll(x, 1, -1)),
    "dividing": lambda net, x: kept(
        x / x,
        x / 2,
        1 / x,
        x.div(2, rounding_mode="floor"),
        torch.div(x, net.weight),
        x - 1,
        x.sub(x, alpha=3),
        x / True,
    ),
    "a number before": lambda net, x: kept(torch.add(1, x), torch.sub(2.5, x), torch.mul(2, x), torch.div(1, x), 2 - x),
    "far away": lambda net, x: kept(x[:, 1 : 10**30], x[:, -(10**30) : 3], x[: 2**62], x.roll(2**40, 1)),
    "a bias of two dimensions": lambda net, x: kept(
        F.linear(x, net.weight, net.weight), F.linear(x[0], net.weight, x[1])
    ),
    "of an odd norm": lambda net, x: kept(
        F.layer_norm(x, [8], eps=1), F.layer_norm(x, (8, 8)), F.layer_norm(x, x.shape)
    ),
    "split apart": lambda net, x: kept(
        torch.chunk(x, 3, 2), x[0].chunk(1), x.chunk(20, 1), x.chunk(2, -1), [y * 2 for y in x.chunk(2, 2)]
    ),
    "one number": lambda net, x: kept(x.sum() + 1, x.sum() * x, x * x.sum(), x.sum().view(1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_booked_alike(name: str, replays: Callable[[], int]) -> None:
    check(CALLS[name])
    assert replays(), "nothing was answered"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda net, x: torch.cat([x, x], 5),
        lambda net, x: torch.cat([x, x[..., :3]], 1),
        lambda net, x: x.view(3, -1),
        lambda net, x: x.view(-2, -2),
        lambda net, x: x.flatten(4),
        lambda net, x: x.permute(0, 1),
        lambda net, x: x.permute(0, 1, 1),
        lambda net, x: x.transpose(0, 3),
        lambda net, x: x.expand(3, 8, 8),
        lambda net, x: x[2],
        lambda net, x: x @ net.weight[:3],
        lambda net, x: x + x[:, :3],
        lambda net, x: x[:, :1].add_(x),
        lambda net, x: F.linear(x.double(), net.weight),
        lambda net, x: F.gelu(x, approximate="what"),
        lambda net, x: x[0, ..., :, :, :],
        lambda net, x: x[:, :, :, :9],
        lambda net, x: x[..., None, 0, 0, 0, 0],
        lambda net, x: x.chunk(2, 7),
        lambda net, x: x.sum().chunk(2),
        lambda net, x: x.chunk(2**70),
        lambda net, x: x + 2**70,
        lambda net, x: x.mul_(-(2**65)),
        lambda net, x: torch.roll(x, 2**70, 0),
        lambda net, x: torch.roll(x, (1, 2), (0,)),
        lambda net, x: F.layer_norm(x, 8),
        lambda net, x: F.layer_norm(x, (8,), 1),
        lambda net, x: F.layer_norm(x, (8,), None, None, "1"),
        lambda net, x: F.layer_norm(x, (8,), eps=None),
        lambda net, x: F.adaptive_avg_pool2d(x[None], None),
        lambda net, x: F.avg_pool2d(x[None], 2, divisor_override=2**70),
        lambda net, x: F.max_pool2d([x], 2),
        lambda net, x: F.linear(x, net.weight, net.weight[:, :3]),
        lambda net, x: x.mean((1, 1)),
        lambda net, x: x.softmax(3),
    ],
)
def test_what_fails_fails_alike(wrong: Forward) -> None:
    assert isinstance(check(wrong), tuple), "torch takes it"


def test_results_that_die_and_those_that_live_on() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        held = []
        for _ in range(4):
            x = x @ net.weight + 1
            held.append(x.relu())
            if len(held) > 2:
                held.pop(0)
        return held

    check(forward)


def test_writes_in_place_are_counted_as_writes() -> None:
    seen = []

    def forward(net: Any, x: torch.Tensor) -> Any:
        x = x * 2
        before = x._version
        out = x.add_(1)
        out += x
        assert out is x
        seen.append(x._version - before)
        return out

    for _ in range(3):
        analyze(Own(forward), (8, 8))
    assert seen == [2, 2, 2]


def test_a_default_dtype_that_changes() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        one = (x > 0) * 1.5
        torch.set_default_dtype(torch.float64)
        return one, (x > 0) * 1.5, net.mask / 2

    check(forward)


def test_under_transforms_and_with_gradients() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        one = torch.vmap(lambda row: row @ net.weight + 1)(x)
        two = torch.func.jvp(lambda y: (y * 2).softmax(-1), (x,), (x,))
        with torch.enable_grad():
            three = (x.detach().requires_grad_() * 2).relu()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            four = x @ net.weight
        with torch.inference_mode():
            five = x @ net.weight + 1
        assert three.requires_grad and four.dtype == torch.bfloat16 and five.is_inference()
        return one, two, three, four

    check(forward)


def test_forward_mode_gradients() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        alone = x * 2
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x + 1) * 2
            tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
            assert tangent is not None
            return alone, tangent + 1

    check(forward)


def test_a_patched_method_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def operations() -> Any:
        return analyze(Own(lambda net, x: F.softmax(x, -1)), (8, 8)).totals()["operations"]

    assert operations() == operations() == 1
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *rest: softmax(softmax(x, *rest), *rest))
    assert operations() == operations() == 2


def test_modes_that_forward_enters_see_all() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    def forward(net: Any, x: torch.Tensor) -> Any:
        with Names():
            x = x + 1
        with Functions():
            return x + 1

    seen: list[str] = []
    for _ in range(3):
        analyze(Own(forward), (8, 8))
    assert seen == ["aten.add.Tensor", "add"] * 3


def test_a_mode_around_the_analysis_sees_what_functions_call() -> None:
    class Twice(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            return found + found if func is F.relu else found

    def names() -> list[str]:
        record = analyze(Own(lambda net, x: F.relu(x)), (8, 8)).record
        return [record.operations[entry.operation].name for entry in record.entries]

    alone = names()
    with Twice():
        inside = [names(), names()]
    assert alone == ["relu"] and inside == [["relu", "add"]] * 2 and names() == alone


def test_a_patched_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def macs() -> Any:
        return analyze(Own(lambda net, x: F.linear(x, net.weight)), (8, 8)).totals()["macs"]

    assert macs() == macs() == 8 * 8 * 8
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight: linear(linear(x, weight), weight))
    assert macs() == macs() == 2 * 8 * 8 * 8


def test_what_a_patched_function_is_called_by_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def operations() -> Any:
        return analyze(Own(lambda net, x: F.relu(x)), (8, 8)).totals()["operations"]

    assert operations() == operations() == 1
    relu = torch.relu
    monkeypatch.setattr(torch, "relu", lambda x: relu(relu(x)))
    assert operations() == operations() == 2


def test_values_that_are_known_stay_known() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        chosen = net.mask[2:6].view(2, 2).flatten()
        assert int(chosen.sum().item()) == 2
        return x[:, : int((net.mask * 1).sum().item())]

    for _ in range(2):
        assert analyze(Own(forward), (8, 8), execute=False).assumptions == []


def test_what_follows_a_choice_is_followed() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        chosen = (x[:, 0] @ net.weight).topk(1).indices.flatten()
        return F.linear(x, net.weight), net.weight[chosen] * 2

    check(forward)


def test_a_training_step_is_as_it_was() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        return heads(net, x * 2).flatten(1).softmax(-1)

    check(forward, training=True, optimizer="adamw")


def test_the_mode_that_checks_finds_a_wrong_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Own(lambda net, x: x @ net.weight)
    analyze(model, (8, 8))
    (key, right), *_ = (item for item in MEMO.calls.items() if isinstance(item[1], functions.Did))
    monkeypatch.setattr(MEMO, "is_checked", True)
    analyze(model, (8, 8))
    MEMO.calls[key] = right._replace(writes=((0, 1),))
    with pytest.raises(ForwardError, match="the memo has"):
        analyze(model, (8, 8))


def test_every_rule_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the calls that rules are there for takes a way through torch's dispatcher."""
    answered: list[Any] = []
    foreseen = functions.Functions._foreseen

    def noted(self: Any, rule: Any, *rest: Any) -> Any:
        did = foreseen(self, rule, *rest)
        answered.extend([rule] if did is not None else [])
        return did

    monkeypatch.setattr(functions.Functions, "_foreseen", noted)
    calls: dict[Any, Forward] = {
        torch.Tensor.add: lambda net, x: x.add(net.weight[None]),
        torch.add: lambda net, x: torch.add(x, 2),
        torch.Tensor.sub: lambda net, x: x.sub(0.5),
        torch.sub: lambda net, x: torch.sub(x, net.weight),
        torch.Tensor.mul: lambda net, x: x.mul(net.weight[None]),
        torch.mul: lambda net, x: torch.mul(x, net.weight[None]),
        torch.Tensor.div: lambda net, x: x.div(8.0),
        torch.div: lambda net, x: torch.div(x, net.weight),
        torch.Tensor.add_: lambda net, x: x.add_(net.weight),
        torch.Tensor.mul_: lambda net, x: x.mul_(net.weight),
        torch.cat: lambda net, x: torch.cat([x, net.weight[None]]),
        F.relu: lambda net, x: F.relu(x),
        torch.relu: lambda net, x: torch.relu(x),
        torch.Tensor.relu: lambda net, x: x.relu(),
        torch.sigmoid: lambda net, x: torch.sigmoid(x),
        torch.Tensor.sigmoid: lambda net, x: x.sigmoid(),
        torch.exp: lambda net, x: torch.exp(x),
        torch.Tensor.exp: lambda net, x: x.exp(),
        torch.flatten: lambda net, x: torch.flatten(x, 1),
        torch.Tensor.flatten: lambda net, x: x.flatten(0, 1),
        torch.Tensor.view: lambda net, x: x.view(-1, 4),
        torch.Tensor.reshape: lambda net, x: x.reshape((2, -1)),
        torch.permute: lambda net, x: torch.permute(x, [2, 0, 1]),
        torch.Tensor.permute: lambda net, x: x.permute(0, -1, 1),
        torch.transpose: lambda net, x: torch.transpose(x, 0, -1),
        torch.Tensor.transpose: lambda net, x: x.transpose(1, 2),
        torch.Tensor.contiguous: lambda net, x: x.contiguous(),
        torch.chunk: lambda net, x: torch.chunk(x, 3, -1),
        torch.Tensor.chunk: lambda net, x: x.chunk(2, dim=1),
        torch.unsqueeze: lambda net, x: torch.unsqueeze(x, 1),
        torch.Tensor.unsqueeze: lambda net, x: x.unsqueeze(-1),
        torch.Tensor.__getitem__: lambda net, x: x[:, 1:5:2, None, ..., -1],
        torch.Tensor.mean: lambda net, x: x.mean([1, 2], keepdim=True),
        torch.roll: lambda net, x: torch.roll(x, (1, -2), (1, 2)),
        torch.softmax: lambda net, x: torch.softmax(x, -1),
        torch.Tensor.softmax: lambda net, x: x.softmax(dim=1),
        F.layer_norm: lambda net, x: F.layer_norm(x, (8,), net.weight[0]),
        F.linear: lambda net, x: F.linear(x, net.weight),
        F.max_pool2d: lambda net, x: F.max_pool2d(x[None], 2),
        F.avg_pool2d: lambda net, x: F.avg_pool2d(x[None], 3, stride=1, padding=1),
        F.adaptive_avg_pool2d: lambda net, x: F.adaptive_avg_pool2d(x[None], 2),
    }
    assert calls.keys() == functions.RULES.keys()
    for func, call in calls.items():
        answered.clear()
        analyze(Own(call), (8, 8))
        indexed = functions.RULES[torch.Tensor.__getitem__]  # of what the call is given
        assert [rule for rule in answered if rule is not indexed or func is torch.Tensor.__getitem__] == [
            functions.RULES[func]
        ]
        MEMO.clear()


def test_pure_functions_are_functions() -> None:
    kinds = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
    assert all(isinstance(func, kinds) for func in functions.PURE)


# ---- what a key must have


def test_a_weight_that_stops_asking_for_gradients() -> None:
    """torch.matmul folds a batch by whether the matrix asks for gradients, also where none are recorded."""

    def forward(net: Any, x: torch.Tensor) -> Any:
        return net.weight @ x

    def plain() -> Any:
        MEMO.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frontdoor, "PURE", frozenset())
            return outcome(model, (8, 4), batch=16)

    model = Own(forward)
    first = outcome(model, (8, 4), batch=16)
    model.requires_grad_(False)
    second = outcome(model, (8, 4), batch=16)
    assert second == plain() and first != second
    assert first == (model.requires_grad_(True), plain())[1]


def test_attention_of_one_tensor_or_of_views_of_it() -> None:
    """One product makes keys and values of one tensor, two make them of two, wherever these lie."""

    class Attention(nn.Module):
        def __init__(self, is_one: bool) -> None:
            super().__init__()
            self.attention, self.is_one = nn.MultiheadAttention(8, 2), is_one

        def forward(self, x: torch.Tensor) -> Any:
            return self.attention(x[:1], x, x if self.is_one else x.view_as(x))[0]

    def products(is_one: bool) -> int:
        record = analyze(Attention(is_one), torch.randn(5, 2, 8)).record
        return sum(record.operations[entry.operation].name == "addmm" for entry in record.entries)

    alone = {}
    for is_one in (True, False):
        MEMO.clear()
        alone[is_one] = products(is_one)
    assert alone[True] < alone[False]
    for order in ((True, False), (False, True)):
        MEMO.clear()
        assert [products(is_one) for is_one in order] == [alone[is_one] for is_one in order]


def test_a_parameter_that_is_returned_as_it_is_is_not_used() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 4), nn.ParameterList(torch.randn(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            experts = [expert.float() for expert in self.experts]
            _, chosen = self.gate(x).softmax(-1).topk(1, -1)
            out = torch.zeros_like(x)
            for place, expert in enumerate(experts):
                rows, _ = torch.where(chosen == place)
                if rows.numel():
                    out.index_add_(0, rows, x[rows] @ expert)
            return out

    # The gate's 8 x 4 and 4, and one expert of four for each token.
    assert [analyze(Experts(), (8,), batch=4).totals()["active_params"] for _ in range(2)] == [36 + 64] * 2


def test_numbers_that_a_dtype_rounds_to_infinity() -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        numbers = torch.tensor(1e40), torch.tensor(2**70, dtype=torch.float32), torch.tensor(1.7976931348623157e308)
        return [x + number for number in numbers]

    check(forward)


def test_a_dtype_that_no_kernel_fills() -> None:
    check(lambda net, x: torch.zeros_like(x, dtype=torch.float4_e2m1fn_x2))


def test_what_is_made_where_functions_are_not_seen_answers_nobody() -> None:
    class Net(nn.Module):
        def __init__(self, is_seen: bool) -> None:
            super().__init__()
            self.layer, self.is_seen = nn.Linear(8, 8), is_seen

        def forward(self, x: torch.Tensor) -> Any:
            x = x.transpose(1, 2)
            if self.is_seen:
                return self.layer(x)
            with torch._C.DisableTorchFunction():
                return self.layer(x)

    seen = outcome(Net(True), (8, 8), batch=2)
    MEMO.clear()
    outcome(Net(False), (8, 8), batch=2)
    assert outcome(Net(True), (8, 8), batch=2) == seen


def test_what_was_patched_before_torchledger_was_imported_runs() -> None:
    code = """
import functools, torch, torch.nn.functional as F
from torch import nn
{patch}
from torchledger import analyze
model = nn.Sequential(nn.Linear(8, 8))
print([analyze(model, (8,), execute=execute).totals()["macs"] for execute in (False, False, True)])
"""
    patches = (
        "old = nn.Linear.forward; nn.Linear.forward = lambda self, x: old(self, old(self, x))",
        "old = F.linear; F.linear = lambda x, *rest: old(old(x, *rest), *rest)",
        "old = F.linear; F.linear = functools.partial(lambda x, *rest: old(old(x, *rest), *rest))",
        "old = nn.Sequential.forward; nn.Sequential.forward = lambda self, x: old(self, old(self, x))",
    )
    for patch in patches:
        done = subprocess.run([sys.executable, "-c", code.format(patch=patch)], capture_output=True, text=True)
        assert done.stdout.strip() == "[128, 128, 128]", done.stderr
