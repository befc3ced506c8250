"""Calling what makes a model: its arguments are checked first, and it is built on meta where that can be."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torchledger.errors import UserError, check_accepted, raised_at
from torchledger.sources.naming import Source, describe

if TYPE_CHECKING:
    from torch import nn


def construct(
    source: Source, target: object, arguments: dict[str, object], device: Literal["meta"] | None
) -> tuple[nn.Module, bool]:
    """Return the model and whether it was built on meta."""
    import torch
    from torch import nn

    if isinstance(target, nn.Module):
        if arguments:
            raise UserError(
                f"{source.name!r} is a model that is already built: it takes no arguments ({', '.join(arguments)});"
                " name its class or a function to give some"
            )
        return target, False
    if not callable(target) or (inspect.isclass(target) and not issubclass(target, nn.Module)):
        kind = f"class {target.__name__}" if inspect.isclass(target) else f"value of type {type(target).__name__}"
        raise UserError(
            f"{source.name!r} is a {kind}, not an nn.Module: name an nn.Module class, a function that returns one, or a"
            " model"
        )
    _check_arguments(source, target, arguments)
    if device == "meta":
        # A constructor that needs values (a .tolist(), weights read from a file) fails on meta. If it fails for real
        # too, that second error is the one to show.
        # So is what it prints then.
        printed = io.StringIO()
        try:
            with torch.device("meta"), whole_numbers(), contextlib.redirect_stdout(printed):
                on_meta = target(**arguments)
        except UserError:
            raise
        except (Exception, SystemExit):
            pass
        else:
            print(printed.getvalue(), end="")
            return _checked_model(source, on_meta), True
    return _checked_model(source, _call(source, target, arguments)), False


def whole_numbers() -> contextlib.AbstractContextManager[object]:
    """Return a context in which `torch.tensor(3)` keeps its value on any default device.

    A constructor that keeps a stride or a kernel's size in a buffer reads it in forward. A single number on the CPU
    goes together with tensors of every device.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class WholeNumbers(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.tensor and args and isinstance(args[0], int) and "device" not in kwargs:
                dtype = kwargs.get("dtype")
                if dtype is None or not (dtype.is_floating_point or dtype.is_complex):
                    kwargs = {**kwargs, "device": "cpu"}
            return func(*args, **kwargs)

    mode: contextlib.AbstractContextManager[object] = WholeNumbers()
    return mode


def _call(source: Source, target: Callable[..., object], arguments: dict[str, object]) -> object:
    try:
        return target(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        name = source.attribute or source.name
        raise UserError(f"building {name}({written}) failed: {describe(error)}{raised_at(error)}") from error


def _checked_model(source: Source, model: object) -> nn.Module:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UserError(
            f"{source.name!r} returned a {type(model).__name__}, not an nn.Module: name a function that returns a model"
        )
    return model


def _check_arguments(source: Source, target: Callable[..., object], arguments: dict[str, object]) -> None:
    """Compare the arguments with the signature, where it has one, before anything runs."""
    check_accepted(source.name, target, arguments)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        flags = " ".join(f"--arg {name}=VALUE" for name in missing)
        noun = "argument" if len(missing) == 1 else "arguments"
        raise UserError(f"{source.name!r} needs the {noun} {', '.join(missing)}: say {flags}")
