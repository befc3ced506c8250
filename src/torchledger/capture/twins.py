"""Meta stand-ins for the user's tensors while a capture lasts, and putting everything back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger.capture.scopes import walk


class Twins:
    """Make one meta twin for each real tensor; storages that are shared stay shared."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has a twin already."""
        return id(tensor) in self._by_tensor

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the twin of `tensor`: a meta tensor of its sizes, strides, dtype and class."""
        known = self._by_tensor.get(id(tensor))
        if known is not None:
            return known[1]
        with torch.no_grad():
            twin = self._make(tensor)
        self._by_tensor[id(tensor)] = (tensor, twin)  # the tensor is held, so its id stays its own
        return twin

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_lazy(tensor):
            return type(tensor)(device="meta")  # type: ignore[call-arg]
        plain = tensor.detach()
        cast = self._dtype is not None and plain.is_floating_point()
        if cast or plain.layout != torch.strided:
            twin = torch.empty_like(plain, dtype=self._dtype if cast else plain.dtype, device="meta")
        else:
            key = plain.untyped_storage()._cdata
            storage = self._storages.get(key)
            if storage is None:
                storage = torch.UntypedStorage(  # type: ignore[no-untyped-call]
                    plain.untyped_storage().nbytes(), device="meta"
                )
                self._storages[key] = storage
            twin = torch.empty(0, dtype=plain.dtype, device="meta")
            twin.set_(storage, plain.storage_offset(), plain.size(), plain.stride())
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            if type(tensor) is not nn.Parameter:
                parameter.__class__ = type(tensor)
            parameter.__dict__.update(tensor.__dict__)
            return parameter
        return twin.requires_grad_(tensor.requires_grad and not tensor.grad_fn)


class Copies:
    """Make one copy for each tensor that a real run may change in place; parameters stand for themselves."""

    def __init__(self) -> None:
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a parameter as it is, and a copy of any other tensor."""
        if isinstance(tensor, nn.Parameter):
            return tensor
        known = self._by_tensor.get(id(tensor))
        if known is None:
            known = self._by_tensor[id(tensor)] = (tensor, tensor.detach().clone())
        return known[1]


class Swapped:
    """The model with its tensors replaced by stand-ins: a context that puts back every attribute of every module.

    Modules' own dictionaries, the lists, dicts, sets and plain objects that hang on them, classes and training flags
    are restored as they were, also when the forward raises or an attribute was added, removed or filled.
    """

    def __init__(self, model: nn.Module, stand_ins: Twins | Copies) -> None:
        self._model = model
        self._stand_ins = stand_ins
        self._seen: set[int] = set()
        self._saved: list[tuple[Any, Any, Any]] = []  # (holder, how to restore, content)

    def __enter__(self) -> Swapped:
        try:
            modules = [module for _, module in walk(self._model).values()]
            self._seen.update(id(module) for module in modules)
            for module in modules:
                self._keep(module.__dict__)
                self._saved.append((module, "class", type(module)))
            for module in modules:
                if not isinstance(module, torch.jit.ScriptModule):
                    self._twin_dict(module.__dict__)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for holder, how, content in reversed(self._saved):
            if how == "class":
                if type(holder) is not content:
                    holder.__class__ = content
            elif how == "dict":
                dict.clear(holder)
                dict.update(holder, content)
            elif how == "ordered":
                holder.clear()
                holder.update(content)
            elif how == "list":
                holder[:] = content
            elif how == "deque":
                holder.clear()
                holder.extend(content)
            else:
                holder.clear()
                holder.update(content)

    def _keep(self, root: object) -> None:
        """Take down what `root` and all that hangs on it hold. A loop with its own stack: users' objects nest deep."""
        pending = [root]
        while pending:
            value = pending.pop()
            if id(value) in self._seen or isinstance(
                value, (torch.Tensor, nn.Module, type, ModuleType, str, bytes, int)
            ):
                continue
            if isinstance(value, (dict, list, set, deque)):
                self._seen.add(id(value))
                kind = "ordered" if isinstance(value, OrderedDict) else "dict" if isinstance(value, dict) else "set"
                kind = "list" if isinstance(value, list) else "deque" if isinstance(value, deque) else kind
                self._saved.append((value, kind, value.copy() if not isinstance(value, defaultdict) else dict(value)))
                pending += value.values() if isinstance(value, dict) else value
            elif isinstance(value, tuple):
                pending += value
            elif hasattr(value, "__dict__") and not callable(value):
                self._seen.add(id(value))
                pending.append(vars(value))

    def _twin_dict(self, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                attributes[name] = self._stand_ins.of(value)
            elif isinstance(value, dict) and name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    if tensor is not None:
                        value[key] = self._stand_ins.of(tensor)
            elif isinstance(value, list) and any(isinstance(item, torch.Tensor) for item in value):
                value[:] = [self._stand_ins.of(item) if isinstance(item, torch.Tensor) else item for item in value]
            elif isinstance(value, dict) and name != "_modules":
                for key, item in value.items():
                    if isinstance(item, torch.Tensor):
                        value[key] = self._stand_ins.of(item)
