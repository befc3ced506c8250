"""What a network needs of its input is said in one line before it runs, and what it can take it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchledger import ForwardError, analyze
from torchledger.errors import UserError
from torchledger.models import build
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


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("resnet50", "stride_in_1x1", "no"),
        ("resnet18", "zero_init_residual", 1),
        ("googlenet", "aux_logits", None),
        ("googlenet_v1", "aux_logits", "False"),
        ("inception_v3", "transform_input", 0),
        *(
            (name, "init", "no")
            for name in ("alexnet", "alexnet_2012", "vgg11", "inception_v2", "inception_v4", "plain20")
        ),
    ],
)
def test_a_flag_is_true_or_false(name: str, argument: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{argument} is {value!r}, expected True or False$"), torch.device("meta"):
        build(name, **{argument: value})


def test_the_flags_that_a_name_fixes_are_true_or_false() -> None:
    from torchledger.models.resnet import CifarResNet
    from torchledger.models.vgg import VGG

    with pytest.raises(UserError, match=r"^batch_norm is 'no', expected True or False$"), torch.device("meta"):
        VGG(11, "no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^shortcuts is 0, expected True or False$"), torch.device("meta"):
        CifarResNet(20, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_a_size_that_overflows_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=f"^{argument} is too large: .* 2,147,483,647"), torch.device("meta"):
        build("resnet20", **{argument: 2**31})


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


EACH = ("alexnet", "alexnet_2012", "vgg11", "googlenet_v1", "googlenet", "inception_v2", "inception_v3", "inception_v4",
        "resnet18", "resnet20")  # fmt: skip


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_are_floating_point(name: str, dtype: torch.dtype) -> None:
    """Where pixels are rescaled inside the network, they would be cut down to 0 in silence."""
    with torch.device("meta"):
        model = build(name).eval()
        x = torch.zeros(2, 3, 227, 227, dtype=dtype)
    text = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"takes images of floating-point numbers, got {text}: convert them with x\."):
        model(x)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("given", [[[1.0]], "cat.jpg", None, (torch.zeros(1, 3, 64, 64),)])
def test_images_are_a_tensor(name: str, given: object) -> None:
    with torch.device("meta"):
        model = build(name).eval()
    kind = type(given).__name__
    with pytest.raises(UserError, match=f"takes a tensor, N x 3 x height x width, got {kind}$"):
        model(given)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("rate", [2, -0.1, float("nan"), "x", True, None])
def test_dropout_is_a_rate(name: str, rate: Any) -> None:
    with pytest.raises(UserError, match=f"dropout is {rate!r}, expected a rate from 0 to 1"), torch.device("meta"):
        build(name, dropout=rate)
