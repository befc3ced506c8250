"""One run of the model -> Record, with everything put back as it was."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger.capture.diagnose import explain
from torchledger.capture.frontdoor import FrontDoor
from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Modules, Scopes, walk
from torchledger.capture.shapes import MEMO
from torchledger.capture.twins import Copies, Swapped, Twins
from torchledger.inputs import mapped, tensors_in
from torchledger.record import ParameterInfo, Record

Mode = Literal["eval", "train", "as_is"]
MODES = ("eval", "train", "as_is")
_LOCK = threading.RLock()  # hooks, the fast-path switch and a model's twins belong to one capture at a time


@dataclass(frozen=True)
class Captured:
    """A record, whole or up to the operation where forward raised `error`; of a real run also seconds an entry."""

    record: Record
    error: Exception | SystemExit | None
    seconds: list[float]


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
) -> Captured:
    """Run the model's forward once and record it, on meta twins of its tensors, or for real, on `real` copies of them.

    `model_dtype`: take the floating-point parameters and buffers as if they had this dtype. `synchronize`: waits for
    the device; given for a real run, each operation is timed. An exception of the model's own forward is returned with
    what was recorded before it; every other one is raised. What the model prints goes to stderr (`quiet`: stays where
    it is).
    """
    modules = walk(model)
    record = Record(_name(model), _mode_name(modules, mode), batch, torch.__version__)
    record.inputs = _described(args, kwargs)
    stand_ins = real or Twins(model_dtype, _state(modules) if model_dtype is not None else ())
    with ready(modules, stand_ins, mode):
        scopes = Scopes(modules, record)
        recorder = Recorder(record, scopes, stand_ins, None if real else MEMO, synchronize)
        _take_down_state(modules, record, recorder)
        args, kwargs = mapped((args, dict(kwargs)), stand_ins.of)
        for tensor in tensors_in((args, kwargs)):
            recorder.born(tensor, "input")
        door = FrontDoor(recorder)
        error: Exception | SystemExit | None = None
        output = None  # held until the storages are closed: what forward returned outlived it
        with contextlib.nullcontext() if quiet else contextlib.redirect_stdout(sys.stderr), scopes, door, recorder:
            try:
                output = model(*args, **kwargs)
            except (Exception, SystemExit) as raised:
                error = raised
        if error is not None:
            record.error = explain(error, scopes, recorder, door)
        recorder.close()
        del output
    if scopes.foreign_thread:
        record.assumptions.append("modules ran in other threads than the caller's: their operations are not counted")
    if door.saw_move:
        record.assumptions.append("all tensors lie on one device: moves such as x.to('cpu') are not counted")
    if door.saw_autocast:
        record.assumptions.append("autocast was on and is not modelled: operations keep the dtypes of their inputs")
    return Captured(record, error, recorder.seconds)


@contextlib.contextmanager
def ready(modules: Modules, stand_ins: Twins | Copies, mode: Mode) -> Iterator[None]:
    """Hold a model with stand-ins for its tensors, in `mode` and without gradients; put everything back after."""
    with (
        _LOCK,
        put_back(),
        torch.inference_mode(False),
        torch.no_grad(),
        Swapped([m for _, m in modules.values()], stand_ins),
    ):
        if mode != "as_is":
            for _, module in modules.values():
                module.training = mode == "train"
        yield


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Restore what a forward may change outside of the model: random states, default dtype, torch's switches."""
    states: list[Any] = [torch.get_rng_state()]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    python = random.getstate()
    numpy_random: Any = sys.modules.get("numpy.random")
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    default_dtype = torch.get_default_dtype()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    grad = torch.is_grad_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs attention as one kernel that no mode can see into
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_default_dtype(default_dtype)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(states[0])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        if numpy_state is not None:
            numpy_random.set_state(numpy_state)


def _state(modules: Modules) -> list[torch.Tensor]:
    """Return the parameters and buffers of all modules."""
    holders = (holder for _, m in modules.values() for holder in (m._parameters, m._buffers))
    return [tensor for holder in holders for tensor in holder.values() if tensor is not None]


def _take_down_state(modules: Modules, record: Record, recorder: Recorder) -> None:
    """Fill in parameters and buffers, each tensor under its first path, and book their storages as alive."""
    storages: set[int] = set()
    for listed, attribute in ((record.parameters, "_parameters"), (record.buffers, "_buffers")):
        owners: dict[int, str] = {}
        for module_path, module in modules.values():
            for name, tensor in getattr(module, attribute).items():
                if tensor is None:
                    continue
                path = f"{module_path}.{name}" if module_path else name
                uninitialised = is_lazy(tensor)
                shape = (0,) if uninitialised else tuple(tensor.shape)
                owner = owners.setdefault(id(tensor), path)
                dtype = str(tensor.dtype).removeprefix("torch.")
                shared = None if owner == path else owner
                listed.append(ParameterInfo(path, module_path, shape, dtype, tensor.requires_grad, shared))
                if uninitialised or tensor.layout != torch.strided:
                    continue
                storage = tensor.untyped_storage()._cdata
                if storage not in storages:
                    storages.add(storage)
                    recorder.born(tensor, "parameter" if attribute == "_parameters" else "buffer")


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
