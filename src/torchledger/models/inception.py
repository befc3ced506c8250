"""What the networks of the GoogLeNet and Inception families are built of: convolution blocks and auxiliary outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.errors import UserError


class ConvRelu(nn.Module):
    """Build a convolution with bias, and a ReLU. `options` go to `nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return what a convolution of `x` and the ReLU put out."""
        return F.relu(self.conv(x), inplace=True)


class ConvNormRelu(nn.Module):
    """Build a convolution without bias, BatchNorm with eps 0.001, and a ReLU. `options` go to `nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **options)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return what a convolution of `x`, the BatchNorm and the ReLU put out."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class GoogLeNetOutputs(NamedTuple):
    """Hold the logits of a GoogLeNet in train mode and those of its heads, the deeper first, each N x num_classes."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class InceptionOutputs(NamedTuple):
    """Hold the logits of an Inception-v3 in train mode and those of its head, each N x num_classes."""

    logits: Tensor
    aux_logits: Tensor


def rescaled(x: Tensor) -> Tensor:
    """Turn images normalised by ImageNet's mean and deviation a channel into images from -1 to 1.

    What torchvision's weights ported from TensorFlow were trained on; x is N x 3 x H x W in the order RGB, of
    floating-point numbers.
    """
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return x * (deviation / 0.5) + (mean - 0.5) / 0.5


def check_rescaling(transform_input: bool, in_channels: int) -> None:
    """Raise `UserError` where `rescaled` is asked for and images have no three channels."""
    if transform_input and in_channels != 3:
        raise UserError(f"transform_input=True is for RGB images, in_channels=3, not {in_channels}")
