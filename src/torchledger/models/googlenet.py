"""GoogLeNet (Inception v1): as its paper has it, and the variant with BatchNorm whose weights torchvision offers.

Szegedy et al., "Going deeper with convolutions", CVPR 2015 (arXiv:1409.4842), table 1.

googlenet_v1  The paper's: biases, local response normalisation, no BatchNorm, two auxiliary heads after 4a and 4d. What
              the paper leaves open follows BVLC's replication in Caffe, bvlc_googlenet: poolings rounded up, the
              constants of the normalisation, ReLUs everywhere. Deviations, neither of which shows at 224 x 224: the
              last pooling is adaptive where the paper has 7 x 7, which lets other sizes in, and the 5 x 5 pooling of
              the heads is rounded down.
              Rows of table 1 that contradict themselves follow the channel columns: conv1 is a plain 7 x 7 convolution
              (9.4 K weights and 118 M operations, where the row has 2.7 K and 34 M); 4c has 509 K weights and 100 M
              operations (463 K in the row); 5a has 1,042 K and 51 M (1,072 K and 54 M in the row).
googlenet     torchvision's, same keys and outputs. Deviations: BatchNorm after each convolution and no biases there, no
              local response normalisation, 3 x 3 in place of the 5 x 5 convolutions (a slip that its weights were
              trained with), a 2 x 2 pooling before 5a, adaptive pooling at the end and in the heads, dropout 0.2 in
              place of 0.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.models.checks import check_arguments, check_images, check_rate
from torchledger.models.inception import ConvNormRelu, ConvRelu, GoogLeNetOutputs, check_rescaling, rescaled

torch.fx.wrap("check_images")  # a trace keeps these instead of looking into them
torch.fx.wrap("rescaled")

Conv = type[ConvRelu] | type[ConvNormRelu]

# Table 1:  #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
CHANNELS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


HEADS = "its heads, which run in train mode, are sized for that; aux_logits=False builds none"


class Inception(nn.Module):
    """Build an Inception block (paper, figure 2b): four branches side by side, concatenated along the channels.

    Takes N x in_channels x H x W and returns N x C x H x W, where C is the sum of the first, third, fifth and sixth of
    `channels`, a row of table 1. `wide` is the kernel of the branch that the paper calls 5x5.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], conv: Conv, wide: int) -> None:
        super().__init__()
        ones, threes_reduce, threes, fives_reduce, fives, projection = channels
        self.branch1 = conv(in_channels, ones, 1)
        self.branch2 = nn.Sequential(conv(in_channels, threes_reduce, 1), conv(threes_reduce, threes, 3, padding=1))
        self.branch3 = nn.Sequential(
            conv(in_channels, fives_reduce, 1), conv(fives_reduce, fives, wide, padding=wide // 2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(in_channels, projection, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return N x C x H x W of N x in_channels x H x W."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Head(nn.Module):
    """Build an auxiliary classifier (paper, section 5): pooling to 4 x 4, a 1 x 1 convolution, two linear layers.

    Takes N x in_channels x 14 x 14 and returns N x num_classes. `adaptive` pools any map to 4 x 4; the paper's 5 x 5
    pooling with stride 3 needs one of 14 to 16 pixels a side.
    """

    def __init__(self, in_channels: int, num_classes: int, conv: Conv, dropout: float, adaptive: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4) if adaptive else nn.AvgPool2d(5, stride=3)
        self.conv = conv(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x 14 x 14."""
        x = self.conv(self.pool(x))  # 128 x 4 x 4
        x = F.relu(self.fc1(x.flatten(1)), inplace=True)  # 1024
        logits: Tensor = self.fc2(self.dropout(x))  # num_classes
        return logits


class Stages(nn.Module):
    """Hold what both networks share: the stages from 3a on, the heads and the classifier."""

    def _add_stages(
        self,
        num_classes: int,
        conv: Conv,
        wide: int,
        last_pool: int,
        adaptive: bool,
        aux_logits: bool,
        dropout: float,
        dropout_aux: float,
    ) -> None:
        """Add these to a network that has its stem."""

        def block(name: str, in_channels: int) -> Inception:
            return Inception(in_channels, CHANNELS[name], conv, wide)

        self.inception3a = block("3a", 192)
        self.inception3b = block("3b", 256)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = block("4a", 480)
        self.inception4b = block("4b", 512)
        self.inception4c = block("4c", 512)
        self.inception4d = block("4d", 512)
        self.inception4e = block("4e", 528)
        self.maxpool4 = nn.MaxPool2d(last_pool, stride=2, ceil_mode=True)
        self.inception5a = block("5a", 832)
        self.inception5b = block("5b", 832)
        self.aux1 = Head(512, num_classes, conv, dropout_aux, adaptive) if aux_logits else None
        self.aux2 = Head(528, num_classes, conv, dropout_aux, adaptive) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

    def classify(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """Return the logits of N x 192 x 28 x 28, in train mode with those of the heads."""
        x = self.inception3a(x)  # 256 x 28 x 28
        x = self.inception3b(x)  # 480 x 28 x 28
        x = self.maxpool3(x)  # 480 x 14 x 14
        x = self.inception4a(x)  # 512 x 14 x 14
        aux1 = self.aux1(x) if self.training and self.aux1 is not None else None  # num_classes
        x = self.inception4b(x)  # 512 x 14 x 14
        x = self.inception4c(x)  # 512 x 14 x 14
        x = self.inception4d(x)  # 528 x 14 x 14
        aux2 = self.aux2(x) if self.training and self.aux2 is not None else None  # num_classes
        x = self.inception4e(x)  # 832 x 14 x 14
        x = self.maxpool4(x)  # 832 x 7 x 7
        x = self.inception5a(x)  # 832 x 7 x 7
        x = self.inception5b(x)  # 1024 x 7 x 7
        x = self.avgpool(x).flatten(1)  # 1024
        logits: Tensor = self.fc(self.dropout(x))  # num_classes
        return logits if aux1 is None or aux2 is None else GoogLeNetOutputs(logits, aux2, aux1)


class GoogLeNetV1(Stages):
    """Build GoogLeNet as its paper has it.

    Takes N x `in_channels` x H x W with H and W from 31 (made for 224), in train mode with heads 223 to 270, which the
    heads' linear layers are sized for, and returns N x `num_classes` logits; in train mode with `aux_logits`
    `GoogLeNetOutputs`, whose heads the paper weighs with 0.3 in the loss. `dropout` and `dropout_aux` are the rates
    before the last linear layer of the trunk and of a head. With `init`, weights are uniform up to sqrt(3 / fan-in),
    biases 0.2 and in the classifiers 0: Caffe's "xavier", which bvlc_googlenet was trained with in place of a Gaussian;
    without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        aux_logits: bool = True,
        dropout: float = 0.4,
        dropout_aux: float = 0.7,
        init: bool = True,
    ) -> None:
        check_arguments(num_classes, in_channels, dropout, aux_logits=aux_logits, init=init)
        check_rate(dropout_aux=dropout_aux)
        super().__init__()
        self.conv1 = ConvRelu(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.conv2 = ConvRelu(64, 64, 1)
        self.conv3 = ConvRelu(64, 192, 3, padding=1)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self._add_stages(num_classes, ConvRelu, 5, 3, False, aux_logits, dropout, dropout_aux)
        self._in_channels = in_channels
        if init:
            self._initialise()

    def _initialise(self) -> None:
        with_bias = {head.fc1 for head in (self.aux1, self.aux2) if head is not None}
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")  # up to sqrt(3 / fan-in)
                nn.init.constant_(module.bias, 0.2 if isinstance(module, nn.Conv2d) or module in with_bias else 0.0)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """Return N x num_classes logits of N x in_channels x H x W images, in train mode with those of the heads."""
        if self.training and self.aux1 is not None:
            check_images("GoogLeNetV1", x, self._in_channels, 223, 270, why=HEADS)
        else:
            check_images("GoogLeNetV1", x, self._in_channels, smallest=31)
        x = self.conv1(x)  # 64 x 112 x 112
        x = self.norm1(self.maxpool1(x))  # 64 x 56 x 56
        x = self.conv2(x)  # 64 x 56 x 56
        x = self.norm2(self.conv3(x))  # 192 x 56 x 56
        x = self.maxpool2(x)  # 192 x 28 x 28
        return self.classify(x)


class GoogLeNet(Stages):
    """Build GoogLeNet with BatchNorm, as torchvision has it.

    Takes N x `in_channels` x H x W with H and W from 15 (made for 224; a single image below 47 x 47 cannot train, for
    lack of statistics) and returns N x `num_classes` logits; in train mode with `aux_logits` `GoogLeNetOutputs`.
    `transform_input` takes images normalised by ImageNet's mean and deviation to the range that torchvision's weights
    were trained with; `build(name, weights=...)` sets it, as torchvision does. `dropout` and `dropout_aux` are the
    rates before the last linear layer of the trunk and of a head. With `init`, weights are drawn from a Gaussian of
    standard deviation 0.01 cut off at 2, as torchvision; without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        init: bool = True,
    ) -> None:
        flags = {"aux_logits": aux_logits, "transform_input": transform_input, "init": init}
        check_arguments(num_classes, in_channels, dropout, **flags)
        check_rate(dropout_aux=dropout_aux)
        check_rescaling(transform_input, in_channels)
        super().__init__()
        self.conv1 = ConvNormRelu(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvNormRelu(64, 64, 1)
        self.conv3 = ConvNormRelu(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.transform_input = transform_input
        self._add_stages(num_classes, ConvNormRelu, 3, 2, True, aux_logits, dropout, dropout_aux)
        self._in_channels = in_channels
        if init:
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """Return N x num_classes logits of N x in_channels x H x W images, in train mode with those of the heads."""
        check_images("GoogLeNet", x, self._in_channels, smallest=15, alone=47 if self.training else 0)
        if self.transform_input:
            x = rescaled(x)
        x = self.conv1(x)  # 64 x 112 x 112
        x = self.maxpool1(x)  # 64 x 56 x 56
        x = self.conv2(x)  # 64 x 56 x 56
        x = self.conv3(x)  # 192 x 56 x 56
        x = self.maxpool2(x)  # 192 x 28 x 28
        return self.classify(x)


googlenet_v1 = GoogLeNetV1
googlenet = GoogLeNet
