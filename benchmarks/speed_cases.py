"""The models that `peers.py --speed` times: all classifiers of torchvision, ten of timm and ten of transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peer_cases
import torch
from torch import nn
from torch.utils import _pytree

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
# One a family, at its default size.
TIMM = (
    "coatnet_0_rw_224 convnextv2_tiny efficientnetv2_rw_s eva02_small_patch14_224 hrnet_w18 mixer_b16_224 "
    "mobilenetv4_conv_medium resnet50d swinv2_tiny_window8_256 vit_base_patch16_224"
).split()
# Types of transformers with their default configs, which are those of the first published models; two types whose
# defaults are far larger have the configs of their smallest ones, SmolLM-135M and Qwen3-0.6B.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ("bert", "clip", "distilbert", "gpt2")},
    "llama": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "qwen3": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    **{kind: {} for kind in ("t5", "vit", "wav2vec2", "whisper")},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model: `make` builds it where torch builds things by default, `given` says what `analyze` is given for it."""

    group: str
    name: str
    make: Callable[[], nn.Module]
    given: Callable[[nn.Module], Inputs]

    def model(self, device: str) -> nn.Module:
        """Build it, in eval mode; what does not build on meta is built for real and moved."""
        torch.manual_seed(0)
        try:
            with torch.device(device):
                return self.make().eval()
        except Exception:
            if device != "meta":
                raise
            return self.make().eval().to("meta")


def tensors(given: Inputs, device: str) -> Inputs:
    """Return inputs of a batch of 1 on a device, as a model takes them: drawn from sizes and for what is on meta."""

    def made(value: Any) -> Any:
        if isinstance(value, tuple):
            return torch.rand(1, *value, device=device)
        if isinstance(value, torch.Tensor) and value.is_meta and device != "meta":
            return torch.rand(value.shape, dtype=value.dtype, device=device)
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return _pytree.tree_map(made, given, is_leaf=lambda value: isinstance(value, tuple) and _is_size(value))


def _is_size(value: tuple[Any, ...]) -> bool:
    return bool(value) and all(type(number) is int for number in value)


import_torchvision = functools.cache(peer_cases.import_torchvision)  # it can be done once


def of_torchvision() -> list[Case]:
    """Return every classifier, at the size that its default weights were evaluated at."""
    import_torchvision()
    from torchvision import models

    return [_of_torchvision(name) for name in models.list_models(module=models)]


def _of_torchvision(name: str) -> Case:
    from torchvision import models

    side = models.get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]
    options = {"image_size": side} if name.startswith("vit_") else {}  # as the builder does with weights
    make = functools.partial(models.get_model, name, weights=None, **options)
    return Case("torchvision", name, make, lambda _: (((3, side, side),), {}))


def of_timm() -> list[Case]:
    """Return ten models at their default sizes."""
    import_torchvision()
    import timm

    sizes = {name: tuple(timm.models.get_pretrained_cfg(name).input_size) for name in TIMM}
    return [
        Case("timm", name, functools.partial(timm.create_model, name), lambda _, size=size: ((size,), {}))
        for name, size in sizes.items()
    ]


def of_transformers() -> list[Case]:
    """Return ten models, with the inputs that the source `hf:` makes: ids are real tensors, the rest lies on meta."""
    return [Case("hf", kind, functools.partial(_transformer, kind), _example) for kind in TRANSFORMERS]


def _transformer(kind: str) -> nn.Module:
    from torchledger.sources.transformers_models import architecture, make_config

    config = make_config({"model_type": kind}, TRANSFORMERS[kind], kind)
    return architecture(config, kind)._from_config(config)


def _example(model: nn.Module) -> Inputs:
    from torchledger.sources import transformers_inputs

    return (), transformers_inputs.example(model, 1, torch.float32)


GROUPS = {"torchvision": of_torchvision, "timm": of_timm, "hf": of_transformers}
