"""net.pt2, which torch.export.save wrote -> a model that runs its graph.

`torch.export.load` unpickles, and makes Python source of what the file says: a file of unknown origin can run code.
So the file is read as data here. Its graph (JSON) says which ATen operations run on which tensors, and of what size
every tensor is; nothing else is opened, so that no weight is read or allocated. An operation is looked up among those
that torch has registered, and a name that is none is refused.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from torchledger.errors import UserError, printable
from torchledger.sources.built import Example, MakeExample
from torchledger.sources.naming import Source, describe

_MAJOR = 8  # version of the format that is read here: torch 2.9 to 2.13 write 8.x

# The numbers that the format gives dtypes, layouts and memory formats.
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
    13: torch.bfloat16, 28: torch.uint16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
}  # fmt: skip
_MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
_STRIDED = 7

# What a graph computes with numbers rather than tensors (sizes, mostly).
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in "add sub mul floordiv truediv mod neg pos eq ne lt le gt ge and_ or_ not_ getitem".split()
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.sym_{name}": getattr(torch, f"sym_{name}") for name in ("float", "int", "max", "min", "not", "ite")},
}
# What goes by torch's own function, where a capture sees it whole.
_WHOLE: Mapping[str, Callable[..., Any]] = {
    "torch.ops.aten.scaled_dot_product_attention.default": functional.scaled_dot_product_attention,
}
_NAMESPACES = ("aten", "prims", "torchvision", "quantized", "quantized_decomposed")


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


# ---- the graph


class _Step:
    """One operation of the graph: what to call, arguments and names of results as the file has them, its modules."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.name = str(node["target"])
        self.call = _function(self.name)
        self.arguments = [(str(entry["name"]), entry["arg"], entry.get("kind")) for entry in node["inputs"]]
        self.graphs = {
            place: _Part(entry["arg"]["as_graph"]["graph"])
            for place, entry in enumerate(node["inputs"])
            if "as_graph" in entry["arg"]
        }
        self.outputs = list(node["outputs"])
        self.stack = _stack(node.get("metadata", {}).get("nn_module_stack", ""))
        self.reads = {name for _, value, _ in self.arguments for name in _names(value)}
        self.reads |= {name for part in self.graphs.values() for name in part.free}
        self.writes = [name for value in self.outputs for name in _names(value)]


class _Part:
    """A graph inside of the graph: its steps, and the names that come in and go out."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.steps = [_Step(node) for node in graph["nodes"]]
        self.inputs = [name for value in graph["inputs"] for name in _names(value)]
        self.outputs = list(graph["outputs"])
        written = {name for step in self.steps for name in step.writes}
        self.free: set[str] = {name for step in self.steps for name in step.reads} - written - set(self.inputs)


class _Segment:
    """Steps that run one after another in one module, and in it: what it reads from outside, and what is read after."""

    def __init__(self, steps: Sequence[_Step], depth: int, read_after: set[str]) -> None:
        self.items: list[_Step | tuple[str, _Segment]] = []
        self.drop: list[list[str]] = []  # by item: names that nothing reads any more
        ends = []
        start = 0
        while start < len(steps):
            stack = steps[start].stack
            end = start + 1
            if len(stack) > depth:
                while end < len(steps) and steps[end].stack[: depth + 1] == stack[: depth + 1]:
                    end += 1
            ends.append((start, end))
            start = end
        for start, end in reversed(ends):
            here = steps[start:end]
            deeper = len(here[0].stack) > depth
            item = (here[0].stack[depth][1], _Segment(here, depth + 1, set(read_after))) if deeper else here[0]
            self.items.append(item)
            touched = {name for step in here for name in (*step.reads, *step.writes)}
            self.drop.append([name for name in touched if name not in read_after])
            read_after = read_after | {name for step in here for name in step.reads}
        self.items.reverse()
        self.drop.reverse()
        written = {name for step in steps for name in step.writes}
        self.reads = sorted({name for step in steps for name in step.reads} - written)
        self.writes: list[str] = []


def _function(name: str) -> Callable[..., Any] | str:
    """Return what a target names: an ATen overload, an operation on numbers, or the name of one that runs a graph."""
    if name in _NUMBERS or name in _WHOLE:
        return _NUMBERS.get(name) or _WHOLE[name]
    prefix, _, rest = name.partition("torch.ops.")
    parts = rest.split(".")
    if not prefix and parts[0] == "higher_order" and rest in _GRAPH_RUNNERS:
        return rest
    if not prefix and len(parts) == 3 and parts[0] in _NAMESPACES and parts[1] not in _FORBIDDEN:
        namespace, operation, overload = parts
        found = getattr(getattr(getattr(torch.ops, namespace), operation, None), overload, None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise UserError(
        f"the exported program runs {printable(name)!r}, which is not known here: it needs an operation of torch"
        f" {torch.__version__}; for one of your own, analyze the model in Python"
    )


_FORBIDDEN = frozenset({"from_file"})  # opens a file that the graph would name
_GRAPH_RUNNERS = ("higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast")


def _stack(text: str) -> tuple[tuple[str, str], ...]:
    """Return key and path of the modules that an operation ran in, outermost first, the model itself left out.

    A second call of a module has a key of its own.
    """
    places = [(key, path) for key, path, _ in _places(text)]
    if not places or places[0][1]:  # torch.export put the operation in, and no module
        return ()
    inside = [path.startswith(f"{outer}." if outer else "") for (_, outer), (_, path) in itertools.pairwise(places)]
    return tuple(places[1:]) if all(inside) else ()  # a module that is called from outside of its owner


def _places(text: str) -> list[tuple[str, str, str]]:
    """Return what the file writes of each module in a stack: KEY,PATH,CLASS;KEY,PATH,CLASS."""
    entries = [entry.split(",") for entry in str(text).split(";")]
    return [(entry[0], entry[1], entry[-1].rpartition(".")[2]) for entry in entries if len(entry) >= 3]


def _names(value: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors and numbers in an argument."""
    kind, content = next(iter(value.items()))
    if kind in ("as_tensor", "as_custom_obj", "as_token"):
        return [str(content["name"])]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return [str(content["as_name"])] if "as_name" in content else []
    if kind == "as_optional_tensor":
        return _names(content)
    if kind == "as_tensors":
        return [str(entry["name"]) for entry in content]
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [name for entry in content for name in _names_or_number(entry)]
    if kind == "as_nested_tensors":
        return [str(entry["name"]) for row in content for entry in row]
    return []


def _names_or_number(entry: Mapping[str, Any]) -> list[str]:
    if "as_name" in entry:
        return [str(entry["as_name"])]
    return [str(entry["as_tensor"]["name"])] if "as_tensor" in entry else []


def _value(argument: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Return what an argument stands for."""
    kind, content = next(iter(argument.items()))
    match kind:
        case "as_none":
            return None
        case "as_tensor" | "as_token":
            return known[content["name"]]
        case "as_tensors":
            return [known[entry["name"]] for entry in content]
        case "as_nested_tensors":
            return [[known[entry["name"]] for entry in row] for row in content]
        case "as_optional_tensors":
            return [_value(entry, known) for entry in content]
        case "as_optional_tensor":
            return _value(content, known)
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return _number(content, known)
        case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return [_number(entry, known) for entry in content]
        case "as_scalar_type":
            return _DTYPES[content]
        case "as_memory_format":
            return _MEMORY_FORMATS[content]
        case "as_layout" if content == _STRIDED:
            return torch.strided
        case "as_device":
            return torch.device(content["type"], content.get("index"))
        case "as_complex":
            return complex(content["real"], content["imag"])
        case "as_int" | "as_ints" | "as_int_lists" | "as_bool" | "as_bools" | "as_string" | "as_strings":
            return content
        case "as_float":
            return float(content)  # infinities are texts in JSON
        case "as_floats":
            return [float(entry) for entry in content]
        case "as_float_lists":
            return [[float(entry) for entry in row] for row in content]
    raise UserError(f"the exported program has an argument of kind {printable(kind)!r}, which is not known here")


def _number(content: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    kind, value = next(iter(content.items()))
    return known[value] if kind == "as_name" else value


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
        part = _Part(graph)
        self._outputs = part.outputs
        after = {name for value in self._outputs for name in _names(value)}
        self._whole = _Segment(part.steps, 0, after)

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
        size, dtype = self._size(name), _DTYPES[self._values[name]["dtype"]]
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
        """Return the inputs that the program was exported with, of `batch` samples where it leaves that open."""
        names = [_names(argument)[0] for argument in self._user if "as_tensor" in argument]
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
                values.append(next(iter(argument.values())) if _names(argument) == [] else 1)
                continue
            name = argument["as_tensor"]["name"]
            dtype = _DTYPES[self._values[name]["dtype"]]
            floating = dtype.is_floating_point or dtype.is_complex
            device = "meta" if floating else "cpu"
            values.append(torch.zeros(self._size(name, symbols), dtype=dtype, device=device))
        return values

    def forward(self, *inputs: Any) -> Any:
        """Run the graph on the inputs, in the order in which the exported model took them, and return its outputs."""
        if len(inputs) != len(self._user):
            raise UserError(f"the exported program takes {len(self._user)} inputs, got {len(inputs)}")
        known = dict(self._constants)
        for argument, value in zip(self._user, inputs, strict=True):
            known.update(dict.fromkeys(_names(argument), value))
        self._run(self._whole, known)
        return [_value(output, _Known(known, self._held)) for output in self._outputs]

    def _run(self, segment: _Segment, known: dict[str, Any]) -> None:
        for item, drop in zip(segment.items, segment.drop, strict=True):
            if isinstance(item, _Step):
                self._step(item, known)
            else:
                path, inner = item
                names = [name for name in inner.reads if name in known]

                def run(*tensors: Any, inner: _Segment = inner, names: list[str] = names) -> Any:
                    inside = dict(zip(names, tensors, strict=True))
                    self._run(inner, inside)
                    return {name: value for name, value in inside.items() if name not in names}

                known.update(self._module(path)(run, *(known[name] for name in names)))
            for name in drop:
                known.pop(name, None)

    def _step(self, step: _Step, known: dict[str, Any]) -> None:
        values = _Known(known, self._held)
        if isinstance(step.call, str):
            result = self._run_graph(step, values)
        else:
            args = [_value(value, values) for _, value, kind in step.arguments if kind != 2]
            kwargs = {name: _value(value, values) for name, value, kind in step.arguments if kind == 2}
            result = step.call(*args, **kwargs)
        _bind(step.outputs, result, known)

    def _run_graph(self, step: _Step, values: _Known) -> list[Any]:
        """Run a graph inside the graph as its context manager would: grad mode on or off, or autocast."""
        (place, part), *more = step.graphs.items()
        if more:
            raise UserError(f"the exported program runs {step.name} on several graphs")
        settings = [_value(value, values) for _, value, _ in step.arguments[:place]]
        given = [_value(value, values) for _, value, _ in step.arguments[place + 1 :]]
        inner: dict[str, Any] = dict(zip(part.inputs, given, strict=True))
        context: Any = torch.set_grad_enabled(settings[0])
        if step.call == "higher_order.wrap_with_autocast":
            device, dtype, enabled, cached = settings
            context = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached)
        with context:
            for one in part.steps:
                self._step(one, inner)
        return [_value(output, _Known(inner, self._held)) for output in part.outputs]


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
        names = _names(output)
        known.update(zip(names, value if "as_tensors" in output else [value], strict=False))


def _classes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the class names of the modules that ran, by path."""
    kinds: dict[str, str] = {}
    for node in nodes:
        for _, path, kind in _places(node.get("metadata", {}).get("nn_module_stack", "")):
            if kind.isidentifier():
                kinds.setdefault(path, kind)
    return kinds
