"""What the user gave (a size, sizes, tensors, nested in lists, tuples, dicts, dataclasses) -> example inputs."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from torchledger.errors import UserError, close_matches

DtypeLike = torch.dtype | str
# One for all inputs, one for each positional input, or by place (0, 1, ...) and name.
InputDtype = DtypeLike | Sequence[DtypeLike] | Mapping[int | str, DtypeLike]


SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def as_dtype(value: DtypeLike, name: str) -> torch.dtype:
    """Return the torch dtype that `value` names. Raise UserError where it names none."""
    if isinstance(value, torch.dtype):
        return value
    word = str(value).removeprefix("torch.")
    dtype = getattr(torch, SHORT.get(word, word), None)
    if isinstance(dtype, torch.dtype):
        return dtype
    choices = sorted(n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype))
    raise UserError(
        f"{name} is {value!r}, which is no dtype; write float32, bfloat16 or int64, for example."
        f"{close_matches(str(value), choices)}"
    )


def check_batch(batch: object) -> None:
    """Raise UserError for a batch that is no whole number from 1."""
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UserError(f"batch is {batch!r}, expected a whole number from 1")


def example_inputs(
    inputs: Sequence[object],
    kwargs: Mapping[str, object] | None,
    batch: int,
    input_dtype: InputDtype | None,
    default_dtype: torch.dtype,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments with each per-sample size replaced by a meta tensor of `batch` samples.

    Raise UserError for a size that is not one, a batch below 1, or a call as torchstat's `stat(model, size, 1)`.
    """
    check_batch(batch)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise UserError(f"kwargs is {kwargs!r}, expected the keyword inputs by name, as in kwargs={{'mask': (128,)}}")
    keyword = dict(kwargs or {})
    if not inputs and not keyword:
        raise UserError("no input was given; write a per-sample size such as (3, 224, 224), or pass tensors")
    dtypes = _dtypes(input_dtype, len(inputs), list(keyword), default_dtype)
    for index, value in enumerate(inputs):
        if isinstance(value, int) and not isinstance(value, bool):
            raise UserError(
                f"input {index + 1} is the number {value}; write batch={value} for a batch, or ({value},) for a size "
                "(torchstat's third argument, query_granularity, is by_module(depth=...) here)"
            )
        if isinstance(value, (str, bytes)):
            raise UserError(
                f"input {index + 1} is the text {value!r}; write a size such as (3, 224, 224), "
                "or pass a text that forward takes by its name, in kwargs"
            )
    positional = tuple(_filled(value, batch, dtypes[i], f"input {i + 1}") for i, value in enumerate(inputs))
    for name, value in keyword.items():
        if value is not None and not isinstance(value, (bool, int, float, str)):
            keyword[name] = _filled(value, batch, dtypes[name], f"input {name!r}")
    return positional, keyword


def _dtypes(
    given: InputDtype | None, count: int, names: list[str], default: torch.dtype
) -> dict[int | str, torch.dtype]:
    """Return the dtype of each input, by place or name."""
    places: list[int | str] = [*range(count), *names]
    if given is None:
        return dict.fromkeys(places, default)
    if isinstance(given, (torch.dtype, str)):
        return dict.fromkeys(places, as_dtype(given, "input_dtype"))
    if isinstance(given, Mapping):
        for key in given:
            if key not in places or isinstance(key, bool):
                raise UserError(f"input_dtype names {key!r}; the inputs are {', '.join(map(repr, places))}")
    elif not isinstance(given, Sequence):
        raise UserError(f"input_dtype is {given!r}, expected a dtype, a list of dtypes, or dtypes by place and name")
    elif len(given) != count:
        raise UserError(f"input_dtype has {len(given)} dtypes for {count} inputs; give one for each, or one for all")
    chosen = given if isinstance(given, Mapping) else dict(enumerate(given))
    return dict.fromkeys(places, default) | {
        key: as_dtype(value, f"input_dtype[{key!r}]") for key, value in chosen.items()
    }


def _filled(value: object, batch: int, dtype: torch.dtype, where: str) -> Any:
    if isinstance(value, torch.Tensor):
        return _dense(value, where)
    if isinstance(value, torch.Size):
        raise UserError(
            f"{where} is {value}, which holds its batch; write the per-sample size {tuple(value[1:])} "
            f"and batch={value[0] if value else 1}"
        )
    if isinstance(value, (tuple, list)) and value and all(isinstance(size, Real) for size in value):
        sizes: tuple[Any, ...] = tuple(size if isinstance(size, (bool, float)) else _whole(size) for size in value)
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(f"{where} is the size {sizes}; {size!r} in it is not a whole number from 1")
        try:
            made = torch.empty((batch, *sizes), dtype=dtype, device="meta")
        except (RuntimeError, TypeError, OverflowError, NotImplementedError) as error:
            raise UserError(
                f"{where} cannot be a {str(dtype).removeprefix('torch.')} tensor of size {(batch, *sizes)}: "
                "there are too many elements, or no such tensors"
            ) from error
        return _dense(made, where)
    return mapped(value, lambda item: item, lambda item: _filled(item, batch, dtype, where))


def _dense(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """Return a tensor that can be analysed. Raise UserError for any other."""
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else layout
        raise UserError(f"{where} is a {kind} tensor, which cannot be analysed yet; pass a dense one")
    return tensor


def _whole(size: Any) -> Any:
    """Return an int for numpy's integers too."""
    return operator.index(size) if isinstance(size, Integral) else size


def mapped(value: Any, tensor: Callable[[torch.Tensor], Any], inner: Callable[[Any], Any] | None = None) -> Any:
    """Return `value` rebuilt with `tensor` applied to each tensor in its lists, tuples, dicts and dataclasses."""
    if type(value) in _ATOMS:
        return value
    if isinstance(value, torch.Tensor):
        return tensor(value)
    again = inner or (lambda item: mapped(item, tensor))
    if isinstance(value, dict):
        copy = value.copy()
        for key, item in value.items():
            copy[key] = again(item)
        return copy
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(again(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(again(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = object.__new__(type(value))
        for field in dataclasses.fields(value):
            object.__setattr__(new, field.name, again(getattr(value, field.name)))
        return new
    return value


_ATOMS = frozenset({int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout})


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return the tensors in nested lists, tuples, dicts and dataclasses, in order."""
    if type(value) in _ATOMS:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for field in dataclasses.fields(value) for t in tensors_in(getattr(value, field.name))]
    return []
