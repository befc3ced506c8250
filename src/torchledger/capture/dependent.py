"""Operations whose result hangs on values: `item`, `nonzero`, boolean masks, `unique`, NMS.

Each is answered from known values (see known.py), else under a stated assumption; where neither is to be had, the
operation fails as it does on meta, and the run can only go on with real tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from torchledger.capture.known import CPU, KEPT, LARGEST, Known, fits
from torchledger.capture.operations import PACKED_LINEAR
from torchledger.inputs import mapped, tensors_in

META = torch.device("meta")
Answer = Callable[[], Any]  # what stands in for the kernel: returns meta tensors, or a number


def answer(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Return what stands in for the meta kernel of an operation that needs values; None: the kernel itself does."""
    special = _SPECIAL.get(func._schema.name)
    if special is not None:
        return special(known, func, args, kwargs)
    return _computed(known, func, args, kwargs) or _assumed(known, func, args, kwargs)


def _computed(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Answer from known values alone."""
    tensors = tensors_in((args, kwargs))
    if any(known.value(tensor) is None for tensor in tensors):
        return None
    real_args, real_kwargs = mapped((args, kwargs), known.value)

    def run() -> Any:
        made = func(*real_args, **real_kwargs)
        known.rely_on(tensors)
        reason = known.reason(tensors)
        return mapped(made, lambda real: _known_twin(known, real, reason))

    return run


def _known_twin(known: Known, real: torch.Tensor, reason: str | None) -> torch.Tensor:
    twin = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device=META)
    if fits(real):
        whole = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype).copy_(real)
        known.put(twin, whole, reason)
    return twin


def _assumed(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Answer as if everything were kept: all elements of a mask true, all values distinct."""
    packet = func._schema.name.partition("::")[2]
    x: Any = args[0] if args else kwargs.get("self")
    if packet == "nonzero":
        return lambda: _all_places(known, x)
    if packet == "masked_select":
        mask = args[1] if len(args) > 1 else kwargs["mask"]
        places = known.value(mask)
        shape = torch._C._infer_size(x.shape, mask.shape)
        if places is None:
            known.reasons[KEPT] = None
            return lambda: x.new_empty(math.prod(shape))
        known.rely_on([mask])
        count = int(places.expand(shape).count_nonzero())
        return lambda: x.new_empty(count)
    if packet in ("_unique", "_unique2", "unique_consecutive", "unique_dim"):
        return lambda: _all_distinct(known, func, args, kwargs)
    return None


def _all_places(known: Known, x: torch.Tensor) -> torch.Tensor:
    """Return the indices of all elements of `x`, as `nonzero` lays them out (one column after the other)."""
    known.reasons[KEPT] = None
    count, dimensions = x.numel(), x.dim()
    if count * dimensions <= LARGEST:
        return _known_twin(known, torch.ones(x.shape, dtype=torch.bool).nonzero(), KEPT)
    return torch.empty_strided((count, dimensions), (1, count), dtype=torch.int64, device=META)


def _all_distinct(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what `unique` returns of values that all differ, in their order."""
    known.reasons[KEPT] = None
    x = args[0]
    stand_in = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape).to(torch.int64)
    made = func(stand_in, *args[1:], **kwargs)
    values, *others = made
    twins = [torch.empty(values.shape, dtype=x.dtype, device=META)]
    return (*twins, *(_known_twin(known, other, KEPT) for other in others))


def _index(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Turn masks among the indices into the places where they are true."""
    x, indices = args[0], args[1]
    if not any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return None
    if (whole := _computed(known, func, args, kwargs)) is not None:  # what is picked out stays known
        return whole
    expanded: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            expanded.append(index)
            continue
        places = known.value(index)
        if places is None:
            known.reasons[KEPT] = None
        else:
            known.rely_on([index])
        count = index.numel() if places is None else int(places.count_nonzero())
        expanded += [torch.empty(count, dtype=torch.int64, device=META) for _ in range(index.dim())]
    return lambda: func(x, expanded, *args[2:], **kwargs)


def _repeats(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Repeat by known counts, or to the size that was given."""
    size = kwargs.get("output_size")
    if size is not None:
        return _computed(known, func, args, kwargs) or (lambda: torch.empty(size, dtype=torch.int64, device=META))
    return _computed(known, func, args, kwargs)


def _nms(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Keep every box."""
    boxes = args[0]

    def keep_all() -> torch.Tensor:
        known.reasons[KEPT] = None
        return _known_twin(known, torch.arange(boxes.shape[0], device=CPU), KEPT)

    return keep_all


def _packed(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Pack sequences of known lengths: one row for each step of each."""
    x, lengths = args[:2]
    counts = known.value(lengths)
    if counts is None:
        return None

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        known.rely_on([lengths])
        steps = torch.arange(int(counts.max()) if counts.numel() else 0)
        batch_sizes = (counts[None, :] > steps[:, None]).sum(1)
        rows = x.new_empty((int(counts.sum()), *x.shape[2:]))
        return rows, _known_twin(known, batch_sizes, known.reason([lengths]))

    return run


def _packed_backward(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    gradient, size = args[:2]
    return lambda: gradient.new_empty(tuple(size))


def _packed_linear(known: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
    """Multiply by a weight that is packed in an object, for which there is no meta kernel."""
    x, packed = args[:2]

    def run() -> torch.Tensor:
        with _disable_current_modes():
            weight, _ = packed.unpack()
        made: torch.Tensor = x.new_empty((*x.shape[:-1], weight.shape[0]))
        return made

    return run


_SPECIAL: dict[str, Callable[[Known, Any, tuple[Any, ...], dict[str, Any]], Answer | None]] = {
    "aten::index": _index,
    "aten::_unsafe_index": _index,
    "aten::repeat_interleave": _repeats,
    "torchvision::nms": _nms,
    "aten::_pack_padded_sequence": _packed,
    "aten::_pack_padded_sequence_backward": _packed_backward,
    **dict.fromkeys((f"quantized::linear{form}" for form in PACKED_LINEAR), _packed_linear),
}
