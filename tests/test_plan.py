"""The batch that fits, and what would help: each figure is that of a capture of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchledger import UserError, analyze, fit, savings
from torchledger.amounts import parse_bytes
from torchledger.models import build
from torchledger.plan import LARGEST_BATCH, checkpointed, frozen_but


def peak(model: nn.Module, batch: int, device: str = "cpu", **options: Any) -> int:
    return analyze(model, (64,), batch=batch, **options).memory(device).peak_bytes


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8))


STEP: dict[str, Any] = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}


@pytest.mark.parametrize("options", [{}, STEP], ids=["inference", "training"])
@pytest.mark.parametrize("limit", [400_000, 1_000_000, 1_500_000, 5_000_000, "64MiB"])
def test_one_sample_more_does_not_fit(limit: int | str, options: dict[str, Any]) -> None:
    model, size = mlp(), parse_bytes(limit)
    found = fit(model, (64,), memory=limit, device="cpu", **options)
    assert found.memory == size
    assert found.batch == 0 or peak(model, found.batch, **options) == found.peak_bytes <= size
    above = peak(model, found.batch + 1, **options)
    assert above > size and found.peak_bytes_above == above
    assert len(found.reports) <= 8


def test_the_caching_allocator_decides() -> None:
    """2 MiB segments: on a GPU less fits into the same memory than the bytes that are asked for."""
    exact = fit(mlp(), (64,), memory="6MiB", device="cuda", allocator="exact").batch
    assert fit(mlp(), (64,), memory="6MiB", device="cuda").batch < exact
    assert fit(mlp(), (64,), memory="6MiB", device="cpu").batch == exact


def test_nothing_fits() -> None:
    found = fit(mlp(), (64,), memory="100KB", device="cpu")
    assert (found.batch, found.peak_bytes) == (0, None)
    assert str(found) == "no batch fits into 100 KB (100,000 bytes)"
    assert "no batch fits" in found.table.to_text()


def test_a_batch_of_one_that_cannot_train() -> None:
    """BatchNorm refuses a single number a channel; two fit, so nobody needs to ask."""
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8))
    assert fit(model, (64,), memory="10KB", device="cpu", training=True).batch > 2
    assert fit(model, (64,), memory="3KB", device="cpu", training=True).batch == 0


def test_a_table_of_the_batches() -> None:
    found = fit(mlp(), (64,), memory="1MB", device="cpu")
    table = found.table
    assert [row["batch"] for row in table.rows] == sorted(found.reports)
    assert {row["batch"] for row in table.rows} >= {found.batch, found.batch + 1}
    assert [row["fits"] for row in table.rows] == ["yes" if row["batch"] <= found.batch else "no" for row in table.rows]  # type: ignore[operator]
    assert f"batch {found.batch} fits: " in table.to_text(80)


def test_memory_that_does_not_grow() -> None:
    with pytest.raises(UserError, match=r"memory does not grow with the batch; give inputs as sizes"):
        fit(mlp(), torch.randn(4, 64), memory="1GB")


def test_as_much_as_anybody_has() -> None:
    assert fit(nn.ReLU(), (1,), memory="1TB", device="cpu").batch == LARGEST_BATCH


@pytest.mark.parametrize("wrong", ["lots", "24 XB", "-1GB", "0", "", "1iB", 0, -5, 1.5, None, True])
def test_wrong_memory(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"memory is .*; write bytes, or a size such as 24GB"):
        fit(mlp(), (64,), memory=wrong)


def test_sizes_in_words() -> None:
    expected = {"24GB": 24 * 10**9, "24gib": 24 * 2**30, "0.5 MiB": 2**19, "12": 12, "3k": 3000, "2TB": 2 * 10**12}
    assert {text: parse_bytes(text) for text in expected} == expected


def test_batch_is_what_is_looked_for() -> None:
    with pytest.raises(UserError, match="batch is what fit looks for"):
        fit(mlp(), (64,), memory="1GB", batch=4)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3))
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.head(x)
        return y


def rows(model: nn.Module, *size: Any, **options: Any) -> dict[str, dict[str, Any]]:
    return {str(row["change"]): dict(row) for row in savings(model, *size, **options).rows}


def test_savings_are_those_of_captures() -> None:
    model, batch = Stack(), 512
    found = rows(model, (64,), batch=batch, device="cpu", **STEP)
    base = peak(model, batch, **STEP)
    assert found["as it is"]["peak_bytes"] == base
    assert found["batch 256"]["peak_bytes"] == peak(model, 256, **STEP)
    halves = analyze(model, (64,), batch=256, **STEP).memory("cpu", accumulate=2)
    assert found["gradients added up over 256-sample halves"]["peak_bytes"] == halves.peak_bytes
    assert found["SGD, which keeps no state"]["peak_bytes"] == peak(model, batch, **{**STEP, "optimizer": "sgd"})
    # two moments of 99,716 numbers in 1 byte each, with a scale of 4 bytes for every 256
    small = base - found["optimizer state in 8 bits"]["peak_bytes"]
    parameters = sum(p.numel() for p in model.parameters())
    assert small == pytest.approx(2 * parameters * (4 - 1 - 4 / 256), rel=0.02)
    assert found["all in bfloat16"]["peak_bytes"] == peak(model, batch, model_dtype="bfloat16", **STEP)
    again = found["checkpoint each of blocks"]
    # each block's first product runs again; the second one's result nobody needs
    assert again["more_macs"] == 3 * batch * 64 * 256
    assert again["peak_bytes"] < base and again["saved_bytes"] == base - again["peak_bytes"]
    alone = found["train head alone"]
    assert alone["peak_bytes"] < base and alone["more_macs"] < 0
    assert "channels last" not in found


def test_savings_of_a_convolutional_net() -> None:
    found = rows(build("resnet18"), (3, 32, 32), batch=4, device="cpu", training=True)
    stacks = [f"checkpoint each of layer{number}" for number in range(1, 5)]
    assert {*stacks, "checkpoint each of all these", "channels last", "train fc alone"} <= set(found)
    assert "SGD, which keeps no state" not in found  # there is no state to save
    every = found["checkpoint each of all these"]
    assert every["more_macs"] == sum(found[name]["more_macs"] for name in stacks)


def test_the_model_is_as_it_was() -> None:
    model = Stack()
    model.head.bias.requires_grad_(False)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    flags = [p.requires_grad for p in model.parameters()]
    savings(model, (64,), batch=2, **STEP)
    assert [p.requires_grad for p in model.parameters()] == flags
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
    with pytest.raises(RuntimeError, match="stop"), checkpointed([*model.blocks]), frozen_but(model, "head"):
        assert "forward" in model.blocks[0].__dict__ and not model.blocks[0][0].weight.requires_grad  # type: ignore[index]
        raise RuntimeError("stop")
    assert "forward" not in model.blocks[0].__dict__
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_change_that_cannot_be_made_says_why() -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] < 4:
                raise ValueError("four samples at least")
            y: torch.Tensor = self.layer(x)
            return y

    found = rows(Even(), (4,), batch=4, training=True)
    assert found["batch 2"]["peak_bytes"] is None and "four samples at least" in found["batch 2"]["note"]


def test_savings_are_of_a_training_step() -> None:
    with pytest.raises(UserError, match="ask for training=True"):
        savings(mlp(), (64,))
    with pytest.raises(UserError, match="batch is 0"):
        savings(mlp(), (64,), batch=0, training=True)
