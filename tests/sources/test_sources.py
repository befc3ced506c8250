"""What a text names, how it is built, and the one line that says what is wrong."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torchledger import analyze
from torchledger.errors import UserError
from torchledger.sources import Built, Example, Source, build, parse_arguments, resolve

NETS = '''
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Settings:
    width: "int" = 4


class Net(nn.Module):
    input_size = (3, 8, 8)

    def __init__(self, num_classes=10, *, bias=True):
        super().__init__()
        print("building Net")
        self.layer = nn.Linear(Settings().width, num_classes, bias=bias)


class Needy(nn.Module):
    def __init__(self, width, depth, activation="relu"):
        super().__init__()


class Values(nn.Module):
    """Needs values, so that it cannot be built on meta."""

    def __init__(self):
        super().__init__()
        self.rates = torch.linspace(0, 1, 3).tolist()
        self.layer = nn.Linear(2, 2)


class Strides(nn.Module):
    """Keeps whole numbers in buffers, and goes by them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("stride", torch.tensor(2))
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int64, device=None))
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("table", torch.tensor([1, 2]))
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x[:: self.stride.item()])


class Failing(nn.Module):
    def __init__(self, groups=3):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, groups=groups)


class Outer:
    class Inner(nn.Module):
        pass


def make_net(width=3):
    return nn.Linear(width, 1)


def make_number():
    return 7


def _hidden():
    pass


ready = nn.Linear(5, 6)
number = 7
print("running nets.py")
'''


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def size(built: Built) -> tuple[int, ...] | None:
    """Return the size of one sample that a source with one input says."""
    if built.example is None:
        return None
    example = built.example(1, torch.float32)
    assert len(example.args) == 1 and example == Example(example.args)
    return example.args[0]


def fails(text: str, match: str, arguments: dict[str, object] | None = None) -> UserError:
    """Resolve and build `text`, which must fail with one line that matches."""
    with pytest.raises(UserError, match=match) as caught:
        build(resolve(text), arguments or {}, device="meta")
    assert "\n" not in str(caught.value)
    return caught.value


# ---- resolve


def test_resolve_zoo_and_module() -> None:
    assert resolve("article_vgg16") == Source("article_vgg16", "zoo")
    module = resolve("torchvision.models:resnet50")
    assert module == Source(module.name, "module", module="torchvision.models", attribute="resnet50")


@pytest.mark.parametrize("folder", ["plain", "with space", "C:colon", "a.b", "nets.py:Net"])
def test_resolve_paths(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "my nets.py"
    path.write_text(NETS)
    assert resolve(f"{path}:Net") == Source(f"{path}:Net", "file", path=path, attribute="Net")
    ledger = tmp_path / folder / "net.json"
    ledger.write_text("{}")
    assert resolve(str(ledger)) == Source(str(ledger), "ledger", path=ledger)
    assert type(build(resolve(f"{path}:Net")).model).__name__ == "Net"


def test_resolve_relative_path(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets.parent)
    assert resolve("nets.py:Net").path == Path("nets.py")
    assert resolve("./nets.py:Net").kind == "file"
    assert isinstance(build(resolve("nets.py:Net"), {}, device="meta").model, nn.Module)


def test_resolve_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "boom.py"
    path.write_text("raise RuntimeError('ran')\nclass Net: pass\n")
    resolve(f"{path}:Net")
    fails(str(path), r"boom\.py:Net \(it defines Net\)")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("article_alexnt", "unknown model 'article_alexnt'. Did you mean 'article_alexnet'"),
        ("zzz", "Choices: a network of `torchledger models`, path/to/file.py:Net, package.module:callable, .*net.json"),
        ("", "unknown model ''"),
        ("torchvision.models.resnet50", "Did you mean 'torchvision.models:resnet50'"),
        ("two words:Net", "unknown model 'two words:Net'"),
        ("module:", "unknown model 'module:'"),
        ("no/such/folder/net.py:Net", "no file 'no/such/folder/net.py': there is no folder 'no/such/folder'"),
        ("no/such/net.json", "no ledger 'no/such/net.json'"),
    ],
)
def test_unknown_names(text: str, match: str) -> None:
    fails(text, match)


def test_missing_file_gives_close_matches(nets: Path) -> None:
    fails(f"{nets.parent}/netz.py:Net", r"no file '.*netz\.py'\. Did you mean 'nets\.py'")
    fails(f"{nets.parent}/netz.py", r"no file '.*netz\.py'\. Did you mean 'nets\.py'")
    (nets.parent / "folder.py").mkdir()
    fails(f"{nets.parent}/folder.py:Net", r"folder\.py' is a folder")


def test_file_without_attribute_names_the_candidates(nets: Path) -> None:
    candidates = r"it defines Settings, Net, Needy, Values, Strides, Failing, Outer, make_net, make_number\)"
    fails(str(nets), candidates)
    fails(f"{nets}:", candidates)
    empty = nets.parent / "empty.py"
    empty.write_text("x = 1\n")
    fails(str(empty), "it defines no class or function")


# ---- build


def test_build_on_meta_and_for_real(nets: Path) -> None:
    source = resolve(f"{nets}:Net")
    built = build(source, {"num_classes": 7}, device="meta")
    layer = built.model.get_submodule("layer")
    assert built.on_meta
    assert built.model.get_parameter("layer.weight").is_meta
    assert layer.out_features == 7
    assert size(built) == (3, 8, 8)
    built = build(source, {"bias": False})
    assert not built.on_meta
    assert built.model.get_parameter("layer.weight").device.type == "cpu"
    assert list(built.model.state_dict()) == ["layer.weight"]


def test_build_zoo() -> None:
    built = build(resolve("article_alexnet"), {"num_classes": 10}, device="meta")
    assert built.on_meta
    assert size(built) == (3, 224, 224)
    # 57,044,810: tests/models/test_article.py has the arithmetic
    assert sum(parameter.numel() for parameter in built.model.parameters()) == 57_044_810
    assert size(build(resolve("article_inception"), {"in_channels": 64}, device="meta")) == (64, 224, 224)


def test_build_factory_instance_nested_and_module(nets: Path) -> None:
    assert build(resolve(f"{nets}:make_net"), {"width": 9}, device="meta").model.in_features == 9
    ready = build(resolve(f"{nets}:ready"), {}, device="meta")
    assert ready.model.in_features == 5
    assert not ready.on_meta
    assert size(ready) is None
    assert type(build(resolve(f"{nets}:Outer.Inner")).model).__name__ == "Inner"
    linear = build(resolve("torch.nn:Linear"), {"in_features": 2, "out_features": 3}, device="meta")
    assert linear.model.get_parameter("weight").shape == (3, 2)


def test_a_whole_number_in_a_buffer_keeps_its_value_on_meta(nets: Path) -> None:
    built = build(resolve(f"{nets}:Strides"), {}, device="meta")
    devices = {name: tensor.device.type for name, tensor in built.model.state_dict().items()}
    assert built.on_meta
    assert devices.pop("stride") == "cpu" and set(devices.values()) == {"meta"}
    # 3 of 5 rows, each 4 x 3
    assert analyze(built.model, torch.empty(5, 4), execute=False).totals()["macs"] == 3 * 4 * 3


def test_constructor_that_needs_values_falls_back_to_a_real_build(nets: Path) -> None:
    built = build(resolve(f"{nets}:Values"), {}, device="meta")
    assert not built.on_meta
    assert built.model.rates == [0.0, 0.5, 1.0]
    assert built.model.get_parameter("layer.weight").device.type == "cpu"


def test_prints_go_to_stderr(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(resolve(f"{nets}:Net"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "running nets.py\nbuilding Net\n"


def test_model_of_a_file_pickles(nets: Path) -> None:
    model = build(resolve(f"{nets}:Net")).model
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


def test_neighbours_of_each_file_are_its_own_and_nothing_is_left(tmp_path: Path) -> None:
    before = list(sys.path)
    widths = []
    for width in (3, 4, 3):
        folder = tmp_path / f"version{width}"
        folder.mkdir(exist_ok=True)
        (folder / "layers_beside.py").write_text(f"WIDTH = {width}\n")
        (folder / "net.py").write_text(
            "from torch import nn\nfrom layers_beside import WIDTH\ndef net(): return nn.Linear(WIDTH, 1)\n"
        )
        widths.append(build(resolve(f"{folder}/net.py:net")).model.in_features)
        assert not any(folder.glob("__pycache__/net.*"))
    assert widths == [3, 4, 3]
    assert sys.path == before


def test_module_beside_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_in_cwd.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert size(build(resolve("nets_in_cwd:Net"), {}, device="meta")) == (3, 8, 8)
    assert sys.path == before


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("(3, 8, 8)", (3, 8, 8)),
        ("[16]", (16,)),
        ("10", None),
        ("(3, 0, 8)", None),
        ("(3, True)", None),
        ("(3, 8.0)", None),
        ("()", None),
        ("None", None),
        ("property(lambda self: 1 / 0)", None),
    ],
)
def test_declared_input_size(tmp_path: Path, declared: str, expected: tuple[int, ...] | None) -> None:
    (tmp_path / "n.py").write_text(f"from torch import nn\nclass Net(nn.Module):\n    input_size = {declared}\n")
    assert size(build(resolve(f"{tmp_path}/n.py:Net"))) == expected


# ---- what can be wrong


@pytest.mark.parametrize(
    ("attribute", "arguments", "match"),
    [
        (
            "Nett",
            {},
            r"no 'Nett' in .*nets\.py\. Did you mean 'Net'.* It defines Net, Needy, Values, Strides, Failing, ready",
        ),
        ("Needy", {}, r"needs the arguments width, depth: say --arg width=VALUE --arg depth=VALUE"),
        ("Needy", {"depth": 1}, r"needs the argument width: say --arg width=VALUE$"),
        (
            "Net",
            {"num_class": 1},
            r"no argument 'num_class': it accepts num_classes, bias\. Did you mean 'num_classes'",
        ),
        ("make_number", {}, r"returned a int, not an nn\.Module"),
        ("make_number", {"a": 1}, r"takes no argument 'a': it accepts none"),
        ("number", {}, r"is a value of type int, not an nn\.Module"),
        ("Settings", {}, r"is a class Settings, not an nn\.Module"),
        ("ready", {"a": 1}, r"already built: it takes no arguments \(a\)"),
        ("Failing", {}, r"building Failing\(\) failed: ValueError: in_channels must be .*\(.*nets\.py, line 54\)$"),
        ("Net", {"num_classes": "x"}, r"building Net\(num_classes='x'\) failed: TypeError: .*nets\.py, line 19\)$"),
    ],
)
def test_wrong_attribute_or_argument(nets: Path, attribute: str, arguments: dict[str, object], match: str) -> None:
    fails(f"{nets}:{attribute}", match, arguments)


@pytest.mark.parametrize(
    ("text", "match", "cause"),
    [
        ("x = 1\ndef broken(:\n", r"running .*bad\.py, line 2 failed: SyntaxError", SyntaxError),
        ("\n\nimport no_such_package\n", r"bad\.py, line 3 failed: ModuleNotFoundError: .*no_such", ImportError),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", r"bad\.py, line 2 failed: ValueError: a b$", ValueError),
        ("import sys\nsys.exit(2)\n", r"bad\.py, line 2 failed: SystemExit: 2", SystemExit),
        ("from .x import y\n", r"line 1 failed: ImportError: .*is named as package\.module:Net", ImportError),
        ("raise KeyError\n", r"line 1 failed: KeyError$", KeyError),
    ],
)
def test_file_that_cannot_run(tmp_path: Path, text: str, match: str, cause: type[BaseException]) -> None:
    (tmp_path / "bad.py").write_text(text)
    before = {name for name in sys.modules if name.startswith("torchledger_source_")}
    error = fails(f"{tmp_path}/bad.py:Net", match)
    assert isinstance(error.__cause__, cause)
    assert {name for name in sys.modules if name.startswith("torchledger_source_")} == before


def test_file_that_defines_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("from torch import nn\n")
    fails(f"{tmp_path}/empty.py:Net", "no 'Net' in .*empty.py. It defines no model, class or function")


def test_module_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = fails("no_such_package.nets:Net", "no module 'no_such_package' for .*path/to/file.py:Net")
    assert isinstance(error.__cause__, ModuleNotFoundError)
    fails("torch.nn:Linaer", r"no 'Linaer' in module 'torch\.nn'\. Did you mean 'Linear'.* and \d+ more\.$")
    (tmp_path / "broken_in_cwd.py").write_text("\nimport no_such_package\n")
    monkeypatch.chdir(tmp_path)
    fails("broken_in_cwd:Net", r"importing 'broken_in_cwd' failed: .*no_such_package.*broken_in_cwd\.py, line 2\)$")


def test_user_error_of_a_constructor_comes_through_as_it_is() -> None:
    match = r"^BasicBlock\(64, 64, stride=2\) needs a downsample"
    fails("article_basicblock", match, {"stride": 2})
    with pytest.raises(UserError, match=match):
        build(resolve("article_basicblock"), {"stride": 2})


def test_ledger_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text("{}")
    fails(str(tmp_path / "net.json"), "is a saved ledger, not a model")


def test_built_is_read_only() -> None:
    with pytest.raises(AttributeError):
        Built(nn.Identity(), False, None).on_meta = True  # type: ignore[misc]


def test_interrupt_is_not_swallowed(tmp_path: Path) -> None:
    (tmp_path / "n.py").write_text("def net(): raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        build(resolve(f"{tmp_path}/n.py:net"), {}, device="meta")
    assert torch.empty(0).device.type == "cpu"


# ---- arguments


def test_parse_arguments() -> None:
    pairs = [
        "num_classes=10",
        "rate=0.5",
        "flag=True",
        "size=(3, 3)",
        "name=relu",
        "text='10'",
        "none=",
        "url=a=b",
        "n=-1",
    ]
    assert parse_arguments(pairs) == {
        "num_classes": 10,
        "rate": 0.5,
        "flag": True,
        "size": (3, 3),
        "name": "relu",
        "text": "10",
        "none": "",
        "url": "a=b",
        "n": -1,
    }
    assert parse_arguments([]) == {}


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        (["num_classes"], "argument 'num_classes' is not of the form NAME=VALUE, such as num_classes=10"),
        (["=10"], "argument '=10' is not of the form"),
        (["num-classes=10"], "argument 'num-classes=10' is not of the form"),
        (["a=1", "a=2"], "argument 'a' is given twice"),
        (["bias=false"], "argument 'bias=false' would be a text: write bias=False"),
    ],
)
def test_malformed_arguments(pairs: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_arguments(pairs)
