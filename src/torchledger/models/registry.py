"""The names of the networks that come with torchledger. Reads without torch: a network is imported when it is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from torchledger.errors import UserError, close_matches

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """Describe a network: its name, where its class is, what it takes and where it comes from.

    `builder` is "module:attribute"; `input_size` is that of one sample, without the batch, for the default arguments.
    """

    name: str
    builder: str
    input_size: tuple[int, ...]
    paper: str
    year: int

    def load(self) -> Callable[..., nn.Module]:
        """Import the class or function that builds the network (and torch with it)."""
        module, _, attribute = self.builder.partition(":")
        return cast("Callable[..., nn.Module]", getattr(importlib.import_module(module), attribute))

    def input_size_for(self, arguments: Mapping[str, object]) -> tuple[int, ...]:
        """Return the size of one sample for a network built with `arguments`: `in_channels` replaces the channels."""
        channels = arguments.get("in_channels")
        return (channels, *self.input_size[1:]) if isinstance(channels, int) else self.input_size


_ARTICLE = "torchledger.models.article"
_ENTRIES = (
    Entry(
        name="article_alexnet",
        builder=f"{_ARTICLE}:AlexNet",
        input_size=(3, 224, 224),
        paper="One weird trick for parallelizing convolutional neural networks (arXiv:1404.5997)",
        year=2014,
    ),
    Entry(
        name="article_vgg16",
        builder=f"{_ARTICLE}:VGG16",
        input_size=(3, 224, 224),
        paper="Very deep convolutional networks for large-scale image recognition (arXiv:1409.1556)",
        year=2014,
    ),
    Entry(
        name="article_inception",
        builder=f"{_ARTICLE}:Inception",
        input_size=(3, 224, 224),
        paper="Rethinking the Inception architecture for computer vision (arXiv:1512.00567)",
        year=2015,
    ),
    Entry(
        name="article_basicblock",
        builder=f"{_ARTICLE}:BasicBlock",
        input_size=(64, 56, 56),
        paper="Deep residual learning for image recognition (arXiv:1512.03385)",
        year=2015,
    ),
)
REGISTRY: Mapping[str, Entry] = MappingProxyType({item.name: item for item in _ENTRIES})


def names() -> tuple[str, ...]:
    """Return the names of all networks, in the order of the registry."""
    return tuple(REGISTRY)


def entry(name: str) -> Entry:
    """Return the entry of `name`. An unknown name raises `UserError` with close matches and the choices."""
    if name not in REGISTRY:
        raise UserError(f"unknown model {name!r}.{close_matches(name, REGISTRY)} Choices: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def build(name: str, **arguments: object) -> nn.Module:
    """Build the network `name` with the arguments of its class, such as `num_classes=10`."""
    return entry(name).load()(**arguments)
