"""`torchledger compare`: what is shown, in every format, and what is refused in one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from torchledger import Ledger, analyze, models
from torchledger.cli import main

NETS = """
from torch import nn
class Net(nn.Module):
    input_size = (16,)
    def __init__(self, width=32, num_classes=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, num_classes))
    def forward(self, x):
        return self.layers(x)
def wide(num_classes=4):
    return Net(64, num_classes)
class Sizeless(Net):
    input_size = None
class Failing(Net):
    input_size = (17,)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "net.py").write_text(NETS)

    def run(*words: Any, status: int = 0) -> Any:
        with pytest.raises(SystemExit) as done:
            main(["compare", *map(str, words)])
        shown = capsys.readouterr()
        assert (done.value.code or 0) == status, shown.err
        return shown

    return run


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_networks_with_their_own_inputs(run: Any) -> None:
    found = rows(run("alexnet", "inception_v3", "--by", "params,macs,top1", "--format", "csv").out)
    figures = {name: models.registry.figures()[name] for name in ("alexnet", "inception_v3")}
    assert [(row["model"], int(row["params"]), int(row["macs"])) for row in found] == [
        (name, figure.params, figure.macs) for name, figure in figures.items()
    ]
    assert [row["input"] for row in found] == ["1x3x224x224", "1x3x299x299"]
    assert [row["top1"] for row in found] == ["56.522", "77.294"]


def test_text_at_80_columns(run: Any) -> None:
    shown = run("alexnet", "vgg16", "googlenet", "resnet50", "--by", "params,macs,peak").out
    assert all(len(line) <= 80 for line in shown.splitlines())
    lines = shown.splitlines()
    assert lines[1].split() == ["model", "params", "macs", "peak", "(B)", "input"]
    assert lines[4].split()[:5] == ["vgg16", "138.4", "M", "15.47", "G"]
    assert "not shown at this width" not in shown and "top-1" not in shown
    assert "top-1 of alexnet, resnet18: torchvision, IMAGENET1K_V1" in run("alexnet", "resnet18").out
    # by layer, what differs most stays in sight
    shown = run("resnet18", "resnet34", "--difference").out
    assert all(len(line) <= 80 for line in shown.splitlines())
    for heading in ("± params", "± macs", "± peak (B)"):
        assert heading in shown.splitlines()[2], heading


def test_options_apply_to_all(run: Any) -> None:
    words = ("net.py:Net", "net.py:wide", "--classes", 7, "--batch", 3, "--by", "macs,peak", "--device", "cpu")
    found = rows(run(*words, "--format", "csv").out)
    assert [int(row["macs"]) for row in found] == [3 * (16 * width + width * 7) for width in (32, 64)]
    step = ("--training", "--loss", "cross_entropy", "--optimizer", "adamw")
    trained = rows(run(*words, *step, "--format", "csv").out)
    assert all(int(b["peak_bytes"]) > int(a["peak_bytes"]) for a, b in zip(found, trained, strict=True))
    found = rows(run("net.py:Sizeless", "net.py:Net", "--input", 16, "--by", "macs", "--format", "csv").out)
    assert {int(row["macs"]) for row in found} == {16 * 32 + 32 * 4}


def test_a_changed_network_has_reached_nothing(run: Any) -> None:
    assert "top1" in rows(run("resnet18", "vgg11", "--format", "csv").out)[0]
    assert "top1" not in rows(run("resnet18", "vgg11", "--classes", 10, "--format", "csv").out)[0]


def test_json_has_models_and_table(run: Any) -> None:
    shown = run("net.py:Net", "net.py:wide", "--by", "macs", "--format", "json").out
    data = json.loads(shown)
    assert [model["name"] for model in data["models"]] == ["net.py:Net", "net.py:wide"]
    assert [row["macs"] for row in data["table"]["rows"]] == [640, 1280]
    assert data["models"][0]["params"] == 17 * 32 + 33 * 4
    data = json.loads(run("net.py:Net", "net.py:wide", "--difference", "--by", "macs", "--format", "json").out)
    assert data["table"]["total"]["macs_change"] == 640
    assert "| **total** |" in run("net.py:Net", "net.py:wide", "--difference", "--format", "markdown").out


def test_a_saved_ledger_and_a_model(run: Any, tmp_path: Path) -> None:
    from torch import nn

    net = nn.Sequential(nn.Linear(16, 8))
    analyze(net, (16,), batch=2).save(tmp_path / "old.json")
    found = rows(run("old.json", "net.py:Net", "--batch", 2, "--by", "macs", "--format", "csv").out)
    assert [int(row["macs"]) for row in found] == [2 * 16 * 8, 2 * 640]
    assert [row.get("run") for row in found] == [None, None]  # both are of two samples
    assert Ledger.load(tmp_path / "old.json").totals()["macs"] == 256


def test_difference_of_two_files(run: Any, tmp_path: Path) -> None:
    for version, layers in (("v1", "nn.Linear(4, 4), nn.ReLU()"), ("v2", "nn.Linear(4, 6), nn.ReLU()")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "parts.py").write_text(f"from torch import nn\nlayers = lambda: [{layers}]\n")
        text = "import parts\nfrom torch import nn\ndef net():\n    return nn.Sequential(*parts.layers())\n"
        (tmp_path / version / "net.py").write_text(text)
    words = ("v1/net.py:net", "v2/net.py:net", "--input", 4, "--difference", "--by", "macs,params")
    found = rows(run(*words, "--format", "csv").out)
    assert [(row["change"], row["module"], row["macs_change"], row["params_change"]) for row in found] == [
        ("changed", "0", "8", "10"),
        ("other", "(1 row not shown)", "0", "0"),
    ]
    found = rows(run(*words, "--threshold", "11", "--format", "csv").out)
    assert [row["module"] for row in found] == ["(2 rows not shown)"]


def test_picture(run: Any, tmp_path: Path) -> None:
    run("net.py:Net", "net.py:wide", "--plot", "both.svg")
    assert "net.py:wide" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("net.py:Net",), "compare takes two or more sources, got 1"),
        (("net.py:Net",) * 3 + ("--difference",), "--difference takes exactly two sources, got 3"),
        (("net.py:Net", "resnet"), "unknown model 'resnet'. Did you mean"),
        (("net.py:Net", "resnet18", "--by", "mac"), "unknown quantity 'mac'. Did you mean 'macs'?"),
        (("net.py:Net", "net.py:wide", "--by", "macs,top1", "--difference"), "--by top1 has no layers"),
        (
            ("net.py:Net", "net.py:wide", "--threshold", "1%"),
            "--threshold 1% needs two models and --difference or --html; got 2 sources and neither option",
        ),
        (
            ("net.py:Net",) * 3 + ("--threshold", "1%"),
            "--threshold 1% needs two models and --difference or --html; got 3 sources and neither option",
        ),
        (("net.py:Net",) * 3 + ("--difference", "--threshold", "1%"), "--difference takes exactly two sources, got 3"),
        (("net.py:Net", "net.py:wide", "--difference", "--threshold", "x"), "--threshold is 'x'; write a share"),
        (("net.py:Net", "net.py:Sizeless"), "'net.py:Sizeless' does not say the size of its input"),
        (("net.py:Net", "net.py:Failing"), "net.py:Failing: layers.0: Linear expects 16 features, got 17"),
        (("net.py:Net", "net.py:wide", "--arg", "width=3"), "'net.py:wide' takes no argument 'width'"),
        (("net.py:Net", "net.py:wide", "--batch", 0), "batch is 0, expected a whole number from 1"),
        (("net.py:Net", "net.py:wide", "--plot", "m.txt"), "a picture ends in .png or .svg"),
        (("net.py:Net", "net.py:wide", "--output", "no/m.csv"), "there is no folder"),
        (("net.py:Net", "net.py:wide", "--html", "x", "-o", "x"), "--html and --output name one file, 'x': name two"),
        (("net.py:Net", "net.py:wide", "--plot", "./x.svg", "-o", "x.svg"), "--plot and --output name one file"),
        (("net.py:Net", "net.py:wide", "--html", "x.svg", "--plot", "link.svg"), "--html and --plot name one file"),
        (("saved.json", "saved.json", "--batch", 2), "is a saved ledger, a run that is over: --batch"),
        (("net.py:Net", "saved.json"), "saved.json"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(run: Any, tmp_path: Path, words: Any, message: str) -> None:
    (tmp_path / "saved.json").write_text("{}")
    (tmp_path / "link.svg").symlink_to("x.svg")
    shown = run(*words, status=2)
    assert shown.out == "" and message in shown.err and len(shown.err.splitlines()) == 1
    assert not {"x", "x.svg"} & {path.name for path in tmp_path.iterdir()}
