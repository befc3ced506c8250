"""ResNet for ImageNet, with 18 to 152 layers, and for CIFAR, with 20 to 1202, beside its plain twins.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016 (arXiv:1512.03385), tables 1 and 6.

ImageNet: as torchvision has them, same keys, same outputs. Deviation: where a bottleneck halves its map, its 3 x 3
convolution has the stride ("v1.5", Goyal et al. 2017, arXiv:1706.02677); the paper's first 1 x 1 convolution has it
with `stride_in_1x1=True`. Shortcuts that change shape are projections (option B). The last pooling is over the whole
map, as in the paper, and adaptive, so that other sizes than 224 x 224 run, too; the same holds for CIFAR's.

CIFAR (section 4.2): 6n + 2 layers, three stages of 16, 32 and 64 channels, shortcuts without parameters (option A), and
the plain twin of each, the same layers without any shortcut (the paper has those of 20 to 56 and names the one of 110).
The twins of 110 and 1202 layers do not learn with the usual rules: their gradient grows by some 1.17 a layer towards
the image. By steps that shrink as it grows they learn a batch, that of 1202 in float64 and with the last two fifths of
its tensors alone (benchmarks/learning.py).
The paper does not say where option A pads the new channels; half of them go before and half behind the old ones, and
keys are conv1, bn1, layer1 to layer3, linear, both as in the public weights of
github.com/akamaster/pytorch_resnet_cifar10, so that these load.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.errors import UserError
from torchledger.models.checks import check_arguments, check_images, check_whole

torch.fx.wrap("check_images")  # a trace keeps the check instead of looking into it

# Blocks in each of the four stages (paper, table 1): two convolutions a block up to 34 layers, three from 50.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
CHANNELS = (64, 128, 256, 512)
EXPANSION = 4  # channels that leave a bottleneck over those inside it
CIFAR_CHANNELS = (16, 32, 64)


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Build a convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


class BasicBlock(nn.Module):
    """Build a residual block of two 3 x 3 convolutions (paper, figure 5, left).

    Takes N x in_channels x H x W and returns N x channels x H/stride x W/stride, rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))  # channels x H/stride x W/stride
        x = self.bn2(self.conv2(x))  # channels x H/stride x W/stride
        x += shortcut
        out: Tensor = self.relu(x)
        return out


class Bottleneck(nn.Module):
    """Build a residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions (paper, figure 5, right).

    Takes N x in_channels x H x W and returns N x 4*channels x H/stride x W/stride, rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(in_channels, channels, 1, first)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, second)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, EXPANSION * channels, 1)
        self.bn3 = nn.BatchNorm2d(EXPANSION * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, EXPANSION * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))  # channels x H x W
        x = self.relu(self.bn2(self.conv2(x)))  # channels x H/stride x W/stride
        x = self.bn3(self.conv3(x))  # 4*channels x H/stride x W/stride
        x += shortcut
        out: Tensor = self.relu(x)
        return out


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Build the shortcut that brings the input to the output's shape (option B), or None where it has it already."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Build a ResNet for ImageNet with `layers` (18, 34, 50, 101 or 152) layers that have weights.

    Takes N x `in_channels` x H x W of any size (made for 224; a single image below 33 x 33 cannot train, for lack of
    statistics) and returns N x `num_classes` logits. `stride_in_1x1` puts the stride where the paper has it. `dropout`
    is the rate before the linear layer; neither the paper nor torchvision has any.
    With `init`, convolutions are drawn after He et al. 2015 (arXiv:1502.01852) by fan-out, as torchvision, and
    `zero_init_residual` starts each block as the identity (Goyal et al. 2017); without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        layers: int,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        dropout: float = 0.0,
        stride_in_1x1: bool = False,
        zero_init_residual: bool = False,
        init: bool = True,
    ) -> None:
        super().__init__()
        flags = {"stride_in_1x1": stride_in_1x1, "zero_init_residual": zero_init_residual, "init": init}
        check_arguments(num_classes, in_channels, dropout, **flags)
        if layers not in STAGES:
            raise UserError(f"layers is {layers!r}; ResNet has {', '.join(map(str, STAGES))}")
        if stride_in_1x1 and layers < 50:
            raise UserError(f"stride_in_1x1=True is for bottlenecks, from 50 layers up; ResNet-{layers} has none")
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        widths = [64, *(channels * (1 if layers < 50 else EXPANSION) for channels in CHANNELS)]

        def stage(number: int) -> nn.Sequential:
            blocks: list[nn.Module] = []
            for block in range(STAGES[layers][number]):
                before = widths[number] if block == 0 else widths[number + 1]
                stride = 2 if number > 0 and block == 0 else 1
                if layers < 50:
                    blocks.append(BasicBlock(before, CHANNELS[number], stride))
                else:
                    blocks.append(Bottleneck(before, CHANNELS[number], stride, stride_in_1x1))
            return nn.Sequential(*blocks)

        self.layer1, self.layer2, self.layer3, self.layer4 = map(stage, range(4))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.fc = nn.Linear(widths[-1], num_classes)
        self._in_channels = in_channels
        if init:
            self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)) and zero_init_residual:
                nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("ResNet", x, self._in_channels, smallest=1, alone=33 if self.training else 0)
        x = self.relu(self.bn1(self.conv1(x)))  # 64 x 112 x 112
        x = self.maxpool(x)  # 64 x 56 x 56
        x = self.layer1(x)  # 64 x 56 x 56, with bottlenecks 256 x 56 x 56
        x = self.layer2(x)  # 128 or 512 x 28 x 28
        x = self.layer3(x)  # 256 or 1024 x 14 x 14
        x = self.layer4(x)  # 512 or 2048 x 7 x 7
        x = self.avgpool(x).flatten(1)  # 512 or 2048
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.fc(x)  # num_classes
        return logits


class CifarBlock(nn.Module):
    """Build a block of two 3 x 3 convolutions with an option A shortcut (`shortcut`), or none at all.

    Takes N x in_channels x H x W and returns N x channels x H/stride x W/stride, rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self._shortcut = shortcut
        self._stride = stride
        self._new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x`."""
        out = F.relu(self.bn1(self.conv1(x)))  # channels x H/stride x W/stride
        out = self.bn2(self.conv2(out))  # channels x H/stride x W/stride
        if self._shortcut:
            if self._stride > 1 or self._new_channels:
                half = self._new_channels // 2
                x = F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, half, self._new_channels - half))
            out += x
        return F.relu(out)


class CifarResNet(nn.Module):
    """Build a ResNet for CIFAR with `layers` layers that have weights; `shortcuts=False` builds its plain twin.

    Takes N x `in_channels` x H x W of any size (made for 32; a single image below 5 x 5 cannot train, for lack of
    statistics) and returns N x `num_classes` logits. `layers` is 6n + 2: the paper has 20, 32, 44, 56, 110 and 1202.
    `dropout` is the rate before the linear layer; the paper has none. With `init`, convolutions are drawn after He et
    al. 2015 (arXiv:1502.01852), which the paper names, by fan-out; without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        layers: int,
        shortcuts: bool,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        dropout: float = 0.0,
        init: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, shortcuts=shortcuts, init=init)
        check_whole(layers=layers)
        if layers < 8 or (layers - 2) % 6:
            raise UserError(f"layers is {layers}; a CIFAR ResNet has 6n + 2, such as 20, 32, 44 or 56")
        self.conv1 = conv(in_channels, CIFAR_CHANNELS[0], 3)
        self.bn1 = nn.BatchNorm2d(CIFAR_CHANNELS[0])

        def stage(number: int) -> nn.Sequential:
            channels = CIFAR_CHANNELS[number]
            first = CifarBlock(CIFAR_CHANNELS[max(number - 1, 0)], channels, 2 if number > 0 else 1, shortcuts)
            others = (CifarBlock(channels, channels, 1, shortcuts) for _ in range((layers - 2) // 6 - 1))
            return nn.Sequential(first, *others)

        self.layer1, self.layer2, self.layer3 = map(stage, range(3))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.linear = nn.Linear(CIFAR_CHANNELS[-1], num_classes)
        self._in_channels = in_channels
        if init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("CifarResNet", x, self._in_channels, smallest=1, alone=5 if self.training else 0)
        x = F.relu(self.bn1(self.conv1(x)))  # 16 x 32 x 32
        x = self.layer1(x)  # 16 x 32 x 32
        x = self.layer2(x)  # 32 x 16 x 16
        x = self.layer3(x)  # 64 x 8 x 8
        x = self.avgpool(x).flatten(1)  # 64
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.linear(x)  # num_classes
        return logits


resnet18, resnet34 = partial(ResNet, 18), partial(ResNet, 34)
resnet50, resnet101, resnet152 = partial(ResNet, 50), partial(ResNet, 101), partial(ResNet, 152)

resnet20, plain20 = partial(CifarResNet, 20, True), partial(CifarResNet, 20, False)
resnet32, plain32 = partial(CifarResNet, 32, True), partial(CifarResNet, 32, False)
resnet44, plain44 = partial(CifarResNet, 44, True), partial(CifarResNet, 44, False)
resnet56, plain56 = partial(CifarResNet, 56, True), partial(CifarResNet, 56, False)
resnet110, plain110 = partial(CifarResNet, 110, True), partial(CifarResNet, 110, False)
resnet1202, plain1202 = partial(CifarResNet, 1202, True), partial(CifarResNet, 1202, False)
