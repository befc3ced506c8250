"""Inception v4, as timm has it: same keys, same outputs.

Szegedy, Ioffe, Vanhoucke, Alemi, "Inception-v4, Inception-ResNet and the impact of residual connections on learning",
AAAI 2017 (arXiv:1602.07261), figures 3 to 9; k = 192, l = 224, m = 256, n = 384 in reduction A (table 1).

Deviations, all as in the released TensorFlow network, whose weights timm ported: the border of an average pooling
counts the pixels inside alone; where a convolution comes in two factors, their order is that of the weights, which is
not everywhere that of the figures (in the stem 1 x 7 before 7 x 1, for one). The last pooling is adaptive: over the
whole map at 299 x 299, and at other sizes as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchledger.models.checks import check_arguments, check_images
from torchledger.models.inception import ConvNormRelu

torch.fx.wrap("check_images")  # a trace keeps the check instead of looking into it

# Kernel sizes, rows by columns, of convolutions in two factors.
ROW, COLUMN = (1, 7), (7, 1)
SHORT_ROW, SHORT_COLUMN = (1, 3), (3, 1)


def conv(in_channels: int, out_channels: int, kernel_size: int | tuple[int, int]) -> ConvNormRelu:
    """Build a convolution that keeps the size ("SAME" in the paper's figures)."""
    rows, columns = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    return ConvNormRelu(in_channels, out_channels, kernel_size, padding=(rows // 2, columns // 2))


def valid(in_channels: int, out_channels: int, stride: int = 2) -> ConvNormRelu:
    """Build a 3 x 3 convolution without padding ("V" in the paper's figures)."""
    return ConvNormRelu(in_channels, out_channels, 3, stride=stride)


def pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build the branch of an average pooling and a 1 x 1 convolution."""
    return nn.Sequential(
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), conv(in_channels, out_channels, 1)
    )


class PoolAndConv(nn.Module):
    """Halve a map by a pooling and by a convolution, side by side (paper, figure 3, first and last)."""

    def __init__(self, in_channels: int, channels: int, conv_first: bool) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.conv = valid(in_channels, channels)
        self._conv_first = conv_first

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooling and the convolution of `x`, in the order that the weights have."""
        # in_channels and channels x (H-1)/2 x (W-1)/2
        both = [self.conv(x), self.maxpool(x)] if self._conv_first else [self.maxpool(x), self.conv(x)]
        return torch.cat(both, 1)


class Branches(nn.Module):
    """Run branches side by side and concatenate what they make along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self._names = [f"branch{number}" for number in range(len(branches))]
        for name, branch in zip(self._names, branches, strict=True):
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches of `x`, side by side."""
        return torch.cat([self.get_submodule(name)(x) for name in self._names], 1)


def stem() -> Branches:
    """Build the middle of the stem (paper, figure 3): N x 160 x H x W to N x 192 x (H-2) x (W-2)."""
    return Branches(
        nn.Sequential(conv(160, 64, 1), valid(64, 96, stride=1)),  # 64 x H x W, 96 x (H-2) x (W-2)
        nn.Sequential(
            conv(160, 64, 1),  # 64 x H x W
            conv(64, 64, ROW),  # 64 x H x W
            conv(64, 64, COLUMN),  # 64 x H x W
            valid(64, 96, stride=1),  # 96 x (H-2) x (W-2)
        ),
    )


def inception_a() -> Branches:
    """Build a block of the 35 x 35 maps (paper, figure 4): N x 384 x H x W to the same."""
    return Branches(
        conv(384, 96, 1),  # 96 x H x W
        nn.Sequential(conv(384, 64, 1), conv(64, 96, 3)),  # 64, 96 x H x W
        nn.Sequential(conv(384, 64, 1), conv(64, 96, 3), conv(96, 96, 3)),  # 64, 96, 96 x H x W
        pooled(384, 96),  # 96 x H x W
    )


def reduction_a() -> Branches:
    """Build the block from 35 x 35 to 17 x 17 (paper, figure 7): N x 384 x H x W to N x 1024 x (H-1)/2 x (W-1)/2."""
    return Branches(
        valid(384, 384),  # 384 x (H-1)/2 x (W-1)/2
        nn.Sequential(
            conv(384, 192, 1),  # 192 x H x W
            conv(192, 224, 3),  # 224 x H x W
            valid(224, 256),  # 256 x (H-1)/2 x (W-1)/2
        ),
        nn.MaxPool2d(3, stride=2),  # 384 x (H-1)/2 x (W-1)/2
    )


def inception_b() -> Branches:
    """Build a block of the 17 x 17 maps (paper, figure 5): N x 1024 x H x W to the same."""
    return Branches(
        conv(1024, 384, 1),  # 384 x H x W
        nn.Sequential(conv(1024, 192, 1), conv(192, 224, ROW), conv(224, 256, COLUMN)),  # 192, 224, 256 x H x W
        nn.Sequential(
            conv(1024, 192, 1),  # 192 x H x W
            conv(192, 192, COLUMN),  # 192 x H x W
            conv(192, 224, ROW),  # 224 x H x W
            conv(224, 224, COLUMN),  # 224 x H x W
            conv(224, 256, ROW),  # 256 x H x W
        ),
        pooled(1024, 128),  # 128 x H x W
    )


def reduction_b() -> Branches:
    """Build the block from 17 x 17 to 8 x 8 (paper, figure 8): N x 1024 x H x W to N x 1536 x (H-1)/2 x (W-1)/2."""
    return Branches(
        nn.Sequential(conv(1024, 192, 1), valid(192, 192)),  # 192 x H x W, 192 x (H-1)/2 x (W-1)/2
        nn.Sequential(
            conv(1024, 256, 1),  # 256 x H x W
            conv(256, 256, ROW),  # 256 x H x W
            conv(256, 320, COLUMN),  # 320 x H x W
            valid(320, 320),  # 320 x (H-1)/2 x (W-1)/2
        ),
        nn.MaxPool2d(3, stride=2),  # 1024 x (H-1)/2 x (W-1)/2
    )


class InceptionC(nn.Module):
    """Build a block of the 8 x 8 maps, whose branches fan out (paper, figure 6).

    Takes N x 1536 x H x W and returns the same: 6 * 256 channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = conv(1536, 256, 1)
        self.branch1_0 = conv(1536, 384, 1)
        self.branch1_1a = conv(384, 256, SHORT_ROW)
        self.branch1_1b = conv(384, 256, SHORT_COLUMN)
        self.branch2_0 = conv(1536, 384, 1)
        self.branch2_1 = conv(384, 448, SHORT_COLUMN)
        self.branch2_2 = conv(448, 512, SHORT_ROW)
        self.branch2_3a = conv(512, 256, SHORT_ROW)
        self.branch2_3b = conv(512, 256, SHORT_COLUMN)
        self.branch3 = pooled(1536, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Return the six ends of the branches of `x`, side by side."""
        one = self.branch1_0(x)  # 384 x H x W
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))  # 512 x H x W
        ends = [self.branch0(x), self.branch1_1a(one), self.branch1_1b(one)]  # 256 x H x W each
        ends += [self.branch2_3a(two), self.branch2_3b(two), self.branch3(x)]  # 256 x H x W each
        return torch.cat(ends, 1)


class InceptionV4(nn.Module):
    """Build Inception v4.

    Takes N x `in_channels` x H x W with H and W from 75 (made for 299) and returns N x `num_classes` logits. `dropout`
    is the rate before the linear layer; the paper keeps with probability 0.8, timm drops nothing, which is the default
    here. With `init`, convolutions are drawn after He et al. 2015 (arXiv:1502.01852) by fan-in (the paper says nothing
    of it; timm keeps PyTorch's defaults); without, PyTorch's defaults stay.
    """

    def __init__(
        self, num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.0, init: bool = True
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, init=init)
        self.features = nn.Sequential(  # 3 x 299 x 299
            valid(in_channels, 32),  # 32 x 149 x 149
            valid(32, 32, stride=1),  # 32 x 147 x 147
            conv(32, 64, 3),  # 64 x 147 x 147
            PoolAndConv(64, 96, conv_first=False),  # 160 x 73 x 73
            stem(),  # 192 x 71 x 71
            PoolAndConv(192, 192, conv_first=True),  # 384 x 35 x 35
            *(inception_a() for _ in range(4)),  # 384 x 35 x 35
            reduction_a(),  # 1024 x 17 x 17
            *(inception_b() for _ in range(7)),  # 1024 x 17 x 17
            reduction_b(),  # 1536 x 8 x 8
            *(InceptionC() for _ in range(3)),  # 1536 x 8 x 8
        )
        self.global_pool = nn.AdaptiveAvgPool2d(1)  # 1536 x 1 x 1
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.last_linear = nn.Linear(1536, num_classes)
        self._in_channels = in_channels
        if init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("InceptionV4", x, self._in_channels, smallest=75, alone=107 if self.training else 0)
        x = self.features(x)  # 1536 x 8 x 8
        x = self.global_pool(x).flatten(1)  # 1536
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.last_linear(x)  # num_classes
        return logits


inception_v4 = InceptionV4
