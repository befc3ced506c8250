"""Inception v3, as torchvision has it: same keys, same outputs.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016
(arXiv:1512.00567), table 1 and figures 5 to 7, 10.

Where the paper and the released network (TensorFlow's, which torchvision ported) differ, the released one was followed:
table 1 has 3 x 3 convolutions of 80, 192 and 288 channels before the blocks, the release a 1 x 1 of 80, a 3 x 3 of 192
and a pooling; its 35 x 35 blocks keep one branch with a 5 x 5 convolution; the first of them takes 192 channels and the
second 256, not 288.

Deviations (torchvision's): the last pooling and that of the head are adaptive, where table 1 has 8 x 8; at 299 x 299
they are the same, and other sizes run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.models.checks import check_arguments, check_images
from torchledger.models.inception import ConvNormRelu, InceptionOutputs, check_rescaling, rescaled

torch.fx.wrap("check_images")  # a trace keeps these instead of looking into them
torch.fx.wrap("rescaled")


HEAD = "its head, which runs in train mode, is made for that; aux_logits=False builds none"


class InceptionA(nn.Module):
    """Build a block of the 35 x 35 maps (paper, figure 5; one branch keeps a 5 x 5 convolution).

    Takes N x in_channels x H x W and returns N x (224 + pool_channels) x H x W.
    """

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormRelu(in_channels, 64, 1)
        self.branch5x5_1 = ConvNormRelu(in_channels, 48, 1)
        self.branch5x5_2 = ConvNormRelu(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, padding=1)
        self.branch_pool = ConvNormRelu(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the four branches of `x`, side by side."""
        ones = self.branch1x1(x)  # 64 x H x W
        fives = self.branch5x5_2(self.branch5x5_1(x))  # 64 x H x W
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))  # 96 x H x W
        pool = self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1))  # pool_channels x H x W
        return torch.cat([ones, fives, threes, pool], 1)


class ReductionA(nn.Module):
    """Build the block between the 35 x 35 and the 17 x 17 maps (paper, figure 10).

    Takes N x in_channels x H x W and returns N x (480 + in_channels) x (H-1)/2 x (W-1)/2, rounded down.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNormRelu(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the three branches of `x`, side by side."""
        threes = self.branch3x3(x)  # 384 x H/2 x W/2
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))  # 96 x H/2 x W/2
        pool = F.max_pool2d(x, 3, stride=2)  # in_channels x H/2 x W/2
        return torch.cat([threes, double, pool], 1)


class InceptionB(nn.Module):
    """Build a block of the 17 x 17 maps, with 7 x 7 convolutions in two factors (paper, figure 6).

    Takes N x 768 x H x W and returns the same size. `channels` are those inside the factored branches.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        along, across = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = ConvNormRelu(768, 192, 1)
        self.branch7x7_1 = ConvNormRelu(768, channels, 1)
        self.branch7x7_2 = ConvNormRelu(channels, channels, row, **along)
        self.branch7x7_3 = ConvNormRelu(channels, 192, column, **across)
        self.branch7x7dbl_1 = ConvNormRelu(768, channels, 1)
        self.branch7x7dbl_2 = ConvNormRelu(channels, channels, column, **across)
        self.branch7x7dbl_3 = ConvNormRelu(channels, channels, row, **along)
        self.branch7x7dbl_4 = ConvNormRelu(channels, channels, column, **across)
        self.branch7x7dbl_5 = ConvNormRelu(channels, 192, row, **along)
        self.branch_pool = ConvNormRelu(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the four branches of `x`, side by side, 192 channels each."""
        ones = self.branch1x1(x)  # 192 x H x W
        sevens = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))  # 192 x H x W
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))  # channels x H x W
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))  # 192 x H x W
        pool = self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1))  # 192 x H x W
        return torch.cat([ones, sevens, double, pool], 1)


class ReductionB(nn.Module):
    """Build the block between the 17 x 17 and the 8 x 8 maps.

    Takes N x 768 x H x W and returns N x 1280 x (H-1)/2 x (W-1)/2, rounded down.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNormRelu(768, 192, 1)
        self.branch3x3_2 = ConvNormRelu(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormRelu(768, 192, 1)
        self.branch7x7x3_2 = ConvNormRelu(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormRelu(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormRelu(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the three branches of `x`, side by side."""
        threes = self.branch3x3_2(self.branch3x3_1(x))  # 320 x H/2 x W/2
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))  # 192 x H x W
        sevens = self.branch7x7x3_4(sevens)  # 192 x H/2 x W/2
        pool = F.max_pool2d(x, 3, stride=2)  # 768 x H/2 x W/2
        return torch.cat([threes, sevens, pool], 1)


class InceptionC(nn.Module):
    """Build a block of the 8 x 8 maps, whose 3 x 3 convolutions fan out in two factors (paper, figure 7).

    Takes N x in_channels x H x W and returns N x 2048 x H x W.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormRelu(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormRelu(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormRelu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormRelu(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormRelu(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormRelu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormRelu(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNormRelu(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the six ends of the branches of `x`, side by side: 320 + 4 * 384 + 192 channels."""
        ones = self.branch1x1(x)  # 320 x H x W
        threes = self.branch3x3_1(x)  # 384 x H x W
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))  # 384 x H x W
        pool = self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1))  # 192 x H x W
        fan = [self.branch3x3_2a(threes), self.branch3x3_2b(threes)]  # 384 x H x W each
        fan += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]  # 384 x H x W each
        return torch.cat([ones, *fan, pool], 1)


class Head(nn.Module):
    """Build the auxiliary classifier of the 17 x 17 maps (paper, figure 8).

    Takes N x 768 x 17 x 17 and returns N x num_classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNormRelu(768, 128, 1)
        self.conv1 = ConvNormRelu(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x 768 x 17 x 17."""
        x = F.avg_pool2d(x, 5, stride=3)  # 768 x 5 x 5
        x = self.conv1(self.conv0(x))  # 768 x 1 x 1
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # num_classes
        return logits


class InceptionV3(nn.Module):
    """Build Inception v3.

    Takes N x `in_channels` x H x W with H and W from 75 (made for 299), in train mode with a head from 299, and
    returns N x `num_classes` logits; in train mode with `aux_logits` `InceptionOutputs`, for batches of 2 or more
    (a single image would give BatchNorm one value a channel in the head, below 347 x 347). `transform_input` takes
    images normalised by ImageNet's mean and deviation to the range that torchvision's weights were trained with;
    `build(name, weights=...)` sets it, as torchvision does. `dropout` is the rate before the last linear layer. With
    `init`, weights are drawn from a Gaussian of standard deviation 0.1, in the head's linear layer 0.001, cut off at 2,
    as torchvision draws them; without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.5,
        init: bool = True,
    ) -> None:
        super().__init__()
        flags = {"aux_logits": aux_logits, "transform_input": transform_input, "init": init}
        check_arguments(num_classes, in_channels, dropout, **flags)
        check_rescaling(transform_input, in_channels)
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = ConvNormRelu(in_channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(192, pool_channels=32)
        self.Mixed_5c = InceptionA(256, pool_channels=64)
        self.Mixed_5d = InceptionA(288, pool_channels=64)
        self.Mixed_6a = ReductionA(288)
        self.Mixed_6b = InceptionB(128)
        self.Mixed_6c = InceptionB(160)
        self.Mixed_6d = InceptionB(160)
        self.Mixed_6e = InceptionB(192)
        self.AuxLogits = Head(num_classes) if aux_logits else None
        self.Mixed_7a = ReductionB()
        self.Mixed_7b = InceptionC(1280)
        self.Mixed_7c = InceptionC(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        self._in_channels = in_channels
        if init:
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                of_head = self.AuxLogits is not None and module is self.AuxLogits.fc
                nn.init.trunc_normal_(module.weight, std=0.001 if of_head else 0.1)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        """Return N x num_classes logits of N x in_channels x H x W images, in train mode with those of the head."""
        head = self.AuxLogits if self.training else None
        if head is None:
            check_images("InceptionV3", x, self._in_channels, smallest=75, alone=107 if self.training else 0)
        else:
            check_images("InceptionV3", x, self._in_channels, smallest=299, alone=347, why=HEAD)
        if self.transform_input:
            x = rescaled(x)
        x = self.Conv2d_1a_3x3(x)  # 32 x 149 x 149
        x = self.Conv2d_2a_3x3(x)  # 32 x 147 x 147
        x = self.Conv2d_2b_3x3(x)  # 64 x 147 x 147
        x = self.maxpool1(x)  # 64 x 73 x 73
        x = self.Conv2d_3b_1x1(x)  # 80 x 73 x 73
        x = self.Conv2d_4a_3x3(x)  # 192 x 71 x 71
        x = self.maxpool2(x)  # 192 x 35 x 35
        x = self.Mixed_5b(x)  # 256 x 35 x 35
        x = self.Mixed_5c(x)  # 288 x 35 x 35
        x = self.Mixed_5d(x)  # 288 x 35 x 35
        x = self.Mixed_6a(x)  # 768 x 17 x 17
        x = self.Mixed_6b(x)  # 768 x 17 x 17
        x = self.Mixed_6c(x)  # 768 x 17 x 17
        x = self.Mixed_6d(x)  # 768 x 17 x 17
        x = self.Mixed_6e(x)  # 768 x 17 x 17
        aux_logits = None if head is None else head(x)  # num_classes
        x = self.Mixed_7a(x)  # 1280 x 8 x 8
        x = self.Mixed_7b(x)  # 2048 x 8 x 8
        x = self.Mixed_7c(x)  # 2048 x 8 x 8
        x = self.avgpool(x).flatten(1)  # 2048
        logits: Tensor = self.fc(self.dropout(x))  # num_classes
        return logits if aux_logits is None else InceptionOutputs(logits, aux_logits)


inception_v3 = InceptionV3
