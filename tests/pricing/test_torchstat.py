"""The formulas of convention `torchstat` against torchstat 0.0.7's arithmetic, counted by hand.

Its MAdd counts multiplications and additions apart, its Flops multiply-accumulates (elements where there are none), its
memory bytes of input and parameters, the parameters again for each sample. A figure that it prints as 0 because it
does not know the module is missing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchledger import analyze
from torchledger.capture import capture
from torchledger.pricing import TORCHSTAT
from torchledger.pricing.convention import State
from torchledger.pricing.full import rule_of
from torchledger.pricing.torchstat import RULES
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

COLUMNS = ("madd", "flops", "mem_read_b", "mem_write_b", "mem_rw_b")


class Function(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def row(layer: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Return the row of a leaf module."""
    (found,) = analyze(layer, *inputs).by_layer("torchstat").rows
    return found


def columns(madd: int | None, flops: int | None, read: int | None, written: int | None) -> dict[str, int | None]:
    """Return the columns; reads and writes are in elements of 4 bytes."""
    if read is None or written is None:
        return dict(zip(COLUMNS, (madd, flops, None, None, None), strict=True))
    return dict(zip(COLUMNS, (madd, flops, 4 * read, 4 * written, 4 * (read + written)), strict=True))


def check(layer: nn.Module, size: tuple[int, ...], expected: dict[str, int | None]) -> None:
    """Compare the row of one sample, and that of three: torchstat's figures are for one, ours times the batch."""
    for batch in (1, 3):
        found = row(layer, torch.zeros(batch, *size))
        assert {name: found[name] for name in COLUMNS} == {
            name: None if amount is None else batch * amount for name, amount in expected.items()
        }


# --- modules that torchstat knows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "size", "made"),
    [
        (nn.Conv2d(3, 4, 3), (3, 5, 6), (4, 3, 4)),
        (nn.Conv2d(3, 4, (3, 2), bias=False), (3, 5, 6), (4, 3, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 6), (6, 3, 3)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False), (4, 5, 5), (4, 5, 5)),
    ],
)
def test_convolution(layer: Any, size: tuple[int, ...], made: tuple[int, ...]) -> None:
    has_bias = layer.bias is not None
    multiplications = additions = accumulated = 0
    for _ in range(math.prod(made)):
        first = True
        for _ in range(layer.in_channels // layer.groups * math.prod(layer.kernel_size)):
            multiplications += 1
            additions += not first
            first = False
            accumulated += 1
        additions += has_bias
        accumulated += has_bias
    read = math.prod(size) + sum(p.numel() for p in layer.parameters())
    check(layer, size, columns(multiplications + additions, accumulated, read, math.prod(made)))


def test_convolution_as_the_article_has_it() -> None:
    # AlexNet's first: 55 55 64 outputs of 3 11 11, 363 products, 362 additions and the bias
    madd, flops = 55 * 55 * 64 * (363 + 363), 55 * 55 * 64 * (363 + 1)
    read, written = 3 * 224 * 224 + 64 * 363 + 64, 55 * 55 * 64
    assert (madd, flops, 4 * read) == (140_553_600, 70_470_400, 695_296)
    with torch.device("meta"):
        layer = nn.Conv2d(3, 64, 11, stride=4, padding=2)
    found = row(layer, torch.empty(1, 3, 224, 224, device="meta"))
    assert {name: found[name] for name in COLUMNS} == columns(madd, flops, read, written)


def test_transposed_convolution_is_counted_at_the_size_of_its_input() -> None:
    # 4 5 places, 6 outputs, 3 3 3 products each and 26 additions; with a bias 27
    check(nn.ConvTranspose2d(3, 6, 3, stride=2), (3, 4, 5), columns(4 * 5 * 6 * (27 + 27), None, None, None))
    check(nn.ConvTranspose2d(3, 6, 3, bias=False), (3, 4, 5), columns(4 * 5 * 6 * (27 + 26), None, None, None))
    # two groups: half of the channels
    check(nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 5), columns(4 * 5 * 6 * (18 + 18), None, None, None))


def test_linear() -> None:
    # 4 outputs of 3 products and 2 additions, the bias not counted; 3 inputs, 12 weights (and 4 biases) read
    check(nn.Linear(3, 4), (3,), columns(4 * (3 + 2), 3 * 4, 3 + 12 + 4, 4))
    check(nn.Linear(3, 4, bias=False), (3,), columns(4 * (3 + 2), 3 * 4, 3 + 12, 4))


def test_bilinear() -> None:
    # 5 outputs of 3 4 + 4 products and one addition fewer
    for batch in (1, 3):
        found = row(nn.Bilinear(3, 4, 5), torch.zeros(batch, 3), torch.zeros(batch, 4))
        assert (found["madd"], found["flops"], found["mem_read_b"]) == (batch * 5 * (16 + 15), None, None)


def test_batch_norm() -> None:
    # subtract, divide, multiply, add; two flops an element, one without weight and bias; two numbers a channel
    check(nn.BatchNorm2d(3), (3, 4, 5), columns(4 * 60, 2 * 60, 60 + 2 * 3, 60))
    check(nn.BatchNorm2d(3, affine=False), (3, 4, 5), columns(4 * 60, 60, 60 + 2 * 3, 60))


@pytest.mark.parametrize("kernel", [2, (2, 3)])
def test_pools(kernel: Any) -> None:
    height, width = (2, 2) if kernel == 2 else kernel
    made = 3 * (4 // height) * (6 // width)
    window = height * width
    # a maximum: one comparison fewer than the window has elements; an average: its additions and a division
    check(nn.MaxPool2d(kernel), (3, 4, 6), columns(made * (window - 1), 3 * 4 * 6, 3 * 4 * 6, made))
    check(nn.AvgPool2d(kernel), (3, 4, 6), columns(made * (window - 1 + 1), 3 * 4 * 6, 3 * 4 * 6, made))


def test_window_of_one_number_is_square() -> None:
    """3 2 outputs of 3 3 elements, 8 comparisons each."""
    pool = torch.ops.aten.max_pool2d_with_indices
    found = row(Function(lambda x: pool(x, [3], [3])), torch.zeros(1, 3, 3, 6))
    assert found["madd"] == 3 * 2 * (9 - 1)


def test_activations() -> None:
    for layer in (nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True)):
        check(layer, (3, 4), columns(12, 12, 12, 12))
    # torchstat has no MAdd of these
    for layer in (nn.ELU(), nn.LeakyReLU(), nn.ELU(inplace=True), nn.LeakyReLU(inplace=True)):
        check(layer, (3, 4), columns(None, 12, 12, 12))
    # the slopes are read again for each sample
    check(nn.PReLU(), (3, 4), columns(None, 12, 12 + 1, 12))
    check(nn.PReLU(3), (3, 4), columns(None, 12, 12 + 3, 12))


def test_softmax() -> None:
    # 12 exponentials, 11 additions, 12 divisions for a sample, whatever the dimension
    check(nn.Softmax(1), (3, 4), columns(12 + 11 + 12, None, None, None))
    check(nn.Softmax(-1), (3, 4), columns(12 + 11 + 12, None, None, None))
    check(nn.Softmax(1), (3,), columns(3 + 2 + 3, None, None, None))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_upsampling_leaves_the_channels_out(mode: str) -> None:
    check(nn.Upsample(scale_factor=2, mode=mode), (3, 4, 5), columns(None, 8 * 10, None, None))


def test_upsampling_of_one_and_three_dimensions() -> None:
    for mode in ("nearest", "nearest-exact", "linear"):
        check(nn.Upsample(scale_factor=2, mode=mode), (3, 4), columns(None, 8, None, None))
    for mode in ("nearest", "nearest-exact", "trilinear"):
        check(nn.Upsample(scale_factor=2, mode=mode), (3, 2, 2, 2), columns(None, 4 * 4 * 4, None, None))


def test_size_of_numbers_is_that_of_the_input() -> None:
    small = row(nn.ReLU(), torch.zeros(1, 3, 4, dtype=torch.bfloat16))
    assert (small["mem_read_b"], small["mem_write_b"], small["mem_rw_b"]) == (2 * 12, 2 * 12, 2 * 24)
    # but the output's size is told at 4 bytes an element
    assert small["memory_mb"] == 4 * 12 / 2**20


def test_every_rule_prices_a_module() -> None:
    layers: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
        (nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 4, 4),)),
        (nn.Linear(3, 4), (torch.zeros(1, 3),)),
        (nn.Linear(3, 4, bias=False), (torch.zeros(1, 3),)),
        (nn.Bilinear(3, 4, 5), (torch.zeros(1, 3), torch.zeros(1, 4))),
        *((layer, (torch.zeros(1, 3, 4, 4),)) for layer in (nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.AvgPool2d(2))),
        *((layer, (torch.zeros(1, 3),)) for layer in (nn.ReLU(), nn.ReLU6(), nn.ELU(), nn.LeakyReLU(), nn.Softmax(1))),
        (nn.PReLU(), (torch.zeros(1, 3),)),
        *(
            (nn.Upsample(scale_factor=2, mode=mode), (torch.zeros(1, 3, *dimensions * [2]),))
            for dimensions, kinds in ((1, ["linear"]), (2, ["bilinear", "bicubic"]), (3, ["trilinear"]))
            for mode in (*kinds, "nearest", "nearest-exact")
        ),
    ]
    records = [capture(layer, given, {}).record for layer, given in layers]
    assert {operation.name for record in records for operation in record.operations} >= set(RULES)


# --- what it does not know ---------------------------------------------------------------------------------------


def states(layer: nn.Module, *inputs: Tensor) -> dict[str, State]:
    record = capture(layer, inputs, {}).record
    return {operation.name: TORCHSTAT.price(operation).state for operation in record.operations}


@pytest.mark.parametrize(
    ("layer", "size", "name"),
    [
        (nn.Conv1d(3, 4, 3), (1, 3, 6), "convolution"),
        (nn.Conv3d(3, 4, 2), (1, 3, 4, 4, 4), "convolution"),
        (nn.ConvTranspose1d(3, 4, 3), (1, 3, 6), "convolution"),
        (nn.BatchNorm1d(3), (2, 3), "batch_norm"),
        (nn.BatchNorm1d(3), (2, 3, 4), "batch_norm"),
        (nn.BatchNorm3d(3), (1, 3, 2, 2, 2), "batch_norm"),
        (nn.MaxPool3d(2), (1, 3, 4, 4, 4), "max_pool3d"),
        (nn.AvgPool3d(2), (1, 3, 4, 4, 4), "avg_pool3d"),
        (nn.AdaptiveAvgPool2d(2), (1, 3, 4, 4), "adaptive_avg_pool2d"),
        (nn.LayerNorm(4), (1, 4), "layer_norm"),
        (nn.GroupNorm(1, 4), (1, 4, 2), "group_norm"),
        (nn.Sigmoid(), (1, 4), "sigmoid"),
        (nn.Tanh(), (1, 4), "tanh"),
        (nn.GELU(), (1, 4), "gelu"),
        (nn.LogSoftmax(1), (1, 4), "log_softmax"),
        (nn.Softmax(0), (4,), "softmax"),  # torchstat asks for a batch
    ],
)
def test_what_torchstat_does_not_know_is_excluded(layer: nn.Module, size: tuple[int, ...], name: str) -> None:
    x = torch.zeros(size)
    assert states(layer, x) == {name: State.EXCLUDED}
    total = analyze(layer, x).totals("torchstat")
    assert (total["excluded"], total["priced"], total["unknown"]) == (1, 0, 0)
    found = row(layer, x)
    assert [found[column] for column in COLUMNS] == 5 * [None], "neither zero nor unknown"


def test_views_are_free_and_unknown_operations_stay_unknown() -> None:
    assert states(nn.Flatten(), torch.zeros(1, 3, 4)) == {"view": State.FREE}
    assert TORCHSTAT.price(Operation("mylib::op", {}, (), ())).state is State.UNKNOWN
    (one,) = capture(Function(lambda x: torch.cat([x, x])), (torch.zeros(3),), {}).record.operations
    assert TORCHSTAT.price(one).state is State.EXCLUDED
    assert not TORCHSTAT.price(one).amounts


def test_only_leaf_modules_count() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.cat([self.relu(x), x]))

    ledger = analyze(Block(), (3,))
    total = ledger.totals("torchstat")
    # the function and the concatenation run outside of a leaf
    assert (total["madd"], total["excluded"], total["priced"]) == (3, 2, 1)
    assert [found["module"] for found in ledger.by_layer("torchstat").rows] == ["relu"]


def test_dropout_that_does_nothing_has_a_row() -> None:
    found = row(nn.Dropout(), torch.zeros(1, 3))
    assert (found["params"], found["memory_mb"]) == (0, 4 * 3 / 2**20)


def test_priced_states_have_the_columns_that_torchstat_has() -> None:
    assert tuple(quantity.name for quantity in TORCHSTAT.quantities) == COLUMNS
    assert TORCHSTAT.leaves_only and TORCHSTAT.exact


@pytest.mark.parametrize("name", sorted(RULES))
def test_operation_that_does_not_fit_its_rule_is_unknown_rather_than_an_error(name: str) -> None:
    given = (TensorInfo((2, 3, 4, 5), (60, 20, 5, 1), "float32"), TensorInfo((), (), "float32"))
    for inputs, outputs in (
        ((), ()),
        (given, ()),
        (given[1:], (OutputInfo(given[1]),)),
        (given, (OutputInfo(given[1]),)),
    ):
        for arguments in ({}, dict.fromkeys(("self", "weight", "mat1", "mat2"), TensorRef(0)) if inputs else {}):
            priced = TORCHSTAT.price(Operation(name, arguments, inputs, outputs))
            assert priced.amounts or priced.state in (State.UNKNOWN, State.EXCLUDED)


def test_full_has_a_rule_for_whatever_torchstat_prices() -> None:
    assert [name for name in RULES if rule_of(name) is None] == []
