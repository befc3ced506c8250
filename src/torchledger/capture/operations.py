"""A call of an ATen operation -> its key in the memo, and its entry in the record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from torchledger.canonical import canonical
from torchledger.capture.routing import CHOOSING
from torchledger.capture.shapes import Outline, Output
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

_UNKEYED = (torch.Generator, torch.ScriptObject)
# Forms of quantized::linear that take plain numbers, and a weight packed in an object.
PACKED_LINEAR = ("_dynamic", "_relu_dynamic", "_dynamic_fp16", "_relu_dynamic_fp16")
_VALUE_TAGS = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
# Not tagged.
_NEED_VALUES = frozenset(
    """
    torchvision::nms aten::_unsafe_index aten::_pack_padded_sequence aten::_pack_padded_sequence_backward
    """.split()
    + [f"quantized::linear{form}" for form in PACKED_LINEAR]
)
# What chooses by values, and the tests whether all is finite.
_ASSUMED = frozenset("topk sort argmax argmin max min kthvalue multinomial isinf isnan isposinf isneginf eq ne".split())
# What holds the same everywhere afterwards, whatever it is made of: the value, or the argument that gives it. Memory
# that nothing was written to counts as 0.
FILLED_WITH: dict[str, int | str] = {
    **dict.fromkeys("zeros zeros_like new_zeros zero zero_".split(), 0),
    **dict.fromkeys("empty empty_like empty_strided empty_permuted new_empty new_empty_strided".split(), 0),
    **dict.fromkeys("ones ones_like new_ones".split(), 1),
    **dict.fromkeys("full full_like new_full".split(), "fill_value"),
    **dict.fromkeys("fill fill_".split(), "value"),
}
_PACKED = "PackedParamsBase"  # of quantised layers
_PLACES = frozenset(("device", "layout", "pin_memory", "generator", "non_blocking"))  # where it lies, not what it is
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What is worth knowing of an overload, looked up once. `name` None: not booked."""

    func: Any
    rule: Callable[..., tuple[Output, ...] | None] | None  # what tells its outputs, see shape_rules.py
    name: str | None
    parameters: tuple[str, ...]
    defaults: dict[str, object]
    stated: dict[str, object]  # the same as a record has them
    takes_device: bool
    takes_place: bool  # or a layout, a generator: what is no part of an operation
    composite: bool
    can_replay: bool
    reshapes: bool  # changes the sizes of its argument
    writes: tuple[str, ...]  # the arguments that it writes to
    only_writes: bool  # to lists of tensors, and returns nothing
    random: bool
    needs_values: bool  # what it returns hangs on more than the sizes of what it is given
    assumes: bool  # what it returns may be known or taken for granted whatever it is given, see known.py
    fills: int | None  # the number that is everywhere in what it makes, whatever it is given
    chooses: bool  # puts out indices that it picked, see routing.py
    packed: tuple[str, ...]  # the arguments that are objects with a weight and a bias in them
    returns_list: bool  # of tensors, also of one

    def container(self, outputs: tuple[Output, ...]) -> type | None:
        """Return what the operation puts the tensors into that it returns; None for one tensor."""
        return list if self.returns_list else tuple if len(outputs) > 1 else None


# By id of an overload, which its kind holds: the hash of one is computed in Python.
KINDS: dict[int, Kind] = {}
NO_OPERATION = Operation("", {}, (), ())  # stands in the memo for what is not booked


def overloads(table: Mapping[str, T]) -> dict[Any, T]:
    """Return a table by ATen overload for one by name, as in `mm.default`; a torch that lacks one goes without it."""
    found: dict[Any, T] = {}
    for name, value in table.items():
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if func is not None:
            found[func] = value
    return found


def _has_kernel(func: Any, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _filling(packet: str, func: Any) -> int | None:
    value = FILLED_WITH.get(packet)
    writes = any(argument.alias_info is not None for argument in func._schema.arguments)
    return value if isinstance(value, int) and not writes and len(func._schema.returns) == 1 else None


def learn(func: Any, rule: Callable[..., tuple[Output, ...] | None] | None) -> Kind:
    """Look up what is worth knowing of an overload, for `KINDS`."""
    namespace, _, packet = func._schema.name.partition("::")
    arguments = func._schema.arguments
    names = tuple(argument.name for argument in arguments)
    # The schemas of batch norms keep it to themselves that training updates these.
    undeclared = ("running_mean", "running_var") if "batch_norm" in packet and "backward" not in packet else ()
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value() and a.default_value is not None}
    kind = Kind(
        func=func,
        rule=rule,
        name=canonical(namespace, packet),
        parameters=names,
        defaults=defaults,
        stated={
            name: tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)
            for name, value in defaults.items()
        },
        takes_device="device" in names,
        takes_place=not _PLACES.isdisjoint(names),
        composite=_has_kernel(func, "CompositeImplicitAutograd")
        and not (_has_kernel(func, "CPU") and _has_kernel(func, "Meta")),  # silu_backward runs whole
        reshapes=torch.Tag.inplace_view in func.tags,
        writes=tuple(
            a.name for a in arguments if (a.alias_info is not None and a.alias_info.is_write) or a.name in undeclared
        ),
        only_writes=packet.startswith("_foreach_") and not func._schema.returns,
        random=torch.Tag.nondeterministic_seeded in func.tags,
        needs_values=not _VALUE_TAGS.isdisjoint(func.tags) or func._schema.name in _NEED_VALUES,
        assumes=packet in _ASSUMED or packet in FILLED_WITH,
        fills=_filling(packet, func),
        chooses=packet in CHOOSING,
        packed=tuple(a.name for a in arguments if str(a.type).endswith(_PACKED)),
        returns_list=[str(returned.type) for returned in func._schema.returns] == ["List[Tensor]"],
        can_replay=torch.Tag.inplace_view not in func.tags
        and "storage_offset" not in names  # counted from the start of the storage, which a key does not have
        and all(not (argument.kwarg_only and argument.alias_info is not None) for argument in arguments),
    )
    KINDS[id(func)] = kind
    return kind


def flatten(values: Any, tensors: list[torch.Tensor], storages: list[int], key: list[Any]) -> bool:
    """Append an operation's tensors, and to `key` what tells its output metadata; return whether all are meta.

    `storages` gets what identifies the storages of strided tensors.
    """
    is_meta = True
    for value in values:
        kind = type(value)
        if kind in _TENSORS or (kind not in _KEYED and isinstance(value, torch.Tensor)):
            if not value.is_meta:
                is_meta = False
            tensors.append(value)
            if value.layout is torch.strided:
                storages.append(value.untyped_storage()._cdata)
                key += (value.shape, value.stride(), value.dtype)
            else:
                key.append(object())  # never the same again
        elif kind in _KEYED:
            key += (kind, value)
        elif isinstance(value, (list, tuple)):
            if value and not isinstance(value[0], (int, float)):
                key.append(len(value))
                is_meta &= flatten(value, tensors, storages, key)
            else:
                key += (*map(type, value), *value, len(value))
        elif isinstance(value, _UNKEYED):
            key.append(None if isinstance(value, torch.Generator) else object())
        else:
            key += (kind, value)
    return is_meta


_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


def outlined(
    kind: Kind, args: Sequence[Any], kwargs: dict[str, Any], outlines: list[Outline], key: list[Any]
) -> dict[str, object]:
    """Return what `arguments_of` would of a call that has outlines for tensors.

    The outlines go to `outlines`, and to `key` what `flatten` would append for the tensors that they stand for.
    """
    found = {name: _stated(value, outlines, key) for name, value in zip(kind.parameters, args, strict=False)}
    if kwargs:
        key.extend(kwargs)
        found |= {name: _stated(value, outlines, key) for name, value in kwargs.items()}
    return _completed(kind, found)


def _stated(value: Any, outlines: list[Outline], key: list[Any]) -> object:
    inner = type(value)
    if inner is Outline:
        key += (value.shape, value.strides, value.dtype)
        outlines.append(value)
        return _reference(len(outlines) - 1)
    if inner in _NUMBERS:
        key += (inner, value)
        return value
    if inner is tuple or inner is list:
        if _SIZES.issuperset(map(type, value)):
            key += (*map(type, value), *value, len(value))
            return tuple(value)
        key.append(len(value))
        return tuple([_stated(item, outlines, key) for item in value])
    key += (inner, value)
    return _plain(value)


_KEYED = frozenset({int, float, bool, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format})
_SIZES = frozenset({int, float, bool})


def sharing(tensors: list[torch.Tensor], storages: list[int]) -> Any:
    """Return which tensors share one of `storages`, and how far apart they lie in it; None where none do."""
    if len(set(storages)) == len(storages):
        return None
    first: dict[int, tuple[int, torch.Tensor]] = {}
    same: dict[int, int] = {}  # by id: its first place
    pattern = []
    for index, (tensor, storage) in enumerate(zip(tensors, storages, strict=True)):
        place, base = first.setdefault(storage, (index, tensor))
        offset = tensor.storage_offset() - base.storage_offset()
        pattern.append((place, offset, same.setdefault(id(tensor), index)))
    return tuple(pattern)


def storages_of(tensors: list[torch.Tensor]) -> list[int]:
    """Return what identifies the storage of each tensor."""
    return [tensor.untyped_storage()._cdata for tensor in tensors]


def keyed(tensors: list[torch.Tensor]) -> list[Any]:
    key: list[Any] = []
    storages: list[int] = []
    flatten(tensors, [], storages, key)
    return [*key, sharing(tensors, storages)]


def tensor_info(tensor: torch.Tensor) -> TensorInfo:
    return _interned(tensor.shape, tensor.stride() if tensor.layout == torch.strided else None, tensor.dtype)


@functools.lru_cache(maxsize=4096)  # the same few infos come up all the time
def _interned(shape: torch.Size, stride: tuple[int, ...] | None, dtype: torch.dtype) -> TensorInfo:
    if stride is None or len(stride) != len(shape):  # a layout without strides: as if dense
        stride = torch.empty(shape, device="meta").stride()
    return TensorInfo(tuple(shape), tuple(stride), dtype_name(dtype))


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arguments_of(kind: Kind, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, object]:
    """Return the arguments by schema name, tensors as references in the order that `tensors_in` meets them."""
    count = 0

    def plain(value: Any) -> object:
        nonlocal count
        if isinstance(value, torch.Tensor):
            count += 1
            return _reference(count - 1)
        if isinstance(value, (list, tuple)):
            return tuple(value) if _NUMBERS.issuperset(map(type, value)) else tuple(map(plain, value))
        return _plain(value)

    found: dict[str, Any] = dict(zip(kind.parameters, args, strict=False))
    found.update(kwargs)
    for name, value in found.items():
        inner = type(value)
        if inner not in _NUMBERS and (inner is not tuple or not _NUMBERS.issuperset(map(type, value))):
            found[name] = plain(value)
    return _completed(kind, found)


def _completed(kind: Kind, found: dict[str, object]) -> dict[str, object]:
    """Return arguments with the defaults of those that were left out, and without what is no part of an operation."""
    for name, default in kind.stated.items():
        if name not in found:
            found[name] = default
    if kind.takes_place:
        for name in _PLACES:
            found.pop(name, None)
    return found


def _plain(value: Any) -> object:
    """Return what stands in a record for an argument that is neither a tensor nor a list."""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return value
    return None if isinstance(value, _UNKEYED) else str(value).removeprefix("torch.")


def _reference(place: int) -> TensorRef:
    return _REFERENCES[place] if place < len(_REFERENCES) else TensorRef(place)


_REFERENCES = tuple(map(TensorRef, range(16)))
_NUMBERS = frozenset({bool, int, float, type(None)})


def unpacked(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, with `weight` and `bias` in place of an object that holds them packed."""
    found: dict[str, Any] = {}
    for name, value in (dict(zip(kind.parameters, args, strict=False)) | kwargs).items():
        if name in kind.packed and hasattr(value, "unpack"):
            found["weight"], found["bias"], *_ = value.unpack()
        else:
            found[name] = value
    return found


def operation_of(
    name: str,
    arguments: dict[str, object],
    given: Sequence[torch.Tensor],
    outputs: tuple[Output, ...],
    infos: tuple[TensorInfo, ...] | None = None,
) -> Operation:
    """Build the record of an operation; `infos` are those of `given` before it ran, where it changed them."""
    infos = infos or tuple(map(tensor_info, given))
    return Operation(name, arguments, infos, _made(outputs), _repeated(given, infos))


def outlined_operation(
    name: str, arguments: dict[str, object], given: Sequence[Outline], outputs: tuple[Output, ...]
) -> Operation:
    """Build the record of an operation of which there is no tensor; each lies in a storage of its own."""
    infos = tuple([_interned(outline.shape, outline.strides, outline.dtype) for outline in given])
    return Operation(name, arguments, infos, _made(outputs), ())


def _made(outputs: tuple[Output, ...]) -> tuple[OutputInfo, ...]:
    return tuple([OutputInfo(_interned(size, stride, dtype), source) for source, _, size, stride, dtype, _ in outputs])


def _repeated(tensors: Sequence[torch.Tensor], infos: tuple[TensorInfo, ...]) -> tuple[int, ...]:
    """Return the inputs that cover the same elements as an earlier one: the same tensor, or its transpose."""
    strided = [tensor for tensor in tensors if tensor.layout == torch.strided]
    if len(strided) < 2 or sharing(strided, storages_of(strided)) is None:
        return ()
    seen: set[Any] = set()
    repeated = []
    for index, (tensor, info) in enumerate(zip(tensors, infos, strict=True)):
        if tensor.layout != torch.strided or not info.elements:
            continue
        span = tuple(
            sorted((step, size) for size, step in zip(info.shape, info.stride, strict=True) if size > 1 and step)
        )
        cover = (tensor.untyped_storage()._cdata, tensor.storage_offset(), span, info.dtype)
        if cover in seen:
            repeated.append(index)
        seen.add(cover)
    return tuple(repeated)


def identity(operation: Operation) -> Any:
    """Return a hashable value that equal operations share."""
    return (operation.name, repr(operation.arguments), operation.inputs, operation.outputs, operation.repeated)
