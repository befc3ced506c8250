"""The networks whose memory is measured: each with what builds it, a batch of inputs for it, and its loss.

They are sized for one core: a step takes seconds and holds some 20 MB to 1 GB at its peak (networks with wide linear
layers more under AdamW). Those that `torchledger.models` has are built without initialisation of their own, which takes
longer than a step. The small ones that are written out here stand for what those libraries lack, and are written as
such models usually are.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Inputs = tuple[Tensor, ...]
Loss = str | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Network:
    """A network: `build()` makes it, `inputs(batch)` what it takes, `batch` is its size on a CPU.

    `loss` is a name of `LOSSES`, for an output of which it takes all, or a function of the output. `on_cpu` are the
    dtypes that a CPU has kernels for.
    """

    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    batch: int
    loss: Loss = "cross_entropy"
    on_cpu: tuple[str, ...] = ("float32", "bfloat16", "autocast")


def classes_of(output: Tensor) -> Tensor:
    """Return a class for each row of logits, which lie along dimension 1."""
    shape = (output.shape[0], *output.shape[2:])
    return torch.randint(output.shape[1], shape, device=output.device)


# A loss by torchledger's name: what it compares an output with, and how.
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": (classes_of, F.cross_entropy),
    "mse": (lambda output: torch.randn_like(output), F.mse_loss),
}


def _images(side: int, channels: int = 3) -> Callable[[int], Inputs]:
    return lambda batch: (torch.randn(batch, channels, side, side),)


def _vectors(*size: int) -> Callable[[int], Inputs]:
    return lambda batch: (torch.randn(batch, *size),)


def _words(length: int, vocabulary: int) -> Callable[[int], Inputs]:
    return lambda batch: (torch.randint(vocabulary, (batch, length)),)


def _loss_with_heads(output: Any) -> Tensor:
    """Return the loss of the logits and of each auxiliary head, weighed with 0.3 (Szegedy et al. 2015, section 5)."""
    logits, *heads = [part for part in output if part is not None]
    target = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
    total = F.cross_entropy(logits, target)
    for head in heads:
        total = total + 0.3 * F.cross_entropy(head, target)
    return total


# ---- those of other libraries


def _ours(name: str, **arguments: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchledger import models

        return models.build(name, num_classes=100, init=False, **arguments)

    return build


def _torchvision_models() -> ModuleType:
    """Import torchvision; where its compiled part does not fit torch, the tests have what stands in for it."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    with contextlib.suppress(ImportError):  # what the tests need is not everywhere that this runs
        import conftest  # noqa: F401
    import torchvision.models

    return torchvision.models


def _torchvision(name: str, **arguments: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        # Weights of a backbone would be downloaded.
        no_weights = {"weights": None} | ({"weights_backbone": None} if "weights_backbone" in arguments else {})
        return _torchvision_models().get_model(name, **{"num_classes": 100} | arguments | no_weights)

    return build


def _small_vit() -> nn.Module:
    return _torchvision_models().VisionTransformer(
        112, 16, num_layers=8, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=100
    )


class OneOf(nn.Module):
    """A network that returns a dict, of which one item is wanted."""

    def __init__(self, inner: nn.Module, item: str) -> None:
        super().__init__()
        self.inner, self.item = inner, item

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)[self.item]
        return output


# ---- convolutions


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """A U-Net of four levels (Ronneberger et al. 2015) with BatchNorm and padding."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 192), num_classes: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in itertools.pairwise((3, *widths)))
        upward = list(itertools.pairwise(widths[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in upward)
        self.merge = nn.ModuleList(_two_convolutions(2 * b, b) for _, b in upward)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for level in self.down[:-1]:
            x = level(x)
            passed.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([passed.pop(), up(x)], 1))
        output: Tensor = self.head(x)
        return output


def _autoencoder() -> nn.Module:
    widths = (3, 32, 64, 128)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for a, b in itertools.pairwise(widths[::-1]):
        layers += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def _in_place() -> nn.Module:
    """Each activation writes over its input."""
    layers: list[nn.Module] = []
    activations = (nn.ReLU(True), nn.SiLU(True), nn.LeakyReLU(0.1, True), nn.Hardswish(True), nn.ELU(inplace=True))
    width = 3
    for activation in activations:
        layers += [nn.Conv2d(width, 48, 3, padding=1), nn.BatchNorm2d(48), activation]
        width = 48
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1, True), nn.Linear(width, 100))


class Video(nn.Module):
    """Convolutions over time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 24, 3, padding=1), nn.BatchNorm3d(24), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(24, 48, 3, padding=1), nn.BatchNorm3d(48), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(48, 96, 3, padding=1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
        )  # fmt: skip
        self.head = nn.Linear(96, 100)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x).flatten(1))
        return output


class Speech(nn.Module):
    """Dilated convolutions with gates and sums over time, as WaveNet has them (van den Oord et al. 2016)."""

    def __init__(self, width: int = 64, layers: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, dilation=2**i, padding=2**i) for i in range(layers))
        self.sums = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.head = nn.Conv1d(width, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skipped: Tensor | int = 0
        for gate, sums in zip(self.gates, self.sums, strict=True):
            a, b = gate(x).chunk(2, 1)
            residual, skip = sums(torch.tanh(a) * torch.sigmoid(b)).chunk(2, 1)
            x = x + residual
            skipped = skipped + skip
        output: Tensor = self.head(F.relu(skipped))
        return output


# ---- diffusion


class TimeBlock(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, in_channels), nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        output: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return output


class PixelAttention(nn.Module):
    """Attention among the pixels of a feature map."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = x + self.out(attended.transpose(-1, -2).reshape(n, c, h, w))
        return output


class Diffusion(nn.Module):
    """The noise of noisy images at a time (Ho et al. 2020): one level down, attention, one level up."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        time = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.before, self.inner = TimeBlock(width, width, time), TimeBlock(width, 2 * width, time)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.attention = PixelAttention(2 * width)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.after = TimeBlock(2 * width, width, time)
        self.head = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        angles = time[:, None].float() * rates
        embedded = self.time(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        h = self.before(self.stem(x), embedded)
        inner = self.attention(self.inner(self.down(h), embedded))
        up = self.up(F.interpolate(inner, scale_factor=2.0, mode="nearest"))
        output: Tensor = self.head(self.after(torch.cat([h, up], 1), embedded))
        return output


def _noisy(batch: int) -> Inputs:
    return torch.randn(batch, 3, 32, 32), torch.randint(1000, (batch,))


# ---- sequences


class Recurrent(nn.Module):
    """A language model: embedding, recurrent layers, and a word for each position."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], vocabulary: int = 5000, width: int = 384) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.layers = kind(width, width, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.layers(self.words(words))
        output: Tensor = self.head(hidden).flatten(0, 1)
        return output


class Attention(nn.Module):
    """Causal attention, as nanoGPT writes it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (p.view(n, t, self.heads, c // self.heads).transpose(1, 2) for p in self.qkv(x).split(c, 2))
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        output: Tensor = self.drop(self.out(y.transpose(1, 2).reshape(n, t, c)))
        return output


class Block(nn.Module):
    """One layer of a transformer, norms first."""

    def __init__(self, width: int, heads: int, dropout: float, feed_forward: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = feed_forward or nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        output: Tensor = x + self.feed_forward(self.norm2(x))
        return output


class Mixture(nn.Module):
    """Feed-forward nets of which each token takes the two that a router picks, as Mixtral has them."""

    def __init__(self, width: int, experts: int = 8, chosen: int = 2) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, picked = self.router(tokens).softmax(-1).topk(self.chosen, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, place = torch.where(picked == index)
            output.index_add_(0, rows, expert(tokens[rows]) * weights[rows, place, None])
        return output.view_as(x)


class Gpt(nn.Module):
    """A small GPT whose last layer is its table of words.

    `mixture` puts experts in place of each feed-forward net, `recomputed` checkpoints each layer.
    """

    def __init__(
        self,
        vocabulary: int = 4000,
        width: int = 256,
        layers: int = 4,
        length: int = 128,
        dropout: float = 0.0,
        mixture: bool = False,
        recomputed: bool = False,
    ) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Block(width, 4, dropout, Mixture(width) if mixture else None) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.drop(self.words(words) + self.places(places))
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recomputed and self.training else layer(x)
        output: Tensor = self.head(self.norm(x)).flatten(0, 1)
        return output


class Encoder(nn.Module):
    """torch's own transformer encoder, one class for each text."""

    def __init__(self, vocabulary: int = 4000, width: int = 256, norm_first: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 100)

    def forward(self, words: Tensor) -> Tensor:
        output: Tensor = self.head(self.layers(self.words(words)).mean(1))
        return output


class Translator(nn.Module):
    """torch's own transformer, encoder and decoder, without dropout."""

    def __init__(self, vocabulary: int = 3000, width: int = 256) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.layers = nn.Transformer(width, 4, 2, 2, 4 * width, 0.0, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=target.device, dtype=self.head.weight.dtype
        )
        decoded = self.layers(self.words(source), self.words(target), tgt_mask=mask, tgt_is_causal=True)
        output: Tensor = self.head(decoded).flatten(0, 1)
        return output


def _pairs(batch: int) -> Inputs:
    return torch.randint(3000, (batch, 96)), torch.randint(3000, (batch, 64))


# ---- others


def _mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(1024, 1024), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(1024, 100))


class Repeated(nn.Module):
    """One layer that runs several times over, its parameters shared."""

    def __init__(self, width: int = 256, times: int = 8) -> None:
        super().__init__()
        self.times = times
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 100)
        self.layer = Block(width, 4, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.times):
            x = self.layer(x)
        output: Tensor = self.head(x.mean(1))
        return output


class Recommender(nn.Module):
    """Tables of users, items and bags of tags, whose rows go through a small net (He et al. 2017)."""

    def __init__(self, rows: int = 60_000, width: int = 64) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(rows, width), nn.Embedding(rows, width)
        self.tags = nn.EmbeddingBag(rows // 4, width, mode="mean")
        self.net = nn.Sequential(nn.Linear(3 * width, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, users: Tensor, items: Tensor, tags: Tensor) -> Tensor:
        output: Tensor = self.net(torch.cat([self.users(users), self.items(items), self.tags(tags)], 1))
        return output


def _choices(batch: int) -> Inputs:
    return torch.randint(60_000, (batch,)), torch.randint(60_000, (batch,)), torch.randint(15_000, (batch, 8))


class Mixer(nn.Module):
    """Linear layers over patches and over channels by turns (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 256, patches: int = 196, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 16, stride=16)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))

        def net(size: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

        self.across, self.along = (nn.ModuleList(net(size) for _ in range(layers)) for size in (patches, width))
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i, (across, along) in enumerate(zip(self.across, self.along, strict=True)):
            x = x + across(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + along(self.norms[2 * i + 1](x))
        output: Tensor = self.head(x.mean(1))
        return output


class RecomputedCnn(nn.Module):
    """A residual network whose stages are checkpointed, by the older of torch's two ways."""

    def __init__(self, width: int = 64, stages: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(_two_convolutions(width, width) for _ in range(stages))
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = x + (checkpoint(stage, x, use_reentrant=True) if self.training else stage(x))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


def _swin() -> nn.Module:
    return _torchvision_models().SwinTransformer([4, 4], 48, [2, 2, 4], [3, 6, 12], [7, 7], num_classes=100)


_HEADS: Loss = _loss_with_heads
_mixture = functools.partial(Gpt, layers=3, mixture=True)
_NO_AUTOCAST = ("float32", "bfloat16")  # index_add_ takes no other dtype, as in many a mixture of experts
_LRN = ("float32",)  # LocalResponseNorm takes avg_pool3d, which a CPU lacks in bfloat16
NETWORKS: dict[str, Network] = {
    "alexnet": Network("AlexNet", _ours("alexnet"), _images(224), 16),
    "alexnet_2012": Network("AlexNet", _ours("alexnet_2012"), _images(227), 8, on_cpu=_LRN),
    "vgg11_bn": Network("VGG", _ours("vgg11_bn"), _images(96), 8),
    "googlenet_v1": Network("Inception", _ours("googlenet_v1"), _images(224), 4, _HEADS, _LRN),
    "googlenet": Network("Inception", _ours("googlenet"), _images(112), 8, _HEADS),
    "googlenet_no_heads": Network("Inception", _ours("googlenet", aux_logits=False), _images(112), 8),
    "inception_v2": Network("Inception", _ours("inception_v2"), _images(112), 8),
    "inception_v3": Network("Inception", _ours("inception_v3", aux_logits=False), _images(139), 4),
    "inception_v4": Network("Inception", _ours("inception_v4"), _images(107), 4),
    "resnet18": Network("ResNet", _ours("resnet18"), _images(112), 8),
    "resnet50": Network("ResNet", _ours("resnet50"), _images(112), 8),
    "resnet56": Network("ResNet", _ours("resnet56"), _images(32), 32),
    "plain20": Network("ResNet", _ours("plain20"), _images(32), 64),
    "mobilenet_v2": Network("mobile", _torchvision("mobilenet_v2"), _images(112), 8),
    "mobilenet_v3_small": Network("mobile", _torchvision("mobilenet_v3_small"), _images(112), 16),
    "efficientnet_b0": Network("mobile", _torchvision("efficientnet_b0"), _images(112), 8),
    "shufflenet": Network("mobile", _torchvision("shufflenet_v2_x1_0"), _images(112), 16),
    "densenet121": Network("DenseNet", _torchvision("densenet121"), _images(96), 4),
    "convnext_tiny": Network("ConvNeXt", _torchvision("convnext_tiny"), _images(96), 4),
    "regnet": Network("RegNet", _torchvision("regnet_y_400mf"), _images(112), 8),
    "vit": Network("ViT", _small_vit, _images(112), 16),
    "swin": Network("Swin", _swin, _images(112), 8),
    "deeplabv3": Network(
        "segmentation",
        lambda: OneOf(_torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None, num_classes=8)(), "out"),
        _images(96),
        8,
    ),
    "unet": Network("segmentation", UNet, _images(96), 4),
    "autoencoder": Network("autoencoder", _autoencoder, _images(64), 32, "mse"),
    "in_place": Network("in-place operations", _in_place, _images(64), 16),
    "video": Network("three dimensions", Video, lambda batch: (torch.randn(batch, 3, 8, 40, 40),), 16),
    "speech": Network("one dimension", Speech, _vectors(1, 2000), 4),
    "diffusion": Network("diffusion", Diffusion, _noisy, 8, "mse"),
    "lstm": Network("recurrent", functools.partial(Recurrent, nn.LSTM), _words(48, 5000), 16),
    "gru": Network("recurrent", functools.partial(Recurrent, nn.GRU), _words(48, 5000), 16),
    "gpt": Network("GPT", Gpt, _words(128, 4000), 8),
    "gpt_dropout": Network("GPT", functools.partial(Gpt, dropout=0.1), _words(128, 4000), 8),
    "gpt_checkpoint": Network("GPT", functools.partial(Gpt, recomputed=True), _words(128, 4000), 8),
    "mixture": Network("mixture of experts", _mixture, _words(128, 4000), 8, on_cpu=_NO_AUTOCAST),
    "encoder": Network("transformer", Encoder, _words(128, 4000), 16),
    "translator": Network("transformer", Translator, _pairs, 16),
    "mlp": Network("MLP", _mlp, _vectors(1024), 512),
    "mixer": Network("MLP", Mixer, _images(224), 8),
    "repeated": Network("shared parameters", Repeated, _vectors(96, 64), 8),
    "recommender": Network("embeddings", Recommender, _choices, 4096),
    "cnn_checkpoint": Network("ResNet", RecomputedCnn, _images(48), 8),
}  # fmt: skip
