"""Calls of torch.nn's own leaf modules: what the first one booked is booked again for each like it, and nothing runs.

In eval mode and without gradients, what such a module does hangs on its class, a few plain attributes, and the sizes,
strides and dtypes of its tensors and of its one input. A call for which anything else could matter (hooks, a mode that
somebody else entered, autocast, values that are known, a class or function that was patched) runs as it is written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from torchledger.capture.leaf_rules import RULES, Unforeseen
from torchledger.capture.recorder import META, Recorder
from torchledger.capture.scopes import Scopes
from torchledger.capture.shapes import Memo, Output, classify
from torchledger.capture.waiting import Waiting
from torchledger.record import Allocation, Entry, Operation, Shape

_POOL = "kernel_size stride padding ceil_mode"
# Class -> the attributes that its forward reads, besides its tensors and the flag `training`.
_ATTRIBUTES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "stride padding dilation groups padding_mode"),
    nn.Linear: "in_features",
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), "track_running_stats momentum eps"),
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
_FIRST = "_forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks _parameters _buffers training".split()
_own_hooks = operator.itemgetter(*_FIRST[:4])
_HOOKS, _STATE, _TRAINING = slice(4), slice(4, 6), 6
# Class -> what takes these, and the attributes, out of the dict of a module.
_READ: dict[type[nn.Module], Callable[[dict[str, Any]], tuple[Any, ...]]] = {
    kind: operator.itemgetter(*_FIRST, *names.split()) for kind, names in _ATTRIBUTES.items()
}
_FORWARDS = [(kind, kind.forward) for kind in _ATTRIBUTES]  # as torch has them, before anybody patches it
_FUNCTIONS = [
    (home, name, getattr(home, name))
    for home, names in (
        (F, "batch_norm conv1d conv2d conv3d dropout elu gelu group_norm hardsigmoid hardswish layer_norm leaky_relu"),
        (F, "linear max_pool2d avg_pool2d adaptive_avg_pool2d mish relu relu6 hardtanh silu softmax"),
        (torch, "adaptive_avg_pool1d batch_norm conv2d flatten group_norm layer_norm relu relu_ sigmoid tanh"),
    )
    for name in names.split()
]
_TENSORS = (torch.Tensor, nn.Parameter)
_MODULE: Any = nn.Module
_CALL, _OUTER_CALL = _MODULE._call_impl, _MODULE.__call__


class Made(NamedTuple):
    """A storage that a call makes: bytes, and the entries of the call that are booked when it is born and dies."""

    bytes: int
    born: int
    died: int | None  # None: it is the output's


class Done(NamedTuple):
    """What a call books, and what it returns: the input itself, a view of it, or (source None) a fresh tensor."""

    operations: tuple[Operation, ...]
    storages: tuple[Made, ...]
    output: Output
    writes: int  # how often it writes to its input, as autograd counts
    given: tuple[Shape]
    returned: tuple[Shape]


# What a module holds: what tells, with its input, all that a call of it does; the values of its attributes; its
# tensors, the user's own where they wait for their twins; the twins' storages; the places of parameters that wait.
Held = tuple[tuple[Any, ...], tuple[Any, ...], Iterable["torch.Tensor | None"], Sequence[int], Sequence[int]]


class Leaves:
    """Answers the calls of a model's leaf modules while a run on meta lasts: a context."""

    def __init__(self, modules: Iterable[nn.Module], recorder: Recorder, scopes: Scopes, memo: Memo) -> None:
        self._recorder = recorder
        self._scopes = scopes
        self._memo = memo
        self._calls: dict[Any, Done] = memo.calls
        self._leaves: dict[int, nn.Module] = {}  # by id, which stays theirs
        self._function_modes = 0
        self._is_patching = not recorder.is_real and _is_unpatched()
        if self._is_patching and recorder.replays_calls and not torch.is_grad_enabled():
            self._leaves = {id(module): module for module in modules if type(module) in _READ}

    def __enter__(self) -> Leaves:
        if self._is_patching:
            self._function_modes = torch._C._len_torch_function_stack()
            leaves = self._leaves

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if kwargs or len(args) != 1 or id(module) not in leaves:
                    return self._run(module, args, kwargs)
                return self._answer(module, args[0])

            _MODULE._call_impl = call
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_patching:
            _MODULE._call_impl = _CALL

    def _run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call as torch does; straight where the only hooks are those of the scopes, which torch is slow with."""
        if (
            len(torch_module._global_forward_hooks) != 1
            or len(torch_module._global_forward_pre_hooks) != 1
            or torch_module._global_backward_hooks
            or torch_module._global_backward_pre_hooks
            or any(_own_hooks(module.__dict__))
            or torch._C._get_tracing_state()
        ):
            return _CALL(module, *args, **kwargs)
        self._scopes.enter(module, args)
        try:
            returned = module.forward(*args, **kwargs)
        except Exception:
            self._scopes.leave(module, args, None)
            raise
        self._scopes.leave(module, args, kwargs, returned)
        return returned

    def _answer(self, module: nn.Module, x: Any) -> Any:
        key = done = None
        with torch._C.DisableTorchFunction():  # asking a tensor for its shape would go through the front door
            if type(x) is torch.Tensor and self._is_plain_run() and self._is_plain_input(x):
                held = self._held_by(module)
                if held is not None:
                    key = (x.shape, x.stride(), x.dtype, held[0])
                    try:
                        done = self._calls.get(key)
                    except TypeError:  # a list for a tuple, which has no hash
                        key = None
                    if done is None and key is not None:
                        done = self._foreseen(module, held, x, key)
                    if done is not None and not self._memo.is_checked:
                        return self._replay(module, held, x, done)
        if key is None:
            return self._run(module, (x,), {})
        returned, does = self._watched(module, x, key)
        if done is not None and does != done:
            raise AssertionError(f"{type(module).__name__}: the memo has {done}, a call does {does}")
        return returned

    def _is_plain_run(self) -> bool:
        """Whether nothing is at work now that could change what a call does: modes, transforms, hooks."""
        return (
            torch._C._len_torch_dispatch_stack() == 1
            and torch._C._len_torch_function_stack() == self._function_modes
            and not torch._C._is_any_autocast_enabled()
            and not torch.is_grad_enabled()
            and not torch.is_inference_mode_enabled()
            and torch._C._functorch.peek_interpreter_stack() is None
            and self._recorder.replays_calls
            and len(torch_module._global_forward_hooks) == 1
            and len(torch_module._global_forward_pre_hooks) == 1
            and self._scopes.is_inside
            and not torch._C._get_tracing_state()
        )

    def _is_plain_input(self, x: torch.Tensor) -> bool:
        return (
            x.is_meta
            and x.layout is torch.strided
            and x.dtype.is_floating_point
            and not x.is_neg()
            and self._recorder.is_plain(x.untyped_storage()._cdata)
        )

    def _held_by(self, module: nn.Module) -> Held | None:
        """Return what a module holds now; None where its call must run."""
        attributes = module.__dict__
        kind = type(module)
        try:
            found = _READ[kind](attributes)
        except KeyError:
            return None
        if any(found[_HOOKS]) or "forward" in attributes or "_call_impl" in attributes:
            return None
        if found[_TRAINING] is not False or module._compiled_call_impl is not None:
            return None  # in train mode statistics change and elements are drawn
        values = found[_TRAINING + 1 :]
        parameters, buffers = found[_STATE]
        key = (kind, values, tuple(map(type, values)))
        if not parameters and not buffers:
            return key, values, (), (), ()
        if isinstance(parameters, Waiting) and parameters.is_waiting:
            if not buffers:
                return (*key, parameters.layouts), values, parameters.real.values(), (), parameters.places
            if isinstance(buffers, Waiting) and buffers.is_waiting:
                tensors = (*parameters.real.values(), *buffers.real.values())
                return (*key, parameters.layouts, buffers.layouts), values, tensors, (), parameters.places
        return self._held_in_part(key, values, (parameters, buffers))

    def _held_in_part(self, key: tuple[Any, ...], values: tuple[Any, ...], states: tuple[Any, ...]) -> Held | None:
        """Return what a module holds that was looked at, or a part of which was."""
        tensors: list[torch.Tensor | None] = []
        storages: list[int] = []
        places: list[int] = []
        for state in states:
            if not state:
                continue
            if isinstance(state, Waiting) and state.is_waiting:
                key = (*key, state.layouts)
                tensors += state.real.values()
                places += state.places
                continue
            found = list(state.values())
            if not all(self._is_plain_state(tensor, storages) for tensor in found):
                return None
            tensors += found
            key = (*key, tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in found))
        return key, values, tensors, storages, places

    def _is_plain_state(self, tensor: Any, storages: list[int]) -> bool:
        """Whether a tensor has a storage that is a parameter's or buffer's alone, which goes to `storages`; or none."""
        if tensor is None:
            return True
        if type(tensor) not in _TENSORS or tensor.layout is not torch.strided:
            return False
        storage = tensor.untyped_storage()._cdata
        # A norm's count of batches is known, and is not read in eval mode.
        is_known = tensor.dtype.is_floating_point and self._recorder.knows_any([storage])
        if storage in storages or is_known or not self._recorder.is_state(storage):
            return False
        storages.append(storage)
        return True

    def _foreseen(self, module: nn.Module, held: Held, x: torch.Tensor, key: Any) -> Done | None:
        """Return what a call will do by rule, and remember it; None where no rule tells."""
        rule = RULES.get(type(module))
        if rule is None:
            return None
        operations: list[Operation] = []
        storages: list[Made] = []

        def run(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            template, tensors = self._recorder.foreseen(func, args, kwargs)
            for place, output in enumerate(template.outputs):
                if output.source is None:  # contiguous, by any rule; what comes beside the first is dropped at once
                    size = output.size.numel() * output.dtype.itemsize
                    storages.append(Made(size, len(operations), len(operations) + 1 if place else None))
            operations.append(template.operation)
            return template.replay(tensors)[0]

        try:
            with torch._C._DisableTorchDispatch():
                returned = rule(run, held[1], x, *held[2])
        except Unforeseen:
            return None
        (output,), _ = classify([returned], [x])
        given, shapes = (tuple(x.shape),), (tuple(returned.shape),)
        done = Done(tuple(operations), tuple(storages), output, int(output.is_argument), given, shapes)
        self._memo.put_call(key, done)
        return done

    def _replay(self, module: nn.Module, held: Held, x: torch.Tensor, done: Done) -> torch.Tensor:
        recorder = self._recorder
        entries, allocations = recorder.record.entries, recorder.record.allocations
        start = len(entries)
        source, is_argument, size, stride, dtype, offset = done.output
        if is_argument:
            returned = x
        else:
            with torch._C._DisableTorchDispatch():  # making the output is no operation
                if source is None:
                    returned = torch.empty_strided(size, stride, dtype=dtype, device=META)
                else:
                    returned = torch.as_strided(x, size, stride, x.storage_offset() + offset)
        for _ in range(done.writes):
            torch._C._increment_version([x])
        call = self._scopes.answered(module, done.given, done.returned)
        for operation in done.operations:
            entries.append(Entry(recorder.place_of(operation), call))
        *_, storages, parameters = held
        if storages:
            recorder.routes.touched.update(storages)
        if parameters:
            recorder.routes.used.update(parameters)
        for size_of, born, died in done.storages:
            if died is None:
                allocation = Allocation(size_of, start + born, None, "activation")
                recorder.watch(returned.untyped_storage(), allocation)
            else:
                allocation = Allocation(size_of, start + born, start + died, "activation")
            allocations.append(allocation)
        return returned

    def _watched(self, module: nn.Module, x: torch.Tensor, key: Any) -> tuple[Any, Done | None]:
        """Run a call as it is written, and remember it where it can be replayed."""
        recorder, record = self._recorder, self._recorder.record
        entries, calls, allocations = len(record.entries), len(record.calls), len(record.allocations)
        remarks = len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place)
        version = x._version
        returned = self._run(module, (x,), {})
        with torch._C.DisableTorchFunction():
            is_plain = (
                type(returned) is torch.Tensor
                and recorder.replays_calls
                and recorder.is_plain(returned.untyped_storage()._cdata)
                and remarks == (len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place))
                and len(record.calls) == calls + 1
            )
            done = _done(x, returned, recorder, entries, calls, allocations, x._version - version) if is_plain else None
        if done is not None:
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
    made = record.allocations[allocations:]
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
    return Done(operations, storages, output, writes, (tuple(x.shape),), (tuple(returned.shape),))


def _is_unpatched() -> bool:
    """Whether the classes and functions at work are torch's own: somebody may have put others in their place."""
    if _MODULE._call_impl is not _CALL or _MODULE.__call__ is not _OUTER_CALL:
        return False
    return all(kind.forward is forward for kind, forward in _FORWARDS) and all(
        getattr(home, name) is function for home, name, function in _FUNCTIONS
    )
