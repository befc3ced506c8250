"""The command line: every command of the README, every error as one line, streams that never mix."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import pytest
import torch
from rich.cells import cell_len
from torch import nn

import torchledger
from torchledger import Ledger
from torchledger.cli import COMMANDS, main
from torchledger.models import build
from torchledger.models.registry import REGISTRY
from torchledger.pricing import CONVENTIONS


@torch.library.custom_op("clitest::_values", mutates_args=())
def singular_values(x: torch.Tensor) -> torch.Tensor:
    """An operation that has no rule."""
    return torch.linalg.svdvals(x)


@singular_values.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-2], min(x.shape[-2:])))


NETS = r"""
import torch
from torch import nn


class Net(nn.Module):
    input_size = (4,)

    def __init__(self, width=4, bias=True):
        super().__init__()
        self.first = nn.Linear(4, width, bias=bias)
        self.inner = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout())
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.inner(self.first(x)).relu())


class Printing(Net):
    def __init__(self):
        super().__init__()
        print("constructor", "of Printing")

    def forward(self, x):
        print("forward of Printing", tuple(x.shape))
        return super().forward(x)


class Accented(Printing):
    def __init__(self):
        super().__init__()
        self.add_module("caf\xe9", nn.Linear(1, 1))


class Placed(Net):
    def __init__(self):
        super().__init__()
        print("lies on", self.first.weight.device)


class Singular(nn.Module):
    input_size = (4,)

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.clitest._values(self.first(x))


class Failing(Net):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 2)


class Raising(Net):
    def forward(self, x):
        raise RuntimeError("line one\nline \x1b[31mtwo")


class Sizeless(Net):
    input_size = None


class Needy(nn.Module):
    def __init__(self, width, depth):
        super().__init__()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, x, ids):
        return x + self.embed(ids)


NAMES = ["=cmd()", "a|b", "[red]", "\x1b[31mred", "é漢字", "new\nline", "-1", "</script>", "`code`", "long" * 30]


class Hostile(nn.Module):
    input_size = (4,)

    def __init__(self):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


Hostile.__name__ = "[b]=N|\x1b[2J\n"
"""


@dataclass
class Done:
    """What one run of the command line left."""

    status: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: object) -> Done: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder that holds nets.py, and return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")

    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code is None or isinstance(caught.value.code, int)
        return Done(caught.value.code or 0, captured.out, captured.err)

    return run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# ---- what a person gets


def test_articles_alexnet_under_torchstat(run: Run) -> None:
    done = run("stat", "article_alexnet", "--classes", 10, "--input", "3x224x224", "--convention", "torchstat")
    assert (done.status, done.err) == (0, "")
    assert re.search(
        r"^features\.0 .* 23,296 +0\.74 +140,553,600 +70,470,400 +695,296 +774,400", done.out, re.MULTILINE
    )
    assert done.out.splitlines()[-6] == "Total params: 57,044,810"
    assert done.out.endswith("\nTotal MAdd: 1.42GMAdd\nTotal Flops: 711.49MFlops\nTotal MemR+W: 226.38MB\n")
    assert "233,080,104" in done.out and "4,298,792" in done.out, "the true sums of reads and writes"


def test_articles_alexnet_as_csv_equals_the_reference(run: Run) -> None:
    arguments = ("--classes", 10, "--input", "3x224x224", "--convention", "torchstat", "--format", "csv")
    done = run("stat", "article_alexnet", *arguments)
    reference = Path(__file__).parent / "reference" / "seed_alexnet_10.csv"
    assert done.out.splitlines() == reference.read_text().splitlines()
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("article_alexnet", "61.1 M", "714.2 M"),
        ("article_vgg16", "138.4 M", "15.47 G"),
        ("article_basicblock", "73.98 K", "231.2 M"),  # 2 (64 64 9 + 64) + 2 2 64; 2 3 3 64 64 56 56
    ],
)
def test_networks_know_their_input_size(run: Run, name: str, params: str, macs: str) -> None:
    done = run("stat", name)
    (total,) = re.findall(r"^total .*$", done.out, re.MULTILINE)
    assert done.status == 0 and re.search(rf"^total +\d* +{params} +{macs} ", total), total
    assert "convention full, eval mode, batch 1" in done.out.splitlines()[0]


def test_file_to_json_and_the_ledger_as_a_source(run: Run, tmp_path: Path) -> None:
    arguments = ("nets.py:Net", "--arg", "width=6", "--input", 4, "--batch", 3)
    done = run("stat", *arguments, "--format", "json", "--output", "net.json")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert Ledger.load("net.json").totals()["macs"] == 3 * (4 * 6 + 6 * 2)
    assert sorted(os.listdir(tmp_path)) == ["net.json", "nets.py"], "no __pycache__ beside the user's file"
    for convention in ("torchstat", "full"):
        for form in ("text", "csv", "markdown", "json"):
            for by in ("layer", "operation", "module"):
                view = ("--convention", convention, "--format", form, "--by", by)
                direct, saved = run("stat", *arguments, *view), run("stat", "net.json", *view)
                assert saved == direct and saved.status == 0, view


def test_packed_ledger_as_a_source(run: Run, tmp_path: Path) -> None:
    for name in ("net.json", "net.json.gz"):
        assert run("stat", "nets.py:Net", "--format", "json", "--output", name).status == 0
    packed, plain = Path("net.json.gz").read_bytes(), Path("net.json").read_bytes()
    assert gzip.decompress(packed) == plain
    for command in (["stat"], ["memory"], ["check", "--baseline", "net.json.gz"]):
        of_packed, of_plain = run(*command, "net.json.gz"), run(*command, "net.json")
        assert of_packed == of_plain and of_packed.status == 0, command
    first, second = csv.DictReader(io.StringIO(run("compare", "net.json", "net.json.gz", "--format", "csv").out))
    assert first.pop("model") == "net.json" and second.pop("model") == "net.json.gz" and first == second
    assert run("trace", "net.json.gz", "-o", "trace.json.gz").status == 0
    assert json.loads(gzip.decompress(Path("trace.json.gz").read_bytes()))["traceEvents"]
    Path("net.json.gz").write_bytes(packed[:50])
    failed = run("stat", "net.json.gz")
    assert failed.status == 2 and "'net.json.gz' is a gzip file that is cut off; save it again" in failed.err
    assert "no ledger 'missing.json.gz'" in run("stat", "missing.json.gz").err


def test_json_is_the_ledger_and_the_table(run: Run) -> None:
    done = run("stat", "nets.py:Net", "--format", "json", "--by", "module", "--convention", "torchstat")
    data = json.loads(done.out)
    ledger = Ledger.from_json(data)
    assert data["table"] == json.loads(json.dumps(ledger.by_module(1, "torchstat").to_json()))
    assert data["table"]["convention"] == "torchstat"
    assert ledger.totals()["params"] == 4 * 4 + 4 + 2 * 4 + 4 * 2 + 2


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--by", "layer"], ["first", "inner.0", "inner.1", "", "last"]),
        (["--by", "module"], ["first", "inner", "", "last"]),
        (["--by", "module", "--depth", "0"], [""]),
        (["--by", "module", "--depth", "1"], ["first", "inner", "", "last"]),
        (["--by", "module", "--depth", "2"], ["first", "inner.0", "inner.1", "", "last"]),
    ],
    ids=" ".join,
)
def test_by_and_depth(run: Run, arguments: list[str], modules: list[str]) -> None:
    done = run("stat", "nets.py:Net", "--format", "csv", *arguments)
    assert [row["module"] for row in rows_of(done.out)] == modules
    assert sum(int(row["macs"]) for row in rows_of(done.out)) == 4 * 4 + 4 * 2


def test_by_operation(run: Run) -> None:
    done = run("stat", "nets.py:Net", "--format", "csv", "--by", "operation")
    assert [row["operation"] for row in rows_of(done.out)][:3] == ["addmm", "batch_norm", "relu"]


def test_options_of_the_run(run: Run) -> None:
    plain = rows_of(run("stat", "nets.py:Net", "--format", "csv").out)
    half = rows_of(run("stat", "nets.py:Net", "--format", "csv", "--model-dtype", "bfloat16").out)
    assert [2 * int(row["bytes_read"]) for row in half] == [int(row["bytes_read"]) for row in plain]
    mixed = run("stat", "nets.py:Net", "--autocast", "bf16").out
    assert "eval mode, autocast cpu:bfloat16, batch 1" in mixed.splitlines()[0]
    cuda = run("stat", "nets.py:Net", "--training", "--autocast", "cuda:fp16", "--format", "json").out
    assert json.loads(cuda)["autocast"] == "cuda:float16"
    unbiased = rows_of(run("stat", "nets.py:Net", "--format", "csv", "--arg", "bias=False").out)
    assert int(plain[0]["params"]) - int(unbiased[0]["params"]) == 4
    train = run("stat", "nets.py:Net", "--mode", "train", "--batch", 5, "--format", "csv")
    assert [row["flops"] for row in rows_of(train.out) if row["module"] == "inner.1"] == ["40"]  # dropout: 2 an element
    text = run("stat", "nets.py:Net", "--mode", "train", "--batch", 5).out
    assert "train mode, batch 5" in text.splitlines()[0]


@pytest.mark.parametrize(
    "inputs",
    [
        ["--input", "4", "--input", "4:int64"],
        ["--input", "x=4", "--input", "ids=4:int64"],
        ["--input", "4", "--input", "ids=4:int64"],
        ["--input", "4:float32", "--input", "4:int32"],
    ],
    ids=" ".join,
)
def test_several_inputs(run: Run, inputs: list[str]) -> None:
    done = run("stat", "nets.py:Two", *inputs, "--format", "csv")
    assert (done.status, done.err) == (0, "")
    # x is 1 x 4, ids are 1 x 4 and look up 1 x 4 x 4.
    assert rows_of(done.out)[-1]["input_shape"] == "1x4, 1x4x4"


def test_module_of_a_package(run: Run) -> None:
    arguments = ("torch.nn:Linear", "--arg", "in_features=3", "--arg", "out_features=2", "--input", "7x3")
    done = run("stat", *arguments, "--format", "csv")
    assert rows_of(done.out)[0]["macs"] == str(7 * 3 * 2)


def test_markdown(run: Run) -> None:
    done = run("stat", "nets.py:Net", "--format", "markdown")
    assert done.out.startswith("### Net, by layer, convention full") and "| **total** |" in done.out


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"torchledger {torchledger.__version__}\n"
    for arguments in ((), ("--help",), ("-h",)):
        done = run(*arguments)
        assert (done.status, done.err) == (0, "") and "stat" in done.out
    done = run("stat", "--help")
    options = ("--classes", "--arg", "--input", "--batch", "--mode", "--convention", "--by", "--depth", "--format")
    for option in (*options, "--output", "--width", "--measure", "--strict", "--debug"):
        assert option in done.out, option
    words = done.out.replace(",", " ").replace(".", " ").split()
    assert set(words) >= set(CONVENTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_each_commands_help_runs(run: Run, command: str) -> None:
    (example,) = re.findall(r"\n  Example: torchledger (.*?)\n\n", run(command, "--help").out, re.DOTALL)
    assert example.split()[0] == command
    if command == "report":
        for name in ("plotly", "itables"):
            pytest.importorskip(name)
    done = run(*example.split())
    assert done.status == 0, done.err
    assert done.out.count("\n") > 3 or Path(example.split()[-1]).stat().st_size > 1000


def test_help_fits_a_terminal_and_names_every_command_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = run("--help").out
    assert "..." not in said.split("Commands:")[1]
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", said, re.MULTILINE), command
        assert max(map(len, run(command, "--help").out.splitlines())) <= 80


def test_console_script_calls_main() -> None:
    (script,) = entry_points(group="console_scripts", name="torchledger")
    assert script.load() is main


# ---- errors: one line, exit status 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "article_alexnt",
            r"unknown model 'article_alexnt'\. Did you mean 'article_alexnet'.*\.py:Net",
        ),
        (
            "resnet",
            r"unknown model 'resnet'\. Did you mean 'resnet.*Choices: a network of .*saved ledger such as net\.json",
        ),
        ("", "unknown model ''"),
        ("nets.py:Nett", r"no 'Nett' in nets\.py\. Did you mean 'Net'.* It defines .*Net.*Needy"),
        ("nets.py:", r"'nets\.py:' names nothing .*write nets\.py:Net \(it defines Net, "),
        ("nets.py", r"'nets\.py' does not say what to build: write nets\.py:Net"),
        ("net.py:Net", r"no file 'net\.py'.* Did you mean 'nets\.py'\?"),
        ("no/nets.py:Net", "there is no folder 'no'"),
        ("no_such_package.nets:Net", "no module 'no_such_package'.* install it"),
        ("torch.nn:Linea", r"no 'Linea' in module 'torch\.nn'\. Did you mean 'Linear'"),
        ("nets.py:NAMES", r"'nets\.py:NAMES' is a value of type list, not an nn\.Module"),
        (
            "nets.py:Needy",
            r"'nets\.py:Needy' needs the arguments width, depth: say --arg width=VALUE --arg depth=VALUE",
        ),
        ("nets.py:Net --arg wdth=3", r"takes no argument 'wdth': it accepts width, bias\. Did you mean 'width'\?"),
        ("nets.py:Net --arg width", r"argument 'width' is not of the form NAME=VALUE, such as num_classes=10"),
        ("nets.py:Net --arg width=1 --arg width=2", "'width' is given twice"),
        ("nets.py:Net --arg width=-3", r"building Net\(width=-3\) failed: RuntimeError: .*-3"),
        ("nets.py:Net --arg bias=false", "write bias=False"),
        ("nets.py:Net --classes 3", "takes no argument 'num_classes': it accepts width, bias"),
        ("article_vgg16 --classes 0", "'--classes'.*greater than or equal to 1"),
        ("article_vgg16 --classes 3 --arg num_classes=4", "--classes and --arg num_classes say the same: give one"),
        ("nets.py:Net --input 3x", "--input '3x' is no size: write whole numbers from 1 with x .* such as 3x224x224"),
        ("nets.py:Net --input 3,4", "--input '3,4' is no size"),
        ("nets.py:Net --input 3.5", "--input '3.5' is no size"),
        ("nets.py:Net --input 0x4", "--input '0x4' is no size: write whole numbers from 1"),
        ("nets.py:Net --input=-3x4", "--input '-3x4' is no size: write whole numbers from 1"),
        ("nets.py:Net --input 4:", "--input '4:' is no size"),
        ("nets.py:Net --input 2x=4", "'2x' is no name of an argument"),
        ("nets.py:Net --input x=4 --input x=4", "'x' was given before; give each input once"),
        ("nets.py:Net --input 4:int99", "'int99', which is no dtype; write float32.* Did you mean"),
        ("nets.py:Net --model-dtype bfloat", "'bfloat', which is no dtype; .* Did you mean .*'bfloat16'"),
        ("nets.py:Net --model-dtype int64", "int64, expected a floating-point dtype such as bfloat16"),
        ("nets.py:Net --autocast float64", "autocast is 'float64'; autocast goes down to bfloat16 or float16"),
        (
            "nets.py:Net --autocast xpu:bf16",
            "for the device 'xpu'; it is modelled as on a CPU or on CUDA: write cpu:bf16",
        ),
        ("nets.py:Net --autocast bf61", "autocast is 'bf61', which is no dtype"),
        ("nets.py:Net --measure --autocast bf16", "leave measure or autocast out"),
        ("net.json --autocast bf16", r"'net\.json' is a saved ledger, .*: --autocast cannot change it"),
        ("nets.py:Sizeless", "does not say the size of its input: add --input, such as --input 3x224x224"),
        ("nets.py:Net --batch 0", "batch is 0, expected a whole number from 1"),
        ("nets.py:Net --batch -2", "batch is -2, expected a whole number from 1"),
        ("nets.py:Net --batch two", "'--batch'.*(two|integer).*--help"),
        (
            "nets.py:Net --convention torchstats",
            "unknown convention 'torchstats'.* full, torchstat.* Did you mean 'torchstat'",
        ),
        ("nets.py:Net --by layers", "'--by'.*'layers' is not one of 'layer', 'operation', 'module'"),
        ("nets.py:Net --mode training", "'--mode'.*'training' is not one of 'eval', 'train', 'as_is'"),
        ("nets.py:Net --format yaml", "'--format'.*'yaml' is not one of 'text', 'csv', 'json', 'markdown'"),
        ("nets.py:Net --depth 2", "--depth 2 goes with --by module, and the rows are by layer"),
        ("nets.py:Net --by module --depth -1", "'--depth'.*greater than or equal to 0"),
        ("nets.py:Net --width 0", "'--width'.*greater than or equal to 1"),
        ("nets.py:Net --output no/net.json", "cannot write 'no/net.json': there is no folder '.*/no'; make it first"),
        ("nets.py:Net --output .", r"cannot write '\.': it is a folder; name a file in it"),
        ("nets.py:Net --measure --model-dtype bfloat16", "leave model_dtype out"),
        ("nets.py:Net --bogus", "No such option: --bogus .*--help"),
        ("nets.py:Net other", "[Uu]nexpected extra argument.*other"),
        ("missing.json", r"no ledger 'missing\.json'.* Did you mean"),
        ("other.json", r"'other\.json' is no torchledger ledger .*; write one with --format json or Ledger\.save"),
        ("cut.json", r"'cut\.json' is not whole JSON \(line 1, column \d+: .*\); save the ledger again"),
        ("empty.json", r"'empty\.json' is not whole JSON"),
        ("binary.json", r"'binary\.json' is no ledger: it is not text"),
        ("newer.json", r"'newer\.json' has schema 4, this torchledger reads up to 3; upgrade torchledger to read it"),
        ("damaged.json", r"'damaged\.json' is damaged: an entry refers to call 99 of"),
        ("net.json --batch 2 --input 4", r"'net\.json' is a saved ledger, a run that is over: --input, --batch cannot"),
        ("net.json --measure", r"'net\.json' is a saved ledger, a run that is over: --measure cannot change it"),
        ("net.json --mode train --classes 3", "--classes, --mode cannot change it"),
    ],
    ids=lambda text: text[:60],
)
def test_what_the_user_got_wrong_is_one_line(run: Run, arguments: str, said: str) -> None:
    source = arguments.split(" ")[0]
    if source.endswith(".json"):
        torchledger.analyze(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,)).save("net.json")
        whole = Path("net.json").read_bytes()
        contents = {
            "other.json": b'{"a": 1}',
            "cut.json": whole[: len(whole) // 2],
            "empty.json": b"",
            "binary.json": b"\x89PNG\xff",
            "newer.json": whole.replace(b'"schema":3', b'"schema":4'),
            "damaged.json": whole.replace(b'"call":[1', b'"call":[99'),
        }
        for name, content in contents.items():
            Path(name).write_bytes(content)
    done = run("stat", *arguments.split(" "))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("torchledger: ") and done.err.endswith("\n") and done.err.count("\n") == 1, done.err
    assert re.search(said, done.err), done.err
    assert "Traceback" not in done.err


def test_command_that_is_none(run: Run) -> None:
    for arguments, said in ((("start",), "No such command 'start'"), (("stat",), "Missing argument 'SOURCE'")):
        done = run(*arguments)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith(f"torchledger: {said}")


def test_debug_adds_the_traceback(run: Run) -> None:
    plain, debug = run("stat", "nets.py:Failing"), run("stat", "nets.py:Failing", "--debug")
    assert "Traceback" not in plain.err and "Traceback (most recent call last)" in debug.err
    assert debug.status == plain.status == 2
    assert debug.err.splitlines()[-1] == plain.err.strip()
    assert 'nets.py", line' in debug.err, "the line of the model that raised"


# ---- a forward that fails


def test_failing_forward_gives_the_table_so_far_and_one_line(run: Run) -> None:
    done = run("stat", "nets.py:Failing")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("torchledger: last: Linear expects 5 features, got 4 ")
    assert re.search(r"^first +Linear ", done.out, re.MULTILINE)
    assert "\nincomplete: last: Linear expects 5 features, got 4 " in done.out
    # 4 x 4 macs ran, and the ReLU before the layer that fails.
    assert re.search(r"^\(root\) +relu ", done.out, re.MULTILINE)
    assert re.search(r"^total +\d+ +16 ", done.out, re.MULTILINE)


def test_articles_alexnet_at_another_size_says_what_would_fit(run: Run) -> None:
    done = run("stat", "article_alexnet", "--input", "3x192x192")
    # 192 -> 47 -> 23 -> 11 -> 5: 256 x 5 x 5 = 6400 where the article's view asks for 9216.
    assert done.status == 2 and done.err.count("\n") == 1
    assert "view(1, 9216)" in done.err and "6400 would fit" in done.err
    assert re.search(r"^features\.12 ", done.out, re.MULTILINE)


def test_exception_of_the_model_is_one_line_with_its_place(run: Run) -> None:
    done = run("stat", "nets.py:Raising")
    assert done.status == 2 and done.err.count("\n") == 1
    assert re.search(
        r"^torchledger: \(root\): RuntimeError: line one line \\x1b\[31mtwo .*nets\.py, line \d+\)", done.err
    )
    assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize("form", ["csv", "json", "text"])
@pytest.mark.parametrize(
    "arguments",
    ["nets.py:Failing", "nets.py:Raising", "nets.py:Net --input 0", "nets.py:Nett", "nets.py:Net --batch 0"],
)
def test_output_keeps_its_old_file_when_the_run_fails(run: Run, tmp_path: Path, arguments: str, form: str) -> None:
    (tmp_path / "kept.out").write_text("old")
    done = run("stat", *arguments.split(), "--format", form, "--output", "kept.out")
    assert done.status == 2
    assert (tmp_path / "kept.out").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["kept.out", "nets.py"]
    if arguments == "nets.py:Failing":  # the table so far is shown all the same
        assert done.out.startswith("Failing, by layer") and "\nincomplete: last: Linear expects" in done.out


def test_output_replaces_a_file_and_is_checked_before_anything_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "kept.out").write_text("old")
    done = run("stat", "nets.py:Net", "--format", "csv", "--output", "kept.out")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert (tmp_path / "kept.out").read_text() == run("stat", "nets.py:Net", "--format", "csv").out
    done = run("stat", "nets.py:Printing", "--output", "no/kept.out")
    assert done.status == 2 and "constructor" not in done.err


def test_output_to_stdout(run: Run, tmp_path: Path) -> None:
    assert run("stat", "nets.py:Net", "--output", "-").out == run("stat", "nets.py:Net").out
    assert os.listdir(tmp_path) == ["nets.py"]


# ---- unknown operations


def test_strict(run: Run) -> None:
    for form in ("text", "csv", "json", "markdown"):
        plain = run("stat", "nets.py:Singular", "--format", form)
        strict = run("stat", "nets.py:Singular", "--format", form, "--strict")
        assert (plain.status, strict.status) == (0, 3)
        assert strict.out == plain.out, "the table is printed either way"
        assert strict.err.splitlines()[-1] == "torchledger: --strict: no rule for clitest::_values (1)"
        everything = plain.out + plain.err
        assert "unknown: clitest::_values (1)" in everything.replace("\\_", "_"), form
    known = run("stat", "nets.py:Net", "--strict")
    assert (known.status, known.err) == (0, "")


def test_strict_on_a_saved_ledger_and_under_torchstat(run: Run) -> None:
    run("stat", "nets.py:Singular", "--format", "json", "--output", "net.json")
    assert run("stat", "net.json", "--strict").status == 3
    assert run("stat", "net.json", "--strict", "--convention", "torchstat").status == 3
    assert run("stat", "net.json").status == 0


def test_failing_forward_comes_before_strict(run: Run, tmp_path: Path) -> None:
    text = (
        NETS
        + "\nclass Both(Singular):\n    def forward(self, x):\n        return self.first(super().forward(x)[:, :3])\n"
    )
    (tmp_path / "both.py").write_text(text)
    assert run("stat", "both.py:Both", "--strict").status == 2


# ---- what the model prints


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("form", ["csv", "json", "text", "markdown"])
def test_prints_of_the_model_go_to_stderr_once(run: Run, form: str, measured: bool) -> None:
    done = run("stat", "nets.py:Printing", "--format", form, *["--measure"] * measured)
    assert done.status == 0
    assert done.err == "constructor of Printing\nforward of Printing (1, 4)\n"
    assert "of Printing" not in done.out
    if form == "csv":
        table = list(csv.reader(io.StringIO(done.out)))
        assert len({len(row) for row in table}) == 1 and table[0][0] == "module" and len(table) == 6
    if form == "json":
        json.loads(done.out)


def test_prints_at_the_top_of_the_file_go_to_stderr_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('loud')\nimport sys\nsys.stdout.write('louder\\n')\n" + NETS)
    done = run("stat", "loud.py:Net", "--format", "csv")
    assert done.out == run("stat", "nets.py:Net", "--format", "csv").out
    assert done.err == "loud\nlouder\n"


def test_weights_are_made_for_a_measured_run_alone(run: Run) -> None:
    assert run("stat", "nets.py:Placed").err == "lies on meta\n"
    assert run("stat", "nets.py:Placed", "--measure").err == "lies on cpu\n"


# ---- measured seconds


@pytest.mark.parametrize("convention", ["full", "torchstat"])
def test_measure_adds_seconds_and_shares(run: Run, convention: str) -> None:
    arguments = ("stat", "nets.py:Net", "--format", "csv", "--convention", convention)
    plain, measured = run(*arguments), run(*arguments, "--measure")
    assert (measured.status, measured.err) == (0, "")
    head, *_ = measured.out.splitlines()
    added = [name for name in head.split(",") if name not in plain.out.splitlines()[0].split(",")]
    assert added == ["seconds_measured", "duration_percent"]
    rows = rows_of(measured.out)
    assert all(float(row["seconds_measured"]) >= 0 for row in rows)
    assert sum(float(row["duration_percent"]) for row in rows) == pytest.approx(100, abs=0.01)
    for old, new in zip(rows_of(plain.out), rows, strict=True):
        assert {name: new[name] for name in old} == old, "nothing else changes"


def test_nothing_is_measured_without_being_asked(run: Run) -> None:
    for convention in ("full", "torchstat"):
        done = run("stat", "nets.py:Net", "--convention", convention)
        assert "duration" not in done.out and "seconds" not in done.out
        assert done.out == run("stat", "nets.py:Net", "--convention", convention, "--no-measure").out
    measured = run("stat", "nets.py:Net", "--measure").out
    assert re.search(r" duration(\n|  )", measured) and "100.00%" in measured and "\nmeasured on " in measured


def test_measured_ledger_keeps_its_seconds(run: Run) -> None:
    run("stat", "nets.py:Net", "--measure", "--format", "json", "--output", "net.json")
    assert "duration_percent" in run("stat", "net.json", "--convention", "torchstat", "--format", "csv").out


# ---- names, widths, colors


def test_hostile_names_stay_data(run: Run, tmp_path: Path) -> None:
    text = run("stat", "nets.py:Hostile").out
    shown = ["=cmd()", "a|b", "[red]", r"\x1b[31mred", "é漢字", r"new\nline", "-1", "</script>", "`code`", "long" * 30]
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[3:13]] == shown
    assert lines[0].startswith(r"[b]=N|\x1b[2J\n, by layer")
    markdown = run("stat", "nets.py:Hostile", "--format", "markdown").out
    body = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(body) == 13 and len({len(re.findall(r"(?<!\\)\|", line)) for line in body}) == 1
    assert "<" not in markdown and "\x1b" not in text + markdown
    rows = rows_of(run("stat", "nets.py:Hostile", "--format", "csv").out)
    assert [row["module"] for row in rows][:6] == ["'=cmd()", "a|b", "[red]", r"\x1b[31mred", "é漢字", "new\nline"]
    assert rows[6]["module"] == "'-1" and len(rows) == 10
    run("stat", "nets.py:Hostile", "--format", "json", "-o", "net.json")
    assert run("stat", "net.json").out == text


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("source", ["nets.py:Hostile", "nets.py:Singular", "article_alexnet", "nets.py:Failing"])
@pytest.mark.parametrize("view", [["--by", "layer"], ["--by", "operation"], ["--by", "module", "--depth", "2"]])
def test_no_line_is_wider_than_asked(run: Run, source: str, width: int, view: list[str]) -> None:
    for convention in ("full", "torchstat"):
        done = run("stat", source, "--width", width, "--convention", convention, *view)
        assert max(map(cell_len, done.out.splitlines())) <= width
        assert re.search(r"^total", done.out, re.MULTILINE)
        wide = run("stat", source, "--convention", convention, *view).out
        assert "not shown at this width" not in wide
        gave_way = "not shown at this width" in done.out or "…" in done.out
        assert gave_way == (cell_len(wide.splitlines()[2]) > width), "only where the table is too wide"


def test_columns_of_the_environment_are_the_width(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run("stat", "nets.py:Net", "--width", 60).out
    monkeypatch.setenv("COLUMNS", "60")
    assert run("stat", "nets.py:Net").out == asked
    assert run("stat", "nets.py:Net", "--width", 200).out != asked
    run("stat", "nets.py:Net", "--output", "net.txt")
    assert max(map(cell_len, Path("net.txt").read_text().splitlines())) > 60, "a file is no terminal"


def test_no_color_where_nobody_looks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for form in ("text", "csv", "json", "markdown"):
        done = run("stat", "nets.py:Net", "--format", form)
        assert "\x1b" not in done.out + done.err
    assert "\x1b" not in run("stat", "nets.py:Nett").err


# ---- true processes

SHELL = [sys.executable, "-c", "from torchledger.cli import main; main()"]


def test_models_lists_every_network_within_80_columns(run: Run) -> None:
    done = run("models")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    rows = [line.split()[0] for line in lines[2:] if line[0].isalpha()][: len(REGISTRY)]
    assert rows == list(REGISTRY)
    assert any(re.fullmatch(r"resnet50 +He 2016 +3x224x224 +25,557,032 +4\.089 +76\.13 \[1\]", line) for line in lines)
    assert "[1] torchvision, IMAGENET1K_V1, one central crop" in lines


def test_models_in_every_format(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("models", "--format", "csv").out)))
    networks = json.loads(run("models", "--format", "json").out)["networks"]
    assert [row["name"] for row in rows] == [network["name"] for network in networks] == list(REGISTRY)
    one = next(network for network in networks if network["name"] == "vgg16")
    assert (one["params"], one["macs"], one["input"], one["year"]) == (138_357_544, 15_470_264_320, "3x224x224", 2015)
    assert one["top1"] == 71.592 and one["top1_source"].startswith("torchvision") and "arXiv:1409.1556" in one["title"]
    assert (
        "| `vgg16` | Simonyan 2015 | 3x224x224 | 138,357,544 | 15.470 | 71.59 [1] |"
        in run("models", "--format", "markdown").out
    )
    assert run("models", "-o", "list.csv", "--format", "csv").out == ""
    assert Path("list.csv").read_text(encoding="utf-8").startswith("name,input,params,macs,")
    assert run("models", "-o", "no/such/list.csv").status == 2


@pytest.mark.parametrize("wrong", [["foo"], ["--width", "10"], ["--format", "xml"]])
def test_mistakes_with_models_point_at_models(wrong: list[str], run: Run) -> None:
    done = run("models", *wrong)
    assert done.status == 2 and done.err.endswith("(torchledger models --help lists the options)\n")


def test_models_reads_no_torch() -> None:
    code = "import sys; from torchledger.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "models"], check=True, capture_output=True, env=environment())


def test_weights_are_compared_or_loaded(run: Run) -> None:
    torch.manual_seed(0)
    torch.save(build("resnet20").state_dict(), "net.pth")
    plain = run("stat", "resnet20").out
    done = run("stat", "resnet20", "--weights", "net.pth")
    assert (done.status, done.out) == (0, plain)
    assert done.err.startswith("resnet20 is made for the weights of github.com/akamaster") and done.err.count("\n") == 1
    assert run("stat", "resnet20", "--weights", "net.pth", "--measure").status == 0
    done = run("stat", "resnet32", "--weights", "net.pth")
    assert done.status == 2 and "'net.pth' do not fit CifarResNet: " in done.err and done.err.count("\n") == 1
    done = run("stat", "resnet20", "--weights", "net.pt")
    assert done.err == "torchledger: weights 'net.pt' is no file. Did you mean 'net.pth' or 'nets.py'?\n"
    torch.save(nn.Linear(4, 2).state_dict(), "linear.pth")
    assert run("stat", "torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=2", "--input", "4",
               "--weights", "linear.pth").status == 0  # fmt: skip
    run("stat", "resnet20", "--format", "json", "-o", "net.json")
    assert "--weights cannot change it" in run("stat", "net.json", "--weights", "net.pth").err


def test_weights_that_rescale_their_input_say_so_in_the_ledger(run: Run) -> None:
    torch.save(build("googlenet", num_classes=2, init=False).state_dict(), "net.pth")
    out = run("stat", "googlenet", "--classes", "2", "--weights", "net.pth", "--format", "csv").out
    assert "mul" in out and "mul" not in run("stat", "googlenet", "--classes", "2", "--format", "csv").out


def test_a_network_that_refuses_its_input_says_so_in_one_line(run: Run) -> None:
    done = run("stat", "inception_v3", "--mode", "train")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("torchledger: InceptionV3 in train mode takes a batch of at least 2 images of this size")
    assert done.err.count("\n") == 1


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(torchledger.__file__).parent.parent)} | changes


def test_process_with_a_pipe(run: Run) -> None:
    """A stdout that knows no accents still gets every number, and no color code."""
    command = [*SHELL, "stat", "nets.py:Accented", "--format", "csv"]
    variables = environment(FORCE_COLOR="1", PYTHONIOENCODING="ascii", COLUMNS="40")
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("stat", "nets.py:Accented", "--format", "csv").out.replace("café", "caf?")
    assert "caf?," in done.stdout
    assert done.stderr == "constructor of Printing\nforward of Printing (1, 4)\n"


def test_process_whose_reader_has_gone(run: Run) -> None:
    run("stat", "nets.py:Net", "--format", "json", "--output", "net.json")
    code = "import sys; from torchledger.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "stat", "net.json", "--format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()  # as `| head` does when it has seen enough; torch is not loaded for a saved ledger
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 1


# ---- models of libraries, and exported programs


def totals(run: Run, *arguments: object) -> dict[str, int]:
    done = run("stat", *arguments, "--format", "json")
    assert done.status == 0, done.err
    return json.loads(done.out)["table"]["total"]


def test_models_of_libraries_know_their_inputs(run: Run) -> None:
    # as published: 4.089 GMACs of 25,557,032 parameters
    found = totals(run, "torchvision:resnet50")
    assert (found["params"], round(found["macs"] / 1e9, 3)) == (25_557_032, 4.089)
    assert totals(run, "torchvision:resnet50", "--batch", 2)["macs"] == 2 * found["macs"]
    assert totals(run, "timm:vit_tiny_patch16_224")["params"] == 5_717_416  # as timm publishes it
    # a layer of 4 matrices 768 x 768 and 2 of 768 x 3072, and its two products with 128 keys, for 128 tokens; a pooler
    bert = 128 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 128 * 768) + 768 * 768
    for batch in (1, 3):
        arguments = ("hf:bert", "--arg", "num_hidden_layers=1", "--batch", batch)
        assert totals(run, *arguments)["macs"] == batch * bert


def test_inputs_that_are_given_replace_the_sources_own(run: Run) -> None:
    head = 512 * 1000
    whole, small = (totals(run, "torchvision:resnet18", *more)["macs"] for more in ((), ("--input", "3x32x32")))
    assert whole - head == 49 * (small - head)  # a seventh of the side
    text = totals(run, "hf:bert", "--arg", "num_hidden_layers=1", "--input", "input_ids=4:int64")
    assert text["macs"] == 4 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 4 * 768) + 768 * 768


def test_exported_program(run: Run, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Sequential(nn.Linear(4, 3)), (torch.zeros(5, 4),)), tmp_path / "net.pt2")
    assert totals(run, "net.pt2")["macs"] == 5 * 4 * 3
    done = run("stat", "net.pt2", "--batch", 2)
    assert (done.status, done.out) == (2, "")
    assert "'net.pt2' was exported for inputs of [5] samples: --batch 2 needs an export with dynamic_shapes" in done.err


def test_batch_is_checked_before_inputs_are_made(run: Run) -> None:
    done = run("stat", "hf:bert", "--arg", "num_hidden_layers=1", "--batch", 0)
    assert (done.status, done.err) == (2, "torchledger: batch is 0, expected a whole number from 1\n")


# ---- where output goes


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no /dev/fd here")
def test_what_the_shell_has_opened_is_written_on_and_not_replaced(tmp_path: Path) -> None:
    Ledger.save(torchledger.analyze(nn.Linear(4, 3), (4,)), tmp_path / "net.json")
    command = f"{sys.executable} -c 'from torchledger.cli import main; main()' stat net.json --format csv -o"
    (tmp_path / "kept").write_text("before\n")
    script = f"""
        {command} /dev/stdout >> kept; echo after >> kept
        ({command} /dev/fd/1; echo after) > whole
        {command} /dev/stdout | tail -n 1 > piped
        {command} >(cat > substituted); wait $!; sleep 1
    """
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    kept, whole, piped, substituted = (
        (tmp_path / name).read_text().splitlines() for name in ("kept", "whole", "piped", "substituted")
    )
    assert kept[0] == "before" and kept[1].startswith("module,") and kept[-1] == "after"
    assert whole[0].startswith("module,") and whole[-1] == "after"
    assert piped == [kept[-2]] and substituted == kept[1:-1]
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "whole", "piped", "substituted", "net.json"}


def test_paths_that_lead_nowhere(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in (("", "cannot write '': name a file"), ("loop", "link to itself"), ("/dev/fd/777", "Bad file")):
        done = run("stat", "nets.py:Net", "-o", path)
        assert done.status == 2 and said in done.err and done.err.count("\n") == 1
    assert (tmp_path / "loop").is_symlink()


def test_a_missing_value_names_the_command_that_misses_it(run: Run) -> None:
    assert run("report", "alexnet", "-o").err.endswith("(torchledger report --help lists the options)\n")


def test_a_path_cannot_move_the_cursor(run: Run) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("itables")
    assert run("report", "nets.py:Net", "-o", "\x1b[31m\n.html").err.splitlines()[-1] == "Written: \\x1b[31m\\n.html"
