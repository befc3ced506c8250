"""Calls of torch.nn's own leaf modules: what the first one booked is booked again for each like it, and nothing runs.

In eval mode and without gradients, what such a module does hangs on its class, a few plain attributes, and the sizes,
strides and dtypes of its tensors and of its one input. A call for which anything else could matter (hooks, a mode that
somebody else entered, autocast, values that are known, a class or function that was patched) runs as it is written.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Scopes
from torchledger.capture.shapes import Memo, Output, classify
from torchledger.record import Allocation, Entry, Operation

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
    **dict.fromkeys((nn.Sigmoid, nn.Tanh, nn.Identity), "_version"),
    nn.Softmax: "dim",
    nn.Dropout: "p inplace",
    nn.Flatten: "start_dim end_dim",
    nn.MaxPool2d: f"{_POOL} dilation return_indices",
    nn.AvgPool2d: f"{_POOL} count_include_pad divisor_override",
    nn.AdaptiveAvgPool2d: "output_size",
}
_READ = {kind: operator.attrgetter("training", *names.split()) for kind, names in _ATTRIBUTES.items()}
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
_HOOKS_AND_TENSORS = operator.itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_parameters", "_buffers"
)
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


class Leaf:
    """A module whose calls may be replayed: its tensors when the run began, and their storages."""

    __slots__ = ("kind", "module", "read", "storages", "tensors")

    def __init__(self, module: nn.Module, tensors: tuple[torch.Tensor | None, ...], storages: list[int]) -> None:
        self.module = module  # held, so that its id stays its own
        self.kind = type(module)
        self.read = _READ[self.kind]
        self.tensors = tensors
        self.storages = storages


class Leaves:
    """Answers the calls of a model's leaf modules while a run on meta lasts: a context."""

    def __init__(self, modules: Iterable[nn.Module], recorder: Recorder, scopes: Scopes, memo: Memo) -> None:
        self._recorder = recorder
        self._scopes = scopes
        self._memo = memo
        self._calls: dict[Any, Done] = memo.calls
        self._leaves: dict[int, Leaf] = {}
        self._function_modes = 0
        if recorder.replays_calls and not torch.is_grad_enabled() and _is_unpatched():
            found = (_leaf_of(module, recorder) for module in modules if type(module) in _READ)
            self._leaves = {id(leaf.module): leaf for leaf in found if leaf is not None}

    def __enter__(self) -> Leaves:
        if self._leaves:
            self._function_modes = torch._C._len_torch_function_stack()

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                leaf = self._leaves.get(id(module))
                if leaf is None or kwargs or len(args) != 1:
                    return _CALL(module, *args, **kwargs)
                return self._answer(leaf, args[0])

            _MODULE._call_impl = call
        return self

    def __exit__(self, *_: object) -> None:
        if self._leaves:
            _MODULE._call_impl = _CALL

    def _answer(self, leaf: Leaf, x: Any) -> Any:
        with torch._C.DisableTorchFunction():  # asking a tensor for its shape would go through the front door
            key = self._key(leaf, x)
            done = self._calls.get(key) if key is not None else None
            if done is not None and not self._memo.is_checked:
                return self._replay(leaf, x, done)
        if key is None:
            return _CALL(leaf.module, x)
        returned = self._watched(leaf, x, key)
        if done is not None and self._calls[key] != done:
            raise AssertionError(f"{leaf.kind.__name__}: the memo has {done}, a call does {self._calls[key]}")
        return returned

    def _key(self, leaf: Leaf, x: Any) -> Any:
        """Return what tells all that the call does; None where it must run."""
        recorder = self._recorder
        if (
            type(x) is not torch.Tensor
            or torch._C._len_torch_dispatch_stack() != 1
            or torch._C._len_torch_function_stack() != self._function_modes
            or torch._C._is_any_autocast_enabled()
            or torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or not recorder.replays_calls
            or len(torch_module._global_forward_hooks) != 1
            or len(torch_module._global_forward_pre_hooks) != 1
            or not self._scopes.is_inside
        ):
            return None
        attributes = leaf.module.__dict__
        *hooks, parameters, buffers = _HOOKS_AND_TENSORS(attributes)
        if any(hooks) or "forward" in attributes or torch._C._get_tracing_state():
            return None
        dtype = x.dtype
        if not x.is_meta or x.layout is not torch.strided or not dtype.is_floating_point or x.is_neg():
            return None
        tensors = (*parameters.values(), *buffers.values())
        if len(tensors) != len(leaf.tensors) or not all(map(operator.is_, tensors, leaf.tensors)):
            return None
        if not recorder.is_plain(x.untyped_storage()._cdata):
            return None
        read = leaf.read(leaf.module)
        if read[0] is not False:
            return None  # in train mode statistics change and elements are drawn
        key = [leaf.kind, read, *map(type, read), x.shape, x.stride(), dtype]
        for tensor in tensors:
            key += (None,) if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)
        found = tuple(key)
        try:
            hash(found)
        except TypeError:  # a list for a tuple
            return None
        return found

    def _replay(self, leaf: Leaf, x: torch.Tensor, done: Done) -> torch.Tensor:
        recorder, record = self._recorder, self._recorder.record
        start = len(record.entries)
        source, is_argument, size, stride, dtype, offset = done.output
        if is_argument:
            returned = x
        else:
            with torch._C._DisableTorchDispatch():  # making the output is no operation
                if source is None:
                    returned = torch.empty_strided(size, stride, dtype=dtype, device="meta")
                else:
                    returned = torch.as_strided(x, size, stride, x.storage_offset() + offset)
        for _ in range(done.writes):
            torch._C._increment_version([x])
        call = self._scopes.answered(leaf.module, (tuple(x.shape),), (tuple(size),))
        record.entries += [Entry(recorder.place_of(operation), call) for operation in done.operations]
        recorder.routes.touched.update(leaf.storages)
        for storage in done.storages:
            died = None if storage.died is None else start + storage.died
            allocation = Allocation(storage.bytes, start + storage.born, died, "activation")
            record.allocations.append(allocation)
            if died is None:
                recorder.watch(returned.untyped_storage(), allocation)
        return returned

    def _watched(self, leaf: Leaf, x: torch.Tensor, key: Any) -> Any:
        """Run a call as it is written, and remember it where it can be replayed."""
        recorder, record = self._recorder, self._recorder.record
        entries, calls, allocations = len(record.entries), len(record.calls), len(record.allocations)
        remarks = len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place)
        version = x._version
        returned = _CALL(leaf.module, x)
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
            while len(self._calls) >= self._memo.limit:
                del self._calls[next(iter(self._calls))]
            self._calls[key] = done
        return returned


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
    return Done(operations, storages, output, writes)


def _leaf_of(module: nn.Module, recorder: Recorder) -> Leaf | None:
    """Return a module with its tensors, None where its calls may not be replayed."""
    if "_call_impl" in module.__dict__ or module._compiled_call_impl is not None:
        return None
    tensors = (*module._parameters.values(), *module._buffers.values())
    given = [tensor for tensor in tensors if tensor is not None]
    if any(type(t) not in _TENSORS or t.layout is not torch.strided for t in given):
        return None
    storages = [tensor.untyped_storage()._cdata for tensor in given]
    numbers = [storage for tensor, storage in zip(given, storages, strict=True) if tensor.dtype.is_floating_point]
    if len(set(storages)) < len(storages) or not recorder.has_booked(storages) or recorder.knows_any(numbers):
        return None  # a norm's count of batches is known, and is not read in eval mode
    return Leaf(module, tensors, storages)


def _is_unpatched() -> bool:
    """Whether the classes and functions at work are torch's own: somebody may have put others in their place."""
    if _MODULE._call_impl is not _CALL or _MODULE.__call__ is not _OUTER_CALL:
        return False
    return all(kind.forward is forward for kind, forward in _FORWARDS) and all(
        getattr(home, name) is function for home, name, function in _FUNCTIONS
    )
