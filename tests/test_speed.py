"""The timing of torchledger and other counters: whose turn it is, what is emptied, what the page says of results."""

from __future__ import annotations

import csv
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from torchledger import analyze
from torchledger.capture.shapes import MEMO

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "peers.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return __import__


def test_forward_and_counter_take_turns(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    speed, turns = script("speed"), []
    bare, counter, empty = (functools.partial(turns.append, name) for name in ("bare", "counter", "empty"))
    times = speed.timed(bare, counter, empty)
    assert turns == ["bare", "empty", "counter", "counter"] * speed.MOST, "quick calls: as many rounds as there may be"
    assert [len(found) for found in times] == [speed.MOST] * 3
    assert gc.isenabled() and not gc.get_freeze_count()
    monkeypatch.setattr(speed, "LONG_ENOUGH", 0.0)
    assert [len(found) for found in speed.timed(bare, counter, None)] == [speed.FEWEST, 0, speed.FEWEST]
    monkeypatch.setattr(speed, "TOO_LONG", 1e-9)
    assert [len(found) for found in speed.timed(bare, counter, None)] == [1, 0, 1], "one round at least"


def test_a_cold_analysis_finds_nothing(script: Callable[[str], ModuleType]) -> None:
    from torchledger import pricing, views

    analyze(nn.Linear(4, 3), (4,)).by_layer()
    assert len(MEMO) and views._shapes.cache_info().currsize and pricing._KEPT["full"]
    script("speed").emptied()
    assert not len(MEMO) and not views._shapes.cache_info().currsize and not pricing._KEPT["full"]


def test_sizes_become_a_batch_of_one(script: Callable[[str], ModuleType]) -> None:
    tensors, ids = script("speed_cases").tensors, torch.arange(4)[None]
    (image,), _ = tensors((((3, 8, 8),), {}), "meta")
    assert image.shape == (1, 3, 8, 8) and image.is_meta
    _, given = tensors(((), {"ids": ids, "sound": torch.empty(1, 5, device="meta"), "flag": True}), "cpu")
    assert given["ids"] is ids and given["sound"].device.type == "cpu" and given["flag"] is True
    _, given = tensors(((), {"ids": ids}), "meta")
    assert given["ids"].is_meta and given["ids"].dtype == torch.int64


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says it")
def test_peak_is_forgotten(script: Callable[[str], ModuleType]) -> None:
    resident = script("resident")
    block = bytearray(b"1") * 64_000_000
    with_block = resident.peak()
    del block
    assert resident.peak() > with_block - 4, "its pages are gone, its peak is not"
    resident.forget_peak()
    assert resident.peak() < with_block - 60


def run(path: Path, *arguments: str) -> tuple[list[dict[str, str]], str]:
    command = [sys.executable, str(SCRIPT), "--speed", "--output", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert path.exists(), done.stderr
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines)), done.stdout


def test_a_model_is_timed_on_both_devices(tmp_path: Path) -> None:
    for library in ("torchvision", "timm", "transformers"):
        pytest.importorskip(library)
    path, wanted = tmp_path / "speed.csv", ("--peer", "torchledger", "--case", "alexnet")
    rows, said = run(path, *wanted)
    assert [(row["model"], row["device"], row["state"], row["error"]) for row in rows] == [
        *(("alexnet", "meta", "ok", ""), ("alexnet", "cpu", "ok", ""))
    ]
    for row in rows:
        ratio = float(row["warm_ms"]) / float(row["bare_ms"])
        assert ratio > 0 and float(row["warm"]) == pytest.approx(ratio, abs=0.01)
        assert int(row["rounds"]) >= 5 and row["operations"] == "23"
    assert "model on meta, cold: median: " in said and "(1 models)" in said
    path.write_text(path.read_text().replace(rows[0]["bare_ms"], "123"))
    assert run(path, *wanted)[0][0]["bare_ms"] == "123", "made with the same versions: not run again"


def row(model: str, peer: str, device: str, warm: str, cold: str = "", **others: str) -> dict[str, str]:
    given = {"state": "ok", "bare_ms": "10", "operations": "7" * bool(cold), "first_ms": "20"}
    given |= {"fresh_ms": "12", "memory_mb": "3"}
    times = {"warm_ms": str(10 * float(warm)), "cold_ms": str(10 * float(cold)) if cold else ""} if warm else {}
    stamp = {"date": "2026-01-02", "versions": f"torch 2, torchvision 0, {peer} 1 (abc)"}
    names = {"group": "torchvision", "model": model, "peer": peer, "device": device}
    return names | given | {"warm": warm, "cold": cold} | times | stamp | others


SCALE = {
    "training": {
        name: {"operations": 1426, "bare_ms": 354.6, "cold": 0.3, "warm": warm}
        for name, warm in (("resnet50", 0.2), ("vit_b_16", 0.26))
    },
    "llama": {
        "params": 405_853_388_800, "operations": 9094, "json_bytes": 600_000, "bare_ms": 600.0, "cold": 0.3,
        "warm": 0.2,
    },
    "llama-memory": {"before_mb": 400.0, "peak_mb": 426.0},
    "growth": {
        "chains": {
            "layers": {
                "1000": {"ms": 50.0, "table_ms": 5.0, "relative": 1.0},
                "100000": {"ms": 6500.0, "table_ms": 500.0, "relative": 1.3},
            }
        }
    },
    "start": {"torch_s": 1.4, "beyond_s": 0.26, "rounds": 11},
    "vgg16-memory": {"before_mb": 872.0, "added_mb": 11.5},
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path, script: Callable[[str], ModuleType]) -> tuple[Path, Path]:
    page, peers = script("speed_page"), script("peers")
    rows = [
        *(row(name, "torchledger", "meta", "0.1", cold) for name, cold in (("a", "0.1"), ("b", "0.21"), ("c", "0.9"))),
        *(row(name, "torchledger", "cpu", "0.1", "0.2") for name in "ab"),
        row("c", "torchledger", "cpu", "", state="failed", error="took more than 60 s"),
        *(row(name, "thop", "cpu", warm) for name, warm in (("a", "2"), ("b", "3"), ("c", "31"))),
        *(row(name, "thop", "meta", "", state="failed", error="ValueError: no values") for name in "abc"),
    ]
    blank = dict.fromkeys(page.COLUMNS, "")
    peers.write(tmp_path / "speed.csv", [blank | one for one in rows], page.COLUMNS)
    stamp = {"date": "2026-01-03", "machine": "A processor", "versions": "torch 2, torchledger 1 (def)"}
    (tmp_path / "scale.json").write_text(json.dumps({name: part | stamp for name, part in SCALE.items()}))
    return tmp_path / "speed.csv", tmp_path / "scale.json"


def test_page_says_what_was_measured(results: tuple[Path, Path], script: Callable[[str], ModuleType]) -> None:
    text = script("speed_page").page(*results)
    lines = text.splitlines()
    assert (
        "- 2026-01-02 to 2026-01-03 on one core, `scale.json` on A processor; "
        "torch 2, torchvision 0, torchledger 1, thop 1." in lines
    )
    for bar in (
        "| model on meta, cold: median | at most 0.2 | 0.21 (3 models) | missed |",
        "| model on meta, warm: median | at most 0.14 | 0.1 (3 models) | held |",
        "| model on meta, cold: worst | at most 0.8 | 0.9 (c) | missed |",
        "| model on a CPU, cold: median | at most 0.25 | 0.2 (2 models, 1 without a figure) | missed |",
        "| training step of resnet50, warm | at most 0.25 | 0.2 | held |",
        "| training step of vit_b_16, warm | at most 0.25 | 0.26 | missed |",
        "| Llama-405B, all that the process holds | at most 500 MB | 426 MB | held |",
    ):
        assert bar in lines
    assert "| torchledger, cold | meta | 3 of 3 | 0.21 | 0.90 (c) | 2.1 ms | 3 MB | 3 MB | 20 ms |" in lines
    assert "| thop | CPU | 3 of 3 | 3.00 | 31.00 (c) | 30.0 ms | 3 MB | 3 MB | 20 ms |" in lines
    assert "- thop, model on meta: a, b, c: `ValueError: no values`" in lines
    assert not any(line.startswith("| thop | meta") for line in lines)
    assert "| resnet50 | 1,426 | 355 ms | 0.30 | 0.20 |" in lines
    assert "| layers | 100,000 | 6,500 ms | 65.0 us | 1.30 | 500 ms |" in lines
    assert "| b | torchvision | 7 | 10.0 ms | 1.20 | 0.21 | 0.10 | 1.20 | 0.20 | 0.10 |" in lines
    assert "| c | torchvision | 7 | 10.0 ms | 1.20 | 0.90 | 0.10 |  |  |  |" in lines


def test_page_without_results_says_so(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    page = script("speed_page")
    lines = page.page(tmp_path / "speed.csv", tmp_path / "scale.json").splitlines()
    bars = [line for line in lines if line.startswith("| ") and line.endswith(" |") and "at most" in line]
    assert len(bars) == len(page.bars([], {})) and all(line.endswith("not measured |") for line in bars)
    assert [line for line in lines if line.startswith("## ")] == ["## Bars"]
