"""What the networks ask of their arguments and inputs, said in one line before anything runs."""

from __future__ import annotations

from torch import Tensor

from torchledger.errors import UserError

LARGEST = 2**31 - 1  # beyond it sizes overflow in torch, with an error that names none of them


def check_arguments(num_classes: int, in_channels: int, dropout: float, **flags: bool) -> None:
    """Raise `UserError` for a wrong value of what every network takes, or of its own flags."""
    check_whole(num_classes=num_classes, in_channels=in_channels)
    check_rate(dropout=dropout)
    check_flag(**flags)


def check_whole(**values: int) -> None:
    """Raise `UserError` for an argument that is no whole number from 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}, expected a whole number from 1")
        if value > LARGEST:
            raise UserError(f"{name} is too large: expected a whole number up to {LARGEST:,}")


def check_flag(**values: bool) -> None:
    """Raise `UserError` for an argument that is neither True nor False: "no" would count as true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}, expected True or False")


def check_rate(**values: float) -> None:
    """Raise `UserError` for a dropout rate that is no number from 0 to 1."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise UserError(f"{name} is {value!r}, expected a rate from 0 to 1")


def check_images(
    network: str, x: object, channels: int, smallest: int, largest: int | None = None, alone: int = 0, why: str = ""
) -> None:
    """Raise `UserError` where `x` is no batch of images that a network can run on.

    Args:
        network: its name, as the error shall give it.
        x: what forward was given; a tensor is asked for, and floating-point numbers.
        channels: of an image.
        smallest, largest: pixels of the shorter and of the longer side.
        alone: a batch of one image must have a side of at least that many pixels. BatchNorm in train mode takes mean
            and variance over the batch and the map, and refuses where both together are a single value.
        why: what sets these limits, where it is not plain that every layer must keep a pixel.
    """
    if not isinstance(x, Tensor):
        raise UserError(f"{network} takes a tensor, N x {channels} x height x width, got {type(x).__name__}")
    given = " x ".join(map(str, x.shape))
    if x.dim() != 4:
        fix = ": one image needs a batch around it, x.unsqueeze(0)" if x.dim() == 3 else ""
        raise UserError(f"{network} takes images as N x {channels} x height x width, got {given or 'a scalar'}{fix}")
    if x.shape[1] != channels:
        raise UserError(
            f"{network} takes images of {channels} channels, N x {channels} x height x width, got {given}"
            f" (in_channels={x.shape[1]} would take these)"
        )
    if not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(
            f"{network} takes images of floating-point numbers, got {dtype}: convert them with x.float(), to the range"
            f" that the weights expect"
        )
    sides = x.shape[2:]
    reason = f" ({why})" if why else ""
    if largest is not None and (min(sides) < smallest or max(sides) > largest):
        limits = f"{smallest} x {smallest}" if smallest == largest else f"{smallest} to {largest} pixels a side"
        raise UserError(f"{network} takes images of {limits}, got {given}{reason}")
    if min(sides) < smallest:
        raise UserError(f"{network} takes images of at least {smallest} x {smallest}, got {given}{reason}")
    if x.shape[0] == 1 and max(sides) < alone:
        raise UserError(
            f"{network} in train mode takes a batch of at least 2 images of this size, got {given}: BatchNorm would see"
            f" a single value a channel"
        )
