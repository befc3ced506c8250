"""Networks that no library at hand has, against references written down here from their keys alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchledger.models import build

# inception_v2: what a block does beside its convolutions, in the public port: pooling, and whether it halves the map.
BLOCKS = {
    "3a": ("average", False), "3b": ("average", False), "3c": ("maximum", True), "4a": ("average", False),
    "4b": ("average", False), "4c": ("average", False), "4d": ("average", False), "4e": ("maximum", True),
    "5a": ("average", False), "5b": ("maximum", False),
}  # fmt: skip


def randomised(model: torch.nn.Module) -> dict[str, Tensor]:
    """Give every parameter and statistic a value of its own, such that images tell apart; return the state dict."""
    torch.manual_seed(2)
    state = model.state_dict()
    for key, value in state.items():
        if value.dim() > 1:
            torch.nn.init.kaiming_normal_(value)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return state


def assert_equal(made: Tensor, expected: Tensor) -> None:
    """Both say the same of two images, and of each image something else."""
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * scale
    assert (made - expected).abs().max() < 1e-5 * scale


def bn_inception(state: dict[str, Tensor], x: Tensor, used: set[str]) -> Tensor:
    """Run BN-Inception from a state dict, noting the keys that it took."""

    def take(key: str) -> Tensor:
        used.add(key)
        return state[key]

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = take(f"{name}.weight")
        x = F.conv2d(x, weight, take(f"{name}.bias"), stride, weight.shape[2] // 2)
        parts = [take(f"{name}_bn.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        used.add(f"{name}_bn.num_batches_tracked")
        return F.batch_norm(x, *parts, eps=1e-5).relu()

    x = F.max_pool2d(unit(x, "conv1_7x7_s2", 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit(unit(x, "conv2_3x3_reduce"), "conv2_3x3"), 3, 2, ceil_mode=True)
    for block, (pooling, halves) in BLOCKS.items():
        name, stride = f"inception_{block}", 2 if halves else 1
        outputs = [] if halves else [unit(x, f"{name}_1x1")]
        outputs.append(unit(unit(x, f"{name}_3x3_reduce"), f"{name}_3x3", stride))
        double = unit(unit(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1")
        outputs.append(unit(double, f"{name}_double_3x3_2", stride))
        if halves:
            outputs.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        elif pooling == "average":
            outputs.append(unit(F.avg_pool2d(x, 3, 1, 1, count_include_pad=True), f"{name}_pool_proj"))
        else:
            outputs.append(unit(F.max_pool2d(x, 3, 1, 1), f"{name}_pool_proj"))
        x = torch.cat(outputs, 1)
    return F.linear(x.mean((2, 3)), take("last_linear.weight"), take("last_linear.bias"))


@torch.no_grad()
def test_inception_v2() -> None:
    model = build("inception_v2").eval()
    state, used = randomised(model), set[str]()
    x = torch.randn(2, 3, 64, 64)  # 64 as 224: every map that is halved has an even side
    assert_equal(model(x), bn_inception(state, x, used))
    assert used == set(state)


def cifar(state: dict[str, Tensor], x: Tensor, shortcuts: bool, used: set[str]) -> Tensor:
    """Run a CIFAR ResNet, or its plain twin, from a state dict, noting the keys that it took."""

    def take(key: str) -> Tensor:
        used.add(key)
        return state[key]

    def unit(x: Tensor, at: str, number: int, stride: int = 1) -> Tensor:
        x = F.conv2d(x, take(f"{at}conv{number}.weight"), None, stride, 1)
        parts = ("running_mean", "running_var", "weight", "bias")
        used.add(f"{at}bn{number}.num_batches_tracked")
        return F.batch_norm(x, *(take(f"{at}bn{number}.{part}") for part in parts))

    x = unit(x, "", 1).relu()
    for stage in (1, 2, 3):
        for block in range(sum(key.startswith(f"layer{stage}.") and key.endswith("conv1.weight") for key in state)):
            at, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            out = unit(unit(x, at, 1, stride).relu(), at, 2)
            if shortcuts and stride == 2:  # option A: every second pixel, and zeros on both sides of the old channels
                kept = x[:, :, ::2, ::2]
                zeros = torch.zeros_like(kept[:, : kept.shape[1] // 2])
                x = torch.cat([zeros, kept, zeros], 1)
            x = (out + x if shortcuts else out).relu()
    return F.linear(x.mean((2, 3)), take("linear.weight"), take("linear.bias"))


@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet56"])
@torch.no_grad()
def test_cifar_networks(name: str) -> None:
    model = build(name).eval()
    state, used = randomised(model), set[str]()
    x = torch.randn(2, 3, 32, 32)
    assert_equal(model(x), cifar(state, x, name.startswith("resnet"), used))
    assert used == set(state)


def response_norm(x: Tensor, k: float, scale: float) -> Tensor:
    """Divide each element by (k + scale * sum over 5 channels of their squares) ** 0.75, by the letter."""
    out = torch.empty_like(x)
    for channel in range(x.shape[1]):
        squares = x[:, max(channel - 2, 0) : channel + 3].square().sum(1)
        out[:, channel] = x[:, channel] / (k + scale * squares) ** 0.75
    return out


def alexnet_2012(state: dict[str, Tensor], x: Tensor, used: set[str]) -> Tensor:
    """Run the AlexNet of 2012 from a state dict (paper, section 3.5), noting the keys that it took."""

    def take(name: str) -> tuple[Tensor, Tensor]:
        used.update({f"{name}.weight", f"{name}.bias"})
        return state[f"{name}.weight"], state[f"{name}.bias"]

    x = F.conv2d(x, *take("features.0"), stride=4).relu()
    x = F.max_pool2d(response_norm(x, 2, 1e-4), 3, 2)
    x = F.conv2d(x, *take("features.4"), padding=2, groups=2).relu()
    x = F.max_pool2d(response_norm(x, 2, 1e-4), 3, 2)
    x = F.conv2d(x, *take("features.8"), padding=1).relu()
    x = F.conv2d(x, *take("features.10"), padding=1, groups=2).relu()
    x = F.max_pool2d(F.conv2d(x, *take("features.12"), padding=1, groups=2).relu(), 3, 2)
    for name in ("classifier.0", "classifier.3"):
        x = F.linear(x.flatten(1), *take(name)).relu()
    return F.linear(x, *take("classifier.6"))


@torch.no_grad()
def test_alexnet_2012() -> None:
    model = build("alexnet_2012").eval()
    state, used = randomised(model), set[str]()
    x = 64 * torch.randn(2, 3, 227, 227)  # as pixels are, so that the response normalisation acts
    assert_equal(model(x), alexnet_2012(state, x, used))
    assert used == set(state)


def googlenet_v1(state: dict[str, Tensor], x: Tensor, used: set[str]) -> list[Tensor]:
    """Run GoogLeNet from a state dict (table 1, figure 3): logits, those of the deeper head, those of the other."""

    def take(name: str) -> tuple[Tensor, Tensor]:
        used.update({f"{name}.weight", f"{name}.bias"})
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = take(f"{name}.conv")
        return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2).relu()

    def block(x: Tensor, at: str) -> Tensor:
        ones = unit(x, f"{at}.branch1")
        threes, fives = (unit(unit(x, f"{at}.{branch}.0"), f"{at}.{branch}.1") for branch in ("branch2", "branch3"))
        return torch.cat([ones, threes, fives, unit(F.max_pool2d(x, 3, 1, 1), f"{at}.branch4.1")], 1)

    def head(x: Tensor, at: str) -> Tensor:
        x = unit(F.avg_pool2d(x, 5, 3), f"{at}.conv").flatten(1)
        return F.linear(F.linear(x, *take(f"{at}.fc1")).relu(), *take(f"{at}.fc2"))

    # bvlc_googlenet: k = 1 by default, alpha = 1e-4 of the mean over 5; poolings rounded up.
    x = response_norm(F.max_pool2d(unit(x, "conv1", 2), 3, 2, ceil_mode=True), 1, 1e-4 / 5)
    x = F.max_pool2d(response_norm(unit(unit(x, "conv2"), "conv3"), 1, 1e-4 / 5), 3, 2, ceil_mode=True)
    heads = []
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = block(x, f"inception{name}")
        if name in ("4a", "4d"):
            heads.append(head(x, "aux1" if name == "4a" else "aux2"))
    return [F.linear(x.mean((2, 3)), *take("fc")), *reversed(heads)]


@torch.no_grad()
def test_googlenet_v1() -> None:
    model = build("googlenet_v1", dropout=0.0, dropout_aux=0.0)
    state, used = randomised(model), set[str]()
    x = 64 * torch.randn(2, 3, 224, 224)  # as pixels are, so that the response normalisation acts
    expected = googlenet_v1(state, x, used)
    assert_equal(model.eval()(x), expected[0])
    for made, wanted in zip(model.train()(x), expected, strict=True):
        assert_equal(made, wanted)
    assert used == set(state)


@pytest.mark.parametrize(
    ("name", "norms", "formula"),
    [
        # Krizhevsky et al. 2012, section 3.3: k = 2, alpha = 1e-4 of the sum.
        ("alexnet_2012", ("features.2", "features.6"), lambda x: response_norm(x, 2, 1e-4)),
        # bvlc_googlenet: k = 1 by default, alpha = 1e-4 of the mean over 5.
        ("googlenet_v1", ("norm1", "norm2"), lambda x: response_norm(x, 1, 1e-4 / 5)),
    ],
)
def test_response_norms(name: str, norms: tuple[str, ...], formula: Callable[[Tensor], Tensor]) -> None:
    model: Any = build(name, init=False)
    x = 50 * torch.randn(1, 12, 4, 4)
    for norm in norms:
        assert torch.allclose(model.get_submodule(norm)(x), formula(x), rtol=1e-5)
