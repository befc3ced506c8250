"""Parameters and buffers whose twins are made when forward looks at them: what it sees and books is as if all were."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torchledger import analyze
from torchledger.capture import holdings
from torchledger.capture.shapes import MEMO
from torchledger.capture.twins import Twins
from torchledger.capture.waiting import Waiting


class Net(nn.Module):
    """A linear layer and a norm; `look` is called with the model and its input, and returns the output."""

    def __init__(self, look: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.look = [look]  # a list, so that the model can be copied without it

    def forward(self, x: torch.Tensor) -> Any:
        return self.look[0](self, x)


def record(model: nn.Module, **options: Any) -> dict[str, Any]:
    return analyze(model, (4,), batch=3, **options).record.to_json()


def at_once(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return the record of a run before which all twins are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdings, "_STATE_KINDS", frozenset())
        return record(model, **options)


def looked_at(patch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that takes up each tensor whose twin is made late."""
    seen: list[torch.Tensor] = []
    make = Twins._of_late

    def late(self: Twins, tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return make(self, tensor)

    patch.setattr(Twins, "_of_late", late)
    return seen


def test_parameters_of_the_model_itself_wait_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looked_at(monkeypatch)
    model = nn.Sequential(nn.Linear(4, 4))
    model.scale = nn.Parameter(torch.ones(3))
    assert analyze(model, (4,)).totals()["params"] == 23
    assert not seen


def test_what_nobody_looks_at_gets_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looked_at(monkeypatch)
    model = Net(lambda net, x: net.norm(nn.functional.linear(x, net.fc.weight)))
    MEMO.clear()
    first = record(model)
    assert {id(tensor) for tensor in seen} == {id(t) for t in model.fc.parameters()}
    seen.clear()
    model = Net(lambda net, x: net.norm(net.fc(x)))
    first = record(model)
    gc.disable()  # nothing of the first run may be in the way of the second
    try:
        again = record(model)
    finally:
        gc.enable()
    assert seen == []
    assert first == again == at_once(model)


LOOKS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda fc: fc.weight,
    "parameters": lambda fc: next(iter(fc.parameters())),
    "named_parameters": lambda fc: dict(fc.named_parameters())["weight"],
    "state_dict": lambda fc: fc.state_dict()["weight"],
    "item": lambda fc: fc._parameters["weight"],
    "get": lambda fc: fc._parameters.get("weight"),
    "values": lambda fc: next(iter(fc._parameters.values())),
    "items": lambda fc: next(iter(fc._parameters.items()))[1],
    "popitem": lambda fc: (fc._parameters.popitem(), fc._parameters.popitem())[1][1],
    "pop": lambda fc: fc._parameters.pop("weight"),
    "setdefault": lambda fc: fc._parameters.setdefault("weight", None),
    "copy": lambda fc: fc._parameters.copy()["weight"],
    "dict": lambda fc: dict(fc._parameters)["weight"],
    "stars": lambda fc: {**fc._parameters}["weight"],
    "or": lambda fc: ({"other": 1} | fc._parameters)["weight"],
    "or, the other way": lambda fc: (fc._parameters | {"other": 1})["weight"],
    "update": lambda fc: (found := {}, found.update(fc._parameters), found["weight"])[2],
    "shallow copy": lambda fc: copy.copy(fc).weight,
    "deep copy": lambda fc: copy.deepcopy(fc).weight,
    "pickle": lambda fc: pickle.loads(pickle.dumps(fc._buffers)) or fc.weight,
    "after a new one": lambda fc: fc.register_parameter("more", nn.Parameter(torch.ones(2))) or fc.weight,
    "after a swap": lambda fc: setattr(fc, "bias", nn.Parameter(torch.ones(4))) or fc.weight,
}


@pytest.mark.parametrize("name", LOOKS)
def test_whoever_looks_finds_twins(name: str) -> None:
    found: list[Any] = []

    def look(net: Any, x: torch.Tensor) -> Any:
        weight = LOOKS[name](net.fc)
        found.append((type(weight), weight.untyped_storage().device.type))
        return x @ weight

    model = Net(look)
    own = dict(model.fc._parameters)
    assert record(model) == at_once(model)
    assert [device for _, device in found] == ["meta", "meta"] and found[0] == found[1]
    assert list(model.fc._parameters) == list(own) and all(model.fc._parameters[k] is own[k] for k in own)
    assert type(model.fc._parameters) is dict


def in_a_thread(net: Any, x: torch.Tensor) -> Any:
    threads = [threading.Thread(target=lambda: net.fc.weight) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return x @ net.fc.weight


def in_inference_mode(net: Any, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        net.fc.weight  # noqa: B018
    net.fc.weight.add_(1)
    return x @ net.fc.weight


def under_a_device(net: Any, x: torch.Tensor) -> Any:
    with torch.device("cpu"):
        return x @ net.fc.weight


def under_a_transform(net: Any, x: torch.Tensor) -> Any:
    return torch.vmap(lambda row: net.norm.weight * row)(x) + torch.func.jvp(lambda y: y @ net.fc.weight, (x,), (x,))[1]


def under_autocast(net: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ net.fc.weight


def written_to(net: Any, x: torch.Tensor) -> Any:
    net.norm.running_mean.add_(1)
    return x + net.norm.running_mean + net.norm.num_batches_tracked


def values_of_a_buffer(net: Any, x: torch.Tensor) -> Any:
    return x.repeat(int(net.norm.num_batches_tracked) + 2, 1)


@pytest.mark.parametrize(
    "look",
    [in_a_thread, in_inference_mode, under_a_device, under_a_transform, under_autocast, written_to, values_of_a_buffer],
    ids=lambda look: look.__name__,
)
def test_looks_from_everywhere(look: Any) -> None:
    model = Net(look)
    versions = [tensor._version for tensor in (*model.parameters(), *model.buffers())]
    assert record(model) == at_once(model)
    assert [tensor._version for tensor in (*model.parameters(), *model.buffers())] == versions


def tied(net: Any) -> None:
    net.other = nn.Linear(4, 4)
    net.other.weight = net.fc.weight


def tied_by_storage(net: Any) -> None:
    net.other = nn.Linear(4, 4, bias=False)
    net.other.weight.data = net.fc.weight.data[1:]


def in_a_list(net: Any) -> None:
    net.listed = [net.fc.weight]


def its_dict_in_a_list(net: Any) -> None:
    net.listed = [net.fc._parameters]


@pytest.mark.parametrize("tie", [tied, tied_by_storage, in_a_list, its_dict_in_a_list], ids=lambda tie: tie.__name__)
@pytest.mark.parametrize("other_first", [False, True])
def test_what_is_held_twice(tie: Any, other_first: bool) -> None:
    def look(net: Any, x: torch.Tensor) -> Any:
        held = net.other.weight if "other" in net._modules else net.listed[0]
        held = held["weight"] if isinstance(held, dict) else held
        if other_first:
            x = x @ held.t()
            held.mul_(2)
        x = net.norm(x[:, :3] @ net.fc.weight[:3])
        return x if other_first else x[:, : held.shape[0]] @ held

    model = Net(look)
    tie(model)
    assert record(model) == at_once(model)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("given", [lambda net: net.fc.weight, lambda net: net.fc.weight.data], ids=["itself", "data"])
def test_a_weight_that_is_given(given: Any) -> None:
    model = Net(lambda net, x: net.fc(x) @ net.fc.weight)
    with torch.no_grad():
        late = analyze(model, given(model)).record.to_json()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(holdings, "_STATE_KINDS", frozenset())
            assert analyze(model, given(model)).record.to_json() == late


def test_a_weight_from_outside_of_the_model() -> None:
    kept: list[Any] = []
    model = Net(lambda net, x: x @ kept[0].t() + net.fc(x))
    kept.append(model.fc.weight)  # in no attribute of the model's: it comes up on the way
    assert record(model) == at_once(model)


def test_hooks_on_a_late_parameter_are_taken_off() -> None:
    def look(net: Any, x: torch.Tensor) -> Any:
        net.fc.weight.register_hook(lambda gradient: gradient)
        return net.fc(x)

    model = Net(look)
    model.fc.weight.register_hook(lambda gradient: None)
    before = dict(model.fc.weight._backward_hooks or {})
    record(model)
    assert dict(model.fc.weight._backward_hooks or {}) == before


def test_what_escapes_the_run_shows_what_it_last_did() -> None:
    kept: list[Any] = []

    def look(net: Any, x: torch.Tensor) -> Any:
        kept.extend([net.fc._parameters, net.norm._parameters])
        return nn.functional.linear(x, net.fc.weight)

    model = Net(look)
    record(model)
    looked, not_looked = kept
    assert isinstance(looked, Waiting) and looked["weight"].is_meta
    assert not_looked["weight"] is model.norm.weight
    assert record(model)["error"] is None
