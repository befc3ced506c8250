"""Inception v2, or BN-Inception, as its public weights have it.

Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
2015 (arXiv:1502.03167), figure 5 of its appendix. Keys and outputs equal the port of the public Caffe weights in
github.com/Cadene/pretrained-models.pytorch (`bninception`), flat names such as inception_3a_3x3_reduce included.

Where the paper's figure and the weights differ, the weights were followed: the figure has 576 channels after 4c and 4d
and 1024 after 4e, where the columns of its own rows 4c and 4d sum to 608, those of 4e with its pooling to 1056 (192 +
256 + 608). The paper's first convolution is separable, that of the weights a plain 7 x 7. Convolutions keep their
biases, which BatchNorm makes idle, since the weights have them.

Deviations of that port that are not followed: a momentum of 0.9 for BatchNorm, which is Caffe's 0.1 mistaken (PyTorch's
default stands here), and a fixed 7 x 7 pooling at the end (adaptive here, the same at 224 x 224).
The weights expect images in the order BGR from 0 to 255 less the mean (104, 117, 128).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.models.checks import check_arguments, check_images

torch.fx.wrap("check_images")  # a trace keeps these as they are: they look at sizes
torch.fx.wrap("halved")

# Figure 5: #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3 (both convolutions), pool, pool proj.
# Blocks without a 1 x 1 branch halve the map and pass the pooling through.
BLOCKS = {
    "3a": (64, 64, 64, 64, 96, "avg", 32),
    "3b": (64, 64, 96, 64, 96, "avg", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "avg", 128),
    "4b": (192, 96, 128, 96, 128, "avg", 128),
    "4c": (160, 128, 160, 128, 160, "avg", 128),
    "4d": (96, 128, 192, 160, 192, "avg", 128),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "5a": (352, 192, 320, 160, 224, "avg", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}


def halved(x: Tensor) -> Tensor:
    """Return the 3 x 3 max pooling of `x` with stride 2, on as many pixels as a padded convolution makes of it.

    At 224 x 224 it is the pooling of the weights, rounded up. Maps of odd size, which other images lead to, get a
    border that never wins: without, they would come out a pixel short.
    """
    odd_rows, odd_columns = x.shape[2] % 2, x.shape[3] % 2
    if odd_rows or odd_columns:
        x = F.pad(x, (0, odd_columns, 0, odd_rows), value=-torch.inf)
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


class InceptionV2(nn.Module):
    """Build BN-Inception.

    Takes N x `in_channels` x H x W with H and W from 7 (made for 224; a single image below 39 x 39 cannot train, for
    lack of statistics) and returns N x `num_classes` logits. `dropout` is the rate before the linear layer; the paper
    has none. With `init`, convolutions are drawn after He et al. 2015 (arXiv:1502.01852) by fan-in (paper and weights
    say nothing of it); without, PyTorch's defaults stay.
    """

    def __init__(
        self, num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.0, init: bool = True
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, init=init)
        self._add("conv1_7x7_s2", in_channels, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        width = 192
        for block, (ones, threes_reduce, threes, double_reduce, double, _, projection) in BLOCKS.items():
            name = f"inception_{block}"
            stride = 1 if ones else 2
            if ones:
                self._add(f"{name}_1x1", width, ones, 1)
            self._add(f"{name}_3x3_reduce", width, threes_reduce, 1)
            self._add(f"{name}_3x3", threes_reduce, threes, 3, stride=stride)
            self._add(f"{name}_double_3x3_reduce", width, double_reduce, 1)
            self._add(f"{name}_double_3x3_1", double_reduce, double, 3)
            self._add(f"{name}_double_3x3_2", double, double, 3, stride=stride)
            if projection:
                self._add(f"{name}_pool_proj", width, projection, 1)
            width = ones + threes + double + (projection or width)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.last_linear = nn.Linear(width, num_classes)
        self._in_channels = in_channels
        if init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _add(self, name: str, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        """Add a convolution and its BatchNorm under flat names."""
        padding = kernel_size // 2
        self.add_module(name, nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out_channels))

    def _run(self, x: Tensor, *names: str) -> Tensor:
        """Return what the named convolutions make of `x` in turn, each with BatchNorm and ReLU."""
        for name in names:
            x = F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)), inplace=True)
        return x

    def _block(self, x: Tensor, block: str) -> Tensor:
        """Return what an Inception block (paper, section 4.2.1) makes of `x`, its branches side by side."""
        ones, pool = BLOCKS[block][0], BLOCKS[block][5]
        name = f"inception_{block}"
        # Channels are named by their columns in BLOCKS; h x w is H x W, or half of it where there is no 1 x 1 branch.
        branches = [self._run(x, f"{name}_1x1")] if ones else []  # (#1x1) x h x w
        branches.append(self._run(x, f"{name}_3x3_reduce", f"{name}_3x3"))  # (#3x3) x h x w
        double = (f"{name}_double_3x3_reduce", f"{name}_double_3x3_1", f"{name}_double_3x3_2")
        branches.append(self._run(x, *double))  # (double #3x3) x h x w
        if not ones:
            branches.append(halved(x))  # in_channels x h x w
        else:
            pooling = F.max_pool2d if pool == "max" else F.avg_pool2d
            x = pooling(x, 3, stride=1, padding=1)  # in_channels x H x W
            branches.append(self._run(x, f"{name}_pool_proj"))  # (pool proj) x h x w
        return torch.cat(branches, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("InceptionV2", x, self._in_channels, smallest=7, alone=39 if self.training else 0)
        x = self._run(x, "conv1_7x7_s2")  # 64 x 112 x 112
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)  # 64 x 56 x 56
        x = self._run(x, "conv2_3x3_reduce", "conv2_3x3")  # 192 x 56 x 56
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)  # 192 x 28 x 28
        x = self._block(x, "3a")  # 256 x 28 x 28
        x = self._block(x, "3b")  # 320 x 28 x 28
        x = self._block(x, "3c")  # 576 x 14 x 14
        x = self._block(x, "4a")  # 576 x 14 x 14
        x = self._block(x, "4b")  # 576 x 14 x 14
        x = self._block(x, "4c")  # 608 x 14 x 14
        x = self._block(x, "4d")  # 608 x 14 x 14
        x = self._block(x, "4e")  # 1056 x 7 x 7
        x = self._block(x, "5a")  # 1024 x 7 x 7
        x = self._block(x, "5b")  # 1024 x 7 x 7
        x = self.global_pool(x).flatten(1)  # 1024
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.last_linear(x)  # num_classes
        return logits


inception_v2 = InceptionV2
