"""VGG with 11, 13, 16 and 19 layers, each also with BatchNorm.

Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015 (arXiv:1409.1556),
table 1, columns A, B, D and E. Column A-LRN, and C with its 1 x 1 convolutions, are not here. As torchvision has them:
same keys, same outputs.

Deviations (torchvision's): an adaptive pooling before the classifier lets other sizes in; it is the identity at
224 x 224. The `_bn` networks, a BatchNorm after each convolution, are newer than the paper.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from torchledger.errors import UserError
from torchledger.models.checks import check_arguments, check_images

torch.fx.wrap("check_images")  # a trace keeps the check instead of looking into it

# Convolutions of 3 x 3 in each of the five stages (paper, table 1), and their channels. A 2 x 2 pooling ends a stage.
STAGES = {
    11: (1, 1, 2, 2, 2),  # A
    13: (2, 2, 2, 2, 2),  # B
    16: (2, 2, 3, 3, 3),  # D
    19: (2, 2, 4, 4, 4),  # E
}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Build VGG with `layers` (11, 13, 16 or 19) layers that have weights, `batch_norm` after each convolution or not.

    Takes N x `in_channels` x H x W with H and W from 32 (made for 224) and returns N x `num_classes` logits. `dropout`
    is the rate at the outputs of the first two linear layers. With `init`, convolutions are drawn after He et al. 2015
    (arXiv:1502.01852) by fan-out and linear layers from a Gaussian of standard deviation 0.01, biases are 0 (as
    torchvision; the paper, section 3.1, draws all from a Gaussian of variance 0.01, and copies the first four
    convolutions and the linear layers of its deeper nets from column A); without, PyTorch's defaults stay.
    """

    def __init__(
        self,
        layers: int,
        batch_norm: bool,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        dropout: float = 0.5,
        init: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout, batch_norm=batch_norm, init=init)
        if layers not in STAGES:
            raise UserError(f"layers is {layers!r}; VGG has {', '.join(map(str, STAGES))}")
        modules: list[nn.Module] = []
        before = in_channels
        for convolutions, channels in zip(STAGES[layers], CHANNELS, strict=True):
            for _ in range(convolutions):
                modules.append(nn.Conv2d(before, channels, kernel_size=3, padding=1))
                if batch_norm:
                    modules.append(nn.BatchNorm2d(channels))
                modules.append(nn.ReLU(inplace=True))
                before = channels
            modules.append(nn.MaxPool2d(kernel_size=2, stride=2))
        # 3 x 224 x 224 -> 64 x 112 x 112 -> 128 x 56 x 56 -> 256 x 28 x 28 -> 512 x 14 x 14 -> 512 x 7 x 7
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d(7)  # 512 x 7 x 7, at 224 what it was given
        self.classifier = nn.Sequential(  # 25088
            nn.Linear(512 * 7 * 7, 4096),  # 4096
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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return N x num_classes logits of N x in_channels x H x W images."""
        check_images("VGG", x, self._in_channels, smallest=32)
        x = self.features(x)  # 512 x 7 x 7
        x = self.avgpool(x)  # 512 x 7 x 7
        logits: Tensor = self.classifier(x.flatten(1))  # num_classes
        return logits


vgg11, vgg11_bn = partial(VGG, 11, False), partial(VGG, 11, True)
vgg13, vgg13_bn = partial(VGG, 13, False), partial(VGG, 13, True)
vgg16, vgg16_bn = partial(VGG, 16, False), partial(VGG, 16, True)
vgg19, vgg19_bn = partial(VGG, 19, False), partial(VGG, 19, True)
