"""Calls of torch's functions: what the first one booked is booked again for each like it, and nothing runs.

For functions that hang on the sizes, strides and dtypes of their tensors and on plain arguments alone, in inference.
`x @ y` or attention come apart into a dozen operations, each of which has a way through torch's dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import nn

from torchledger.capture.foresight import Foresight, Made
from torchledger.capture.function_rules import RULES, Rule
from torchledger.capture.leaf_rules import Unforeseen
from torchledger.capture.operations import sharing
from torchledger.capture.recorder import META, Recorder
from torchledger.capture.scopes import Scopes
from torchledger.capture.shapes import Memo, Outline, Output, classify
from torchledger.capture.surroundings import PURE_NAMES, Surroundings, is_of_torch, own_of
from torchledger.record import Allocation, Operation

PURE = frozenset(
    function for home, names in PURE_NAMES.items() for function in own_of(home, names) if is_of_torch(function)
)
_TENSORS = frozenset({torch.Tensor, nn.Parameter})
_PLAIN = frozenset({int, float, bool, str, type(None), EllipsisType, torch.dtype, torch.memory_format})
_LARGEST = 1 << 63
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]  # runs a function as it is written


class Did(NamedTuple):
    """What a call of a function books and returns.

    `shape`: None for one tensor; else the class of a tuple or list, and where it has a tensor and not None.
    `outputs` are made of the call's tensors, or fresh; a fresh one lies in the storage that stands beside it.
    `takes`: the places of tensors that an operation takes. `writes`: how often a tensor is written to, as autograd
    counts, by its place.
    """

    operations: tuple[Operation, ...]
    storages: tuple[Made, ...]
    outputs: tuple[tuple[Output, int | None], ...]
    takes: tuple[int, ...]
    shape: tuple[type, tuple[bool, ...]] | None
    writes: tuple[tuple[int, int], ...]


def _outlined(values: Iterable[Any], outlines: list[Outline]) -> list[Any]:
    """Return the arguments of a call with outlines for tensors, which go to `outlines` in the order of `_take`."""
    found: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            value = Outline(value.shape, value.stride(), value.dtype)
            outlines.append(value)
        elif kind is int and not -_LARGEST <= value < _LARGEST:  # which torch does not take
            raise Unforeseen
        elif kind is tuple or kind is list or kind is torch.Size:
            inner = _outlined(value, outlines)
            value = inner if kind is list else tuple(inner)
        found.append(value)
    return found


def _place_of(outline: Outline, among: Sequence[Outline | None]) -> int | None:
    for place, one in enumerate(among):
        if one is outline:
            return place
    return None


class Functions:
    """Answers calls of functions in one run."""

    def __init__(self, recorder: Recorder, scopes: Scopes, memo: Memo, around: Surroundings) -> None:
        self._recorder = recorder
        self._scopes = scopes
        self._memo = memo
        self._around = around

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run) -> Any:
        """Return what a function of `PURE` returns; `run` calls it where that cannot be told."""
        if not self._around.are_plain(in_front_door=True):
            return run(func, args, kwargs)
        tensors: list[torch.Tensor] = []
        storages: list[int] = []
        key: list[Any] = [func, torch.get_default_dtype()]
        is_plain = self._take(args, tensors, storages, key)
        if is_plain and kwargs:
            key.extend(kwargs)
            is_plain = self._take(kwargs.values(), tensors, storages, key)
        if not is_plain or not tensors:
            return run(func, args, kwargs)
        if len(tensors) > 1:
            key.append(sharing(tensors, storages))
        known = tuple(key)
        did: Did | None = self._memo.calls.get(known)
        if did is None and (rule := RULES.get(func)) is not None and len(set(storages)) == len(storages):
            did = self._foreseen(rule, args, kwargs, len(tensors))
            if did is not None:
                self._memo.put_call(known, did)
        if did is not None and not self._memo.is_checked:
            return self._replay(did, tensors, storages)
        returned, does = self._watched(func, args, kwargs, run, tensors)
        if did is not None and does != did:
            raise AssertionError(f"{func}: the memo has {did}, a call does {does}")
        if does is not None:
            self._memo.put_call(known, does)
        return returned

    def _take(self, values: Iterable[Any], tensors: list[torch.Tensor], storages: list[int], key: list[Any]) -> bool:
        """Append to `key` what tells what a function does with `values`; return False where more than that does."""
        recorder = self._recorder
        for value in values:
            kind = type(value)
            if kind in _TENSORS:
                if not value.is_meta or value.layout is not torch.strided or value.is_neg() or value.is_inference():
                    return False
                storage = value.untyped_storage()._cdata
                dtype = value.dtype
                if dtype.is_complex or not recorder.is_unknown(storage):
                    return False
                tensors.append(value)
                storages.append(storage)
                # torch.matmul folds by whether gradients are asked for, also where none are recorded.
                key += (value.shape, value.stride(), dtype, value.requires_grad)
            elif kind in _PLAIN:
                key += (kind, value)
            elif kind is tuple or kind is list or kind is torch.Size:
                key += (kind, len(value))
                if not self._take(value, tensors, storages, key):
                    return False
            elif kind is slice:
                if not self._take((value.start, value.stop, value.step), tensors, storages, key):
                    return False
                key.append(slice)
            else:
                return False
        return True

    def _foreseen(self, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], count: int) -> Did | None:
        """Return what a call with so many tensors does, as rules have it; None where they have no answer."""
        given: list[Outline] = []
        ahead = Foresight(self._recorder)
        try:
            returned = rule(ahead, *_outlined(args, given), **{k: _outlined((v,), given)[0] for k, v in kwargs.items()})
        except Exception:  # not the arguments that a rule is for: torch shall say what is wrong, if it is
            return None
        storages = ahead.storages
        if len(given) != count:
            return None
        outputs: list[tuple[Output, int | None]] = []
        for outline in returned if isinstance(returned, tuple) else (returned,):
            base, size, dtype = outline.root or outline, outline.shape, outline.dtype
            source = _place_of(base, given)
            storage = _place_of(base, ahead.made) if source is None else None
            if source is None and (storage is None or storages[storage].bytes != size.numel() * dtype.itemsize):
                return None
            is_argument = source is not None and outline is base
            offset = 0 if source is None else outline.offset
            outputs.append((Output(source, is_argument, size, outline.strides, dtype, offset), storage))
        if sum(made is not None for made in ahead.made) != len({storage for _, storage in outputs} - {None}):
            return None  # what is made on the way dies where torch says
        taken = {id(outline.root or outline) for outline in ahead.given}
        takes = tuple([place for place, one in enumerate(given) if id(one) in taken])
        shape = (tuple, (True,) * len(outputs)) if isinstance(returned, tuple) else None
        output, _ = outputs[0]
        writes = ((output.source, 1),) if output.source is not None and output.is_argument and ahead.operations else ()
        return Did(tuple(ahead.operations), tuple(storages), tuple(outputs), takes, shape, writes)

    def _replay(self, did: Did, tensors: list[torch.Tensor], storages: list[int]) -> Any:
        recorder = self._recorder
        record = recorder.record
        allocations = record.allocations.latest
        start, first = len(record.entries.operations), len(allocations)
        operations, made, outputs, takes, shape, writes = did
        recorder.book_again(operations, self._scopes.current)
        taken = storages if len(takes) == len(storages) else [storages[place] for place in takes]
        recorder.routes.touched.update(taken)
        if writes:
            wanted = [(tensors[place], tensors[place]._version + times) for place, times in writes]
            for tensor, version in wanted:  # views of one tensor share a count
                while tensor._version < version:
                    torch._C._increment_version([tensor])
        for size_of, born, died in made:
            allocations.append(Allocation(size_of, start + born, None if died is None else start + died, "activation"))
        returned: list[torch.Tensor] = []
        with torch._C._DisableTorchDispatch():  # making outputs is no operation
            for (source, is_argument, size, stride, dtype, offset), storage in outputs:
                if source is None:
                    tensor = torch.empty_strided(size, stride, dtype=dtype, device=META)
                    if storage is not None:
                        recorder.watch(tensor.untyped_storage(), allocations[first + storage])
                elif is_argument:
                    tensor = tensors[source]
                else:
                    base = tensors[source]
                    tensor = torch.as_strided(base, size, stride, base.storage_offset() + offset)
                returned.append(tensor)
        if shape is None:
            return returned[0]
        kind, is_there = shape
        found = iter(returned)
        return kind(next(found) if there else None for there in is_there)

    def _watched(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run, tensors: list[torch.Tensor]
    ) -> tuple[Any, Did | None]:
        """Run a call as it is written, and return what it did where it can be replayed."""
        recorder, record = self._recorder, self._recorder.record
        entries, allocations = len(record.entries), len(record.allocations.latest)

        def state() -> tuple[Any, ...]:
            remarks = len(recorder.known.reasons), recorder.saw_foreign, len(record.in_place)
            return (*remarks, len(record.calls), self._scopes.current, recorder.record)

        before, versions = state(), [tensor._version for tensor in tensors]
        routes, touched = recorder.routes, recorder.routes.touched
        routes.touched = set()
        try:
            returned = run(func, args, kwargs)
        finally:
            touched |= (own := routes.touched)
            routes.touched = touched
        if state() != before or not recorder.replays_calls:
            return returned, None
        writes = [tensor._version - version for tensor, version in zip(tensors, versions, strict=True)]
        takes = tuple(place for place, t in enumerate(tensors) if t.untyped_storage()._cdata in own)
        return returned, self._did(returned, tensors, takes, writes, entries, allocations)

    def _did(
        self,
        returned: Any,
        tensors: list[torch.Tensor],
        takes: tuple[int, ...],
        writes: list[int],
        entries: int,
        allocations: int,
    ) -> Did | None:
        """Return what has just been booked; None where a replay would not make the same."""
        recorder, record = self._recorder, self._recorder.record
        shape: tuple[type, tuple[bool, ...]] | None = None
        found = [returned]
        if type(returned) in (tuple, list):
            shape = type(returned), tuple(part is not None for part in returned)
            found = [part for part in returned if part is not None]
        if any(type(part) not in _TENSORS or part.layout is not torch.strided or part.is_neg() for part in found):
            return None
        if any(part.is_inference() for part in found):
            return None
        booked = record.entries[entries:]
        operations = tuple(record.operations[entry.operation] for entry in booked)
        if any(entry.call != self._scopes.current or entry.phase != "forward" for entry in booked):
            return None
        if not all(map(recorder.is_remembered, operations)):
            return None
        made = record.allocations.latest[allocations:]
        outputs, can_replay = classify(found, tensors)
        if not can_replay or any(allocation.kind != "activation" for allocation in made):
            return None
        alive = {id(allocation): place for place, allocation in enumerate(made) if allocation.died is None}
        placed: list[tuple[Output, int | None]] = []
        for output, tensor in zip(outputs, found, strict=True):
            if output.source is not None:
                placed.append((output, None))
                continue
            storage = tensor.untyped_storage()
            place = alive.pop(id(recorder.allocation(storage._cdata)), None)
            whole = torch.Size(output.size).numel() * tensor.element_size()
            if place is None or tensor.storage_offset() or not whole == storage.nbytes() == made[place].bytes:
                return None
            if not recorder.is_unknown(storage._cdata):
                return None
            placed.append((output, place))
        if alive:
            return None
        storages = tuple(
            Made(one.bytes, one.born - entries, None if one.died is None else one.died - entries) for one in made
        )
        counts = tuple((place, times) for place, times in enumerate(writes) if times)
        return Did(operations, storages, tuple(placed), takes, shape, counts)
