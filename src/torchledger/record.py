"""The data of a ledger: what one run of a model did, as plain values, and its JSON both ways.

A `Record` holds each *distinct* operation once (`operations`) and every call of one as a small `Entry` that refers to
it, so that a network of many equal blocks stays small and is priced once a distinct operation. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from torchledger.errors import UserError
from torchledger.parameters import ParameterInfo, ParameterRows
from torchledger.rows import Columns, Rows

SCHEMA = 3  # 2: training steps; 3: what an allocation belongs to
FORMAT = "torchledger ledger"
LARGEST = 2**64  # no size, count or scalar of torch's reaches it, and sums of what is below stay printable
LONGEST_REASON = 200  # characters that a message quotes of a damaged ledger

TABLES = frozenset({"embedding", "embedding_bag"})  # operations that look rows up in a table of parameters

Shape = tuple[int, ...]
Phase = Literal["forward", "backward", "optimizer"]
StorageKind = Literal[
    "parameter", "buffer", "input", "constant", "activation", "gradient", "optimizer", "host", "kernel"
]
T = TypeVar("T")

ITEM_SIZES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"), 1),
    **dict.fromkeys(("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "qint8", "quint8"), 1),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)), 1),
    **dict.fromkeys(("bits8", "bits1x8", "bits2x4", "bits4x2", "quint2x4", "quint4x2"), 1),
    "bits16": 2,
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32", "qint32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor is, without its values. `dtype` is torch's name without `torch.`; sizes are in elements."""

    shape: Shape
    stride: Shape
    dtype: str
    elements: int = field(init=False, repr=False, compare=False)
    distinct_elements: int = field(init=False, repr=False, compare=False)  # a dimension of stride 0 counts once

    def __post_init__(self) -> None:
        # Once, here: formulas ask for these over and over.
        elements = distinct = math.prod(self.shape)
        if 0 in self.stride and elements:
            distinct = math.prod([size for size, step in zip(self.shape, self.stride, strict=False) if step != 0])
        object.__setattr__(self, "elements", elements)
        object.__setattr__(self, "distinct_elements", distinct)

    @property
    def item_size(self) -> int:
        return ITEM_SIZES[self.dtype]

    @property
    def distinct_bytes(self) -> int:
        return self.distinct_elements * ITEM_SIZES[self.dtype]

    @property
    def is_floating(self) -> bool:
        return "float" in self.dtype or "complex" in self.dtype


@dataclass(frozen=True, slots=True)
class TensorRef:
    """The place of a tensor argument in its operation's `inputs`."""

    index: int


class OutputInfo(NamedTuple):
    """A tensor that an operation returned. `alias` is the input whose storage it shares; None: a fresh storage."""

    tensor: TensorInfo
    alias: int | None = None


class Operation(NamedTuple):
    """A distinct operation: canonical name, arguments by schema name, tensors given, tensors returned.

    `repeated`: inputs that are the same elements in memory as an earlier one (`mul(x, x)`, `x @ x.T`), read once.
    """

    name: str
    arguments: Mapping[str, object]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[OutputInfo, ...]
    repeated: tuple[int, ...] = ()

    def tensor(self, name: str) -> TensorInfo | None:
        """Return the tensor that was passed as argument `name`, or None where there was none."""
        value = self.arguments.get(name)
        return self.inputs[value.index] if isinstance(value, TensorRef) else None

    def tensors(self, name: str) -> tuple[TensorInfo, ...]:
        """Return the tensors of the list argument `name`."""
        values = self.arguments.get(name)
        if not isinstance(values, (list, tuple)):
            return ()
        return tuple(self.inputs[value.index] for value in values if isinstance(value, TensorRef))


class Entry(NamedTuple):
    """One call of an operation: indices into `Record.operations` and `Record.calls`, and the phase."""

    operation: int
    call: int
    phase: Phase = "forward"


class EntryColumns(Columns[Entry]):
    """Entries by column."""

    __slots__ = names = ("operations", "calls", "phases")
    row = Entry
    operations: list[int]
    calls: list[int]
    phases: list[Phase]


class ModuleInfo(NamedTuple):
    """A module under one path. `leaf`: no registered children. `same_as`: the first path of the same module.

    `registered` is its place in `named_modules` order, None for a path that only a call made.
    """

    path: str
    kind: str
    leaf: bool
    registered: int | None
    same_as: str | None = None


class ModuleColumns(Columns[ModuleInfo]):
    """Modules by column."""

    __slots__ = names = ("paths", "kinds", "leaves", "registered", "same_as")
    row = ModuleInfo
    paths: list[str]
    kinds: list[str]
    leaves: list[bool]
    registered: list[int | None]
    same_as: list[str | None]


class ModuleCall(NamedTuple):
    """One call of a module: indices of its module and of the call that made it, shapes of tensors in and out.

    `started`: the number of entries booked when it began.
    """

    module: int
    parent: int | None
    started: int
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()


class CallColumns(Columns[ModuleCall]):
    """Calls of modules by column."""

    __slots__ = names = ("modules", "parents", "started", "inputs", "outputs")
    row = ModuleCall
    modules: list[int]
    parents: list[int | None]
    started: list[int]
    inputs: list[tuple[Shape, ...]]
    outputs: list[tuple[Shape, ...]]


@dataclass(slots=True)
class Allocation:
    """A storage: bytes, and the number of entries booked when it was born and when it died (None: outlived the run).

    `owner`: the place in `Record.parameters` of what a parameter, gradient or optimizer state belongs to, in
    `Record.buffers` for a buffer. A `kernel` stands for what entry `born` keeps for its backward beyond its inputs and
    outputs: how many bytes is a matter of the device (see memory/kernels.py), so it has none of its own; its `owner`
    is the number of storages that the entry's inputs lie in. A `host` is optimizer state that stays on the CPU.
    """

    bytes: int
    born: int
    died: int | None
    kind: StorageKind
    owner: int | None = None


class StateStorages:
    """The storages of parameters or buffers that a run may never look at: of each its bytes; `first` owns the first.

    `looked_at`: what is booked of those that it did look at, by place.
    """

    __slots__ = ("first", "kind", "looked_at", "sizes")

    def __init__(self, sizes: list[int], kind: StorageKind, first: int) -> None:
        self.sizes, self.kind, self.first = sizes, kind, first
        self.looked_at: dict[int, Allocation] = {}

    def look_at(self, place: int) -> Allocation:
        """Return the allocation that will stand at `place`, to be changed."""
        found = self.looked_at.get(place)
        if found is None:
            found = self.looked_at[place] = Allocation(self.sizes[place], 0, None, self.kind, self.first + place)
        return found

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self) -> list[Allocation]:
        """Return the allocations."""
        return list(map(self.look_at, range(len(self.sizes))))


@dataclass(frozen=True, slots=True)
class Measured:
    """Median exclusive seconds of one row of the by-layer view (see `Record.row_keys`), summed over its calls."""

    path: str
    operation: str
    ordinal: int
    seconds: float


@dataclass(slots=True)
class Measurement:
    """A real run: rows, the wall time of an uninstrumented forward, repeats, device."""

    rows: list[Measured]
    wall_seconds: float
    repeats: int
    device: str


@dataclass(slots=True)
class Choice:
    """What the model chose by its own values (top-k, argmax): the entry that chose, for how many `tokens`.

    `call`: the smallest module call around all that goes by the choice. `last`: the last entry that does; None where
    the program read what was chosen, and may go by it to the end of the call.
    """

    entry: int
    tokens: int
    call: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Use:
    """An entry that takes a parameter (or what is made of parameters alone) as its input of this index."""

    entry: int
    input: int
    parameter: int


@dataclass(slots=True)
class Routing:
    """The choices of a run's forward, and the use of parameters from the first one on. `earlier`: those used before."""

    choices: list[Choice]
    uses: list[Use]
    earlier: list[int]


RowKey = tuple[str, str, int]


@dataclass(slots=True)
class Record:
    """Everything that one captured run did."""

    model: str
    mode: str
    batch: int
    torch_version: str
    inputs: list[str] = field(default_factory=list)
    modules: ModuleColumns = field(default_factory=ModuleColumns)
    calls: CallColumns = field(default_factory=CallColumns)
    operations: list[Operation] = field(default_factory=list)
    entries: EntryColumns = field(default_factory=EntryColumns)
    parameters: ParameterRows = field(default_factory=ParameterRows)
    buffers: ParameterRows = field(default_factory=ParameterRows)
    allocations: Rows[Allocation] = field(default_factory=Rows)
    assumptions: list[str] = field(default_factory=list)
    measurement: Measurement | None = None
    error: str | None = None
    failed_call: int | None = None  # the call of a module in which forward failed
    step: str | None = None  # of a training step: its loss and optimizer
    loss_at: int | None = None  # of a training step: entries booked when forward returned
    one_by_one: int | None = None  # most bytes of temporaries where the optimizer takes one parameter after another
    in_place: list[int] = field(default_factory=list)  # entries that a device writes into their first input
    routing: Routing | None = None  # where the model chose by its own values what runs
    autocast: str | None = None  # around forward and loss: device and dtype, such as cpu:bfloat16

    def row_keys(self) -> list[RowKey]:
        """Return for each entry the row of the by-layer view that it belongs to.

        Inside a leaf module that is (path, "", 0); outside one (path of the module that ran it, operation, how many
        of that operation the same call had run before), so the second `add` of every call of a block is one row.
        """
        seen: dict[tuple[int, str], int] = {}
        leaf_keys: dict[int, RowKey] = {}
        keys: list[RowKey] = []
        for operation, call in zip(self.entries.operations, self.entries.calls, strict=True):
            known = leaf_keys.get(call)
            if known is not None:
                keys.append(known)
                continue
            module = self.calls.modules[call]
            path = self.modules.paths[module]
            if self.modules.leaves[module]:
                keys.append(leaf_keys.setdefault(call, (path, "", 0)))
                continue
            name = self.operations[operation].name
            ordinal = seen.get((call, name), 0)
            seen[call, name] = ordinal + 1
            keys.append((path, name, ordinal))
        return keys

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-able values; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "model": self.model,
            "mode": self.mode,
            "batch": self.batch,
            "torch_version": self.torch_version,
            "inputs": self.inputs,
            "modules": [list(module) for module in self.modules],
            "calls": [list(call) for call in self.calls],
            "operations": [_operation_to_json(operation) for operation in self.operations],
            "entries": {
                "operation": list(self.entries.operations),
                "call": list(self.entries.calls),
                "phase": _runs(self.entries.phases),
            },
            "parameters": [_parameter_to_json(parameter) for parameter in self.parameters],
            "buffers": [_parameter_to_json(buffer) for buffer in self.buffers],
            "allocations": [[a.bytes, a.born, a.died, a.kind, a.owner] for a in self.allocations],
            "assumptions": self.assumptions,
            "measurement": None
            if self.measurement is None
            else {
                "rows": [[row.path, row.operation, row.ordinal, row.seconds] for row in self.measurement.rows],
                "wall_seconds": self.measurement.wall_seconds,
                "repeats": self.measurement.repeats,
                "device": self.measurement.device,
            },
            "error": self.error,
            "failed_call": self.failed_call,
            "step": self.step,
            "loss_at": self.loss_at,
            "one_by_one": self.one_by_one,
            "in_place": self.in_place,
            # Where there is any: files of models without are as they were, and load everywhere.
            **({} if self.routing is None else {"routing": _routing_to_json(self.routing)}),
            "autocast": self.autocast,
        }

    @classmethod
    def from_json(cls, data: object, source: str = "the data") -> Record:
        """Build a record from what `to_json` gave. Raise UserError, naming `source`, for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(
                f'{source} is no torchledger ledger (no "format": "{FORMAT}"); '
                "write one with --format json or Ledger.save"
            )
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UserError(f"{source} is damaged: its schema is {schema!r}, expected a whole number from 1")
        if schema > SCHEMA:
            raise UserError(
                f"{source} has schema {schema}, this torchledger reads up to {SCHEMA}; upgrade torchledger to read it"
            )
        try:
            record = _record_from_json(data)
            _check_references(record)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            if len(reason) > LONGEST_REASON:
                reason = f"{reason[:LONGEST_REASON]} ..."
            raise UserError(f"{source} is damaged: {reason}; write it again with Ledger.save") from error
        return record


def read_record(text: str, source: str) -> Record:
    """Parse the JSON text of a saved ledger. Raise UserError, naming `source`, where it is none or is cut off."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{source} is not whole JSON ({at}: {error.msg}); save the ledger again") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested as deep
        raise UserError(f"{source} is no ledger: {error}; save the ledger again") from error
    return Record.from_json(data, source)


def _record_from_json(data: Mapping[str, Any]) -> Record:
    entries = data["entries"]
    phases = _unrolled(_listed(entries["phase"]), len(_listed(entries["operation"])))
    measurement = data["measurement"]
    return Record(
        model=_checked(str, data["model"]),
        mode=_checked(str, data["mode"]),
        batch=_checked(int, data["batch"]),
        torch_version=_checked(str, data["torch_version"]),
        inputs=[_checked(str, text) for text in _listed(data["inputs"])],
        modules=ModuleColumns(
            ModuleInfo(
                _checked(str, path),
                _checked(str, kind),
                _checked(bool, leaf),
                _optional(int, registered),
                _optional(str, same_as),
            )
            for path, kind, leaf, registered, same_as in _listed(data["modules"])
        ),
        calls=CallColumns(
            ModuleCall(
                _checked(int, module),
                _optional(int, parent),
                _checked(int, started),
                tuple(_shape(shape) for shape in _listed(inputs)),
                tuple(_shape(shape) for shape in _listed(outputs)),
            )
            for module, parent, started, inputs, outputs in _listed(data["calls"])
        ),
        operations=[_operation_from_json(operation) for operation in _listed(data["operations"])],
        entries=EntryColumns.of(
            [_checked(int, operation) for operation in entries["operation"]],
            [_checked(int, call) for call in _listed(entries["call"])],
            phases,
        ),
        parameters=ParameterRows(_parameter_from_json(parameter) for parameter in _listed(data["parameters"])),
        buffers=ParameterRows(_parameter_from_json(buffer) for buffer in _listed(data["buffers"])),
        allocations=Rows(_allocation_from_json(*allocation) for allocation in _listed(data["allocations"])),
        assumptions=[_checked(str, text) for text in _listed(data["assumptions"])],
        measurement=None
        if measurement is None
        else Measurement(
            [
                Measured(_checked(str, path), _checked(str, name), _checked(int, ordinal), _seconds(seconds))
                for path, name, ordinal, seconds in _listed(measurement["rows"])
            ],
            _seconds(measurement["wall_seconds"]),
            _checked(int, measurement["repeats"]),
            _checked(str, measurement["device"]),
        ),
        error=_optional(str, data["error"]),
        failed_call=_optional(int, data["failed_call"]),
        step=_optional(str, data["step"]) if data["schema"] > 1 else None,
        loss_at=_optional(int, data["loss_at"]) if data["schema"] > 2 else None,
        one_by_one=_optional(int, data["one_by_one"]) if data["schema"] > 2 else None,
        in_place=[_checked(int, place) for place in _listed(data["in_place"] if data["schema"] > 2 else [])],
        routing=_routing_from_json(data["routing"]) if "routing" in data else None,
        autocast=_optional(str, data.get("autocast")),
    )


def _check_references(record: Record) -> None:
    """Raise ValueError where an index points outside its list or the modules do not form calls."""
    counts = {
        "operation": (len(record.operations), record.entries.operations),
        "call": (len(record.calls), record.entries.calls),
        "module": (len(record.modules), record.calls.modules),
    }
    for name, (count, indices) in counts.items():
        for index in {min(indices, default=0), max(indices, default=-1)}:
            if indices and not 0 <= index < count:
                raise ValueError(f"an entry refers to {name} {index} of {count}")
    if record.failed_call is not None and not 0 <= record.failed_call < len(record.calls):
        raise ValueError(f"forward failed in call {record.failed_call} of {len(record.calls)}")
    moments = [*record.calls.started]
    moments += [*record.in_place, *([] if record.loss_at is None else [record.loss_at])]
    for allocation in record.allocations:
        moments += [allocation.born, allocation.born if allocation.died is None else allocation.died]
        owners = record.buffers if allocation.kind == "buffer" else record.parameters
        owner = None if allocation.kind == "kernel" else allocation.owner
        if owner is not None and not 0 <= owner < len(owners):
            raise ValueError(f"a storage belongs to {allocation.kind} {owner} of {len(owners)}")
        if allocation.bytes < 0 or (allocation.kind == "kernel" and allocation.born >= len(record.entries)):
            raise ValueError(f"a storage of {allocation.bytes} bytes is that of entry {allocation.born}")
    if moments and not 0 <= min(moments) <= max(moments) <= len(record.entries):
        raise ValueError(f"a call or a storage begins or ends outside of the {len(record.entries)} entries")
    for number, parent in enumerate(record.calls.parents):
        if parent is not None and not 0 <= parent < number:
            raise ValueError(f"call {number} names call {parent} as its parent")
    for operation in record.operations:
        count = len(operation.inputs)
        refs = [value for value in operation.arguments.values() if isinstance(value, TensorRef)]
        refs += [v for vs in operation.arguments.values() if isinstance(vs, tuple) for v in _refs_in(vs)]
        aliases = [output.alias for output in operation.outputs if output.alias is not None]
        if any(not 0 <= index < count for index in [ref.index for ref in refs] + aliases + [*operation.repeated]):
            raise ValueError(f"operation {operation.name} refers to an input that it does not have")
    if record.routing is not None:
        _check_routing(record, record.routing)


def _check_routing(record: Record, routing: Routing) -> None:
    """Raise ValueError where a choice or the use of a parameter points outside its list."""
    for choice in routing.choices:
        last = choice.entry if choice.last is None else choice.last
        is_placed = 0 <= choice.entry <= last < len(record.entries) and 0 <= choice.call < len(record.calls)
        if not is_placed or choice.tokens < 1:
            raise ValueError(f"entry {choice.entry} chooses for {choice.tokens} tokens in call {choice.call}")
    for use in routing.uses:
        entry = record.entries[use.entry] if 0 <= use.entry < len(record.entries) else None
        inputs = 0 if entry is None else len(record.operations[entry.operation].inputs)
        if not 0 <= use.input < inputs:
            raise ValueError(f"entry {use.entry} uses a parameter as its input {use.input} of {inputs}")
    for index in {*routing.earlier, *(use.parameter for use in routing.uses)}:
        if not 0 <= index < len(record.parameters):
            raise ValueError(f"an entry uses parameter {index} of {len(record.parameters)}")


def _refs_in(values: tuple[object, ...]) -> Iterator[TensorRef]:
    for value in values:
        if isinstance(value, tuple):
            yield from _refs_in(value)
        elif isinstance(value, TensorRef):
            yield value


def _operation_to_json(operation: Operation) -> dict[str, Any]:
    return {
        "name": operation.name,
        "arguments": {name: _value_to_json(value) for name, value in operation.arguments.items()},
        "inputs": [[t.shape, t.stride, t.dtype] for t in operation.inputs],
        "outputs": [[o.tensor.shape, o.tensor.stride, o.tensor.dtype, o.alias] for o in operation.outputs],
        "repeated": operation.repeated,
    }


def _operation_from_json(data: Mapping[str, Any]) -> Operation:
    return Operation(
        _checked(str, data["name"]),
        {_checked(str, name): _value_from_json(value) for name, value in data["arguments"].items()},
        tuple(_tensor(*tensor) for tensor in _listed(data["inputs"])),
        tuple(OutputInfo(_tensor(*tensor), _optional(int, alias)) for *tensor, alias in _listed(data["outputs"])),
        tuple(_checked(int, index) for index in _listed(data["repeated"])),
    )


def _value_to_json(value: object) -> object:
    if isinstance(value, TensorRef):
        return {"tensor": value.index}
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [str(value.real), str(value.imag)]}
    return value


def _value_from_json(value: object) -> object:
    if isinstance(value, dict):
        (kind, content), *rest = value.items()
        if rest or kind not in ("tensor", "float", "complex"):
            raise ValueError(f"an argument is {value!r}")
        if kind == "tensor":
            return TensorRef(_checked(int, content))
        if kind == "float":
            return float(_checked(str, content))
        real, imaginary = _listed(content)
        return complex(float(_checked(str, real)), float(_checked(str, imaginary)))
    if isinstance(value, (list, tuple)):
        return tuple(_value_from_json(item) for item in value)
    return _checked(int, value) if _is(int, value) else value


def _allocation_from_json(size: object, born: object, died: object, kind: object, owner: object = None) -> Allocation:
    chosen = _one_of(kind, StorageKind)
    return Allocation(_checked(int, size), _checked(int, born), _optional(int, died), chosen, _optional(int, owner))


def _parameter_to_json(p: ParameterInfo) -> list[object]:
    return [p.path, p.module, p.shape, p.dtype, p.trainable, p.shared_with]


def _parameter_from_json(data: list[Any]) -> ParameterInfo:
    path, module, shape, dtype, trainable, shared_with = data
    return ParameterInfo(
        _checked(str, path),
        _checked(str, module),
        _shape(shape),
        _checked(str, dtype),
        _checked(bool, trainable),
        _optional(str, shared_with),
    )


def _routing_to_json(routing: Routing) -> dict[str, Any]:
    return {
        "choices": [[choice.entry, choice.tokens, choice.call, choice.last] for choice in routing.choices],
        "uses": [[use.entry, use.input, use.parameter] for use in routing.uses],
        "earlier": routing.earlier,
    }


def _routing_from_json(data: Mapping[str, Any]) -> Routing:
    def numbers(values: object) -> list[int]:
        return [_checked(int, value) for value in _listed(values)]

    choices = [(numbers(values), _optional(int, last)) for *values, last in _listed(data["choices"])]
    uses = [numbers(values) for values in _listed(data["uses"])]
    return Routing(
        [Choice(entry, tokens, call, last) for (entry, tokens, call), last in choices],
        [Use(entry, place, parameter) for entry, place, parameter in uses],
        numbers(data["earlier"]),
    )


def _tensor(shape: object, stride: object, dtype: object) -> TensorInfo:
    if dtype not in ITEM_SIZES:
        raise ValueError(f"a tensor has the unknown dtype {dtype!r}")
    info = TensorInfo(_shape(shape), _shape(stride, signed=True), _checked(str, dtype))
    if len(info.shape) != len(info.stride):
        raise ValueError(f"a tensor has shape {info.shape} and stride {info.stride}")
    return info


def _shape(values: object, signed: bool = False) -> Shape:
    sizes = tuple(_checked(int, value) for value in _listed(values))
    if not signed and (any(size < 0 for size in sizes) or math.prod(sizes) >= LARGEST):
        raise ValueError(f"a shape is {values!r}")
    return sizes


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _checked(kind: type[T], value: object) -> T:
    if not _is(kind, value):
        raise ValueError(f"{value!r} stands where a {kind.__name__} belongs")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(f"{value} is more than a ledger holds")
    return value  # type: ignore[return-value]  # narrowed by _is, which also keeps bool apart from int


def _listed(value: object) -> Sequence[Any]:
    """Return a list of the JSON, or the tuple that stands for one before it is written."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} stands where a list belongs")
    return value


def _optional(kind: type[T], value: object) -> T | None:
    return None if value is None else _checked(kind, value)


def _seconds(value: object) -> float:
    if not (_is(int, value) or _is(float, value)) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{value!r} stands where seconds belong")
    return float(value)  # type: ignore[arg-type]


def _one_of(value: object, choices: Any) -> Any:
    if value not in choices.__args__:
        raise ValueError(f"{value!r} is none of {', '.join(choices.__args__)}")
    return value


def _runs(values: list[Any]) -> list[list[Any]]:
    """Return [value, count] runs: phases are long stretches of one word."""
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _unrolled(runs: Sequence[Any], length: int) -> list[Any]:
    """Undo `_runs`, for `length` values: a count is checked before anything is made of it."""
    counts = [_checked(int, count) for _, count in runs]
    if sum(counts) != length or min(counts, default=1) < 1:
        raise ValueError(f"phases stand for {sum(counts)} entries of {length}")
    return [value for value, count in runs for value in [_one_of(value, Phase)] * count]
