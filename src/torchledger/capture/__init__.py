"""One run of the model -> Record, with everything put back as it was."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from torchledger.capture.autocast import Autocast, Region
from torchledger.capture.caches import without_meta
from torchledger.capture.diagnose import explain
from torchledger.capture.frontdoor import FrontDoor
from torchledger.capture.functions import Functions
from torchledger.capture.holdings import Swapped
from torchledger.capture.interrupts import Interrupts, uninterrupted
from torchledger.capture.leaves import Leaves
from torchledger.capture.modes import entered
from torchledger.capture.overloads import WHOLE, from_torchscript, reads_lists
from torchledger.capture.process import put_back, seed
from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Modules, Scopes, walk
from torchledger.capture.shapes import MEMO
from torchledger.capture.state import home, is_unset, list_state, state_of, watch_lazy
from torchledger.capture.step import loss_of, step
from torchledger.capture.surroundings import Surroundings
from torchledger.capture.twins import Copies, Twins
from torchledger.errors import UserError
from torchledger.inputs import mapped, tensors_in
from torchledger.record import Record
from torchledger.training import Training

Mode = Literal["eval", "train", "as_is"]
MODES = ("eval", "train", "as_is")
LOCK = threading.RLock()  # hooks, the fast-path switch and a model's twins belong to one capture at a time


@dataclass(frozen=True)
class Captured:
    """A record, whole or up to the operation where forward raised `error`; of a real run also seconds an entry.

    `needs_values`: the error is that a meta tensor has no values. `lines_printed`: by forward.
    """

    record: Record
    error: BaseException | None
    seconds: list[float]
    needs_values: bool = False
    lines_printed: int = 0


class Printed:
    """Stands in for stdout: lines go to stderr, but for the first few, which an earlier run has shown."""

    def __init__(self, shown: int) -> None:
        self.lines = 0
        self._shown = shown

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            if self.lines >= self._shown and sys.stderr is not None:
                sys.stderr.write(line)
            self.lines += line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: Mode = "eval",
    batch: int = 1,
    model_dtype: torch.dtype | None = None,
    real: Copies | None = None,
    synchronize: Callable[[], None] | None = None,
    quiet: bool = False,
    training: Training | None = None,
    lines_printed: int = 0,
    autocast: Region | None = None,
) -> Captured:
    """Run the model's forward once and record it, on meta twins of its tensors, or for real, on `real` copies of them.

    `training`: go on with loss, backward and optimizer step; see training.py. `autocast`: around forward and loss.

    `model_dtype`: take the floating-point parameters and buffers as if they had this dtype. `synchronize`: waits for
    the device; given for a real run, each operation is timed. An exception of the model's own forward is returned with
    what was recorded before it; every other one is raised. What the model prints goes to stderr, but for the first
    `lines_printed` (`quiet`: stays where it is).
    """
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        raise UserError(
            "an analysis inside of a FakeTensorMode would see fake tensors alone: leave the mode first; a model that"
            " was built in it can be analysed outside"
        )
    modules = walk(model)
    record = Record(_name(model), _mode_name(modules, mode), batch, torch.__version__)
    record.inputs = _described(args, kwargs)
    stand_ins = real or Twins(model_dtype, state_of(modules) if model_dtype is not None else ())
    record.step = training.description if training is not None else None
    record.autocast = autocast.description if autocast is not None else None
    device = home(modules, (args, kwargs))
    if autocast is not None and autocast.device != device.type:
        device = torch.device(autocast.device)
    casts = Autocast(None if device.type == "meta" else device.type, is_real=real is not None)
    learns = training is not None
    with ready(modules, stand_ins, mode, [args, dict(kwargs)], gradients=learns) as interrupts, casts:
        scopes = Scopes(modules, record)
        recorder = Recorder(record, scopes, stand_ins, None if real else MEMO, synchronize)
        recorder.wholes = WHOLE
        if isinstance(stand_ins, Twins):
            stand_ins.looked_at.append(functools.partial(_arrived, recorder))
        lazy = list_state(modules, record, recorder)
        watch_lazy(lazy, modules, recorder)
        args, kwargs = mapped((args, dict(kwargs)), stand_ins.of)
        for tensor in tensors_in((args, kwargs)):
            if tensor.layout == torch.strided:
                recorder.born(tensor, "input")
        recorder.know(tensor for tensor in stand_ins.made if not is_unset(tensor))
        if isinstance(stand_ins, Twins):
            for tensor, twin in stand_ins.pairs:
                _lend(recorder, tensor, twin)
        # A model on meta shall think that it is on the CPU.
        around = Surroundings(recorder, scopes)
        functions = Functions(recorder, scopes, MEMO, around) if real is None and training is None else None
        door = FrontDoor(recorder, torch.device("cpu") if device.type == "meta" else device, casts, functions)
        error: BaseException | None = None
        needs_values = False
        output = None  # held until the storages are closed: what forward returned outlived it
        printed: Any = Printed(lines_printed)
        leaves = Leaves(recorder, scopes, MEMO, around)
        prints = contextlib.nullcontext() if quiet else contextlib.redirect_stdout(printed)
        scripts: list[torch.jit.ScriptModule] = []
        if any(issubclass(kind, _SCRIPT) for kind in {type(module) for _, module in modules.values()}):
            scripts = [module for _, module in modules.values() if isinstance(module, _SCRIPT)]
        seen = _scripted(scripts, modules, recorder) if scripts else contextlib.nullcontext()
        with prints, scopes, casts.around_scripts(scripts, door.casting), seen, entered(door, recorder), leaves:
            try:
                with interrupts.let_through():
                    with autocast.entered() if autocast is not None else contextlib.nullcontext():
                        output = model(*args, **kwargs)
                        if training is not None:
                            output = [output, *loss_of(model, output, training, recorder)]
                    if training is not None:
                        output.append(step(model, output[1], training, recorder, stand_ins))
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as raised:  # SystemExit, and what extensions derive from BaseException
                error = raised
        if lazy:
            list_state(modules, record)
        if error is not None:
            try:
                record.error, record.failed_call, needs_values = explain(error, scopes, recorder)
                if recorder.phase != "forward":
                    record.error = f"{recorder.phase}: {record.error}"
            except Exception:  # a diagnosis that fails must not hide what it is about
                record.error = type(error).__name__
        recorder.close()
        record.routing = recorder.routes.found()
        del output
    if recorder.saw_foreign and not scopes.foreign_thread:
        record.assumptions.append("forward used a tensor of unknown origin: what may have made it is not counted")
    if scopes.foreign_thread:
        record.assumptions.append("modules ran in other threads than the caller's: their operations are not counted")
    if door.saw_move:
        record.assumptions.append("all tensors lie on one device: moves such as x.to('cpu') are not counted")
    record.assumptions += recorder.known.reasons
    record.assumptions += casts.remarks
    return Captured(record, error, recorder.seconds, needs_values and real is None, printed.lines)


@contextlib.contextmanager
def ready(
    modules: Modules, stand_ins: Twins | Copies, mode: Mode, given: list[Any], gradients: bool = False
) -> Iterator[Interrupts]:
    """Hold a model with stand-ins for its tensors, in `mode`, with `gradients` or none; put everything back after.

    So is what forward is given, as far as it is made of lists, dicts and objects. Interrupts are held back all the
    while, but where they are let through.
    """
    training = None if mode == "as_is" else mode == "train"
    with (
        LOCK,
        uninterrupted() as interrupts,
        put_back(),
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        Swapped([module for _, module in modules.values()], given, stand_ins, training) as held,
        without_meta(held.kinds, held.functions),
    ):
        seed()
        yield interrupts


def _arrived(recorder: Recorder, tensor: torch.Tensor, twin: torch.Tensor) -> None:
    """Have the recorder know the twin of a tensor that somebody looked at."""
    recorder.arrived(tensor, twin)
    _lend(recorder, tensor, twin)


def _lend(recorder: Recorder, tensor: torch.Tensor, twin: torch.Tensor) -> None:
    if _has_plain_values(tensor):
        recorder.known.lend(twin, tensor)


def _has_plain_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor of the user's holds whole numbers or bools: masks, ids, lengths."""
    dtype = tensor.dtype
    if dtype.is_floating_point or dtype.is_complex or tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return not (isinstance(tensor, nn.Parameter) or tensor.is_quantized)


_SCRIPT = torch.jit.ScriptModule


def _scripted(
    scripts: Sequence[torch.jit.ScriptModule], modules: Modules, recorder: Recorder
) -> AbstractContextManager[None]:
    """Return what sees the whole operations of scripted modules."""
    inner = {id(child) for script in scripts for child in script.children()}
    recorder.is_scripted = True
    recorder.script_reads_lists = any(reads_lists(script) for script in scripts if id(script) not in inner)
    return from_torchscript(recorder, {tensor.device.type for tensor in state_of(modules)} | {"meta", "cpu"})


def _name(model: nn.Module) -> str:
    name = type(model).__name__
    return str(getattr(model, "original_name", name)) if isinstance(model, torch.jit.ScriptModule) else name


def _mode_name(modules: Modules, mode: Mode) -> str:
    """Return `eval` or `train`; `as_is` becomes what the model's flags say, `mixed` where they differ."""
    if mode != "as_is":
        return mode
    flags = {module.training for _, module in modules.values()}
    return "mixed" if len(flags) > 1 else "train" if flags.pop() else "eval"


def _described(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Return one line for each tensor that goes in, such as `1x3x224x224 float32`."""

    def line(tensor: torch.Tensor) -> str:
        return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"

    lines = [line(tensor) for tensor in tensors_in(args)]
    return lines + [f"{name}: {line(tensor)}" for name, value in kwargs.items() for tensor in tensors_in(value)]
