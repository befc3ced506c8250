"""Each family learns: the loss on one fixed batch falls as far, in as many steps, as benchmarks/learning.py states.

The small networks are trained here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from torchledger.models import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def learning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ("googlenet", "inception_v2", "resnet18", "resnet50", "resnet20", "plain20", "resnet56")
LARGER = ("alexnet", "alexnet_2012", "vgg11", "vgg11_bn", "googlenet_v1", "inception_v3", "inception_v4", "resnet34")


@pytest.mark.parametrize("name", SMALL)
def test_loss_falls(name: str, learning: ModuleType) -> None:
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
