"""The benchmark that runs whole libraries: what counts as agreement, what is run again, what a slow model does."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_agreement_is_within_rounding_or_tolerance(coverage: ModuleType) -> None:
    rounded = coverage.Figure(0.3, 1e9, 2)
    # 0.295 to 0.305 is printed as 0.30
    assert [rounded.agrees(n) for n in (294e6, 295e6, 300e6, 305e6, 306e6)] == [False, True, True, True, False]
    tolerant = coverage.Figure(10.0, 1e9, 2, 0.005)
    # 0.5% of 10 is 0.05, wider than the rounding
    assert [tolerant.agrees(n) for n in (9.94e9, 9.951e9, 10.049e9, 10.06e9)] == [False, True, True, False]
    case = coverage.Case("net", "", "3x8x8", "file", {"macs": tolerant, "params": rounded})
    assert coverage.agreement({"macs": 10e9, "params": 300e6}, case) == "yes"
    assert coverage.agreement({"macs": 11e9, "params": 150e6}, case) == "macs +10.00%; params -50.00%"
    assert coverage.agreement({"macs": 1}, coverage.Case("net", "", "3x8x8")) == ""


def test_limit_spreads_over_all(coverage: ModuleType) -> None:
    assert coverage.spread(range(10), 4) == [0, 2, 5, 7]
    assert coverage.spread(range(3), 4) == coverage.spread(range(3), None) == [0, 1, 2]


def test_summary_names_each_exception(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    library = coverage.Library((), list, list, 0.9, {"macs": 0.6}, {"b*": "its cause"})
    monkeypatch.setitem(coverage.LIBRARIES, "own", library)
    row = coverage.failed(coverage.Case("a", "", "3x8x8", "file"), "v1")
    good = row | {"state": "ok", "agreement": "yes"}
    apart = good | {"model": "b1", "agreement": "fvcore_macs +1.00%; macs +2.00%"}
    broken = row | {"model": "c", "error": "TypeError: no"}
    lines, missed = coverage.said("own", [good, apart, broken])
    assert missed and lines == [
        "2 of 3 ran, 2 without an unknown operation (bar 90%, missed)",
        "macs: 1 of 3 agree, 33.33% (bar 60%, missed)",
        "- b1 3x8x8: fvcore_macs +1.00%; macs +2.00%. its cause",
        "- c 3x8x8: TypeError: no",
    ]
    # what differs in another quantity, and an unknown operation, are told but do not count against the bar of macs
    other = good | {"model": "d", "agreement": "fvcore_macs +1.00%", "unknown": "lstsq (2)"}
    lines, missed = coverage.said("own", [good, other])
    assert missed and lines == [
        "2 of 2 ran, 1 without an unknown operation (bar 90%, missed)",
        "macs: 2 of 2 agree, 100.00% (bar 60%)",
        "- d 3x8x8: fvcore_macs +1.00%; unknown: lstsq (2). cause not known",
    ]


def test_a_bar_is_a_share_or_a_number(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # 97% of 200 are 194; 120 are 120 of any number, and all of fewer
    assert [coverage.passed(n, 200, 0.97) for n in (193, 194)] == [False, True]
    assert [coverage.passed(n, 200, 120) for n in (119, 120)] == [False, True]
    assert [coverage.passed(n, 3, 120) for n in (2, 3)] == [False, True]
    monkeypatch.setitem(coverage.LIBRARIES, "own", coverage.Library((), list, list, 2, {"macs": 2}))
    good = coverage.failed(coverage.Case("a", "", "", "file"), "v1") | {"state": "ok", "agreement": "yes"}
    apart = good | {"agreement": "macs +1.00%"}
    lines, missed = coverage.said("own", [good, good, apart])
    assert not missed and lines[:2] == [
        "3 of 3 ran, 3 without an unknown operation (bar at least 2)",
        "macs: 2 of 3 agree, 66.67% (bar at least 2)",
    ]
    lines, missed = coverage.said("own", [good, apart, apart])
    assert missed and lines[1] == "macs: 1 of 3 agree, 33.33% (bar at least 2, missed)"


def test_results_are_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    done = run("torchvision", "--limit", 1, "--output", path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "1 of 1 ran, 1 without an unknown operation (bar 100%)",
    ), done.stderr
    (row,) = rows_of(path)
    # AlexNet: 714,188,480, which torchvision gives as 0.714
    assert [row[name] for name in ("model", "kind", "input", "macs", "agreement")] == [
        *("alexnet", "classification", "3x224x224", "714188480", "yes")
    ]
    text = path.read_text()
    path.write_text(text.replace(row["seconds"], "123"))
    run("torchvision", "--limit", 1, "--output", path)
    assert rows_of(path)[0]["seconds"] == "123", "made with the same versions: not run again"
    path.write_text(text.replace(row["seconds"], "123").replace("torch 2", "torch 1"))
    run("torchvision", "--limit", 1, "--output", path)
    assert rows_of(path)[0]["seconds"] != "123", "made with other versions"


def test_a_model_that_takes_too_long_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    done = run("torchvision", "--limit", 2, "--output", path, "--seconds", 0)
    assert done.returncode == 1
    assert [row["error"] for row in rows_of(path)] == 2 * ["took more than 0 s"]


def test_missing_file_of_published_figures() -> None:
    done = run("timm", "--published", "no.csv")
    assert done.returncode == 2 and "--published no.csv: no such file" in done.stderr


def test_published_parameters_say_which_form_of_a_model_counts(coverage: ModuleType) -> None:
    timm = pytest.importorskip("timm")

    def built(millions: float) -> tuple[str, int]:
        published = {"params": coverage.Figure(millions, 1e6, 2)}
        made = coverage.timm_build(coverage.Case("repvgg_a0", "", "3x224x224", "file", published))
        return made.form, coverage.parameters(made.model)

    plain = sum(p.numel() for p in timm.create_model("repvgg_a0").parameters())
    assert built(plain / 1e6) == ("", plain)
    # 22 blocks whose 1x1 branches and norms go into their 3x3 convolutions
    form, fused = built(8.31)
    assert form == "re-parameterised" and fused < plain


# --- against real runs ---------------------------------------------------------------------------------------------


def beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real_run() -> ModuleType:
    return beside("real_run")


def test_vocabulary_is_cut_where_its_padding_token_stays() -> None:
    def cut(size: int, padding: int | None) -> dict[str, int]:
        config = SimpleNamespace(vocab_size=size, pad_token_id=padding)
        return dict(beside("hf_models")._smaller(config))

    assert cut(50_257, None) == cut(50_257, 32_767) == {"vocab_size": 32_768}
    assert cut(50_257, 32_768) == cut(32_768, None) == {}


def test_a_type_of_transformers_agrees_with_its_real_run(tmp_path: Path) -> None:
    path = tmp_path / "hf.csv"
    done = run("hf", "--only", "regnet", "fnet", "--output", path)
    assert "2 of 2 ran, 2 without an unknown operation" in done.stdout, done.stderr
    assert {row["model"]: row["agreement"] for row in rows_of(path)} == {"regnet": "yes", "fnet": "yes"}


def test_a_real_run_that_differs_or_fails_is_said(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Any, built: Any) -> int:
        raise LookupError("2.0 billion parameters")

    def counted(real: Any) -> str:
        built = coverage.Built(torch.nn.Linear(4, 3), ((4,),))
        library = coverage.Library((), list, lambda case: built, 1.0, {"macs": 1.0}, real=real)
        monkeypatch.setitem(coverage.LIBRARIES, "own", library)
        return str(coverage.counted("own", coverage.Case("net", "", "", coverage.REAL))["agreement"])

    assert counted(lambda case, built: 12) == "yes"
    assert counted(lambda case, built: 6) == "macs +100.00%"
    assert counted(fails) == "not compared: 2.0 billion parameters"
    row = coverage.failed(coverage.Case("a", "", "", coverage.REAL), "v1") | {"state": "ok"}
    lines, missed = coverage.said("own", [row | {"agreement": "yes"}, row | {"agreement": counted(fails)}])
    assert "macs: 1 of 1 agree, 100.00% (bar 100%)" in lines and not missed


class Distances(torch.nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, y, self.p)


class HandsOut(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table.expand(2, 3)


def test_counts_of_a_real_run(real_run: ModuleType) -> None:
    x = torch.randn(2, 7, 4)
    # 14 rows of 4 by 5
    assert real_run.count(torch.nn.Linear(4, 5), (x,), {}) == 14 * 20
    # 7 steps of 2 samples through 4 gates of 5 by 4 and 5 by 5
    assert real_run.count(torch.nn.LSTM(4, 5), (x,), {}) == 14 * 4 * 5 * (4 + 5)
    # all pairs of points in 5 dimensions, by one kernel for few and another for many; in other norms no product
    for few, many in ((3, 4), (30, 40)):
        points = torch.randn(few, 5), torch.randn(many, 5)
        assert real_run.count(Distances(2.0), points, {}) == few * many * 5
        assert real_run.count(Distances(1.0), points, {}) == 0
    # a module that returns a view of its parameter, which requires gradients and has no graph
    assert real_run.count(torch.nn.Sequential(torch.nn.Linear(4, 5), HandsOut()), (x,), {}) == 14 * 20
    with pytest.raises(LookupError, match="no reference for _trilinear"):
        real_run.count(torch.nn.Bilinear(4, 4, 5), (x, x), {})
