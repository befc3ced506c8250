"""hf:llama, hf:DIR, hf:config.json -> a model of transformers, from its config alone.

A config is data. It is read here, not by transformers' loader, and nothing in it runs code, asks the network or reads
another file: what would do so is left out (kernels of a hub) or refused (a model of its own code).
"""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torchledger.errors import UserError, close_matches
from torchledger.sources import transformers_inputs
from torchledger.sources.built import Example, MakeExample
from torchledger.sources.construct import construct
from torchledger.sources.libraries import imported, without_network
from torchledger.sources.naming import Source, describe

if TYPE_CHECKING:
    import torch
    from torch import nn

# Fields that name code to run, files to read or kernels, which may be fetched from a hub. Without them transformers
# takes scaled_dot_product_attention wherever a model supports it, which is booked as one operation.
_LEFT_OUT = frozenset(
    "attn_implementation _attn_implementation _attn_implementation_internal experts_implementation "
    "_experts_implementation _experts_implementation_internal auto_map _name_or_path use_kernels "
    "quantization_config pretrained use_pretrained_backbone checkpoint_path".split()
)


def build(
    source: Source, arguments: Mapping[str, object], device: Literal["meta"] | None
) -> tuple[nn.Module, bool, MakeExample]:
    """Return the model of a config with `arguments` in place of its fields, whether it is on meta, and its inputs.

    Raises `UserError` for a config that transformers does not know or that is wrong, and for what is not installed.
    """
    with without_network(source.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fields that transformers has renamed
        fields = _read(source)
        if fields.get("quantization_config"):
            print(
                f"{source.name}: quantization_config is left out, and the model counted as it is without",
                file=sys.stderr,
            )
        config = make_config(fields, arguments, source.name)
        model_class = architecture(config, source.name)
        make = functools.partial(_make, model_class, config)
        model, on_meta = construct(source, make, {}, device)
    return model, on_meta, functools.partial(_example, source.name, model)


def _make(model_class: Any, config: Any) -> object:
    # A copy: building writes into the config, and a build that fails on meta is tried again.
    return model_class._from_config(copy.deepcopy(config))


def _example(name: str, model: nn.Module, batch: int, dtype: torch.dtype) -> Example:
    try:
        return Example((), transformers_inputs.example(model, batch, dtype))
    except LookupError as error:
        raise UserError(
            f"{name!r}: {type(model).__name__} takes {error.args[0]!r}, which is not known here: give all of its inputs"
            f" with --input, as in --input {error.args[0]}=SIZE"
        ) from error


# ---- the config


def _read(source: Source) -> dict[str, Any]:
    """Return the fields of the config file, or the model type alone, which stands for its defaults."""
    if source.path is None:
        return {"model_type": source.attribute}
    try:
        fields = json.loads(source.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(source.path)!r} is no config: it is not JSON ({describe(error)})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{str(source.path)!r} is no config: it holds a {type(fields).__name__}, not fields by name")
    return fields


def make_config(fields: Mapping[str, Any], arguments: Mapping[str, object], name: str) -> Any:
    """Return transformers' config for `fields`, with `arguments` in place of the fields that they name."""
    types = imported("transformers", "transformers.models.auto.configuration_auto").CONFIG_MAPPING
    kind = fields.get("model_type")
    if kind not in types:
        if "auto_map" in fields:
            raise UserError(
                f"{name!r} needs code that comes with its weights (model_type {kind!r}, auto_map): none is run here;"
                " build the model in a file of your own and name that, as in path/to/file.py:Net"
            )
        if kind is None:
            raise UserError(f"{name!r} has no model_type: a config of transformers says one, such as llama")
        near = close_matches(str(kind), list(types))
        version = imported("transformers").__version__
        raise UserError(f"transformers {version} has no model type {kind!r}.{near} Or it needs a newer transformers.")
    plain = _without_code(dict(fields))
    config = _config(types[kind], plain, name)
    if not arguments:
        return config
    named = {_field(config, path, name): value for path, value in arguments.items()}
    return _config(types[kind], _overridden(plain, named, config), name)


def _config(config_class: Any, fields: Mapping[str, Any], name: str) -> Any:
    try:
        # A copy: transformers takes what it reads out of the dict.
        return config_class.from_dict({key: copy.deepcopy(v) for key, v in fields.items() if key != "model_type"})
    except Exception as error:  # each config class checks in its own way
        raise UserError(f"the config of {name!r} is refused by {config_class.__name__}: {describe(error)}") from error


def _field(config: Any, path: str, name: str) -> str:
    """Return the dotted path of a field, or raise `UserError` where the config has none of this name.

    transformers would keep a misspelt field without a word. num_classes is its num_labels.
    """
    if path == "num_classes" and not hasattr(config, path):
        return "num_labels"
    owner = config
    for part in path.split("."):
        there = list(owner) if isinstance(owner, dict) else [*vars(owner), *getattr(owner, "attribute_map", {})]
        if part not in there and not hasattr(owner, part):
            raise UserError(
                f"{name!r} has no field {path!r}.{close_matches(part, [n for n in there if not n.startswith('_')])} "
                f"{type(owner).__name__} lists its fields."
            )
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return path


def _overridden(fields: dict[str, Any], arguments: Mapping[str, object], config: Any) -> dict[str, Any]:
    """Return `fields` with those at the dotted paths replaced.

    A part that the file leaves to the defaults keeps those of `config`, and is written out. Where layers become fewer,
    the lists beside them that have an entry a layer are cut, and so are dicts by the number of a layer.
    """
    changed = copy.deepcopy(fields)
    for path, value in arguments.items():
        *outer, last = path.split(".")
        owner, made = changed, config.to_dict()
        for part in outer:
            made = made[part] if isinstance(made.get(part), dict) else {}
            if not isinstance(owner.get(part), dict):
                owner[part] = _without_code(copy.deepcopy(made))
            owner = owner[part]
        before = owner.get(last)
        if isinstance(before, int) and isinstance(value, int) and re.search("layer|depth|block", last):
            for key, entries in owner.items():
                if isinstance(entries, list) and len(entries) == before > value:
                    owner[key] = entries[:value]
                elif isinstance(entries, dict) and entries and all(str(number).isdigit() for number in entries):
                    owner[key] = {number: entry for number, entry in entries.items() if int(number) < value}
        owner[last] = value
    return changed


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_code(inner) for name, inner in value.items() if name not in _LEFT_OUT}
    if isinstance(value, list):
        return [_without_code(inner) for inner in value]
    return value


# ---- the architecture


def architecture(config: Any, name: str) -> Any:
    """Return the model class that the config names first, else the one that transformers has for its type."""
    transformers = imported("transformers")
    named = list(config.architectures or []) or _of_type(config.model_type)
    if not named:
        raise UserError(
            f"{name!r}: transformers has no model of its own for {config.model_type!r}, which is a part of others: name"
            " the whole model's config"
        )
    try:
        found = getattr(transformers, named[0], None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        if missing := list(getattr(found, "_backends", [])):  # a stand-in of transformers'
            raise UserError(f"{name!r}: {named[0]} needs {' and '.join(missing)} besides transformers: install it")
    except UserError:
        raise
    except Exception as error:  # a model that needs another package says so when it is first touched
        raise UserError(f"{name!r} cannot be built: {describe(error)}") from error
    raise UserError(
        f"{name!r} names the architecture {named[0]!r}, which transformers {transformers.__version__} has not."
        f"{close_matches(str(named[0]), [n for n in dir(transformers) if re.search('For|Model', n)])}"
        " Say another with --arg \"architectures=['NAME']\"."
    )


def _of_type(kind: str) -> list[str]:
    """Return the class of the bare model of a type, else of the first task that there is one for."""
    auto = imported("transformers", "transformers.models.auto.modeling_auto")
    tables = [table for table in vars(auto) if table.startswith("MODEL_") and table.endswith("_MAPPING_NAMES")]
    first = ("MODEL_MAPPING_NAMES", "MODEL_FOR_PRETRAINING_MAPPING_NAMES")
    last = "MODEL_FOR_BACKBONE_MAPPING_NAMES"
    for table in sorted(tables, key=lambda table: (table not in first, table == last)):
        names = getattr(auto, table).get(kind)
        if names:
            return [names] if isinstance(names, str) else list(names)
    return []
