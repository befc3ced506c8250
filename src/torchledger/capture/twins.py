"""Stand-ins for the user's tensors while a run lasts: meta twins, or for a real run copies."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.parameter import is_lazy

from torchledger.capture.waiting import Layout, Waiting

_COMMON = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool}
)


def _is_common(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.dtype in _COMMON


class Twins:
    """Make one meta twin for each real tensor; storages that are shared stay shared.

    The floating-point ones among `cast` get the dtype `dtype`.
    """

    def __init__(self, dtype: torch.dtype | None = None, cast: Iterable[torch.Tensor] = ()) -> None:
        self._dtype = dtype
        self._cast = {id(tensor) for tensor in cast}
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()
        self._passing: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        # By storage: a twin that owns all of its storage. The user's is held, so that its address stays its own; one
        # that came up on the way is held weakly.
        self._bases: dict[int, tuple[object, torch.Tensor]] = {}
        self._versions: list[tuple[torch.Tensor, int]] = []  # of the user's, which are held
        self._versions_passing: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self._late: dict[int, Waiting] = {}  # by storage: what holds tensors whose twins wait until somebody looks
        self.looked_at: list[Callable[[torch.Tensor, torch.Tensor], None]] = []  # told of each that was, with its twin

    def put_back(self) -> None:
        """Return autograd's count of writes: it rises where forward writes to a tensor of the user's, twin or not."""
        alive = [(tensor, version) for held, version in self._versions_passing if (tensor := held()) is not None]
        for tensor, version in (*reversed(alive), *reversed(self._versions)):
            if tensor._version != version:
                torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))

    def wait(self, holders: Sequence[dict[str, torch.Tensor | None]]) -> list[Waiting | None]:
        """Return what stands for each of these dicts of tensors until somebody looks; None where twins are needed now.

        They are where a tensor is of a rare sort or shares its storage.
        """
        if self._cast:
            return [None] * len(holders)  # what is cast has other sizes
        found: list[Waiting | None] = []
        late, bases, make, strided, common = self._late, self._bases, self._of_late, torch.strided, _COMMON
        for holder in holders:
            waiting = Waiting(holder)
            layouts: list[Layout | None] = []
            sizes: list[int] = []
            trains: list[bool] = []
            for tensor in holder.values():  # all that is asked of it, while it is at hand
                if tensor is None:
                    layouts.append(None)
                    continue
                dtype = tensor.dtype
                if dtype not in common or tensor.layout is not strided or tensor.is_neg():
                    break
                storage = tensor.untyped_storage()
                address = storage._cdata
                if address in late or address in bases:
                    break
                late[address] = waiting
                sizes.append(storage.nbytes())
                trains.append(tensor.requires_grad)
                layouts.append((tensor.shape, tensor.stride(), dtype))
            else:
                waiting.real, waiting.names, waiting.layouts, waiting.make = holder, (*holder,), (*layouts,), make
                waiting.bytes, waiting.trains, waiting.places = sizes, (*trains,), ()
                found.append(waiting)
                continue
            found.append(None)
            self._make_now(holder, waiting)
        return found

    def _make_now(self, holder: dict[str, torch.Tensor | None], waiting: Waiting) -> None:
        """Have none of these tensors wait, nor those that share a storage with one: so shall their twins."""
        tensors = [tensor for tensor in holder.values() if tensor is not None]
        for tensor in tensors:
            if tensor.layout is torch.strided:
                address = tensor.untyped_storage()._cdata
                if self._late.get(address) is waiting:
                    del self._late[address]
        for tensor in tensors:
            self._fill_for(tensor)

    def _fill_for(self, tensor: torch.Tensor) -> None:
        """Make the twin that waits where `tensor` shares its storage: both twins are to share one."""
        waiting = self._waits(tensor)
        if waiting is not None:
            waiting.fill()

    def _waits(self, tensor: torch.Tensor) -> Waiting | None:
        """Return what holds the tensor whose twin will be made late and has the storage of `tensor`, if any does."""
        if not self._late or is_lazy(tensor) or tensor.layout is not torch.strided:
            return None
        return self._late.get(tensor.untyped_storage()._cdata)

    @staticmethod
    def _is_late(tensor: torch.Tensor, waiting: Waiting | None) -> bool:
        """Whether `tensor` is one of those that wait, and not another one with its storage."""
        return waiting is not None and any(held is tensor for held in waiting.real.values())

    def _of_late(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the twin of a tensor that is looked at in the middle of a run, which sees nothing of its making."""
        with (
            torch._C.DisableTorchFunction(),
            torch._C._DisableTorchDispatch(),
            torch.inference_mode(False),
            torch.no_grad(),
            _out_of_transforms(),
        ):
            return self.of(tensor)

    def of_passing(self, tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return the twin of a tensor that came up on the way, and whether its storage did. Holds both weakly."""
        self._fill_for(tensor)
        known = self._by_tensor.get(id(tensor)) or self._passing.get(id(tensor))
        if known is not None:
            return known[1], False
        key = id(tensor)
        before = len(self._bases)
        twin = self._make(tensor)
        is_new = twin.layout != torch.strided or len(self._bases) > before
        if is_new and twin.layout == torch.strided:
            storage = tensor.untyped_storage()
            address = storage._cdata
            gone = weakref.ref(storage, lambda _: self._bases.pop(address, None))
            self._bases[address] = (gone, self._bases[address][1])
        self._passing[key] = (weakref.ref(tensor, lambda _: self._passing.pop(key, None)), twin)
        return twin, is_new

    def has_met(self, tensor: torch.Tensor) -> bool:
        """Whether there is a twin of the storage of `tensor`."""
        if tensor.layout != torch.strided:
            return False
        storage = tensor.untyped_storage()._cdata
        return storage in self._bases or storage in self._late

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the twin of `tensor`: a meta tensor of its sizes, strides, dtype and class."""
        known = self._by_tensor.get(id(tensor))
        if known is not None:
            return known[1]
        if id(tensor) in self._made:
            return tensor
        waiting = self._waits(tensor)
        is_late = self._is_late(tensor, waiting)
        if waiting is not None and not is_late:
            waiting.fill()
        twin = self._of_common(tensor)
        if twin is None:
            twin = self._make(tensor)  # under no_grad, as `ready` has it
        self._by_tensor[id(tensor)] = (tensor, twin)  # the tensor is held, so its id stays its own
        self._made.add(id(twin))
        if is_late:
            del self._late[tensor.untyped_storage()._cdata]
            for told in self.looked_at:
                told(tensor, twin)
        return twin

    def instead_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stand-in of a tensor that has one, or waits for it, else the tensor."""
        known = self._by_tensor.get(id(tensor))
        if known is None and self._is_late(tensor, self._waits(tensor)):
            return self._of_late(tensor)
        return tensor if known is None else known[1]

    def is_made(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a stand-in itself."""
        return id(tensor) in self._made

    @property
    def made(self) -> list[torch.Tensor]:
        """The twins made so far, but for those of passing tensors."""
        return [twin for _, twin in self._by_tensor.values()]

    @property
    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The tensors that have a twin, each with it, but for those of passing tensors."""
        return list(self._by_tensor.values())

    def _of_common(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return what `_make` would of a tensor of the common sort, in a third of the time: a model has hundreds."""
        if (
            type(tensor) not in (nn.Parameter, torch.Tensor)
            or id(tensor) in self._cast
            or not _is_common(tensor)
            or tensor.storage_offset()
            or tensor.is_inference()
            or tensor.grad_fn is not None
            or tensor.is_neg()
        ):
            return None
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._bases:
            return None
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if twin.untyped_storage().nbytes() != storage.nbytes():
            return None
        self._versions.append((tensor, tensor._version))
        self._bases[address] = (storage, twin)
        if isinstance(tensor, nn.Parameter):
            return _parameter(tensor, twin)
        return twin.requires_grad_() if tensor.requires_grad else twin

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_lazy(tensor):
            dtype = self._dtype if id(tensor) in self._cast and tensor.dtype.is_floating_point else tensor.dtype
            return type(tensor)(tensor.requires_grad, device="meta", dtype=dtype)  # type: ignore[arg-type, call-arg]
        if not tensor.is_inference():
            self._versions_passing.append((weakref.ref(tensor), tensor._version))
        plain = tensor.detach()
        cast = id(tensor) in self._cast and plain.is_floating_point()
        if cast or plain.layout != torch.strided:
            twin = torch.empty_like(plain, dtype=self._dtype if cast else plain.dtype, device="meta")
        else:
            twin = self._strided(plain)
            twin = twin.conj() if plain.is_conj() else twin
            twin = torch._neg_view(twin) if plain.is_neg() else twin
        if isinstance(tensor, nn.Parameter):
            return _parameter(tensor, twin)
        return twin.requires_grad_(tensor.requires_grad and not tensor.grad_fn)

    def _strided(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a twin that shares a storage with the twins of the tensors that `tensor` shares one with."""
        storage = tensor.untyped_storage()
        shape, stride, offset, dtype = tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype
        _, base = self._bases.get(storage._cdata, (None, None))
        if base is None:
            twin = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            if offset or twin.untyped_storage().nbytes() != storage.nbytes():
                base = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            else:
                base = twin
            self._bases[storage._cdata] = (storage, base)
            if base is twin:
                return twin
        if base.dtype == dtype:
            return base.as_strided(shape, stride, offset).detach()
        return torch.empty(0, dtype=dtype, device="meta").set_(base.untyped_storage(), offset, shape, stride)


def _out_of_transforms() -> AbstractContextManager[object]:
    """Return what steps out of torch.func's transforms, which would take up what is made under them."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return contextlib.nullcontext()
    return temporarily_clear_interpreter_stack()


class MadeUp:
    """Values for tensors on meta: the same each time, and small. Storages that are shared stay shared.

    Parameters are drawn from a normal distribution, other floating-point tensors (pixels, running variances) evenly
    from 0 to 1; integers are 0, bools False.
    """

    SPREAD = 0.02  # of parameters: what many networks start with

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def filled(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that has values as it is, and one with made-up values for a tensor on meta."""
        return self.of(tensor) if tensor.is_meta else tensor

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor with values that is laid out as the meta tensor `tensor` is."""
        plain = tensor.detach()
        if plain.layout != torch.strided:
            return torch.zeros_like(plain, device=self._device)
        storage = plain.untyped_storage()
        if storage._cdata not in self._storages:
            whole = torch.empty(storage.nbytes() // plain.element_size(), dtype=plain.dtype, device=self._device)
            if not (plain.is_floating_point() or plain.is_complex()):
                whole.zero_()
            elif isinstance(tensor, nn.Parameter) or plain.is_complex():
                whole.normal_(0, self.SPREAD, generator=self._generator)
            else:
                whole.uniform_(generator=self._generator)
            self._storages[storage._cdata] = (storage, whole.untyped_storage())
        made = torch.empty(0, dtype=plain.dtype, device=self._device)
        return made.set_(self._storages[storage._cdata][1], plain.storage_offset(), plain.size(), plain.stride())


@dataclass
class Aside:
    """What a real run changed although it was not its own, as it was before."""

    values: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # by storage: all of it, a copy
    generators: dict[int, tuple[torch.Generator, torch.Tensor]] = field(default_factory=dict)
    versions: dict[int, tuple[torch.Tensor, int]] = field(default_factory=dict)  # by id of a tensor: how often written


class Copies:
    """Stand-ins for a real run: copies of all tensors that hang on the model, but for parameters, which may be large.

    A parameter's stand-in shares its values. Whatever was there before the run and is not copied (parameters, tensors
    and random generators in closures) is set aside when an operation is about to change it; `put_back` returns it.
    `aside` hands that on to a next run, which need not be watched. The floating-point ones among `cast` get the dtype
    `dtype`. What lies on meta gets values, on `device`.
    """

    def __init__(
        self,
        aside: Aside | None = None,
        dtype: torch.dtype | None = None,
        cast: Iterable[torch.Tensor] = (),
        device: torch.device | None = None,
    ) -> None:
        self._aside = Aside() if aside is None else aside
        self._dtype = dtype
        self._cast = {id(tensor) for tensor in cast}
        self._values = MadeUp(device or torch.device("cpu"))
        self._made: set[int] = set()
        self._by_tensor: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stand-in of `tensor`."""
        known = self._by_tensor.get(id(tensor))
        if id(tensor) in self._made:
            return tensor
        if known is None:
            filled = self._values.filled(tensor)
            # A detached tensor would count what is written to it as written to the user's own, which a graph of the
            # user's may still need.
            plain = filled.data if isinstance(tensor, nn.Parameter) else filled.detach()
            if id(tensor) in self._cast and plain.is_floating_point():
                plain = plain.to(self._dtype)
            if isinstance(tensor, nn.Parameter):
                made: torch.Tensor = _parameter(tensor, plain)
            else:
                made = plain if tensor.is_meta else plain.clone()
                if tensor.requires_grad and not tensor.grad_fn and not made.is_inference():
                    made.requires_grad_()
            known = self._by_tensor[id(tensor)] = (tensor, made)
            self._made.add(id(made))
        return known[1]

    def instead_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stand-in of a tensor that has one, else the tensor."""
        known = self._by_tensor.get(id(tensor))
        return tensor if known is None else known[1]

    def is_made(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a stand-in itself."""
        return id(tensor) in self._made

    @property
    def made(self) -> list[torch.Tensor]:
        """The stand-ins made so far."""
        return [made for _, made in self._by_tensor.values()]

    @property
    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The tensors that have a stand-in, each with it."""
        return list(self._by_tensor.values())

    def before_write(self, tensor: torch.Tensor) -> None:
        """Set the values in the storage of `tensor` aside, and how often it was written to."""
        if tensor.layout != torch.strided:
            return
        if not tensor.is_inference():
            self._aside.versions.setdefault(id(tensor), (tensor, tensor._version))
        storage = tensor.untyped_storage()
        if storage._cdata not in self._aside.values:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._aside.values[storage._cdata] = (whole, whole.clone())

    def before_draw(self, generator: torch.Generator) -> None:
        """Set the state of a random generator aside."""
        if id(generator) not in self._aside.generators:
            self._aside.generators[id(generator)] = (generator, generator.get_state())

    def put_back(self) -> None:
        """Return the values and states that were set aside; what was written to is then as if it had not been."""
        for whole, values in self._aside.values.values():
            whole.copy_(values)
        for tensor, version in reversed(self._aside.versions.values()):  # a view shares its count with its base
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
        for generator, state in self._aside.generators.values():
            generator.set_state(state)


def gradient_hooks(tensor: torch.Tensor) -> list[dict[Any, Any]]:
    """Return what is called with a gradient of `tensor`: before it is added up, and after."""
    return [hooks for name in _GRADIENT_HOOKS if (hooks := getattr(tensor, name))]


_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _parameter(like: nn.Parameter, data: torch.Tensor) -> nn.Parameter:
    """Return a parameter with `data` that is otherwise like another one."""
    # An inference tensor, made under inference_mode, cannot ask for gradients outside of it.
    if type(like) is nn.Parameter and type(data) is torch.Tensor:  # as its constructor does, in half the time
        parameter = torch.Tensor._make_subclass(nn.Parameter, data, like.requires_grad and not data.is_inference())
    else:
        parameter = nn.Parameter(data, requires_grad=like.requires_grad and not data.is_inference())
    if type(like) is not nn.Parameter:
        parameter.__class__ = type(like)
    if like.__dict__:
        parameter.__dict__.update(like.__dict__)
    for name in _GRADIENT_HOOKS:  # the same dicts, which `Swapped` puts back
        if hooks := getattr(like, name):
            setattr(parameter, name, hooks)
    return parameter
