"""What people call: `analyze` captures a model and returns its ledger, `stat` prints the table as well.

`assert_within` is for tests: it holds the ledger against limits.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from torchledger import gate, pricing
from torchledger.amounts import parse_share
from torchledger.capture import MODES, Mode
from torchledger.capture.autocast import AutocastLike, region_of
from torchledger.capture.execution import Execute, check_execute, run
from torchledger.capture.scopes import walk
from torchledger.capture.state import home
from torchledger.errors import UserError, close_matches
from torchledger.inputs import DtypeLike, InputDtype, as_dtype, example_inputs
from torchledger.ledger import ForwardError, Ledger
from torchledger.measure import check_measurable, has_values
from torchledger.measure import measure as measure_run
from torchledger.pricing import Rules
from torchledger.report import for_stream
from torchledger.training import LossLike, OptimizerLike, Training, training_step
from torchledger.views import AtLeast

Measure = Literal["no", "if cheap", "yes"]
MEASURED_BELOW = 20_000_000_000  # macs: what torchstat's duration column is filled for without asking


def analyze(
    model: nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch: int = 1,
    mode: Mode = "eval",
    input_dtype: InputDtype | None = None,
    model_dtype: DtypeLike | None = None,
    training: bool = False,
    loss: LossLike = None,
    optimizer: OptimizerLike = None,
    execute: Execute = "auto",
    rules: Rules | None = None,
    autocast: AutocastLike = None,
) -> Ledger:
    """Run `model` once without computing anything, and return the ledger of what it would do.

    Nothing is allocated for weights or activations, and the model is left exactly as it was. A model whose forward goes
    by the values that it computes cannot be analysed without values; then `execute` says what happens.

    Args:
        model: any `nn.Module`, on any device, with values or on meta.
        inputs: for each positional argument of forward a per-sample size such as `(3, 224, 224)`, to which a batch
            dimension of `batch` samples is added, or a tensor (real or meta, batch included), or lists, tuples, dicts
            and dataclasses of these.
        kwargs: keyword arguments of forward, given in the same way; numbers, strings, bools and None pass as they are.
        batch: samples of an input that is given as a size.
        mode: "eval", "train", or "as_is" for the flags that the modules have.
        input_dtype: dtype of inputs given as sizes: one for all, one for each positional input, or by place and name
            as in `{0: "int64", "mask": "bool"}`. Default: that of the
            model's first floating-point parameter.
        model_dtype: take floating-point parameters and buffers as if they had this dtype.
        training: go through a whole training step: forward in train mode (or "as_is"), loss, backward, optimizer
            step, as it is when the optimizer has its state.
        loss: "cross_entropy", "mse", ..., a loss of torch.nn, or a function of forward's output that returns a scalar.
            Default: the loss that the output carries, else the sum of all outputs.
        optimizer: "sgd", "momentum", "adam", "adamw", ..., a class or instance of torch.optim, or a function of the
            parameters. Default: no optimizer step.
        execute: "auto" runs the model once for real where operations need values that an analysis does not have, and
            says so among the ledger's assumptions; parameters, buffers and inputs on meta get made-up values, and all
            may take 2 GB. False refuses. True always runs the model for real, of any size if it has values.
        rules: how to price custom operations in this ledger, by name, as `register_rule` does for all.
        autocast: run forward and loss under `torch.autocast` with this dtype, "bfloat16" or "float16"; backward outside
            of it. The casts are those of the device that the model lives on (on meta: of a CPU); "cuda:bfloat16" takes
            it to live on a GPU.

    Raises:
        UserError: for an argument that is wrong.
        ForwardError: where the model's forward fails, or needs values and is not run for real; its `ledger` holds what
            ran before.

    Examples:
        >>> from torch import nn
        >>> analyze(nn.Linear(4, 3), (4,), batch=2).totals()["macs"]
        24
        >>> ledger = analyze(nn.Linear(4, 3), (4,), batch=2, training=True, loss="cross_entropy", optimizer="sgd")
        >>> ledger.totals(phase="backward")["macs"]  # of the weight's gradient; the input asks for none
        24
    """
    step = checked_step(training, loss, optimizer)
    ledger, error = open_ledger(
        model, inputs, kwargs, batch, mode, input_dtype, model_dtype, "no", rules, step, execute, autocast
    )
    if error is not None:
        raise error
    return ledger


def stat(
    model: nn.Module,
    *inputs: Any,
    convention: str = "full",
    measure: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch: int = 1,
    mode: Mode = "eval",
    input_dtype: InputDtype | None = None,
    model_dtype: DtypeLike | None = None,
    training: bool = False,
    loss: LossLike = None,
    optimizer: OptimizerLike = None,
    execute: Execute = "auto",
    rules: Rules | None = None,
    autocast: AutocastLike = None,
) -> Ledger:
    """Print the by-layer table of `model` under `convention` and return its ledger.

    Args:
        convention: "full" (all arithmetic and bytes), "torchstat" (torchstat's columns and arithmetic) or "fvcore" (the
            GMACs and activation counts that timm publishes).
        measure: also run the model for real and show seconds and shares a row. Default: under "torchstat" only, for a
            model that has values and costs less than 20 GMACs.

    The other arguments, and what is raised, are those of `analyze`. Where forward fails, the table up to the failing
    operation is printed, if there was one, before `ForwardError` is raised.
    """
    chosen = pricing.convention(convention)
    unasked: Measure = "if cheap" if measure is None and chosen.name == "torchstat" else "no"
    step = checked_step(training, loss, optimizer, bool(measure))
    wanted: Measure = "yes" if measure else "no" if step is not None else unasked
    ledger, error = open_ledger(
        model, inputs, kwargs, batch, mode, input_dtype, model_dtype, wanted, rules, step, execute, autocast
    )
    if error is None or ledger.totals()["operations"]:  # a forward that refuses its input has nothing to show
        print(for_stream(ledger.by_layer(convention), sys.stdout), end="")
    if error is not None:
        raise error
    return ledger


def assert_within(
    model: nn.Module,
    *inputs: Any,
    params: int | str | None = None,
    trainable_params: int | str | None = None,
    macs: int | str | None = None,
    flops: int | str | None = None,
    bytes_read: int | str | None = None,
    bytes_written: int | str | None = None,
    activation_bytes: int | str | None = None,
    peak: int | str | None = None,
    unknown: int | str | None = None,
    baseline: Ledger | str | os.PathLike[str] | None = None,
    tolerance: str = "0%",
    memory: Mapping[str, Any] | None = None,
    **options: Any,
) -> Ledger:
    """Raise AssertionError where a model's ledger exceeds a limit, and return the ledger where it does not.

    What is said is what `torchledger check` shows: all values, what exceeds its limit by how much, and the layers that
    it lies in. With unknown operations, a sum passes only where `unknown` allows for so many.

    Args:
        model, inputs, options: as for `analyze`.
        params, ..., unknown: the most that the quantity may be (docs/conventions.md, under `full`): a whole number, or
            a text such as "60M", "1.5G", or "2GB" and "2GiB" for bytes. `peak` is that of `Ledger.memory`.
        baseline: a ledger, or the file of one, that no quantity may exceed by more than the tolerance.
        tolerance: a share of what the quantity was in the baseline, such as "1%".
        memory: arguments of `Ledger.memory` for the peak, such as `{"device": "cpu"}`.

    Raises:
        AssertionError: where a quantity is above its limit, or not known to be within it.
        UserError: for an argument that is wrong, or a baseline of another kind of run.
        ForwardError: as `analyze`.

    Examples:
        >>> from torch import nn
        >>> assert_within(nn.Linear(4, 3), (4,), params=15, macs="1K").totals()["params"]  # 4 x 3 and 3
        15
    """
    asked = {
        "params": params, "trainable_params": trainable_params, "macs": macs, "flops": flops, "bytes_read": bytes_read,
        "bytes_written": bytes_written, "activation_bytes": activation_bytes, "peak": peak, "unknown": unknown,
    }  # fmt: skip
    limits = {name: gate.parse_limit(name, amount, name) for name, amount in asked.items() if amount is not None}
    share = parse_share(tolerance, "tolerance")
    before = baseline if baseline is None or isinstance(baseline, Ledger) else Ledger.load(baseline)
    unknown_names = sorted(options.keys() - inspect.signature(analyze).parameters.keys())
    if unknown_names:
        near = close_matches(unknown_names[0], [*asked, *inspect.signature(analyze).parameters])
        raise UserError(f"{unknown_names[0]!r} is neither a quantity nor an argument of analyze.{near}")
    gate.check_asked(limits, before, share, memory)
    ledger = analyze(model, *inputs, **options)
    checked = gate.check(ledger, limits, before, share, memory)
    if not checked.within:
        raise AssertionError(str(checked))
    return ledger


def checked_step(training: bool, loss: LossLike, optimizer: OptimizerLike, measure: bool = False) -> Training | None:
    """Return the training step that was asked for, or None. Raise UserError for what does not go together."""
    if training:
        if measure:
            raise UserError("a training step is not measured: leave measure or training out")
        return training_step(loss, optimizer)
    for name, given in (("loss", loss), ("optimizer", optimizer)):
        if given is not None:
            raise UserError(f"{name} was given without training: ask for training too, or leave {name} out")
    return None


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the model's first floating-point parameter: that of inputs which are given as sizes."""
    state = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return next((p.dtype for p in state if p.is_floating_point()), torch.get_default_dtype())


def open_ledger(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    batch: int,
    mode: Mode,
    input_dtype: InputDtype | None,
    model_dtype: DtypeLike | None,
    measure: Measure = "no",
    rules: Rules | None = None,
    training: Training | None = None,
    execute: Execute = "auto",
    autocast: AutocastLike = None,
) -> tuple[Ledger, ForwardError | None]:
    """Capture the model; return its ledger, and the error where forward failed. For `analyze`, `stat` and the shell.

    `measure`: "yes" also runs it for real, or raises where it cannot; "if cheap" does so for a model that has values,
    no unknown operation and less than MEASURED_BELOW macs, and goes on without where the real run fails.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        fix = f"make one: {model.__name__}(...)" if isinstance(model, type) else "pass the model itself"
        raise UserError(f"model is {what}, expected an nn.Module; {fix}")
    if not hasattr(model, "_modules"):
        raise UserError(f"{type(model).__name__} is no whole nn.Module: its __init__ does not call super().__init__()")
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}; the modes are {', '.join(map(repr, MODES))}")
    cast = None if model_dtype is None else as_dtype(model_dtype, "model_dtype")
    if cast is not None and not cast.is_floating_point:
        raise UserError(f"model_dtype is {cast}, expected a floating-point dtype such as bfloat16")
    pricing.checked_rules(rules)
    check_execute(execute)
    asked = measure == "yes"
    if asked and cast is not None:
        raise UserError("a measured run takes the model as it is: leave model_dtype out, or convert the model first")
    region = None if autocast is None else region_of(autocast, home(walk(model), (inputs, kwargs)).type)
    if asked and region is not None:
        raise UserError("a measured run takes the model as it is: leave measure or autocast out")
    default = cast or floating_dtype(model)
    args, keywords = example_inputs(inputs, kwargs, batch, input_dtype, default)
    if asked:
        check_measurable(model)
    if training is not None and mode == "eval":
        mode = "train"
    captured = run(model, args, keywords, mode, batch, cast, training, execute, region)
    ledger = Ledger(captured.record, rules)
    if captured.error is not None:
        error = ForwardError(captured.record.error or str(captured.error), ledger)
        error.__cause__ = captured.error
        return ledger, error
    if measure == "no" or (not asked and (cast is not None or region is not None or not has_values(model))):
        return ledger, None
    macs = ledger.totals()["macs"]
    if asked or (isinstance(macs, int) and not isinstance(macs, AtLeast) and macs < MEASURED_BELOW):
        try:
            captured.record.measurement = measure_run(model, args, keywords, mode)
        except ForwardError as failed:
            if asked:
                error = ForwardError(str(failed), ledger)
                error.__cause__ = failed.__cause__
                return ledger, error
            captured.record.assumptions.append(f"not measured: {failed}")
    return ledger, None
