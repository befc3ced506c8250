"""The comparison with other counters: what counts as agreement, what is seen of a changed model, what is run again."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "peers.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return __import__


def run(path: Path, *arguments: object) -> list[dict[str, str]]:
    command = [sys.executable, str(SCRIPT), "--output", str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_agreement(script: Callable[[str], ModuleType]) -> None:
    agreement = script("peers").agreement
    # a quarter too many may be biases and norms; what is missing is missing
    assert [agreement(n, 480, 0.0, 0.25) for n in (480, 540, 600, 601, 479)] == [
        *("exact", "close +12.50%", "close +25.00%", "+25.21%", "-0.21%")
    ]
    assert [agreement(n, 1e9, 0.01, 0.01) for n in (0.991e9, 1.02e9)] == ["close -0.90%", "+2.00%"]
    assert (agreement(3, 0, 0.0, 0.25), agreement(3, None, 0.0, 0.25)) == ("3 for 0", "")


def test_verdict_tells_silence_from_a_word(script: Callable[[str], ModuleType]) -> None:
    peers, row = script("peers"), {"state": "ok", "left_out": ""}
    said = {"exact": "exact", "close +1.00%": "close", "+25.21%": "more", "3 for 0": "more", "-50.00%": "fewer"}
    assert {text: peers.verdict(row | {"agreement": text}) for text in said} == said
    assert peers.verdict({"state": "failed"}) == "failed"
    assert peers.in_silence(row | {"agreement": "-50.00%"})
    assert not peers.in_silence(row | {"agreement": "-50.00%", "left_out": "aten::lstm"})
    assert not peers.in_silence(row | {"agreement": "+50.00%"}), "more than there is may be a convention"


def test_page_adds_up(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    """Each counter's modules and networks stand in one column each, and what it changed in the last."""
    peers = script("peers")

    def row(group: str, case: str, peer: str, agreement: str, **others: str) -> dict[str, str]:
        blank = dict.fromkeys(peers.COLUMNS, "") | {"state": "ok" if agreement else "failed", "date": "2026-01-02"}
        versions = {"versions": f"torch 2, {peer} 1 (abc)", "family": "calls" if group == "catalog" else ""}
        return blank | versions | {"group": group, "case": case, "peer": peer, "agreement": agreement} | others

    rows = [
        *(row("catalog", f"m{n}", "torchledger", text) for n, text in enumerate(["exact"] * 5 + ["+30.00%"])),
        *(row("catalog", f"m{n}", "thop", text) for n, text in enumerate(["exact", "close +9.00%", "+26.00%", ""])),
        row("catalog", "m4", "thop", "-20.00%", left_out="aten::lstm"),
        row("catalog", "m5", "thop", "-30.00%"),
        row("torchvision", "net", "torchledger", "close -0.04%"),
        row("torchvision", "net", "thop", "+8.76%"),
        *(row("untouched", mode, "torchledger", "exact") for mode in ("eval", "train", "raises")),
        row("untouched", "eval", "thop", "exact"),
        *(row("untouched", mode, "thop", "exact", changed="training flags (conv)") for mode in ("train", "raises")),
    ]
    path = tmp_path / "peers.csv"
    peers.write(path, rows)
    lines = peers.page(path).splitlines()
    # right, exact, more, fewer and said so, fewer in silence, no figure; the network; the model
    assert "| 1 | torchledger | 5 | 5 | 1 | 0 | 0 | 0 | 1 | 0 | 0 | 0 | yes |" in lines
    assert "| 2 | thop | 2 | 1 | 1 | 1 | 1 | 1 | 0 | 1 | 0 | 0 | in eval mode |" in lines
    assert "| counter | calls (6) |" in lines and "| thop | 2 |" in lines
    assert "- thop: In eval mode: nothing. Training, raising: training flags (conv)" in lines
    assert "| net | 0.0 | +8.8 |" in lines
    assert [line for line in lines if line.startswith("| m")][1:] == [
        *("| m0 | = | = |", "| m1 | = | ≈ |", "| m2 | = | + |", "| m3 | = | × |", "| m4 | = | − |", "| m5 | + | ! |")
    ]
    assert "- Where torchledger is not exact: `m5` (+30.00%), of which it says: nothing." in lines


def test_a_mask_of_activations_counts_what_runs(tmp_path: Path) -> None:
    (row,) = run(tmp_path / "peers.csv", "--peer", "FlopCounterMode", "--case", "mask of activations")
    # 10 rows by 8 by 8, then the 3 that are kept by 8 by 6
    assert [row[name] for name in ("family", "macs", "agreement")] == ["values", str(640 + 144), "exact"]


def hook(model: nn.Module) -> None:
    model.conv.register_forward_pre_hook(lambda *_: None)


def patch_class(model: nn.Module) -> None:
    nn.ReLU.__call__ = lambda self, x: x


def fill_grad(model: nn.Module) -> None:
    model.head.weight.grad.add_(1)


CHANGES: dict[str, Callable[..., object]] = {
    "state_dict keys (+total_ops)": lambda model: model.register_buffer("total_ops", torch.zeros(1)),
    "state_dict values (running_mean)": lambda model: model.norm.running_mean.add_(1),
    "buffers (scale)": lambda model: model.scale.add_(1),
    "training flags (conv)": lambda model: model.conv.train(),
    "training flags (model)": lambda model: setattr(model, "training", not model.training),
    "requires_grad (weight, bias)": lambda model: model.conv.requires_grad_(),
    "grads (weight)": fill_grad,
    "hooks (_forward_pre_hooks)": hook,
    "attributes (+flops)": lambda model: setattr(model.conv, "flops", 1),
    "attributes (raises)": lambda model: setattr(model, "raises", not model.raises),
    "classes (+__call__)": patch_class,
    "functions of torch (linear)": lambda _: setattr(torch.nn.functional, "linear", torch.nn.functional.bilinear),
    "grad mode (enabled)": lambda _: torch.set_grad_enabled(False),
    "random state (torch)": lambda _: torch.rand(1),
}


@pytest.mark.parametrize("expected", CHANGES)
def test_each_change_is_seen(expected: str, script: Callable[[str], ModuleType]) -> None:
    model, _, _ = script("peer_cases").used("train")
    attempted, linear = script("untouched").attempted, torch.nn.functional.linear
    try:
        assert attempted(model, lambda: 1) == (1, None, [])
        _, raised, changes = attempted(model, lambda: CHANGES[expected](model))
    finally:
        torch.nn.functional.linear = linear
        torch.set_grad_enabled(True)
        if "__call__" in vars(nn.ReLU):
            del nn.ReLU.__call__
    assert raised is None and expected in changes


def test_a_failure_is_kept_with_what_it_left(script: Callable[[str], ModuleType]) -> None:
    model, inputs, _ = script("peer_cases").used("raises")
    _, raised, changes = script("untouched").attempted(model, lambda: model(*inputs))
    assert str(raised) == "told to"
    # the forward got as far as the norm that learns; nothing else of the model has moved
    assert changes == [f"{aspect} (running_mean, running_var, num_batches_tracked)" for aspect in VALUES]


VALUES = ("state_dict values", "buffers")


def test_keywords_are_passed_by_position(script: Callable[[str], ModuleType]) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return x * scale + shift

    one, two, three = torch.ones(1), torch.full((1,), 2.0), torch.full((1,), 3.0)
    model, inputs = script("peer_calls").positional(Net(), (two,), {"scale": three, "shift": one})
    assert model(*inputs).item() == model(packed=inputs).item() == 2 * 3 + 1


def test_total_of_torchstat_is_read(script: Callable[[str], ModuleType]) -> None:
    table = "name   params memory(MB)    MAdd    Flops\ntotal      72234.0   0.08  539,990.0  280,800.0    316840.0\n"
    assert script("peer_calls").read_torchstat(table) == 280800
    with pytest.raises(RuntimeError, match="no total"):
        script("peer_calls").read_torchstat("nothing")


def test_words_about_what_is_left_out(script: Callable[[str], ModuleType]) -> None:
    said = script("peer_calls").said
    flops, zero = "[Flops]: Dropout is not supported!", "Warning: aten.relu operation is treated as a zero-op"
    assert said(f"table\n{flops}\n{zero}\n{flops}\n") == f"{flops}; {zero}"
    assert said("UserWarning: LSTM with projections is not supported with oneDNN") == ""
    assert said("Warning: module Around is treated as a zero-op.") == "", "ours"


def test_results_are_taken_up_again(tmp_path: Path) -> None:
    path, wanted = tmp_path / "peers.csv", ("--peer", "FlopCounterMode", "--case", "eval")
    (row,) = run(path, *wanted)
    # 30 x 30 outputs of 8 channels, 3 x 3 x 3 each; 8 features by 10
    assert [row[name] for name in ("group", "state", "macs", "agreement", "changed")] == [
        *("untouched", "ok", str(900 * 8 * 27 + 80), "exact", "")
    ]
    text = path.read_text()
    path.write_text(text.replace(row["seconds"], "123"))
    assert run(path, *wanted)[0]["seconds"] == "123", "made with the same versions: not run again"
    path.write_text(text.replace(row["seconds"], "123").replace("torch 2", "torch 1"))
    assert run(path, *wanted)[0]["seconds"] != "123", "made with other versions"


def test_a_model_run_alone_keeps_its_place(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    path, peers = tmp_path / "peers.csv", script("peers")
    names = ("torchvision", "alexnet"), ("untouched", "train"), ("catalog", "matmul")
    blank = dict.fromkeys(peers.COLUMNS, "") | {"peer": "FlopCounterMode"}
    peers.write(path, [blank | {"group": group, "case": case} for group, case in names])
    rows = run(path, "--peer", "FlopCounterMode", "--case", "train")
    assert [(row["group"], row["case"]) for row in rows] == [*names]
    assert [row["state"] for row in rows] == ["", "ok", ""]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "peers.csv"), "--case", "lstm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("no model is called lstm: ")) == (1, True)


def test_a_pair_that_takes_too_long_or_ends_its_process_fails(
    tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    (row,) = run(tmp_path / "peers.csv", "--peer", "FlopCounterMode", "--case", "eval", "--seconds", 0)
    assert (row["state"], row["error"]) == ("failed", "took more than 0 s")
    alone = script("peers").alone
    assert alone(lambda: os._exit(3), 20)["error"] == "its process ended without a word"
    assert alone(lambda: {"state": str(1 // 0)}, 20)["error"].startswith("ZeroDivisionError: ")
