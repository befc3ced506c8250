"""A run for real where meta cannot go on: on the values that a model has, and on made-up ones where it has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger.capture import Captured, Mode, capture
from torchledger.capture.autocast import Region
from torchledger.capture.scopes import walk
from torchledger.capture.state import state_of
from torchledger.capture.twins import Copies
from torchledger.errors import UserError
from torchledger.inputs import tensors_in
from torchledger.training import Training

Execute = bool | Literal["auto"]
LARGEST = 2_000_000_000  # bytes of parameters, buffers and inputs: what a laptop runs in seconds and has memory for

FELL = "what the model does by its own values is as they fell"
MADE_UP = "its parameters and buffers have made-up values"
INPUTS_MADE_UP = "its inputs have made-up values"


def check_execute(execute: object) -> None:
    """Raise UserError for what does not say whether a model is run for real."""
    if not isinstance(execute, bool) and execute != "auto":
        raise UserError(
            f"execute is {execute!r}; write True (run the model for real), False (never) or 'auto' (where an analysis "
            "without values cannot go on)"
        )


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: Mode = "eval",
    batch: int = 1,
    model_dtype: torch.dtype | None = None,
    training: Training | None = None,
    execute: Execute = "auto",
    autocast: Region | None = None,
) -> Captured:
    """Capture the model on meta, or for real: when that is asked for, or when operations need values (`auto`).

    A run for real takes the sizes that were given. It says among the record's assumptions that it was one, and why.
    Raise UserError for a model that `execute=True` cannot run.
    """
    if execute is True:
        if (reason := _obstacle(model, (args, kwargs), autocast, made_up_alone=True)) is not None:
            raise UserError(f"execute=True runs the model for real, but {reason}")
        return _for_real(model, args, kwargs, mode, batch, model_dtype, training, autocast, "run for real, as asked", 0)
    captured = capture(model, args, kwargs, mode, batch, model_dtype, training=training, autocast=autocast)
    if not captured.needs_values:
        return captured
    why = captured.record.error
    if execute is False:
        captured.record.error = f"{why}; execute=True (--execute) runs the model for real"
        return captured
    if (reason := _obstacle(model, (args, kwargs), autocast)) is not None:
        captured.record.error = f"{why}; it was not run for real instead: {reason}"
        return captured
    notice = f"run for real, since {why}"
    printed = captured.lines_printed
    real = _for_real(model, args, kwargs, mode, batch, model_dtype, training, autocast, notice, printed)
    if real.error is not None:
        real.record.error = f"{real.record.error} (run for real, since {why})"
    return real


def _for_real(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: Mode,
    batch: int,
    model_dtype: torch.dtype | None,
    training: Training | None,
    autocast: Region | None,
    notice: str,
    lines_printed: int,
) -> Captured:
    state = state_of(walk(model))
    copies = Copies(dtype=model_dtype, cast=state if model_dtype is not None else (), device=device_of(state))
    captured = capture(
        model,
        args,
        kwargs,
        mode,
        batch,
        None,
        copies,
        training=training,
        lines_printed=lines_printed,
        autocast=autocast,
    )
    said = [notice, FELL]
    said += [MADE_UP] * any(tensor.is_meta for tensor in state)
    said += [INPUTS_MADE_UP] * any(tensor.is_meta for tensor in tensors_in((args, dict(kwargs))))
    captured.record.assumptions.insert(0, "; ".join(said))
    return captured


def device_of(state: Iterable[torch.Tensor]) -> torch.device:
    """Return where a model with these parameters and buffers runs for real: where the first with values lies."""
    return next((tensor.device for tensor in state if not tensor.is_meta), torch.device("cpu"))


def _obstacle(model: nn.Module, inputs: Any, autocast: Region | None, made_up_alone: bool = False) -> str | None:
    """Say why a model is not run for real, or return None. `made_up_alone`: what has values is no obstacle."""
    state = state_of(walk(model))
    if any(map(is_lazy, state)):
        return "it has parameters that are not initialised: call it once, or build it with sizes"
    if autocast is not None and autocast.device != (device := device_of(state).type):
        return f"it would run on {device}, where autocast is another than the {autocast.description} that was asked for"
    tensors = {id(tensor): tensor for tensor in (*state, *tensors_in(inputs))}.values()
    counted = [tensor for tensor in tensors if tensor.is_meta or not made_up_alone]
    size = sum(tensor.numel() * tensor.element_size() for tensor in counted)
    if size <= LARGEST:
        return None
    what = f"its parameters, buffers and inputs take {size / 1e9:.1f} GB"
    limit = f"{LARGEST / 1e9:g} GB"
    if any(tensor.is_meta for tensor in state):
        return f"{what}, and values for at most {limit} are made up: build it smaller, or with values"
    return f"{what}, and more than {limit} are run when asked to alone: execute=True (--execute)"
