"""After `analyze` and `stat` everything is as it was: the model, torch, the random states, also when forward raises."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch._dynamo  # some meta kernels import it, and it wraps torch.manual_seed for good
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from torchledger import ForwardError, analyze, stat


class Holder:
    """A plain object that a model keeps things in."""

    def __init__(self) -> None:
        self.cache: torch.Tensor | None = None
        self.list = [torch.ones(2)]


IN_MODULE = torch.zeros(2)


class Busy(nn.Module):
    """A model that changes all that a forward can change, and raises when told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.Linear(4, 4)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.frozen.weight
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.dropout = nn.Dropout(0.5).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.ones(4), persistent=False)
        self.plain = torch.zeros(4)
        self.numbers: list[Any] = [1, torch.ones(2), [torch.zeros(1)]]
        self.table: dict[str, Any] = {"a": torch.ones(1), "inner": {"b": 1}}
        self.pair = (torch.zeros(2), [torch.zeros(2)])
        self.queue = deque([1, 2], maxlen=3)
        self.seen = {1}
        self.ordered = OrderedDict(x=1)
        self.holder = Holder()
        self.hooked = 0
        self.conv.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.hooked += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.hidden = self.hidden * 2
        self.plain.add_(1)
        self.plain = x.mean()
        self.numbers.append(x)
        self.numbers[1].mul_(3)
        self.table["new"] = x
        self.table["inner"]["b"] = 2
        self.pair[0].add_(1)
        self.pair[1][0].add_(1)
        IN_MODULE.add_(1)
        self.queue.append(3)
        self.seen.add(x.shape[0])
        self.ordered["y"] = x
        self.holder.cache = x
        self.holder.list.append(x)
        self.holder.list[0].add_(1)
        self.fresh = x
        self.extra = nn.Linear(4, 4)
        self.extra_parameter = nn.Parameter(torch.zeros(2))
        del self.hooked
        self.hooked = 7
        self.conv.weight.data = self.conv.weight.data * 2
        self.frozen.requires_grad_(True)
        self.train()
        torch.set_grad_enabled(True)
        torch.manual_seed(123)
        random.random()
        numpy.random.rand()
        torch.set_default_dtype(torch.float64)
        torch.set_default_dtype(torch.float32)
        y = self.dropout(self.norm(self.conv(x))).mean((2, 3))
        y = self.tied(self.frozen(y)) + torch.randn(4)
        y = self.attention(y[:, None], y[:, None], y[:, None])[0]
        if self.fails:
            raise RuntimeError("told to")
        return y


def holdings(value: Any, depth: int = 0) -> Any:
    """Return what a value holds as something to compare: identities and contents of tensors, contents of the rest."""
    if isinstance(value, torch.Tensor):
        return (
            "tensor",
            id(value),
            type(value),
            value.tolist(),
            value.requires_grad,
            str(value.device),
            id(value.grad),
        )
    if isinstance(value, dict):
        return (type(value), id(value), [(key, holdings(item, depth + 1)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return (type(value), id(value) if not isinstance(value, tuple) else 0, [holdings(v, depth + 1) for v in value])
    if isinstance(value, set):
        return (id(value), sorted(map(repr, value)))
    if isinstance(value, Holder):
        return holdings(vars(value))
    if isinstance(value, nn.Module):
        return ("module", id(value))
    return (id(value), repr(value))


def world(model: nn.Module) -> dict[str, Any]:
    """Return all that must not change."""
    modules = list(model.named_modules())
    classes = {type(module) for _, module in modules} | {nn.Module, torch.Tensor, nn.Parameter}
    return {
        "state_dict": [(key, tensor.tolist()) for key, tensor in model.state_dict().items()],
        "modules": [(name, id(module), type(module), module.training) for name, module in modules],
        "attributes": [holdings(vars(module)) for _, module in modules],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "versions": [tensor._version for tensor in (*model.parameters(), *model.buffers(), IN_MODULE)],
        "grads": [holdings(p.grad) for p in model.parameters()],
        "classes": [(cls, sorted((k, id(v)) for k, v in vars(cls).items() if k != "__doc__")) for cls in classes],
        "functions": [
            [(name, id(value)) for name, value in vars(space).items() if isinstance(value, types.FunctionType)]
            for space in (torch, F, nn, torch.nn.modules.module)
        ],
        "builtins": [(name, id(value)) for name, value in vars(torch).items() if callable(value)],
        "global hooks": {k: [*v] for k, v in vars(torch_module).items() if "_global_" in k and hasattr(v, "keys")},
        "rng": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "in module": holdings(IN_MODULE),
        "default dtype": torch.get_default_dtype(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
        "streams": (id(sys.stdout), id(sys.stderr)),
    }  # fmt: skip


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train", "as_is"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, mode: analyze(model, (3, 8, 8), mode=mode),
        lambda model, mode: analyze(model, torch.zeros(2, 3, 8, 8), mode=mode, model_dtype="float32"),
        lambda model, mode: stat(model, (3, 8, 8), mode=mode),
        lambda model, mode: stat(model, (3, 8, 8), mode=mode, measure=True),
    ],
    ids=["analyze", "analyze-cast", "stat", "stat-measured"],
)
def test_nothing_has_changed(call: Callable[..., Any], mode: Any, fails: bool, grad: bool) -> None:
    model = Busy(fails)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    with torch.set_grad_enabled(grad):
        before = copy.copy(world(model))
        for _ in range(2):
            if fails:
                with pytest.raises(ForwardError, match="told to"):
                    call(model, mode)
            else:
                call(model, mode)
            after = world(model)
            for name, value in before.items():
                assert after[name] == value, name


def test_inputs_are_not_changed() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor, table: dict[str, Any]) -> torch.Tensor:
            table["b"] = x
            table["a"].zero_()
            return x.add_(1)

    x, table = torch.ones(2, 2), {"a": torch.ones(2)}
    for call in (lambda: analyze(InPlace(), x, table), lambda: stat(InPlace(), x, table, measure=True)):
        call()
        assert x.tolist() == [[1, 1], [1, 1]] and x._version == 0
        assert list(table) == ["a"] and table["a"].tolist() == [1, 1]


def test_lazy_modules_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    kinds = [type(module) for module in model]
    total = analyze(model, (3, 8, 8)).totals()
    # 6 x 6 outputs of 4 channels, 3 x 3 x 3 each; 144 features by 5
    assert total["macs"] == 36 * 4 * 27 + 144 * 5
    assert [type(module) for module in model] == kinds
    assert all(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters() if p is not None)
    assert analyze(model, (3, 8, 8)).totals() == total
    model(torch.zeros(1, 3, 8, 8))


def test_model_still_trains_afterwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = torch.randn(3, 4)
    expected = model(x).detach()
    analyze(model, x, mode="train")
    y = model(x)
    assert torch.equal(y.detach(), expected)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_inference_tensors_and_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 2)
        assert analyze(model, torch.zeros(1, 4)).totals()["macs"] == 8
        assert torch.is_inference_mode_enabled()
    assert analyze(model, (4,)).totals()["macs"] == 8
