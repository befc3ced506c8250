"""`torchledger memory` and `fit`: what is shown, in every format, and what is refused in one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from torchledger import analyze
from torchledger.cli import main

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
        self.input_size = (16,)
    def forward(self, x):
        return self.layers(x)
def Plain():
    return nn.Sequential(nn.Linear(4, 4))
def named(width=8):
    net = Net(width)
    net.add_module("</script>=HYPERLINK(1)", nn.Linear(2, 2))
    return net
"""
STEP = ["--training", "--loss", "cross_entropy", "--optimizer", "adamw"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "net.py").write_text(NET)

    def run(*words: Any, status: int = 0) -> Any:
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert (done.value.code or 0) == status, shown.err
        return shown

    return run


def table(run: Any, *words: Any) -> dict[str, int]:
    rows = csv.DictReader(io.StringIO(run("memory", "net.py:Net", "--input", 16, *words, "--format", "csv").out))
    name = rows.fieldnames[0]  # type: ignore[index]
    return {row[name]: int(row["bytes"]) for row in rows}


def expected(**options: Any) -> Any:
    from torch import nn

    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    training = (
        {"training": True, "loss": "cross_entropy", "optimizer": "adamw"} if options.pop("training", False) else {}
    )
    return analyze(net, (16,), **options, **training)


def test_the_figures_are_those_of_the_report(run: Any) -> None:
    assert table(run, "--device", "cpu", "--batch", 8) == expected(batch=8).memory("cpu").alive
    step = expected(batch=8, training=True)
    assert table(run, "--batch", 8, *STEP) == step.memory("cuda").alive
    assert table(run, *STEP, "--batch", 8, "--first-step") == step.memory(first_step=True).alive
    assert table(run, *STEP, "--batch", 8, "--accumulate", 4) == step.memory(accumulate=4).alive
    assert table(run, *STEP, "--batch", 8, "--keep-gradients") == step.memory(set_to_none=False).alive
    assert table(run, *STEP, "--batch", 8, "--allocator", "exact") == step.memory(allocator="exact").alive
    half = expected(batch=8, training=True, model_dtype="bfloat16", input_dtype="bfloat16")
    assert table(run, *STEP, "--batch", 8, "--dtype", "bf16") == half.memory().alive
    assert table(run, "--moment", 2, "--device", "cpu") == expected().memory("cpu").moment(1).alive
    assert sum(table(run, *STEP, "--by", "operation").values()) == expected(training=True).memory().peak_bytes


def test_at_80_columns(run: Any) -> None:
    shown = run("memory", "net.py:Net", "--input", 16, "--batch", 8, *STEP).out
    assert all(len(line) <= 80 for line in shown.splitlines())
    for text in ("optimizer state", "total", "peak: ", "reserved by torch's caching allocator", "not in it: cuBLAS"):
        assert text in shown
    shown = run("memory", "net.py:Net", "--input", 16, *STEP, "--by", "module", "--depth", 2).out
    assert "layers.0" in shown


def test_json_holds_the_timeline(run: Any) -> None:
    data = json.loads(run("memory", "net.py:Net", "--input", 16, "--device", "cpu", "--format", "json").out)
    assert data["peak_bytes"] == max(data["live"]) == sum(data["alive"].values())
    assert [sum(sizes) for sizes in zip(*data["timeline"].values(), strict=True)] == data["live"]
    assert data["table"]["total"]["bytes"] == data["peak_bytes"]


def test_pictures_and_traces(run: Any, tmp_path: Path) -> None:
    run("memory", "net.py:Net", "--input", 16, *STEP, "--plot", "m.svg", "--trace", "m.json")
    run("memory", "net.py:Net", "--input", 16, "--plot", "m.png")
    svg = (tmp_path / "m.svg").read_text()
    assert svg.startswith("<?xml") and (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((tmp_path / "m.json").read_text())["traceEvents"]
    counters = [event for event in events if event["ph"] == "C"]
    report = expected(training=True).memory()
    assert max(sum(event["args"].values()) for event in counters) == max(
        map(sum, zip(*report.timeline.values(), strict=True))
    )
    assert {event["name"] for event in events if event.get("cat") == "phase"} == {"forward", "backward", "optimizer"}
    assert sum(event.get("cat") == "operation" for event in events) == report.moments - 1


def test_a_saved_ledger(run: Any, tmp_path: Path) -> None:
    expected(batch=8, training=True).save(tmp_path / "net.json")
    shown = run("memory", "net.json", "--device", "cpu", "--format", "json").out
    assert json.loads(shown)["peak_bytes"] == expected(batch=8, training=True).memory("cpu").peak_bytes


def test_fit(run: Any) -> None:
    shown = run("fit", "net.py:Net", "--memory", "1MB", "--input", 16, *STEP, "--device", "cpu")
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    data = json.loads(
        run("fit", "net.py:Net", "--memory", "1MB", "--input", 16, *STEP, "--device", "cpu", "--format", "json").out
    )
    batch = data["batch"]
    assert data["peak_bytes"] == expected(batch=batch, training=True).memory("cpu").peak_bytes <= 10**6
    assert data["peak_bytes_above"] == expected(batch=batch + 1, training=True).memory("cpu").peak_bytes > 10**6
    assert f"batch {batch} fits" in shown.out
    assert "no batch fits" in run("fit", "net.py:Net", "--memory", "1KB", "--input", 16, status=1).out


def test_savings(run: Any) -> None:
    shown = run("memory", "net.py:Net", "--input", 16, "--batch", 64, *STEP, "--savings", "--device", "cpu").out
    for text in ("as it is", "batch 32", "SGD, which keeps no state", "train layers.2 alone", "more macs"):
        assert text in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_hostile_names(run: Any) -> None:
    words = ("memory", "net.py:named", "--input", 16, "--by", "module", "--format")
    assert "&lt;/script&gt;=HYPERLINK(1)" in run(*words, "markdown").out
    assert "</script>=HYPERLINK(1)" in run(*words, "csv").out  # does not begin with a sign


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("memory", "net.py:Net", "--input", 16, "--depth", 2), "--depth 2 goes with --by module"),
        (("memory", "net.py:Net", "--input", 16, "--moment", 99), "--moment 99: the run has 5 operations"),
        (("memory", "net.py:Net", "--input", 16, "--moment", 0), "--moment 0: the run has 5 operations"),
        (("memory", "net.py:Net", "--input", 16, "--savings"), "give a model, and --training"),
        (("memory", "net.py:Net", "--input", 16, *STEP, "--savings", "--plot", "m.png"), "leave --plot out"),
        (("memory", "net.py:Net", "--input", 16, "--accumulate", 2), "are of a training step"),
        (("memory", "net.py:Net", "--input", 16, "--allocator", "best"), "unknown allocator 'best'"),
        (("memory", "net.py:Net", "--input", 16, "--device", "mps"), "'mps' is not one of"),
        (("memory", "net.py:Net", "--input", 16, "--plot", "m.txt"), "a picture ends in .png or .svg"),
        (("memory", "net.py:Net", "--input", 16, "--plot", "no/m.png"), "there is no folder"),
        (
            ("memory", "net.py:Net", "--input", 16, "--plot", "m.svg", "-o", "./m.svg"),
            "--plot and --output name one file, './m.svg': name two",
        ),
        (("memory", "net.py:Net", "--input", 16, "--trace", "m.svg", "--plot", "m.svg"), "--plot and --trace name one"),
        (("memory", "net.py:Net", "--input", 17), "expects 16 features, got 17"),
        (("memory", "net.py:Plain"), "does not say the size of its input"),
        (("fit", "net.py:Net", "--memory", "lots", "--input", 16), "--memory is 'lots'; write bytes"),
        (("fit", "net.py:Net", "--input", 16), "Missing option '--memory'"),
        (("fit", "net.py:Net", "--input", 17, "--memory", "1GB"), "expects 16 features, got 17"),
        (("fit", "net.json", "--memory", "1GB"), "is a saved ledger"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(run: Any, tmp_path: Path, words: Any, message: str) -> None:
    (tmp_path / "net.json").write_text("{}")
    shown = run(*words, status=2)
    assert shown.out == "" and message in shown.err and len(shown.err.splitlines()) == 1
    assert not list(tmp_path.glob("m.*"))
