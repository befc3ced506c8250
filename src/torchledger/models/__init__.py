"""The networks that come with torchledger, one file a family: `build(name)` makes one, `names()` lists them."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from torchledger.errors import check_accepted
from torchledger.models import registry
from torchledger.models.registry import names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "names"]


def build(name: str, weights: str | PathLike[str] | None = None, **arguments: object) -> nn.Module:
    """Build the network `name` with the arguments of its builder, such as `num_classes=10`.

    Args:
        name: one of `names()`.
        weights: a checkpoint, `.safetensors` or what `torch.save` wrote, that is loaded strictly: every key and shape
            must fit. Nothing in it is run. `transform_input=True` is set where published weights are trained with it
            (googlenet, inception_v3); give it as False for weights of your own that are not.
        arguments: of the network's class; all but those of the article take num_classes, in_channels,
            dropout and init.

    Raises:
        UserError: for an unknown name or argument, with close matches; a value that is wrong; weights that do not fit.
    """
    builder = registry.entry(name).load()
    check_accepted(name, builder, arguments)
    if weights is None:
        return builder(**arguments)
    import torch

    from torchledger.models.weights import load_weights

    # Made on meta, so that nothing is initialised in vain; the tensors of the file take the places.
    device = torch.get_default_device()
    with torch.device("meta"):
        model = builder(**registry.arguments_for_weights(name, arguments))
    load_weights(model, weights, device)
    return model
