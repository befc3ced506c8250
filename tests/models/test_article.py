"""The article's four networks: shapes, parameters (with the arithmetic) and the names in their state_dict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchledger.errors import UserError
from torchledger.models.article import VGG16, AlexNet, BasicBlock, Inception


def build_on_meta(model: type[nn.Module], **arguments: object) -> Any:
    with torch.device("meta"):
        return model(**arguments).eval()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# 64*3*11*11+64 = 23296; 192*64*5*5+192 = 307392; 384*192*3*3+384 = 663936; 256*384*3*3+256 = 884992;
# 256*256*3*3+256 = 590080: 2,469,696 in features. 9216*4096+4096 = 37752832; 4096*4096+4096 = 16781312.
ALEXNET_WITHOUT_LAST = 2_469_696 + 37_752_832 + 16_781_312


@pytest.mark.parametrize(
    ("num_classes", "params"),
    [
        (10, 57_044_810),  # last: 4096*10 + 10 = 40,970
        (1000, 61_100_840),  # last: 4096*1000 + 1000 = 4,097,000
    ],
)
def test_alexnet_parameters(num_classes: int, params: int) -> None:
    assert count(build_on_meta(AlexNet, num_classes=num_classes)) == params
    assert ALEXNET_WITHOUT_LAST + 4097 * num_classes == params


def test_vgg16_parameters() -> None:
    # 3x3 convolutions, 9*in*out + out: 1792 + 36928 + 73856 + 147584 + 295168 + 2*590080 + 1180160 + 5*2359808
    # = 14,714,688; linear 25088*4096+4096 = 102,764,544, 4096*4096+4096 = 16,781,312, 4096*1000+1000 = 4,097,000.
    assert count(build_on_meta(VGG16)) == 138_357_544
    assert 14_714_688 + 102_764_544 + 16_781_312 + 4_097_000 == 138_357_544


def test_inception_parameters() -> None:
    # convolutions 3*64 + 3*48 + 48*64*25 + 3*64 + 64*96*9 + 96*96*9 + 3*64 = 215,760;
    # BatchNorm, 2 per channel: 2*(64+48+64+64+96+96+64) = 992.
    assert count(build_on_meta(Inception)) == 216_752


def test_basicblock_parameters() -> None:
    # two convolutions 64*64*9 = 36,864; two BatchNorms 2*64 = 128.
    assert count(build_on_meta(BasicBlock)) == 2 * 36_864 + 2 * 128


@pytest.mark.parametrize(
    ("model", "arguments", "size", "expected"),
    [
        (AlexNet, {"num_classes": 10}, (2, 3, 224, 224), (2, 10)),
        (AlexNet, {}, (1, 3, 224, 224), (1, 1000)),
        (VGG16, {"num_classes": 10}, (2, 3, 224, 224), (2, 10)),
        (Inception, {}, (2, 3, 224, 224), (2, 288, 224, 224)),  # 64 + 64 + 96 + 64
        (Inception, {"in_channels": 192}, (1, 192, 35, 35), (1, 288, 35, 35)),
        (BasicBlock, {}, (2, 64, 56, 56), (2, 64, 56, 56)),
    ],
)
def test_output_shapes(
    model: type[nn.Module], arguments: dict[str, object], size: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    output = build_on_meta(model, **arguments)(torch.empty(size, device="meta"))
    assert tuple(output.shape) == expected


def test_alexnet_layers() -> None:
    model = build_on_meta(AlexNet)
    kinds = [type(layer).__name__ for layer in model.features]
    conv, pool = ["Conv2d", "ReLU"], ["MaxPool2d"]
    assert kinds == [*conv, *pool, *conv, *pool, *conv, *conv, *conv, *pool]
    assert [type(layer).__name__ for layer in model.classifier] == [
        "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    weighted = [f"features.{n}" for n in (0, 3, 6, 8, 10)] + [f"classifier.{n}" for n in (1, 4, 6)]
    assert list(model.state_dict()) == [f"{layer}.{tensor}" for layer in weighted for tensor in ("weight", "bias")]


def test_vgg16_layers() -> None:
    model = build_on_meta(VGG16)
    pools = [n for n, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
    assert pools == [4, 9, 16, 23, 30]
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    weighted = [f"features.{n}" for n in convolutions] + [f"classifier.{n}" for n in (0, 3, 6)]
    assert list(model.state_dict()) == [f"{layer}.{tensor}" for layer in weighted for tensor in ("weight", "bias")]
    assert [n for n, layer in enumerate(model.classifier) if isinstance(layer, nn.Dropout)] == [2, 5]


def test_inception_layers() -> None:
    model = build_on_meta(Inception)
    assert [name for name, _ in model.named_children()] == [
        "branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3_1", "branch3x3_2", "branch3x3_3", "branchpool_1",
        "branch_pool",
    ]  # fmt: skip
    tensors = ["conv.weight", *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var"))]
    assert [key for key in model.state_dict() if key.startswith("branch1x1.") and "num_batches" not in key] == [
        f"branch1x1.{name}" for name in tensors
    ]
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert model.branch1x1.bn.eps == 0.001


def test_inception_pooling_branch_pads_the_convolution() -> None:
    model = Inception().eval()
    border = torch.ones(4, 4, dtype=torch.bool)
    border[1:3, 1:3] = False
    pooled = model(torch.randn(1, 3, 4, 4))[0, -64:]
    # The padded border is a convolution of zeros, which BatchNorm with its initial statistics leaves at zero.
    assert bool((pooled[:, border] == 0).all())
    assert bool((pooled[:, ~border] != 0).any())


def test_basicblock_layers() -> None:
    model = build_on_meta(BasicBlock)
    assert [name for name, _ in model.named_children()] == ["conv1", "bn1", "relu", "conv2", "bn2"]
    assert model.downsample is None
    assert model.conv1.bias is None


def test_basicblock_applies_relu_before_the_addition() -> None:
    block = BasicBlock(2, 2).eval()
    nn.init.constant_(block.bn2.weight, 0.0)
    nn.init.constant_(block.bn2.bias, -5.0)
    x = torch.rand(1, 2, 3, 3)
    # bn2 gives -5 everywhere. In the article relu makes that 0 and x comes through; in He et al. relu(x - 5) is 0.
    assert torch.equal(block(x), x)


def test_basicblock_adds_the_downsampled_input() -> None:
    downsample = nn.Conv2d(4, 8, 1, stride=2, bias=False)
    block = BasicBlock(4, 8, stride=2, downsample=downsample).eval()
    nn.init.constant_(block.bn2.weight, 0.0)
    x = torch.rand(1, 4, 6, 6)
    output = block(x)
    assert tuple(output.shape) == (1, 8, 3, 3)
    assert torch.equal(output, torch.relu(downsample(x)))
    assert "downsample.weight" in block.state_dict()


@pytest.mark.parametrize("arguments", [(64, 128, 1), (64, 64, 2), (64, 128, 2)])
def test_basicblock_that_cannot_add_says_what_would_be_right(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"needs a downsample.*nn\.Conv2d\(64, (64|128), 1, stride=[12]") as caught:
        BasicBlock(*arguments)
    assert "\n" not in str(caught.value)


def test_networks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    build_on_meta(Inception)(torch.empty(1, 3, 8, 8, device="meta"))
    build_on_meta(AlexNet)(torch.empty(1, 3, 224, 224, device="meta"))
    assert capsys.readouterr().out == ""
