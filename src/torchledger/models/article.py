"""The four networks of the article that torchledger grew from, layer for layer as it lays them out.

AlexNet      Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (arXiv:1404.5997):
             the one-tower version, 64-192-384-256-256 channels, of Krizhevsky, Sutskever, Hinton, NIPS 2012.
VGG16        Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014
             (arXiv:1409.1556), configuration D.
Inception    Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015 (arXiv:1512.00567): the
             block of its 35x35 stage, in the released variant that keeps a 5x5 branch. (The article shows it under
             GoogLeNet, whose own block has no BatchNorm and a single 3x3 convolution in its second branch.)
BasicBlock   He et al., "Deep residual learning for image recognition", 2015 (arXiv:1512.03385), figure 5, left.

What departs from these papers is said where it happens; weights keep PyTorch's default initialisation throughout.
The article's forwards print the shapes on the way; here they stand as comments, for one sample of the size named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchledger.errors import UserError

# Output channels of the 3x3 convolutions of each stage; a 2x2 max pool ends every stage (VGG paper, table 1, column D).
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class AlexNet(nn.Module):
    """Build AlexNet with five convolutions and three fully connected layers in one tower.

    Takes N x 3 x 224 x 224 and returns N x `num_classes` logits (default 1000). The classifier is sized for 224 x 224:
    there is no adaptive pooling as in torchvision, so that another size fails in the flattening.
    Source: Krizhevsky 2014 (arXiv:1404.5997).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        # Deviations: no local response normalization after the first two convolutions. NIPS 2012 has 96-256-384-384-256
        # channels and splits its second, fourth and fifth convolution over two towers.
        self.features = nn.Sequential(  # 3 x 224 x 224
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),  # 64 x 55 x 55
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 64 x 27 x 27
            nn.Conv2d(64, 192, kernel_size=5, padding=2),  # 192 x 27 x 27
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 192 x 13 x 13
            nn.Conv2d(192, 384, kernel_size=3, padding=1),  # 384 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),  # 256 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),  # 256 x 13 x 13
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 256 x 6 x 6
        )
        # Deviation: dropout acts on the inputs of the first two linear layers; NIPS 2012 has it on their outputs.
        self.classifier = nn.Sequential(  # 9216
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),  # num_classes
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x 3 x 224 x 224."""
        x = self.features(x)  # 256 x 6 x 6
        x = x.view(x.size(0), 256 * 6 * 6)  # 9216
        logits: Tensor = self.classifier(x)  # num_classes
        return logits


class VGG16(nn.Module):
    """Build VGG-16 with thirteen 3x3 convolutions in five stages and three fully connected layers.

    Takes N x 3 x 224 x 224 and returns N x `num_classes` logits (default 1000). The classifier is sized for 224 x 224:
    there is no adaptive pooling as in torchvision, so that another size fails in the first linear layer.
    Source: Simonyan and Zisserman 2014 (arXiv:1409.1556), configuration D, layer for layer.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in VGG16_STAGES:
            for out_channels in stage:
                layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        # 3 x 224 x 224 -> 64 x 112 x 112 -> 128 x 56 x 56 -> 256 x 28 x 28 -> 512 x 14 x 14 -> 512 x 7 x 7
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(  # 25088
            nn.Linear(512 * 7 * 7, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),  # num_classes
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x 3 x 224 x 224."""
        x = self.features(x)  # 512 x 7 x 7
        x = x.view(x.size(0), -1)  # 25088
        logits: Tensor = self.classifier(x)  # num_classes
        return logits


class BasicConv2d(nn.Module):
    """Build a convolution without bias, followed by BatchNorm with eps 0.001.

    Takes N x in_channels x H x W; `options` go to `nn.Conv2d` and decide the output size as there.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, bias=False, **options)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized convolution of `x`."""
        # Deviation: no ReLU after the BatchNorm; every convolution of the paper has one.
        x = self.conv(x)
        x = self.bn(x)
        return x


class Inception(nn.Module):
    """Build an Inception block: four branches side by side, concatenated along the channels.

    Takes N x in_channels x H x W (default 3 channels) and returns N x 288 x H x W: 64 + 64 + 96 + 64 channels.
    Source: Szegedy et al. 2015 (arXiv:1512.00567), the 35x35 block of the released variant.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 64, kernel_size=1)

        self.branch5x5_1 = BasicConv2d(in_channels, 48, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(48, 64, kernel_size=5, padding=2)

        self.branch3x3_1 = BasicConv2d(in_channels, 64, kernel_size=1)
        self.branch3x3_2 = BasicConv2d(64, 96, kernel_size=3, padding=1)
        self.branch3x3_3 = BasicConv2d(96, 96, kernel_size=3, padding=1)

        # Deviation: the paper pads the pooling. Here the pooling loses a border of one pixel and the padding of the 1x1
        # convolution puts it back, so that the border of this branch is a convolution of zeros.
        self.branchpool_1 = nn.AvgPool2d(kernel_size=3, stride=1)
        self.branch_pool = BasicConv2d(in_channels, 64, kernel_size=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x 288 x H x W of N x in_channels x H x W."""
        branch1x1 = self.branch1x1(x)  # 64 x H x W

        branch5x5 = self.branch5x5_1(x)  # 48 x H x W
        branch5x5 = self.branch5x5_2(branch5x5)  # 64 x H x W

        branch3x3 = self.branch3x3_1(x)  # 64 x H x W
        branch3x3 = self.branch3x3_2(branch3x3)  # 96 x H x W
        branch3x3 = self.branch3x3_3(branch3x3)  # 96 x H x W

        branch_pool = self.branchpool_1(x)  # in_channels x (H - 2) x (W - 2)
        branch_pool = self.branch_pool(branch_pool)  # 64 x H x W

        return torch.cat([branch1x1, branch5x5, branch3x3, branch_pool], 1)  # 288 x H x W


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Build a residual block of two 3x3 convolutions.

    Takes N x in_channels x H x W (default 64 channels) and returns N x out_channels x H/stride x W/stride (default 64,
    stride 1), rounded up. `downsample` brings the input to the shape of the output; the default, none, is right only
    where the two are equal, and anything else raises `UserError`.
    Source: He et al. 2015 (arXiv:1512.03385), figure 5, left.
    """

    def __init__(
        self, in_channels: int = 64, out_channels: int = 64, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        if downsample is None and (in_channels != out_channels or stride != 1):
            raise UserError(
                f"BasicBlock({in_channels}, {out_channels}, stride={stride}) needs a downsample: the residual of"
                f" {in_channels} channels must come to {out_channels} channels at stride {stride}; give"
                f" downsample=nn.Sequential(nn.Conv2d({in_channels}, {out_channels}, 1, stride={stride}, bias=False),"
                f" nn.BatchNorm2d({out_channels}))"
            )
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return N x out_channels x H/stride x W/stride of N x in_channels x H x W."""
        residual = x  # in_channels x H x W
        out = self.conv1(x)  # out_channels x H/stride x W/stride, and so to the end
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)  # Deviation: He et al. apply no ReLU here, only the one after the addition.
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        result: Tensor = self.relu(out)
        return result
