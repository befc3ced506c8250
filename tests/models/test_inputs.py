"""What a network needs of its input is said in one line before it runs, and what it can take it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchledger import ForwardError, analyze
from torchledger.errors import UserError
from torchledger.models import build, checks
from torchledger.models import inception_v2 as v2

# Name, arguments, train mode, batch: the smallest side that works, and the largest where there is one.
LIMITS: list[tuple[str, dict[str, Any], bool, int, int, int | None]] = [
    ("alexnet", {}, False, 1, 63, None),
    ("alexnet_2012", {}, False, 1, 227, 258),
    ("vgg11", {}, False, 1, 32, None),
    ("vgg11_bn", {}, True, 1, 32, None),
    ("googlenet_v1", {}, False, 1, 31, None),
    ("googlenet_v1", {}, True, 1, 223, 270),
    ("googlenet_v1", {"aux_logits": False}, True, 1, 31, None),
    ("googlenet", {}, False, 1, 15, None),
    ("googlenet", {}, True, 2, 15, None),
    ("googlenet", {}, True, 1, 47, None),
    ("inception_v2", {}, False, 1, 7, None),
    ("inception_v2", {}, True, 1, 39, None),
    ("inception_v3", {}, False, 1, 75, None),
    ("inception_v3", {}, True, 2, 299, None),
    ("inception_v3", {}, True, 1, 347, None),
    ("inception_v3", {"aux_logits": False}, True, 2, 75, None),
    ("inception_v3", {"aux_logits": False}, True, 1, 107, None),
    ("inception_v4", {}, False, 1, 75, None),
    ("inception_v4", {}, True, 1, 107, None),
    ("resnet18", {}, False, 1, 1, None),
    ("resnet18", {}, True, 1, 33, None),
    ("resnet50", {"stride_in_1x1": True}, True, 1, 33, None),
    ("resnet20", {}, True, 1, 5, None),
]


def runs(model: nn.Module, batch: int, side: int) -> bool:
    """Whether the layers take such images, the check aside."""
    x = torch.empty(batch, 3, side, side, device="meta")
    with torch.no_grad():
        try:
            model(x)
        except (RuntimeError, ValueError):
            return False
    return True


@pytest.mark.parametrize(("name", "arguments", "train", "batch", "smallest", "largest"), LIMITS)
def test_limits_are_those_of_the_layers(
    name: str,
    arguments: dict[str, Any],
    train: bool,
    batch: int,
    smallest: int,
    largest: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is just inside runs; what is just outside is refused by the check, and would fail without it."""
    with torch.device("meta"):
        model = build(name, **arguments).train(train)
    outside = [smallest - 1] if smallest > 1 else []
    outside += [largest + 1] if largest is not None else []
    for side in [smallest, *([largest] if largest is not None else [])]:
        model(torch.empty(batch, 3, side, side, device="meta"))
    for side in outside:
        with pytest.raises(UserError, match=f"{batch} x 3 x {side} x {side}"):
            model(torch.empty(batch, 3, side, side, device="meta"))
    monkeypatch.setattr(f"torchledger.models.{model.__module__.rpartition('.')[2]}.check_images", lambda *_, **__: None)
    assert not any(runs(model, batch, side) for side in outside)


def test_a_single_image_that_is_long_enough_trains() -> None:
    with torch.device("meta"):
        model = build("resnet18").train()
    model(torch.empty(1, 3, 20, 40, device="meta"))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((3, 64, 64), r"takes images as N x 3 x height x width, got 3 x 64 x 64: one image needs a batch .*unsqueeze"),
        ((2, 4, 64, 64), r"takes images of 3 channels, .* got 2 x 4 x 64 x 64 \(in_channels=4 would take these\)"),
        ((), "got a scalar"),
        ((5,), "got 5"),
    ],
)
def test_what_is_no_batch_of_images(size: tuple[int, ...], said: str) -> None:
    for name in ("alexnet", "resnet20", "googlenet"):
        with pytest.raises(UserError, match=said), torch.device("meta"):
            build(name)(torch.empty(size))


def test_an_analysis_says_what_the_network_says() -> None:
    with torch.device("meta"):
        alexnet = build("alexnet")
    with pytest.raises(ForwardError) as caught:
        analyze(alexnet, (3, 40, 40))
    assert str(caught.value) == "AlexNet takes images of at least 63 x 63, got 1 x 3 x 40 x 40"
    with pytest.raises(ForwardError, match=r"^0: AlexNet takes images of at least 63 x 63"):
        analyze(nn.Sequential(alexnet), (3, 40, 40))


@pytest.mark.parametrize("side", [13, 14, 27, 28])
def test_pooling_of_odd_maps_keeps_every_pixel(side: int) -> None:
    """Windows of 3 that start at 0, 2, 4 ..., as far as there is a pixel under them that a convolution's would see."""
    x = torch.randn(1, 2, side, side)
    made = v2.halved(x)
    count = -(-side // 2)
    assert made.shape == (1, 2, count, count) == nn.Conv2d(2, 2, 3, stride=2, padding=1)(x).shape
    for row in range(count):
        for column in range(count):
            window = x[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            assert torch.equal(made[:, :, row, column], window.amax((2, 3)))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transform_input_rescales_as_torchvision_does(name: str) -> None:
    import torchvision.models

    x = torch.randn(2, 3, 8, 8)
    theirs: Any = torchvision.models.get_model(name, init_weights=False, aux_logits=False, transform_input=True)
    from torchledger.models.inception import rescaled

    assert torch.allclose(rescaled(x), theirs._transform_input(x), atol=1e-6)
    with pytest.raises(UserError, match="transform_input=True is for RGB images, in_channels=3, not 1"):
        build(name, transform_input=True, in_channels=1)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "inception_v2", "resnet18", "plain20"])
def test_networks_can_be_traced(name: str) -> None:
    model = build(name, num_classes=3, init=False).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(traced(x), model(x), atol=1e-6)


def test_wrong_depths_are_said() -> None:
    from torchledger.models.resnet import CifarResNet, ResNet
    from torchledger.models.vgg import VGG

    with pytest.raises(UserError, match="layers is 20; ResNet has 18, 34, 50, 101, 152"):
        ResNet(20)
    with pytest.raises(UserError, match="layers is 12; VGG has 11, 13, 16, 19"):
        VGG(12, False)
    with pytest.raises(UserError, match=r"layers is 21; a CIFAR ResNet has 6n \+ 2"):
        CifarResNet(21, True)
    with pytest.raises(UserError, match="stride_in_1x1=True is for bottlenecks"):
        build("resnet18", stride_in_1x1=True)
    assert checks.check_whole(layers=3) is None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_whole_numbers_are_not_rescaled(name: str) -> None:
    """The constants of the rescaling would be cut down to 0, and every image be the same."""
    model = build(name, num_classes=2, transform_input=True, init=False).eval()
    with pytest.raises(UserError, match="transform_input=True is for normalised images, and these are uint8"):
        model(torch.zeros(2, 3, 96, 96, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "vgg11", "googlenet", "inception_v2", "inception_v3",
                                  "inception_v4", "resnet18", "resnet20"])  # fmt: skip
@pytest.mark.parametrize("rate", [2, -0.1, float("nan"), "x", True, None])
def test_dropout_is_a_rate(name: str, rate: Any) -> None:
    with pytest.raises(UserError, match=f"dropout is {rate!r}, expected a rate from 0 to 1"), torch.device("meta"):
        build(name, dropout=rate)
