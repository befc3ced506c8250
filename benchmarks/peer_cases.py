"""The models that counters are compared on: the catalog's modules, torchvision's networks, a model to be left alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]
# One network of each family in torchvision.
FAMILIES = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet1_0 "
    "mobilenet_v2 mobilenet_v3_large regnet_y_400mf resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_0 swin_t "
    "swin_v2_t vgg11 vit_b_16"
).split()


@dataclass(frozen=True)
class Case:
    """A model, its inputs and the macs of its forward: by which shares a count may be `under` and `over` them."""

    group: str
    name: str
    build: Callable[[], Built]
    macs: float | None
    under: float
    over: float


def catalog_cases(path: Path) -> list[Case]:
    """Each module of the tests' catalog, with its hand-derived macs.

    In modules of this size a convention that adds biases and norms adds up to a quarter; none may leave any out. One
    module's work hangs on its own activations, where the catalog has torchledger's upper bound: here it is what runs.
    """
    if not path.exists():
        return []
    sys.path.insert(0, str(path.parents[1]))
    listed = importlib.import_module("catalog.modules").CASES
    return [
        Case("catalog", entry.name, lambda entry=entry: built(entry), RUN.get(entry.name, entry.forward), 0.0, 0.25)
        for entry in listed
    ]


# Linear(8, 8) over 10 rows, then Linear(8, 6) over the three whose first result is above 0 (`three_kept`).
RUN = {"mask of activations": 10 * 8 * 8 + 3 * 8 * 6}


def built(entry: Any) -> Built:
    model, inputs = entry.build().eval(), entry.inputs()
    return (model, three_kept(model) if entry.name in RUN else inputs, entry.keywords())


def three_kept(model: nn.Module) -> tuple[Any, ...]:
    """Let the first layer's first result be its first input, and return 10 rows of which three are above 0 there."""
    with torch.no_grad():
        model.first.weight[0] = torch.eye(8)[0]
        model.first.bias[0] = 0
    x = torch.randn(2, 5, 8)
    x[..., 0] = torch.tensor([[1, -1, -1, 1, -1], [-1, -1, 1, -1, -1]])
    return (x,)


def torchvision_cases(names: Iterable[str] | None) -> list[Case]:
    """Networks of torchvision (None: all that classify), against `_ops` of the default weights."""
    from torchvision import models

    return [network(name) for name in (names or models.list_models(module=models))]


def network(name: str) -> Case:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    side = weights.transforms.keywords["crop_size"]
    vit = {"image_size": side} if name.startswith("vit_") else {}  # as the builder does with weights

    def build() -> Built:
        return models.get_model(name, weights=None, **vit).eval(), (torch.rand(1, 3, side, side),), {}

    return Case("torchvision", name, build, weights.meta["_ops"] * 1e9, 0.01, 0.01)


def import_torchvision() -> None:
    """Import it also where its compiled part does not fit this torch: that needs the schemas of two operations."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None, "torchvision is not installed"
    try:
        for path in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(path)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)
    importlib.import_module("torchvision")


KEPT: list[torch.library.Library] = []  # schemas go with their library


class Used(nn.Module):
    """A model in use: some parts frozen, a norm that learns, a buffer of no checkpoint, a hook, gradients."""

    def __init__(self, raises: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.frozen_norm = nn.BatchNorm2d(8)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout()
        self.head = nn.Linear(8, 10)
        self.register_buffer("scale", torch.ones(8), persistent=False)
        self.raises = raises
        for parameter in self.conv.parameters():
            parameter.requires_grad_(False)
        for parameter in self.head.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.relu.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.frozen_norm(self.conv(x)))) * self.scale[:, None, None]
        if self.raises:
            raise RuntimeError("told to")
        return self.head(self.dropout(x.mean((2, 3))))


def used(mode: str) -> Built:
    """Build a model in use, whose convolution and first norm are frozen in eval mode when it trains."""
    model = Used(raises=mode == "raises")
    model.train(mode != "eval")
    model.conv.eval()
    model.frozen_norm.eval()
    return model, (torch.rand(1, 3, 32, 32),), {}


def untouched_cases() -> list[Case]:
    """A model in use: in eval mode, while it trains, and one whose forward raises."""
    # 30 x 30 outputs of 8 channels, 3 x 3 x 3 each; 8 features by 10
    macs = 30 * 30 * 8 * 27 + 8 * 10
    return [
        Case("untouched", mode, lambda mode=mode: used(mode), None if mode == "raises" else macs, 0.0, 0.25)
        for mode in ("eval", "train", "raises")
    ]
