"""Calls of torch.nn's own leaf modules: what the first one booked is booked again for each like it, and nothing runs.

In eval mode and without gradients, what such a module does hangs on its class, a few plain attributes, and the sizes,
strides and dtypes of its tensors and of its one input. A call for which anything else could matter (hooks, a mode that
somebody else entered, autocast, values that are known, a class or function that was patched) runs as it is written.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from torchledger.capture.foresight import Foresight, Made
from torchledger.capture.leaf_rules import RULES, Rule, Unforeseen
from torchledger.capture.recorder import META, Recorder
from torchledger.capture.scopes import Scopes
from torchledger.capture.shapes import Memo, Outline, Output, classify
from torchledger.capture.surroundings import Surroundings, is_of_torch
from torchledger.capture.waiting import Layout, Waiting
from torchledger.record import Allocation, Operation, Shape

_POOL = "kernel_size stride padding ceil_mode"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Class -> the attributes that its forward reads, besides its tensors and the flag `training`.
_ATTRIBUTES: dict[type[nn.Module], str] = {
    **dict.fromkeys(_CONVOLUTIONS, "stride padding dilation groups padding_mode"),
    nn.Linear: "",
    **dict.fromkeys(_BATCH_NORMS, "track_running_stats momentum eps"),
    nn.LayerNorm: "normalized_shape eps",
    nn.GroupNorm: "num_groups eps",
    **dict.fromkeys((nn.ReLU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid), "inplace"),
    nn.ReLU6: "inplace min_val max_val",
    nn.ELU: "alpha inplace",
    nn.LeakyReLU: "negative_slope inplace",
    nn.GELU: "approximate",
    **dict.fromkeys((nn.Sigmoid, nn.Tanh, nn.Identity), ""),
    nn.Softmax: "dim",
    nn.Dropout: "p inplace",
    nn.Flatten: "start_dim end_dim",
    nn.MaxPool2d: f"{_POOL} dilation return_indices",
    nn.AvgPool2d: f"{_POOL} count_include_pad divisor_override",
    nn.AdaptiveAvgPool2d: "output_size",
}
# Class -> the names of its parameters and of its buffers: rules take their tensors in this order.
_WEIGHTED: tuple[type[nn.Module], ...] = (*_CONVOLUTIONS, nn.Linear, *_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
_WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {kind: ("weight", "bias") for kind in _WEIGHTED}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_BUFFERS: dict[type[nn.Module], tuple[str, ...]] = {kind: _STATISTICS for kind in _BATCH_NORMS}
# What a forward calls of its own class.
_METHODS: dict[type[nn.Module], tuple[str, ...]] = {kind: ("_conv_forward",) for kind in _CONVOLUTIONS}
_METHODS |= {kind: ("_check_input_dim",) for kind in _BATCH_NORMS}
_FIRST = "_forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks _parameters _buffers training".split()
_own_hooks = operator.itemgetter(*_FIRST[:4])


class _Kind(NamedTuple):
    """What is worth knowing of a class of layers: see above."""

    read: Callable[[dict[str, Any]], tuple[Any, ...]]  # takes `_FIRST` and the attributes out of a module's dict
    weights: tuple[str, ...]
    buffers: tuple[str, ...]
    hidden_by: tuple[str, ...]  # names that, in a module's dict, stand before what its class or state has
    forward: Any  # as torch has it
    rule: Rule | None


_KINDS = {
    kind: _Kind(
        operator.itemgetter(*_FIRST, *names.split()),
        weights := _WEIGHTS.get(kind, ()),
        buffers := _BUFFERS.get(kind, ()),
        ("forward", "_call_impl", *_METHODS.get(kind, ()), *weights, *buffers),
        kind.forward,
        RULES.get(kind),
    )
    for kind, names in _ATTRIBUTES.items()
}
# As torch has them, before anybody patches it; each call asks for the `forward` of its own class.
_OWN_METHODS = [(kind, name, getattr(kind, name)) for kind, names in _METHODS.items() for name in names]
_TENSORS = (torch.Tensor, nn.Parameter)
_END: Any = object()  # of a Sequential's modules
_MODULE: Any = nn.Module
_CALL, _OUTER_CALL = _MODULE._call_impl, _MODULE.__call__
_is_closed = torch._C._is_torch_function_all_disabled  # the front door
_IN_TURN: Any = nn.Sequential.forward
_ONE_BY_ONE: Any = nn.Sequential.__iter__
_OF_TORCH = (_CALL, _OUTER_CALL, _IN_TURN, _ONE_BY_ONE, *(own for *_, own in _OWN_METHODS))
_WAS_UNPATCHED = all(map(is_of_torch, (*_OF_TORCH, *(kind.forward for kind in _ATTRIBUTES))))
_CODE = getattr(_CALL, "__code__", None)
_call_as_written: Any = types.FunctionType(_CODE, _CALL.__globals__) if _WAS_UNPATCHED and _CODE is not None else _CALL


def _asking(self: nn.Module, *args: Any, _torchledger_answers_this_call: Any, **kwargs: Any) -> Any:
    """Ask what is given by that long name, which no keyword of a module has, what a call returns.

    While a run lasts, this is the code of nn.Module's own `_call_impl`: no name of this file is known to it. To set the
    attribute of the class in its place would have Python forget where the methods of all its subclasses are.
    """
    return _torchledger_answers_this_call(self, args, kwargs)


class Done(NamedTuple):
    """What a call books, and what it returns: the input itself, a view of it, or (source None) a fresh tensor."""

    operations: tuple[Operation, ...]
    storages: tuple[Made, ...]
    output: Output
    layout: Layout  # of the output
    writes: int  # how often it writes to its input, as autograd counts
    given: tuple[Shape]
    returned: tuple[Shape]


# What a module holds. What tells, with its input, all that a call of it does; the values of its attributes; the layouts
# of its tensors; the storages of those that do not wait for their twins; the places of parameters that wait.
Held = tuple[tuple[Any, ...], tuple[Any, ...], tuple[Layout | None, ...], Sequence[int], Sequence[int]]


class Flow:
    """What flows from one layer to the next: a tensor, or what one would be that nobody looks at.

    `allocation` is that of the storage that a layer made of `base`, `offset` elements into which it lies, and of which
    there is no tensor yet; None: `tensor` is there.
    """

    __slots__ = ("allocation", "base", "layout", "offset", "tensor", "writes")
    allocation: Allocation | None
    base: Output  # this, and the offset, where there is no tensor
    offset: int
    writes: int  # to the storage of which there is no tensor yet, as autograd counts

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor: torch.Tensor | None = tensor
        self.layout: Layout = (tensor.shape, tensor.stride(), tensor.dtype)
        self.allocation = None


class Leaves:
    """Answers the calls of a model's leaf modules while a run on meta lasts: a context.

    A Sequential of them is gone through without a tensor between one and the next.
    """

    def __init__(self, recorder: Recorder, scopes: Scopes, memo: Memo, around: Surroundings) -> None:
        self._recorder = recorder
        self._scopes = scopes
        self._memo = memo
        self._calls: dict[Any, Done] = memo.calls
        self._answers = False
        self._called_as_usual: set[type] = set()  # classes that have no way of their own to be called
        self._around = around
        self._is_patching = not recorder.is_real and _is_unpatched()

    def __enter__(self) -> Leaves:
        if self._is_patching:
            self._around.begin()
            self._answers = self._around.may_answer
            # Before the code, and put back after it: other threads may call modules.
            _CALL.__kwdefaults__ = {"_torchledger_answers_this_call": self._call}
            _CALL.__code__ = _asking.__code__
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_patching:
            _CALL.__code__ = _CODE
            _CALL.__kwdefaults__ = None
            if _MODULE._call_impl is not _CALL:  # forward has put another in its place
                _MODULE._call_impl = _CALL

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], may_answer: bool = True) -> Any:
        """Return what a call returns, without running it where that can be told.

        It runs as torch runs it, but straight where the only hooks are those of the scopes, which torch is slow with.
        All in one function: each takes room on Python's stack, in which modules nest.
        """
        if (
            may_answer
            and self._answers
            and type(module) in _KINDS
            and not kwargs
            and len(args) == 1
            and not _is_closed()
        ):
            return self._answer(module, args[0])
        if (
            len(torch_module._global_forward_hooks) != 1
            or len(torch_module._global_forward_pre_hooks) != 1
            or torch_module._global_backward_hooks
            or torch_module._global_backward_pre_hooks
            or any(_own_hooks(module.__dict__))
            or torch._C._get_tracing_state()
        ):
            return _call_as_written(module, *args, **kwargs)
        self._scopes.enter(module, args)
        try:
            if self._answers and len(args) == 1 and not kwargs and _is_sequential(module) and not _is_closed():
                returned = self._in_turn(module, args[0])
            else:
                returned = module.forward(*args, **kwargs)
        except Exception:
            self._scopes.leave(module, args, None)
            raise
        self._scopes.leave(module, args, kwargs, returned)
        return returned

    def _answer(self, module: nn.Module, x: Any) -> Any:
        """Return what a leaf returns, without running it where that can be told."""
        held = done = None
        with torch._C.DisableTorchFunction():  # asking a tensor for its shape would go through the front door
            if self._is_plain(x):
                held = self._held_by(module)
                if held is not None:
                    flow = Flow(x)
                    done = self._known(module, held, flow.layout)
                    if done is not None and not self._memo.is_checked:
                        self._book(module, held, done, flow)
                        return self._tensor_of(flow)
        if held is None or not _is_hashable(held[0]):
            return self._call(module, (x,), {}, may_answer=False)
        returned, does = self._watched(module, x, held)
        if done is not None and does != done:
            raise AssertionError(f"{type(module).__name__}: the memo has {done}, a call does {does}")
        return returned

    def _in_turn(self, sequential: nn.Module, x: Any) -> Any:
        """Return what the modules of a Sequential make of `x` one after the other."""
        modules: Iterator[Any] = iter(sequential._modules.values())
        module = next(modules, _END)
        while module is not _END:
            if type(module) in _KINDS and not self._memo.is_checked:
                with torch._C.DisableTorchFunction():
                    if self._is_plain(x):
                        flow = Flow(x)
                        x = None  # what is made of it may outlive it
                        while type(module) in _KINDS and self._passes(module, flow):
                            module = next(modules, _END)
                        x = self._tensor_of(flow)
                        del flow
                if module is _END:
                    break
            x = module(x)
            module = next(modules, _END)
        return x

    def _passes(self, module: nn.Module, flow: Flow) -> bool:
        """Book what a layer makes of what flows, where that can be told; return whether."""
        cls: Any = type(module)
        if cls not in self._called_as_usual:
            if cls.__call__ is not _OUTER_CALL or cls._call_impl is not _CALL:
                return False
            self._called_as_usual.add(cls)
        held = self._held_by(module)
        done = None if held is None else self._known(module, held, flow.layout)
        if held is None or done is None:
            return False
        self._book(module, held, done, flow)
        return True

    def _is_plain(self, x: Any) -> bool:
        """Whether nothing but a layer and the sizes of its input `x` tells what it does with that."""
        return (
            type(x) is torch.Tensor
            and self._around.are_plain(in_front_door=False)
            and x.is_meta
            and x.layout is torch.strided
            and x.dtype.is_floating_point
            and not x.is_neg()
            and not x.is_inference()
            and not x.requires_grad  # by which some functions go, also where no gradients are recorded
            and self._recorder.is_plain(x.untyped_storage()._cdata)
        )

    def _known(self, module: nn.Module, held: Held, layout: Layout) -> Done | None:
        """Return what a call does: remembered, or by rule; None where neither tells."""
        key = layout, held[0]
        try:
            done = self._calls.get(key)
        except TypeError:  # a list for a tuple, which has no hash
            return None
        return done or self._foreseen(module, held, layout, key)

    def _held_by(self, module: nn.Module) -> Held | None:
        """Return what a module holds now; None where its call must run."""
        cls, attributes = type(module), module.__dict__
        read, weights, statistics, hidden_by, forward, _ = _KINDS[cls]
        try:
            found = read(attributes)
        except KeyError:
            return None
        # Hooks before forward and after, before backward and after, as `_FIRST` has them.
        if found[0] or found[1] or found[2] or found[3] or found[6] is not False or cls.forward is not forward:
            return None  # in train mode statistics change and elements are drawn
        if module._compiled_call_impl is not None:
            return None
        for name in hidden_by:
            if name in attributes:
                return None
        parameters, buffers, values = found[4], found[5], found[7:]
        if cls in _CONVOLUTIONS and values[-1] != "zeros":
            return None  # another padding is by an attribute that follows from `padding` when the layer is made
        if not parameters and not buffers:
            return None if weights else ((cls, values, (*map(type, values),)), values, (), (), ())
        if type(parameters) is Waiting and parameters.make is not None and parameters.names == weights:
            layouts = parameters.layouts
            if not buffers:
                key: tuple[Any, ...] = (cls, values, (*map(type, values),), layouts, parameters.trains)
                return None if statistics else (key, values, layouts, (), parameters.places)
            if type(buffers) is Waiting and buffers.make is not None and buffers.names == statistics:
                key = (cls, values, (*map(type, values),), layouts, parameters.trains, buffers.layouts, buffers.trains)
                return key, values, layouts + buffers.layouts, (), parameters.places
        if (*parameters,) != weights or (*buffers,) != statistics:
            return None
        return self._held_in_part((cls, values, (*map(type, values),)), values, (parameters, buffers))

    def _held_in_part(self, key: tuple[Any, ...], values: tuple[Any, ...], states: tuple[Any, ...]) -> Held | None:
        """Return what a module holds that was looked at, or a part of which was."""
        layouts: list[Layout | None] = []
        storages: list[int] = []
        places: list[int] = []
        for state in states:
            if not state:
                continue
            if isinstance(state, Waiting) and state.make is not None:
                key = (*key, state.layouts, state.trains)
                layouts += state.layouts
                places += state.places
                continue
            found = list(state.values())
            if not all(self._is_plain_state(tensor, storages) for tensor in found):
                return None
            laid = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in found)
            layouts += laid
            key = (*key, laid, tuple(t.requires_grad for t in found if t is not None))
        return key, values, tuple(layouts), storages, places

    def _is_plain_state(self, tensor: Any, storages: list[int]) -> bool:
        """Whether a tensor has a storage that is a parameter's or buffer's alone, which goes to `storages`; or none."""
        if tensor is None:
            return True
        if type(tensor) not in _TENSORS or tensor.layout is not torch.strided or tensor.is_neg():
            return False
        storage = tensor.untyped_storage()._cdata
        # A norm's count of batches is known, and is not read in eval mode.
        is_known = tensor.dtype.is_floating_point and self._recorder.knows_any([storage])
        if storage in storages or is_known or not self._recorder.is_state(storage):
            return False
        storages.append(storage)
        return True

    def _foreseen(self, module: nn.Module, held: Held, layout: Layout, key: Any) -> Done | None:
        """Return what a call will do by rule, and remember it; None where no rule tells."""
        rule = _KINDS[type(module)].rule
        _, values, layouts, *_ = held
        if rule is None or not _are_plain(values):
            return None
        x = Outline(*layout)
        ahead = Foresight(self._recorder)
        try:
            returned = rule(ahead.run, values, x, *[None if of is None else Outline(*of) for of in layouts])
        except Unforeseen:
            return None
        except Exception:
            if self._memo.is_checked:
                raise
            return None  # of attributes of another sort than the rule knows: torch shall say what is wrong, if it is
        source = 0 if returned is x or returned.root is x else None
        laid = returned.shape, returned.strides, returned.dtype
        offset = 0 if source is None else returned.offset
        output = Output(source, returned is x, returned.shape, returned.strides, returned.dtype, offset)
        given, shapes = (tuple(x.shape),), (tuple(returned.shape),)
        writes = int(returned is x and bool(ahead.operations))
        done = Done(tuple(ahead.operations), tuple(ahead.storages), output, laid, writes, given, shapes)
        self._memo.put_call(key, done)
        return done

    def _book(self, module: nn.Module, held: Held, done: Done, flow: Flow) -> None:
        """Book a call that does not run, and have `flow` be what it returns."""
        recorder = self._recorder
        record = recorder.record
        start = len(record.entries.operations)
        operations, storages, output, layout, writes, given, returned = done
        call = self._scopes.answered(module, start, given, returned)
        recorder.book_again(operations, call)
        _, _, _, seen, waiting = held
        if seen:
            recorder.routes.touched.update(seen)
        if waiting:
            recorder.routes.used.update(waiting)
        if flow.tensor is None:
            flow.writes += writes
        else:
            for _ in range(writes):
                torch._C._increment_version([flow.tensor])
        before = flow.allocation
        for size_of, born, died in storages:
            allocation = Allocation(size_of, start + born, None if died is None else start + died, "activation")
            record.allocations.latest.append(allocation)
            if died is None:
                flow.allocation = allocation
        if output.source is None:
            if before is not None:  # nothing holds it any more
                before.died = start + len(operations)
            flow.base, flow.offset, flow.tensor, flow.writes = output, 0, None, 0
        elif not output.is_argument:
            if flow.tensor is None:
                flow.offset += output.offset
            else:
                x = flow.tensor
                with torch._C._DisableTorchDispatch():  # making it is no operation
                    flow.tensor = torch.as_strided(x, output.size, output.stride, x.storage_offset() + output.offset)
        flow.layout = layout

    def _tensor_of(self, flow: Flow) -> torch.Tensor | None:
        """Return the tensor that flows, made now where there is none of what the last layers have made."""
        allocation = flow.allocation
        if allocation is None:
            return flow.tensor
        base = flow.base
        with torch._C._DisableTorchDispatch():  # making it is no operation
            tensor = torch.empty_strided(base.size, base.stride, dtype=base.dtype, device=META)
            self._recorder.watch(tensor.untyped_storage(), allocation)
            for _ in range(flow.writes):
                torch._C._increment_version([tensor])
            size, stride, _ = flow.layout
            if flow.offset or size != base.size or stride != base.stride:
                tensor = torch.as_strided(tensor, size, stride, flow.offset)
        return tensor

    def _watched(self, module: nn.Module, x: torch.Tensor, held: Held) -> tuple[Any, Done | None]:
        """Run a call as it is written, and remember it where it can be replayed."""
        key = (x.shape, x.stride(), x.dtype), held[0]
        recorder, record = self._recorder, self._recorder.record
        entries, calls, allocations = len(record.entries), len(record.calls), len(record.allocations.latest)
        remarks = len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place)
        version = x._version
        returned = self._call(module, (x,), {}, may_answer=False)
        with torch._C.DisableTorchFunction():
            is_plain = (
                type(returned) is torch.Tensor
                and recorder.replays_calls
                and recorder.is_plain(returned.untyped_storage()._cdata)
                and remarks == (len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place))
                and len(record.calls) == calls + 1
            )
            done = _done(x, returned, recorder, entries, calls, allocations, x._version - version) if is_plain else None
        if done is not None and _are_plain(held[1]):
            self._memo.put_call(key, done)
        return returned, done


def _done(
    x: torch.Tensor, returned: torch.Tensor, recorder: Recorder, entries: int, call: int, allocations: int, writes: int
) -> Done | None:
    """Return what has just been booked; None where a replay would not make the same."""
    record = recorder.record
    booked = record.entries[entries:]
    operations = tuple(record.operations[entry.operation] for entry in booked)
    if any(entry.call != call or entry.phase != "forward" for entry in booked):
        return None
    if not all(recorder.is_remembered(operation) for operation in operations):
        return None
    made = record.allocations.latest[allocations:]
    alive = [allocation for allocation in made if allocation.died is None]
    (output,), can_replay = classify([returned], [x])
    if not can_replay or any(allocation.kind != "activation" for allocation in made):
        return None
    if output.source is None:
        size = returned.numel() * returned.element_size()
        if [allocation.bytes for allocation in alive] != [size] or returned.storage_offset() or returned.is_neg():
            return None
    elif alive:
        return None
    storages = tuple(
        Made(one.bytes, one.born - entries, None if one.died is None else one.died - entries) for one in made
    )
    layout = returned.shape, returned.stride(), returned.dtype
    return Done(operations, storages, output, layout, writes, (tuple(x.shape),), (tuple(returned.shape),))


def _are_plain(values: tuple[Any, ...]) -> bool:
    """Whether values are numbers, texts and tuples of such, and no objects of the user's to keep."""
    for value in values:
        kind = type(value)
        if kind not in _PLAIN and (kind is not tuple or not _PLAIN.issuperset(map(type, value))):
            return False
    return True


_PLAIN = frozenset({int, float, bool, str, type(None)})


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _is_sequential(module: nn.Module) -> bool:
    """Whether forward calls one module after the other, as nn.Sequential has it."""
    kind: Any = type(module)  # of a script, whose class has no forward
    is_one = getattr(kind, "forward", None) is _IN_TURN and getattr(kind, "__iter__", None) is _ONE_BY_ONE
    return is_one and "forward" not in module.__dict__


def _is_unpatched() -> bool:
    """Whether the classes at work are torch's own: somebody may have put other methods in their place."""
    if not _WAS_UNPATCHED or _MODULE._call_impl is not _CALL or _MODULE.__call__ is not _OUTER_CALL:
        return False
    if _CALL.__code__ is not _CODE or _CALL.__kwdefaults__:
        return False
    return all(getattr(kind, name) is method for kind, name, method in _OWN_METHODS)
