"""Meta stand-ins for the user's tensors while a capture lasts, and putting everything back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from types import BuiltinFunctionType, EllipsisType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


class Twins:
    """Make one meta twin for each real tensor; storages that are shared stay shared.

    The floating-point ones among `cast` get the dtype `dtype`.
    """

    def __init__(self, dtype: torch.dtype | None = None, cast: Iterable[torch.Tensor] = ()) -> None:
        self._dtype = dtype
        self._cast = {id(tensor) for tensor in cast}
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bases: dict[int, torch.Tensor] = {}  # by storage: a twin that owns all of its storage

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has a twin already."""
        return id(tensor) in self._by_tensor

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the twin of `tensor`: a meta tensor of its sizes, strides, dtype and class."""
        known = self._by_tensor.get(id(tensor))
        if known is not None:
            return known[1]
        twin = self._make(tensor)  # under no_grad, as `ready` has it
        self._by_tensor[id(tensor)] = (tensor, twin)  # the tensor is held, so its id stays its own
        return twin

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_lazy(tensor):
            return type(tensor)(device="meta")  # type: ignore[call-arg]
        plain = tensor.detach()
        cast = id(tensor) in self._cast and plain.is_floating_point()
        if cast or plain.layout != torch.strided:
            twin = torch.empty_like(plain, dtype=self._dtype if cast else plain.dtype, device="meta")
        else:
            twin = self._strided(plain)
        if isinstance(tensor, nn.Parameter):
            return _parameter(tensor, twin)
        return twin.requires_grad_(tensor.requires_grad and not tensor.grad_fn)

    def _strided(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a twin that shares a storage with the twins of the tensors that `tensor` shares one with."""
        storage = tensor.untyped_storage()
        shape, stride, offset, dtype = tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype
        base = self._bases.get(storage._cdata)
        if base is None:
            twin = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            if offset or twin.untyped_storage().nbytes() != storage.nbytes():
                base = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            else:
                base = twin
            self._bases[storage._cdata] = base
            if base is twin:
                return twin
        if base.dtype == dtype:
            return base.as_strided(shape, stride, offset).detach()
        return torch.empty(0, dtype=dtype, device="meta").set_(base.untyped_storage(), offset, shape, stride)


class Copies:
    """Stand-ins for a real run: copies of all tensors that hang on the model, but for parameters, which may be large.

    A parameter's stand-in shares its values. Whatever was there before the run and is not copied (parameters, tensors
    in closures) is set aside when an operation is about to write to it (`before_write`); `put_back` returns it.
    `aside` hands that on to a next run, which need not be watched.
    """

    def __init__(self, aside: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.aside = {} if aside is None else aside  # by storage: a tensor over all of it, its values before
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stand-in of `tensor`."""
        known = self._by_tensor.get(id(tensor))
        if known is None:
            plain = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                made: torch.Tensor = _parameter(tensor, plain)
            else:
                made = plain.clone().requires_grad_(tensor.requires_grad and not tensor.grad_fn)
            known = self._by_tensor[id(tensor)] = (tensor, made)
        return known[1]

    def before_write(self, tensor: torch.Tensor) -> None:
        """Set the values in the storage of `tensor` aside."""
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self.aside:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self.aside[storage._cdata] = (whole, whole.clone())

    def put_back(self) -> None:
        """Return the values that were set aside."""
        for whole, values in self.aside.values():
            whole.copy_(values)


def _parameter(like: nn.Parameter, data: torch.Tensor) -> nn.Parameter:
    """Return a parameter with `data` that is otherwise like another one."""
    parameter = nn.Parameter(data, requires_grad=like.requires_grad)
    if type(like) is not nn.Parameter:
        parameter.__class__ = type(like)
    if like.__dict__:
        parameter.__dict__.update(like.__dict__)
    return parameter


# What can hold nothing of the user's that changes in place, or is twinned on its own: most values that a module has.
_TENSORS = (torch.Tensor, nn.Parameter)
_PLAIN = frozenset(
    {int, float, bool, complex, str, bytes, NoneType, EllipsisType, torch.Size, torch.dtype, torch.device}
    | {*_TENSORS, FunctionType, BuiltinFunctionType, MethodType, ModuleType, type}
)


class Swapped:
    """The model with its tensors replaced by stand-ins: a context that puts back every attribute of every module.

    Modules' own dictionaries, the lists, dicts, sets and plain objects that hang on them, classes and training flags
    are restored as they were, also when the forward raises or an attribute was added, removed or filled.
    """

    def __init__(self, modules: list[nn.Module], stand_ins: Twins | Copies) -> None:
        self._modules = modules
        self._stand_ins = stand_ins
        self._seen: set[int] = set()
        self._saved: list[tuple[Any, Any]] = []  # (dict, list, set or deque, a copy of it)
        self._empty: list[Any] = []  # the same, with nothing in them: hooks for the most part
        self._classes: list[tuple[nn.Module, type]] = []

    def __enter__(self) -> Swapped:
        try:
            self._keep(self._modules)
            self._swap()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if isinstance(self._stand_ins, Copies):
            self._stand_ins.put_back()

    def _restore(self) -> None:
        for module, kind in self._classes:
            if type(module) is not kind:
                module.__class__ = kind
        for holder in self._empty:
            if holder:
                holder.clear()
        for holder, content in reversed(self._saved):
            if isinstance(holder, list):
                holder[:] = content
            elif isinstance(holder, deque):
                holder.clear()
                holder.extend(content)
            elif isinstance(holder, OrderedDict):
                holder.clear()
                holder.update(content)
            elif isinstance(holder, dict):
                dict.clear(holder)
                dict.update(holder, content)
            else:
                holder.clear()
                holder.update(content)

    def _keep(self, roots: list[Any]) -> None:
        """Take down what `roots` and all that hangs on them hold. A loop with a stack of its own: objects nest deep."""
        pending = list(reversed(roots))
        seen, saved, empty = self._seen, self._saved, self._empty
        while pending:
            value = pending.pop()
            kind = type(value)
            if kind is OrderedDict or kind is dict:  # nearly all that a module holds
                if not value:
                    empty.append(value)
                elif id(value) not in seen:
                    seen.add(id(value))
                    saved.append((value, dict(value)))
                    pending += [item for item in value.values() if type(item) not in _PLAIN]
            elif kind in _PLAIN or id(value) in seen:
                continue
            elif isinstance(value, nn.Module):
                seen.add(id(value))
                self._classes.append((value, kind))
                pending.append(value.__dict__)
            elif isinstance(value, (dict, list, set, deque)):
                seen.add(id(value))
                if not value:
                    empty.append(value)
                    continue
                saved.append((value, dict(value) if isinstance(value, dict) else value.copy()))
                pending += value.values() if isinstance(value, dict) else value
            elif isinstance(value, tuple):
                pending += value
            elif not isinstance(value, (torch.Tensor, type)) and not callable(value):
                attributes = getattr(value, "__dict__", None)
                if isinstance(attributes, dict):
                    seen.add(id(value))
                    pending.append(attributes)

    def _swap(self) -> None:
        """Put stand-ins for the tensors in all that was taken down."""
        stand_in = self._stand_ins.of
        for holder, content in self._saved:
            if isinstance(content, dict):
                for key, value in content.items():
                    kind = type(value)
                    if kind in _TENSORS or (kind not in _PLAIN and isinstance(value, torch.Tensor)):
                        holder[key] = stand_in(value)
            elif not isinstance(content, set):
                for index, value in enumerate(content):
                    if isinstance(value, torch.Tensor):
                        holder[index] = stand_in(value)
