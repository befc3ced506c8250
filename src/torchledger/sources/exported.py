"""net.pt2, which torch.export.save wrote -> a model that runs its graph.

`torch.export.load` unpickles, and makes Python source of what the file says: a file of unknown origin can run code.
So the file is read as data here. Its graph (JSON) says which ATen operations run on which tensors, and of what size
every tensor is; nothing else is opened, so that no weight is read or allocated. An operation is looked up among those
that torch has registered, and a name that is none is refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from torchledger.errors import UserError, printable
from torchledger.sources.built import Example, MakeExample
from torchledger.sources.exported_graph import DTYPES, Part, Segment, Step, names_in, places, value_of
from torchledger.sources.naming import Source, describe

_MAJOR = 8  # version of the format that is read here: torch 2.9 to 2.13 write 8.x


def build(
    source: Source, arguments: Mapping[str, object], device: Literal["meta"] | None
) -> tuple[nn.Module, bool, MakeExample]:
    """Return the program of a .pt2 file as a model on meta, True, and what makes the inputs that it was exported with.

    Raises `UserError` for a file that is no exported program, and for operations that are not known here.
    """
    if arguments:
        raise UserError(f"{source.name!r} is a program that is built already: it takes no --arg or --classes")
    if device != "meta":
        raise UserError(f"{source.name!r} is read without its weights, and cannot be run for real: leave --measure out")
    try:
        content = _read(source)
        name = _classes(content["graph_module"]["graph"]["nodes"]).get("", "Program")
        program: Program = type(name, (Program,), {})(content)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(f"{source.name!r} is no exported program that is understood here: {describe(error)}") from error
    return program, True, lambda batch, dtype: Example(tuple(program.example(source.name, batch)))


def _read(source: Source) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(str(source.path)) as archive:
            found = [name for name in archive.namelist() if re.fullmatch(r"([^/]+/)?models/[^/]+\.json", name)]
            if len(found) != 1:
                raise UserError(
                    f"{source.name!r} holds {len(found)} programs in the format of torch.export.save, expected one:"
                    " save it again with torch 2.9 or newer"
                )
            content = json.loads(archive.read(found[0]))
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source.name!r} is no file of torch.export.save: {describe(error)}") from error
    version = content.get("schema_version", {}) if isinstance(content, dict) else {}
    if version.get("major") != _MAJOR:
        raise UserError(
            f"{source.name!r} has version {version.get('major')} of torch.export's format, and {_MAJOR} is what is read"
            " here: save it again with a torch from 2.9 to 2.13"
        )
    return dict(content)


# ---- the model


class _Scope(nn.Module):
    """A module of the model that was exported: it holds its parameters, and runs the steps that ran in it."""

    def forward(self, run: Callable[..., Any], *tensors: Any) -> Any:
        return run(*tensors)


class Program(_Scope):
    """Run an exported graph, each operation inside the module that it came from. Inputs and outputs are flat."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        module = content["graph_module"]
        graph = module["graph"]
        self._values = graph["tensor_values"]
        self._held: dict[str, tuple[nn.Module, str]] = {}  # a name in the graph -> who holds the tensor, as what
        self._user: list[Mapping[str, Any]] = []
        self._constants: dict[str, Any] = {}
        self._kinds = _classes(graph["nodes"])
        for spec in module["signature"]["input_specs"]:
            self._take(spec)
        part = Part(graph)
        self._outputs = part.outputs
        self._whole = Segment.of(part)

    def _take(self, spec: Mapping[str, Any]) -> None:
        kind, content = next(iter(spec.items()))
        match kind:
            case "user_input":
                self._user.append(content["arg"])
            case "constant_input":
                self._constants[content["name"]] = next(iter(content["value"].values()))
            case "parameter":
                self._hold(content["arg"]["name"], content["parameter_name"], parameter=True)
            case "buffer" | "tensor_constant":
                self._hold(content["arg"]["name"], content.get("buffer_name") or content["tensor_constant_name"])
            case _:
                raise UserError(f"the exported program takes a {printable(kind)}, which is not known here")

    def _hold(self, name: str, path: str, parameter: bool = False) -> None:
        """Register a tensor on meta at `path`, in modules of the names that the exported ones had."""
        *owners, last = str(path).split(".")
        owner = self._module(".".join(owners))
        size, dtype = self._size(name), DTYPES[self._values[name]["dtype"]]
        tensor = torch.empty(size, dtype=dtype, device="meta")
        if parameter:
            trains = bool(self._values[name]["requires_grad"])
            owner.register_parameter(last, nn.Parameter(tensor, requires_grad=trains))
        else:
            owner.register_buffer(last, tensor)
        self._held[str(name)] = owner, last

    def _module(self, path: str) -> nn.Module:
        """Return the module at `path`, made where there is none yet, under the name of the class that was exported."""
        found: nn.Module = self
        walked: list[str] = []
        for part in path.split(".") if path else ():
            walked.append(part)
            if part not in found._modules:
                kind = self._kinds.get(".".join(walked), "Module")
                found.add_module(part, type(kind, (_Scope,), {})())
            found = found._modules[part]  # type: ignore[assignment]
        return found

    def _size(self, name: str, symbols: Mapping[str, int] | None = None) -> list[int]:
        size = []
        for length in self._values[name]["sizes"]:
            kind, content = next(iter(length.items()))
            if kind == "as_expr":
                hint = (content.get("hint") or {}).get("as_int")
                content = (symbols or {}).get(content["expr_str"], hint)
            if not isinstance(content, int):
                raise UserError(f"the exported program does not say the size of {printable(name)!r}")
            size.append(content)
        return size

    def example(self, source: str, batch: int) -> list[Any]:
        """Return inputs as the program was exported with, of `batch` samples where it leaves that open.

        Their values are not in the file: ids and masks that were made up here would pass for the user's.
        """
        names = [names_in(argument)[0] for argument in self._user if "as_tensor" in argument]
        first = [self._values[name]["sizes"][0] for name in names if self._values[name]["sizes"]]
        open_lengths = {length["as_expr"]["expr_str"] for length in first if "as_expr" in length}
        fixed = {length["as_int"] for length in first if "as_int" in length}
        if not open_lengths and batch != 1 and batch not in fixed:
            raise UserError(
                f"{source!r} was exported for inputs of {sorted(fixed)} samples: --batch {batch} needs an export with"
                " dynamic_shapes"
            )
        symbols = dict.fromkeys(open_lengths, batch)
        values: list[Any] = []
        for argument in self._user:
            if "as_tensor" not in argument:
                values.append(next(iter(argument.values())) if names_in(argument) == [] else 1)
                continue
            name = argument["as_tensor"]["name"]
            dtype = DTYPES[self._values[name]["dtype"]]
            values.append(torch.empty(self._size(name, symbols), dtype=dtype, device="meta"))
        return values

    def forward(self, *inputs: Any) -> Any:
        """Run the graph on the inputs, in the order in which the exported model took them, and return its outputs."""
        if len(inputs) != len(self._user):
            raise UserError(f"the exported program takes {len(self._user)} inputs, got {len(inputs)}")
        known = dict(self._constants)
        for argument, value in zip(self._user, inputs, strict=True):
            known.update(dict.fromkeys(names_in(argument), value))
        self._run(self._whole, known)
        return [value_of(output, _Known(known, self._held)) for output in self._outputs]

    def _run(self, segment: Segment, known: dict[str, Any]) -> None:
        for item, drop in zip(segment.items, segment.drop, strict=True):
            if isinstance(item, Step):
                self._step(item, known)
            else:
                path, inner = item
                names = [name for name in inner.reads if name in known]

                def run(*tensors: Any, inner: Segment = inner, names: list[str] = names) -> Any:
                    inside = dict(zip(names, tensors, strict=True))
                    self._run(inner, inside)
                    return {name: value for name, value in inside.items() if name not in names}

                known.update(self._module(path)(run, *(known[name] for name in names)))
            for name in drop:
                known.pop(name, None)

    def _step(self, step: Step, known: dict[str, Any]) -> None:
        values = _Known(known, self._held)
        if isinstance(step.call, str):
            result = self._run_graph(step, values)
        else:
            args = [value_of(value, values) for _, value, kind in step.arguments if kind != 2]
            kwargs = {name: value_of(value, values) for name, value, kind in step.arguments if kind == 2}
            result = step.call(*args, **kwargs)
        _bind(step.outputs, result, known)

    @staticmethod
    def _context(name: str, settings: list[Any]) -> AbstractContextManager[Any]:
        if name == "higher_order.wrap_with_autocast":
            device, dtype, enabled, cached = settings
            return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached)
        return torch.set_grad_enabled(settings[0])  # in force from here on, and put back by the caller's `with`

    def _run_graph(self, step: Step, values: _Known) -> list[Any]:
        """Run a graph inside the graph as its context manager would: grad mode on or off, or autocast."""
        (place, part), *more = step.graphs.items()
        if more:
            raise UserError(f"the exported program runs {step.name} on several graphs")
        settings = [value_of(value, values) for _, value, _ in step.arguments[:place]]
        given = [value_of(value, values) for _, value, _ in step.arguments[place + 1 :]]
        inner: dict[str, Any] = dict(zip(part.inputs, given, strict=True))
        with self._context(str(step.call), settings):
            for one in part.steps:
                self._step(one, inner)
        return [value_of(output, _Known(inner, self._held)) for output in part.outputs]


class _Known(Mapping[str, Any]):
    """Look a name up among the results so far, then among what the modules hold now."""

    def __init__(self, results: Mapping[str, Any], held: Mapping[str, tuple[nn.Module, str]]) -> None:
        self._results, self._held = results, held

    def __getitem__(self, name: str) -> Any:
        if name in self._results:
            return self._results[name]
        owner, attribute = self._held[name]
        return getattr(owner, attribute)

    def __iter__(self) -> Any:
        return iter({**self._held, **self._results})

    def __len__(self) -> int:
        return len({**self._held, **self._results})


def _bind(outputs: Sequence[Mapping[str, Any]], result: Any, known: dict[str, Any]) -> None:
    """Give the results of an operation their names."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        results = [result[0]] if isinstance(result[0], (list, tuple)) else [result]
    else:
        results = list(result) if isinstance(result, (tuple, list)) else [result]
    for output, value in zip(outputs, results, strict=False):
        names = names_in(output)
        known.update(zip(names, value if "as_tensors" in output else [value], strict=False))


def _classes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the class names of the modules that ran, by path."""
    kinds: dict[str, str] = {}
    for node in nodes:
        for _, path, kind in places(node.get("metadata", {}).get("nn_module_stack", "")):
            if kind.isidentifier():
                kinds.setdefault(path, kind)
    return kinds
