"""What the command line names -> a model, or the path of a saved ledger.

    resnet50                        a network of the registry
    path/to/file.py:Net             a class, a factory function or an nn.Module of a file
    package.module:callable         the same of an importable module
    torchvision:resnet50            a model of torchvision, without weights
    timm:vit_base_patch16_224       one of timm
    hf:llama, hf:DIR, hf:x.json     one of transformers: a type's default config, or a config file
    net.pt2                         a program that torch.export saved
    net.json, net.json.gz           a saved ledger

A file or module that is named here is *run*, as Python runs what it imports: name only what you would run. A ledger, a
config and an exported program are data. `resolve` decides what a text names and runs nothing (no torch either); `build`
makes the model. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torchledger.errors import UserError
from torchledger.models import registry
from torchledger.sources import code
from torchledger.sources.built import Built, Example, MakeExample, of_size
from torchledger.sources.code import importable
from torchledger.sources.construct import construct
from torchledger.sources.naming import FORMS, NETWORKS, Source, parse_arguments, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FORMS", "NETWORKS", "Built", "Example", "Source", "build", "expected_images", "importable", "networks",
    "parse_arguments", "published_top1", "resolve",
]  # fmt: skip


def build(
    source: Source,
    arguments: Mapping[str, object] | None = None,
    device: Literal["meta"] | None = None,
    weights: str | None = None,
) -> Built:
    """Build the model that `source` names with `arguments`, running the code that it names as Python does.

    With `device="meta"` no weight is allocated; where a constructor fails on meta it runs again for real, and
    `Built.on_meta` says which happened. A ready nn.Module is returned as it is. What the code prints goes to stderr.
    For hf the arguments stand in place of the config's fields, with dots for a part of it.
    `weights` is a checkpoint that must fit the model: it is loaded, or on meta compared with it.
    Raises `UserError` for everything that is wrong with the source, the arguments or the constructor.
    """
    if source.kind == "ledger":
        raise UserError(f"{source.name!r} is a saved ledger, not a model: load it with Ledger.load")
    given = dict(arguments or {})
    if dotted := [name for name in given if "." in name and source.kind != "hf"]:
        raise UserError(f"argument {dotted[0]!r} has a dot: only a config's fields, of hf:, have parts")
    with contextlib.redirect_stdout(sys.stderr), importable(source):
        if source.kind == "zoo" and weights is not None:
            given = registry.arguments_for_weights(source.name, given)
        model, on_meta, example = _built(source, given, device)
        if weights is not None:
            from torchledger.models.weights import load_weights

            load_weights(model, weights, "meta" if on_meta else None)
    return Built(model, on_meta, example)


def _built(
    source: Source, given: dict[str, object], device: Literal["meta"] | None
) -> tuple[nn.Module, bool, MakeExample | None]:
    """Return the model, whether it is on meta, and what makes its inputs."""
    name = source.attribute or source.name
    if source.kind == "zoo":
        entry = registry.entry(source.name)
        return *construct(source, entry.load(), given, device), of_size(entry.input_size_for(given))
    if source.kind in ("torchvision", "timm"):
        from torchledger.sources import libraries

        with libraries.without_network(source.name):
            if source.kind == "torchvision":
                model, on_meta = construct(source, libraries.torchvision_builder(name, given), given, device)
                return model, on_meta, libraries.torchvision_example(name, model)
            model, on_meta = construct(source, libraries.timm_builder(name, given), given, device)
            return model, on_meta, libraries.timm_example(model, given)
    if source.kind == "hf":
        from torchledger.sources import transformers_models

        return transformers_models.build(source, given, device)
    if source.kind == "exported":
        from torchledger.sources import exported

        return exported.build(source, given, device)
    module = code.run_file(source) if source.kind == "file" else code.import_module(source)
    model, on_meta = construct(source, code.attribute(source, module), given, device)
    size = _declared_size(model)
    return model, on_meta, None if size is None else of_size(size)


def networks() -> list[dict[str, object]]:
    """Return a row for each network that comes with torchledger, for `report.catalog`. Reads without torch."""
    figures = registry.figures()
    return [
        {
            "name": entry.name,
            "input": "x".join(map(str, entry.input_size)),
            "params": figures[entry.name].params,
            "macs": figures[entry.name].macs,
            "top1": entry.top1,
            "top1_source": entry.top1_source,
            "authors": entry.paper.authors,
            "year": entry.paper.year,
            "title": entry.paper.title,
            "weights": entry.weights,
        }
        for entry in registry.REGISTRY.values()
    ]


def expected_images(source: Source) -> str:
    """Return whose weights a network of the registry loads, and what images those expect, or an empty text."""
    return registry.entry(source.name).weights if source.kind == "zoo" else ""


def published_top1(source: Source) -> tuple[float, str] | None:
    """Return the accuracy in percent of a network of the registry and who published it, or None."""
    entry = registry.entry(source.name) if source.kind == "zoo" else None
    return None if entry is None or entry.top1 is None else (entry.top1, entry.top1_source)


def _declared_size(model: nn.Module) -> tuple[int, ...] | None:
    """Return the model's `input_size` if it is a tuple or list of positive whole numbers (an LSTM's is a number)."""
    size: object = None
    with contextlib.suppress(Exception):  # a property of the user's may raise anything
        size = getattr(model, "input_size", None)
    if not isinstance(size, tuple | list) or not size:
        return None
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in size)
    return tuple(size) if whole else None
