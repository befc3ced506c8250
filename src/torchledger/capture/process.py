"""What a forward may change in the process, outside of the model: it is put back."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules import module as torch_module

_COMPILE = ("torch._dynamo", "torch.nn.attention.flex_attention")  # what may set the compiler going
_NO_COMPILER = "TORCHDYNAMO_DISABLE"  # read each time that something is to be compiled


def seed() -> None:
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
