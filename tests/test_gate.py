"""Limits and baselines: what exceeds, by how much, in which layers. `check` in the shell, `assert_within` in tests."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from torch import nn

from torchledger import ForwardError, Ledger, UserError, analyze, assert_within, gate
from torchledger.amounts import parse_bytes, parse_count, parse_share
from torchledger.cli import main

# 16 -> 32 -> 4, with a bias each: 16 x 32 + 32 = 544 and 32 x 4 + 4 = 132 parameters, 512 + 128 macs a sample.
NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
        self.input_size = (16,)
    def forward(self, x):
        return self.layers(x)
def hostile():
    net = nn.Sequential()
    net.input_size = (4,)
    for name in ("</td><script>alert(1)</script>", "=HYPERLINK(1)", "a|b"):
        net.add_module(name, nn.Linear(4, 4))
    return net
"""


def mlp(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "net.py").write_text(NET)

    def run(*words: Any, status: int = 0) -> Any:
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert (done.value.code or 0) == status, shown.err or shown.out
        return shown

    return run


# --- amounts ---------------------------------------------------------------------------------------------------------


def test_amounts_in_words() -> None:
    counts = {"60M": 60_000_000, "4.1G": 4_100_000_000, "1.005 k": 1005, "2T": 2 * 10**12, "0": 0, "12": 12}
    assert {text: parse_count(text, "n") for text in counts} == counts
    assert parse_count(7, "n") == 7 and parse_count(0, "n") == 0
    assert parse_bytes("4.1GB") == 4_100_000_000  # as a float, 4.1 x 10^9 may be one less
    assert parse_bytes("0", least=0) == 0
    assert parse_share("0.5%", "s") == Fraction(1, 200) and parse_share(" 10 % ", "s") == Fraction(1, 10)


@pytest.mark.parametrize("wrong", ["7B", "1GB", "1Gi", "lots", "", "-1", "1e6", -1, 1.5, True, None, "9" * 5000])
def test_wrong_counts(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"macs is .*; write a count such as 60M or 1.5G"):
        parse_count(wrong, "macs")


@pytest.mark.parametrize("wrong", ["1", "0.01", "-1%", "%", "one%", 1, 0.01, None])
def test_wrong_shares(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"tolerance is .*; write a share such as 1% or 0.5%"):
        parse_share(wrong, "tolerance")


# --- what is within --------------------------------------------------------------------------------------------------

EXACT = {
    "params": 544 + 132,
    "trainable_params": 544 + 132,
    "macs": 512 + 128,
    "flops": 2 * 512 + 32 + 32 + 2 * 128 + 4,  # two a mac, one a bias, one a ReLU
    "bytes_read": 4 * (16 + 544 + 32 + 32 + 132),  # inputs of Linear, ReLU, Linear, and the parameters
    "bytes_written": 4 * (32 + 32 + 4),
    "activation_bytes": 4 * (32 + 32 + 4),
    "unknown": 0,
}


@pytest.mark.parametrize("quantity", EXACT)
def test_a_limit_is_the_most_that_may_be(quantity: str) -> None:
    ledger = assert_within(mlp(), (16,), **{quantity: EXACT[quantity]})
    assert ledger.totals()[quantity] == EXACT[quantity]
    if EXACT[quantity]:
        with pytest.raises(AssertionError, match=f"exceeds its limits, {quantity} by 1 B? ?") as failed:
            assert_within(mlp(), (16,), **{quantity: EXACT[quantity] - 1})
        assert f"{EXACT[quantity]:,}" in str(failed.value)


def test_the_peak_is_that_of_the_device() -> None:
    peak = analyze(mlp(), (16,), batch=8).memory("cpu").peak_bytes
    assert_within(mlp(), (16,), batch=8, peak=peak, memory={"device": "cpu"})
    with pytest.raises(AssertionError, match=r"peak by 1 B \(.*memory on cpu"):
        assert_within(mlp(), (16,), batch=8, peak=peak - 1, memory={"device": "cpu"})
    with pytest.raises(AssertionError, match="memory on cuda"):  # the allocator hands out 512 bytes and more at a time
        assert_within(mlp(), (16,), batch=8, peak=peak)
    step: dict[str, Any] = {"training": True, "optimizer": "adamw"}
    first = analyze(mlp(), (16,), **step).memory("cpu", accumulate=4).peak_bytes
    assert_within(mlp(), (16,), **step, peak=first, memory={"device": "cpu", "accumulate": 4})


def test_frozen_parameters() -> None:
    model = mlp()
    model[0].requires_grad_(False)  # type: ignore[operator]
    assert_within(model, (16,), trainable_params=132, params=676)
    with pytest.raises(AssertionError) as failed:
        assert_within(model, (16,), trainable_params=131)
    layers = str(failed.value).split("by layer")[1]
    assert re.findall(r"^(\d) +(\d+)", layers, re.MULTILINE) == [("2", "132")]  # the frozen layer has none of them


def test_the_ledger_comes_back_as_the_next_baseline(tmp_path: Path) -> None:
    assert_within(mlp(), (16,), macs="1K").save(tmp_path / "main.json")
    assert_within(mlp(), (16,), baseline=tmp_path / "main.json")
    assert_within(mlp(), (16,), baseline=Ledger.load(tmp_path / "main.json"))


# --- which layers ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two layers, and operations outside of them."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, rank), nn.Linear(rank, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x)) @ x.new_ones(8, 8)


def blocks(*ranks: int) -> nn.Module:
    return nn.Sequential(*map(Block, ranks))


def test_the_heaviest_layers_and_one_row_for_the_others() -> None:
    check = gate.check(analyze(blocks(4, 16, 2, 1), (8,)), {"macs": 100})
    bound, table = check.layers[0]
    # Linear(8, r) and back: 8 r macs each, and 8 x 8 of the matmul in each of 4 blocks
    whole = 2 * 8 * (4 + 16 + 2 + 1) + 4 * 64
    assert (bound.value, bound.over) == (whole, whole - 100)
    assert [row["layer"] for row in table.rows] == [
        "1.first", "1.second", "0 mm", "1 mm", "2 mm", "7 other layers",
    ]  # fmt: skip
    assert [row["macs"] for row in table.rows] == [128, 128, 64, 64, 64, whole - 448]
    assert sum(row["share"] for row in table.rows) == pytest.approx(100)  # type: ignore[misc]
    assert table.total == {"layer": "total", "macs": whole, "share": 100.0}


def test_the_layers_that_grew_most() -> None:
    before, now = analyze(blocks(4, 16, 2), (8,)), analyze(blocks(6, 16, 1), (8,))
    check = gate.check(now, {}, before)
    results = {bound.quantity: check.result(bound) for bound in check.bounds}
    # 8 r macs for each of two layers: + 2 x 16, - 1 x 16
    assert results["macs"] == "exceeded" and results["unknown"] == "within"
    bound, table = next((b, t) for b, t in check.layers if b.quantity == "macs")
    assert bound.growth == bound.over == 2 * 8 * (6 - 4) - 2 * 8 * (2 - 1) == 16
    assert [tuple(row.values()) for row in table.rows] == [
        ("0.first", 32, 48, 16), ("0.second", 32, 48, 16), ("7 other layers", 480, 464, -16),
    ]  # fmt: skip
    assert table.total == {"layer": "total", "baseline": 544, "macs": 560, "growth": 16}


@pytest.mark.parametrize("quantity", gate.QUANTITIES)
@pytest.mark.parametrize("options", [{}, {"training": True, "optimizer": "adamw"}], ids=["inference", "training"])
def test_layers_add_up(quantity: str, options: dict[str, Any]) -> None:
    ledger = analyze(blocks(4, 2), (8,), **options)
    report = ledger.memory()
    whole = report.peak_bytes if quantity == "peak" else ledger.totals()[quantity]
    assert sum(gate.of_layers(ledger, quantity, report).values()) == whole


@pytest.mark.parametrize(("tolerance", "fits"), [("0%", False), ("24.9%", False), ("25%", True)])
def test_tolerance_is_a_share_of_the_baseline(tolerance: str, fits: bool) -> None:
    """16 -> 40 -> 4 has 800 macs where 16 -> 32 -> 4 had 640: a quarter more."""
    before = analyze(mlp(), (16,))
    check = gate.check(analyze(mlp(40), (16,)), {}, before, parse_share(tolerance, ""))
    bound = next(bound for bound in check.bounds if bound.quantity == "macs")
    assert (bound.value, bound.baseline, check.result(bound) == "within") == (800, 640, fits)
    assert bound.limit == {"0%": 640, "24.9%": 799, "25%": 800}[tolerance]  # 799.36: whole macs below it


def test_what_shrinks_is_within() -> None:
    check = gate.check(analyze(mlp(8), (16,)), {}, analyze(mlp(), (16,)))
    assert check.within and not check.layers and len(check.tables) == 1
    assert {bound.growth for bound in check.bounds if bound.quantity == "macs"} == {20 * 8 - 640}
    assert "-480" in str(check)


# --- unknown operations ----------------------------------------------------------------------------------------------


LIBRARY = torch.library.Library("gate_test", "DEF")  # an operation without a rule
LIBRARY.define("rare(Tensor x) -> Tensor")
LIBRARY.impl("rare", torch.empty_like, "Meta")


class Rare(nn.Module):
    """A layer of 20 parameters, and the operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.gate_test.rare(self.linear(x))
        return y


def test_a_sum_with_unknown_operations_is_not_known_to_be_within() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_within(Rare(), (4,), flops="1G", params=20)
    text = str(failed.value)
    assert "is not known to be within its limits, flops;" in text and "1 of 2 within" in text
    assert "unknown: gate_test::rare (1)" in text and ">=36 " in text
    assert_within(Rare(), (4,), flops="1G", unknown=1)
    assert_within(Rare(), (4,), params=20)  # parameters are known
    with pytest.raises(AssertionError, match="exceeds its limits, unknown by 1, and is not known"):
        assert_within(Rare(), (4,), flops="1G", unknown=0)
    with pytest.raises(AssertionError, match="exceeds its limits, flops by"):
        assert_within(Rare(), (4,), flops=1, unknown=1)


def test_unknown_operations_of_a_baseline_are_known_of() -> None:
    ledger = analyze(Rare(), (4,))
    assert gate.check(ledger, {}, ledger).within
    assert not gate.check(ledger, {}, analyze(nn.Linear(4, 4), (4,))).within


# --- the shell -------------------------------------------------------------------------------------------------------


def test_within(run: Any) -> None:
    out = run("check", "net.py:Net", "--max", "params=676", "--max", "macs=1K", "--max", "peak=2GB").out
    assert out.startswith("Net is within its limits; eval mode, batch 1, memory on cuda\n")
    assert re.search(r"^macs +640 +1,000 +64\.00% +0 +within$", out, re.MULTILINE)
    assert re.search(r"^3 of 3 within +within$", out, re.MULTILINE)
    assert "operations: 3 priced" in out and "peak: " in out and "not in it: cuBLAS" in out
    assert max(map(cell_len, out.splitlines())) <= 80


def test_exceeded(run: Any, golden: Callable[[str, str], None]) -> None:
    words = ("check", "net.py:Net", "--max", "params=500", "--max", "macs=1K", "--max", "bytes_read=2kB")
    out = run(*words, status=1).out
    golden("check_80.txt", out)
    # 676 - 500, and 3024 bytes for 2000
    assert out.startswith("Net exceeds its limits, params by 176 (35.2%), bytes_read by 1.024 KB (51.2%);\neval mode")
    assert "layers.0     544   80.47%" in out and "macs by layer" not in out
    assert max(map(cell_len, out.splitlines())) <= 80


def test_helper_and_shell_say_the_same(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    names: dict[str, Any] = {}
    exec(compile(NET, "net.py", "exec"), names)
    with pytest.raises(AssertionError) as failed:
        assert_within(names["Net"](), (16,), macs="0.5K", peak="1KiB")
    out = run("check", "net.py:Net", "--max", "macs=0.5K", "--max", "peak=1KiB", status=1).out
    assert str(failed.value) == out and "macs by 140 (28%)" in out  # 640 for 500


def test_against_a_baseline(run: Any, golden: Callable[[str, str], None]) -> None:
    run("stat", "net.py:Net", "--format", "json", "--output", "main.json")
    out = run("check", "net.py:Net", "--baseline", "main.json").out
    assert re.search(r"^9 of 9 within +within$", out, re.MULTILINE)
    words = ("check", "net.py:Net", "--arg", "width=33", "--baseline", "main.json")
    out = run(*words, status=1).out
    golden("check_baseline_80.txt", out)
    assert max(map(cell_len, out.splitlines())) <= 80
    assert "exceeded: macs by 20 (3.125%) over the baseline's 640\n" in out  # 16 + 4 more
    assert run(*words, "--tolerance", "20%").out  # the allocator's rounding moves by less, too
    golden("check_baseline.md", run(*words, "--format", "markdown", status=1).out)


def test_formats(run: Any) -> None:
    words = ("check", "net.py:Net", "--max", "macs=600", "--max", "params=1K", "--format")
    rows = list(csv.DictReader(io.StringIO(run(*words, "csv", status=1).out)))
    assert rows[0] == {
        "quantity": "params", "value": "676", "limit": "1000", "of_limit": "67.6", "over": "0", "unit": "",
        "result": "within", "layers": "",
    }  # fmt: skip
    assert [rows[1][name] for name in ("quantity", "over", "result", "layers")] == [
        "macs", "40", "exceeded", "layers.0 512; layers.2 128",
    ]  # fmt: skip
    data = json.loads(run(*words, "json", status=1).out)
    assert data["within"] is False and [one["quantity"] for one in data["layers"]] == ["macs"]
    assert [row["macs"] for row in data["layers"][0]["rows"]] == [512, 128]
    assert [row["value"] for row in data["table"]["rows"]] == [676, 640]
    markdown = run(*words, "markdown", status=1).out
    assert "| macs | 640 | 600 | 106.67% | 40 |  | exceeded |" in markdown
    assert "| layers.0 | 512 | 80.00% |" in markdown
    run(*words, "json", "--output", "check.json", status=1)
    assert json.loads(Path("check.json").read_text()) == data


def test_hostile_names(run: Any) -> None:
    words = ("check", "net.py:hostile", "--max", "macs=1", "--format")
    markdown = run(*words, "markdown", status=1).out
    assert "| &lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; | 16 |" in markdown and "| a\\|b | 16 |" in markdown
    assert "<" not in markdown
    table = run(*words, "csv", status=1).out
    row = next(csv.DictReader(io.StringIO(table)))
    assert row["layers"] == "</td><script>alert(1)</script> 16; =HYPERLINK(1) 16; a|b 16"
    first = ("check", "net.py:hostile", "--max", "params=1", "--format", "csv")
    assert run(*first, status=1).out.count("=HYPERLINK") == 1


def test_a_saved_ledger_is_checked_without_torch(tmp_path: Path) -> None:
    analyze(mlp(), (16,)).save(tmp_path / "net.json")
    code = (
        "import sys; from torchledger.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    words = ["check", "net.json", "--max", "macs=640", "--max", "peak=1GB", "--baseline", "net.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and done.stdout.endswith("\nFalse\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to check: give a maximum, such as macs=1G, or a baseline"),
        (("--max", "macs"), "--max 'macs' is no limit: write QUANTITY=AMOUNT"),
        (("--max", "=1"), "--max : no quantity ''; the quantities are params,"),
        (("--max", "mac=1"), "no quantity 'mac'; the quantities are params,"),
        (("--max", "mac=1"), "Did you mean 'macs'?"),
        (("--max", "macs=1GB"), "--max macs is '1GB'; write a count such as 60M"),
        (("--max", "peak=much"), "--max peak is 'much'; write bytes, or a size such as 24GB"),
        (("--max", "macs=1", "--max", "macs=2"), "macs was given before"),
        (("--max", "macs=1", "--tolerance", "1%"), "--tolerance 1% goes with --baseline FILE"),
        (("--baseline", "main.json", "--tolerance", "1"), "--tolerance is '1'; write a share such as 1%"),
        (("--baseline", "none.json"), "cannot read 'none.json': No such file"),
        (("--baseline", "net.py"), "'net.py' is not whole JSON"),
        (("--baseline", "main.json", "--batch", "2"), "the baseline is of another run: batch 1 there, 2 here"),
        (("--baseline", "main.json", "--mode", "train"), "another run: mode eval there, train here"),
        (("--baseline", "train.json", "--mode", "train"), "another run: training training step"),
        (("--baseline", "main.json", "--autocast", "bf16"), "another run: autocast off there, cpu:bfloat16 here"),
        (("--baseline", "main.json", "--input", "2x16"), "another run: inputs 1x16 float32 there, 1x2x16 float32 here"),
        (("--baseline", "failed.json"), "the baseline is of a forward that failed"),
        (("--max", "macs=1", "--device", "cpu"), "device is for the peak, which has no limit"),
        (("--max", "peak=1GB", "--accumulate", "2"), "are of a training step"),
        (("--max", "peak=1GB", "--device", "mps"), "'mps' is not one of"),
        (("--max", "macs=1", "--input", "17"), "expects 16 features, got 17"),
        (("--max", "macs=1", "--output", "no/x.md"), "there is no folder"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(run: Any, tmp_path: Path, words: Any, message: str) -> None:
    analyze(mlp(), (16,)).save(tmp_path / "main.json")
    analyze(mlp(), (16,), training=True).save(tmp_path / "train.json")
    with pytest.raises(ForwardError) as failed:
        analyze(mlp(), (17,))
    failed.value.ledger.save(tmp_path / "failed.json")
    out = run("check", "net.py:Net", *words, status=2)
    assert out.out == "" and message in out.err and len(out.err.splitlines()) == 1


def test_wrong_arguments_of_the_helper() -> None:
    for arguments, message in (
        ({}, "nothing to check"),
        ({"macs": "1GB"}, "macs is '1GB'; write a count"),
        ({"peak": 1.5}, "peak is 1.5; write bytes"),
        ({"macs": 1, "tolerance": "1%"}, "a tolerance is a share of a baseline"),
        ({"macs": 1, "tolerance": 0.01}, "tolerance is 0.01; write a share"),
        ({"macs": 1, "memory": {"device": "cpu"}}, "device is for the peak"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            assert_within(mlp(), (16,), **arguments)  # type: ignore[arg-type]


def test_the_ledger_of_a_failed_forward_is_not_checked(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ForwardError) as failed:
        analyze(mlp(), (17,))
    failed.value.ledger.save(tmp_path / "failed.json")
    assert "the ledger is of a forward that failed" in run("check", "failed.json", "--max", "macs=1", status=2).err


def test_wrong_arguments_are_said() -> None:
    model = nn.Linear(4, 3)
    for options, said in (
        ({"macs": "1G", "flop": 1}, "'flop' is neither a quantity nor an argument of analyze. Did you mean 'flops'"),
        ({"peak": "1GB", "memory": 5}, "memory is 5, expected arguments of Ledger.memory"),
        ({"peak": "1GB", "memory": {"devce": "cpu"}}, "'memory' takes no argument 'devce'"),
        ({"peak": "1.5"}, "peak is '1.5'; write bytes"),
        ({"params": "1.5"}, "params is '1.5'; write a count"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            assert_within(model, (4,), **options)  # type: ignore[arg-type]


def test_a_ledger_without_storages_has_no_peak() -> None:
    ledger = analyze(nn.Linear(4, 3), (4,))
    ledger.record.allocations.clear()
    assert gate.check(ledger, {"macs": 12}).within
    with pytest.raises(UserError, match="its peak is not known"):
        gate.check(ledger, {"peak": 10**9})
