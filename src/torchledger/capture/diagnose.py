"""Why a forward failed, in one line: module path, operation, the shapes that reached it, the number that would fit."""

from __future__ import annotations

import math
import re
import textwrap
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from torchledger.capture.failures import forget, noted
from torchledger.capture.recorder import FailedOperation, Recorder
from torchledger.capture.scopes import Scopes
from torchledger.errors import UserError, printable, raised_at
from torchledger.record import Shape


class Diagnosis(NamedTuple):
    """The line for an error, the call of a module in which it was raised, and whether it was for want of values."""

    line: str
    call: int
    needs_values: bool = False


def explain(error: BaseException, scopes: Scopes, recorder: Recorder) -> Diagnosis:
    """Return why forward raised `error`, and where."""
    chain = _chain(error)
    in_script = _said_by_torchscript(error)
    if in_script == "" and recorder.failure is not None:
        error = recorder.failure  # it went through TorchScript, which keeps only its class
        chain += _chain(error)
    operation_failed, function_failed, module_failed = (noted(chain, p) for p in ("operation", "function", "module"))
    forget(chain)
    raised, failed = operation_failed or function_failed or (error, None)
    module, call = None, failed.call if failed is not None else 0
    if module_failed is not None:
        call_of_module, module = module_failed[1]
        if failed is None or failed.call != call_of_module:
            call = call_of_module if failed is None else failed.call
            module = module if failed is None else None
    record = scopes.record
    path = record.modules.paths[record.calls.modules[call]] or "(root)"
    shapes = record.calls.inputs[call]
    if isinstance(error, UserError):  # a network says itself what it takes, before it runs
        return Diagnosis((str(error) if path == "(root)" else f"{path}: {error}"), call)
    said = None
    if module is not None and shapes:
        said = _misfit(module, shapes[0])
    candidates = [found for found in (function_failed, operation_failed) if found is not None]
    for _, candidate in candidates:
        said = said or _operation_misfit(candidate)
    operation = _written(failed) if failed is not None else ""
    if any("nested" in candidate.name or "NestedTensorImpl" in str(e) for e, candidate in candidates):
        nested = "nested tensors of the strided layout cannot be analysed: use layout=torch.jagged, or pad them"
        return Diagnosis(f"{path}: {nested}{raised_at(error)}", call)
    if said is not None:
        given = [f"input {_sizes(shapes[0])}"] if module is not None and shapes else []
        return Diagnosis(f"{path}: {said} ({'; '.join(given + [operation] * bool(operation))})", call)
    if failed is not None and _needs_values(raised, failed):
        what = "item" if "_local_scalar_dense" in failed.name else failed.name
        return Diagnosis(
            f"{path}: {what} needs the values of a tensor, and an analysis computes none{raised_at(error)}",
            call,
            needs_values=True,
        )
    if in_script and "data is not allocated yet" in in_script:
        what = f"{path}: TorchScript needs the values of a tensor, and an analysis computes none{raised_at(error)}"
        return Diagnosis(what, call, needs_values=True)
    try:
        reason = textwrap.shorten(in_script or str(error), 300, placeholder=" ...")
    except Exception:  # an exception whose text raises
        reason = ""
    reason = printable(reason)
    reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if operation:
        return Diagnosis(f"{path}: {operation} failed: {reason}{raised_at(error)}", call)
    inputs = f" (inputs {', '.join(map(_sizes, shapes))})" if shapes else ""
    return Diagnosis(f"{path}: {reason}{inputs}{raised_at(error)}", call)


_NO_KERNEL = ("Meta' backend", "Meta kernel", "Cannot copy out of meta tensor")


def _needs_values(error: BaseException, failed: FailedOperation) -> bool:
    """Whether the operation asked for values that a meta tensor has not."""
    if error.__class__ not in (RuntimeError, NotImplementedError, TypeError):
        return False
    said = str(error)
    if isinstance(error, NotImplementedError) and any(part in said for part in _NO_KERNEL):
        return True
    by_name = any(name in failed.name for name in ("_local_scalar_dense", "numpy", "tolist", "__array__"))
    return by_name or any(part in said for part in _READS_VALUES)


# What torch says where it reads values in C++, or has no kernel that goes without.
_READS_VALUES = (
    "torch.nonzero()",
    "Tensor.item() cannot be called on meta",
    "data is not allocated yet",
    "on cpu, but it's on meta",
    "no fake impl registered",
)


def _said_by_torchscript(error: BaseException) -> str | None:
    """Return the reason at the end of an error of TorchScript's interpreter, below its listing; None for others."""
    if type(error) not in (RuntimeError, torch.jit.Error) or "in the TorchScript interpreter" not in str(error):
        return None
    return re.split(r"^[\w.]+: ?$|^[\w.]+: ", str(error).strip(), flags=re.MULTILINE)[-1].strip()


def _chain(error: BaseException) -> list[BaseException]:
    """Return `error` and what it was raised from."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _written(failed: FailedOperation) -> str:
    return f"{failed.name}: {', '.join(_sizes(t.shape) for t in failed.inputs)}" if failed.inputs else failed.name


def _misfit(module: nn.Module, shape: Shape) -> str | None:
    """Say which number of the module the input does not fit, or None."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear) and (not shape or shape[-1] != module.in_features):
        return f"{kind} expects {module.in_features} features, got {shape[-1] if shape else 'a scalar'}"
    if isinstance(module, _ConvNd):
        spatial = len(module.kernel_size)
        if len(shape) not in (spatial + 1, spatial + 2):
            return f"{kind} expects {spatial + 1} or {spatial + 2} dimensions, got {len(shape)}"
        channels = shape[-spatial - 1]
        if channels != module.in_channels:
            return f"{kind} expects {module.in_channels} channels, got {channels}"
    if isinstance(module, _BatchNorm):
        dimensions = {"BatchNorm1d": (2, 3), "BatchNorm2d": (4,), "BatchNorm3d": (5,)}.get(kind, ())
        if len(shape) < 2 or (dimensions and len(shape) not in dimensions):
            wanted = " or ".join(map(str, dimensions)) or "at least 2"
            return f"{kind} expects {wanted} dimensions, got {len(shape)}"
        if shape[1] != module.num_features:
            return f"{kind} expects {module.num_features} features, got {shape[1]}"
    if isinstance(module, nn.LayerNorm):
        wanted_shape = tuple(module.normalized_shape)
        if shape[-len(wanted_shape) :] != wanted_shape:
            return f"{kind} expects last sizes {_sizes(wanted_shape)}, got {_sizes(shape[-len(wanted_shape) :])}"
    if isinstance(module, nn.GroupNorm) and len(shape) > 1 and shape[1] != module.num_channels:
        return f"{kind} expects {module.num_channels} channels, got {shape[1]}"
    if isinstance(module, nn.RNNBase) and shape and shape[-1] != module.input_size:
        return f"{kind} expects {module.input_size} features, got {shape[-1]}"
    return None


def _operation_misfit(failed: FailedOperation) -> str | None:
    """Say what would fit an operation that stands outside a module of a kind that `_misfit` knows."""
    if failed.name in ("view", "reshape", "view_as", "unflatten") and len(failed.inputs) == 1:
        return _view_misfit(failed)
    if failed.name == "linear" and len(failed.inputs) > 1:
        x, weight = failed.inputs[:2]
        if x.shape and weight.shape and x.shape[-1] != weight.shape[-1]:
            return f"linear expects {weight.shape[-1]} features, got {x.shape[-1]}"
    if failed.name in ("addmm", "mm", "bmm", "baddbmm") and len(failed.inputs) > 1:
        left, right = failed.inputs[-2:]
        dimensions = 2 if failed.name in ("addmm", "mm") else 3
        for tensor in (left, right):
            if len(tensor.shape) != dimensions:
                return f"{failed.name} expects {dimensions} dimensions, got {len(tensor.shape)}"
        if left.shape[-1] != right.shape[-2]:
            return f"{failed.name} multiplies rows of {left.shape[-1]} with columns of {right.shape[-2]}"
    if failed.name == "convolution" and len(failed.inputs) > 1:
        x, weight = failed.inputs[:2]
        if len(weight.shape) < 3 or len(x.shape) != len(weight.shape):
            return None
        groups = failed.arguments.get("groups", 1)
        if isinstance(groups, int) and len(x.shape) > 1:
            wanted = weight.shape[0] if failed.arguments.get("transposed") else weight.shape[1] * groups
            if x.shape[1] != wanted:
                return f"convolution expects {wanted} channels, got {x.shape[1]}"
    return None


def _view_misfit(failed: FailedOperation) -> str | None:
    """Find the one size of a view that, changed, makes the sizes multiply out."""
    x = failed.inputs[0]
    sizes = failed.arguments.get("size")
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) for size in sizes):
        return None
    product = math.prod(size for size in sizes if size != -1)
    written = f"{failed.name}({', '.join(map(str, sizes))})"
    if product == 0 or (x.elements % product == 0 if -1 in sizes else x.elements == product):
        return None  # they do multiply out: the strides stand in the way
    total = x.elements
    if -1 in sizes and x.shape and x.shape[0]:
        total //= x.shape[0]  # the free dimension is meant for the samples: one sample must fill the others
    fits = [
        f"{total // (product // size)} would fit in place of {size}"
        for size in reversed(sizes)
        if size not in (-1, 0) and total % (product // size) == 0 and total // (product // size) != size
    ]
    best = f"; {fits[0]}" if fits else ""
    return f"{written} asks for {product} elements{' or a multiple' * (-1 in sizes)}, got {x.elements}{best}"
