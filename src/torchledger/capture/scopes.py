"""Which module is running: a stack of module calls, kept by global forward hooks while a capture lasts."""

from __future__ import annotations

import bisect
import itertools
import sys
import threading
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchledger.capture.failures import note
from torchledger.inputs import tensors_in
from torchledger.record import ModuleCall, ModuleInfo, Record, Shape

Shapes = tuple[Shape, ...]


class Modules(dict[int, tuple[str, nn.Module]]):
    """The modules of a model by id, each with its first path, in the order of `named_modules`.

    `holders`: of each the place of the one that holds it under that path; the model's own is -1.
    """

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders: list[int] = []


def walk(model: nn.Module) -> Modules:
    """Return all modules of a model, each once."""
    found = Modules()
    holders = found.holders
    stack: list[tuple[str, nn.Module, int]] = [("", model, -1)]
    while stack:
        path, module, holder = stack.pop()
        if id(module) in found:
            continue
        found[id(module)] = (path, module)
        children = module._modules
        if children:
            prefix, place = f"{path}." if path else "", len(holders)
            stack += [(prefix + name, child, place) for name, child in reversed(children.items()) if child is not None]
        holders.append(holder)
    return found


class Scopes:
    """The stack of module calls of one capture in one thread. `current` is the index of the running call."""

    def __init__(self, modules: Modules, record: Record) -> None:
        self.record = record
        self.current = 0
        self.foreign_thread = False  # a module of this model ran in another thread
        self._first = modules
        self._thread = threading.get_ident()
        self._outer_error = sys.exc_info()[1]
        self._modules: dict[tuple[str, int], int] = {}
        self._rows: dict[tuple[int, int], int] = {}  # of a caller's row and a module's id: the module's row, if rare
        self._relative: dict[int, dict[int, str]] = {}
        self._walked: set[int] = set()
        self._held: list[nn.Module] = []  # forward may make modules: their ids stay their own while this lasts
        # Of each module: its row under its first path.
        self._numbers: dict[int, int] = dict(zip(modules, itertools.count(), strict=False))
        self._holders = modules.holders  # of these rows: the row of what holds the module there
        rows, count = record.modules, len(modules)
        rows.paths += [path for path, _ in modules.values()]
        rows.kinds += [type(module).__name__ for _, module in modules.values()]
        rows.leaves += [not module._modules for _, module in modules.values()]
        rows.registered += range(count)
        rows.same_as += [None] * count
        record.calls.append(ModuleCall(0, None, 0))
        _, model = next(iter(modules.values()))
        self._stack: list[tuple[nn.Module, int]] = [(model, 0)]
        self._root_is_open = False
        self._handles: list[Any] = []
        self._learns = torch.is_grad_enabled()  # a training step is captured
        # Numbers of nodes of autograd's graph, and the calls that run from there on, while gradients are recorded.
        self._marks = [0]
        self._calls_from = [0]
        self._last_node = (-1, 0)  # number of the node that was asked for last, and its call
        # id of a parameter -> a call of the module that holds it; to ask for one is to have its twin made
        self._owners: dict[int, int] = {}
        if self._learns:
            self._owners.update({id(parameter): 0 for parameter in model._parameters.values()})
        self._last_of_backward = 0

    def __enter__(self) -> Scopes:
        self._handles.append(register_module_forward_pre_hook(self.enter))
        self._handles.append(register_module_forward_hook(self.leave, with_kwargs=True, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
            # torch (2.13) forgets to take the hook off this list.
            getattr(torch_module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)

    def of_backward(self) -> int:
        """Return the call whose forward made the node of autograd's graph that runs now.

        A module that runs again (a checkpoint) has its own call; what adds up gradients is booked where one arrived.
        """
        if self.current:
            return self.current
        node = torch._C._current_autograd_node()
        if node is not None:
            number = node._sequence_nr()
            if number == self._last_node[0]:
                self._last_of_backward = self._last_node[1]
            elif number < _NO_NUMBER:
                self._last_of_backward = self._calls_from[bisect.bisect_right(self._marks, number) - 1]
                self._last_node = (number, self._last_of_backward)
            else:  # the end of the graph: a parameter
                owner = self._owners.get(id(getattr(node, "variable", None)))
                self._last_of_backward = self._last_of_backward if owner is None else owner
        return self._last_of_backward

    @property
    def is_inside(self) -> bool:
        """Whether the model's own forward runs."""
        return self._root_is_open or len(self._stack) > 1

    def answered(self, module: nn.Module, started: int, given: Shapes, returned: Shapes) -> int:
        """Book a call of a module that did not run, with the shapes of what it was given and returned."""
        caller, call = self._stack[-1]
        calls = self.record.calls
        number = len(calls.modules)
        calls.modules.append(self._row(caller, call, module))
        calls.parents.append(call)
        calls.started.append(started)
        calls.inputs.append(given)
        calls.outputs.append(returned)
        return number

    def enter(self, module: nn.Module, args: Any) -> None:
        """Book that a call of a module begins: torch's hook before its forward."""
        if threading.get_ident() != self._thread:
            self.foreign_thread |= id(module) in self._first
            return
        if module is self._stack[-1][0] and not self._root_is_open and len(self._stack) == 1:
            self._root_is_open = True
            return
        self.current = self.answered(module, len(self.record.entries.operations), (), ())
        self._stack.append((module, self.current))
        if self._learns:
            self._mark()
            for parameter in module._parameters.values():
                self._owners.setdefault(id(parameter), self.current)

    def leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Book that a call of a module has ended, or failed: torch's hook after its forward."""
        # rest is (kwargs, output), but after an exception torch leaves the kwargs out.
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if threading.get_ident() != self._thread:
            return
        depth = len(self._stack) - 1
        while self._stack[depth][0] is not module:
            depth -= 1
            if depth < 0:
                return
        call = self._stack[depth][1]
        del self._stack[max(depth, 1) :]
        self.current = self._stack[-1][1]
        if self._learns:
            self._mark()
        calls = self.record.calls
        given = (*args, *kwargs.values()) if kwargs else args
        error = sys.exc_info()[1]
        with torch._C.DisableTorchFunction():  # a function mode is on, and asking for a shape would go through it
            calls.inputs[call] = _shapes_of(given)
            calls.outputs[call] = _shapes_of(output)
        if error is not None and error is not self._outer_error:
            note(error, "module", (call, module))

    def _mark(self) -> None:
        self._marks.append(_next_node())
        self._calls_from.append(self.current)

    def _row(self, caller: nn.Module, call: int, module: nn.Module) -> int:
        """Return the row of a module that `caller` calls in its own call of this number."""
        above = self.record.calls.modules[call]
        row = self._numbers.get(id(module))
        if row is not None and self._holders[row] == above:  # under its first path: most calls
            return row
        row = self._rows.get((above, id(module)))
        if row is None:
            row = self._rows[above, id(module)] = self._module_index(caller, self.record.modules.paths[above], module)
            self._held.append(module)
        return row

    def _module_index(self, caller: nn.Module, caller_path: str, module: nn.Module) -> int:
        """Return the module's row, under the path of the module that calls it where that one holds it."""
        relative = self._relative.get(id(caller))
        if relative is None:
            self._held.append(caller)
            relative = {id(child): name for name, child in reversed(caller._modules.items()) if child is not None}
            self._relative[id(caller)] = relative
        name = relative.get(id(module))
        if name is None:
            # Not a direct child: somewhere below the caller (a ModuleList's item), else anywhere in the model. One
            # walk finds the places of all.
            if id(caller) not in self._walked:
                self._walked.add(id(caller))
                for number, (path, _) in walk(caller).items():
                    relative.setdefault(number, path)
            name = relative.setdefault(id(module), "")
        if name:
            path = f"{caller_path}.{name}" if caller_path else name
        elif id(module) in self._first:
            path, _ = self._first[id(module)]
        else:
            path = f"{caller_path}.<{type(module).__name__}>".lstrip(".")
        first = self._first.get(id(module))
        if first is not None and first[0] == path:
            return self._numbers[id(module)]
        key = (path, id(module))
        if key not in self._modules:
            same_as = None if first is None else first[0]
            self._modules[key] = len(self.record.modules)
            self.record.modules.append(ModuleInfo(path, type(module).__name__, not module._modules, None, same_as))
        return self._modules[key]


_NO_NUMBER = 2**63  # a node that accumulates a gradient is no part of the sequence


def _next_node() -> int:
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    return number


def _shapes_of(value: Any) -> Shapes:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    if type(value) is tuple and len(value) == 1 and isinstance(value[0], torch.Tensor):
        return (tuple(value[0].shape),)
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))
