"""README and docs say what the program does: tables are current, examples run, links lead somewhere."""

from __future__ import annotations

import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import torchledger
from torchledger import UserError, models
from torchledger.models import resnet

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
# Their code runs by docs/shown.py.
SHOWN = ["index", "quickstart", "from_torchstat", "how_it_works", "what_is_run", "limits"]
FRONT = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def generator(name: str = "generate") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
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


def test_performance_page_is_current() -> None:
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == generator().performance()


def test_figures_of_the_memory_page_are_current() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert generator().memory(page, README, CHINESE) == (page, README, CHINESE)
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


def test_picture_of_the_terminal_is_current() -> None:
    drawn = (ROOT / "docs" / "terminal.svg").read_text(encoding="utf-8")
    # Words and numbers alone: frames and colours are drawn a little differently by other versions of rich.
    assert words(drawn) == words(generator("pictures").terminal())
    assert "4.089 G" in words(drawn) and not re.search(r"url\((?!#)|href", drawn), "it loads nothing"


def words(picture: str) -> str:
    """Return what an SVG of a terminal says."""
    return html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))).replace("\xa0", " ")


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


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_shows_what_its_code_prints(name: str) -> None:
    """All of its Python runs, and its commands; what stands beneath each is what it prints now."""
    for library in ("plotly", "itables") if name == "quickstart" else ():  # it writes a page
        pytest.importorskip(library)
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert generator().shown(name, text) == text
    assert text.count("<!-- prints -->") == text.count("<!-- end -->") > 0


def test_what_a_page_does_not_show_is_an_error() -> None:
    shown = generator().shown
    block, place = "```python\nprint(1 + 1)\n```\n", "\n<!-- prints -->\n\n```text\n3\n```\n\n<!-- end -->\n"
    assert shown("page", f"{block}{place}end") == f"{block}{place.replace('3', '2')}end"
    with pytest.raises(AssertionError, match="prints '2"):
        shown("page", block)
    with pytest.raises(AssertionError, match="prints ''"):
        shown("page", f"```python\nx = 1\n```\n{place}")
    with pytest.raises(AssertionError, match="ends with 2"):
        shown("page", "    $ torchledger stat no_such_network\n")


def test_every_page_is_tested_that_has_python() -> None:
    elsewhere = {"check.md", "notebook.md", "custom_operations.md"}  # the last in tests/pricing/test_custom.py
    with_python = {page for page in PAGES if "```python\n" in (ROOT / "docs" / page).read_text(encoding="utf-8")}
    assert with_python - elsewhere <= {f"{name}.md" for name in SHOWN}
    assert tuple(SHOWN) == generator().script("docs", "shown").PAGES


def test_how_it_works_is_about_a_block_of_the_library() -> None:
    """The forward that the page quotes is that of the block, but for its comments and the shortcut's projection."""
    page = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    code = inspect.getsource(resnet.BasicBlock.forward).partition('"""')[2].partition('"""')[2]
    written = [line.partition("#")[0].strip() for line in code.strip().splitlines()]
    written[0] = "shortcut = x"  # the first block has no projection
    written[-2:] = ["return self.relu(x)"]
    assert "\n".join(f"    {line}" for line in written) in page


def test_api_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: torchledger\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(torchledger.__all__)


def test_every_page_is_in_the_navigation() -> None:
    found: list[str] = []

    def gather(entry: Any) -> None:
        if isinstance(entry, str):
            found.append(entry)
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            gather(inner)

    gather(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(found) == PAGES


METHODS = [
    "Ledger.by_layer", "Ledger.load", "Table.to_csv", "Table.rows", "MemoryReport.peak_bytes", "Comparison.difference",
    "Fit.batch", "Rule.macs", "ForwardError.ledger",
]  # fmt: skip


class Loads(HTMLParser):
    """Gather what a page loads by itself, and the ids that it has."""

    ELSEWHERE = re.compile(r"\s*(?:https?:)?//")

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: set[str] = set()
        self.linked: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
            if name in given:
                (self.linked if tag == "a" else self.loaded).add(given[name])
        self.loaded.update(re.findall(r"url\([\"']?([^)\"']*)", given.get("style", "")))


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """mkdocs builds it without a warning; every public name is there; no page fetches anything from another host."""
    for library in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: `make setup` has it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert {page.removesuffix(".md") for page in PAGES} == {path.stem for path in tmp_path.glob("*.html")} - {"404"}
    assert not list(tmp_path.glob("*.py"))
    read = {}
    for path in tmp_path.glob("*.html"):
        read[path.stem] = Loads()
        read[path.stem].feed(path.read_text(encoding="utf-8"))
        assert not [one for one in read[path.stem].loaded if Loads.ELSEWHERE.match(one)], path.name
        assert not [one for one in read[path.stem].linked if one.startswith("../")], path.name
    for path in (*tmp_path.rglob("*.css"), *tmp_path.glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        loads = re.findall(r"(?:url\(|@import\s+|<image[^>]*href=)[\"']?\s*((?:https?:)?//[^\"')\s]*)", text)
        assert not loads, path.name
    wanted = {f"torchledger.{name}" for name in (*torchledger.__all__, *METHODS)}
    assert wanted <= read["api"].ids
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in api and api.count("&gt;&gt;&gt;") > 5, "examples are code under a heading of their own"


def test_tables_of_the_readme_are_the_golden_ones() -> None:
    for text in (README, CHINESE):
        assert generator().readme(text) == text
    assert "features.0    64x55x55          23,296    140,553,600   70,470,400      695,296" in README


def test_the_chinese_readme_is_equal() -> None:
    """Equal code, commands, tables, figures, pictures, links and headings, in this order."""

    def parts(text: str) -> dict[str, list[str]]:
        code = ["\n".join(line.split("  # ")[0].rstrip() for line in block.splitlines())
                for block in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)]  # fmt: skip
        indented = [re.sub(r" +# .*", "", line) for line in re.findall(r"^    .*$", text, re.MULTILINE)]
        return {
            "code": code,
            "indented": indented,
            "headings": re.findall(r"^#+(?= )", text, re.MULTILINE),
            "figures": re.findall(r"\d[\d.,]*\d|\d", re.sub(r"```.*?```", "", text, flags=re.DOTALL)),
            "names": sorted(set(re.findall(r"`[^`\n]+`", text))),
            "links": sorted(target for target in re.findall(r"\]\(([^)]+)\)", text) if "README" not in target),
            "rows": [str(line.count("|")) for line in text.splitlines() if line.startswith("|")],
        }

    english, chinese = parts(README), parts(CHINESE)
    for name in english:
        assert english[name] == chinese[name], name


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
    for name in ("file.py", "net.py"):
        (tmp_path / "path" / "to" / name).write_text(net)
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
        r"^    (?:\$ )?torchledger ((?:stat|models|memory|fit|report|trace|compare|check).*?)(?: +#.*)?$",
        README,
        re.MULTILINE,
    )
    assert len(commands) == 25
    for command in dict.fromkeys(commands):
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


def test_commands_of_the_memory_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchledger.cli import main

    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    \$ torchledger (.*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        with pytest.raises(SystemExit) as done:
            main(command.split())
        assert not done.value.code, command


def test_the_source_distribution_has_what_the_tests_read() -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    top = {name.strip("/") for name in included["sdist"]["include"]} | {"pyproject.toml"}
    read = {*FRONT, "mkdocs.yml", "Makefile", "constraints.txt", "docs", "examples", "benchmarks", "tests", "src"}
    linked = {
        target.split("/")[0] for text in (README, CHINESE) for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    }
    assert read | linked <= top


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
    "name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{page}" for page in PAGES)]
)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
