"""What a call to a counter leaves changed: in the model, in the classes of its modules, and in torch."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HOOKS = sorted(name for name in vars(nn.Module()) if "_hooks" in name)
NOT_ATTRIBUTES = {"_parameters", "_buffers", "_modules", "training", *HOOKS}
PLAIN = (bool, int, float, str, bytes, type(None))
State = dict[str, dict[str, Any]]


def state(model: nn.Module) -> State:
    """Return all that must not change, by aspect and, within it, by name."""
    modules = dict(model.named_modules())
    kept = model.state_dict()
    classes = dict.fromkeys(ancestor for module in modules.values() for ancestor in type(module).__mro__[:-1])
    return {
        "state_dict keys": dict.fromkeys(kept),
        "state_dict values": {name: content(value) for name, value in kept.items()},
        "buffers": {name: content(value) for name, value in model.named_buffers()},
        "training flags": {name: module.training for name, module in modules.items()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "grads": {name: content(value.grad) for name, value in model.named_parameters()},
        "hooks": {f"{path}.{kind}": [*getattr(m, kind, ())] for path, m in modules.items() for kind in HOOKS},
        "attributes": {
            f"{path}.{name}": value if isinstance(value, PLAIN) else id(value)
            for path, module in modules.items()
            for name, value in vars(module).items()
            if name not in NOT_ATTRIBUTES
        },
        "classes": members(classes),
        "functions of torch": members((torch, F, torch.Tensor)),
        "hooks of all modules": {
            name: [*value]
            for name, value in vars(torch.nn.modules.module).items()
            if name.startswith("_global_") and isinstance(value, dict)
        },
        "grad mode": {"enabled": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled()},
        "default dtype": {"dtype": torch.get_default_dtype()},
        "random state": {"torch": content(torch.get_rng_state()), "random": hash(random.getstate())},
    }


def members(holders: Iterable[Any]) -> dict[str, int]:
    """Return the identity of each function that a class or a module holds."""
    return {
        f"{getattr(holder, '__name__', holder)}.{name}": id(value)
        for holder in holders
        for name, value in vars(holder).items()
        if callable(value)
    }


def content(value: Any) -> Any:
    """Return what a tensor holds in a form that can be compared; of one without values its size."""
    if not isinstance(value, torch.Tensor):
        return value if isinstance(value, PLAIN) else repr(value)
    kind = (type(value), value.device.type, value.dtype)
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return kind
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        return (*kind, value.shape)
    flat = value.detach().contiguous().reshape(-1)
    return (*kind, value.shape, zlib.adler32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0)


def changes(before: State, after: State) -> list[str]:
    """Return each aspect that differs, with the last part of what was added, dropped or is now another."""
    return [f"{aspect} ({said(names)})" for aspect in before if (names := differing(before[aspect], after[aspect]))]


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return `+name`, `-name` or `name` for what was added, dropped or is now another."""
    added = [f"+{shortened(name)}" for name in after if name not in before]
    dropped = [f"-{shortened(name)}" for name in before if name not in after]
    other = [shortened(name) for name in before if name in after and before[name] != after[name]]
    return [*added, *dropped, *other]


def shortened(name: str) -> str:
    """Return a name without the path of its module, so that many modules read as one; the root itself is `model`."""
    return name.rpartition(".")[2] or "model"


def said(names: Iterable[str], most: int = 3) -> str:
    """Return at most some of the names, each once."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:most]) + (f" and {len(once) - most} more" if len(once) > most else "")


def attempted(model: nn.Module, call: Callable[[], Any]) -> tuple[Any, Exception | None, list[str]]:
    """Return what a call gives, or the exception that it ends with, and what it leaves changed."""
    before = state(model)
    outcome, raised = None, None
    try:
        outcome = call()
    except Exception as error:
        raised = error
    return outcome, raised, changes(before, state(model))
