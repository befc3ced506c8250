"""Real seconds on this machine: the model is run a few times, and each row of the by-layer view gets its median."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger.capture import LOCK, Mode, capture, ready
from torchledger.capture.interrupts import uninterrupted
from torchledger.capture.process import put_back
from torchledger.capture.scopes import walk
from torchledger.capture.twins import Aside, Copies, MadeUp
from torchledger.errors import UserError
from torchledger.inputs import mapped
from torchledger.ledger import ForwardError, Ledger
from torchledger.record import Measured, Measurement, Record, RowKey

REPEATS = 7
FEWEST = 3
BUDGET_SECONDS = 3.0  # for all repeats; the fewest are run all the same


def has_values(model: nn.Module) -> bool:
    """Whether the model can be run for real: none of its parameters and buffers is on meta or still uninitialised."""
    tensors = [*model.parameters(), *model.buffers()]
    return not any(t.is_meta or is_lazy(t) for t in tensors)


def check_measurable(model: nn.Module) -> None:
    """Raise UserError for a model without values."""
    if not has_values(model):
        raise UserError(
            "cannot measure a model without values: it lies on meta or has parameters that are not initialised; "
            "build it with values, or leave measure out"
        )


def measure(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: Mode) -> Measurement:
    """Run `model` for real, without gradients, and return the median seconds of each row and of a whole forward.

    Inputs on meta are made up: floating-point numbers from 0 to 1, zeros for integers and bools. One run warms up; then
    each repeat is a forward without instruments (`wall_seconds`) and one that times every operation on its own.
    Buffers, random states and tensors that were given are as before afterwards; what the model prints is dropped.

    Raise UserError for a model without values, ForwardError where the real run fails.
    """
    check_measurable(model)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    synchronize = _synchronizer(device)
    modules = walk(model)
    aside = Aside()  # filled in the watched runs, put back after all
    walls: list[float] = []
    runs: list[dict[RowKey, float]] = []
    started = 0.0
    # The lock for all of it: sys.stdout is the process's, and other captures would be in the times.
    with (
        LOCK,
        uninterrupted() as interrupts,
        put_back(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        interrupts.let_through(),
    ):
        for repeat in range(REPEATS + 1):
            copies = Copies(aside)
            values = MadeUp(device)
            given, keywords = mapped((args, dict(kwargs)), values.filled)
            captured = capture(model, given, keywords, mode, real=copies, synchronize=synchronize, quiet=True)
            if captured.error is not None:
                raise _failed(captured.record.error, captured.record) from captured.error
            copies = Copies(aside)
            with ready(modules, copies, mode, [given, keywords]) as inner, inner.let_through():
                given, keywords = mapped((given, keywords), copies.of)
                synchronize()
                before = time.perf_counter()
                try:
                    output = model(*given, **keywords)
                except Exception as error:
                    raise _failed(f"{type(error).__name__}: {error}", captured.record) from error
                synchronize()
                wall = time.perf_counter() - before
                del output
            if repeat == 0:  # the warm-up
                started = time.perf_counter()
                continue
            walls.append(wall)
            seconds: dict[RowKey, float] = defaultdict(float)
            for key, spent in zip(captured.record.row_keys(), captured.seconds, strict=True):
                seconds[key] += spent
            runs.append(seconds)
            if repeat >= FEWEST and time.perf_counter() - started > BUDGET_SECONDS:
                break
    keys = dict.fromkeys(key for run in runs for key in run)
    rows = [Measured(*key, statistics.median(run.get(key, 0.0) for run in runs)) for key in keys]
    return Measurement(rows, statistics.median(walls), len(walls), _device_name(device))


def _failed(reason: str | None, record: Record) -> ForwardError:
    return ForwardError(f"the real run failed, where the run on meta did not: {reason}", Ledger(record))


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}, {threads} thread{'s' * (threads != 1)})"
    return str(device)
