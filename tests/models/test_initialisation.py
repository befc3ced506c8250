"""Weights start as the docstrings say: as torchvision draws them where it has the network, else by the stated rule."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from torchledger.models import build

FEW = 1000  # below, a sample says little about its distribution


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg13_bn", "googlenet", "inception_v3", "resnet18", "resnet50"])
def test_drawn_as_torchvision_draws(name: str) -> None:
    """From one seed, the very same numbers."""
    import torchvision.models

    torch.manual_seed(0)
    ours = build(name).state_dict()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of googlenet
        theirs = torchvision.models.get_model(name).state_dict()
    assert list(ours) == list(theirs)
    assert [key for key, value in theirs.items() if not torch.equal(ours[key], value)] == []


def test_alexnet_2012() -> None:
    """Section 5: deviation 0.01; ones in the second, fourth and fifth convolution and the hidden linear layers."""
    network: Any = build("alexnet_2012")
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [set(layer.bias.tolist()) for layer in layers] == [{0}, {1}, {0}, {1}, {1}, {1}, {1}, {0}]
    assert all(abs(float(layer.weight.detach().std()) - 0.01) < 0.0005 for layer in layers)


def test_googlenet_v1() -> None:
    """Caffe's xavier: uniform up to sqrt(3 / fan-in), of deviation sqrt(1 / fan-in); biases as in bvlc_googlenet."""
    network: Any = build("googlenet_v1")
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bias = 0.0 if name in ("fc", "aux1.fc2", "aux2.fc2") else 0.2
            assert torch.equal(module.bias, torch.full_like(module.bias, bias)), name
            fan_in = module.weight[0].numel()
            assert float(module.weight.detach().abs().max()) <= math.sqrt(3 / fan_in) + 1e-7
            assert abs(float(module.weight.detach().std()) * math.sqrt(fan_in) - 1) < 0.1, name


@pytest.mark.parametrize(
    ("name", "fan"), [("inception_v2", "in"), ("inception_v4", "in"), ("resnet20", "out"), ("plain56", "out")]
)
def test_drawn_after_he(name: str, fan: str) -> None:
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= FEW:
            outside, inside = module.weight.shape[:2]
            count = (inside if fan == "in" else outside) * module.weight[0, 0].numel()
            assert abs(float(module.weight.detach().std()) * math.sqrt(count / 2) - 1) < 0.1


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_branches_can_start_at_zero(name: str) -> None:
    """A block is then the identity of what is not negative."""
    network: Any = build(name, zero_init_residual=True).eval()
    block = network.layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), x)
        assert not torch.equal(build(name).eval().layer1[1](x), x)  # type: ignore[operator, index]


@pytest.mark.parametrize("name", ["alexnet_2012", "vgg11", "googlenet_v1", "googlenet", "inception_v2", "inception_v3",
                                  "inception_v4", "resnet18", "resnet20"])  # fmt: skip
def test_initialisation_can_be_skipped(name: str) -> None:
    """What is then left is what each layer of PyTorch draws when it is made."""
    torch.manual_seed(0)
    plain = build(name, init=False)
    for module in plain.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() >= FEW:
            bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch: uniform up to sqrt(1 / fan-in)
            assert float(module.weight.detach().abs().max()) <= bound + 1e-7
            assert abs(float(module.weight.detach().std()) * math.sqrt(3) / bound - 1) < 0.1
