"""Traces: bars that nest and add up to the ledger's totals, as they are written."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paging
import pytest
import torch
from torch import Tensor, nn
from tracing import Shared, bars, check_sums, expected, ledger, sums, traced

from torchledger import Ledger, UserError, analyze, stat
from torchledger.cli import main
from torchledger.models import build
from torchledger.pricing.convention import State
from torchledger.record import Allocation, EntryColumns, Measured, Measurement
from torchledger.report import axis, chrome
from torchledger.rows import Rows

QUANTITIES = ("macs", "flops", "bytes", "bytes_read", "bytes_written", "activation_bytes", "operations")


@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "shared", "hostile", "hostile step"])
def test_bars_add_up_to_the_tables(name: str, by: str) -> None:
    found = ledger(name)
    trace = traced(found, by)
    drawn = bars(trace)
    check_sums(trace, found, by)
    per = 1 if by == "operations" else 1000
    deeper = [len(bar.names) for bar in drawn[1:]] + [0]
    for bar, depth in zip(drawn, deeper, strict=True):
        assert round(bar.length * per) == bar.amount > 0
        assert (bar.kind == "phase") == (len(bar.names) == 1)
        assert (bar.kind == "operation") == (depth <= len(bar.names)), "operations have nothing in them, all else has"
    assert trace["otherData"]["total"] == expected(found, by)[0] and not trace["otherData"]["rounded"]


def test_the_sum_of_resnet50() -> None:
    assert traced(analyze(build("resnet50"), (3, 224, 224)), "macs")["otherData"]["total"] == 4_089_184_256


@pytest.mark.parametrize(("name", "by"), [("torchstat", "madd"), ("torchstat", "mem_rw_b"), ("fvcore", "macs")])
def test_other_conventions(name: str, by: str) -> None:
    found = ledger("googlenet")
    trace = traced(found, by, name)
    check_sums(trace, found, by, name)
    assert trace["otherData"]["convention"] == name
    assert trace["otherData"]["without_bars"]["excluded"] == found.totals(name)["excluded"]


def test_each_call_of_a_module_is_a_bar() -> None:
    drawn = bars(traced(analyze(Shared(), (8,), batch=8), "macs"))
    assert drawn[0].names == ("forward",) and drawn[1].names == ("forward", "Shared")
    found = [(bar.names[2:], bar.amount) for bar in drawn[2:]]
    layer = 8 * 8 * 8
    assert found == [
        *[(("twice",), layer), (("twice", "addmm"), layer)] * 2,
        (("left",), layer), (("left", "left.0"), layer), (("left", "left.0", "addmm"), layer),
        *[(("right",), layer), (("right", "right.0"), layer), (("right", "right.0", "addmm"), layer)] * 2,
        (("mm",), 8 * 8),
        (("listed",), 2 * layer), (("listed", "listed.0"), layer), (("listed", "listed.0", "addmm"), layer),
        (("listed", "listed.2"), layer), (("listed", "listed.2", "addmm"), layer),
        (("left",), layer), (("left", "left.0"), layer), (("left", "left.0", "addmm"), layer),
    ]  # fmt: skip


class Recursive(nn.Module):
    """A module that calls itself, and its own child before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 0) -> Tensor:
        x = self.layer(x)
        return self.layer(self(x, depth + 1)) if depth < 2 else x


def test_a_module_that_calls_itself() -> None:
    drawn = bars(traced(analyze(Recursive(), (4,)), "macs"))
    assert [bar.amount for bar in drawn if bar.kind == "module" and bar.names[-1] == "Recursive"] == [80, 48, 16]
    assert drawn[0].amount == 5 * 16


Product = Callable[[Tensor, Tensor], Tensor]


def unruled(x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.pagetest._values(x @ y)  # type: ignore[no-any-return]


class Borrowing(nn.Module):
    """A module that calls another one's child, between two products of its own; one has no rule before or after it."""

    def __init__(self, before: Product = torch.matmul, after: Product = torch.matmul) -> None:
        super().__init__()
        self.owner = nn.Sequential(nn.Linear(4, 4))
        self.user = nn.Sequential(nn.Identity())
        self.user[0].forward = lambda x: after(self.owner[0](before(x, x)), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.user(x)


def test_what_another_module_calls_is_its_owners() -> None:
    found = analyze(Borrowing(), torch.empty(4, 4))
    trace = traced(found, "macs")
    check_sums(trace, found, "macs")
    assert [bar.names[2:] for bar in bars(trace) if len(bar.names) == 3] == [("user",), ("owner",), ("user",)]


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        (unruled, torch.matmul, [1, 0, 0]),
        (torch.matmul, unruled, [0, 0, 1]),
        (unruled, unruled, [1, 0, 1]),
    ],
)
def test_what_has_no_rule_is_counted_in_its_stretch(before: Product, after: Product, counts: list[int]) -> None:
    found = analyze(Borrowing(before, after), torch.empty(4, 4))
    trace = traced(found, "macs")
    drawn = bars(trace)
    check_sums(trace, found, "macs")
    for depth, names in ((3, ["user", "owner", "user"]), (4, ["user.0", "owner.0", "user.0"])):
        stretches = [bar for bar in drawn if len(bar.names) == depth]
        assert [bar.names[-1] for bar in stretches] == names and [bar.unknown for bar in stretches] == counts
    assert [bar.unknown for bar in drawn if len(bar.names) < 3] == [sum(counts)] * 2
    marks = [event["args"]["module"] for event in trace["traceEvents"] if event["ph"] == "i"]
    assert marks == ["user.0"] * sum(counts)


class Between(nn.Module):
    """What has no rule runs first, in a module of its own between two calls, and last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.values = nn.Linear(4, 4), nn.Identity()
        self.values.forward = torch.ops.pagetest._values

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(torch.ops.pagetest._values(x))
        return torch.ops.pagetest._values(self.layer(self.values(x)))  # type: ignore[no-any-return]


def test_what_has_no_rule_is_counted_where_no_bar_is_open() -> None:
    found = analyze(Between(), torch.empty(4, 4))
    assert found.unknown == {"pagetest::_values": 3}
    drawn = [(bar.names[1:], bar.unknown) for bar in bars(traced(found, "macs")) if bar.kind != "operation"]
    assert drawn == [((), 3), (("Between",), 3), *[(("Between", "layer"), 0)] * 2]


def test_a_backward_is_booked_to_the_modules_of_its_forward() -> None:
    drawn = bars(traced(ledger("shared"), "macs"))
    backward = [bar.names[2] for bar in drawn if len(bar.names) == 3 and bar.names[0] == "backward"]
    assert backward[0] == "left" and backward[-2:] == ["twice", "twice"], "from the last to the first"
    named = [bar.names[-1] for bar in drawn if bar.names[0] == "backward" and bar.names[-1] in ("twice", "right.0")]
    assert named == ["right.0", "right.0", "twice", "twice"], "each call on its own"


def test_memory_on_the_same_axis() -> None:
    found = ledger("resnet18")
    memory = found.memory()
    for by in ("macs", "operations"):
        events = traced(found, by)["traceEvents"]
        counters = [event for event in events if event["ph"] == "C"]
        assert max(sum(event["args"].values()) for event in counters) == max(
            map(sum, zip(*memory.timeline.values(), strict=True))
        )
        assert {name for event in counters for name in event["args"]} == set(memory.timeline)
        places = [event["ts"] for event in counters]
        assert places == sorted(places) and places[-1] <= max(e["ts"] for e in events if e["ph"] == "E")
        assert max(Counter(places).values()) <= 2, "the heaviest and the last of the moments at one place"
        last = {name: sizes[-1] for name, sizes in memory.timeline.items()}
        assert counters[-1]["args"] == last
    by_operation = {event["ts"]: event["args"] for event in counters}
    alive: dict[str, int] = {}
    for moment in range(memory.moments):
        alive = by_operation.get(moment, alive)
        assert alive == {name: sizes[moment] for name, sizes in memory.timeline.items()}
    assert memory.to_chrome_trace()["traceEvents"] == traced(found, "operations")["traceEvents"]


def test_what_has_no_rule_is_said() -> None:
    found = ledger("hostile")
    assert found.unknown == {"pagetest::_values": 1}
    trace = traced(found, "macs")
    (mark,) = [event for event in trace["traceEvents"] if event["ph"] == "i"]
    assert mark["name"] == "unknown: pagetest::_values" and mark["args"] == {"module": "", "phase": "forward"}
    assert trace["otherData"]["unknown"] == {"pagetest::_values": 1}
    name = next(event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name")
    assert name == "macs: 1 s = 1 G; operations without a rule, not in it: 1"
    assert [bar.names for bar in bars(trace) if bar.unknown] == [("forward",), ("forward", "Net")]
    totals = found.totals()
    assert trace["otherData"]["without_bars"] == {
        "unknown": 1,
        "priced": 8,
        "free": totals["free"],
    }  # 4 ReLUs and 4 additions
    assert not [event for event in traced(found, "operations")["traceEvents"] if event["ph"] == "i"]


def test_names_are_data() -> None:
    net = paging.Net()
    net.named["\x1b[2J\u202e"] = nn.Linear(8, 8)
    found = analyze(net, (8,))
    found.record.model = "a\n</script>\ud800"
    trace = traced(found, "macs")
    assert json.dumps(trace, ensure_ascii=False).isprintable()
    names = {bar.names[-1] for bar in bars(trace)}
    assert {f"named.{name}" for name in (*paging.HOSTILE, "\\x1b[2J\\u202e")} <= names
    assert "a\\n</script>\\ud800" in names
    check_sums(trace, found, "macs")


# --- large sums ------------------------------------------------------------------------------------------------------


def huge(*amounts: int) -> axis.Axis:
    """Return the axis of so many operations of different modules."""
    per, is_rounded = axis._per_microsecond(amounts)
    steps = [axis.Step(place, None, "forward", f"op{place}", amount) for place, amount in enumerate(amounts)]
    return axis.Axis("macs", "", steps, per, is_rounded)


@pytest.mark.parametrize(
    ("amounts", "per", "is_rounded"),
    [
        ((2**49, 2**49 - 1), 1000, False),
        ((2**49, 2**49 + 1), 1, False),
        ((2**52, 2**52 - 1), 1, False),
        ((7 * 4096 * 10**14, 3 * 4096 * 10**14), 4096 * 10**14, False),
        ((2**52, 2**52 + 1), 10, True),
        ((10**18 + 1, 1, 1, 10**18 - 1, 3), 1000, True),
        ((10**19, 10**19 + 1, 10**21), 10**6, True),
    ],
)
def test_the_scale_keeps_large_sums_exact(amounts: tuple[int, ...], per: int, is_rounded: bool) -> None:
    drawn = huge(*amounts)
    assert (drawn.per, drawn.is_rounded, drawn.total) == (per, is_rounded, sum(amounts))
    trace = json.loads(json.dumps(chrome.trace(analyze(nn.ReLU(), (1,)).record, drawn, {})))
    found = bars(trace)
    seen = [bar.amount for bar in found if bar.kind == "operation"]
    assert seen == [amount for amount in amounts if amount > 3], "exactly, but what is nothing beside the rest"
    assert found[0].amount == sum(amounts), "what has no bar of its own is in those around it"
    cut = {f"op{place}": amount for place, amount in enumerate(amounts) if amount <= 3}
    assert trace["otherData"]["cut"] == ({"operation": cut} if cut else {})
    if not is_rounded:
        assert [bar.length * per for bar in found] == pytest.approx([bar.amount for bar in found], rel=1e-12)
    assert (found[0].start + found[0].length) * 1000 < 2**63, "viewers count nanoseconds in 64 bits"


class Besides(nn.Module):
    """A product of one mac beside a layer, or alone; a bar is as wide as ten."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.layer = layer or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.weight @ self.weight
        x = self.layer(x)
        self.weight @ self.weight
        return x


def rounded() -> Ledger:
    """Return a ledger of two macs, and of 2^54 with one before and one after them."""
    with torch.device("meta"):
        net = nn.Sequential(Besides(), Besides(nn.Linear(2**14, 2**16, bias=False)))
    return analyze(net, (2**14,), batch=2**24)


def test_a_rounded_axis_loses_nothing() -> None:
    found = rounded()
    trace = traced(found, "macs")
    check_sums(trace, found, "macs")
    assert trace["otherData"]["rounded"] and trace["otherData"]["scale"] == "1 us = 10 macs"
    assert [(bar.names[1:], bar.amount) for bar in bars(trace)] == [
        ((), 2**54 + 4),
        (("Sequential",), 2**54 + 4),
        (("Sequential", "1"), 2**54 + 2),
        (("Sequential", "1", "1.layer"), 2**54),
        (("Sequential", "1", "1.layer", "mm"), 2**54),
    ]
    assert trace["otherData"]["cut"] == {"module": {"0": 2}, "operation": {"mm": 4}}


@pytest.mark.parametrize("seed", range(20))
def test_all_that_ran_is_in_a_bar_or_cut(seed: int) -> None:
    """Steps of any calls in any order, of any size, some without a rule."""
    draw = random.Random(seed)
    record = ledger("shared").record
    amounts = [draw.choice((0, 1, 2, 2**53, 10**18)) for _ in range(60)] + [2**60 + 1]
    calls = [draw.randrange(len(record.calls)) for _ in amounts]
    steps = [
        axis.Step(place, call, "forward", f"op{place}", amount, State.PRICED if amount else State.UNKNOWN)
        for place, (call, amount) in enumerate(zip(calls, amounts, strict=True))
    ]
    trace = chrome.trace(record, axis.Axis("macs", "", steps, *axis._per_microsecond(amounts)), {})
    about: Any = trace["otherData"]
    assert about["rounded"]
    drawn = bars(json.loads(json.dumps(trace)))
    within: Counter[str] = Counter()
    frames = chrome._Frames(record)
    for step in steps:
        for _, name, kind in frames.around(step):
            within[f"{kind} {name}"] += step.amount
    found = Counter({f"{kind} {name}": int(n) for kind, cut in about["cut"].items() for name, n in cut.items()})
    for bar in drawn:
        found[f"{bar.kind} {bar.names[-1]}"] += bar.amount
    within.update({f"operation {step.name}": step.amount for step in steps})
    assert found == +within
    assert drawn[0].unknown == amounts.count(0)


def test_a_large_integer_is_text() -> None:
    for value in (0, -1, chrome.LARGEST, -chrome.LARGEST, 1.5, "a", None):
        assert chrome.exact(value) == value
    assert chrome.exact(chrome.LARGEST + 1) == "9007199254740992"
    assert chrome.exact(-chrome.LARGEST - 1) == "-9007199254740992"


def test_a_network_of_many_macs() -> None:
    """Two layers of a large language model, 2^23 tokens: 2^14 2^16 2^23 macs each, and a column more: 2^16 2^23."""
    with torch.device("meta"):
        wide = nn.Sequential(nn.Linear(2**14, 2**16, bias=False), nn.Linear(2**16, 2**14 + 1, bias=False))
    found = analyze(wide, (2**14,), batch=2**23)
    trace = traced(found, "macs")
    assert found.totals()["macs"] == 2**53 + 2**53 + 2**39
    assert int(trace["otherData"]["total"]) == found.totals()["macs"]
    check_sums(trace, found, "macs")
    assert trace["otherData"]["scale"] == f"1 us = {2**39:,} macs"
    assert max(event["ts"] for event in trace["traceEvents"] if event["ph"] == "E") == 2**15 + 1


def test_a_hundred_thousand_operations(tmp_path: Path) -> None:
    found = ledger("resnet18")
    record = dataclasses.replace(found.record)
    once = len(record.entries)
    record.entries = EntryColumns([*record.entries] * (100_000 // once + 1))
    record.allocations = Rows(Allocation(8, place, place + 2, "activation") for place in range(0, 100_000, 2))
    started = time.perf_counter()
    Ledger(record).save_trace(tmp_path / "large.json", by="bytes")
    assert time.perf_counter() - started < 20, "a few seconds, with nothing quadratic"


# --- seconds ---------------------------------------------------------------------------------------------------------


def test_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    found = stat(Shared(), (8,), batch=8, measure=True)
    capsys.readouterr()
    table = found.by_layer()
    trace = traced(found, "seconds")
    assert trace == traced(found, "seconds_measured") and trace["otherData"]["by"] == "seconds_measured"
    drawn = bars(trace)
    rows: Counter[str] = Counter()
    for row in table.rows:
        rows[str(row["module"]) or "Shared"] += round(float(row["seconds_measured"] or 0) * 10**9)
    leaves = [
        bar for bar, after in zip(drawn, [*drawn[1:], drawn[0]], strict=True) if len(after.names) <= len(bar.names)
    ]
    assert sum(bar.amount for bar in leaves) == drawn[0].amount == sum(rows.values())
    assert drawn[0].length == pytest.approx(1e6 * float(table.total["seconds_measured"] or 0), abs=0.1)
    modules = sums(drawn, "module")
    for path in ("twice", "left.0", "left.1", "right.0", "right.1", "listed.0", "listed.1"):
        assert modules[path] == rows[path], path
    assert rows["twice"] > 0
    assert {bar.kind for bar in leaves if "." in bar.names[-1]} == {"module"}, "in a leaf nothing was measured apart"
    assert trace["otherData"]["scale"] == "1 s = 1 s"


def test_seconds_of_what_ran_in_the_measured_run_alone() -> None:
    found = analyze(Shared(), (8,), batch=8)
    rows = [Measured("twice", "", 0, 3e-9), Measured("gone", "", 0, 5e-9), Measured("", "mul", 4, 1e-9)]
    found.record.measurement = Measurement([*rows, Measured("listed.1", "", 0, 7e-9)], 1.0, 1, "cpu")
    drawn = [(bar.names[1:], bar.amount) for bar in bars(traced(found, "seconds"))]
    assert drawn[:3] == [((), 16), (("Shared",), 16), (("Shared", "mul"), 1)]
    assert drawn[3:] == [
        (("Shared", "twice"), 1), (("Shared", "twice"), 2),
        (("Shared", "listed"), 7), (("Shared", "listed", "listed.1"), 7), (("Shared", "gone"), 5),
    ]  # fmt: skip


# --- what people call ------------------------------------------------------------------------------------------------

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.input_size = (16,)
    def forward(self, x):
        return self.layers(x)
def Plain():
    net = nn.Sequential(nn.ReLU())
    net.input_size = (4,)
    return net
"""
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)

    def run(*words: object) -> int:
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        assert done.value.code is None or isinstance(done.value.code, int)
        return done.value.code or 0

    return run


def test_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trace", "net.py:Net", "--batch", 3, "--device", "cpu", "-o", "a.json") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Written: a.json (1,920 macs; 1 s = 1 G)\n")  # 3 (16 32 + 32 4)
    assert run("stat", "net.py:Net", "--batch", 3, "--format", "json", "-o", "net.json") == 0
    assert run("trace", "net.json", "--device", "cpu") == 0, "trace.json, by macs"
    assert Path("a.json").read_bytes() == Path("trace.json").read_bytes()
    Ledger.load("net.json").save_trace("b.json", device="cpu")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert run("trace", "net.py:Net", "--by", "bytes", "--training", "--optimizer", "sgd", "-o", "c.json") == 0
    trace = json.loads(Path("c.json").read_text())
    assert {bar.names[0] for bar in bars(trace)} == {"forward", "backward", "optimizer"}
    assert trace["otherData"]["scale"] == "1 s = 1 GB" and "assumed: the loss is" in capsys.readouterr().err
    assert run("trace", "net.py:Net", "--by", "seconds", "--measure", "-o", "d.json") == 0
    assert " seconds_measured; 1 s = 1 s)" in capsys.readouterr().err


def test_the_command_says_that_the_axis_is_rounded(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rounded().save("rounded.json")
    assert run("trace", "rounded.json") == 0
    assert capsys.readouterr().err.splitlines() == [
        "rounded: bars end at whole multiples of 10 macs, and what ends before the next one has no bar; "
        "the arguments of bars are exact",
        f"Written: trace.json ({2**54 + 4:,} macs; 1 us = 10 macs)",
    ]


def test_the_command_prices_the_run_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    priced = axis.priced
    monkeypatch.setattr(axis, "priced", lambda *words: calls.append(words) or priced(*words))
    assert run("trace", "net.py:Net") == 0
    assert len(calls) == 1


def test_the_command_says_what_has_no_rule(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    paging.ledger().save("hostile.json")
    assert run("trace", "hostile.json", "--by", "flops") == 0
    macs = ledger("hostile").totals()["flops"]
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "unknown: pagetest::_values (1)",
        f"Written: trace.json (>={int(macs or 0):,} flops; 1 s = 1 G)",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("net.py:Net", "--by", "mac"), r"unknown quantity 'mac'; under convention full a trace is by macs, flops, .*"),
        (("net.py:Net", "--by", "params"), r"'params' is no sum over operations; .* by macs, flops, bytes_read, .*"),
        (("net.py:Net", "--by", "seconds"), r"no seconds were measured: --measure.*"),
        (("net.py:Net", "--by", "seconds_measured"), r"no seconds were measured: --measure.*"),
        (
            ("net.py:Net", "--by", "second", "--measure"),
            r"unknown quantity 'second'; .*, seconds_measured, operations.*",
        ),
        (
            ("net.py:Net", "--by", "bytes", "--convention", "fvcore"),
            r"unknown quantity 'bytes'; under convention fvc.*",
        ),
        (("net.py:Net", "--convention", "ful"), r".*'ful'.* Did you mean 'full'\?"),
        (("net.py:Net", "--device", "tpu"), r".*'tpu'.*"),
        (("net.py:Plain",), r"nothing to draw: no operation has macs\. Other quantities: flops, bytes_read, .*"),
        (("net.py:Net", "-o", "no/trace.json"), r"cannot write 'no/trace.json': there is no folder .*"),
        (("net.py:Net", "-o", "-"), r"a trace goes to a file: --output trace.json"),
        (("net.py:No",), r".*'No'.*"),
        (("net.json", "--by", "seconds"), r"no seconds were measured: .*"),
        (("net.json", "--batch", "2"), r"'net.json' is a saved ledger.*--batch cannot change it"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    analyze(nn.Linear(2, 2), (2,)).save("net.json")
    Path("trace.json").write_text("as it was")
    assert run("trace", *words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and re.fullmatch(f"(torchledger: )?{said}\\n", shown.err), shown.err
    assert Path("trace.json").read_text() == "as it was"


def test_without_macs_the_unknown_is_named(tmp_path: Path) -> None:
    class Values(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.ops.pagetest._values(x)

    with pytest.raises(UserError, match=r"no operation has macs; without a rule: pagetest::_values \(1\)\. Other"):
        analyze(Values(), (4, 4)).save_trace(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_a_run_without_operations_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run has no operations"):
        analyze(nn.Identity(), (4,)).save_trace(tmp_path / "trace.json")
