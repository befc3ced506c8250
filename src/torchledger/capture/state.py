"""A model's parameters and buffers: listing them in the record, and booking their storages."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger.capture.operations import dtype_name
from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Modules
from torchledger.capture.waiting import Waiting
from torchledger.inputs import tensors_in
from torchledger.parameters import HeldByModules, ParameterInfo, ParameterRows
from torchledger.record import Record, StateStorages, StorageKind


def state_of(modules: Modules) -> list[torch.Tensor]:
    """Return the parameters and buffers of all modules."""
    holders = (holder for _, m in modules.values() for holder in (m._parameters, m._buffers))
    return [tensor for holder in holders for tensor in holder.values() if tensor is not None]


def home(modules: Modules, inputs: Any) -> torch.device:
    """Return where a model lives: with its first parameter or buffer, else with its first input."""
    holders = (holder for _, m in modules.values() for holder in (m._parameters, m._buffers))
    state = (tensor for holder in holders for tensor in holder.values() if tensor is not None)
    found = next((tensor.device for tensor in state if not is_lazy(tensor)), None)
    if found is None:
        found = next((tensor.device for tensor in tensors_in(inputs) if not is_lazy(tensor)), None)
    return torch.device("cpu") if found is None else found


def _places(modules: Modules) -> dict[int, list[int]]:
    """Return for each module, by id, the places of what it holds among the record's parameters or buffers."""
    counts: Counter[StorageKind] = Counter()
    places: dict[int, list[int]] = {}
    for _, module in modules.values():
        found = places[id(module)] = []
        for kind, _ in _held(module):
            found.append(counts[kind])
            counts[kind] += 1
    return places


def _held(module: nn.Module) -> list[tuple[StorageKind, torch.Tensor]]:
    """Return the parameters, then the buffers that a module itself holds."""
    found: list[tuple[StorageKind, torch.Tensor | None]] = [("parameter", p) for p in module._parameters.values()]
    found += [("buffer", buffer) for buffer in module._buffers.values()]
    return [(kind, tensor) for kind, tensor in found if tensor is not None]


def list_state(modules: Modules, record: Record, recorder: Recorder | None = None) -> list[nn.Module]:
    """Fill in parameters and buffers, each under its first path; with a recorder, book their storages as alive.

    Return the lazy modules: what holds a tensor without sizes.
    """
    lazy: dict[int, nn.Module] = {}
    kinds: tuple[tuple[StorageKind, str, ParameterRows], ...]
    kinds = (("parameter", "_parameters", record.parameters), ("buffer", "_buffers", record.buffers))
    for kind, attribute, listed in kinds:
        listed.clear()
        owners: dict[int, str] = {}
        waits: list[tuple[str, Waiting]] = []  # those since the last one whose tensors have twins: a model has hundreds
        for module_path, module in modules.values():
            held = getattr(module, attribute)
            if not held:
                continue
            if recorder is not None and type(held) is Waiting and held.make is not None:
                waits.append((module_path, held))
                continue
            _list_waiting(kind, listed, waits, recorder)
            prefix = f"{module_path}." if module_path else ""
            for name, tensor in held.items():
                if tensor is None:
                    continue
                path = prefix + name
                unset = is_unset(tensor)
                owner = owners.setdefault(id(tensor), path)
                shared = None if owner == path else owner
                shape = (0,) if unset else tuple(tensor.shape)
                place = len(listed)
                dtype = dtype_name(tensor.dtype)
                listed.append(ParameterInfo(path, module_path, shape, dtype, tensor.requires_grad, shared))
                if unset:
                    lazy[id(module)] = module
                elif recorder is not None and tensor.layout is torch.strided:
                    if shared is None:
                        recorder.routes.own(tensor, place if kind == "parameter" else None)
                    recorder.born(tensor, kind, place)
        _list_waiting(kind, listed, waits, recorder)
    return list(lazy.values())


def _list_waiting(
    kind: StorageKind, listed: ParameterRows, waits: list[tuple[str, Waiting]], recorder: Recorder | None
) -> None:
    """List tensors that wait for their twins, each alone with its storage, so that it has one owner.

    `waits` has what holds them, with the paths of modules, and is emptied.
    """
    if recorder is None or not waits:
        return
    holders = [held for _, held in waits]
    storages = StateStorages([size for held in holders for size in held.bytes], kind, first=len(listed))
    if kind == "parameter":
        place = storages.first
        for held in holders:
            count = len(held.bytes)
            held.places = range(place, place + count)
            place += count
    listed.hold(
        HeldByModules(
            [path for path, _ in waits],
            [held.names for held in holders],
            [held.layouts for held in holders],
            [held.trains for held in holders],
        )
    )
    recorder.expect(holders, storages)
    waits.clear()


_SIZED = (torch.Tensor, nn.Parameter)


def is_unset(tensor: torch.Tensor) -> bool:
    """Whether a lazy parameter or buffer has no sizes yet."""
    return type(tensor) not in _SIZED and is_lazy(tensor)


def watch_lazy(lazy: list[nn.Module], modules: Modules, recorder: Recorder) -> None:
    """Have lazy modules initialise themselves unbooked, as if they had been so before."""
    places = _places(modules) if lazy else {}
    for module in lazy:
        initialise = getattr(module, "initialize_parameters", None)
        if initialise is not None:
            run = functools.partial(_initialise, module, initialise, recorder, places[id(module)])
            module.__dict__["initialize_parameters"] = run


def _initialise(
    module: nn.Module,
    initialise: Callable[..., None],
    recorder: Recorder,
    places: list[int],
    *args: Any,
    **kwargs: Any,
) -> None:
    with recorder.paused():
        initialise(*args, **kwargs)
    for (kind, tensor), place in zip(_held(module), places, strict=True):
        recorder.inherit([] if is_lazy(tensor) else [tensor], kind, place)
