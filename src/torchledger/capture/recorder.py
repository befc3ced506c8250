"""The dispatch mode: one entry for each operation that runs, and the birth and death of each storage."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from torchledger.capture import dependent
from torchledger.capture.autocast import shielded
from torchledger.capture.checks import CHECKS
from torchledger.capture.corrections import CORRECTIONS
from torchledger.capture.failures import note
from torchledger.capture.known import Known, follow, scalar
from torchledger.capture.leaf_rules import Unforeseen
from torchledger.capture.operations import (
    KINDS,
    NO_OPERATION,
    Kind,
    arguments_of,
    flatten,
    identity,
    keyed,
    learn,
    operation_of,
    outlined,
    outlined_operation,
    sharing,
    storages_of,
    tensor_info,
    unpacked,
)
from torchledger.capture.routing import Routes, choice_of
from torchledger.capture.scopes import Scopes
from torchledger.capture.shape_rules import RULES, corrects
from torchledger.capture.shapes import Holes, Memo, Nothing, Outline, Output, Template, classify
from torchledger.capture.twins import Copies, Twins
from torchledger.capture.waiting import Waiting
from torchledger.inputs import mapped, tensors_in
from torchledger.record import TABLES, Allocation, Operation, Phase, Record, StateStorages, StorageKind, TensorInfo

META, CPU = torch.device("meta"), torch.device("cpu")
_EMPTY = torch.ops.aten.empty.memory_format
_DETACH = torch.ops.aten.detach.default
_DTYPES = {int: torch.int64, bool: torch.bool}  # of numbers that a dtype is not said of
_BY_ADDRESS = (_EMPTY, torch.ops.aten._to_copy.default)  # what C++ makes on the CPU to go to its memory itself


def kind_of(func: Any) -> Kind:
    """Return what is worth knowing of an overload."""
    return KINDS.get(id(func)) or learn(func, RULES.get(func))


def _from_python() -> bool:
    """Whether the operation that is being handled was called by Python, where it went by the function mode."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith("torchledger.capture.")


_WRITES = frozenset({"add", "sub", "index_put", "index_add", "scatter", "scatter_add", "masked_scatter", "put"})


def _is_in_place(name: str, given: list[torch.Tensor]) -> bool:
    """Whether a device does in place what autograd does out of place on meta, and under any mode.

    There it takes tensors for subclasses. Else it adds one gradient to another in its storage, where nothing else has
    that (torch/csrc/autograd/input_buffer.cpp); the backward of picking writes into the zeros that it made, and that of
    binary_cross_entropy_with_logits into its sigmoid (FunctionsManual.cpp, Loss.cpp).
    """
    if torch.is_grad_enabled() or not given or not _called_by_engine():
        return False
    if name in ("add", "sub") and (len(given) != 2 or given[0].shape != given[1].shape):
        return False
    if name == "sub":
        node = torch._C._current_autograd_node()
        return node is not None and node.name().startswith("BinaryCrossEntropyWithLogits")
    storage = given[0].untyped_storage()
    is_dense = storage.nbytes() == given[0].numel() * given[0].element_size()
    return is_dense and torch._C._storage_Use_Count(storage._cdata) == 2  # the tensor's own, and Python's for `storage`


def _called_by_engine() -> bool:
    """Whether autograd's engine called the operation that is being booked, and no backward written in Python."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("torchledger.capture."):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


@dataclass(frozen=True, slots=True)
class FailedOperation:
    """An operation that raised: its canonical name, tensors and other arguments by name, the running call."""

    name: str
    inputs: tuple[TensorInfo, ...]
    arguments: dict[str, object]
    call: int


class _Life(weakref.ref[torch.UntypedStorage]):
    """A storage's weak reference that knows its allocation."""

    __slots__ = ("allocation", "record", "storage")
    allocation: Allocation | None
    record: Record
    storage: int


def _leave(life: _Life) -> None:
    """Take no note of a storage's death: the run is over."""


class Recorder(TorchDispatchMode):
    """Book every operation of one run into `record`.

    With twins, the run is on meta: real tensors are replaced as they come up, factories make meta tensors, and a
    known operation is replayed from `memo`. With copies, every kernel runs on the tensors as they are.
    """

    def __init__(
        self,
        record: Record,
        scopes: Scopes,
        stand_ins: Twins | Copies,
        memo: Memo | None,
        synchronize: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: list[float] = []  # an entry, when `synchronize` (which waits for the device) was given
        self._synchronize = synchronize
        self._spent = 0.0
        self.record = record
        self.scopes = scopes
        # TorchScript keeps of an error its class alone: the last one of an operation, where the model has scripts.
        self.is_scripted = False
        self.failure: BaseException | None = None
        # As the front door last saw it: autocast is on; it is on, and is not modelled.
        self.autocast = self.keeps_dtypes = False
        self._stand_ins = stand_ins
        self._twins = stand_ins if isinstance(stand_ins, Twins) else None
        self._copies = stand_ins if isinstance(stand_ins, Copies) else None
        self._memo = memo
        self._may_replay = memo is not None and self._twins is not None and synchronize is None
        self._paused = False
        self.places: dict[Any, int] = {}  # id of an operation (held there), or its key -> place in record.operations
        self._lives: dict[int, _Life] = {}  # by address: the storages alive that are accounted for
        self._on_death: Callable[[_Life], None] = self._died  # bound once
        self._protected: set[int] = set()  # those that a real run must set aside before it writes to them
        self.saw_foreign = False  # a tensor that no operation seen here made
        self.known = Known()
        self.routes = Routes()
        self.phase: Phase = "forward"
        self._silent = False
        # What holds tensors of the user's that have no stand-in yet, and their storages; once one of them gets it,
        # by id of the tensor: storages, and its place among them.
        self._awaited: list[tuple[list[Waiting], StateStorages]] = []
        self._expected: dict[int, tuple[StateStorages, int]] = {}
        self.script_reads_lists = False  # x.tolist() in TorchScript: a copy on the CPU is read
        self.wholes: Mapping[Any, Callable[..., Any]] = {}  # by overload: what books it as one operation

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch's default wraps the handler so as to keep dynamo out, and imports it for that: over a second.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if types and any(kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # the subclass goes first: what it is made of comes here again
        with torch._C.DisableTorchFunction():
            if not self.autocast or self._twins is None or self._comes_apart(kind_of(func)):
                return self._handle(func, args, kwargs or {})
            with shielded():
                return self._handle(func, args, kwargs or {})

    # --- storages ----------------------------------------------------------------------------------------------------

    def born(
        self,
        tensor: torch.Tensor,
        kind: StorageKind = "activation",
        owner: int | None = None,
        from_start: bool = False,
    ) -> None:
        """Book the storage of `tensor` as alive from now on, or from the start; `owner` as in `Allocation`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._lives:
            if kind in ("parameter", "constant"):
                self._protected.add(storage._cdata)
            born = 0 if from_start else len(self.record.entries.operations)
            allocation = Allocation(storage.nbytes(), born, None, kind, owner)
            self.record.allocations.append(allocation)
            self.watch(storage, allocation)

    def expect(self, holders: list[Waiting], storages: StateStorages) -> None:
        """Book the storages of tensors that have no stand-ins yet, and may never get one, as alive from the start."""
        self.record.allocations.hold(storages)
        self._awaited.append((holders, storages))

    def arrived(self, tensor: torch.Tensor, stand_in: torch.Tensor) -> None:
        """Know the stand-in of a tensor that waited for one."""
        for holders, storages in self._awaited:
            held = (one for holder in holders for one in holder.real.values() if one is not None)
            self._expected.update((id(one), (storages, place)) for place, one in enumerate(held))
        self._awaited.clear()
        found = self._expected.pop(id(tensor), None)
        if found is None:  # no module of the model's holds it
            self.know([stand_in])
        else:
            storages, place = found
            allocation = storages.look_at(place)
            self.watch(stand_in.untyped_storage(), allocation)
            self.routes.own(stand_in, allocation.owner if allocation.kind == "parameter" else None)

    def keeps(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a tensor of no elements whose life is that of what the last operation, of `given`, keeps."""
        with self.paused():
            token = torch.empty(0, device=META)
        if self._silent:
            return token
        allocation = Allocation(0, len(self.record.entries) - 1, None, "kernel", len(set(storages_of(list(given)))))
        self.record.allocations.append(allocation)
        self.watch(token.untyped_storage(), allocation)
        return token

    def owner_of(self, tensor: torch.Tensor) -> int | None:
        """Return the place of a parameter among the record's, by the storage that it has."""
        if tensor.layout != torch.strided:
            return None
        allocation = self.allocation(tensor.untyped_storage()._cdata)
        return allocation.owner if allocation is not None else None

    def allocation(self, storage: int) -> Allocation | None:
        """Return the allocation of a storage that is alive and booked."""
        life = self._lives.get(storage)
        return None if life is None else life.allocation

    def inherit(self, tensors: Iterable[torch.Tensor], kind: StorageKind, owner: int | None) -> None:
        """Book the storages of `tensors`, such as the optimizer's state, as alive from the start."""
        for tensor in tensors:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                allocation = self.allocation(storage._cdata)
                if allocation is None:
                    allocation = Allocation(storage.nbytes(), 0, None, kind)
                    self.record.allocations.append(allocation)
                    self.watch(storage, allocation)
                allocation.born, allocation.kind, allocation.owner = 0, kind, owner

    def is_gradient(self, parameter: torch.Tensor) -> None:
        """Take the storage of the parameter's gradient for one."""
        tensor = parameter.grad
        if tensor is not None and tensor.layout == torch.strided:
            allocation = self.allocation(tensor.untyped_storage()._cdata)
            if allocation is not None and allocation.kind == "activation":
                allocation.kind, allocation.owner = "gradient", self.owner_of(parameter)

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take the storages of `tensors` as accounted for, without booking them."""
        for tensor in tensors:
            if tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._lives:
                    self.watch(storage, None)

    def watch(self, storage: torch.UntypedStorage, allocation: Allocation | None) -> None:
        """Know a storage by its address until it dies: the next one may get the same."""
        address = storage._cdata
        life = _Life(storage, self._on_death)
        life.allocation = allocation
        life.record = self.record  # another one while the run steps aside
        life.storage = address
        self._lives[address] = life

    def _died(self, life: _Life) -> None:
        storage = life.storage
        if life.allocation is not None:
            life.allocation.died = len(life.record.entries.operations)
        self._lives.pop(storage, None)
        if storage in self.known.storages:
            self.known.drop(storage)
        if self._protected:
            self._protected.discard(storage)
        if self.routes.is_on:
            self.routes.forget(storage)

    @property
    def replays_calls(self) -> bool:
        """Whether a module's call may be answered from an earlier one, as far as this mode goes."""
        return self._may_replay and not (
            self._paused or self._silent or self.autocast or self.keeps_dtypes or self.routes.is_on
        )

    def is_plain(self, storage: int) -> bool:
        """Whether a storage is one of this run's own results or inputs, of which no values are known."""
        life = self._lives.get(storage)
        if life is None or life.allocation is None or storage in self.known.storages:
            return False
        return life.allocation.kind in ("activation", "input")

    def is_unknown(self, storage: int) -> bool:
        """Whether a storage is accounted for, and nothing is known of its values."""
        return storage in self._lives and storage not in self.known.storages

    def is_state(self, storage: int) -> bool:
        """Whether a storage is that of a parameter or a buffer."""
        allocation = self.allocation(storage)
        return allocation is not None and allocation.kind in ("parameter", "buffer")

    def knows_any(self, storages: Iterable[int]) -> bool:
        """Whether the values of one of these storages are known."""
        return not self.known.storages.isdisjoint(storages)

    def is_remembered(self, operation: Operation) -> bool:
        """Whether an operation of this record is the memo's own."""
        return id(operation) in self.places

    def close(self) -> None:
        """Stop listening to storages: what is alive now outlived the run."""
        self._lives.clear()
        self._on_death = _leave  # the other one leads back here

    @contextmanager
    def aside(self) -> Iterator[Record]:
        """Book what runs into a record of its own."""
        record = Record(self.record.model, self.record.mode, self.record.batch, self.record.torch_version)
        before, self.record, places, self.places = self.record, record, self.places, {}
        try:
            yield record
        finally:
            self.record, self.places = before, places

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Run operations with all that belongs to a run, but without booking them or their storages."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    # --- operations --------------------------------------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operations without booking them."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def is_paused(self) -> bool:
        """Whether what runs now is not booked."""
        return self._paused

    @property
    def is_real(self) -> bool:
        """Whether every kernel runs, on the tensors as they are."""
        return self._twins is None

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor that stands for `tensor` in this run."""
        # The user's own comes up where a list in a scripted module holds it.
        tensor = self._stand_ins.instead_of(tensor)
        if tensor.is_meta or self._twins is None:
            return tensor
        with _disable_current_modes():  # making a twin is no operation
            return self._twin(tensor)

    def has_stand_in(self, tensor: torch.Tensor) -> bool:
        """Whether the run on meta has met the storage of `tensor`, which is real."""
        return self._twins is not None and not tensor.is_meta and self._twins.has_met(tensor)

    def values_of(self, tensor: torch.Tensor, relies: bool = True, to_write: bool = False) -> torch.Tensor | None:
        """Return the values of `tensor`, or None where they are not known. `relies`: the run goes on by them.

        They are what the run itself knows them by: who gets them `to_write` writes to that.
        """
        tensor = self.stand_in(tensor)
        if self._twins is None:
            return tensor
        with _disable_current_modes():
            value = self.known.value(tensor, to_write)
        if value is not None and relies:
            self.known.rely_on([tensor])
            if self.routes.is_on:
                self.routes.read(self.record.calls, self.scopes.current, tensor)
        return value

    def known_item(self, tensor: torch.Tensor) -> Any:
        """Return the number in a tensor of this run with one element; None where it is not known, or takes more."""
        if self._twins is None or self._paused or not tensor.is_meta or tensor.layout is not torch.strided:
            return None
        if tensor.numel() != 1 or tensor.requires_grad:
            return None
        with torch._C._DisableTorchDispatch():
            value = self.known.value(tensor)
            number = None if value is None else value.item()
        if value is not None:
            self.known.rely_on([tensor])
            if self.routes.is_on:
                self.routes.read(self.record.calls, self.scopes.current, tensor)
        return number

    def constant(self, value: float, dtype: torch.dtype | None) -> torch.Tensor | None:
        """Return a scalar whose value is known, as `torch.tensor` would make it; None where more than that happens."""
        if self._twins is None or self._paused or self.routes.is_on:
            return None
        if torch._C._functorch.peek_interpreter_stack() is not None:  # what a transform makes is none of this run's
            return None
        if dtype is None:
            dtype = torch.get_default_dtype() if type(value) is float else _DTYPES[type(value)]
        with torch._C._DisableTorchDispatch():
            try:
                real = scalar(value, dtype)
            except (RuntimeError, OverflowError):  # torch shall say what is wrong
                return None
            twin = torch.empty_strided((), (), dtype=dtype, device=META)
        self.known.put(twin, real)
        if self._silent:
            self.know([twin])
        else:
            self.born(twin, "constant")
        return twin

    def whole(
        self, name: str, tensors: list[torch.Tensor], arguments: dict[str, object], run: Callable[[], Any]
    ) -> list[torch.Tensor]:
        """Book what `run` does as one operation `name`, whatever it is made of, and return the tensors it returns.

        `arguments` has references to `tensors` by name, and numbers.
        """
        returned: list[torch.Tensor] = []
        with torch._C.DisableTorchFunction():  # in a backward each question to a tensor would go by the front door
            key = (name, *((k, v.__class__, v) for k, v in arguments.items()), *keyed(tensors))
            template = self._memo.get(key) if self._memo is not None else None
            if template is not None:
                with self.paused():
                    returned = template.replay(tensors)
        if template is None:
            try:
                with self.paused():
                    returned = tensors_in(self._timed(run))
            except Exception as error:
                self._failed(error, name, tensors, arguments)
                raise
            outputs, can_replay = classify(returned, tensors)
            template = Template(operation_of(name, arguments, tensors, outputs), outputs, tuple)
            if self._memo is not None and can_replay:
                self._memo.put(key, template)
        with torch._C.DisableTorchFunction():
            for output in template.outputs:
                if output.source is not None:  # written in place
                    self.known.drop(tensors[output.source].untyped_storage()._cdata)
            self._book(template.operation, template.outputs, returned, tensors)
        return returned

    def _handle(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = kind_of(func)
        if kind.name is None and args:
            if is_lazy(args[0]):
                return func(*args, **kwargs)  # the .data of a lazy parameter, which has no shape yet
            if func is _DETACH and self._is_own(args[0]):
                # Autograd takes apart what it saves. A view made from above it would hold its base, in a circle.
                return func(*args)
        if kind.composite and not self._paused:
            # Only inference mode lets these through whole; what they are made of is what the other modes run.
            book = self.wholes.get(func)
            with self:
                result = func.decompose(*args, **kwargs) if book is None else book(self, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        if self._paused or self._twins is None:
            if self._twins is not None:
                args, kwargs = self._on_meta(kind, args, kwargs)
            else:
                self._guard(kind, args, kwargs)
            return func(*args, **kwargs) if self._paused else self._run(func, kind, args, kwargs, None)
        if self._silent and kind.only_writes and self._changes_nothing(args):
            return None
        tensors: list[torch.Tensor] = []
        storages: list[int] = []
        key: list[Any] = [kind, torch.get_default_dtype()]
        is_meta = flatten(args, tensors, storages, key)
        if kwargs:
            key.extend(kwargs)
            is_meta &= flatten(kwargs.values(), tensors, storages, key)
        if not is_meta:
            args, kwargs = self._on_meta(kind, args, kwargs)
            return self._handle(func, args, kwargs)
        if kind.takes_device:
            if func in _BY_ADDRESS and kwargs.get("device") == CPU and not _from_python():
                if func is _EMPTY:
                    return func(*args, **kwargs)  # and fills it, as TorchScript does for torch.tensor([1, 2])
                if self.script_reads_lists:
                    return self._out(args[0])
            if func is _EMPTY and args[0] == [0]:  # a batch norm's placeholder, which is not booked
                placeholder = torch.empty_strided((0,), (1,), dtype=kwargs.get("dtype"), device=META)
                self.know([placeholder])
                return placeholder
            args, kwargs = _with_device(kind, args, kwargs)
        lives = self._lives
        if any([storage not in lives for storage in storages]):
            # A constant from before the run; or, where other threads are about, what one of them has just made.
            is_index = kind.name is not None and kind.name.startswith("index")  # torch makes x[[0, 1]]'s index unseen
            self.saw_foreign |= threading.active_count() > 1 and not is_index
            self.know(tensors)
        if kind.needs_values and len(storages) == len(tensors):
            kernel = dependent.answer(self.known, func, args, kwargs)
            if kernel is not None:
                return self._run(func, kind, args, kwargs, None, kernel)
        if (
            not kind.can_replay
            or len(storages) < len(tensors)
            or not tensors
            or self._memo is None
            or self.keeps_dtypes
        ):
            return self._run(func, kind, args, kwargs, None)
        if len(tensors) == 2 and storages[0] != storages[1]:
            key.append(None)
        elif len(tensors) > 1:
            key.append(sharing(tensors, storages))
        known = tuple(key)
        template = self._memo.get(known) or self._by_rule(kind, args, kwargs, tensors, known)
        if template is None:
            return self._run(func, kind, args, kwargs, known)
        if self._memo.is_checked and not corrects(func, args):
            return self._check(template, func, kind, args, kwargs, known)
        returned = template.replay(tensors)
        if kind.fills is not None and self._silent and returned[0].dim():
            pass  # an optimizer's new state, which the next step finds written to
        elif kind.fills is not None:
            with contextlib.suppress(RuntimeError):  # a dtype that no kernel fills is not known
                self.known.put_uniform(returned[0], kind.fills)
        elif kind.assumes or not self.known.storages.isdisjoint(storages):
            follow(self.known, func, kind, args, kwargs, tensors, returned)
        if kind.name is not None:
            self._book(template.operation, template.outputs, returned, tensors, storages)
            if kind.chooses:
                self._chose(func, kind, args, kwargs, tensors, returned)
        return returned[0] if template.container is None else template.container(returned)

    def _changes_nothing(self, args: tuple[Any, ...]) -> bool:
        """Whether what lists of tensors among `args` hold is neither there nor known: writing to it changes nothing."""
        tensors = [item for value in args if type(value) in (list, tuple) for item in value]
        tensors = [item for item in tensors if isinstance(item, torch.Tensor)]
        if not all(tensor.is_meta and tensor.layout is torch.strided for tensor in tensors):
            return False
        return self.known.storages.isdisjoint(storages_of(tensors))

    def _is_own(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies on meta in a storage that this run has accounted for."""
        is_plain = tensor.is_meta and tensor.layout is torch.strided
        return is_plain and self._twins is not None and tensor.untyped_storage()._cdata in self._lives

    def foreseen(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Template, list[Outline]]:
        """Return what an operation will do, as a shape rule has it, and which outlines it is given.

        They stand for tensors in storages of their own, or as far as they lie in one, for the same. Raise Unforeseen
        where no rule has an answer.
        """
        kind = kind_of(func)
        rule = kind.rule
        # The rule must answer, also where the memo could: on the way to what it does not know, torch may do more.
        outputs = rule(*args, **kwargs) if rule is not None else None
        if outputs is None or kind.name is None or self._memo is None:
            raise Unforeseen
        outlines: list[Outline] = []
        key: list[Any] = [kind, torch.get_default_dtype()]
        arguments = outlined(kind, args, kwargs, outlines, key)
        if len(outlines) > 1:
            key.append(None)  # as where none share a storage
        known = tuple(key)
        template = self._memo.get(known)
        if template is None:
            operation = outlined_operation(kind.name, arguments, outlines, outputs)
            template = Template(operation, outputs, kind.container(outputs))
            self._memo.put(known, template)
        return template, outlines

    def _comes_apart(self, kind: Kind) -> bool:
        """Whether an operation is booked as what it is made of."""
        return kind.composite and not self._paused

    def _out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a real copy of what is known, for C++ to read."""
        value = self.values_of(tensor)
        if value is None:
            error = RuntimeError("Tensor.item() cannot be called on meta tensors")  # as torch says of one number
            self._failed(error, "tolist", [tensor], {})
            raise error
        with _disable_current_modes():
            return value.clone()

    def _guard(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set aside what an operation of a real run is about to change that is not this run's own."""
        if self._copies is None:
            return
        if isinstance(kwargs.get("generator"), torch.Generator):
            self._copies.before_draw(kwargs["generator"])
        if not kind.writes:
            return
        given = dict(zip(kind.parameters, args, strict=False)) | kwargs
        for tensor in tensors_in([given.get(name) for name in kind.writes]):
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()._cdata
                if storage not in self._lives or storage in self._protected:
                    self._copies.before_write(tensor)

    def _check(
        self, template: Template, func: Any, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any
    ) -> Any:
        """Run the kernel where `template` would have been replayed; raise AssertionError where they differ."""
        assert self._memo is not None
        self._memo.put(key, template._replace(operation=NO_OPERATION))
        try:
            returned = self._run(func, kind, args, kwargs, key)
            found = self._memo.get(key)
        finally:
            self._memo.put(key, template)
        if found is None or (found.outputs, found.container) != (template.outputs, template.container):
            raise AssertionError(f"{func}: the memo has {template}, the kernel makes {found}")
        if identity(found.operation) != identity(template.operation):
            raise AssertionError(f"{func}: the memo has {template.operation}, the kernel books {found.operation}")
        return returned

    def _by_rule(
        self,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        key: Any,
    ) -> Template | None:
        """Return what an operation that the memo does not have does, as a shape rule has it, and remember it.

        None where no rule answers.
        """
        rule = kind.rule
        outputs = rule(*args, **kwargs) if rule is not None else None
        if outputs is None or kind.name is None or self._memo is None:
            return None
        operation = operation_of(kind.name, arguments_of(kind, args, kwargs), tensors, outputs)
        template = Template(operation, outputs, kind.container(outputs))
        self._memo.put(key, template)
        return template

    def _run(
        self,
        func: Any,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any,
        kernel: Callable[[], Any] | None = None,
    ) -> Any:
        """Run the kernel (or `kernel` in its place), book what it did, and remember it under `key` (None: do not)."""
        stated = unpacked(kind, args, kwargs) if kind.packed else None
        given = tensors_in((args, kwargs) if stated is None else stated)
        before = tuple(tensor_info(tensor) for tensor in given) if kind.reshapes else None
        # Under an autocast that is not modelled the real run would cast where this one does not.
        check = CHECKS.get(func) if self._twins is not None and not self.keeps_dtypes else None
        try:
            if check is not None:
                check(*args, **kwargs)
            result = kernel() if kernel is not None else self._timed(func, *args, **kwargs)
            if self._twins is not None and (corrected := CORRECTIONS.get(func)) is not None:
                result = corrected(result, *args, **kwargs)
        except Exception as error:
            self._failed(error, kind.name or str(func), given, arguments_of(kind, args, kwargs))
            raise
        if self._twins is None and "output_mask" in kind.parameters:
            result = _asked_for(kind, args, kwargs, result)
        returned = tensors_in(result)
        container = _container_of(result, returned, kind)
        if self._twins is not None and kernel is None:
            self._follow(func, kind, args, kwargs, given, returned)
        outputs, can_replay = classify(returned, given)
        can_replay &= container is not _UNKNOWN
        # An empty of no elements is BatchNorm's placeholder on some devices.
        is_booked = kind.name is not None and not (kind.name == "empty" and returned and not returned[0].numel())
        operation = NO_OPERATION
        if is_booked:
            arguments = arguments_of(kind, args, kwargs) if stated is None else arguments_of(kind, (), stated)
            operation = operation_of(kind.name or "", arguments, given, outputs, before)
        is_remembered = key is not None and can_replay and self._memo is not None
        if is_remembered:
            self._memo.put(key, Template(operation, outputs, container))  # type: ignore[union-attr]
        if not is_booked:
            self.know(returned)
            if self.routes.is_on and returned:
                self.routes.follow(self.record.calls, self.scopes.current, None, given, returned)
            elif self.routes.is_on and given:  # a number, such as item() returns
                self.routes.read(self.record.calls, self.scopes.current, given[0])
        if is_booked:
            self._book(operation, outputs, returned, given, key=None if is_remembered else identity(operation))
            if kind.chooses:
                self._chose(func, kind, args, kwargs, given, returned)
        return result

    def _chose(
        self,
        func: Any,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        returned: list[torch.Tensor],
    ) -> None:
        """Follow what the entry that was booked last chose, if it did by values of the model's own."""
        if self._silent or self.phase != "forward" or any(t.layout != torch.strided for t in (*tensors, *returned)):
            return
        given = kind.defaults | dict(zip(kind.parameters, args, strict=False)) | kwargs
        packet = func._schema.name.partition("::")[2]
        entry = len(self.record.entries) - 1
        found = choice_of(packet, entry, self.scopes.current, given.get("self"), given.get("dim"), returned)
        if found is not None:
            self.routes.chose(*found, set(self._lives))

    def _follow(
        self,
        func: Any,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        returned: list[torch.Tensor],
    ) -> None:
        """Bring known values up to date, where there are any and the kernel has run."""
        if any(tensor.layout != torch.strided for tensor in (*given, *returned)):
            return
        if not given and all(not tensor.numel() for tensor in returned):
            return  # BatchNorm makes an empty of no elements every time
        if not given or kind.assumes or not self.known.storages.isdisjoint(storages_of(given)):
            follow(self.known, func, kind, args, kwargs, given, returned)

    def _timed(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        if self._synchronize is None:
            return func(*args, **kwargs)
        self._synchronize()
        started = time.perf_counter()
        result = func(*args, **kwargs)
        self._synchronize()
        self._spent = time.perf_counter() - started
        return result

    def _failed(
        self, error: BaseException, name: str, tensors: list[torch.Tensor], arguments: dict[str, object]
    ) -> None:
        infos = tuple(tensor_info(tensor) for tensor in tensors)
        note(error, "operation", FailedOperation(name, infos, arguments, self.scopes.current))
        if self.is_scripted:
            self.failure = error

    def _book(
        self,
        operation: Operation,
        outputs: tuple[Output, ...],
        returned: list[torch.Tensor],
        given: list[torch.Tensor],
        storages: list[int] | None = None,
        key: Any = None,
    ) -> None:
        """Book an entry; `storages` are those of the tensors `given`, where they are at hand."""
        if self._silent:
            self.know(returned)
            return
        entries = self.record.entries
        entry = len(entries.operations)
        if not self.routes.is_on:
            self.routes.touched.update(
                storages_of([t for t in given if t.layout == torch.strided]) if storages is None else storages
            )
        elif self.phase == "forward":
            is_table = operation.name in TABLES
            self.routes.follow(self.record.calls, self.scopes.current, entry, given, returned, is_table)
        for output, tensor in zip(outputs, returned, strict=True):
            if output[0] is None and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._lives:  # as `born` does
                    allocation = Allocation(storage.nbytes(), entry, None, "activation")
                    self.record.allocations.latest.append(allocation)
                    self.watch(storage, allocation)
        call, phase = self.scopes.current, self.phase
        if phase == "backward":
            call = self.scopes.of_backward()
            if operation.name in _WRITES and _is_in_place(operation.name, given):
                self.record.in_place.append(entry)
        place = self.places.get(id(operation) if key is None else key)
        entries.operations.append(self.place_of(operation, key) if place is None else place)
        entries.calls.append(call)
        entries.phases.append(phase)
        if self._synchronize is not None:
            self.seconds.append(self._spent)

    def book_again(self, operations: Sequence[Operation], call: int) -> None:
        """Book entries of operations that an earlier call booked, in this one."""
        places, entries = self.places, self.record.entries
        for operation in operations:
            place = places.get(id(operation))
            entries.operations.append(self.place_of(operation) if place is None else place)
            entries.calls.append(call)
            entries.phases.append("forward")

    def place_of(self, operation: Operation, key: Any = None) -> int:
        key = id(operation) if key is None else key
        place = self.places.get(key)
        if place is None:
            place = self.places[key] = len(self.record.operations)
            self.record.operations.append(operation)
        return place

    # --- to meta -----------------------------------------------------------------------------------------------------

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._twins is None or tensor.is_meta:
            return tensor
        with _disable_current_modes():
            twin, is_new = self._twins.of_passing(tensor)
        if is_new and twin.layout == torch.strided:
            self.known.copy(twin, tensor)
            if self._silent:
                self.know([twin])
            else:
                self.born(twin, "constant")
        return twin

    def _on_meta(
        self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = mapped((args, kwargs), self._twin)
        return _with_device(kind, args, kwargs) if kind.takes_device else (args, kwargs)


def _with_device(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of an operation that takes a device with meta for it."""
    place = kind.parameters.index("device")
    if len(args) > place:
        args = (*args[:place], META, *args[place + 1 :])
    else:
        kwargs = {**kwargs, "device": META}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    return args, kwargs


def _UNKNOWN(_: list[torch.Tensor]) -> Any:
    raise AssertionError


def _container_of(result: Any, returned: list[torch.Tensor], kind: Kind) -> Any:
    """Return what makes an operation's result of the tensors in it, None where it is one, _UNKNOWN for another kind."""
    if isinstance(result, torch.Tensor):
        return None
    if result is None:
        return Nothing() if kind.writes else _UNKNOWN
    if type(result) not in (tuple, list) or not returned:
        return _UNKNOWN
    if len(result) == len(returned):
        return type(result)
    is_there = tuple(isinstance(part, torch.Tensor) for part in result)
    plain = type(result) is tuple and all(part is None or there for part, there in zip(result, is_there, strict=True))
    return Holes(is_there) if plain else _UNKNOWN


def _asked_for(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Return the gradients that `output_mask` asks for: some kernels (mkldnn's convolution) hand out others too."""
    mask = (dict(zip(kind.parameters, args, strict=False)) | kwargs)["output_mask"]
    if not isinstance(result, tuple) or len(result) != len(mask):
        return result
    return tuple(gradient if wants else None for gradient, wants in zip(result, mask, strict=True))
