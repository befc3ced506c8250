"""The JSON of a record: there and back without a change, and one clear line for whatever is no record."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchledger import Ledger, UserError, analyze
from torchledger.parameters import HeldByModules, ParameterInfo, ParameterRows
from torchledger.record import (
    ITEM_SIZES,
    SCHEMA,
    Allocation,
    CallColumns,
    Entry,
    EntryColumns,
    Measured,
    Measurement,
    ModuleCall,
    ModuleColumns,
    ModuleInfo,
    Operation,
    OutputInfo,
    Phase,
    Record,
    StateStorages,
    StorageKind,
    TensorInfo,
    TensorRef,
    read_record,
)
from torchledger.rows import Rows


class Branching(nn.Module):
    """A buffer, a shared module, views, a list of tensors and arguments that are no plain JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(4, 3)
        self.same_head = self.head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = self.norm(self.convolution(x)).flatten(2).transpose(1, 2)
        x = torch.cat([x, x], dim=1).flatten(1)[:, :4]
        x = x.clamp(float("-inf"), float("inf")).masked_fill(x > 0, float("nan"))
        return self.head(x), {"second": self.same_head(x[None])}


class Short(nn.Module):
    """As few values as show every field: an operation on a list, one on an infinity, a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.inner = nn.Identity()
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.cat([x * self.scale, x], dim=1)).clamp(float("-inf"))


class Spectral(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x) * complex(1.5, float("inf"))


SMALL = {
    "leaf": (nn.Linear(4, 3), (4,)),
    "nested": (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(64, 2)), (3, 6, 6)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "empty": (nn.Identity(), (4,)),
    "branching": (Branching(), (1, 4, 4)),
    "short": (Short(), (2,)),
    "spectral": (Spectral(), (8,)),
}


def captured(name: str = "branching") -> Record:
    model, size = SMALL[name]
    return analyze(model, size).record


def filled(name: str = "branching") -> Record:
    """Return a captured record with all that a forward alone does not fill in."""
    record = captured(name)
    # Three runs of phases.
    count, phases = len(record.entries), record.entries.phases
    phases[count // 3 :] = ["backward"] * (count - count // 3)
    phases[-1] = "optimizer"
    record.measurement = Measurement([Measured("head", "", 0, 0.25), Measured("", "cat", 1, 1e-9)], 0.5, 7, "CPU")
    record.error = "head: Linear expects 4 features, got 5"
    record.assumptions = ["autocast was on"]
    record.parameters.append(ParameterInfo("tied", "head", (3, 4), "bfloat16", False, "head.weight"))
    return record


def again(record: Record) -> Record:
    return Record.from_json(json.loads(json.dumps(record.to_json())))


def is_one_line(error: pytest.ExceptionInfo[UserError]) -> bool:
    """Whether the message is a line that a terminal can take: damaged values are quoted in part."""
    return "\n" not in str(error.value) and len(str(error.value)) < 400


# ---- there and back


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_of_captured_records(name: str) -> None:
    record = captured(name)
    # repr tells tuples from lists and 1 from True, and takes a nan for another one.
    assert repr(again(record)) == repr(record)
    if name not in ("branching", "spectral"):  # a nan equals nothing, not even itself
        assert again(record) == record


def test_round_trip_of_phases_measurement_and_error() -> None:
    record = filled()
    assert repr(again(record)) == repr(record)
    assert {entry.phase for entry in again(record).entries} == set(get_args(Phase))


def test_from_json_is_the_inverse_of_to_json_without_text_between() -> None:
    record = filled()
    assert repr(Record.from_json(record.to_json())) == repr(record)
    assert repr(Ledger.from_json(Ledger(record).to_json()).record) == repr(record)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -3,
        2**63,
        0.1,
        1e300,
        -0.0,
        float("inf"),
        float("-inf"),
        float("nan"),
        complex(1, -2),
        complex(float("nan"), float("-inf")),
        "",
        "float32",
        'quoted " \\ \x00 \u2028 é漢',
        (),
        ((),),
        (1, (2.5, (None, (True, float("nan")))), TensorRef(0)),
        (TensorRef(1), TensorRef(0), None),
        ((TensorRef(1),), "x"),
    ],
    ids=repr,
)
def test_round_trip_of_arguments(value: object) -> None:
    record = captured("leaf")
    info = TensorInfo((2, 3), (3, 1), "float32")
    record.operations[0] = Operation("add", {"value": value, "other": TensorRef(1)}, (info, info), (OutputInfo(info),))
    read = again(record).operations[0].arguments["value"]
    assert (type(read), repr(read)) == (type(value), repr(value))


WORDS = st.text(max_size=6)
COUNT = st.integers(0, 2**40)
SHAPES = st.lists(st.integers(0, 300), max_size=4).map(tuple)
DTYPES = st.sampled_from(sorted(ITEM_SIZES))
SECONDS = st.floats(0, 1e6)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.complex_numbers() | WORDS


@st.composite
def tensors(draw: st.DrawFn) -> TensorInfo:
    shape = draw(SHAPES)
    stride = draw(st.lists(st.integers(-(2**40), 2**40), min_size=len(shape), max_size=len(shape)))
    return TensorInfo(shape, tuple(stride), draw(DTYPES))


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    inputs = draw(st.lists(tensors(), max_size=3))
    places = st.sampled_from(range(len(inputs))) if inputs else st.nothing()
    values = st.recursive(SCALARS | places.map(TensorRef), lambda inner: st.lists(inner, max_size=3).map(tuple))
    outputs = st.lists(st.builds(OutputInfo, tensors(), st.none() | places), max_size=2)
    return Operation(
        draw(WORDS),
        draw(st.dictionaries(WORDS, values, max_size=3)),
        tuple(inputs),
        tuple(draw(outputs)),
        tuple(draw(st.lists(places, max_size=2 if inputs else 0))),
    )


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw a record whose indices refer to what is there; anything else in it is arbitrary."""
    modules = draw(st.lists(st.builds(ModuleInfo, WORDS, WORDS, st.booleans(), st.none() | COUNT), max_size=3))
    known = draw(st.lists(operations(), max_size=3))
    calls: list[ModuleCall] = []
    for number in range(draw(st.integers(0, 3)) if modules else 0):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        shapes = st.lists(SHAPES, max_size=2).map(tuple)
        calls.append(ModuleCall(draw(st.integers(0, len(modules) - 1)), parent, 0, draw(shapes), draw(shapes)))
    entries: list[Entry] = []
    if calls and known:
        place, call = st.integers(0, len(known) - 1), st.integers(0, len(calls) - 1)
        entries = draw(st.lists(st.builds(Entry, place, call, st.sampled_from(get_args(Phase))), max_size=6))
    moment = st.integers(0, len(entries))
    parameters = st.lists(
        st.builds(ParameterInfo, WORDS, WORDS, SHAPES, DTYPES, st.booleans(), st.none() | WORDS), max_size=2
    )
    kind = st.sampled_from(get_args(StorageKind))
    allocations = st.lists(st.builds(Allocation, COUNT, moment, st.none() | moment, kind), max_size=2)
    measured = st.builds(
        Measurement, st.lists(st.builds(Measured, WORDS, WORDS, COUNT, SECONDS), max_size=2), SECONDS, COUNT, WORDS
    )
    return Record(
        *(draw(WORDS), draw(WORDS), draw(COUNT), draw(WORDS), draw(st.lists(WORDS, max_size=2))),
        modules=ModuleColumns(modules),
        calls=CallColumns(calls),
        operations=known,
        entries=EntryColumns(entries),
        parameters=ParameterRows(draw(parameters)),
        buffers=ParameterRows(draw(parameters)),
        allocations=Rows(a for a in draw(allocations) if a.kind != "kernel" or a.born < len(entries)),
        assumptions=draw(st.lists(WORDS, max_size=2)),
        measurement=draw(st.none() | measured),
        error=draw(st.none() | WORDS),
    )


@settings(max_examples=60, deadline=None)
@given(records())
def test_round_trip_of_random_records(record: Record) -> None:
    assert repr(again(record)) == repr(record)


def test_row_keys_count_the_same_operation_of_one_call() -> None:
    info = TensorInfo((1,), (1,), "float32")
    add, mul = (Operation(name, {}, (info,), (OutputInfo(info),)) for name in ("add", "mul"))
    record = Record("Net", "eval", 1, "2", operations=[add, mul])
    record.modules = ModuleColumns([ModuleInfo("", "Net", False, 0), ModuleInfo("layer", "Linear", True, 1)])
    record.calls = CallColumns([ModuleCall(0, None, 0), ModuleCall(1, 0, 2), ModuleCall(0, 0, 3)])
    record.entries = EntryColumns([Entry(0, 0), Entry(0, 0), Entry(0, 1), Entry(1, 0), Entry(0, 2), Entry(0, 2)])
    # The third addition is the leaf's own; those of the second call of the root count from 0 again.
    first = [("", "add", 0), ("", "add", 1), ("layer", "", 0), ("", "mul", 0)]
    assert record.row_keys() == [*first, ("", "add", 0), ("", "add", 1)]


@pytest.mark.parametrize(
    ("shape", "stride", "elements", "distinct"),
    [
        ((), (), 1, 1),
        ((2, 3), (3, 1), 6, 6),
        ((2, 3), (0, 1), 6, 3),  # expanded: each element of the row has two places
        ((4, 2), (0, 0), 8, 1),
        ((0, 5), (5, 1), 0, 0),
        ((0, 5), (0, 0), 0, 0),
    ],
)
def test_distinct_elements(shape: tuple[int, ...], stride: tuple[int, ...], elements: int, distinct: int) -> None:
    info = TensorInfo(shape, stride, "bfloat16")
    assert (info.elements, info.distinct_elements, info.distinct_bytes) == (elements, distinct, 2 * distinct)


def test_every_dtype_of_torch_has_its_size() -> None:
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    whole = [dtype for dtype in found if str(dtype).removeprefix("torch.") in ITEM_SIZES]
    assert len(whole) >= 20
    for dtype in whole:
        assert ITEM_SIZES[str(dtype).removeprefix("torch.")] == dtype.itemsize, dtype


# ---- what is no record


@pytest.mark.parametrize("schema", [SCHEMA + 1, 10**6])
def test_newer_schema_is_refused(schema: int) -> None:
    data = captured("leaf").to_json() | {"schema": schema, "entries": "in some other form"}
    with pytest.raises(UserError, match="upgrade torchledger") as caught:
        Record.from_json(data, "'net.json'")
    assert all(part in str(caught.value) for part in ("'net.json'", str(schema), f"reads up to {SCHEMA}"))
    assert is_one_line(caught)


@pytest.mark.parametrize("schema", [0, -1, True, "1", 1.0, None, [1]], ids=repr)
def test_schema_that_is_none(schema: object) -> None:
    with pytest.raises(UserError, match="its schema is"):
        Record.from_json(captured("leaf").to_json() | {"schema": schema})


@pytest.mark.parametrize(
    "data", [None, 3, "text", [], [1], {}, {"schema": 1}, {"format": "other", "schema": 1}, {"format": None}], ids=repr
)
def test_json_that_is_no_ledger(data: object) -> None:
    with pytest.raises(UserError, match=r"is no torchledger ledger .* --format json or Ledger\.save") as caught:
        read_record(json.dumps(data), "'net.json'")
    assert str(caught.value).startswith("'net.json'") and is_one_line(caught)


def test_text_cut_off_anywhere() -> None:
    text = json.dumps(filled().to_json())
    assert len(text) > 2000
    for cut in range(len(text)):
        with pytest.raises(UserError, match=r"^'net\.json' is not whole JSON") as caught:
            read_record(text[:cut], "'net.json'")
        assert is_one_line(caught)


# In the place of every value of a record, each of these stands once.
WRONG: tuple[object, ...] = (
    *(None, True, -1, 0, 10**6, 10**22, 1.5, float("nan"), float("inf"), "", "x", "float32", [], [1], [[]], {}),
    *([[["x"]]], {"a": 1}, {"a": 1, "b": 2}, {"tensor": 0}, {"tensor": 99}, {"tensor": -1}, {"tensor": [[]]}),
    *({"float": "x"}, {"float": [1]}, {"float": 1}, {"float": "-inf"}, {"complex": [1]}, {"complex": "12"}),
    *({"complex": ["1.0", "nan"]}, [[{"tensor": 99}]], [{"tensor": {}}], "\ud800"),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value below `value`, at any depth."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def written(value: Any) -> Any:
    """Return JSON as a record writes it, where an argument may come as a bare NaN or infinity."""
    if isinstance(value, dict):
        return {key: written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [written(item) for item in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def test_wrong_value_in_every_place() -> None:
    data = json.loads(json.dumps(filled("short").to_json()))
    refused = accepted = 0
    for container, key in list(places(data)):
        right = container[key]
        for wrong in WRONG:
            container[key] = wrong
            try:
                record = Record.from_json(data)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400
            else:  # then it says what the data say, and nothing was bent into shape
                accepted += 1
                assert json.loads(json.dumps(record.to_json())) == written(data), (key, wrong)
        container[key] = right
    assert repr(Record.from_json(data)) == repr(filled("short")), "each right value was put back"
    assert refused > 2000 and accepted > 500


def test_missing_key_is_named() -> None:
    data = json.loads(json.dumps(filled("short").to_json()))
    for container, key in list(places(data)):
        # Arguments may be fewer; a call's own name of one says nothing of a key.
        optional = container is data and key == "autocast"  # which older files lack
        if (
            isinstance(container, dict)
            and container not in [o["arguments"] for o in data["operations"]]
            and not optional
        ):
            kept = dict(container)
            del container[key]
            with pytest.raises(UserError):
                Record.from_json(data)
            container.clear()
            container.update(kept)
    del data["calls"]
    with pytest.raises(UserError, match="the data is damaged: no 'calls'"):
        Record.from_json(data)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("entries", "operation", 0), 99, "refers to operation 99 of"),
        (("entries", "operation", 0), -1, "refers to operation -1 of"),
        (("entries", "call", 0), 99, "refers to call 99 of"),
        (("calls", 1, 0), 99, "refers to module 99 of"),
        (("calls", 1, 1), 1, "call 1 names call 1 as its parent"),
        (("calls", 1, 1), -1, "call 1 names call -1 as its parent"),
        (("calls", 1, 2), 99, "begins or ends outside"),
        (("allocations", 0, 1), -1, "begins or ends outside"),
        (("allocations", 0, 2), 99, "begins or ends outside"),
        (("operations", 0, "arguments", "input"), {"tensor": 3}, "refers to an input that it does not have"),
        (("operations", 0, "arguments", "stride"), [[1, [{"tensor": 3}]]], "refers to an input"),
        (("operations", 0, "outputs", 0, 3), 3, "refers to an input"),
        (("operations", 0, "repeated"), [-1], "refers to an input"),
        (("operations", 0, "inputs", 0, 1), [1], "has shape .* and stride"),
        (("operations", 0, "inputs", 0, 2), "float31", "unknown dtype 'float31'"),
        (("allocations", 0, 3), "cache", "'cache' is none of parameter, buffer"),
        (("entries", "phase", 0, 0), "sideways", "'sideways' is none of forward, backward, optimizer"),
        (("measurement", "wall_seconds"), -1, "-1 stands where seconds belong"),
    ],
    ids=str,
)
def test_damage_is_named(path: tuple[Any, ...], value: object, said: str) -> None:
    data = json.loads(json.dumps(filled().to_json()))
    container = data
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
    with pytest.raises(UserError, match=said) as caught:
        Record.from_json(data, "'net.json'")
    assert str(caught.value).startswith("'net.json' is damaged: ") and is_one_line(caught)


@pytest.mark.parametrize("depth", [10, 200, 600, 950, 5000, 1_000_000])
def test_deep_nesting(depth: int) -> None:
    data = captured("leaf").to_json()
    data["operations"][0]["arguments"] = {"a": "deep"}
    text = json.dumps(data).replace('"deep"', "[" * depth + "]" * depth)
    if depth <= 200:
        value = read_record(text, "'net.json'").operations[0].arguments["a"]
        for _ in range(depth - 1):
            assert isinstance(value, tuple)
            (value,) = value
        assert value == ()
    else:
        with pytest.raises(UserError, match="recursion") as caught:
            read_record(text, "'net.json'")
        assert is_one_line(caught)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"phase": [["forward", 2]]', '"phase": [["forward", 99000000]]'),
        ('"phase": [["forward", 2]]', '"phase": [["forward", -99000000], ["forward", 99000002]]'),
        ('"phase": [["forward", 2]]', '"phase": [["forward", 1]]'),
        ('"batch": 1', '"batch": 1' + "0" * 100),
        ('"batch": 1', '"batch": 1' + "0" * 5000),  # more digits than Python turns into a number
        ('"batch": 1', '"batch": 1e400'),
        ("[[4, 3], [3, 1]", "[[4294967296, 4294967296], [3, 1]"),
        (
            '"measurement": null',
            f'"measurement": {{"rows": [], "wall_seconds": {"9" * 400}, "repeats": 1, "device": ""}}',
        ),
    ],
    ids=lambda text: text[:40],
)
def test_huge_counts_are_refused_at_once(right: str, wrong: str) -> None:
    text = json.dumps(captured("leaf").to_json()).replace("[[3, 4], [4, 1]", "[[4, 3], [3, 1]")
    assert right in text
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read_record(text.replace(right, wrong), "'net.json'")
    assert is_one_line(caught)
    assert time.perf_counter() - started < 1, "nothing of that size was made"


def test_sums_of_the_largest_sizes_still_print() -> None:
    data = captured("leaf").to_json()
    largest = [2**32, 2**31]
    data["operations"][1] |= {
        "inputs": [[largest, [1, 1], "float32"]] * 3,
        "outputs": [[largest, [1, 1], "float32", None]],
    }
    ledger = Ledger.from_json(data)
    assert ledger.totals()["macs"] == 2**63 * 2**31, "rows of mat1 by columns of mat2, each 2^31 long"
    assert "total" in ledger.by_layer().to_text(80)


# ---- parameters and buffers


def held(module: str, *names: str, trains: bool = True) -> HeldByModules:
    count = len(names)
    layouts = tuple((torch.Size((place + 2, 3)), (3, 1), torch.float32) for place in range(count))
    return HeldByModules([module], [(*names, "absent")], [(*layouts, None)], [(trains,) * count])


def test_rows_are_written_out_in_order_when_asked_for() -> None:
    first, last = ParameterInfo("w", "", (4,), "int64", False), ParameterInfo("tied", "b", (3, 3), "int64", True, "w")
    expected = [
        first,
        ParameterInfo("a.weight", "a", (2, 3), "float32", True),
        ParameterInfo("a.bias", "a", (3, 3), "float32", True),
        ParameterInfo("scale", "", (2, 3), "float32", False),
        last,
    ]

    def state() -> ParameterRows:
        made = ParameterRows([first])
        made.hold(held("a", "weight", "bias"))
        made.hold(held("", "scale", trains=False))
        made.append(last)
        return made

    assert len(state()) == 5
    assert list(state()) == expected
    assert state() == expected == list(copy.deepcopy(state())) == pickle.loads(pickle.dumps(state()))
    assert state() != expected[:-1]
    other = copy.copy(made := state())
    other.append(last)
    assert len(made) == len(list(made)) == 5 and b"torch" not in pickle.dumps(made).replace(b"torchledger", b"")
    assert state()[1:3] == expected[1:3]
    assert state()[-1] == last
    assert type(state()[1].shape) is tuple  # and no class of torch's
    written = state()
    assert repr(written) == repr(expected)
    for made in (state(), written):
        sums: dict[str, list[int]] = {}
        for module, elements, trained, _ in made.sizes():
            before = sums.setdefault(module, [0, 0])
            sums[module] = [before[0] + elements, before[1] + trained]
        assert sums == {"": [4 + 6, 0], "a": [6 + 9, 6 + 9], "b": [9, 9]}
    written.hold(held("c", "weight"))
    assert [row.path for row in written] == ["w", "a.weight", "a.bias", "scale", "tied", "c.weight"]
    written.clear()
    assert not written and list(written) == []


def test_one_module_may_hold_what_trains_and_what_does_not() -> None:
    state = ParameterRows()
    layouts = (((2,), (1,), torch.float32), None, ((5,), (1,), torch.float32))
    state.hold(HeldByModules(["a"], [("x", "none", "y")], [layouts], [(False, True)]))
    assert list(state.sizes()) == [("a", 7, 5, None)]


@pytest.mark.parametrize("tied", [False, True])
def test_nobody_has_rows_written_out_who_looks_at_layers(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Linear(4, 4))
    if tied:
        net[4].weight = net[0].weight
    monkeypatch.setattr(HeldByModules, "rows", None)
    ledger = analyze(net, (4,))
    assert ledger.by_layer().total["params"] == 20 + 15 + 6 + 16 + (4 if tied else 20)
    assert (len(ledger.record.parameters), len(ledger.record.buffers)) == (10, 3)
    with pytest.raises(TypeError):
        list(ledger.record.parameters)


def test_storages_of_state_are_written_out_in_order_when_asked_for() -> None:
    weights, buffers = StateStorages([40, 8], "parameter", 3), StateStorages([4], "buffer", 0)
    one, last = Allocation(6, 0, None, "constant"), Allocation(9, 1, 2, "activation")
    listed = Rows([one])
    listed.hold(weights)
    listed.hold(buffers)
    listed.latest.append(last)
    seen = weights.look_at(1)
    seen.died = 2
    assert weights.look_at(1) is seen
    expected = [
        *(one, Allocation(40, 0, None, "parameter", 3), Allocation(8, 0, 2, "parameter", 4)),
        *(Allocation(4, 0, None, "buffer", 0), last),
    ]
    assert listed == expected == list(copy.deepcopy(listed)) == pickle.loads(pickle.dumps(listed))
    assert listed.latest[2] is listed[2] is seen
    listed.clear()
    assert list(listed) == []


def test_nobody_has_storages_written_out_who_looks_at_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weighted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    net = nn.Sequential(nn.Linear(4, 3), Weighted(3, 2))
    expected = [(a.bytes, a.kind, a.owner) for a in analyze(net, (4,)).record.allocations][:4]
    assert expected == [(48, "parameter", 0), (12, "parameter", 1), (24, "parameter", 2), (8, "parameter", 3)]
    monkeypatch.setattr(StateStorages, "rows", None)
    ledger = analyze(net, (4,))
    assert ledger.by_layer().total["params"] == 15 + 8
    with pytest.raises(TypeError):
        ledger.memory()


ENTRIES = [Entry(0, 1), Entry(2, 1, "backward"), Entry(1, 0, "optimizer")]


def test_columns_are_a_sequence_of_rows() -> None:
    entries = EntryColumns(iter(ENTRIES[:2]))
    entries.append(ENTRIES[2])
    assert (entries.operations, entries.calls, entries.phases) == ([0, 2, 1], [1, 1, 0], [e.phase for e in ENTRIES])
    assert list(entries) == ENTRIES and len(entries) == 3 and entries
    assert entries[1] == entries[-2] == ENTRIES[1] and entries[1:] == ENTRIES[1:]
    assert entries == ENTRIES == entries == EntryColumns(ENTRIES) and entries != EntryColumns(ENTRIES[:2])
    assert entries != ENTRIES[:2] and EntryColumns() != CallColumns() and EntryColumns() == []
    assert EntryColumns.of([0, 2, 1], [1, 1, 0], [entry.phase for entry in ENTRIES]) == entries
    for columns in (([0], [0]), ([0], [0, 1], ["forward"])):
        with pytest.raises(ValueError, match="EntryColumns of 1, "):
            EntryColumns.of(*columns)
    assert repr(entries) == repr(ENTRIES)
    assert ENTRIES[1] in entries and Entry(9, 9) not in entries and entries.index(ENTRIES[2]) == 2
    assert copy.deepcopy(entries) == pickle.loads(pickle.dumps(entries)) == entries
    with pytest.raises(IndexError):
        entries[3]
    no_rows: list[Any] = [(), (0,), (0, 1, "forward", 2)]
    for wrong in no_rows:
        with pytest.raises(TypeError):
            entries.append(wrong)
    assert entries == ENTRIES, "a row is taken whole or not at all"
    other = copy.copy(entries)
    assert other == entries
    other.clear()
    assert entries == ENTRIES
    entries.clear()
    assert not entries and list(entries) == []


def test_columns_stand_in_the_order_of_a_rows_fields() -> None:
    def named(kind: Any) -> dict[str, str]:
        return dict(zip(kind.row._fields, kind.names, strict=True))

    assert named(EntryColumns) == {"operation": "operations", "call": "calls", "phase": "phases"}
    assert named(ModuleColumns) == {
        **{"path": "paths", "kind": "kinds", "leaf": "leaves"},
        **{"registered": "registered", "same_as": "same_as"},
    }
    assert named(CallColumns) == {
        **{"module": "modules", "parent": "parents", "started": "started"},
        **{"inputs": "inputs", "outputs": "outputs"},
    }


def test_tensors_of_a_record() -> None:
    tensor = TensorInfo((2, 3), (0, 1), "float32")
    assert (tensor.elements, tensor.distinct_elements) == (6, 3)
    assert pickle.loads(pickle.dumps(tensor)) == copy.deepcopy(tensor) == tensor
    assert tensor != TensorInfo((2, 3), (3, 1), "float32")
    assert repr(tensor) == "TensorInfo(shape=(2, 3), stride=(0, 1), dtype='float32')"
    with pytest.raises(AttributeError):
        tensor.shape = (1,)  # type: ignore[misc]  # which mypy refuses as well
    assert dataclasses.replace(tensor, shape=(5, 3)).elements == 15
