"""The article's networks: both tables of torchstat row for row, the true totals, the published figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torchledger import analyze
from torchledger.models.article import VGG16, AlexNet, BasicBlock, Inception

REFERENCE = Path(__file__).parent / "reference"
SIZE = (3, 224, 224)


def on_meta(build: Callable[..., nn.Module], *arguments: int) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


@pytest.mark.parametrize(("model", "name"), [((AlexNet, 10), "alexnet_10"), ((VGG16, 1000), "vgg16_1000")])
def test_torchstat_csv_equals_the_articles(model: tuple[type[nn.Module], int], name: str) -> None:
    text = analyze(on_meta(*model), SIZE).by_layer("torchstat").to_csv()
    assert text.splitlines() == (REFERENCE / f"seed_{name}.csv").read_text().splitlines()


def test_total_is_the_sum_where_torchstat_prints_the_last_layer() -> None:
    table = analyze(on_meta(AlexNet, 10), SIZE).by_layer("torchstat")
    assert table.total["mem_read_b"] == 233_080_104 == sum(row["mem_read_b"] for row in table.rows)
    assert table.total["mem_write_b"] == 4_298_792 == sum(row["mem_write_b"] for row in table.rows)
    assert (table.rows[-1]["mem_read_b"], table.rows[-1]["mem_write_b"]) == (180_264, 40)


def test_inception_block() -> None:
    total = analyze(on_meta(Inception), SIZE).totals("torchstat")
    assert (total["madd"], total["flops"]) == (21_727_940_076, 10_875_898_880)
    assert (total["mem_read_b"], total["mem_write_b"]) == (145_162_480, 199_689_776)
    assert total["excluded"] == 1, "the concatenation runs outside of a leaf module"


def test_basic_block_adds_outside_a_leaf() -> None:
    table = analyze(on_meta(BasicBlock), (64, 56, 56)).by_layer()
    addition = next(row for row in table.rows if row["kind"] in ("add", "add_"))
    assert (addition["module"], addition["flops"]) == ("", 64 * 56 * 56)


@pytest.mark.parametrize(
    ("model", "params", "macs"),
    [
        # AlexNet: 55^2 64 (11^2 3) + 27^2 192 (5^2 64) + 13^2 (384 192 + 256 384 + 256 256) 3^2
        #          + 9216 4096 + 4096^2 + 4096 1000 = 714,188,480
        ((AlexNet, 1000), 61_100_840, 0.714),
        ((VGG16, 1000), 138_357_544, 15.470),
    ],
)
def test_published_figures(model: tuple[type[nn.Module], int], params: int, macs: float) -> None:
    total = analyze(on_meta(*model), SIZE).totals()
    assert total["params"] == params
    assert round(total["macs"] / 1e9, 3) == macs


def test_coverage_line() -> None:
    # 5 convolutions + 7 ReLU + 3 pools + 3 products with bias; 3 transposed weights and a view.
    assert "operations: 18 priced, 4 free, 0 unknown" in analyze(on_meta(AlexNet, 10), SIZE).by_layer().notes


@pytest.mark.parametrize("convention", ["full", "torchstat"])
def test_table_at_80_columns(convention: str, golden: Callable[[str, str], None]) -> None:
    golden(f"alexnet_{convention}_80.txt", analyze(on_meta(AlexNet, 10), SIZE).by_layer(convention).to_text(80))


@pytest.mark.parametrize("convention", ["full", "torchstat"])
def test_batch_scales_every_quantity_but_weights(convention: str) -> None:
    model = on_meta(AlexNet, 10)
    one, two, three = (analyze(model, SIZE, batch=batch).totals(convention) for batch in (1, 2, 3))
    for name, first in one.items():
        # affine in the batch; arithmetic, and all of torchstat's bytes, proportional to it
        assert three[name] - two[name] == two[name] - first, name
    proportional = ("macs", "flops") if convention == "full" else ("madd", "flops", "mem_read_b", "mem_write_b")
    assert all(two[name] == 2 * one[name] for name in proportional)
