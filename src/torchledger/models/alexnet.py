"""AlexNet, in one tower as it is used today, and in two groups as it won ILSVRC 2012.

alexnet       Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (arXiv:1404.5997),
              section 5: one tower. As torchvision has it: same keys, same outputs.
alexnet_2012  Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
              2012: two groups, local response normalisation, overlapping pooling. It takes raw pixels, 0 to 255 less
              their mean (section 2), and its initialisation counts on that.

Deviations of `alexnet` (torchvision's): no response normalisation; an adaptive pooling before the classifier lets other
sizes in, and is the identity at 224 x 224; dropout acts on the inputs of the first two linear layers, where 2012 has it
on their outputs.
Deviation of `alexnet_2012`: 227 x 227 pixels. The paper's figure 2 says 224 x 224, from which an 11 x 11 convolution
with stride 4 makes no 55 x 55 map; 227 does, and is what the public Caffe port takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchledger.models.checks import check_arguments, check_images

torch.fx.wrap("check_images")  # a trace keeps the check instead of looking into it


class AlexNet(nn.Module):
    """Build AlexNet with five convolutions in one tower and three linear layers.

    Takes N x `in_channels` x H x W with H and W from 63 (made for 224) and returns N x `num_classes` logits. Weights
    keep PyTorch's default initialisation, as torchvision's do, so that `init` changes nothing. `dropout` is the rate at
    the inputs of the first two linear layers.
    """

    def __init__(
        self, num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.5, init: bool = True
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, init=init)
        self.features = nn.Sequential(  # 3 x 224 x 224
            nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2),  # 64 x 55 x 55
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
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # 256 x 6 x 6, at 224 what it was given
        self.classifier = nn.Sequential(  # 9216
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),  # num_classes
        )
        self._in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("AlexNet", x, self._in_channels, smallest=63)
        x = self.features(x)  # 256 x 6 x 6
        x = self.avgpool(x)  # 256 x 6 x 6
        logits: Tensor = self.classifier(x.flatten(1))  # num_classes
        return logits


def response_norm() -> nn.LocalResponseNorm:
    """Build the normalisation of section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75.

    The paper's alpha scales the sum of the squares of n channels, PyTorch's scales their mean: n times as much.
    """
    return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)


class AlexNet2012(nn.Module):
    """Build AlexNet as it was in 2012: its second, fourth and fifth convolution in two groups (one a GPU then).

    Takes N x `in_channels` x 227 x 227 (up to 258 ends in the same 6 x 6 map) and returns N x `num_classes` logits.
    `dropout` is the rate at the outputs of the first two linear layers (paper, section 4.2). With `init`, weights are
    drawn from a Gaussian of standard deviation 0.01, and biases are 1 in the second, fourth and fifth convolution and
    the hidden linear layers, and 0 elsewhere (section 5); without, PyTorch's defaults stay.
    """

    def __init__(
        self, num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.5, init: bool = True
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, init=init)
        self.features = nn.Sequential(  # 3 x 227 x 227
            nn.Conv2d(in_channels, 96, kernel_size=11, stride=4),  # 96 x 55 x 55
            nn.ReLU(inplace=True),
            response_norm(),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 96 x 27 x 27
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),  # 256 x 27 x 27
            nn.ReLU(inplace=True),
            response_norm(),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 256 x 13 x 13
            nn.Conv2d(256, 384, kernel_size=3, padding=1),  # 384 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),  # 384 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),  # 256 x 13 x 13
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 256 x 6 x 6
        )
        self.classifier = nn.Sequential(  # 9216
            nn.Linear(256 * 6 * 6, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),  # 4096
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),  # num_classes
        )
        self._in_channels = in_channels
        if init:
            self._initialise()

    def _initialise(self) -> None:
        with_ones = {self.features[4], self.features[10], self.features[12], self.classifier[0], self.classifier[3]}
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.constant_(module.bias, 1 if module in with_ones else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x 227 x 227 images."""
        check_images("AlexNet2012", x, self._in_channels, smallest=227, largest=258)
        x = self.features(x)  # 256 x 6 x 6
        logits: Tensor = self.classifier(x.flatten(1))  # num_classes
        return logits


alexnet = AlexNet
alexnet_2012 = AlexNet2012
