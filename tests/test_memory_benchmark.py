"""The benchmark that measures memory: its bytes are those of arithmetic, and scratch space stays apart."""

from __future__ import annotations

import csv
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "memory.py"


@pytest.fixture(scope="module")
def memory() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def allocations(memory: ModuleType) -> ModuleType:
    return sys.modules["allocations"]


BATCH, WIDE, INNER, NARROW = 64, 256, 512, 10
X, HIDDEN, OUT = 4 * BATCH * WIDE, 4 * BATCH * INNER, 4 * BATCH * NARROW
WEIGHT1, WEIGHT2 = 4 * WIDE * INNER, 4 * INNER * NARROW


@pytest.fixture
def two_layers(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDE, INNER, bias=False), nn.Linear(INNER, NARROW, bias=False))

    def inputs(batch: int) -> tuple[torch.Tensor]:
        return (torch.randn(batch, WIDE),)

    network = memory.Network("own", build, inputs, BATCH, lambda output: output.sum())
    monkeypatch.setitem(memory.NETWORKS, "two_layers", network)
    return "two_layers"


def measured(memory: ModuleType, name: str, mode: str, dtype: str = "float32") -> list[tuple[dict[str, Any], Any]]:
    return list(memory.run_profiled(memory.Case(name, dtype, mode, memory.NETWORKS[name].batch)))


def test_inference_of_two_layers_is_exact(memory: ModuleType, two_layers: str) -> None:
    ((row, _),) = measured(memory, two_layers, "inference")
    held = WEIGHT1 + WEIGHT2 + X
    # Sequential holds what goes into the second layer while that runs; then the output alone is left.
    assert (row["held"], row["peak"], row["after_model"]) == (held, held + HIDDEN + OUT, held + OUT)
    assert (row["phase"], row["operation"]) == ("forward", "aten::mm in aten::linear")
    assert (row["scratch"], row["peak_with_scratch"], row["unaccounted"]) == (0, row["peak"], 0)


def test_a_training_step_of_two_layers_is_exact(memory: ModuleType, two_layers: str) -> None:
    first, second = (row for row, _ in measured(memory, two_layers, "sgd"))
    held = WEIGHT1 + WEIGHT2 + X
    # The backward keeps what went into the second layer.
    assert first["after_model"] == held + HIDDEN + OUT
    # At the peak, when the gradient of the first weight is made: output, loss and its gradient of one, the gradients of
    # the second weight and of what went into it. That itself went when the second layer's backward was over.
    assert first["peak"] == held + OUT + 4 + 4 + WEIGHT2 + HIDDEN + WEIGHT1
    assert (first["phase"], first["operation"]) == ("backward", "aten::mm of MmBackward0")
    assert first["unaccounted"] == 0
    # Plain SGD keeps nothing: the second step is like the first.
    assert {k: v for k, v in second.items() if k not in ("step", "seconds")} == {
        k: v for k, v in first.items() if k not in ("step", "seconds")
    }


def test_adamw_keeps_two_moments_and_a_count_a_parameter(memory: ModuleType, two_layers: str) -> None:
    first, second = (row for row, _ in measured(memory, two_layers, "adamw"))
    weights = WEIGHT1 + WEIGHT2
    state = 2 * weights + 2 * 4  # of two parameters
    assert second["held"] - first["held"] == state
    # At the peak both gradients are there, and of the larger weight the root of its second moment and a quotient; the
    # output and the loss live on, and the number that it is divided by is a tensor of 8 bytes.
    assert first["peak"] == first["held"] + weights + state + 2 * WEIGHT1 + OUT + 4 + 8
    assert first["phase"] == "optimizer" and first["peak"] == second["peak"]


def test_bfloat16_takes_half(memory: ModuleType, two_layers: str) -> None:
    ((half, _),), ((full, _),) = (measured(memory, two_layers, "inference", t) for t in ("bfloat16", "float32"))
    assert 2 * half["peak"] == full["peak"]


def test_a_target_is_there_before_the_step(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    network = memory.Network("own", lambda: nn.Linear(8, 4), lambda batch: (torch.randn(batch, 8),), 16)
    monkeypatch.setitem(memory.NETWORKS, "one_layer", network)
    (inference, _), (training, _) = (measured(memory, "one_layer", mode)[0] for mode in ("inference", "sgd"))
    assert training["held"] - inference["held"] == 16 * 8  # a class for each of 16 rows, int64


# Two operations whose kernels allocate 4,000 bytes for themselves, and return as many as they take. The library must
# stay referenced: its operations go with it.
_LIBRARY = torch.library.Library("torchledger_memory_benchmark", "DEF")
for _name, _kind in (("kernel", "CompositeExplicitAutograd"), ("composite", "CompositeImplicitAutograd")):
    _LIBRARY.define(f"{_name}(Tensor x) -> Tensor")

    def _doubled(x: torch.Tensor) -> torch.Tensor:
        own = torch.empty(1000)
        returned = torch.empty_like(x)
        del own
        return returned

    _LIBRARY.impl(_name, _doubled, _kind)


def test_scratch_is_what_lives_within_one_kernel(allocations: ModuleType) -> None:
    x = torch.empty(500)
    operations = torch.ops.torchledger_memory_benchmark
    kernel = allocations.measure(lambda: operations.kernel(x), held=7)
    assert (kernel.peak, kernel.scratch, kernel.peak_with_scratch) == (7 + 2000, 4000, 7 + 6000)
    assert kernel.operation == kernel.scratch_operation == "torchledger_memory_benchmark::kernel"
    # A composite is taken apart before any mode or autograd sees it: what it makes belongs to the operations in it.
    composite = allocations.measure(lambda: operations.composite(x), held=7)
    assert (composite.peak, composite.scratch) == (7 + 4000 + 2000, 0)
    assert composite.operation == "aten::empty_like in torchledger_memory_benchmark::composite"
    assert kernel.final == composite.final == 7


def test_scratch_of_two_calls_does_not_add_up(allocations: ModuleType) -> None:
    calls = [allocations.Call(name, name, "", "forward", 10 * i) for i, name in enumerate("ab")]
    # (time, pointer, size, call): a makes 8 and 4 for itself and 100 to keep, b makes 9 for itself and frees the 100;
    # the pointer of a block that is gone is given out again.
    changes = [
        *((1, 1, 8, 0), (2, 2, 100, 0), (3, 3, 4, 0), (4, 3, -4, 0), (5, 1, -8, 0)),
        *((11, 1, 9, 1), (12, 2, -100, 1), (13, 1, -9, 1), (20, 1, 50, None), (21, 1, -50, None)),
    ]
    spans = {"forward": [(0, 30)], allocations.MODEL: [(0, 11)]}
    result = allocations.reckon(calls, [allocations.Change(*change) for change in changes], spans, held=1000)
    assert (result.peak, result.operation, result.phase) == (1100, "a", "forward")
    assert (result.scratch, result.scratch_operation) == (12, "a")
    assert result.peak_with_scratch == 1000 + 8 + 100 + 4
    assert (result.after_model, result.final) == (1100, 1000)
    rows = [(m.before, m.most, m.after, m.scratch) for m in result.moments]
    # What is made outside of operations is never scratch.
    assert rows == [
        *((1000, 1100, 1100, 12), (1100, 1100, 1000, 9)),
        *((1000, 1050, 1050, 0), (1050, 1050, 1000, 0)),
    ]


def test_a_timeline_goes_from_held_to_final(memory: ModuleType, two_layers: str, tmp_path: Path) -> None:
    ((_, result),) = measured(memory, two_layers, "inference")
    memory.write_timeline(tmp_path / "t.csv", result)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert int(rows[0]["before"]) == result.held and int(rows[-1]["after"]) == result.final
    assert [row["before"] for row in rows[1:]] == [row["after"] for row in rows[:-1]]
    assert sum(int(row["change"]) for row in rows) == result.final - result.held
    assert max(int(row["most"]) for row in rows) == result.peak
    # Each weight is transposed, a view, and multiplied with; the two blocks are freed outside of operations.
    assert [(row["phase"], row["operation"], int(row["change"])) for row in rows] == [
        *(("forward", "aten::t", 0), ("forward", "aten::mm", HIDDEN)),
        *(("forward", "aten::t", 0), ("forward", "aten::mm", OUT)),
        *(("", "", -HIDDEN), ("", "", -OUT)),
    ]


def test_what_is_predicted_stands_beside(memory: ModuleType, two_layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = WEIGHT1 + WEIGHT2 + X + HIDDEN + OUT
    monkeypatch.setattr(memory, "predicted", lambda *_: {"peak": peak * 2})
    ((row, _),) = measured(memory, two_layers, "inference")
    assert (row["predicted"], row["apart"]) == (2 * peak, 1.0)

    def fails(*_: Any) -> None:
        raise ValueError("not so")

    monkeypatch.setattr(memory, "predicted", fails)
    ((row, _),) = measured(memory, two_layers, "inference")
    assert (row["error"], row["peak"]) == ("prediction: ValueError: not so", peak)


def test_bars_are_for_the_median_and_the_worst(memory: ModuleType) -> None:
    def rows(*apart: float) -> list[dict[str, Any]]:
        return [{"network": "n", "apart": value} for value in apart]

    text, held = memory.summary(rows(0.001, -0.003, 0.019), 0.003, 0.02)
    assert held and "median error 0.30%, worst 1.90%" in text
    assert not memory.summary(rows(0.001, -0.004, 0.019), 0.003, 0.02)[1]
    assert not memory.summary(rows(0.0, 0.0, -0.021), 0.003, 0.02)[1]
    assert memory.summary(rows(0.0, 0.0, -0.021), 0.003, None)[1]
    assert not memory.summary([{"network": "n", "error": "ValueError"}], 0.003, 0.02)[1]
    # A batch that does not fit a GPU is an answer.
    assert memory.summary([*rows(0.0), {"network": "n", "error": "OutOfMemoryError: 1 GiB"}], 0.003, 0.02)[1]


def test_a_case_that_fails_is_a_row(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case, context = memory.Case("none", "float32", "sgd", 1), multiprocessing.get_context("fork")
    (row,) = memory.isolated(case, context)
    assert row["error"] == "KeyError: 'none'" and row["network"] == "none"
    monkeypatch.setattr(memory, "run_profiled", lambda _: os._exit(3))
    assert memory.isolated(case, context)[0]["error"] == "the process ended with 3"
    monkeypatch.setattr(memory, "run_profiled", lambda _: time.sleep(60))
    monkeypatch.setattr(memory, "SECONDS", 0.1)
    assert memory.isolated(case, context)[0]["error"] == "no result after 0.1 s"


def test_results_are_renewed_case_by_case(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    command = [sys.executable, str(SCRIPT), "autoencoder", "--modes", "inference", "--output", str(path), "--dtypes"]
    for dtypes in (["float32", "bfloat16"], ["float32"]):
        done = subprocess.run([*command, *dtypes], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        assert {(row["network"], row["dtype"], row["error"]) for row in rows} == {
            ("autoencoder", "float32", ""),
            ("autoencoder", "bfloat16", ""),
        }
        assert all(row["unaccounted"] == "0" for row in rows)


def test_there_are_networks_enough_and_each_has_inputs(memory: ModuleType) -> None:
    families = {network.family for network in memory.NETWORKS.values()}
    assert len(memory.NETWORKS) >= 32 and len(families) >= 15
    for network in memory.NETWORKS.values():
        assert all(x.shape[0] == 2 for x in network.inputs(2))
        assert callable(network.loss) or network.loss in memory.LOSSES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_rows(memory: ModuleType) -> None:
    rows = list(memory.run_on_gpu(memory.Case("autoencoder", "float32", "adamw", 4, "cuda")))
    assert [row["step"] for row in rows] == ["first", "second"]
    for row in rows:
        assert row["held"] <= row["peak"] <= row["reserved"] and row["scratch"] >= 0


# Small and quick ones, each with something of its own; `python benchmarks/memory.py` runs all.
PREDICTED = ["resnet56", "unet", "lstm", "gru", "gpt_dropout", "gpt_checkpoint", "mixture", "encoder", "diffusion"]


@pytest.mark.parametrize("name", PREDICTED)
@pytest.mark.parametrize(("mode", "dtype"), [("inference", "float32"), ("adamw", "float32"), ("sgd", "bfloat16")])
def test_predicted_peaks_are_those_of_real_steps(memory: ModuleType, name: str, mode: str, dtype: str) -> None:
    for row, _ in measured(memory, name, mode, dtype):
        assert abs(row["apart"]) <= memory.WORST_BAR, f"{row['predicted']:,} predicted, {row['peak']:,} measured"


def test_a_checkpointed_net_is_predicted_as_it_runs(memory: ModuleType) -> None:
    """What is recomputed is in the real peak; without checkpoints it is twice as high."""
    ((row, _), *_), ((plain, _), *_) = (measured(memory, name, "sgd") for name in ("gpt_checkpoint", "gpt"))
    assert abs(row["apart"]) <= memory.MEDIAN_BAR
    assert row["peak"] < 0.7 * plain["peak"] and row["predicted"] < 0.7 * plain["predicted"]
