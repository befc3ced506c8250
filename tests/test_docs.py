"""README and docs say what the program does: tables are current, examples run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from torchledger import UserError, models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conventions_page_is_current() -> None:
    assert (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8") == generator().conventions()


def test_coverage_page_is_current() -> None:
    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8") == generator().coverage()


def test_comparison_page_is_current() -> None:
    assert (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8") == generator().comparison()


def test_figures_of_the_memory_page_are_current() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert generator().memory(page, README) == (page, README)
    assert page.count("training, adamw") == 3


def test_figures_and_page_of_the_networks_are_current() -> None:
    made = generator()
    assert made.FIGURES.read_text(encoding="utf-8") == made.figures()
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == made.models()


def test_page_and_picture_of_the_degradation_are_current() -> None:
    made, page = generator(), ROOT / "docs" / "degradation.md"
    lines = page.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    text = page.read_text(encoding="utf-8")
    assert made.degradation(text, lines)[0] == text
    drawn = page.with_suffix(".svg").read_text(encoding="utf-8")
    # Curves and bands alone: letters and ticks are drawn a little differently by other versions of matplotlib.
    assert curves(made.degradation(text, lines)[1]) == curves(drawn)
    assert len(curves(drawn)) == 8  # a curve and a band for each of four networks
    lines[1] = lines[1].replace("78.566", "8.566")
    assert curves(made.degradation(text, lines)[1]) != curves(drawn)


def test_picture_of_the_families_is_current() -> None:
    made = generator()
    drawn = (ROOT / "docs" / "families.svg").read_text(encoding="utf-8")
    # Dots alone: letters are drawn a little differently by other versions of matplotlib.
    assert dots(drawn) == dots(made.families())
    assert [len(found) for found in dots(drawn)] == [1, 4, 4, 5]
    resnets = dots(drawn)[3]  # deeper ones have more parameters (to the right) and more macs (up, towards 0)
    assert resnets == sorted(resnets, key=lambda at: (at[0], -at[1])) and resnets[0][1] > resnets[-1][1]
    made.FAMILIES = {**made.FAMILIES, "AlexNet": "alexnet_2012"}
    assert dots(made.families()) != dots(drawn)


def dots(picture: str) -> list[list[tuple[int, int]]]:
    """Return the middle of each family's dots in an SVG, to a point: paths, or a form that stands at a place."""
    found = []
    for family in re.findall(r'<g id="dots-\d+">(.*?)\n   </g>', picture, re.DOTALL):
        drawn = re.sub(r"<defs>.*?</defs>", "", family, flags=re.DOTALL)
        places = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn)
        for path in re.findall(r'<path d="([^"]*)"', drawn):
            corners = [line.split()[1:3] for line in path.splitlines() if line[0] in "ML"]
            xs, ys = ([float(number) for number in side] for side in zip(*corners, strict=True))
            places.append(((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2))
        found.append([(round(float(x)), round(float(y))) for x, y in places])
    return found


def curves(picture: str) -> list[list[float]]:
    """Return the points of an SVG's curves and bands, to a tenth of a point; letters have fewer straight lines."""
    paths = re.findall(r'<path (?:id="\w+" )?d="([^"]*)"', picture)
    return [[round(float(one), 1) for one in re.findall(r"-?[\d.]+", path)] for path in paths if path.count("L") > 70]


def test_tables_of_the_readme_are_the_golden_ones() -> None:
    assert generator().readme(README) == README
    assert "features.0    64x55x55          23,296    140,553,600   70,470,400      695,296" in README


def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(models.build("googlenet").state_dict(), "googlenet.pth")
    names: dict[str, object] = {}  # a reader has what the blocks before have made
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    # 30 x 30 x 8 outputs of 3 x 3 x 3, and 7200 by 10, for each of 8 samples
    assert f"{8 * (30 * 30 * 8 * 27 + 7200 * 10)} {{}} []" in printed


def test_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchledger.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "package").mkdir()
    net = "from torch import nn\ndef Net(num_classes=3):\n"
    net += "    return nn.Sequential(nn.Flatten(), nn.Linear(150528, num_classes))\n"
    (tmp_path / "path" / "to" / "file.py").write_text(net)
    ids = "from torch import nn\nclass build(nn.Embedding):\n    def __init__(self): super().__init__(9, 4)\n"
    ids += "    def forward(self, ids): return super().forward(ids)\n"
    (tmp_path / "package" / "module.py").write_text(ids)
    torch.save(models.build("resnet20").state_dict(), "resnet20.pth")
    (tmp_path / "path" / "to" / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "vocab_size": 99}'
    )
    with torch.no_grad():
        torch.export.save(torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),)), "net.pt2")
    commands = re.findall(
        r"^    (?:\$ )?torchledger ((?:stat|models|memory|fit|report|compare|check).*?)(?: +#.*)?$",
        README,
        re.MULTILINE,
    )
    assert len(commands) == 23
    for command in commands:
        with pytest.raises(SystemExit) as done:
            main(command.split())
        assert not done.value.code, (command, capsys.readouterr().err)


NET = """from torch import nn
class Net(nn.Sequential):
    input_size = (3, 32, 32)
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10))
"""


def test_page_of_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its commands run, those of the workflow too; its tests pass; the output that it shows is the real one."""
    from torchledger.cli import main

    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for folder in (tmp_path, tmp_path / "main"):
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(NET)

    def run(command: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as done:
            main(command.split())
        return done.value.code or 0, capsys.readouterr().out

    commands = re.findall(r"^    \$ torchledger (.*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        status, out = run(command)
        assert status == (1 if "macs=200K" in command else 0), (command, out)
        assert ("macs=200K" not in command) or f"```text\n{out}```" in page

    (workflow,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    steps = yaml.safe_load(workflow)["jobs"]["ledger"]["steps"]
    script = [line for step in steps for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    commands = [line.removeprefix("torchledger ").split(" | ")[0] for line in script if line.startswith("torchledger")]
    assert len(commands) == 2
    for command in commands:
        status, out = run(command)
        assert status == 0, out
    assert out.startswith("### Net is within its limits") and "| macs | baseline |" in out

    (tests,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(tests, "check.md", "exec"), names)
    chosen = [name for name in names if name.startswith("test_")]
    assert len(chosen) == 2
    for name in chosen:
        names[name]()


def test_python_of_the_notebook_page_runs() -> None:
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    if importlib.util.find_spec("pandas") is None:
        block = "\n".join(line for line in block.splitlines() if "pandas" not in line)
    names: dict[str, Any] = {}
    exec(compile(block, "notebook.md", "exec"), names)
    assert "<table>" in names["ledger"]._repr_html_()


def test_error_of_the_readme_is_the_real_one() -> None:
    from torch import nn

    from torchledger import ForwardError, analyze
    from torchledger.models.article import AlexNet

    alexnet, model = AlexNet(10), nn.Sequential()
    for name, module in (("features", alexnet.features), ("flat", nn.Flatten()), ("classifier", alexnet.classifier)):
        model.add_module(name, module)
    with pytest.raises(ForwardError) as caught:
        analyze(model, (3, 192, 192))
    assert f"    {caught.value}\n" in README


def test_error_of_a_network_in_the_readme_is_the_real_one() -> None:
    with torch.device("meta"), pytest.raises(UserError) as caught:
        models.build("inception_v3").train()(torch.empty(2, 3, 224, 224))
    assert f"    {caught.value}\n" in README


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/comparison.md", "docs/conventions.md",
        "docs/check.md", "docs/coverage.md", "docs/custom_operations.md", "docs/degradation.md", "docs/memory.md",
        "docs/models.md", "docs/notebook.md",
    ],
)  # fmt: skip
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
