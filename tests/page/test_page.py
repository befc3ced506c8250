"""The file: its numbers are the tables', its names are text, it asks for nothing, it is written whole or not."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import paging
import pytest
from torch import nn

from torchledger import Ledger, UserError, analyze, page
from torchledger.cli import main
from torchledger.models import build
from torchledger.page.document import embedded
from torchledger.page.folds import folds
from torchledger.pricing import CONVENTIONS
from torchledger.report.chrome import LARGEST
from torchledger.views import Column, Table

pytestmark = paging.needs_libraries

MOST_BYTES = 6_000_000


def written(ledger: Ledger, folder: Path, **options: Any) -> paging.Elements:
    path = folder / "report.html"
    ledger.save_html(path, **options)
    return paging.Elements(path.read_text(encoding="utf-8"))


def same(cell: Any) -> Any:
    """Return a cell of the page as JSON has it: of a large integer, its digits."""
    return int(cell) if isinstance(cell, str) and cell.isdigit() else cell


# ---- the numbers


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_cells_are_those_of_the_tables(tmp_path: Path, convention: str, training: bool) -> None:
    ledger = paging.ledger(training=training)
    data = written(ledger, tmp_path, convention=convention).data
    for name, table in (("layers", ledger.by_layer(convention)), ("operations", ledger.by_operation(convention))):
        expected, found = table.to_json(), paging.rows(data[name])
        columns = [column["name"] for column in expected["columns"]]  # type: ignore[attr-defined]
        assert [{column: row[column] for column in columns} for row in found] == expected["rows"]
        assert {column: data[name]["total"][column] for column in columns} == expected["total"]
        assert data[name]["free"] == sorted(table.free_rows)
    assert data["convention"] == convention and data["summary"] == CONVENTIONS[convention].summary


def test_bytes_are_what_is_read_and_written(tmp_path: Path) -> None:
    cells = written(paging.ledger(unknown=False), tmp_path).data["layers"]
    for row in [*paging.rows(cells), cells["total"]]:
        assert row["bytes"] == row["bytes_read"] + row["bytes_written"]
    # blocks.0.wide: reads 4x8 inputs, 16x8 weights and 16 biases, writes 4x16: (32 + 128 + 16 + 64) * 4 bytes
    assert next(row for row in paging.rows(cells) if row["module"] == "blocks.0.wide")["bytes"] == 960


def test_what_has_no_rule_is_said(tmp_path: Path) -> None:
    ledger = paging.ledger()
    data = written(ledger, tmp_path).data
    assert data["unknown"] == ledger.unknown == {"pagetest::_values": 1}
    assert data["layers"]["total"]["macs"] == {"at_least": int(ledger.totals()["macs"])}  # type: ignore[arg-type]
    assert data["layers"]["total"]["bytes"].keys() == {"at_least"}
    assert written(paging.ledger(unknown=False), tmp_path).data["unknown"] == {}


def test_assumptions_and_a_run_that_ended_early(tmp_path: Path) -> None:
    ledger = analyze(nn.Linear(4, 4), (4,))
    ledger.record.assumptions.append("the moon is full")
    ledger.record.error = "it broke"
    data = written(ledger, tmp_path).data
    assert data["assumptions"] == ["the moon is full"] and data["error"] == "it broke"


def test_integers_that_are_no_number_of_javascripts_are_text() -> None:
    # macs: batch * in * out; 2^20 * 2^17 * 2^17 = 2^54, above 2^53 - 1
    ledger = analyze(nn.Linear(2**17, 2**17, bias=False, device="meta"), (2**17,), batch=2**20)
    data = page.ledger_contents(
        ledger.record, CONVENTIONS["full"], ledger.by_layer(), ledger.by_operation(), ledger.memory()
    )
    cells: Any = data["layers"]
    assert cells["total"]["macs"] == str(2**54) and same(cells["total"]["macs"]) == ledger.totals()["macs"]
    assert cells["total"]["params"] == 2**34 <= LARGEST


def test_seconds_where_they_were_measured(tmp_path: Path) -> None:
    from torchledger import stat

    ledger = stat(paging.Net(unknown=False), (8,), measure=True)
    data = written(ledger, tmp_path).data
    names = [quantity["name"] for quantity in data["quantities"]]
    assert names == [
        "params",
        "macs",
        "flops",
        "bytes_read",
        "bytes_written",
        "bytes",
        "activation_bytes",
        "seconds_measured",
    ]
    assert data["layers"]["total"]["seconds_measured"] == ledger.by_layer().total["seconds_measured"]
    assert data["folds"], "seconds differ between equal blocks, and keep none from being folded"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lives_add_up_to_what_is_alive(tmp_path: Path, device: str) -> None:
    ledger = paging.ledger(training=True)
    report = ledger.memory(device)
    data = written(ledger, tmp_path, device=device).data["memory"]
    assert data["live"] == report.live and data["peak"] == report.peak
    for moment in range(report.moments):
        alive = [block for block in data["blocks"] if block[1] <= moment < block[2]]
        by_category = {name: 0 for name in data["categories"]}
        for size, _, _, category, _, _ in alive:
            by_category[data["categories"][category]] += size
        assert by_category == {name: sizes[moment] for name, sizes in report.timeline.items()}
        started, phase = next(stretch for stretch in reversed(data["phases"]) if stretch[0] <= moment)
        assert phase == report.moment(moment).phase and started <= moment
    assert len(data["entries"]) == len(data["at"]) == report.moments - 1
    assert [data["modules"][place] for place in data["at"]] == [
        report.moment(moment).module for moment in range(report.moments - 1)
    ]


def test_a_run_without_allocations_has_no_timeline(tmp_path: Path) -> None:
    ledger = analyze(nn.Linear(4, 4), (4,))
    ledger.record.allocations.clear()
    assert written(ledger, tmp_path).data["memory"] is None


# ---- what repeats


def test_equal_blocks_are_folded() -> None:
    table = paging.ledger(unknown=False).by_layer()
    found, kinds, times = folds(table, {"blocks.0": "Block", "blocks": "Sequential"})
    # Blocks 0 to 2 are equal, 3 has no bias in one layer. A block has rows: wide, relu, narrow, add.
    assert sorted((fold.path, len(fold.rows)) for fold in found) == [
        ("blocks.0–2", 3), ("blocks.0–2", 3), ("blocks.0–2.narrow", 3), ("blocks.0–2.wide", 3),
    ]  # fmt: skip
    assert kinds == {"blocks.0–2": "Block"} and times == {"blocks.0–2": 3}
    for fold in found:
        rows = [{**table.rows[index], "module": ""} for index in fold.rows]
        assert rows[0] == rows[1] == rows[2]


def test_resnet152s_blocks() -> None:
    found, _, _ = folds(analyze(build("resnet152"), (3, 224, 224)).by_layer(), {})
    # 3, 8, 36 and 3 blocks a stage; the first of each has a downsample
    sizes = {fold.path: len(fold.rows) for fold in found}
    assert [sizes[f"layer{stage}.1–{last}.conv2"] for stage, last in ((1, 2), (2, 7), (3, 35), (4, 2))] == [2, 7, 35, 2]
    indices = [index for fold in found for index in fold.rows]
    assert len(indices) == len(set(indices))


def of_paths(*paths: str) -> Table:
    columns = (Column("module", "module", text=True), Column("macs", "macs"))
    return Table("", "full", columns, [{"module": path, "macs": 1} for path in paths], {})


def test_folds_within_folds() -> None:
    table = of_paths(*(f"stages.{stage}.{block}.{name}" for stage in range(2) for block in range(3) for name in "ab"))
    found, _, _ = folds(table, {})
    assert [(fold.path, fold.rows) for fold in found] == [
        ("stages.0–1.0–2.a", (0, 2, 4, 6, 8, 10)),
        ("stages.0–1.0–2.b", (1, 3, 5, 7, 9, 11)),
    ]


def test_what_is_not_folded() -> None:
    names_differ = of_paths("blocks.0.a", "blocks.1.b")
    no_numbers = of_paths("left.0.a", "right.0.a")
    leaves = of_paths("layers.0", "layers.1")
    for table in (names_differ, no_numbers, leaves, of_paths("")):
        assert folds(table, {}) == ([], {}, {})
    for one, other in (("7", "007"), ("1" * 5000, "2" * 5000)):  # no names that a list gives
        assert folds(of_paths(f"{one}.a", f"{other}.a"), {}) == ([], {}, {})
    assert folds(of_paths("0.a", "1.a", "0–1.a"), {})[0] == []  # the name that the folded ones would have
    numbers_differ = of_paths("blocks.0.a", "blocks.1.a")
    numbers_differ.rows[0]["macs"] = 2
    assert folds(numbers_differ, {}) == ([], {}, {})


def test_a_deep_tree_is_folded_without_recursion() -> None:
    deep = ".".join("x" * 5000)
    found, _, _ = folds(of_paths(f"0.{deep}", f"1.{deep}"), {})
    assert [fold.rows for fold in found] == [(0, 1)]


# ---- the file


def test_names_are_data(tmp_path: Path) -> None:
    elements = written(paging.ledger(), tmp_path)
    assert "img" not in {tag for tag, _ in elements.found}
    assert [said.get("id") for tag, said in elements.found if tag == "script"] == ["data", "plotly", "tables", None]
    modules = {row["module"] for row in paging.rows(elements.data["layers"])}
    assert modules >= {f"named.{name}" for name in paging.HOSTILE}
    assert not set("<>&") & set(elements.text("data"))


def test_a_models_own_name_is_data(tmp_path: Path) -> None:
    ledger = analyze(nn.Linear(4, 4), (4,))
    named = Ledger(dataclasses.replace(ledger.record, model="</title><img src=x>\x1b{{script}}"))
    elements = written(named, tmp_path)
    assert "img" not in {tag for tag, _ in elements.found}
    assert elements.text("title") == elements.data["model"] == "</title><img src=x>\\x1b{{script}}"


def test_the_file_asks_for_nothing(tmp_path: Path) -> None:
    elements = written(paging.ledger(), tmp_path)
    links = [said[name] for _, said in elements.found for name in ("src", "href", "action", "data") if name in said]
    assert links == ["#views"]
    policy = next(said for _, said in elements.found if said.get("http-equiv") == "Content-Security-Policy")["content"]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    script = elements.texts[-1 - [tag for tag, _ in reversed(elements.found)].index("script")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' blob:;" in policy
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write", script)
    styles = [text for (tag, _), text in zip(elements.found, elements.texts, strict=True) if tag == "style"]
    assert not re.search(r"@import|url\((?!data:)", "".join(styles))


def test_resnet152_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    step = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}
    ledger = analyze(build("resnet152"), (3, 224, 224), **step)  # type: ignore[arg-type]
    for name in ("one.html", "other.html"):
        ledger.save_html(tmp_path / name)
    one, other = ((tmp_path / name).read_bytes() for name in ("one.html", "other.html"))
    assert one == other and len(one) < MOST_BYTES


def test_embedded_data_reads_back() -> None:
    data = {"a": '</script><!--<script>&\u2028"\\', "b": [1, None, 1.5]}
    assert json.loads(embedded(data)) == data
    assert not set("<>&\u2028") & set(embedded(data))


@pytest.mark.parametrize("missing", ["plotly", "itables"])
def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match=rf"needs {missing}: pip install 'torchledger\[report\]'"):
        paging.ledger().save_html(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("as it was")
    for options, message in (
        ({"convention": "fll"}, "unknown convention 'fll'"),
        ({"device": "mps"}, "unknown device"),
    ):
        with pytest.raises(UserError, match=message):
            paging.ledger().save_html(path, **options)
    with pytest.raises(UserError, match="there is no folder"):
        paging.ledger().save_html(tmp_path / "no" / "report.html")
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"] and path.read_text() == "as it was"


# ---- the command


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", "alexnet", "--batch", 2, "--device", "cpu", "-o", "a.html") == 0
    assert capsys.readouterr() == ("", "Written: a.html\n")
    ledger = analyze(build("alexnet"), (3, 224, 224), batch=2)
    ledger.save("a.json")
    assert run("report", "a.json", "--device", "cpu") == 0
    ledger.save_html("b.html", device="cpu")
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes() == Path("report.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("alexnet", "-o", "-"), "a page goes to a file"),
        (("alexnet", "-o", "no/a.html"), "there is no folder"),
        (("alexnet", "--convention", "best"), "unknown convention 'best'"),
        (("alexnet", "--input", "3x10x10"), "images of at least 63 x 63"),
        (("nothing_such",), "nothing_such"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", *words) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
