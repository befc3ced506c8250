"""Values that are known although nothing is computed: masks, lengths, constants, and what follows from these.

They are computed beside the run on meta, on the CPU, so that `.item()`, `nonzero` and boolean masks on them work there.
A value belongs to a storage: views and aliases of it come free. Parameters and what the model computes from them are
never known. Three more kinds stand beside the known values:

- *assumed*: known, but only because the run took something for granted; `reasons` collects what of that was used.
- *uniform*: the same value everywhere, held without memory.
- *lent*: the user's own tensor, copied when a value of it is first needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch

from torchledger.capture.operations import FILLED_WITH, Kind
from torchledger.capture.routing import CHOOSING
from torchledger.inputs import mapped, tensors_in

# Elements of the largest tensor that is followed: masks of pixels, for a few images. 0 let 87 of 124 architectures of
# transformers run, 4,096 let 120.
LARGEST = 1 << 20
LARGEST_FLOAT = 1 << 18  # of numbers: they lead a forward more seldom, and cost more
LARGEST_DRAWN = 1 << 12  # random numbers: switches of layers rather than noise
# What all of a run's following may come to, in elements, so that it stays near a second. Small operations, which cost
# what a call does, are not counted.
WORK = 1 << 27
SMALL = 1 << 12

CPU = torch.device("cpu")


def fits(tensor: torch.Tensor) -> bool:
    """Whether a tensor is small enough to be followed."""
    return tensor.numel() <= _largest(tensor.dtype)


def _largest(dtype: torch.dtype) -> int:
    return LARGEST_FLOAT if dtype.is_floating_point or dtype.is_complex else LARGEST


class Known:
    """The known values of one run, by the address of the storage that a meta tensor has."""

    def __init__(self) -> None:
        self.storages: set[int] = set()
        self.reasons: dict[str, None] = {}  # assumptions that something came to depend on
        self._real: dict[int, torch.UntypedStorage] = {}
        self._numbers: dict[int, torch.Tensor] = {}  # those of these that are a scalar's: what holds it
        self._lent: dict[int, torch.Tensor] = {}
        self._uniform: dict[int, torch.Tensor] = {}  # a scalar
        self._assumed: dict[int, str] = {}
        self._work = 0

    def affords(self, work: int) -> bool:
        """Whether an operation of so many elements is still within what may be computed; count it if it is."""
        if work > SMALL and self._work + work > WORK:
            return False
        self._work += work if work > SMALL else 0
        return True

    def lend(self, twin: torch.Tensor, tensor: torch.Tensor) -> None:
        """Know what `tensor`, which is the user's and lies as `twin` does, holds, once it is asked for."""
        storage = twin.untyped_storage()._cdata
        if storage not in self.storages and tensor.untyped_storage().nbytes() <= LARGEST * tensor.element_size():
            self._lent[storage] = tensor
            self.storages.add(storage)

    def copy(self, twin: torch.Tensor, tensor: torch.Tensor) -> None:
        """Know what `tensor` holds now, without holding it: a constant that came up on the way."""
        storage = tensor.untyped_storage()
        if tensor.is_meta or isinstance(tensor, torch.nn.Parameter):
            return
        if storage.nbytes() <= _largest(tensor.dtype) * tensor.element_size():
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self.put(twin, whole.to(CPU, copy=True))

    def put(self, tensor: torch.Tensor, real: torch.Tensor, reason: str | None = None) -> None:
        """Know that the meta tensor `tensor` holds what `real`, whose storage is laid out alike, does."""
        storage = tensor.untyped_storage()._cdata
        self.drop(storage)
        self._real[storage] = real.untyped_storage()
        if not real.dim() and not tensor.dim() and real.dtype is tensor.dtype:
            self._numbers[storage] = real
        self.storages.add(storage)
        if reason is not None:
            self._assumed[storage] = reason

    def put_uniform(self, tensor: torch.Tensor, value: Any, reason: str | None = None) -> None:
        """Take all of the storage of `tensor` to hold `value`."""
        one = _one(value, repr(value), tensor.dtype)
        storage = tensor.untyped_storage()._cdata
        self.drop(storage)
        self._uniform[storage] = one
        self.storages.add(storage)
        if reason is not None:
            self._assumed[storage] = reason

    def drop(self, storage: int) -> None:
        """Forget what a storage held."""
        if storage in self.storages:
            self.storages.discard(storage)
            for held in (self._real, self._numbers, self._lent, self._uniform, self._assumed):
                held.pop(storage, None)

    def value(self, tensor: torch.Tensor, to_write: bool = False) -> torch.Tensor | None:
        """Return a real tensor with what the meta tensor `tensor` holds, or None where that is not known.

        What is returned shares its storage with what is known, so that a write to it (`to_write`) is known as well.
        """
        storage = tensor.untyped_storage()._cdata
        if storage not in self.storages:
            return None
        number = self._numbers.get(storage)
        if number is not None and not tensor.dim() and number.dtype is tensor.dtype:
            return _seen_as(tensor, number)
        one = self._uniform.get(storage)
        if one is not None and one.dtype == tensor.dtype and not to_write:
            return _seen_as(tensor, one.expand(tensor.shape))
        if one is not None and not self._lay_out(tensor.untyped_storage(), one):
            return None
        lent = self._lent.pop(storage, None)
        if lent is not None:
            whole = torch.empty(0, dtype=torch.uint8, device=lent.device).set_(lent.untyped_storage())
            self._real[storage] = whole.to(CPU, copy=True).untyped_storage()
        real = self._real[storage]
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        return _seen_as(tensor, torch.empty(0, dtype=tensor.dtype).set_(real, offset, size, stride))

    def _lay_out(self, storage: torch.UntypedStorage, one: torch.Tensor) -> bool:
        """Give what holds `one` everywhere memory of its own, element by element; return whether it is small enough."""
        count = storage.nbytes() // one.element_size()
        if count > _largest(one.dtype):
            return False
        self._real[storage._cdata] = one.repeat(count).untyped_storage()
        del self._uniform[storage._cdata]
        return True

    def is_uniform(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether each of `tensors` holds one value everywhere, without memory."""
        return all(tensor.untyped_storage()._cdata in self._uniform for tensor in tensors)

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


@functools.lru_cache(maxsize=256)  # steps of an optimizer, for the most part
def _scalar(value: Any, written: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def scalar(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a new tensor of one number, as `torch.tensor` makes it of it."""
    return _scalar(value, repr(value), dtype).clone()


@functools.lru_cache(maxsize=256)  # zeros, for the most part; nobody writes to it
def _one(value: Any, written: str, dtype: torch.dtype) -> torch.Tensor:
    """Return a scalar; `written`, as Python writes `value`, tells 0.0 from -0.0, 0 and False."""
    return torch.full((), value, dtype=dtype)


def _seen_as(tensor: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return `real` conjugated and negated where `tensor` is a view that is: the storage holds it as it is."""
    real = real.conj() if tensor.is_conj() else real
    return torch._neg_view(real) if tensor.is_neg() else real


# What the run may take for granted, as the ledger says it.
FINITE = "all that the model computes is finite"
CHOSEN = "what the model picks by its own values (top-k, argmax, sort) is spread evenly"
KEPT = "what the model sorts out by its own values (masks, thresholds, NMS) is all kept: an upper bound"
DRAWN = "random choices fall as in one fixed draw"

_FINITE_TESTS = {"isinf": False, "isnan": False, "isposinf": False, "isneginf": False, "isfinite": True}
_ORDERING = frozenset("sort argsort topk kthvalue median mode _unique2 unique_consecutive".split())
_PRODUCTS = frozenset("mm bmm addmm baddbmm addbmm mv addmv convolution _cdist_forward".split())
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
    packet = func._schema.name.partition("::")[2]
    if packet in FILLED_WITH and len(returned) == 1 and _filled(known, packet, given, returned[0], bool(written)):
        return
    if not written and returned and all(tensor.untyped_storage()._cdata in known.storages for tensor in returned):
        return  # views of what is known
    overwritten = {id(tensor) for tensor in written if packet == "copy_" and _covers(tensor)}
    unknown = [t for t in tensors if t.untyped_storage()._cdata not in known.storages and id(t) not in overwritten]
    if unknown:
        if not written and returned:
            _assume(known, func, packet, given, returned)
        _forget(known, written)
        return
    reason = DRAWN if kind.random else known.reason(t for t in tensors if id(t) not in overwritten)
    fitting = all(map(fits, returned))
    if kind.random and (not fitting or any(tensor.numel() > LARGEST_DRAWN for tensor in returned)):
        _forget(known, written)
        return
    is_pointwise = torch.Tag.pointwise in func.tags and len(returned) == 1 and not written and not kind.random
    if is_pointwise and tensors and (not fitting or known.is_uniform(tensors)):
        value = _uniform_value(known, func, args, kwargs)
        if value is not None:
            known.put_uniform(returned[0], value, reason)
            return
    fitting = fitting and known.affords(_work(packet, tensors, returned))
    made = _computed(known, func, kind, args, kwargs, written, overwritten) if fitting else None
    if made is None or len(made) != len(returned):
        _forget(known, written)
        return
    if reason is not None:
        for tensor in written:
            known.assume(tensor.untyped_storage()._cdata, reason)
    for tensor, real in zip(returned, made, strict=True):
        # What a kernel on the CPU lays out otherwise, a by-product, is not known.
        if tensor.untyped_storage()._cdata not in known.storages and _same_kind(tensor, real):
            known.put(tensor, _alike(tensor, real), reason)


def _work(packet: str, tensors: list[torch.Tensor], returned: list[torch.Tensor]) -> int:
    """Return what an operation costs, in elements that go through memory."""
    sizes = sorted(tensor.numel() for tensor in (*tensors, *returned))
    most = sizes[-1] if sizes else 0
    if packet in _ORDERING:
        return most * most.bit_length()
    if packet in _PRODUCTS:  # an m x k by k x n one has m k n products, the root of its three sizes' product
        return max(most, math.isqrt(math.prod(sizes[-3:])) // 16)
    return most


def _forget(known: Known, written: list[torch.Tensor]) -> None:
    for tensor in written:
        known.drop(tensor.untyped_storage()._cdata)


def _same_kind(tensor: torch.Tensor, real: torch.Tensor) -> bool:
    return tensor.shape == real.shape and tensor.dtype == real.dtype


def _covers(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is all of its storage, as it is."""
    is_all = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return is_all and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _filled(known: Known, packet: str, given: dict[str, Any], made: torch.Tensor, in_place: bool) -> bool:
    """Know what holds the same value everywhere, whatever was in it before; return whether it is known."""
    filling, reason = FILLED_WITH[packet], None
    value = given.get(filling) if isinstance(filling, str) else filling
    if isinstance(value, torch.Tensor):
        reason = known.reason([value])
        value = known.value(value)
    if value is None or (in_place and not _covers(made)):
        return False
    try:
        known.put_uniform(made, value.item() if isinstance(value, torch.Tensor) else value, reason)
    except RuntimeError:  # a dtype that cannot hold it
        return False
    return True


class _NotKnownError(Exception):
    """An operation hangs on a value that is not known."""


def _computed(
    known: Known,
    func: Any,
    kind: Kind,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    written: list[torch.Tensor],
    overwritten: set[int],
) -> list[torch.Tensor] | None:
    """Run an operation on what is known of its inputs, and return the tensors that come out; None where it fails.

    What is in those `overwritten` (by id) does not matter, and of them alone.
    """
    own = {id(tensor) for tensor in written}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        value = known.value(tensor, to_write=id(tensor) in own)
        if value is None and id(tensor) in overwritten:
            return torch.zeros(tensor.size(), dtype=tensor.dtype)
        if value is None:
            raise _NotKnownError
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
            raise _NotKnownError
        return value[(slice(0, 1),) * value.dim()]

    try:
        args, kwargs = mapped((args, kwargs), one)
        made = func(*args, **kwargs)
        return made.item() if made.numel() == 1 else None
    except (_NotKnownError, RuntimeError):  # what torch cannot compute on it is not known
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
