"""Ledgers side by side, and the difference of two: which row became which, signs, sums that agree, what is hidden."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchledger import AtLeast, Comparison, Ledger, UserError, analyze, compare, models
from torchledger.amounts import parse_threshold
from torchledger.comparison import UNKNOWN, checked
from torchledger.differences import Change, Row, changes


@torch.library.custom_op("comparisontest::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    """An operation that has no rule."""
    return x.clone()


@mystery.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    """Layers as they are named; `adds` sums outside of them at the end; `before` runs an unknown operation."""

    def __init__(self, adds: int = 0, unknown: int = 0, **layers: nn.Module) -> None:
        super().__init__()
        self.adds, self.unknown = adds, unknown
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        for _ in range(self.adds):
            x = x + 1
        for _ in range(self.unknown):
            x = torch.ops.comparisontest.mystery(x)
        return x


def ledger(batch: int = 1, adds: int = 0, unknown: int = 0, **layers: nn.Module) -> Ledger:
    return analyze(Net(adds, unknown, **layers), (8,), batch=batch)


OLD = {"first": nn.Linear(8, 16), "gone": nn.Linear(16, 16), "act": nn.ReLU(), "last": nn.Linear(16, 4)}
NEW = {"first": nn.Linear(8, 16), "act": nn.GELU(), "more": nn.Linear(16, 16), "last": nn.Linear(16, 10)}


def told(table: Any) -> list[tuple[Any, ...]]:
    return [(row["change"], row["module"], row["macs_change"]) for row in table.rows]


# ---- side by side


def test_table_has_the_figures_of_the_ledgers() -> None:
    a, b = analyze(models.build("alexnet"), (3, 224, 224)), analyze(models.build("resnet18"), (3, 224, 224))
    quantities = ["params", "macs", "flops", "bytes_read", "bytes_written", "activation_bytes"]
    table = compare(a, b, by=[*quantities, "peak", "top1"], device="cpu", top1=[56.5, None]).table
    for row, one in zip(table.rows, (a, b), strict=True):
        assert [row[name] for name in quantities] == [one.totals()[name] for name in quantities]
        assert row["peak_bytes"] == one.memory("cpu").peak_bytes
    assert [row["model"] for row in table.rows] == ["AlexNet", "ResNet"]
    assert [row["top1"] for row in table.rows] == [56.5, None]
    assert [row["input"] for row in table.rows] == ["1x3x224x224"] * 2
    assert table.title == "2 models, convention full, eval mode, batch 1, memory on cpu"
    # models do not add up
    assert table.total == {} and "total" not in table.to_text() and "**" not in table.to_markdown()


def test_columns_stand_as_they_are_asked_for() -> None:
    a, b = ledger(**OLD), ledger(**NEW)
    assert [c.name for c in compare(a, b, by=["macs", "params"]).table.columns] == ["model", "macs", "params", "input"]
    assert "memory on" not in compare(a, b, by="macs").table.title
    names = [column.name for column in compare(a, b).table.columns]
    assert names == ["model", "params", "macs", "peak_bytes", "input"]
    assert "top1" in [column.name for column in compare(a, b, top1=[1, None]).table.columns]


def test_runs_that_differ_say_so() -> None:
    table = compare(ledger(**OLD), ledger(batch=3, **OLD)).table
    assert [row["run"] for row in table.rows] == ["eval mode, batch 1", "eval mode, batch 3"]
    assert "runs that differ" in table.title
    assert [row["model"] for row in table.rows] == ["Net", "Net (2)"]


def test_unknown_operations_are_in_sight() -> None:
    both = compare(ledger(**OLD), ledger(unknown=2, **OLD), names=["a", "b"])
    macs = [row["macs"] for row in both.table.rows]
    assert not isinstance(macs[0], AtLeast) and isinstance(macs[1], AtLeast)
    assert "unknown: mystery (2) [b]" in "\n".join(both.table.notes).replace("comparisontest::", "")
    assert json.loads(json.dumps(both.to_json()))["models"][1]["macs"] == {"at_least": 8 * 16 + 16 * 16 + 16 * 4}


def test_json_has_every_quantity() -> None:
    data: Any = compare(ledger(**OLD), ledger(**NEW), by=["macs"]).to_json()
    assert data["device"] == "cuda"
    # 8 to 16, 16 to 16, 16 to 4; each with a bias
    assert data["models"][0]["params"] == 9 * 16 + 17 * 16 + 17 * 4
    assert set(data["models"][0]) >= {"name", "run", "flops", "bytes_read", "bytes_written", "peak_bytes", "top1"}


def without_allocations(one: Ledger) -> Ledger:
    return Ledger.from_json({**one.to_json(), "allocations": []})


def test_a_run_without_allocations_has_no_peak(tmp_path: Path) -> None:
    bare, whole = without_allocations(ledger(**OLD)), ledger(**NEW)
    one = compare(bare, whole, names=["bare", "whole"])
    assert [row["peak_bytes"] for row in one.table.rows] == [None, whole.memory().peak_bytes]
    assert one.table.to_text().splitlines()[3].split() == ["bare", "484", "448", "-", "1x8"]
    assert "peak: not counted, the run has no allocations [bare]" in one.table.notes
    saved: Any = one.to_json()
    assert [model["peak_bytes"] for model in saved["models"]] == [None, whole.memory().peak_bytes]
    for both in (one, compare(bare, bare)):
        for by, threshold in ((["macs", "peak"], 0), (["macs", "peak"], "1%"), (["peak"], "1%")):
            table = both.difference(by, threshold)
            for row in (*table.rows, table.total):
                assert [row[f"peak_bytes_{part}"] for part in ("before", "after", "change")] == [None] * 3
            assert not any(note.startswith("peak of ") for note in table.notes)
            assert "memory on" not in table.title
    # what the other quantities show is what they show alone
    assert told(one.difference(["macs", "peak"], "50%")) == told(one.difference(["macs"], "50%"))
    table = compare(bare, bare).table
    assert "memory on" not in table.title and not any(note.startswith("not in peak") for note in table.notes)
    assert "peak: not counted, the run has no allocations" in table.notes
    one.plot(tmp_path / "one.svg")
    assert "peak on" not in (tmp_path / "one.svg").read_text(), "dots of one size"


# ---- the difference


def test_what_came_went_and_changed() -> None:
    both = compare(ledger(**OLD), ledger(**NEW), names=["old", "new"])
    table = both.difference(["params", "macs"])
    assert told(table) == [
        ("removed", "gone", -16 * 16),  # at its old place, before `act`
        ("changed", "act", 0),
        ("added", "more", 16 * 16),
        ("changed", "last", 16 * 10 - 16 * 4),
        ("other", "(1 row not shown)", 0),  # first
    ]
    assert table.rows[1]["kind"] == "ReLU -> GELU"
    assert [table.rows[3][name] for name in ("params_before", "params_after", "params_change")] == [68, 170, 102]
    assert (table.rows[0]["macs_after"], table.rows[2]["macs_before"]) == (None, None)
    assert table.notes[:2] == ["rows: 1 added, 1 removed, 2 changed", "not shown: 1 unchanged"]
    assert table.title == "old -> new, difference by layer, convention full, eval mode, batch 1"
    text = table.to_text()
    assert "+102" in text and "-256" in text and "+0" not in text


def test_backwards_has_the_other_signs() -> None:
    a, b = ledger(**OLD), ledger(**NEW)
    there, back = compare(a, b).difference("macs"), compare(b, a).difference("macs")
    assert {row[1]: row[2] for row in told(there)} == {row[1]: -row[2] for row in told(back)}


def zoo(name: str, **options: Any) -> Ledger:
    return analyze(models.build(name, num_classes=10), (3, 32, 32), **options)


STEP = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}
PAIRS: dict[str, Callable[[], tuple[Ledger, Ledger]]] = {
    "another depth": lambda: (zoo("resnet20"), zoo("resnet32")),
    "without shortcuts": lambda: (zoo("resnet20"), zoo("plain20")),
    "a training step": lambda: (zoo("resnet20", batch=4), zoo("resnet20", batch=4, **STEP)),
    "another optimizer": lambda: (zoo("plain20", **STEP), zoo("plain20", **{**STEP, "optimizer": "sgd"})),
    "nothing in common": lambda: (zoo("resnet20"), ledger(**OLD)),
    "the same": lambda: (zoo("resnet20"), zoo("resnet20")),
    "unknown operations": lambda: (ledger(adds=2, unknown=1, **OLD), ledger(adds=3, unknown=1, **OLD)),
}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("threshold", [0, "10%", "1K"])
def test_rows_add_up_to_the_difference_of_the_totals(pair: str, threshold: Any, device: str) -> None:
    a, b = PAIRS[pair]()
    by = ["params", "macs", "flops", "bytes_read", "bytes_written", "activation_bytes", "peak"]
    table = compare(a, b, device=device).difference(by, threshold)
    for name in by:
        column = "peak_bytes" if name == "peak" else name
        amounts = [one.memory(device).peak_bytes if name == "peak" else one.totals()[name] for one in (a, b)]
        for part, expected in zip(("before", "after", "change"), (*amounts, amounts[1] - amounts[0]), strict=True):  # type: ignore[operator]
            assert sum(row[f"{column}_{part}"] or 0 for row in table.rows) == expected, (name, part)  # type: ignore[misc]
            assert table.total[f"{column}_{part}"] == expected, (name, part)
    note = next((note for note in table.notes if note.startswith("not shown: ")), "0")
    hidden = sum(int(count) for count in re.findall(r"(?:^| )(\d+) (?:unchanged|below|free)", note))
    assert sum(row["module"] == f"({hidden} row{'s' * (hidden != 1)} not shown)" for row in table.rows) == bool(hidden)
    # of resnet20: the view before its head, and two slices in each of the two shortcuts that halve the map
    assert pair != "nothing in common" or "5 free by rule" in note
    if pair == "the same":
        assert [row["change"] for row in table.rows] == ["other"]


def test_what_is_below_the_threshold_is_hidden_and_counted() -> None:
    both = compare(ledger(**OLD), ledger(**NEW))
    # macs: -256, 0 (another kind), +256, +96
    assert [row[0] for row in told(both.difference("macs", "50%"))] == ["removed", "added", "other"]
    assert [row[0] for row in told(both.difference("macs", 96))] == ["removed", "added", "changed", "other"]
    assert [row[0] for row in told(both.difference("macs", 97))] == ["removed", "added", "other"]
    table = both.difference("macs", "50%")
    assert told(table)[-1] == ("other", "(3 rows not shown)", 96)
    assert table.notes[1] == "not shown: 1 unchanged, 2 below the threshold of 50% of the largest change"
    # params: -272, 0, +272, +102: a row is shown for any quantity that reaches the limit
    assert [row[0] for row in told(both.difference(["macs", "params"], 100))] == [
        "removed", "added", "changed", "other",
    ]  # fmt: skip
    assert "more" in [row[1] for row in told(both.difference("macs", "100%"))]
    # two samples: 128, 256 and 64 macs more, and no parameter: what has not changed reaches no limit
    table = compare(ledger(**OLD), ledger(batch=2, **OLD)).difference(["params", "macs"], "100%")
    assert told(table) == [("changed", "gone", 256), ("other", "(3 rows not shown)", 192)]


def test_one_more_operation_in_front_does_not_shift_the_others() -> None:
    class Sums(nn.Module):
        def __init__(self, *sizes: int) -> None:
            super().__init__()
            self.sizes = sizes

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.layer(x[:, :size] + 1) for size in self.sizes]

        def layer(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def sums(*sizes: int) -> Ledger:
        root = nn.Sequential(Sums(*sizes))
        root[0].add_module("child", nn.Identity())  # so that it is no leaf: the sums have rows of their own
        return analyze(root, (9,))

    table = compare(sums(3, 4, 5), sums(7, 3, 4, 5)).difference("flops")
    added = [(row["change"], row["kind"], row["flops_change"]) for row in table.rows if row["change"] != "other"]
    assert added == [("added", "add", 7)]
    table = compare(sums(3, 4, 5), sums(3, 6, 5, 8)).difference("flops")
    changed = [(row["change"], row["flops_change"]) for row in table.rows if row["change"] != "other"]
    assert changed == [("changed", 2), ("added", 8)]


def test_removed_rows_stand_where_they_stood() -> None:
    def rows(*names: str) -> list[Row]:
        return [Row(name, "Linear", True, {"macs": 1}) for name in names]

    found = changes(rows("x", "a", "y", "z", "b", "w"), rows("b", "new", "a"))
    assert [change.module for change in found] == ["x", "b", "w", "new", "a", "y", "z"]
    assert [change.what for change in found] == [
        "removed", "unchanged", "removed", "added", "unchanged", "removed", "removed",
    ]  # fmt: skip


def test_a_change_that_hangs_on_an_unknown_operation_is_not_known() -> None:
    a, b = ledger(**OLD), ledger(unknown=1, **OLD)
    table = compare(a, b).difference("macs")
    assert (table.rows[0]["kind"], table.rows[0]["macs_change"]) == ("comparisontest::mystery", UNKNOWN)
    assert table.total["macs_change"] == UNKNOWN and ",?\n" in table.to_csv()
    # no threshold hides it
    assert compare(a, b).difference("macs", "100%").rows[0]["change"] == "added"
    # what runs as before has changed by nothing, whatever it costs
    wider = {**OLD, "first": nn.Linear(8, 32), "gone": nn.Linear(32, 16)}
    table = compare(b, ledger(unknown=1, **wider)).difference("macs")
    assert told(table) == [("changed", "first", 128), ("changed", "gone", 256), ("other", "(3 rows not shown)", 0)]
    assert table.total["macs_change"] == 8 * 16 + 16 * 16
    assert isinstance(table.total["macs_after"], AtLeast)
    # and what runs on other shapes has not
    table = compare(b, ledger(unknown=1, **NEW)).difference("macs")
    assert table.total["macs_change"] == UNKNOWN
    assert told(table)[-2:] == [("changed", "", UNKNOWN), ("other", "(1 row not shown)", 0)], "it is not hidden"


def test_a_data_frame_lacks_what_is_not_known() -> None:
    pytest.importorskip("pandas")
    frame = compare(ledger(**OLD), ledger(unknown=1, **OLD)).difference("macs").to_pandas()
    assert frame["macs_change"].isna().tolist() == [True, False]


def test_many_rows_take_no_square_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 changes: less than a second, and half a minute where each is looked for among all."""
    many = [Change(None, Row(f"layer{i}", "Linear", True, {"macs": 1 + i % 2})) for i in range(50_000)]
    monkeypatch.setattr(Comparison, "_changes", lambda *_: many)
    both = compare(ledger(**OLD), ledger(**NEW))
    start = time.process_time()
    table = both.difference(["macs"], 2)
    assert time.process_time() - start < 5
    assert (len(table.rows), table.rows[-1]["module"]) == (25_001, "(25000 rows not shown)")
    assert table.rows[-1]["macs_change"] == 25_000 and table.total["macs_change"] == 75_000


def test_peak_is_split_by_modules() -> None:
    a, b = ledger(**OLD), ledger(**NEW)
    table = compare(a, b, device="cpu").difference("peak")
    change = {row["module"]: row["peak_bytes_change"] for row in table.rows}
    assert change["gone"] == -4 * (17 * 16 + 16)  # its float32 weight and bias, and what it put out
    assert table.notes[2].startswith("peak of Net: ")


def test_a_difference_is_that_of_two() -> None:
    three = compare(ledger(**OLD), ledger(**OLD), ledger(**NEW))
    with pytest.raises(UserError, match="that of two ledgers, and 3 are compared"):
        three.difference()
    two = compare(ledger(**OLD), ledger(**NEW), top1=[1.0, 2.0])
    assert two.difference().columns  # of what it is compared by, but for top1
    with pytest.raises(UserError, match="top1 has no layers"):
        two.difference(["macs", "top1"])


# ---- formats, pictures


def test_colours_say_the_direction_besides_the_sign() -> None:
    table = compare(ledger(**OLD), ledger(**NEW)).difference("macs")
    coloured = table.to_text(color=True)
    assert "\x1b[33m+256\x1b[0m" in coloured and "\x1b[36m-256\x1b[0m" in coloured
    assert "\x1b" not in table.to_text()


NAMES = ("=HYPERLINK(1)", "</script>", "[red]x", "a|b", "\x1b[2J", "$x^2$", "漢字", "line\nbreak")


def test_hostile_names(tmp_path: Path) -> None:
    old, new = ledger(**OLD), ledger(**{name: nn.Linear(8, 8) for name in NAMES})
    both = compare(old, new, old, names=[NAMES[0], NAMES[4], NAMES[5] + "x" * 99])
    assert both.table.to_csv().splitlines()[1].startswith("'=HYPERLINK(1),")
    assert "\x1b" not in both.table.to_text() + both.table.to_markdown() + both.table.to_csv()
    both.plot(tmp_path / "hostile.svg")
    table = compare(old, new, names=NAMES[:2]).difference("macs")
    for text in (table.to_text(), table.to_text(40), table.to_markdown(), table.to_csv()):
        assert "\x1b" not in text
    assert "&lt;/script&gt;" in table.to_markdown() and "\n| added | a\\|b |" in table.to_markdown()
    assert "added,'=HYPERLINK(1),Linear" in table.to_csv()


def test_pictures(tmp_path: Path) -> None:
    both = compare(ledger(**OLD), ledger(batch=64, **NEW), top1=[71.6, None])
    both.plot(tmp_path / "two.png")
    both.plot(tmp_path / "two.svg")
    both.plot(tmp_path / "again.svg")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "two.svg").read_text()
    assert "Net (71.6%)" in svg and "Net (2)" in svg and "peak on cuda" in svg
    assert svg == (tmp_path / "again.svg").read_text()
    bare = ledger(act=nn.ReLU())  # no parameters, no macs: no logarithm of them
    compare(bare, bare).plot(tmp_path / "bare.png")
    with pytest.raises(UserError, match="a picture ends in"):
        both.plot(tmp_path / "two.txt")


# ---- what is wrong, and what it takes


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda a: compare(a), "compare got 1 ledger, expected two or more"),
        (lambda a: compare(), "compare got 0 ledgers"),
        (lambda a: compare(a, nn.Linear(2, 2)), "got a value of type Linear, expected ledgers: analyze"),
        (lambda a: compare(a, nn.Linear), "got the class Linear"),
        (lambda a: compare(a, a, by=["parms"]), "unknown quantity 'parms'. Did you mean 'params'?"),
        (lambda a: compare(a, a, by=[]), "expected quantities, each once"),
        (lambda a: compare(a, a, by="macs,macs"), "expected quantities, each once"),
        (lambda a: compare(a, a, names=["x"]), "expected 2 texts, one for each ledger"),
        (lambda a: compare(a, a, names="xy"), "expected 2 texts"),
        (lambda a: compare(a, a, top1=[1]), "expected 2 numbers of percent"),
        (lambda a: compare(a, a, top1=["good", None]), "expected 2 numbers of percent"),
        (lambda a: compare(a, a, top1=[float("nan"), None]), "numbers of percent, from 0 to 100"),
        (lambda a: compare(a, a, top1=[float("inf"), None]), "numbers of percent, from 0 to 100"),
        (lambda a: compare(a, a, top1=[-5, 50]), "top1 is [-5, 50], expected 2 numbers of percent, from 0 to 100"),
        (lambda a: compare(a, a, top1=[None, 100.1]), "numbers of percent, from 0 to 100"),
        (lambda a: compare(a, a, device="tpu"), "unknown device 'tpu'"),
        (lambda a: compare(a, a).difference(threshold="some"), "threshold is 'some'; write a share"),
        (lambda a: compare(a, a).difference(threshold=-1), "threshold is -1"),
        (lambda a: compare(a, a).difference(threshold="101%"), "threshold is '101%'"),
        (lambda a: compare(a, a).difference(threshold=float("nan")), "threshold is nan"),
        (lambda a: compare(a, a).difference(threshold=True), "threshold is True"),
        (lambda a: compare(a, a).difference(threshold=10**400), "threshold is 1000"),
        (lambda a: compare(a, a).difference(threshold="2i"), "threshold is '2i'"),
    ],
)
def test_what_is_wrong_is_one_line(action: Callable[[Ledger], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        action(ledger(**OLD))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_amounts_and_names() -> None:
    for text, amount in (
        ("1000", 1e3),
        ("2.5M", 2.5e6),
        ("1GB", 1e9),
        ("1 KiB", 1024),
        (0.5, 0.5),
        ("0.5", 0.5),
        ("3B", 3),
        ("2P", 2e15),
    ):
        assert parse_threshold(text).amount == amount, text
    assert compare(ledger(**OLD), ledger(**NEW), top1=[0, 100]).models[1].top1 == 100
    assert checked(" macs, peak_bytes") == ("macs", "peak")


def test_saved_ledgers_are_compared_without_torch(tmp_path: Path) -> None:
    for name, layers in (("a", OLD), ("b", NEW)):
        ledger(**layers).save(tmp_path / f"{name}.json")
    code = (
        "import sys; from torchledger import Ledger, compare\n"
        "both = compare(*(Ledger.load(name) for name in sys.argv[1:]))\n"
        "print(both.difference('macs').total['macs_change'], both.table and 'torch' in sys.modules)"
    )
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    done = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["96", "False"]


def test_a_notebook_shows_the_table_without_a_total() -> None:
    from torch import nn

    shown = compare(analyze(nn.Linear(4, 2), (4,)), analyze(nn.Linear(4, 3), (4,)), names=["<one>", "two"])
    text = shown._repr_html_()
    assert "&lt;one&gt;" in text and "<one>" not in text and "<tfoot>" not in text
    assert "<tfoot>" in analyze(nn.Linear(4, 2), (4,))._repr_html_()


KINDS: dict[str, Any] = {"names": 5, "top1": 5, "by": 5, "notes": "abc"}


@pytest.mark.parametrize("name", KINDS)
def test_arguments_of_another_kind_are_said(name: str) -> None:
    ledger = analyze(nn.Linear(4, 3), (4,))
    with pytest.raises(UserError, match=f"^{name} is .*, expected"):
        compare(ledger, ledger, **{name: KINDS[name]})


def test_names_in_no_order_are_refused() -> None:
    ledger = analyze(nn.Linear(4, 3), (4,))
    with pytest.raises(UserError, match=r"^names is .*, expected 2 texts"):
        compare(ledger, ledger, names={"a", "b"})  # type: ignore[arg-type]
