"""Values that are known although nothing is computed: masks, lengths, constants, and what follows from these.

They are computed beside the run on meta, on the CPU, so that `.item()`, `nonzero` and boolean masks on them work there.
A value belongs to a storage: views and aliases of it come free. Parameters and what the model computes from them are
never known. Three more kinds stand beside the known values:

- *assumed*: known, but only because the run took something for granted; `reasons` collects what of that was used.
- *uniform*: the same value everywhere, held without memory.
- *lent*: the user's own tensor, copied when a value of it is first needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from torchledger.capture.operations import Kind
from torchledger.capture.routing import CHOOSING
from torchledger.inputs import mapped, tensors_in

# Elements of the largest tensor that is followed: masks of pixels, for a few images. 0 let 87 of 124 architectures of
# transformers run, 4,096 let 120.
LARGEST = 1 << 20
LARGEST_DRAWN = 1 << 12  # random numbers: switches of layers rather than noise

CPU = torch.device("cpu")


def fits(tensor: torch.Tensor) -> bool:
    """Whether a tensor is small enough to be followed."""
    return tensor.numel() <= LARGEST


class Known:
    """The known values of one run, by the address of the storage that a meta tensor has."""

    def __init__(self) -> None:
        self.storages: set[int] = set()
        self.reasons: dict[str, None] = {}  # assumptions that something came to depend on
        self._real: dict[int, torch.UntypedStorage] = {}
        self._lent: dict[int, torch.Tensor] = {}
        self._uniform: dict[int, Any] = {}
        self._assumed: dict[int, str] = {}

    def lend(self, twin: torch.Tensor, tensor: torch.Tensor) -> None:
        """Know what `tensor`, which is the user's and lies as `twin` does, holds, once it is asked for."""
        storage = twin.untyped_storage()._cdata
        if storage not in self.storages and tensor.untyped_storage().nbytes() <= LARGEST * tensor.element_size():
            self._lent[storage] = tensor
            self.storages.add(storage)

    def copy(self, twin: torch.Tensor, tensor: torch.Tensor) -> None:
        """Know what `tensor` holds now, without holding it: a constant that came up on the way."""
        if fits(tensor) and not tensor.is_meta and not isinstance(tensor, torch.nn.Parameter):
            made = torch.empty_strided(twin.size(), twin.stride(), dtype=twin.dtype)
            self.put(twin, made.copy_(tensor.detach()))

    def put(self, tensor: torch.Tensor, real: torch.Tensor, reason: str | None = None) -> None:
        """Know that the meta tensor `tensor` holds what `real`, which lies alike, does."""
        storage = tensor.untyped_storage()._cdata
        self.drop(storage)
        self._real[storage] = real.untyped_storage()
        self.storages.add(storage)
        if reason is not None:
            self._assumed[storage] = reason

    def put_uniform(self, tensor: torch.Tensor, value: Any, reason: str) -> None:
        """Take all of `tensor` to hold `value`."""
        storage = tensor.untyped_storage()._cdata
        self.drop(storage)
        self._uniform[storage] = value
        self._assumed[storage] = reason
        self.storages.add(storage)

    def drop(self, storage: int) -> None:
        """Forget what a storage held."""
        if storage in self.storages:
            self.storages.discard(storage)
            for held in (self._real, self._lent, self._uniform, self._assumed):
                held.pop(storage, None)

    def value(self, tensor: torch.Tensor, to_write: bool = False) -> torch.Tensor | None:
        """Return a real tensor with what the meta tensor `tensor` holds, or None where that is not known.

        What is returned shares its storage with what is known, so that a write to it (`to_write`) is known as well.
        """
        storage = tensor.untyped_storage()._cdata
        if storage not in self.storages or tensor.is_conj() or tensor.is_neg():
            return None
        if storage in self._uniform:
            if to_write:
                return None
            return torch.full((), self._uniform[storage], dtype=tensor.dtype).expand(tensor.shape)
        lent = self._lent.pop(storage, None)
        if lent is not None:
            whole = torch.empty(0, dtype=torch.uint8, device=lent.device).set_(lent.untyped_storage())
            self._real[storage] = whole.to(CPU, copy=True).untyped_storage()
        real = self._real[storage]
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        return torch.empty(0, dtype=tensor.dtype).set_(real, offset, size, stride)

    def assume(self, storage: int, reason: str) -> None:
        """Note that what a storage holds is known by assumption alone."""
        self._assumed[storage] = reason

    def reason(self, tensors: Iterable[torch.Tensor]) -> str | None:
        """Return what one of `tensors` is known by assumption of, or None where all are known outright."""
        if not self._assumed:
            return None
        found = (self._assumed.get(tensor.untyped_storage()._cdata) for tensor in tensors)
        return next((reason for reason in found if reason is not None), None)

    def rely_on(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that the run goes on as it does because of what `tensors` hold."""
        if (reason := self.reason(tensors)) is not None:
            self.reasons[reason] = None


# What the run may take for granted, as the ledger says it.
FINITE = "all that the model computes is finite"
CHOSEN = "what the model picks by its own values (top-k, argmax, sort) is spread evenly"
KEPT = "what the model sorts out by its own values (masks, thresholds, NMS) is all kept: an upper bound"
DRAWN = "random choices fall as in one fixed draw"

# Their result hangs on the sizes of what they are given, and on nothing in it.
_VALUE_FREE = frozenset(
    """
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided
    """.split()
)
_FINITE_TESTS = {"isinf": False, "isnan": False, "isposinf": False, "isneginf": False, "isfinite": True}
_SCALAR_REDUCTIONS = frozenset({"any.default", "all.default", "max.default", "min.default"})


def follow(
    known: Known,
    func: Any,
    kind: Kind,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[torch.Tensor],
    returned: list[torch.Tensor],
) -> None:
    """Bring what is known up to date with an operation that has just run on meta."""
    given = kind.defaults | dict(zip(kind.parameters, args, strict=False)) | kwargs
    written = tensors_in([given.get(name) for name in kind.writes])
    unknown = [tensor for tensor in tensors if tensor.untyped_storage()._cdata not in known.storages]
    packet = func._schema.name.partition("::")[2]
    made: list[torch.Tensor] | None = None
    reason = known.reason(tensors)
    fitting = all(map(fits, returned))
    if kind.random and (not fitting or any(tensor.numel() > LARGEST_DRAWN for tensor in returned)):
        pass
    elif fitting and (not unknown or packet in _VALUE_FREE):
        if kind.random:
            reason = DRAWN
        elif packet in _VALUE_FREE:
            reason = None
        made = _computed(known, func, kind, args, kwargs, written)
    elif not unknown and torch.Tag.pointwise in func.tags and len(returned) == 1 and not written:
        value = _uniform_value(known, func, args, kwargs)
        if value is not None:
            known.put_uniform(returned[0], value, reason or FINITE)
        return
    elif unknown and not written and returned:
        _assume(known, func, packet, given, returned)
        return
    if made is None or len(made) != len(returned):
        for tensor in written:
            known.drop(tensor.untyped_storage()._cdata)
        return
    for tensor, real in zip(returned, made, strict=True):
        storage = tensor.untyped_storage()._cdata
        if storage not in known.storages:
            known.put(tensor, _alike(tensor, real), reason)
        elif reason is not None and written:
            known.assume(storage, reason)


def _computed(
    known: Known, func: Any, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[torch.Tensor]
) -> list[torch.Tensor] | None:
    """Run an operation on what is known of its inputs, and return the tensors that come out; None where it fails."""
    own = {id(tensor) for tensor in written}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        value = known.value(tensor, to_write=id(tensor) in own)
        if value is None:  # what is in it does not matter
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        is_whole = func._overloadname == "default" and value.dim() and not any(value.stride())
        if is_whole and f"{func._schema.name[6:]}.default" in _SCALAR_REDUCTIONS and value.numel():
            return value[(slice(0, 1),) * value.dim()]  # uniform: one element tells as much as all
        return value

    if kind.takes_device:
        place = kind.parameters.index("device")
        if len(args) > place:
            args = (*args[:place], CPU, *args[place + 1 :])
        else:
            kwargs = {**kwargs, "device": CPU}
    if kwargs.get("generator") is not None:  # the user's own stays as it is
        kwargs = {**kwargs, "generator": torch.Generator().manual_seed(0)}
    try:
        args, kwargs = mapped((args, kwargs), real)
        return tensors_in(func(*args, **kwargs))
    except Exception:  # no kernel on a CPU, say: then the value is not known, which is what the caller makes of it
        return None


def _alike(tensor: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the values of `real` in a storage that is laid out as that of `tensor`."""
    lies_alike = real.stride() == tensor.stride() and not real.storage_offset() and not tensor.storage_offset()
    if lies_alike and real.untyped_storage().nbytes() == tensor.untyped_storage().nbytes():
        return real
    whole = torch.empty(tensor.untyped_storage().nbytes(), dtype=torch.uint8).untyped_storage()
    made = torch.empty(0, dtype=tensor.dtype).set_(whole, tensor.storage_offset(), tensor.size(), tensor.stride())
    return made.copy_(real)


def _uniform_value(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a pointwise operation makes of inputs that are the same everywhere, or None."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        value = known.value(tensor)
        if value is None or any(step for step, size in zip(value.stride(), value.shape, strict=True) if size > 1):
            raise ValueError("not uniform")
        return value[(slice(0, 1),) * value.dim()]

    try:
        args, kwargs = mapped((args, kwargs), one)
        made = func(*args, **kwargs)
        return made.item() if made.numel() == 1 else None
    except (ValueError, RuntimeError, NotImplementedError):
        return None


def _assume(known: Known, func: Any, packet: str, given: dict[str, Any], returned: list[torch.Tensor]) -> None:
    """Take for granted what an operation on unknown values comes to, where there is a plain choice."""
    made = returned[0]
    x, other = given.get("self"), given.get("other")
    if packet in _FINITE_TESTS:
        known.put_uniform(made, _FINITE_TESTS[packet], FINITE)
    elif packet in ("eq", "ne") and (other is x or (isinstance(other, float) and other in (math.inf, -math.inf))):
        # isfinite and isnan come apart into these: x == x, |x| != inf
        known.put_uniform(made, (packet == "eq") == (other is x), FINITE)
    elif packet in CHOOSING and len(returned) > CHOOSING[packet]:
        indices = returned[CHOOSING[packet]]
        if indices.dtype == torch.int64 and fits(indices) and isinstance(x, torch.Tensor) and x.numel():
            known.put(indices, _alike(indices, _spread(x, given.get("dim"), indices)), CHOSEN)


def _spread(x: torch.Tensor, dim: int | None, indices: torch.Tensor) -> torch.Tensor:
    """Return indices into dimension `dim` of `x` that come round evenly from row to row."""
    if dim is None:
        dim = -1 if indices.dim() == x.dim() else 0  # multinomial's, topk's and sort's is the last
        span = x.shape[dim] if indices.dim() else x.numel()
    else:
        span = x.shape[dim] if x.dim() else 1
    if not indices.dim():
        return torch.zeros((), dtype=torch.int64)
    if indices.dim() == x.dim() and x.dim():
        rows = indices.movedim(dim, -1).shape
        return (torch.arange(indices.numel()) % span).reshape(rows).movedim(-1, dim)
    return (torch.arange(indices.numel()) % span).reshape(indices.shape)
