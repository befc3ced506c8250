"""One run of the model -> Record, with everything put back as it was."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from torchledger.capture.autocast import Autocast, Region
from torchledger.capture.caches import without_meta
from torchledger.capture.diagnose import explain
from torchledger.capture.frontdoor import FrontDoor
from torchledger.capture.functions import Functions
from torchledger.capture.holdings import Swapped
from torchledger.capture.interrupts import Interrupts, uninterrupted
from torchledger.capture.leaves import Leaves
from torchledger.capture.modes import entered
from torchledger.capture.operations import dtype_name
from torchledger.capture.overloads import WHOLE, from_torchscript, reads_lists
from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Modules, Scopes, walk
from torchledger.capture.shapes import MEMO
from torchledger.capture.step import loss_of, step
from torchledger.capture.surroundings import Surroundings
from torchledger.capture.twins import Copies, Twins
from torchledger.capture.waiting import Waiting
from torchledger.errors import UserError
from torchledger.inputs import mapped, tensors_in
from torchledger.record import HeldByModule, ParameterInfo, Record, State, StorageKind
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
    with ready(modules, stand_ins, mode, [args, dict(kwargs)], gradients=learns) as (held, interrupts), casts:
        scopes = Scopes(modules, record)
        recorder = Recorder(record, scopes, stand_ins, None if real else MEMO, synchronize)
        recorder.wholes = WHOLE
        if isinstance(stand_ins, Twins):
            stand_ins.looked_at.append(functools.partial(_arrived, recorder))
        lazy = _list_state(modules, record, recorder, held)
        _watch_lazy(lazy, modules, recorder)
        args, kwargs = mapped((args, dict(kwargs)), stand_ins.of)
        for tensor in tensors_in((args, kwargs)):
            if tensor.layout == torch.strided:
                recorder.born(tensor, "input")
        recorder.know(tensor for tensor in stand_ins.made if not _is_unset(tensor))
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
        if any(issubclass(kind, _SCRIPT) for kind in set(held.kinds)):
            scripts = [module for _, module in modules.values() if isinstance(module, _SCRIPT)]
        del held
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
            _list_state(modules, record)
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
) -> Iterator[tuple[Swapped, Interrupts]]:
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
        _seed()
        yield held, interrupts


_COMPILE = ("torch._dynamo", "torch.nn.attention.flex_attention")  # what may set the compiler going
_NO_COMPILER = "TORCHDYNAMO_DISABLE"  # read each time that something is to be compiled


def _seed() -> None:
    """Start the random generators alike in every run: what forward decides by chance falls the same way."""
    torch.default_generator.manual_seed(0)
    random.seed(0)
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed(0)


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Restore what a forward may change outside of the model: random states, default dtype, torch's switches.

    For where interrupts are held back.
    """
    steps: list[Callable[[], object]] = []  # the last one first
    later = steps.append
    try:  # what is set up is put back also where the rest of it fails
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        later(functools.partial(random.setstate, random.getstate()))
        numpy_random: Any = sys.modules.get("numpy.random")
        if numpy_random is not None:
            later(functools.partial(numpy_random.set_state, numpy_random.get_state()))
        if cuda is not None:
            later(functools.partial(torch.cuda.set_rng_state_all, cuda))
        later(functools.partial(torch.set_rng_state, torch.get_rng_state()))
        later(functools.partial(_put_switches_back, _switches()))
        later(functools.partial(_put_hooks_back, [*map(dict, _GLOBAL_HOOKS)]))
        if any(name in sys.modules for name in _COMPILE):
            # What is compiled runs as it was written, and is not compiled anew.
            stance = torch.compiler.set_stance("force_eager")
            stance.__enter__()
            later(functools.partial(stance.__exit__, None, None, None))
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            later(functools.partial(quiet.__exit__, None, None, None))
            warnings.filterwarnings("ignore", message=".*global hooks on modules")  # the hooks are the capture's own
        else:  # the same where forward is the first to import it, which takes a second: not for nothing
            later(functools.partial(_set_environment, _NO_COMPILER, os.environ.get(_NO_COMPILER)))
            os.environ[_NO_COMPILER] = "1"
        torch.backends.mha.set_fastpath_enabled(False)  # it runs attention as one kernel that no mode can see into
        yield
    finally:
        errors: list[Exception] = []
        for step in reversed(steps):  # each is put back whatever happens to another
            try:
                step()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _switches() -> tuple[Any, ...]:
    """Return how torch's switches are set, in the order of `_SET`."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.mha.get_fastpath_enabled(),
        (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
    )


_SET: tuple[Callable[[Any], object], ...] = (
    torch.set_default_dtype,
    torch.set_grad_enabled,
    torch.set_num_threads,
    torch.set_float32_matmul_precision,
    torch.backends.mha.set_fastpath_enabled,
    lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
)


def _put_switches_back(before: tuple[Any, ...]) -> None:
    """Set the switches that are set otherwise: some calls are slow, or import the compiler's settings."""
    for set_to, wanted, now in zip(_SET, before, _switches(), strict=True):
        if now != wanted:
            set_to(wanted)


def _put_hooks_back(before: list[dict[int, Any]]) -> None:
    for hooks, then in zip(_GLOBAL_HOOKS, before, strict=True):
        if hooks != then:
            hooks.clear()
            hooks.update(then)


# Hooks on all modules there are, such as a FlopCounterMode that forward enters and never leaves hangs up.
_GLOBAL_HOOKS: list[dict[int, Any]] = [
    value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
]


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def state_of(modules: Modules) -> list[torch.Tensor]:
    """Return the parameters and buffers of all modules."""
    holders = (holder for _, m in modules.values() for holder in (m._parameters, m._buffers))
    return [tensor for holder in holders for tensor in holder.values() if tensor is not None]


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


def home(modules: Modules, inputs: Any) -> torch.device:
    """Return where a model lives: with its first parameter or buffer, else with its first input."""
    holders = (holder for _, m in modules.values() for holder in (m._parameters, m._buffers))
    state = (tensor for holder in holders for tensor in holder.values() if tensor is not None)
    found = next((tensor.device for tensor in state if not is_lazy(tensor)), None)
    if found is None:
        found = next((tensor.device for tensor in tensors_in(inputs) if not is_lazy(tensor)), None)
    return torch.device("cpu") if found is None else found


def _places(modules: Modules) -> dict[int, list[int]]:
    """Return for each module, by id, the places of what it holds among the record's parameters or buffers."""
    counts: Counter[StorageKind] = Counter()
    places: dict[int, list[int]] = {}
    for _, module in modules.values():
        found = places[id(module)] = []
        for kind, _ in _held(module):
            found.append(counts[kind])
            counts[kind] += 1
    return places


def _held(module: nn.Module) -> list[tuple[StorageKind, torch.Tensor]]:
    """Return the parameters, then the buffers that a module itself holds."""
    found: list[tuple[StorageKind, torch.Tensor | None]] = [("parameter", p) for p in module._parameters.values()]
    found += [("buffer", buffer) for buffer in module._buffers.values()]
    return [(kind, tensor) for kind, tensor in found if tensor is not None]


def _list_state(
    modules: Modules, record: Record, recorder: Recorder | None = None, swapped: Swapped | None = None
) -> list[nn.Module]:
    """Fill in parameters and buffers, each under its first path; with a recorder, book their storages as alive.

    Return the lazy modules: what holds a tensor without sizes.
    """
    lazy: dict[int, nn.Module] = {}
    kinds: tuple[tuple[StorageKind, str, State], ...]
    kinds = (("parameter", "_parameters", record.parameters), ("buffer", "_buffers", record.buffers))
    for kind, attribute, listed in kinds:
        listed.clear()
        owners: dict[int, str] = {}
        if recorder is not None and swapped is not None and swapped.all_wait:
            found = [(number, waiting) for number, waiting in swapped.waits[attribute] if number in modules]
            in_turn = iter(modules)
            # In the order of modules, as most are, and none looked at yet.
            if all([number in in_turn and waiting.make is not None for number, waiting in found]):
                _list_waiting(kind, listed, [(modules[number][0], waiting) for number, waiting in found], recorder)
                continue
        waits: list[tuple[str, Waiting]] = []  # those since the last one whose tensors have twins: a model has hundreds
        for module_path, module in modules.values():
            held = getattr(module, attribute)
            if not held:
                continue
            if recorder is not None and type(held) is Waiting and held.make is not None:
                waits.append((module_path, held))
                continue
            _list_waiting(kind, listed, waits, recorder)
            prefix = f"{module_path}." if module_path else ""
            for name, tensor in held.items():
                if tensor is None:
                    continue
                path = prefix + name
                unset = _is_unset(tensor)
                owner = owners.setdefault(id(tensor), path)
                shared = None if owner == path else owner
                shape = (0,) if unset else tuple(tensor.shape)
                place = len(listed)
                dtype = dtype_name(tensor.dtype)
                listed.append(ParameterInfo(path, module_path, shape, dtype, tensor.requires_grad, shared))
                if unset:
                    lazy[id(module)] = module
                elif recorder is not None and tensor.layout is torch.strided:
                    if shared is None:
                        recorder.routes.own(tensor, place if kind == "parameter" else None)
                    recorder.born(tensor, kind, place)
        _list_waiting(kind, listed, waits, recorder)
    return list(lazy.values())


def _list_waiting(
    kind: StorageKind, listed: State, waits: list[tuple[str, Waiting]], recorder: Recorder | None
) -> None:
    """List tensors that wait for their twins, each alone with its storage, so that it has one owner.

    `waits` has what holds them, with the paths of modules, and is emptied.
    """
    if recorder is None or not waits:
        return
    first = place = len(listed)
    tensors: list[torch.Tensor] = []
    sizes: list[int] = []
    found: list[HeldByModule] = []
    for module_path, held in waits:
        count = len(held.bytes)
        if len(held.names) == count:
            tensors += held.real.values()  # type: ignore[arg-type]
        else:  # a bias that is not there
            tensors += [tensor for tensor in held.real.values() if tensor is not None]
        found.append(HeldByModule(module_path, held.names, held.layouts, held.trains))
        sizes += held.bytes
        if kind == "parameter":
            held.places = range(place, place + count)
            place += count
    listed.hold(found)
    recorder.expect(tensors, sizes, kind, first)
    waits.clear()


_SIZED = (torch.Tensor, nn.Parameter)


def _is_unset(tensor: torch.Tensor) -> bool:
    return type(tensor) not in _SIZED and is_lazy(tensor)


def _watch_lazy(lazy: list[nn.Module], modules: Modules, recorder: Recorder) -> None:
    """Have lazy modules initialise themselves unbooked, as if they had been so before."""
    places = _places(modules) if lazy else {}
    for module in lazy:
        initialise = getattr(module, "initialize_parameters", None)
        if initialise is not None:
            run = functools.partial(_initialise, module, initialise, recorder, places[id(module)])
            module.__dict__["initialize_parameters"] = run


def _initialise(
    module: nn.Module,
    initialise: Callable[..., None],
    recorder: Recorder,
    places: list[int],
    *args: Any,
    **kwargs: Any,
) -> None:
    with recorder.paused():
        initialise(*args, **kwargs)
    for (kind, tensor), place in zip(_held(module), places, strict=True):
        recorder.inherit([] if is_lazy(tensor) else [tensor], kind, place)


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
