"""Each family learns: the loss on one fixed batch falls as far, in as many steps, as benchmarks/learning.py states.

The small networks are trained here; `make learn` trains all of them, and its results are committed.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from torchledger.models import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def learning() -> Iterator[ModuleType]:
    """Import the benchmark; compute on one thread, as it does: sums in another order lead elsewhere."""
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


SMALL = ("alexnet", "vgg11", "googlenet", "inception_v2", "resnet18", "resnet50", "resnet20", "plain20", "resnet56")
LARGER = ("alexnet_2012", "vgg11_bn", "googlenet_v1", "inception_v3", "inception_v4", "resnet34")


FEWER = {"alexnet": 20, "vgg11": 10}  # steps, where the benchmark's would take long and so many are enough


@pytest.mark.parametrize("name", SMALL)
def test_loss_falls(name: str, learning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in FEWER:
        monkeypatch.setitem(learning.STEPS, name, FEWER[name])
    first, *_, last = learning.losses(name)
    assert last * learning.FACTOR <= first


def test_a_network_that_is_cut_off_does_not_pass(learning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test is for: a head that the gradient does not get past."""

    def cut(name: str, **arguments: object) -> nn.Module:
        network = registry.entry(name).load()(**arguments)
        network.linear.register_forward_pre_hook(lambda _, given: (torch.zeros_like(given[0]),))
        return network

    monkeypatch.setattr(learning, "build", cut)
    first, *_, last = learning.losses("resnet20")
    assert last * learning.FACTOR > first


def test_a_graded_step_promises_a_fall_and_grades_by_the_gradient(learning: ModuleType) -> None:
    """On a loss that is straight, the promise is kept."""
    near = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    far = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
    slopes = torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor([16.0], dtype=torch.float64)  # norms 1, 16

    def loss() -> torch.Tensor:
        return (near * slopes[0]).sum() + (far * slopes[1]).sum()

    before = loss()
    before.backward()
    started = near.detach().clone(), far.detach().clone()
    learning.graded_step([near, far], fall=0.5)
    # They promise as 1 ** -0.5 to 16 ** -0.5, 4 to 1: 0.4 and 0.1, along slopes of 1 and 16.
    assert torch.allclose(started[0] - near, 0.4 * slopes[0])
    assert float((started[1] - far).detach()) == pytest.approx(0.1 / 16)
    assert float((before - loss()).detach()) == pytest.approx(0.5)


def test_the_body_of_a_deep_plain_network_learns(learning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a quarter of the steps to a half; its last layer stays as drawn, and alone would come nowhere near."""
    monkeypatch.setitem(learning.STEPS, "plain110", 40)
    built: list[nn.Module] = []
    build = learning.build

    def kept(*names: str, **arguments: object) -> nn.Module:
        built.append(build(*names, **arguments))
        return built[-1]

    monkeypatch.setattr(learning, "build", kept)
    first, *_, last = learning.losses("plain110")
    assert last * 2 <= first
    assert learning.head_alone("plain110") * 1.5 > first
    torch.manual_seed(0)
    drawn: Any = build("plain110", num_classes=learning.CLASSES, dropout=0.0)
    assert torch.equal(drawn.linear.weight, built[0].get_parameter("linear.weight"))
    assert not torch.equal(drawn.layer3[17].conv2.weight, built[0].get_parameter("layer3.17.conv2.weight"))


@pytest.mark.parametrize("name", [*SMALL, *LARGER])
def test_every_parameter_is_reached(name: str, learning: ModuleType) -> None:
    assert learning.without_gradient(name) == []


def test_a_branch_that_is_cut_off_is_found(learning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(name: str, **arguments: object) -> nn.Module:
        network = registry.entry(name).load()(**arguments)
        network.inception4c.branch3.register_forward_hook(lambda _, __, made: made.detach())
        return network

    monkeypatch.setattr(learning, "build", cut)
    found = learning.without_gradient("googlenet")
    assert found and all(key.startswith("inception4c.branch3.") for key in found)


def test_every_network_learned_in_the_committed_sweep(learning: ModuleType) -> None:
    with learning.RESULTS.open(encoding="utf-8") as opened:
        rows = {row["name"]: row for row in csv.DictReader(opened)}
    assert list(rows) == [name for name in registry.names() if not registry.entry(name).of_article]
    for name, row in rows.items():
        first, last = float(row["first_loss"]), float(row["last_loss"])
        assert last * learning.FACTOR <= first, name
        settings = (learning.SIDES.get(name, 32), learning.steps_of(name), learning.rate_of(name))
        assert (int(row["pixels"]), int(row["steps"]), float(row["rate"])) == settings, name
        assert row["rule"] == ("graded" if name in learning.GRADED else "Adam"), name
    for name in learning.GRADED:  # not the last layer's doing
        assert float(rows[name]["head_alone_loss"]) * 2 > float(rows[name]["first_loss"]), name
