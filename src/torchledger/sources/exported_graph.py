"""The graph of an exported program, as its file writes it: what each step calls, and what its arguments stand for."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torchledger.errors import UserError, printable

# The numbers that the format gives dtypes, layouts and memory formats.
DTYPES = {
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
# What torch.export puts in to check a dtype that it saw. It is another where the program runs under another autocast.
_CHECK = "torch.ops.aten._assert_tensor_metadata.default"
_NAMESPACES = ("aten", "prims", "torchvision", "quantized", "quantized_decomposed")


class Step:
    """One operation of the graph: what to call, arguments and names of results as the file has them, its modules."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.name = str(node["target"])
        self.call = _function(self.name)
        self.arguments = [(str(entry["name"]), entry["arg"], entry.get("kind")) for entry in node["inputs"]]
        self.graphs = {
            place: Part(entry["arg"]["as_graph"]["graph"])
            for place, entry in enumerate(node["inputs"])
            if "as_graph" in entry["arg"]
        }
        self.outputs = list(node["outputs"])
        self.stack = _stack(node.get("metadata", {}).get("nn_module_stack", ""))
        self.reads = {name for _, value, _ in self.arguments for name in names_in(value)}
        self.reads |= {name for part in self.graphs.values() for name in part.free}
        self.writes = [name for value in self.outputs for name in names_in(value)]


class Part:
    """A graph inside of the graph: its steps, and the names that come in and go out."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.steps = [Step(node) for node in graph["nodes"] if node["target"] != _CHECK]
        self.inputs = [name for value in graph["inputs"] for name in names_in(value)]
        self.outputs = list(graph["outputs"])
        written = {name for step in self.steps for name in step.writes}
        self.free: set[str] = {name for step in self.steps for name in step.reads} - written - set(self.inputs)


class Segment:
    """Steps that run one after another in one module: its own, and by path those of the modules that it calls."""

    def __init__(self, steps: Sequence[tuple[int, Step]], last: Mapping[str, int], depth: int = 0) -> None:
        """Group numbered steps. `last` is the number of the step that reads a name last."""
        self.items: list[Step | tuple[str, Segment]] = []
        self.drop: list[list[str]] = []  # by item: names that nothing reads any more
        for called, group in itertools.groupby(steps, lambda numbered: _called(numbered, depth)):
            here = list(group)
            if isinstance(called, int):
                self.items.append(here[0][1])
            else:
                self.items.append((called[1], Segment(here, last, depth + 1)))
            touched = {name for _, step in here for name in (*step.reads, *step.writes)}
            self.drop.append([name for name in touched if last.get(name, -1) <= here[-1][0]])
        written = {name for _, step in steps for name in step.writes}
        self.reads = sorted({name for _, step in steps for name in step.reads} - written)

    @classmethod
    def of(cls, part: Part) -> Segment:
        """Return all steps of a graph."""
        steps = list(enumerate(part.steps))
        last = {name: number for number, step in steps for name in step.reads}
        return cls(steps, last | {name: len(steps) for value in part.outputs for name in names_in(value)})


def _called(numbered: tuple[int, Step], depth: int) -> tuple[str, str] | int:
    """Return which call of a module inside of the present one a step belongs to, or its number where to none."""
    number, step = numbered
    return step.stack[depth] if len(step.stack) > depth else number


def _function(name: str) -> Callable[..., Any] | str:
    """Return what a target names: an ATen overload, an operation on numbers, or the name of one that runs a graph."""
    if name in _NUMBERS:
        return _NUMBERS[name]
    prefix, _, rest = name.partition("torch.ops.")
    parts = rest.split(".")
    if not prefix and parts[0] == "higher_order" and rest in _GRAPH_RUNNERS:
        return rest
    if not prefix and len(parts) == 3 and parts[0] in _NAMESPACES and parts[1] not in _FORBIDDEN:
        namespace, operation, overload = parts
        found = getattr(getattr(getattr(torch.ops, namespace), operation, None), overload, None)
        if isinstance(found, torch._ops.OpOverload) and _works_on_tensors(found):
            return found
    if not prefix and parts[0] == "higher_order":
        raise UserError(
            f"the exported program runs {printable(name)!r}, which goes by values: a .pt2 with branches or loops of its"
            " own cannot be analysed; export the model with one way taken, or analyze it in Python"
        )
    raise UserError(
        f"the exported program runs {printable(name)!r}, which is not known here: it needs an operation of torch"
        f" {torch.__version__}; for one of your own, analyze the model in Python"
    )


_FORBIDDEN = frozenset({"from_file"})  # opens a file that the graph would name
_CHECKS_OF_NUMBERS = frozenset({"_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"})


def _works_on_tensors(found: torch._ops.OpOverload) -> bool:
    """Whether an operation is one of torch's dispatcher: TorchScript alone has others, such as to write files."""
    schema = found._schema
    values = (*schema.arguments, *schema.returns)
    has_tensors = any("Tensor" in str(value.type) for value in values)
    is_known = has_tensors or schema.name.partition("::")[2] in _CHECKS_OF_NUMBERS
    return is_known and bool(torch._C._dispatch_has_kernel(str(found.name())))  # type: ignore[no-untyped-call]


_GRAPH_RUNNERS = ("higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast")


def _stack(text: str) -> tuple[tuple[str, str], ...]:
    """Return key and path of the modules that an operation ran in, outermost first, the model itself left out.

    A second call of a module has a key of its own.
    """
    calls = [(key, path) for key, path, _ in places(text)]
    if not calls or calls[0][1]:  # torch.export put the operation in, and no module
        return ()
    inside = [path.startswith(f"{outer}." if outer else "") for (_, outer), (_, path) in itertools.pairwise(calls)]
    return tuple(calls[1:]) if all(inside) else ()  # a module that is called from outside of its owner


def places(text: str) -> list[tuple[str, str, str]]:
    """Return what the file writes of each module in a stack: KEY,PATH,CLASS;KEY,PATH,CLASS."""
    entries = [entry.split(",") for entry in str(text).split(";")]
    return [(entry[0], entry[1], entry[-1].rpartition(".")[2]) for entry in entries if len(entry) >= 3]


def names_in(value: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors and numbers in an argument."""
    kind, content = next(iter(value.items()))
    if kind in ("as_tensor", "as_custom_obj", "as_token"):
        return [str(content["name"])]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return [str(content["as_name"])] if "as_name" in content else []
    if kind == "as_optional_tensor":
        return names_in(content)
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


def value_of(argument: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
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
            return [value_of(entry, known) for entry in content]
        case "as_optional_tensor":
            return value_of(content, known)
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return _number(content, known)
        case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return [_number(entry, known) for entry in content]
        case "as_scalar_type":
            return DTYPES[content]
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
