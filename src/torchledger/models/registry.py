"""The networks that come with torchledger, by name. Reads without torch: a network is imported when it is built."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from torchledger.errors import UserError, close_matches

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Paper:
    """Name a paper: authors as one cites them, title with its arXiv number or venue, and year."""

    authors: str
    title: str
    year: int


@dataclass(frozen=True)
class Entry:
    """Describe a network: its name, where it is built, what it takes, where it comes from and what it reached.

    `builder` is "module:attribute"; `input_size` is that of one sample, without the batch, for the default arguments.
    `top1` is the accuracy in percent that `top1_source` published. `weights` says whose checkpoints load, and what
    images those expect; `weights_arguments` is what they ask of the builder.
    """

    name: str
    builder: str
    input_size: tuple[int, ...]
    paper: Paper
    top1: float | None = None
    top1_source: str = ""
    weights: str = ""
    weights_arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def of_article(self) -> bool:
        """Whether it is a network as the article writes it down, rather than one that was published."""
        return self.builder.startswith(_ARTICLE)

    def load(self) -> Callable[..., nn.Module]:
        """Import the class or function that builds the network (and torch with it)."""
        module, _, attribute = self.builder.partition(":")
        return cast("Callable[..., nn.Module]", getattr(importlib.import_module(module), attribute))

    def input_size_for(self, arguments: Mapping[str, object]) -> tuple[int, ...]:
        """Return the size of one sample for a network built with `arguments`: `in_channels` replaces the channels."""
        channels = arguments.get("in_channels")
        return (channels, *self.input_size[1:]) if isinstance(channels, int) else self.input_size


@dataclass(frozen=True)
class Figures:
    """Hold what the ledger counts for a network as `build(name)` makes it: parameters, and macs of one sample."""

    params: int
    macs: int


@cache
def figures() -> Mapping[str, Figures]:
    """Return the figures of every network, from figures.json, which `make docs` takes from the ledger."""
    text = resources.files("torchledger.models").joinpath("figures.json").read_text(encoding="utf-8")
    return MappingProxyType({name: Figures(**values) for name, values in json.loads(text).items()})


ONE_WEIRD_TRICK = Paper(
    "Krizhevsky", "One weird trick for parallelizing convolutional neural networks (arXiv:1404.5997)", 2014
)
ALEXNET = Paper(
    "Krizhevsky et al.", "ImageNet classification with deep convolutional neural networks (NIPS 2012)", 2012
)
VGG = Paper(
    "Simonyan, Zisserman",
    "Very deep convolutional networks for large-scale image recognition (arXiv:1409.1556)",
    2015,
)
GOOGLENET = Paper("Szegedy et al.", "Going deeper with convolutions (arXiv:1409.4842)", 2015)
BATCH_NORM = Paper(
    "Ioffe, Szegedy",
    "Batch normalization: accelerating deep network training by reducing internal covariate shift (arXiv:1502.03167)",
    2015,
)
RETHINKING = Paper(
    "Szegedy et al.", "Rethinking the Inception architecture for computer vision (arXiv:1512.00567)", 2016
)
INCEPTION_V4 = Paper(
    "Szegedy et al.",
    "Inception-v4, Inception-ResNet and the impact of residual connections on learning (arXiv:1602.07261)",
    2017,
)
RESNET = Paper("He et al.", "Deep residual learning for image recognition (arXiv:1512.03385)", 2016)

_ARTICLE = "torchledger.models.article:"
_IMAGE = (3, 224, 224)
_NORMALISED = "RGB from 0 to 1, less the mean (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)"
_TORCHVISION = f"torchvision's IMAGENET1K_V1: {_NORMALISED}"
_TORCHVISION_TOP1 = "torchvision, IMAGENET1K_V1, one central crop"
_NOTHING: Mapping[str, object] = MappingProxyType({})
_RESCALED: Mapping[str, object] = MappingProxyType({"transform_input": True})
_CIFAR = "github.com/akamaster/pytorch_resnet_cifar10: images of CIFAR-10, "


def _entry(
    module: str,
    name: str,
    input_size: tuple[int, ...],
    paper: Paper,
    *,
    top1: float | None = None,
    top1_source: str = "",
    weights: str = "",
    weights_arguments: Mapping[str, object] = _NOTHING,
) -> Entry:
    """Describe a network that is built by the attribute `name` of `module`."""
    builder = f"torchledger.models.{module}:{name}"
    return Entry(name, builder, input_size, paper, top1, top1_source, weights, weights_arguments)


def _torchvision(
    module: str,
    name: str,
    paper: Paper,
    top1: float,
    *,
    input_size: tuple[int, ...] = _IMAGE,
    weights_arguments: Mapping[str, object] = _NOTHING,
) -> Entry:
    """Describe a network that torchvision has the weights of."""
    return _entry(
        module,
        name,
        input_size,
        paper,
        top1=top1,
        top1_source=_TORCHVISION_TOP1,
        weights=_TORCHVISION,
        weights_arguments=weights_arguments,
    )


def _cifar(name: str, error: float | None) -> Entry:
    """Describe a network for CIFAR-10, with the error in percent of table 6, where it is in that table."""
    if error is None:
        return _entry("resnet", name, (3, 32, 32), RESNET)
    return _entry(
        "resnet",
        name,
        (3, 32, 32),
        RESNET,
        top1=round(100 - error, 2),
        top1_source="He et al. 2016, table 6, on CIFAR-10",
        weights=_CIFAR + _NORMALISED,
    )


_ENTRIES = (
    _torchvision("alexnet", "alexnet", ONE_WEIRD_TRICK, 56.522),
    _entry(
        "alexnet",
        "alexnet_2012",
        (3, 227, 227),
        ALEXNET,
        top1=59.3,
        top1_source="Krizhevsky et al. 2012, table 2, one network, mean of ten crops",
    ),
    _torchvision("vgg", "vgg11", VGG, 69.020),
    _torchvision("vgg", "vgg11_bn", VGG, 70.370),
    _torchvision("vgg", "vgg13", VGG, 69.928),
    _torchvision("vgg", "vgg13_bn", VGG, 71.586),
    _torchvision("vgg", "vgg16", VGG, 71.592),
    _torchvision("vgg", "vgg16_bn", VGG, 73.360),
    _torchvision("vgg", "vgg19", VGG, 72.376),
    _torchvision("vgg", "vgg19_bn", VGG, 74.218),
    _entry(
        "googlenet",
        "googlenet_v1",
        _IMAGE,
        GOOGLENET,
        top1=68.7,
        top1_source="Caffe, bvlc_googlenet, one central crop (the paper gives none)",
    ),
    _torchvision("googlenet", "googlenet", GOOGLENET, 69.778, weights_arguments=_RESCALED),
    _entry(
        "inception_v2",
        "inception_v2",
        _IMAGE,
        BATCH_NORM,
        top1=74.8,
        top1_source="Ioffe, Szegedy 2015, figure 4, BN-Inception, one crop",
        weights="Cadene's bninception: BGR from 0 to 255, less the mean (104, 117, 128)",
    ),
    _torchvision(
        "inception_v3", "inception_v3", RETHINKING, 77.294, input_size=(3, 299, 299), weights_arguments=_RESCALED
    ),
    _entry(
        "inception_v4",
        "inception_v4",
        (3, 299, 299),
        INCEPTION_V4,
        top1=80.0,
        top1_source="Szegedy et al. 2017, table 2, one crop",
        weights="timm's inception_v4.tf_in1k: RGB from -1 to 1",
    ),
    _torchvision("resnet", "resnet18", RESNET, 69.758),
    _torchvision("resnet", "resnet34", RESNET, 73.314),
    _torchvision("resnet", "resnet50", RESNET, 76.130),
    _torchvision("resnet", "resnet101", RESNET, 77.374),
    _torchvision("resnet", "resnet152", RESNET, 78.312),
    _cifar("resnet20", 8.75),
    _cifar("resnet32", 7.51),
    _cifar("resnet44", 7.17),
    _cifar("resnet56", 6.97),
    _cifar("resnet110", 6.43),
    _cifar("resnet1202", 7.93),
    *(_cifar(f"plain{layers}", None) for layers in (20, 32, 44, 56, 110, 1202)),
    Entry("article_alexnet", _ARTICLE + "AlexNet", _IMAGE, ONE_WEIRD_TRICK),
    Entry("article_vgg16", _ARTICLE + "VGG16", _IMAGE, VGG),
    Entry("article_inception", _ARTICLE + "Inception", _IMAGE, RETHINKING),
    Entry("article_basicblock", _ARTICLE + "BasicBlock", (64, 56, 56), RESNET),
)
REGISTRY: Mapping[str, Entry] = MappingProxyType({item.name: item for item in _ENTRIES})


def names() -> tuple[str, ...]:
    """Return the names of all networks, in the order of the registry."""
    return tuple(REGISTRY)


def entry(name: str) -> Entry:
    """Return the entry of `name`. An unknown name raises `UserError` with close matches and the choices."""
    if not isinstance(name, str) or name not in REGISTRY:
        raise UserError(f"unknown model {name!r}.{close_matches(str(name), REGISTRY)} Choices: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def arguments_for_weights(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return `arguments` with what published weights of `name` ask of its builder, unless they say otherwise."""
    if arguments.get("in_channels", 3) != 3:
        return dict(arguments)  # published weights are for RGB, and so is what they ask for
    return {**entry(name).weights_arguments, **arguments}
