"""Optimizers of the user's own that step within the backward, from a hook on a parameter: on stand-ins, and booked."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchledger.capture.recorder import Recorder
from torchledger.capture.twins import Copies, Twins, gradient_hooks
from torchledger.record import Phase
from torchledger.training import groups_of, state_of


@contextmanager
def inner_steps(recorder: Recorder, stand_ins: Twins | Copies) -> Iterator[None]:
    """Let any optimizer that steps take stand-ins for the user's parameters, under the phase of optimizers.

    What optimizers and the dicts that hooks find them by hold is put back at the end.
    """
    steps = _InnerSteps(recorder, {id(user): stand_in for user, stand_in in stand_ins.pairs})
    handles = [register_optimizer_step_pre_hook(steps.before), register_optimizer_step_post_hook(steps.after)]
    try:
        steps.enter_keys(stand_ins.pairs)
        yield
    finally:
        for handle in handles:
            handle.remove()
        steps.put_back()


class _InnerSteps:
    """What happens before and after a step of any optimizer."""

    def __init__(self, recorder: Recorder, stand_ins: dict[int, torch.Tensor]) -> None:
        self._recorder = recorder
        self._stand_ins = stand_ins
        self._taken: dict[int, tuple[torch.optim.Optimizer, dict[str, Any]]] = {}  # and what its attributes were
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._phases: list[Phase] = []
        self._makes_states = False

    def before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Give the optimizer stand-ins and, in a silent step, its states: the step that follows is like the next."""
        if id(optimizer) not in self._taken:
            given = [tensor for group in optimizer.param_groups for tensor in group["params"]]
            if not any(id(tensor) in self._stand_ins for tensor in given):
                return
            self._taken[id(optimizer)] = optimizer, dict(vars(optimizer))
            with self._recorder.silent():
                state = state_of(optimizer, self._stand_ins)
            optimizer.param_groups, optimizer.state = groups_of(optimizer, self._stand_ins), state
            in_one_go(optimizer)
            inherit_state(self._recorder, optimizer)
        self._phases.append(self._recorder.phase)
        self._recorder.phase = "optimizer"
        stepping = [tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None]
        for tensor in stepping:
            self._recorder.is_gradient(tensor)
        if self._makes_states or all(tensor in optimizer.state for tensor in stepping):
            return
        self._makes_states = True
        try:
            with self._recorder.silent():
                type(optimizer).step(optimizer)
        finally:
            self._makes_states = False
        inherit_state(self._recorder, optimizer)

    def after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Go back to the phase in which the step was taken."""
        if id(optimizer) in self._taken:
            self._recorder.phase = self._phases.pop()

    def enter_keys(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Let hooks look things up by a stand-in that they have by parameter, such as an optimizer for each."""
        users = {id(user): user for user, _ in pairs}
        with torch._C.DisableTorchFunction():
            found = [hook for user in users.values() for hooks in gradient_hooks(user) for hook in hooks.values()]
        for held in _dicts_of(found):
            keys = [key for key in held if id(key) in users]
            if keys:
                self._dicts.append((held, dict(held)))
                held.update({self._stand_ins[id(key)]: held[key] for key in keys})

    def put_back(self) -> None:
        """Make optimizers and dicts hold what they held."""
        for optimizer, attributes in self._taken.values():
            vars(optimizer).clear()
            vars(optimizer).update(attributes)
        for held, content in self._dicts:
            held.clear()
            held.update(content)


def in_one_go(optimizer: torch.optim.Optimizer) -> bool:
    """Have an optimizer that leaves it to torch take all parameters in one go, as torch does on a GPU; say whether."""
    groups = optimizer.param_groups
    undecided = all(
        group.get("foreach", False) is None and not group.get("fused") and not group.get("differentiable")
        for group in groups
    )
    for group in groups if undecided else ():
        group["foreach"] = True
    return undecided


def inherit_state(recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
    """Book what an optimizer keeps of each parameter as alive from the start."""
    on_device = any(group.get("capturable") or group.get("fused") for group in optimizer.param_groups)
    for parameter, state in optimizer.state.items():
        tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
        # A count of steps stays on the CPU, unless a kernel is to read it.
        counts = [] if on_device or not parameter.dim() else [tensor for tensor in tensors if not tensor.dim()]
        owner = recorder.owner_of(parameter)
        recorder.inherit(counts, "host", owner)
        recorder.inherit([tensor for tensor in tensors if all(tensor is not c for c in counts)], "optimizer", owner)


def _dicts_of(hooks: list[Any]) -> Iterator[dict[Any, Any]]:
    """Return the dicts that functions hold: in closures, defaults and globals, and in what they are bound to."""
    pending, seen = hooks, set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            yield value
        elif isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending += [value.__func__, *getattr(value.__self__, "__dict__", {}).values()]
        elif isinstance(value, FunctionType):
            space = value.__globals__
            pending += [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
            pending += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            pending += [space[name] for name in value.__code__.co_names if name in space]


_EMPTY = CellType()  # of a name that is not bound yet
