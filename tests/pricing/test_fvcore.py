"""The formulas of convention `fvcore`, counted by hand; fvcore 0.1.5 has the same, but none for fused attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchledger import analyze
from torchledger.capture import capture
from torchledger.models import build
from torchledger.pricing import CONVENTIONS, FVCORE
from torchledger.pricing.convention import State
from torchledger.pricing.full import rule_of
from torchledger.pricing.fvcore import RULES
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef


class Function(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def zeros(*sizes: int) -> Tensor:
    return torch.zeros(sizes)


def check(model: nn.Module | Callable[..., Any], inputs: tuple[Tensor, ...], macs: int, activations: int = 0) -> None:
    """Compare the totals, for a model on the CPU and for one on meta."""
    model = model if isinstance(model, nn.Module) else Function(model)
    for given in (inputs, tuple(x.to("meta") for x in inputs)):
        total = analyze(model, *given).totals("fvcore")
        assert (total["macs"], total["activations"], total["unknown"]) == (macs, activations, 0)


# --- contractions --------------------------------------------------------------------------------------------------


def test_convolution() -> None:
    # 2 samples, 6 outputs of 3 x 3 places; each of 4 / 2 channels by 3 x 3, the bias not counted
    macs = 0
    for _ in itertools.product(range(2), range(6), range(3), range(3)):
        for _ in itertools.product(range(4 // 2), range(3), range(3)):
            macs += 1
    check(nn.Conv2d(4, 6, 3, groups=2), (zeros(2, 4, 5, 5),), macs, 2 * 6 * 3 * 3)
    check(nn.Conv2d(4, 6, 3, groups=2, bias=False), (zeros(2, 4, 5, 5),), macs, 2 * 6 * 3 * 3)
    # 3 places of 6 outputs, 4 channels by 3
    check(nn.Conv1d(4, 6, 3), (zeros(2, 4, 5),), 2 * 6 * 3 * 4 * 3, 2 * 6 * 3)
    check(nn.Conv3d(4, 6, 2), (zeros(1, 4, 3, 3, 3),), 6 * 8 * 4 * 8, 6 * 8)


def test_transposed_convolution() -> None:
    # each of 2 4 5 5 inputs goes into 6 / 2 outputs by 3 x 3; 2 (5 - 1) + 3 = 11 places along a side
    check(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (zeros(2, 4, 5, 5),), 2 * 4 * 25 * 3 * 9, 2 * 6 * 11 * 11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (2,), (2, 5), (2, 5, 6)])
def test_linear(rows: tuple[int, ...], bias: bool) -> None:
    # 4 outputs of 3 products for each row
    check(nn.Linear(3, 4, bias), (zeros(*rows, 3),), zeros(*rows).numel() * 4 * 3, zeros(*rows).numel() * 4)


def test_products() -> None:
    # 2 3 matrices of 4 by 5, 6 products each
    check(torch.matmul, (zeros(2, 3, 4, 6), zeros(2, 3, 6, 5)), 2 * 3 * 4 * 5 * 6, 2 * 3 * 4 * 5)
    check(torch.bmm, (zeros(2, 3, 4), zeros(2, 4, 5)), 2 * 3 * 5 * 4, 2 * 3 * 5)
    check(torch.matmul, (zeros(2, 3, 4), zeros(4, 5)), 2 * 3 * 5 * 4, 2 * 3 * 5)
    check(torch.addmm, (zeros(5), zeros(2, 4), zeros(4, 5)), 2 * 5 * 4, 2 * 5)
    # 2 3 4 7 sums of 5 products
    check(lambda a, b: torch.einsum("bhwc,hkc->bhwk", a, b), (zeros(2, 3, 4, 5), zeros(3, 7, 5)), 168 * 5, 168)


def test_attention_is_counted_unfused() -> None:
    def unfused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1)).softmax(-1) @ value

    inputs = zeros(2, 3, 4, 5), zeros(2, 3, 6, 5), zeros(2, 3, 6, 7)
    # 2 3 heads: 4 by 6 scores of 5 products, 4 by 7 results of 6
    macs, activations = 6 * (4 * 6 * 5 + 4 * 7 * 6), 6 * (4 * 6 + 4 * 7)
    check(unfused, inputs, macs, activations)
    check(F.scaled_dot_product_attention, inputs, macs, activations)
    check(lambda *given: F.scaled_dot_product_attention(*given, is_causal=True), inputs, macs, activations)


def test_attention_layer_counts_the_same_with_weights_and_without() -> None:
    x = zeros(3, 2, 8)  # 3 places of 2 samples
    for weights in (True, False):
        layer = nn.MultiheadAttention(8, 2)
        # query, key, value and output: 4 times 6 rows of 8 by 8; 2 2 heads of 3 3 scores and 3 4 results, 4 and 3 each
        macs, activations = 4 * 6 * 8 * 8 + 4 * (3 * 3 * 4 + 3 * 4 * 3), 4 * 6 * 8 + 4 * (3 * 3 + 3 * 4)
        check(Called(layer, weights), (x,), macs, activations)


class Called(nn.Module):
    def __init__(self, layer: nn.MultiheadAttention, weights: bool) -> None:
        super().__init__()
        self.layer, self.weights = layer, weights

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x, x, need_weights=self.weights)[0]


# --- what has a rate -----------------------------------------------------------------------------------------------


def test_norms() -> None:
    x = zeros(2, 4, 3, 3)  # 72 elements
    check(nn.BatchNorm2d(4), (x,), 2 * 72)
    check(nn.BatchNorm2d(4, affine=False), (x,), 72)
    check(nn.GroupNorm(2, 4), (x,), 5 * 72)
    check(nn.GroupNorm(2, 4, affine=False), (x,), 4 * 72)
    check(nn.LayerNorm(3), (x,), 5 * 72)
    check(nn.LayerNorm(3, elementwise_affine=False), (x,), 4 * 72)
    # with the statistics of the input
    check(nn.InstanceNorm2d(4, affine=True), (x,), 5 * 72)
    check(nn.InstanceNorm2d(4), (x,), 4 * 72)
    total = analyze(nn.BatchNorm2d(4), x, mode="train").totals("fvcore")
    assert total["macs"] == 5 * 72


def test_adaptive_pool_reads_its_input_once() -> None:
    x = zeros(2, 3, 4, 6)
    for size in (1, 2, (3, 6)):
        check(nn.AdaptiveAvgPool2d(size), (x,), 2 * 3 * 4 * 6)
    check(nn.AdaptiveAvgPool2d(1), (x[0],), 3 * 4 * 6)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.mean((-2, -1), keepdim=True),
        lambda x: x.mean((-1, -2)),
        lambda x: x.mean(1),
        lambda x: x.mean(),
        lambda x: F.adaptive_avg_pool1d(x[0], 1),
        lambda x: F.adaptive_avg_pool1d(x[0], 2),
        lambda x: F.adaptive_avg_pool3d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True),
    ],
)
def test_other_means_pools_and_resizings_are_left_out(model: Callable[[Tensor], Tensor]) -> None:
    check(model, (zeros(2, 3, 4, 6),), 0)


def test_resampling() -> None:
    x = zeros(2, 3, 4, 5)
    check(lambda x: F.interpolate(x, scale_factor=2), (x,), 2 * 3 * 8 * 10)
    check(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (x,), 4 * 2 * 3 * 8 * 10)
    check(lambda x, g: F.grid_sample(x, g, align_corners=False), (x, zeros(2, 6, 7, 2)), 4 * 2 * 3 * 6 * 7)
    volume, grid = zeros(1, 3, 2, 2, 2), zeros(1, 4, 5, 6, 3)
    check(lambda x, g: F.grid_sample(x, g, align_corners=False), (volume, grid), 4 * 3 * 4 * 5 * 6)


def test_every_rule_prices_something() -> None:
    x = zeros(2, 4, 6, 6)
    volume = (zeros(1, 3, 2, 2, 2), zeros(1, 4, 5, 6, 3))
    given: list[tuple[nn.Module | Callable[..., Any], tuple[Tensor, ...]]] = [
        *((layer, (x,)) for layer in (nn.Conv2d(4, 2, 3), nn.BatchNorm2d(4), nn.LayerNorm(6), nn.GroupNorm(2, 4))),
        *((nn.AdaptiveAvgPool2d(size), (x,)) for size in (1, 2)),
        *((nn.Linear(6, 2, bias), (x,)) for bias in (True, False)),
        *((nn.Upsample(scale_factor=2, mode=mode), (x,)) for mode in ("nearest", "bilinear")),
        (torch.bmm, (zeros(2, 3, 4), zeros(2, 4, 5))),
        (F.scaled_dot_product_attention, (x, x, x)),
        (lambda x, g: F.grid_sample(x, g, align_corners=False), (x, zeros(2, 6, 7, 2))),
        (lambda x, g: F.grid_sample(x, g, align_corners=False), volume),
    ]
    modules = [model if isinstance(model, nn.Module) else Function(model) for model, _ in given]
    records = [capture(model, inputs, {}).record for model, (_, inputs) in zip(modules, given, strict=True)]
    operations = [operation for record in records for operation in record.operations]
    # `linear` is what devices with a kernel of its own run for an addmm or mm
    assert {o.name for o in operations if FVCORE.price(o).state is State.PRICED} | {"linear"} == set(RULES)


def test_linear_that_stays_whole_counts_as_the_layer() -> None:
    x, weight, made = (TensorInfo(shape, (9, 1), "float32") for shape in ((2, 3), (4, 3), (2, 4)))
    whole = Operation("linear", {"input": TensorRef(0), "weight": TensorRef(1)}, (x, weight), (OutputInfo(made),))
    assert FVCORE.price(whole).amounts == {"macs": 2 * 4 * 3, "activations": 2 * 4}


# --- what it leaves out --------------------------------------------------------------------------------------------


def states(model: nn.Module | Callable[..., Any], *inputs: Tensor) -> dict[str, State]:
    module = model if isinstance(model, nn.Module) else Function(model)
    record = capture(module, inputs, {}).record
    return {operation.name: FVCORE.price(operation).state for operation in record.operations}


@pytest.mark.parametrize(
    ("model", "inputs", "name"),
    [
        (nn.ReLU(), (zeros(3),), "relu"),
        (nn.Softmax(1), (zeros(2, 3),), "softmax"),
        (torch.add, (zeros(3), zeros(3)), "add"),
        (torch.baddbmm, (zeros(2, 3, 3), zeros(2, 3, 4), zeros(2, 4, 3)), "baddbmm"),
        (torch.mv, (zeros(3, 4), zeros(4)), "mv"),
        (torch.dot, (zeros(4), zeros(4)), "dot"),
        (nn.Bilinear(3, 4, 5), (zeros(2, 3), zeros(2, 4)), "_trilinear"),
        (torch.cdist, (zeros(2, 3), zeros(5, 3)), "_cdist_forward"),
        (nn.MaxPool2d(2), (zeros(1, 3, 4, 4),), "max_pool2d"),
        (nn.Embedding(3, 4), (torch.zeros(2, dtype=torch.int64),), "embedding"),
    ],
)
def test_what_fvcore_has_no_handle_for_is_excluded(model: Any, inputs: tuple[Tensor, ...], name: str) -> None:
    assert states(model, *inputs)[name] is State.EXCLUDED
    module = model if isinstance(model, nn.Module) else Function(model)
    total = analyze(module, *inputs).totals("fvcore")
    assert (total["priced"], total["unknown"]) == (0, 0) and total["excluded"]


def test_views_are_free_and_unknown_operations_stay_unknown() -> None:
    assert states(nn.Flatten(), zeros(1, 3, 4)) == {"view": State.FREE}
    assert states(lambda x: torch.linalg.qr(x)[0], zeros(3, 3)) == {"linalg_qr": State.EXCLUDED}
    assert FVCORE.price(Operation("mylib::op", {}, (), ())).state is State.UNKNOWN


@pytest.mark.parametrize("name", sorted(RULES))
def test_operation_that_does_not_fit_its_rule_is_unknown_rather_than_an_error(name: str) -> None:
    given = (TensorInfo((2, 3, 4, 5), (60, 20, 5, 1), "float32"), TensorInfo((), (), "float32"))
    for inputs, outputs in (((), ()), (given, ()), (given[1:], (OutputInfo(given[1]),))):
        for arguments in ({}, dict.fromkeys(("self", "weight", "query", "key"), TensorRef(0)) if inputs else {}):
            priced = FVCORE.price(Operation(name, arguments, inputs, outputs))
            assert priced.amounts or priced.state in (State.UNKNOWN, State.EXCLUDED)


def test_full_has_a_rule_for_whatever_fvcore_prices() -> None:
    assert [name for name in RULES if rule_of(name) is None] == []


# --- tables --------------------------------------------------------------------------------------------------------


def test_a_network_as_published() -> None:
    with torch.device("meta"):
        ledger = analyze(build("resnet50"), (3, 224, 224))
    full, total = ledger.totals(), ledger.totals("fvcore")
    # the contractions; 2 an element that a convolution put out, each of which goes through a BatchNorm; the last pool's
    # 2048 7 7; activations: the convolutions' and 1000 classes
    assert total["macs"] == full["macs"] + 2 * (total["activations"] - 1000) + 2048 * 7 * 7
    # what timm's model card says: 4.1 GMACs, 11.1 M activations
    assert (round(total["macs"] / 1e9, 2), round(total["activations"] / 1e6, 2)) == (4.11, 11.11)


def test_quantities_show_in_every_view() -> None:
    ledger = analyze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (3, 5, 5))
    names = tuple(quantity.name for quantity in FVCORE.quantities)
    assert names == ("macs", "activations")
    expected = {"macs": 36 * 27 + 2 * 36, "activations": 36}  # 4 3 3 outputs of 3 3 3 products
    for table in (ledger.by_layer("fvcore"), ledger.by_operation("fvcore"), ledger.by_module(1, "fvcore")):
        assert {name: table.total[name] for name in names} == expected
        for name in names:
            assert sum(row[name] or 0 for row in table.rows) == expected[name]
    rows = ledger.by_layer("fvcore").rows
    # neither zero nor unknown
    assert [(row["macs"], row["activations"]) for row in rows] == [(36 * 27, 36), (72, None), (None, None)]


def test_table_at_80_columns(golden: Callable[[str, str], None]) -> None:
    with torch.device("meta"):
        model = build("resnet18")
    golden("resnet18_fvcore_80.txt", analyze(model, (3, 224, 224)).by_layer("fvcore").to_text(80))


def test_conventions_in_order() -> None:
    assert list(CONVENTIONS) == ["full", "torchstat", "fvcore"]
