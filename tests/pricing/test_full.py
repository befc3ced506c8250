"""The formulas of convention `full` against counting by hand.

Each operation is carried out in plain loops over numbers that count what is done with them. The loops must give what
torch gives (so they are the operation), and the formula must give what the numbers counted. Bytes are counted as
distinct addresses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from counting import (
    Array,
    Number,
    counting,
    exponential,
    flops,
    inverse_root,
    largest,
    logarithm,
    mean,
    numbers,
    positive,
    product_sum,
    random,
    root,
    rows,
    total,
    values,
)
from torch import Tensor, nn

from torchledger import analyze
from torchledger.capture import capture
from torchledger.pricing.convention import State
from torchledger.pricing.full import FREE_OPERATIONS, RULES, price, rule_of
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

aten = torch.ops.aten


class Function(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def operations(function: Callable[..., Any], *tensors: Any) -> list[Operation]:
    captured = capture(Function(function), tensors, {})
    if captured.error is not None:
        raise captured.error
    return [captured.record.operations[entry.operation] for entry in captured.record.entries]


def price_of(name: str, function: Callable[..., Any], *tensors: Any) -> dict[str, int]:
    """Return the price of the one operation `name` that `function` runs."""
    found = operations(function, *tensors)
    (operation,) = [one for one in found if one.name == name]
    priced = price(operation)
    assert priced.state is State.PRICED
    return dict(priced.amounts)


def check(name: str, function: Callable[..., Any], by_hand: Callable[..., Any], *tensors: Tensor) -> dict[str, int]:
    """Compare what `function` gives and costs with what `by_hand`, given arrays of Number, gives and counts."""
    with counting() as counts:
        result = by_hand(*(numbers(tensor) for tensor in tensors))
    torch.testing.assert_close(values(result), function(*tensors), rtol=1e-4, atol=1e-5)
    amounts = price_of(name, function, *tensors)
    assert (amounts["macs"], amounts["flops"]) == (counts["macs"], flops(counts))
    assert amounts["flops"], "nothing was compared"
    return amounts


# --- contractions ------------------------------------------------------------------------------------------------


def convolve(
    x: Array, weight: Array, bias: Array | None, stride: int, padding: int, dilation: int, groups: int
) -> Array:
    samples, channels, *size = x.shape
    filters, per_group, *kernel = weight.shape
    padded = np.full((samples, channels, *(n + 2 * padding for n in size)), Number(0.0))
    padded[(..., *(slice(padding, padding + n) for n in size))] = x
    made = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    result = np.empty((samples, filters, *made), dtype=object)
    for sample, out, *place in np.ndindex(result.shape):
        sum_ = Number(0.0)
        for channel, *tap in np.ndindex((per_group, *kernel)):
            source = out // (filters // groups) * per_group + channel
            at = [p * stride + t * dilation for p, t in zip(place, tap, strict=True)]
            sum_ = sum_.plus_product(padded[(sample, source, *at)], weight[(out, channel, *tap)])
        result[(sample, out, *place)] = sum_ if bias is None else sum_ + bias[out]
    return result


@pytest.mark.parametrize(
    ("size", "weight", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 7), (4, 3, 3), 1, 0, 1, 1),
        ((1, 4, 8), (6, 2, 3), 2, 1, 2, 2),
        ((2, 2, 5, 6), (3, 2, 3, 2), 1, 0, 1, 1),
        ((1, 4, 6, 6), (4, 1, 3, 3), 1, 1, 1, 4),
        ((1, 4, 7, 5), (2, 2, 3, 3), 2, 2, 2, 2),
        ((1, 2, 3, 4, 4), (2, 2, 2, 3, 1), 1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution(
    size: Any, weight: Any, stride: int, padding: int, dilation: int, groups: int, with_bias: bool
) -> None:
    tensors = [random(*size), random(*weight), *([random(weight[0])] if with_bias else [])]
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(size)]
    amounts = check(
        "convolution",
        lambda x, w, b=None: function(x, w, b, stride, padding, dilation, groups),
        lambda x, w, b=None: convolve(x, w, b, stride, padding, dilation, groups),
        *tensors,
    )
    assert amounts["bytes_read"] == sum(4 * tensor.numel() for tensor in tensors)


def convolve_transposed(x: Array, weight: Array, bias: Array | None, stride: int, padding: int, groups: int) -> Array:
    """Spread each element of the input over its window of the output; what padding cuts off is computed too."""
    samples, channels, *size = x.shape
    _, per_group, *kernel = weight.shape
    whole = [(n - 1) * stride + k for n, k in zip(size, kernel, strict=True)]
    result = np.full((samples, per_group * groups, *whole), Number(0.0))
    for sample, channel, *place in np.ndindex(x.shape):
        for out, *tap in np.ndindex((per_group, *kernel)):
            target = channel // (channels // groups) * per_group + out
            at = (sample, target, *(p * stride + t for p, t in zip(place, tap, strict=True)))
            result[at] = result[at].plus_product(x[(sample, channel, *place)], weight[(channel, out, *tap)])
    result = result[(..., *(slice(padding, n - padding) for n in whole))]
    if bias is not None:
        for index in np.ndindex(result.shape):
            result[index] = result[index] + bias[index[1]]
    return result


@pytest.mark.parametrize(
    ("size", "weight", "stride", "padding", "groups"),
    [
        ((2, 3, 4), (3, 2, 3), 2, 0, 1),
        ((1, 3, 4, 3), (3, 2, 3, 2), 2, 1, 1),
        ((1, 4, 3, 3), (4, 2, 3, 3), 1, 0, 2),
        ((1, 2, 2, 2, 3), (2, 2, 2, 1, 2), 2, 0, 1),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_transposed_convolution(
    size: Any, weight: Any, stride: int, padding: int, groups: int, with_bias: bool
) -> None:
    bias = [random(weight[1] * groups)] if with_bias else []
    function = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[len(size)]
    check(
        "convolution",
        lambda x, w, b=None: function(x, w, b, stride, padding, 0, groups),
        lambda x, w, b=None: convolve_transposed(x, w, b, stride, padding, groups),
        random(*size),
        random(*weight),
        *bias,
    )


def multiply(left: Array, right: Array) -> Array:
    if right.ndim == 1:
        return np.array([product_sum(row, right) for row in left])
    if left.ndim == 3:
        return np.array([multiply(*pair) for pair in zip(left, right, strict=True)])
    return np.array([[product_sum(row, column) for column in right.T] for row in left])


def plus(left: Array, right: Array) -> Array:
    pairs = np.broadcast(left, right)
    return np.array([a + b for a, b in pairs], dtype=object).reshape(pairs.shape)


@pytest.mark.parametrize(
    ("name", "function", "by_hand", "shapes"),
    [
        ("mm", torch.mm, multiply, [(2, 3), (3, 4)]),
        ("bmm", torch.bmm, multiply, [(2, 3, 4), (2, 4, 5)]),
        ("mv", torch.mv, multiply, [(2, 3), (3,)]),
        ("dot", torch.dot, product_sum, [(5,), (5,)]),
        ("vdot", torch.vdot, product_sum, [(5,), (5,)]),
        ("addmm", torch.addmm, lambda b, x, y: plus(multiply(x, y), b), [(4,), (2, 3), (3, 4)]),
        ("addmm", torch.addmm, lambda b, x, y: plus(multiply(x, y), b), [(2, 4), (2, 3), (3, 4)]),
        ("baddbmm", torch.baddbmm, lambda b, x, y: plus(multiply(x, y), b), [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
        ("addmv", torch.addmv, lambda b, x, y: plus(multiply(x, y), b), [(2,), (2, 3), (3,)]),
        (
            "addbmm",
            torch.addbmm,
            lambda b, x, y: plus(multiply(np.concatenate([*x], 1), np.concatenate([*y], 0)), b),
            [(3, 5), (2, 3, 4), (2, 4, 5)],
        ),
        ("addmm", F.linear, lambda x, w, b: plus(multiply(x, w.T), b), [(2, 3), (4, 3), (4,)]),
        # each of 2 3 rows
        (
            "addmm",
            F.linear,
            lambda x, w, b: plus(multiply(rows(x), w.T), b).reshape(2, 3, 5),
            [(2, 3, 4), (5, 4), (5,)],
        ),
        ("mm", F.linear, lambda x, w: multiply(x, w.T), [(2, 3), (4, 3)]),
        ("bmm", lambda x, y: torch.einsum("bij,bjk->bik", x, y), multiply, [(2, 3, 4), (2, 4, 5)]),
        # the left side is the same for both samples
        ("bmm", torch.matmul, lambda x, y: multiply(np.stack([x[0], x[0]]), y), [(1, 3, 4), (2, 4, 5)]),
    ],
)
def test_matrix_products(name: str, function: Any, by_hand: Any, shapes: Any) -> None:
    check(name, function, by_hand, *(random(*shape, seed=index) for index, shape in enumerate(shapes)))


def test_outer_product_added_is_no_contraction() -> None:
    amounts = price_of("addr", torch.addr, random(2, 3), random(2), random(3))
    assert (amounts["macs"], amounts["flops"]) == (0, 2 * 3 * 2)


def test_linear_that_stays_whole() -> None:
    """What a device that keeps `aten::linear` in one piece would show."""
    given = (tensor(2, 3, 4), tensor(5, 4), tensor(5))
    arguments = {"input": TensorRef(0), "weight": TensorRef(1), "bias": TensorRef(2)}
    amounts = price(Operation("linear", arguments, given, (OutputInfo(tensor(2, 3, 5)),))).amounts
    # 2 3 rows of 4 by 5 weights of 4; a bias for each of 2 3 5 outputs
    assert (amounts["macs"], amounts["flops"]) == (2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5 + 2 * 3 * 5)
    assert amounts["bytes_read"] == 4 * (2 * 3 * 4 + 5 * 4 + 5)


def test_grouped_matrices() -> None:
    offsets = torch.tensor([2, 6], dtype=torch.int32)
    x, each = random(6, 16).bfloat16(), random(2, 16, 8).bfloat16()
    # each of 6 rows belongs to one of the two matrices of 16 by 8
    assert price_of("_grouped_mm", torch._grouped_mm, x, each, offsets)["macs"] == 6 * 16 * 8
    # 6 columns in two groups: a product of 8 by (2 + 4) by 16 in all
    left, right = random(6, 8).bfloat16().t(), random(6, 16).bfloat16()
    assert price_of("_grouped_mm", torch._grouped_mm, left, right, offsets)["macs"] == 8 * 6 * 16


def test_bias_of_grouped_matrices() -> None:
    """One addition for each of 6 8 outputs; torch has the argument, but runs it nowhere yet."""
    given = (tensor(6, 16), tensor(2, 16, 8), tensor(8))
    arguments = {"self": TensorRef(0), "mat2": TensorRef(1), "bias": TensorRef(2)}
    amounts = price(Operation("_grouped_mm", arguments, given, (OutputInfo(tensor(6, 8)),))).amounts
    assert amounts["flops"] == 2 * 6 * 16 * 8 + 6 * 8


def test_product_of_bytes_counts_its_macs() -> None:
    x, y = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 24, dtype=torch.int8)
    assert price_of("_int_mm", torch._int_mm, x, y)["macs"] == 32 * 16 * 24


def bilinear(x: Array, y: Array, weight: Array) -> Array:
    """One multiply-accumulate for each pair of features of each output of each sample."""
    result = np.full((len(x), len(weight)), Number(0.0))
    for sample, out, i, j in np.ndindex((*result.shape, x.shape[1], y.shape[1])):
        pair = Number(x[sample, i].value * y[sample, j].value)
        result[sample, out] = result[sample, out].plus_product(pair, weight[out, i, j])
    return result


@pytest.mark.parametrize(("samples", "left", "right"), [(2, 3, 4), (1, 1, 4), (2, 3, 1)])
def test_bilinear(samples: int, left: int, right: int) -> None:
    given = random(samples, left), random(samples, right), random(5, left, right)
    check("_trilinear", F.bilinear, bilinear, *given)


def distances(x: Array, y: Array, distance: Callable[[Array, Array], Number]) -> Array:
    return np.array([[distance(left, right) for right in y] for left in x])


def magnitude(x: Number) -> Number:
    return x.to("abs", abs)


def norm(row: Sequence[Number], order: float) -> Number:
    if order == 2:
        return root(total([x * x for x in row]))
    if order == 1:
        return total([magnitude(x) for x in row])
    if order == 0:
        return total([x.to("compare", lambda value: float(value != 0)) for x in row])
    if abs(order) == math.inf:
        pick = Number.larger if order > 0 else Number.smaller
        return reduce(pick, [magnitude(x) for x in row])
    powers = [magnitude(x).to("power", pow, order) for x in row]
    return total(powers).to("power", pow, 1 / order)


ORDERS = [0.0, 1.0, 3.0, math.inf]


@pytest.mark.parametrize("order", ORDERS)
def test_cdist_of_other_norms_contracts_nothing(order: float) -> None:
    def by_hand(x: Array, y: Array) -> Array:
        return distances(x, y, lambda left, right: norm([a - b for a, b in zip(left, right, strict=True)], order))

    amounts = check("_cdist_forward", lambda x, y: torch.cdist(x, y, p=order), by_hand, random(3, 4), random(5, 4))
    assert amounts["macs"] == 0


@pytest.mark.parametrize("points", [3, 30])
def test_euclidean_cdist(points: int) -> None:
    """Few points and many (more than 25) are different operations in torch, with one price."""
    x, y = random(points, 4), random(5, 4)
    (operation,) = [one for one in operations(torch.cdist, x, y) if one.name not in FREE_OPERATIONS]
    amounts = price(operation).amounts
    # a product of (points, 4) by (4, 5), and a root for each pair
    assert (amounts["macs"], amounts["flops"]) == (points * 5 * 4, 2 * points * 5 * 4 + points * 5)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
def test_distances_within_one_set(order: float) -> None:
    def by_hand(x: Array) -> Array:
        pairs = itertools.combinations(x, 2)
        return np.array([norm([a - b for a, b in zip(*pair, strict=True)], order) for pair in pairs])

    check("_pdist_forward", lambda x: F.pdist(x, order), by_hand, random(4, 3))


def attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """One head of one sample."""
    scale = 1 / math.sqrt(query.shape[-1])
    scores = np.array([[product_sum(q, k) * scale for k in key] for q in query])
    if mask is not None:
        scores = plus(scores, mask)
    return multiply(np.array([softmax(row) for row in scores]), value)


def heads(query: Array, key: Array, value: Array, *mask: Array) -> Array:
    groups = query.shape[1] // key.shape[1]
    result = np.empty((*query.shape[:-1], value.shape[-1]), dtype=object)
    for sample, head in np.ndindex(query.shape[:2]):
        where = (sample, head // groups)
        result[sample, head] = attention(query[sample, head], key[where], value[where], *mask)
    return result


SDPA = "scaled_dot_product_attention"


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
        ((2, 1, 3, 4), (2, 1, 5, 4), (2, 1, 5, 6)),  # other keys than queries, other width of values
        ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4), (3, 5)),  # with a mask
    ],
)
def test_attention(shapes: Any) -> None:
    given = [random(*shape, seed=index) for index, shape in enumerate(shapes)]
    amounts = check(SDPA, F.scaled_dot_product_attention, heads, *given)
    assert amounts["bytes_read"] == sum(4 * tensor.numel() for tensor in given)
    # what is put out alone, not the log-sum-exp that kernels keep
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * math.prod((*shapes[0][:-1], shapes[2][-1]))


def test_attention_with_fewer_heads_of_keys() -> None:
    check(
        SDPA,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        heads,
        random(1, 4, 3, 4),
        random(1, 2, 5, 4),
        random(1, 2, 5, 4, seed=1),
    )


def test_attention_of_one_query_for_all_samples() -> None:
    """What broadcasts is computed for each sample."""
    query, key = random(1, 2, 3, 4), random(3, 2, 5, 4)
    assert price_of(SDPA, F.scaled_dot_product_attention, query, key, key)["macs"] == 3 * 2 * 3 * 5 * (4 + 4)


def test_causal_attention_counts_the_full_square() -> None:
    q = random(1, 2, 3, 4)
    plain = price_of(SDPA, F.scaled_dot_product_attention, q, q, q)
    causal = price_of(SDPA, lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), q)
    assert causal["macs"] == plain["macs"] == 2 * 3 * 3 * (4 + 4)
    assert causal["bytes_read"] == 4 * 2 * 3 * 4, "q, k and v are one tensor here"


def test_dropout_in_attention_takes_mask_and_scale_of_each_score() -> None:
    q = random(1, 2, 3, 4)
    plain = price_of(SDPA, F.scaled_dot_product_attention, q, q, q)
    dropped = price_of(SDPA, lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), q)
    assert dropped["flops"] - plain["flops"] == 2 * (2 * 3 * 3)


def test_affine_grid() -> None:
    # each of 2 3 4 points (x, y, 1) by the two rows of theta
    amounts = price_of("affine_grid_generator", lambda t: F.affine_grid(t, [2, 1, 3, 4], False), random(2, 2, 3))
    assert (amounts["macs"], amounts["flops"]) == (2 * 3 * 4 * 2 * 3, 2 * 2 * 3 * 4 * 2 * 3)


RECURRENT: list[tuple[nn.Module, int]] = [
    # a step: 4 inputs and 5 states into 1, 4 or 3 gates of 5
    (nn.RNN(4, 5), 5 * (4 + 5)),
    (nn.LSTM(4, 5), 4 * 5 * (4 + 5)),
    (nn.GRU(4, 5), 3 * 5 * (4 + 5)),
    (nn.LSTM(4, 5, bidirectional=True), 2 * 4 * 5 * (4 + 5)),
    # the second layer has 5 inputs, or 10 from two directions
    (nn.GRU(4, 5, 2), 3 * 5 * (4 + 5) + 3 * 5 * (5 + 5)),
    (nn.RNN(4, 5, 2, bidirectional=True), 2 * 5 * (4 + 5) + 2 * 5 * (10 + 5)),
    # states of 5 projected to 3
    (nn.LSTM(4, 5, proj_size=3), 4 * 5 * (4 + 3) + 5 * 3),
]


@pytest.mark.parametrize(("layer", "a_step"), RECURRENT)
def test_recurrent_layers(layer: nn.Module, a_step: int) -> None:
    ledger = analyze(layer, random(3, 2, 4))
    assert ledger.totals()["macs"] == 3 * 2 * a_step, "three steps of two samples"


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNNCell, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_recurrent_cells(kind: Any, gates: int) -> None:
    assert analyze(kind(4, 5), random(2, 4)).totals()["macs"] == 2 * gates * 5 * (4 + 5)


def test_multihead_attention() -> None:
    x = random(5, 2, 8)
    total = analyze(nn.MultiheadAttention(8, 2), x, x, x, kwargs={"need_weights": False}).totals()
    # 5 tokens of 2 samples: four projections of 8 by 8, and two products with 5 keys over all heads together
    assert total["macs"] == 5 * 2 * (4 * 8 * 8 + 2 * 5 * 8)


# --- embedding bags ----------------------------------------------------------------------------------------------


def test_weighted_embedding_bag() -> None:
    indices = torch.tensor([0, 2, 4, 1])
    offsets = torch.tensor([0, 3])

    def by_hand(table: Array, weights: Array) -> Array:
        bags = (slice(3), slice(3, 4))
        return np.array(
            [[product_sum(table[indices[bag].tolist(), d], weights[bag]) for d in range(3)] for bag in bags]
        )

    amounts = check(
        "_embedding_bag_forward_only",
        lambda table, weights: F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights),
        by_hand,
        random(5, 3),
        random(4),
    )
    # 4 indices and 2 offsets of 8 bytes, 4 weights, 4 rows of 3; 2 bags of 3
    assert amounts["bytes_read"] == 8 * (4 + 2) + 4 * 4 + 4 * 4 * 3
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * 2 * 3


@pytest.mark.parametrize(("mode", "reduced"), [("sum", total), ("mean", mean), ("max", largest)])
def test_embedding_bag(mode: str, reduced: Any) -> None:
    indices = torch.tensor([[0, 2, 4], [1, 1, 3]])
    amounts = check(
        "_embedding_bag_forward_only",
        lambda table: F.embedding_bag(indices, table, mode=mode),
        lambda table: np.array([[reduced(table[bag, d]) for d in range(3)] for bag in indices.tolist()]),
        random(5, 3),
    )
    assert amounts["macs"] == 0


# --- normalisation -----------------------------------------------------------------------------------------------


def affine(x: Number, weight: Array | None, bias: Array | None, index: Any) -> Number:
    x = x if weight is None else x * weight[index]
    return x if bias is None else x + bias[index]


def batch_norm(x: Array, average: Array, variance: Array, weight: Any = None, bias: Any = None) -> Array:
    factors = [inverse_root(value + 1e-5) for value in variance]
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        channel = index[1]
        result[index] = affine((x[index] - average[channel]) * factors[channel], weight, bias, channel)
    return result


@pytest.mark.parametrize("size", [(4, 3), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 2, 2)])
@pytest.mark.parametrize("with_affine", [True, False])
def test_batch_norm_in_eval(size: tuple[int, ...], with_affine: bool) -> None:
    channels = size[1]
    given = [random(*size), random(channels), positive(channels)]
    given += [random(channels, seed=1), random(channels, seed=2)] if with_affine else []
    amounts = check("batch_norm", F.batch_norm, batch_norm, *given)
    assert amounts["flops"] == (4 if with_affine else 2) * math.prod(size) + 2 * channels
    assert amounts["bytes_read"] == 4 * (math.prod(size) + (4 if with_affine else 2) * channels)
    # saved statistics are a by-product
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * math.prod(size)


def centred(row: Sequence[Number]) -> tuple[list[Number], Number, Number]:
    """Return the row less its mean, the mean, and the variance."""
    average = mean(row)
    apart = [x - average for x in row]
    return apart, average, mean([x * x for x in apart])


@pytest.mark.parametrize("is_tracked", [True, False])
def test_batch_norm_in_train(is_tracked: bool) -> None:
    x, weight, bias = random(2, 3, 4), random(3), random(3, seed=1)
    running = [random(3), positive(3)] if is_tracked else [None, None]

    def by_hand(x: Array, weight: Array, bias: Array) -> Array:
        result = np.empty_like(x)
        for channel in range(3):
            apart, average, variance = centred(x[:, channel].flatten())
            if is_tracked:
                for old, new in zip((Number(0.0), Number(1.0)), (average, variance), strict=True):
                    old * 0.9 + new * 0.1
            factor = inverse_root(variance + 1e-5)
            scaled = [affine(value * factor, weight, bias, channel) for value in apart]
            result[:, channel] = np.array(scaled).reshape(2, 4)
        return result

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, *(None if r is None else r.clone() for r in running), weight, bias, training=True)

    amounts = check("batch_norm", function, by_hand, x, weight, bias)
    # x and weight, bias, mean, variance of 3 channels; mean and variance are written too
    tracked = 2 * 3 if is_tracked else 0
    assert amounts["bytes_read"] == 4 * (2 * 3 * 4 + 2 * 3 + tracked)
    assert amounts["bytes_written"] == 4 * (2 * 3 * 4 + tracked)
    assert amounts["activation_bytes"] == 4 * (2 * 3 * 4)


def layer_norm(x: Array, weight: Any = None, bias: Any = None) -> Array:
    result = np.empty_like(rows(x))
    for place, row in enumerate(rows(x)):
        apart, _, variance = centred(row)
        factor = inverse_root(variance + 1e-5)
        result[place] = [affine(value * factor, weight, bias, index) for index, value in enumerate(apart)]
    return result.reshape(x.shape)


@pytest.mark.parametrize(("extras", "an_element"), [(0, 5), (1, 6), (2, 7)])
def test_layer_norm(extras: int, an_element: int) -> None:
    given = [random(2, 3, 4), *(random(4, seed=index) for index in range(extras))]
    amounts = check("layer_norm", lambda x, *others: F.layer_norm(x, [4], *others), layer_norm, *given)
    assert amounts["flops"] == an_element * 24 + 2 * 6
    assert amounts["bytes_read"] == 4 * (24 + extras * 4)
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * 24


def test_layer_norm_over_two_dimensions() -> None:
    def by_hand(x: Array, weight: Array, bias: Array) -> Array:
        return layer_norm(x.reshape(2, 12), weight.flatten(), bias.flatten()).reshape(x.shape)

    given = random(2, 3, 4), random(3, 4), random(3, 4, seed=1)
    check("layer_norm", lambda x, w, b: F.layer_norm(x, [3, 4], w, b), by_hand, *given)


def test_group_norm() -> None:
    def by_hand(x: Array, weight: Array, bias: Array) -> Array:
        result = layer_norm(x.reshape(3, 2, -1)).reshape(x.shape)  # two groups of two channels
        for index in np.ndindex(x.shape):
            result[index] = affine(result[index], weight, bias, index[1])
        return result

    amounts = check(
        "group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), by_hand, random(3, 4, 3), random(4), random(4)
    )
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * 36


def rms_norm(x: Array, weight: Array | None = None) -> Array:
    result = np.empty_like(rows(x))
    for place, row in enumerate(rows(x)):
        factor = inverse_root(mean([value * value for value in row]) + 1e-5)
        result[place] = [affine(value * factor, weight, None, index) for index, value in enumerate(row)]
    return result.reshape(x.shape)


@pytest.mark.parametrize("with_weight", [True, False])
def test_rms_norm_costs_the_same_fused_and_in_pieces(with_weight: bool) -> None:
    given = [random(2, 3, 4), *([random(4)] if with_weight else [])]
    with counting() as counts:
        result = rms_norm(*map(numbers, given))
    torch.testing.assert_close(values(result), F.rms_norm(given[0], [4], *given[1:], eps=1e-5))
    pieces = operations(lambda x, *w: F.rms_norm(x, [4], *w, eps=1e-5), *given)
    assert sum(price(one).amounts["flops"] for one in pieces) == flops(counts)
    arguments = {"input": TensorRef(0), "normalized_shape": (4,), **({"weight": TensorRef(1)} if with_weight else {})}
    inputs = (tensor(2, 3, 4), *([tensor(4)] if with_weight else []))
    fused = price(Operation("rms_norm", arguments, inputs, (OutputInfo(tensor(2, 3, 4)), OutputInfo(tensor(2, 3, 1)))))
    assert fused.amounts["flops"] == flops(counts)
    assert fused.amounts["bytes_written"] == fused.amounts["activation_bytes"] == 4 * 24


def test_weight_norm() -> None:
    def by_hand(v: Array, g: Array) -> Array:
        result = np.empty_like(v)
        for place, row in enumerate(v):
            factor = g[place, 0] / norm(row, 2)
            result[place] = [value * factor for value in row]
        return result

    amounts = check(
        "_weight_norm_interface", lambda v, g: torch._weight_norm(v, g, 0), by_hand, random(3, 5), random(3, 1)
    )
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * 15  # not the norms


# --- softmax, reductions, scans ----------------------------------------------------------------------------------


def softmax(row: Sequence[Number]) -> list[Number]:
    peak = largest(row)
    exponentials = [exponential(x - peak) for x in row]
    sum_ = total(exponentials)
    return [x / sum_ for x in exponentials]


def log_softmax(row: Sequence[Number]) -> list[Number]:
    peak = largest(row)
    apart = [x - peak for x in row]
    sum_ = logarithm(total([exponential(x) for x in apart]))
    return [x - sum_ for x in apart]


@pytest.mark.parametrize(("name", "function", "by_hand"), [
    ("softmax", F.softmax, softmax), ("log_softmax", F.log_softmax, log_softmax)
])  # fmt: skip
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax(name: str, function: Any, by_hand: Any, dim: int) -> None:
    def along(x: Array) -> Array:
        moved = np.moveaxis(x, dim, -1)
        result = np.array([by_hand(row) for row in rows(moved)], dtype=object).reshape(moved.shape)
        return np.moveaxis(result, -1, dim)

    check(name, lambda x: function(x, dim), along, random(2, 3, 5))


def variance(row: Sequence[Number]) -> Number:
    average = mean(row)
    return total([(x - average).to("square", lambda value: value * value) for x in row]) / (len(row) - 1)


def log_sum_exp(row: Sequence[Number]) -> Number:
    peak = largest(row)
    return logarithm(total([exponential(x - peak) for x in row])) + peak


REDUCTIONS: list[tuple[str, Callable[..., Any], Callable[..., Number]]] = [
    ("sum", lambda x, **k: x.sum(**k), total),
    ("mean", lambda x, **k: x.mean(**k), mean),
    ("amax", lambda x, **k: x.amax(**k), largest),
    ("amin", lambda x, **k: x.amin(**k), lambda row: reduce(Number.smaller, row)),
    ("prod", lambda x, **k: x.prod(**k), lambda row: reduce(Number.__mul__, row)),
    ("var", lambda x, **k: x.var(**k), variance),
    ("std", lambda x, **k: x.std(**k), lambda row: root(variance(row))),
]


@pytest.mark.parametrize(("name", "function", "by_hand"), REDUCTIONS)
@pytest.mark.parametrize("dim", [None, 1])
def test_reductions(name: str, function: Any, by_hand: Any, dim: int | None) -> None:
    keywords = {} if dim is None else {"dim": dim}
    expected = (lambda x: by_hand(x.flatten())) if dim is None else (lambda x: np.array([by_hand(row) for row in x]))
    amounts = check(name, lambda x: function(x, **keywords), expected, random(3, 4))
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (4 * 12, 4 * (1 if dim is None else 3))


def test_log_of_sum_of_exponentials() -> None:
    check("logsumexp", lambda x: x.logsumexp(1), lambda x: np.array([log_sum_exp(row) for row in x]), random(3, 4))


@pytest.mark.parametrize("order", [*ORDERS, 2.0, -math.inf])
def test_norms(order: float) -> None:
    def by_hand(x: Array) -> Array:
        return np.array([norm(row, order) for row in x])

    x = random(3, 4)
    check("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, order, dim=1), by_hand, x)
    check("norm", lambda x: aten.norm(x, order, [1]), by_hand, x)


def test_norm_without_an_order_is_euclidean() -> None:
    x = random(3, 4)
    assert price_of("norm", lambda x: aten.norm(x, None, [1]), x)["flops"] == 2 * 12
    assert price_of("linalg_vector_norm", torch.linalg.vector_norm, x)["flops"] == 2 * 12


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("argmax", lambda x: x.argmax(1), 3 * (4 - 1)),
        ("argmin", lambda x: x.argmin(), 12 - 1),
        ("max", lambda x: x.max(1), 3 * (4 - 1)),
        ("min", lambda x: x.min(0), 4 * (3 - 1)),
        ("max", lambda x: x.max(), 12 - 1),
        ("aminmax", lambda x: torch.aminmax(x, dim=1), 2 * 3 * (4 - 1)),
        ("var_mean", lambda x: torch.var_mean(x, dim=1), 4 * 12),
        ("std_mean", lambda x: torch.std_mean(x, dim=1), 4 * 12 + 3),
        ("any", lambda x: (x > 0).any(), 0),
        ("all", lambda x: x.all(1), 0),
        ("count_nonzero", lambda x: x.count_nonzero(1), 0),
    ],
)
def test_reductions_to_places_pairs_and_truths(name: str, function: Any, expected: int) -> None:
    assert price_of(name, function, random(3, 4))["flops"] == expected


def test_sums_of_integers_cost_nothing_unless_they_are_made_in_floating_point() -> None:
    ones = torch.ones(3, 4, dtype=torch.int64)
    assert price_of("sum", lambda x: x.sum(), ones)["flops"] == 0
    assert price_of("cumsum", lambda x: x.cumsum(1), ones)["flops"] == 0
    assert price_of("sum", lambda x: x.sum(dtype=torch.float32), ones)["flops"] == 12 - 1
    assert price_of("cumsum", lambda x: x.cumsum(1, dtype=torch.float32), ones)["flops"] == 3 * (4 - 1)


@pytest.mark.parametrize(
    ("name", "function", "step"),
    [
        ("cumsum", torch.cumsum, Number.__add__),
        ("cumprod", torch.cumprod, Number.__mul__),
        ("cummax", lambda x, dim: x.cummax(dim).values, Number.larger),
        ("cummin", lambda x, dim: x.cummin(dim).values, Number.smaller),
        (
            "logcumsumexp",
            torch.logcumsumexp,
            lambda a, b: a.to("logaddexp", lambda x, y: math.log(math.exp(x) + math.exp(y)), b),
        ),
    ],
)
@pytest.mark.parametrize("dim", [0, -1])
def test_scans(name: str, function: Any, step: Any, dim: int) -> None:
    def by_hand(x: Array) -> Array:
        moved = np.moveaxis(x, dim, -1)
        return np.moveaxis(np.array([[*itertools.accumulate(row, step)] for row in moved]), -1, dim)

    check(name, lambda x: function(x, dim), by_hand, random(3, 4))


# --- pooling and resampling --------------------------------------------------------------------------------------


def pool(x: Array, kernel: tuple[int, ...], stride: int, padding: int, ceil_mode: bool, average: bool) -> Array:
    """Slide a full window over x; places outside of it hold zero (average) or the lowest number (maximum)."""
    count = len(kernel)
    size = x.shape[-count:]
    room = [n + 2 * padding - k for n, k in zip(size, kernel, strict=True)]
    made = [-(-r // stride) + 1 if ceil_mode else r // stride + 1 for r in room]
    if ceil_mode:  # a window must begin inside of the input or its left padding
        made = [m - ((m - 1) * stride >= n + padding) for m, n in zip(made, size, strict=True)]
    result = np.empty((*x.shape[:-count], *made), dtype=object)
    for index in np.ndindex(result.shape):
        lead, place = index[:-count], index[-count:]
        window = []
        inside = 1
        for tap in np.ndindex(kernel):
            at = [p * stride + t - padding for p, t in zip(place, tap, strict=True)]
            is_inside = all(0 <= a < n for a, n in zip(at, size, strict=True))
            window.append(x[(*lead, *at)] if is_inside else Number(0.0 if average else -math.inf))
        for p, k, n in zip(place, kernel, size, strict=True):
            inside *= min(p * stride - padding + k, n + padding) - (p * stride - padding)
        result[index] = total(window) / inside if average else largest(window)
    return result


POOLS = [
    # function of max and of average pooling, operation, input, kernel, stride, padding, ceil_mode
    (1, "pool2d", (2, 3, 7), (3,), 2, 0, False),  # torch takes one dimension as one row of two
    (1, "pool2d", (1, 2, 6), (2,), 2, 1, False),
    (2, "pool2d", (1, 2, 5, 6), (2, 3), 2, 0, False),
    (2, "pool2d", (1, 2, 5, 6), (3, 3), 2, 1, False),
    (2, "pool2d", (1, 2, 6, 6), (3, 3), 2, 0, True),  # the last windows hang over the edge, and count in full
    (2, "pool2d", (1, 2, 6, 5), (3, 2), 3, 1, True),
    (3, "pool3d", (1, 2, 3, 4, 4), (2, 2, 2), 2, 0, False),
    (3, "pool3d", (1, 1, 3, 4, 5), (2, 3, 2), 2, 1, True),
]


@pytest.mark.parametrize(("dimensions", "name", "size", "kernel", "stride", "padding", "ceil_mode"), POOLS)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pools(
    kind: str, dimensions: int, name: str, size: Any, kernel: Any, stride: int, padding: int, ceil_mode: bool
) -> None:
    function = getattr(F, f"{kind}_pool{dimensions}d")
    amounts = check(
        f"{kind}_{name}",
        lambda x: function(x, kernel, stride, padding, ceil_mode=ceil_mode),
        lambda x: pool(x, kernel, stride, padding, ceil_mode, kind == "avg"),
        random(*size),
    )
    outputs = amounts["bytes_written"] // 4
    assert amounts["flops"] == outputs * (math.prod(kernel) - (kind == "max"))
    # all of the input, the indices of a maximum nowhere
    assert amounts["bytes_read"] == 4 * math.prod(size)
    assert amounts["activation_bytes"] == 4 * outputs


@pytest.mark.parametrize("size", [3, (3,), (3, 3)])
def test_window_may_be_one_number_for_all_dimensions(size: Any) -> None:
    amounts = price_of("max_pool2d", lambda x: aten.max_pool2d_with_indices(x, size, [3, 3]), random(1, 2, 3, 6))
    assert amounts["flops"] == 2 * 1 * 2 * (3 * 3 - 1)


def adaptive_pool(x: Array, made: tuple[int, ...], reduced: Callable[[Any], Number]) -> Array:
    result = np.empty((*x.shape[: -len(made)], *made), dtype=object)
    for index in np.ndindex(result.shape):
        windows = []
        for place, m, n in zip(index[-len(made) :], made, x.shape[-len(made) :], strict=True):
            windows.append(slice(math.floor(place * n / m), math.ceil((place + 1) * n / m)))
        result[index] = reduced(x[(*index[: -len(made)], *windows)].flatten())
    return result


@pytest.mark.parametrize(
    ("dimensions", "name", "size", "made"),
    [
        (1, "pool2d", (2, 3, 7), (3,)),
        (2, "pool2d", (1, 2, 7, 5), (3, 2)),
        (2, "pool2d", (1, 2, 3, 4), (5, 4)),  # more than there is
        (3, "pool3d", (1, 2, 5, 4, 3), (2, 3, 2)),
    ],
)
@pytest.mark.parametrize(("kind", "reduced"), [("max", largest), ("avg", mean)])
def test_adaptive_pools(kind: str, reduced: Any, dimensions: int, name: str, size: Any, made: Any) -> None:
    function = getattr(F, f"adaptive_{kind}_pool{dimensions}d")
    amounts = check(
        f"adaptive_{kind}_{name}",
        lambda x: function(x, made),
        lambda x: adaptive_pool(x, made, reduced),
        random(*size),
    )
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * math.prod((*size[:2], *made))


def test_pool_that_a_device_keeps_one_dimensional() -> None:
    arguments = {"self": TensorRef(0), "kernel_size": (3,)}
    made = OutputInfo(tensor(1, 2, 4))
    for name, window in (("max_pool1d", 3 - 1), ("avg_pool1d", 3)):
        assert price(Operation(name, arguments, (tensor(1, 2, 12),), (made,))).amounts["flops"] == 2 * 4 * window


def test_adaptive_average_to_one_costs_its_mean() -> None:
    (operation,) = operations(lambda x: F.adaptive_avg_pool2d(x, 1), random(2, 3, 4, 5))
    assert operation.name == "mean"
    assert price(operation).amounts["flops"] == 2 * 3 * (4 * 5 - 1 + 1)


def test_fractional_pool_compares_its_window() -> None:
    amounts = price_of(
        "fractional_max_pool2d", lambda x: F.fractional_max_pool2d(x, 2, output_size=3), random(1, 2, 7, 7)
    )
    assert (amounts["flops"], amounts["bytes_written"]) == (2 * 9 * (2 * 2 - 1), 4 * 2 * 9)
    assert amounts["activation_bytes"] == 4 * 2 * 9


def cubic(distance: float) -> float:
    """Keys' kernel with a = -3/4."""
    d = abs(distance)
    return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def interpolate(x: Array, made: tuple[int, ...], is_cubic: bool) -> Array:
    """Weigh the 2 or 4 neighbours along each dimension and add them up; the weights themselves are not counted."""
    size = x.shape[2:]
    result = np.empty((*x.shape[:2], *made), dtype=object)
    for index in np.ndindex(result.shape):
        taps = []
        for place, m, n in zip(index[2:], made, size, strict=True):
            at = (place + 0.5) * n / m - 0.5
            at = at if is_cubic else max(at, 0.0)
            low = math.floor(at)
            near = range(low - 1, low + 3) if is_cubic else range(low, low + 2)
            taps.append([(min(max(i, 0), n - 1), cubic(at - i) if is_cubic else 1 - abs(at - i)) for i in near])
        terms = [
            x[(*index[:2], *(i for i, _ in choice))] * math.prod(weight for _, weight in choice)
            for choice in itertools.product(*taps)
        ]
        result[index] = total(terms)
    return result


@pytest.mark.parametrize(
    ("mode", "name", "size", "made"),
    [
        ("linear", "upsample_linear1d", (1, 2, 3), (7,)),
        ("bilinear", "upsample_bilinear2d", (1, 2, 3, 4), (5, 6)),
        ("trilinear", "upsample_trilinear3d", (1, 1, 2, 3, 2), (3, 4, 4)),
        ("bicubic", "upsample_bicubic2d", (1, 2, 3, 4), (5, 6)),
    ],
)
def test_upsampling(mode: str, name: str, size: Any, made: Any) -> None:
    amounts = check(
        name,
        lambda x: F.interpolate(x, made, mode=mode),
        lambda x: interpolate(x, made, mode == "bicubic"),
        random(*size),
    )
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (4 * math.prod(size), 4 * math.prod((*size[:2], *made)))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_upsampling_to_the_nearest_computes_nothing(mode: str, dimensions: int) -> None:
    (operation,) = operations(lambda x: F.interpolate(x, scale_factor=2, mode=mode), random(1, 2, *dimensions * [3]))
    amounts = price(operation).amounts
    assert amounts["flops"] == 0
    assert amounts["bytes_written"] == 4 * 2 * 6**dimensions


@pytest.mark.parametrize(
    ("mode", "dimensions", "an_output"),
    # 2^d or 4^d neighbours: a product each, and one addition fewer
    [("nearest", 2, 0), ("bilinear", 2, 4 + 3), ("bicubic", 2, 16 + 15), ("nearest", 3, 0), ("bilinear", 3, 8 + 7)],
)
def test_sampling_at_a_grid(mode: str, dimensions: int, an_output: int) -> None:
    x, grid = random(1, 2, *dimensions * [4]), random(1, *dimensions * [3], dimensions)
    amounts = price_of(
        f"grid_sampler_{dimensions}d", lambda x, g: F.grid_sample(x, g, mode, align_corners=False), x, grid
    )
    assert amounts["flops"] == 2 * 3**dimensions * an_output
    assert amounts["bytes_read"] == 4 * (x.numel() + grid.numel())


# --- elementwise -------------------------------------------------------------------------------------------------

X, Y = random(3, 4), positive(3, 4)
ROW = random(4)

UNARY = "exp log sqrt rsqrt neg abs sin tanh sigmoid erf relu floor round isnan logical_not square reciprocal".split()
UNARY += "relu6 gelu silu mish elu selu celu softplus leaky_relu hardtanh hardswish hardsigmoid logsigmoid".split()
BINARY = "add sub mul div maximum fmod atan2 eq ne lt le gt ge logical_and".split()

ONE_AN_ELEMENT: list[tuple[Any, ...]] = [
    *((getattr(torch, name, None) or getattr(F, name), X) for name in UNARY),
    *((getattr(torch, name), X, Y) for name in BINARY),
    (torch.add, X, ROW),  # broadcast: as many as come out
    (lambda x: 1 - x, X),
    (lambda x: x**2, X),
    (lambda x: x > 0, X),
    (torch.clamp, X, 0.0, 1.0),
    (torch.where, X > 0, X, Y),
    (lambda x: F.threshold(x, 0.1, 2.0), X),
    (lambda x: F.rrelu(x, training=True), X),
    (F.prelu, X, random(4)),
    # integers that become floating-point numbers
    (lambda i: i / 2, torch.ones(3, 4, dtype=torch.int64)),
    (lambda i: i * 0.5, torch.ones(3, 4, dtype=torch.int64)),
    (torch.sqrt, torch.ones(3, 4, dtype=torch.int64)),
]


@pytest.mark.parametrize(("function", "given"), [(function, given) for function, *given in ONE_AN_ELEMENT])
def test_pointwise_operations_are_one_an_output_element(function: Any, given: list[Any]) -> None:
    work = [one for one in operations(function, *given) if one.name not in FREE_OPERATIONS]
    counted = [price(one).amounts["flops"] for one in work]
    assert counted == [12]
    assert price(work[0]).amounts["macs"] == 0


INTEGERS, TRUTHS = torch.arange(12).reshape(3, 4), torch.ones(3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (torch.add, (INTEGERS, INTEGERS + 1)),
        (torch.mul, (INTEGERS, 3)),
        (lambda x, y: x // y, (INTEGERS, INTEGERS + 1)),
        (torch.eq, (INTEGERS, INTEGERS + 1)),
        (torch.maximum, (INTEGERS, INTEGERS + 1)),
        (torch.where, (TRUTHS, INTEGERS, INTEGERS + 1)),
        (torch.bitwise_and, (TRUTHS, ~TRUTHS)),
        (torch.logical_or, (TRUTHS, ~TRUTHS)),
        (torch.logical_not, (TRUTHS,)),
        (lambda x: x << 1, (INTEGERS,)),
        (torch.gcd, (INTEGERS, INTEGERS + 1)),
        (lambda x: x.amax(1), (INTEGERS,)),
        (lambda x: x.sum(1), (TRUTHS,)),
        (lambda x: x.cumsum(0), (INTEGERS,)),
        (lambda x, y: x.index_add(0, torch.tensor([0, 2]), y), (INTEGERS, INTEGERS[:2] + 1)),
    ],
)
def test_integers_and_truths_are_moved_but_not_computed(function: Any, given: tuple[Any, ...]) -> None:
    (operation,) = [one for one in operations(function, *given) if one.name not in FREE_OPERATIONS]
    amounts = price(operation).amounts
    assert (amounts["macs"], amounts["flops"]) == (0, 0)
    assert amounts["bytes_read"] > 0 and amounts["bytes_written"] > 0


def each(function: Callable[..., Number]) -> Callable[..., Array]:
    """Return `function` of each element of arrays of one shape."""

    def mapped(*arrays: Array) -> Array:
        flat = [function(*given) for given in zip(*(array.flat for array in arrays), strict=True)]
        return np.array(flat, dtype=object).reshape(arrays[0].shape)

    return mapped


@pytest.mark.parametrize(
    ("name", "function", "by_hand", "count"),
    [
        ("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.5), each(lambda x, y, z: y * z * 0.5 + x), 3),
        ("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z, value=0.5), each(lambda x, y, z: y / z * 0.5 + x), 3),
        ("addcmul", torch.addcmul, each(lambda x, y, z: y * z + x), 3),
        ("addcdiv", torch.addcdiv, each(lambda x, y, z: y / z + x), 3),
        ("add", lambda x, y: torch.add(x, y, alpha=0.5), each(lambda x, y: y * 0.5 + x), 2),
        ("add_", lambda x, y: x.clone().add_(y, alpha=-2), each(lambda x, y: y * -2 + x), 2),
        ("add", lambda x: torch.add(x, 3, alpha=2), each(lambda x: Number(3) * 2 + x), 1),
        ("sub", lambda x, y: torch.sub(x, y, alpha=0.5), each(lambda x, y: x - y * 0.5), 2),
        ("rsub", lambda x, y: torch.rsub(x, y, alpha=0.5), each(lambda x, y: y - x * 0.5), 2),
        ("add", lambda x, y: torch.add(x, y, alpha=1.0), each(lambda x, y: x + y), 2),
        ("sub", torch.sub, each(lambda x, y: x - y), 2),
        ("lerp", lambda x, y: torch.lerp(x, y, 0.3), each(lambda x, y: (y - x) * 0.3 + x), 2),
        ("lerp", torch.lerp, each(lambda x, y, z: (y - x) * z + x), 3),
    ],
)
def test_fused_pointwise_operations(name: str, function: Any, by_hand: Any, count: int) -> None:
    check(name, function, by_hand, *(random(3, 4, seed=index) for index in range(count)))


def test_gated_linear_unit() -> None:
    def by_hand(x: Array) -> Array:
        sigmoid = each(lambda gate: gate.to("sigmoid", lambda value: 1 / (1 + math.exp(-value))))
        return each(lambda a, gate: a * gate)(x[:, :2], sigmoid(x[:, 2:]))

    check("glu", F.glu, by_hand, random(3, 4))


def test_polar_numbers_and_cross_products() -> None:
    # cosine, sine, and the radius by each; two products and a difference for each of the three components
    assert price_of("polar", torch.polar, X, Y)["flops"] == 12 * 4
    assert price_of("linalg_cross", torch.linalg.cross, random(2, 3), random(2, 3, seed=1))["flops"] == 2 * 3 * 3


def test_dropout_masks_and_scales_in_train_only() -> None:
    for function in (F.dropout, F.dropout1d, lambda x, **k: F.dropout(x.clone(), inplace=True, **k)):
        found = operations(lambda x, f=function: f(x, training=True), random(2, 3, 4))
        amounts = price(found[-1]).amounts
        assert found[-1].name.rstrip("_") in ("dropout", "feature_dropout")
        assert amounts["flops"] == 2 * 24
        # the mask is a by-product
        assert (amounts["bytes_read"], amounts["bytes_written"]) == (4 * 24, 4 * 24)
    assert operations(lambda x: F.dropout(x, training=False), X) == []
    assert price_of("dropout", lambda x: aten.native_dropout(x, 0.5, True), X)["flops"] == 2 * 12
    assert price_of("dropout", lambda x: aten.native_dropout(x, 0.5, False), X)["flops"] == 0


# --- losses ------------------------------------------------------------------------------------------------------


def smooth(d: Number) -> Number:
    size = magnitude(d)
    is_small = size.to("compare", lambda value: float(value < 1)).value
    return size.to("square", lambda value: value * value) * 0.5 if is_small else Number(size.value - 0.5)


def cross_entropy(x: Number, y: Number) -> Number:
    one, other = y * logarithm(x), (Number(1.0) - y) * logarithm(Number(1.0) - x)
    return (one + other).to("negate", lambda value: -value)


def of_logits(x: Number, y: Number) -> Number:
    power = exponential(x.to("negate", lambda value: -value))
    return x - x * y + logarithm(power + 1.0)


LOSSES: list[tuple[str, Any, Callable[..., Number]]] = [
    ("mse_loss", F.mse_loss, lambda x, y: (x - y).to("square", lambda value: value * value)),
    ("huber_loss", F.huber_loss, lambda x, y: smooth(x - y)),
    ("smooth_l1_loss", F.smooth_l1_loss, lambda x, y: smooth(x - y).to("over beta", lambda value: value)),
    ("soft_margin_loss", F.soft_margin_loss, lambda x, y: logarithm(
        exponential((x * y).to("negate", lambda value: -value)) + 1.0)
    ),
    ("binary_cross_entropy", F.binary_cross_entropy, cross_entropy),
    ("binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, of_logits),
]  # fmt: skip


@pytest.mark.parametrize(("name", "function", "an_element"), LOSSES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses(name: str, function: Any, an_element: Any, reduction: str) -> None:
    x, y = (random(2, 3, seed=seed).sigmoid() for seed in range(2))  # between 0 and 1, as cross entropy asks
    reduced = {
        "none": lambda row: row,
        "sum": lambda row: total(row.flatten()),
        "mean": lambda row: mean(row.flatten()),
    }
    check(
        name,
        lambda x, y: function(x, y, reduction=reduction),
        lambda x, y: reduced[reduction](each(an_element)(x, y)),
        x,
        y,
    )


def test_weights_of_losses() -> None:
    x, y, w = (random(2, 3, seed=seed).sigmoid() for seed in range(3))
    # 8 an element and its weight; the mean
    weighted = price_of("binary_cross_entropy", lambda x, y, w: F.binary_cross_entropy(x, y, w), x, y, w)
    assert weighted["flops"] == 6 * (8 + 1) + 6
    # 7 an element, the weight of the positive ones ((w - 1) y + 1, times the term): 4; the mean
    positives = price_of(
        "binary_cross_entropy_with_logits",
        lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, pos_weight=w),
        x,
        y,
        w[0],
    )
    assert positives["flops"] == 6 * (7 + 4) + 6


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("with_weight", [True, False])
def test_negative_log_likelihood(reduction: str, with_weight: bool) -> None:
    target = torch.tensor([0, 2, 1])

    def by_hand(x: Array, weight: Array | None = None) -> Any:
        picked = [x[place, chosen].to("negate", lambda value: -value) for place, chosen in enumerate(target)]
        if weight is not None:
            picked = [value * weight[chosen] for value, chosen in zip(picked, target, strict=True)]
        if reduction == "none":
            return np.array(picked)
        if reduction == "sum" or weight is None:
            return total(picked) if reduction == "sum" else mean(picked)
        return total(picked) / total([weight[chosen] for chosen in target])

    amounts = check(
        "nll_loss_forward",
        lambda x, *weight: F.nll_loss(x, target, *weight, reduction=reduction),
        by_hand,
        random(3, 4),
        *([positive(4)] if with_weight else []),
    )
    # three targets of 8 bytes, what they pick, and the weights
    assert amounts["bytes_read"] == 8 * 3 + 4 * 3 + (4 * 4 if with_weight else 0)
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * (3 if reduction == "none" else 1)


def test_negative_log_likelihood_of_an_image() -> None:
    x, target = random(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    assert price_of("nll_loss2d_forward", F.nll_loss, x, target)["flops"] == 32 + 32


# --- transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        # 3 transforms of 8 points, 5 8 log2 8 each
        ("_fft_r2c", lambda x: torch.fft.rfft(x), 3 * 5 * 8 * 3),
        ("_fft_c2c", lambda x: torch.fft.fft(torch.complex(x, x)), 3 * 5 * 8 * 3),
        # 8 real points from 5 complex ones
        ("_fft_c2r", lambda x: torch.fft.irfft(torch.complex(x, x)[:, :5], n=8), 3 * 5 * 8 * 3),
        # one transform of 3 8 points; the logarithm is no whole number
        ("_fft_r2c", lambda x: torch.fft.rfft2(x), round(5 * 24 * math.log2(24))),
        ("_fft_r2c", lambda x: torch.fft.rfft(x, n=1), 0),
    ],
)
def test_fourier_transforms(name: str, function: Any, expected: int) -> None:
    amounts = price_of(name, function, random(3, 8))
    assert (amounts["macs"], amounts["flops"]) == (0, expected)


def test_folding_adds_every_element_into_its_place() -> None:
    # 6 windows of 2 2 over an image of 3 4
    amounts = price_of("col2im", lambda x: F.fold(x, (3, 4), 2), random(1, 4, 6))
    assert amounts["flops"] == 4 * 6
    # unfolding copies
    assert price_of("im2col", lambda x: F.unfold(x, 2), random(1, 1, 3, 4))["flops"] == 0


# --- bytes -------------------------------------------------------------------------------------------------------


def addresses(*given: Tensor) -> dict[int, int]:
    """Return {address: bytes} of the elements of tensors, each address once."""
    found = {}
    for one in given:
        for index in np.ndindex(tuple(one.shape)):
            at = sum(i * step for i, step in zip(index, one.stride(), strict=True))
            found[one.data_ptr() + at * one.element_size()] = one.element_size()
    return found


def distinct_bytes(*given: Tensor) -> int:
    return sum(addresses(*given).values())


READ_WHOLE: list[tuple[str, Any, list[Tensor]]] = [
    ("add", torch.add, [X, Y]),
    ("add", torch.add, [X, ROW]),
    ("mul", torch.mul, [X, X]),  # once
    ("add", torch.add, [X, ROW.expand(3, 4)]),  # a row of four, whatever its shape
    ("add", torch.add, [X[:1, :1].expand(3, 4), Y]),
    ("add", torch.add, [X[::2, 1:3], Y[::2, 1:3]]),
    ("add", torch.add, [X.double(), Y.double()]),
    ("add", torch.add, [X.bfloat16(), Y.bfloat16()]),
    ("mm", torch.mm, [X, X.T]),  # the same elements in another order
    ("mm", torch.mm, [X, Y.T]),
    ("exp", torch.exp, [X[:, 1:]]),
    ("sum", torch.sum, [ROW.expand(3, 4)]),
    ("where", torch.where, [X > 0, X, Y]),
    ("cat", lambda *given: torch.cat(given), [X, Y, X]),
    ("addcmul", torch.addcmul, [X, X, Y]),
    ("masked_fill", lambda x, mask: x.masked_fill(mask, 1.0), [X, X > 0]),
    ("to_copy", lambda x: x.double(), [X]),
    ("clone", lambda x: x.clone(), [X.T]),
    ("clone", lambda x: x.contiguous(), [ROW.expand(3, 4)]),
    ("sort", torch.sort, [X]),
    ("constant_pad_nd", lambda x: F.pad(x, (1, 1)), [X]),
]


@pytest.mark.parametrize(("name", "function", "given"), READ_WHOLE)
def test_bytes_read_are_the_distinct_ones_of_the_inputs(name: str, function: Any, given: list[Tensor]) -> None:
    amounts = price_of(name, function, *given)
    results = function(*given)
    results = (results,) if isinstance(results, Tensor) else tuple(results)
    assert amounts["bytes_read"] == distinct_bytes(*given)
    assert amounts["bytes_written"] == amounts["activation_bytes"] == distinct_bytes(*results)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x, y: x.add_(y), "add_"),
        (lambda x, y: x.mul_(y), "mul_"),
        (lambda x, y: x.addcmul_(y, y), "addcmul_"),
        (lambda x, y: torch.add(x, y, out=x), "add"),  # in place by another name
    ],
)
def test_in_place_operations_read_themselves_and_make_nothing_new(function: Any, name: str) -> None:
    amounts = price_of(name, function, X.clone(), Y)
    assert (amounts["bytes_read"], amounts["bytes_written"], amounts["activation_bytes"]) == (4 * 24, 4 * 12, 0)


def test_in_place_form_costs_what_the_plain_one_does() -> None:
    for plain, in_place in ((torch.relu, torch.relu_), (torch.exp, torch.exp_), (F.elu, F.elu_)):
        (left,) = operations(plain, X)
        (right,) = operations(in_place, X.clone())
        assert right.name == left.name + "_"
        one, other = dict(price(left).amounts), dict(price(right).amounts)
        assert (one.pop("activation_bytes"), other.pop("activation_bytes")) == (4 * 12, 0)
        assert one == other


@pytest.mark.parametrize(
    ("name", "function", "read"),
    [
        ("fill_", lambda x, y: x.fill_(1.0), 0),
        ("zero_", lambda x, y: x.zero_(), 0),
        ("normal_", lambda x, y: x.normal_(), 0),
        ("uniform_", lambda x, y: x.uniform_(), 0),
        ("bernoulli_", lambda x, y: x.bernoulli_(0.5), 0),
        ("bernoulli_", lambda x, y: x.bernoulli_(y), 4 * 12),
        ("copy_", lambda x, y: x.copy_(y), 4 * 12),
        ("copy_", lambda x, y: x.copy_(y[0]), 4 * 4),
        ("copy_", lambda x, y: x.copy_(y.double()), 8 * 12),
        ("copy_", lambda x, y: x.copy_(2.0), 0),  # a number
    ],
)
def test_what_is_overwritten_is_not_read(name: str, function: Any, read: int) -> None:
    amounts = price_of(name, function, X.clone(), Y)
    assert (amounts["bytes_read"], amounts["bytes_written"], amounts["activation_bytes"]) == (read, 4 * 12, 0)
    assert amounts["flops"] == 0


@pytest.mark.parametrize(
    ("name", "function", "written"),
    [
        ("zeros", lambda x: torch.zeros(3, 4), 4 * 12),
        ("ones_like", torch.ones_like, 4 * 12),
        ("full", lambda x: torch.full((2,), 1.0), 4 * 2),
        ("arange", lambda x: torch.arange(5), 8 * 5),
        ("rand", lambda x: torch.rand(2, 3), 4 * 6),
        ("randn_like", torch.randn_like, 4 * 12),
        ("eye", lambda x: torch.eye(3), 4 * 9),
        ("zeros", lambda x: torch.zeros(3, 4, out=x), 4 * 12),
    ],
)
def test_what_is_made_from_nothing_is_only_written(name: str, function: Any, written: int) -> None:
    amounts = price_of(name, function, X)
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, 0, written)


def test_output_tensors_are_written_and_not_read() -> None:
    made, places = torch.empty(3, 4), torch.empty(3, 4, dtype=torch.int64)
    amounts = price_of("add", lambda x, y: torch.add(x, y, out=made), X, Y)
    assert (amounts["bytes_read"], amounts["bytes_written"], amounts["activation_bytes"]) == (4 * 24, 4 * 12, 0)
    amounts = price_of("sort", lambda x: torch.sort(x, out=(made, places)), X)
    assert (amounts["bytes_read"], amounts["bytes_written"], amounts["activation_bytes"]) == (4 * 12, 12 * 12, 0)
    amounts = price_of("mm", lambda x, y: torch.mm(x, y, out=torch.empty(3, 3)), X, X.T)
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (4 * 12, 4 * 9)


def test_operation_that_returns_its_input_has_read_it() -> None:
    """A shuffle by 1 may hand back what it got; that is no `out=`."""
    given = tensor(1, 4, 2, 2)
    amounts = price(Operation("pixel_shuffle", {"self": TensorRef(0)}, (given,), (OutputInfo(given, alias=0),))).amounts
    assert (amounts["bytes_read"], amounts["activation_bytes"]) == (4 * 16, 0)


PLACES = torch.tensor([[0, 2], [1, 1]])
BAGS = torch.tensor([0, 1])  # where each begins


@pytest.mark.parametrize(
    ("name", "function", "given", "elements"),
    [
        ("embedding", lambda w, i: F.embedding(i, w), [random(10, 5), PLACES], 4 * 5),
        ("gather", lambda x, i: x.gather(1, i), [random(2, 9), PLACES], 4),
        ("index_select", lambda x, i: x.index_select(0, i), [random(5, 6), PLACES[0]], 2 * 6),
        ("index", lambda x, i: x[:, i], [random(5, 6), PLACES], 5 * 4),
        ("index", lambda x, i: x[i, i], [random(5, 6), PLACES], 4),  # one tensor of indices
        ("take", torch.take, [random(5, 6), PLACES], 4),
    ],
)
def test_gathering_reads_indices_and_what_it_picks(name: str, function: Any, given: Any, elements: int) -> None:
    amounts = price_of(name, function, *given)
    assert amounts["bytes_read"] == 8 * given[1].numel() + 4 * elements
    assert amounts["bytes_written"] == amounts["activation_bytes"] == 4 * elements
    assert (amounts["macs"], amounts["flops"]) == (0, 0)


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    x[index] = value
    return x


# (operation, function of x (5, 6), bytes read, elements written)
SCATTERED = [
    # 4 places of 8 bytes and as many values
    ("scatter_", lambda x: x.scatter_(1, PLACES, torch.ones(2, 2)), 8 * 4 + 4 * 4, 4),
    ("scatter_", lambda x: x.scatter_(1, PLACES, 1.0), 8 * 4, 4),
    # a copy first: all of x too
    ("scatter", lambda x: x.scatter(1, PLACES, torch.ones(2, 2)), 8 * 4 + 4 * 4 + 4 * 30, 30),
    # two rows of six
    ("index_copy_", lambda x: x.index_copy_(0, PLACES[0], torch.ones(2, 6)), 8 * 2 + 4 * 12, 12),
    ("index_fill_", lambda x: x.index_fill_(0, PLACES[0], 1.0), 8 * 2, 12),
    ("index_fill_", lambda x: x.index_fill_(1, PLACES[0], 1.0), 8 * 2, 10),
    ("index_put_", lambda x: x.index_put_([PLACES[0]], torch.ones(2, 6)), 8 * 2 + 4 * 12, 12),
    ("index_put_", lambda x: x.index_put_([PLACES[0]], torch.ones(6)), 8 * 2 + 4 * 6, 12),  # one row for both
    ("index_put_", lambda x: x.index_put_([PLACES[0], PLACES[1]], torch.ones(2)), 8 * 4 + 4 * 2, 2),
    # (1, 2) and (2,) places are two; none are none
    ("index_put_", lambda x: x.index_put_([PLACES[:1], PLACES[1]], torch.ones(2)), 8 * 4 + 4 * 2, 2),
    ("index_put_", lambda x: x.index_put_([PLACES[0, :0], PLACES[0, :1]], torch.ones(1)), 8 * 1 + 4 * 1, 0),
    ("index_put_", lambda x: put(x, (slice(None), PLACES), torch.ones(2)), 8 * 4 + 4 * 2, 5 * 4),
    # which ones a mask picks is not known: all of them at most
    ("index_put_", lambda x: x.index_put_([x > 0], torch.ones(())), 30 + 4, 30),
    ("index_put", lambda x: x.index_put([PLACES[0]], torch.ones(2, 6)), 8 * 2 + 4 * 12 + 4 * 30, 30),
    ("put_", lambda x: x.put_(PLACES, torch.ones(2, 2)), 8 * 4 + 4 * 4, 4),
    ("slice_scatter", lambda x: x.slice_scatter(torch.ones(2, 6), 0, 1, 3), 4 * 12 + 4 * 30, 30),
    ("masked_fill_", lambda x: x.masked_fill_(x > 0, 1.0), 30 + 4 * 30, 30),
]


@pytest.mark.parametrize(("name", "function", "read", "written"), SCATTERED)
def test_scattering_reads_and_writes_what_the_indices_reach(name: str, function: Any, read: int, written: int) -> None:
    amounts = price_of(name, function, random(5, 6))
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, read, 4 * written)
    assert amounts["activation_bytes"] == (0 if name.endswith("_") else 4 * 30)


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        # one for each place, however much larger the source is
        ("scatter_add_", lambda x: x.scatter_add_(1, PLACES, torch.ones(3, 6)), 4),
        ("scatter_add", lambda x: x.scatter_add(1, PLACES, torch.ones(2, 2)), 4),
        ("scatter", lambda x: x.scatter(1, PLACES, torch.ones(2, 2), reduce="add"), 4),
        ("scatter_reduce", lambda x: x.scatter_reduce(1, PLACES, torch.ones(2, 2), "amax"), 4),
        # and a division of every sum
        ("scatter_reduce", lambda x: x.scatter_reduce(1, PLACES, torch.ones(2, 2), "mean"), 4 + 30),
        ("index_add_", lambda x: x.index_add_(0, PLACES[0], torch.ones(2, 6)), 2 * 6),
        ("index_reduce_", lambda x: x.index_reduce_(0, PLACES[0], torch.ones(2, 6), "prod"), 2 * 6),
        ("index_put_", lambda x: x.index_put_([PLACES[0]], torch.ones(6), accumulate=True), 2 * 6),
        ("put_", lambda x: x.put_(PLACES, torch.ones(2, 2), accumulate=True), 4),
    ],
)
def test_scattering_that_adds_is_one_an_element(name: str, function: Any, expected: int) -> None:
    assert price_of(name, function, random(5, 6))["flops"] == expected


MOVES = [
    (lambda x: torch.cat([x, x]), 24),
    (torch.clone, 12),
    (lambda x: x.repeat(2, 1), 24),
    (lambda x: x.flip(0), 12),
    (lambda x: x.roll(1), 12),
    (torch.tril, 12),
    (lambda x: torch.stack([x, x]), 24),
    (lambda x: x.T.contiguous(), 12),
    (lambda x: x.half(), 12),
    (lambda x: F.pad(x, (1, 0), value=2.0), 15),
    (lambda x: F.pixel_shuffle(x.reshape(4, 3, 1), 2), 12),
]

# n ceil(log2 n) comparisons for each of rows rows, ceil(log2 8) = 3; ceil(log2(5 + 1)) = 3 a value among 5 edges
ORDERED: list[tuple[Any, int]] = [
    (lambda x: x.sort(dim=1), 4 * 8 * 3),
    (lambda x: x.topk(2), 4 * 8 * 3),
    (lambda x: x.sort(dim=0), 8 * 4 * 2),
    (lambda x: x.median(), 32 * 5),
    (lambda x: x[:, :1].sort(), 0),
    (lambda x: torch.searchsorted(torch.zeros(5), x), 32 * 3),
    (lambda x: torch.bucketize(x, torch.zeros(5)), 32 * 3),
    (lambda x: x.int().sort(), 0),
]


@pytest.mark.parametrize(("function", "comparisons"), ORDERED)
def test_orders_are_paid_in_comparisons(function: Any, comparisons: int) -> None:
    work = [one for one in operations(function, torch.zeros(4, 8)) if one.name not in (*FREE_OPERATIONS, "zeros")]
    assert sum(price(one).amounts["flops"] for one in work) == comparisons


@pytest.mark.parametrize(("function", "elements"), MOVES)
def test_moves_compute_nothing(function: Any, elements: int) -> None:
    work = [one for one in operations(function, X) if one.name not in FREE_OPERATIONS]
    assert len(work) == 1
    assert (price(work[0]).amounts["macs"], price(work[0]).amounts["flops"]) == (0, 0)
    assert work[0].outputs[0].tensor.elements == elements
    assert price(work[0]).amounts["bytes_written"] == sum(output.tensor.distinct_bytes for output in work[0].outputs)


def test_copy_of_a_diagonal_reads_the_diagonal() -> None:
    amounts = price_of("diagonal_copy", torch.diag, random(4, 4))
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, 4 * 4, 4 * 4)


def test_noise_and_buffers_are_by_products() -> None:
    for name, function in (
        ("rrelu_with_noise", lambda x: F.rrelu(x, training=True)),
        ("log_sigmoid_forward", F.logsigmoid),
    ):
        amounts = price_of(name, function, X)
        assert (amounts["bytes_read"], amounts["bytes_written"], amounts["activation_bytes"]) == 3 * (4 * 12,)


def test_views_and_allocations_are_free() -> None:
    ledger = analyze(Function(lambda x: torch.empty(7) is x.view(4, 3).T[1:].unsqueeze(0).expand(3, 2, 4)[0]), X)
    total = ledger.totals()
    assert total["operations"] == total["free"] > 5
    assert [total[name] for name in ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes")] == 5 * [0]


# --- what must not break -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(), (0,), (2, 0), (1,)])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + x,
        lambda x: x.relu_(),
        lambda x: x.sum(),
        lambda x: x.mean(),
        lambda x: x.var(),
        lambda x: x.norm(),
        lambda x: x.softmax(-1),
        lambda x: x.log_softmax(0),
        lambda x: x.cumsum(0),
        lambda x: x.cumprod(-1),
        lambda x: x.logsumexp(-1),
        lambda x: x.prod(),
        lambda x: x.any(),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.clone().copy_(x),
        lambda x: x.fill_(x.new_ones(())),
        lambda x: torch.cat([x.flatten(), x.flatten()]),
        lambda x: x.masked_fill(x > 0, 1.0),
        lambda x: F.layer_norm(x, x.shape[-1:]) if x.dim() else x,
        lambda x: F.mse_loss(x, x),
        lambda x: F.dropout(x, training=True),
        lambda x: x.index_put_([torch.tensor([], dtype=torch.int64)], x.new_ones(())) if x.dim() else x,
        lambda x: x.index_fill_(-1, torch.tensor([], dtype=torch.int64), 1.0),
        lambda x: x.scatter_(-1, torch.zeros(x.shape, dtype=torch.int64), 1.0) if x.numel() else x,
        lambda x: x.flatten() @ x.flatten(),
        lambda x: F.linear(x.reshape(-1, 1), x.new_ones(3, 1), x.new_ones(3)),
        lambda x: torch.cdist(x.reshape(-1, 1), x.reshape(-1, 1), p=1.0),
        lambda x: F.scaled_dot_product_attention(*3 * [x.reshape(1, -1, 1)]),
        lambda x: F.batch_norm(x.reshape(1, 1, -1), x.new_ones(1), x.new_ones(1)),
        lambda x: F.adaptive_avg_pool2d(x.new_ones(1, 1, 4, 4), (2, 0)),
    ],
)
def test_scalars_and_empty_tensors_are_priced(size: tuple[int, ...], function: Any) -> None:
    for operation in operations(function, torch.zeros(size)):
        priced = price(operation)
        assert priced.state is not State.UNKNOWN, operation.name
        assert all(type(amount) is int and amount >= 0 for amount in priced.amounts.values()), (operation, priced)


@pytest.mark.parametrize(
    ("name", "function", "given", "expected"),
    [
        # a row of one number: 5 - 2, 5 - 1, nothing to add
        ("softmax", lambda x: x.softmax(0), (), 3),
        ("log_softmax", lambda x: x.log_softmax(-1), (), 4),
        ("cumsum", lambda x: x.cumsum(0), (), 0),
        ("sum", lambda x: x.sum(), (), 0),
        ("mean", lambda x: x.mean(), (), 1),
        # no numbers
        ("softmax", lambda x: x.softmax(1), (2, 0), 0),
        ("softmax", lambda x: x.softmax(0), (2, 0), 0),
        ("cumsum", lambda x: x.cumsum(1), (2, 0), 0),
        ("sum", lambda x: x.sum(1), (2, 0), 0),
        ("mse_loss", lambda x: F.mse_loss(x, x, reduction="sum"), (2, 0), 0),
        ("nll_loss_forward", lambda x: F.nll_loss(x, torch.zeros(0, dtype=torch.int64), x.new_ones(3)), (0, 3), 0),
        ("_cdist_forward", lambda x: torch.cdist(x, x, p=1.0), (2, 0), 0),
        ("_pdist_forward", lambda x: F.pdist(x, 1.0), (2, 0), 0),
        # a bag of one row adds nothing, nor does one of none
        ("_embedding_bag_forward_only", lambda x: F.embedding_bag(PLACES[:, :1], x, mode="sum"), (3, 4), 0),
        ("_embedding_bag_forward_only", lambda x: F.embedding_bag(PLACES[0, :1], x, BAGS, mode="sum"), (3, 4), 0),
    ],
)
def test_flops_of_scalars_and_empty_tensors(name: str, function: Any, given: Any, expected: int) -> None:
    assert price_of(name, function, torch.zeros(given))["flops"] == expected


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("convolution", lambda x, w: F.conv2d(x, w), lambda x, w: F.conv2d(input=x, weight=w, bias=None)),
        (
            "convolution",
            lambda x, w: aten.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
            lambda x, w: aten.convolution(
                weight=w, input=x, bias=None, groups=1, transposed=False, stride=[1, 1], padding=[0, 0],
                dilation=[1, 1], output_padding=[0, 0],
            ),
        ),
        ("mm", lambda x, w: aten.mm(x[0, 0], w[0, 0]), lambda x, w: aten.mm(mat2=w[0, 0], self=x[0, 0])),
        ("sum", lambda x, w: aten.sum(x, [1], False), lambda x, w: aten.sum(dim=[1], self=x)),
        ("softmax", lambda x, w: aten._softmax(x, 1, False), lambda x, w: aten._softmax(x, dim=1, half_to_float=False)),
        (
            "max_pool2d",
            lambda x, w: F.max_pool2d(x, 2, 2, 0, 1, False),
            lambda x, w: F.max_pool2d(x, kernel_size=(2, 2), stride=2),
        ),
        (
            "index_select",
            lambda x, w: aten.index_select(x, 1, PLACES[1]),
            lambda x, w: aten.index_select(index=PLACES[1], dim=1, self=x),
        ),
    ],
)  # fmt: skip
def test_keywords_cost_what_places_do(name: str, one: Any, other: Any) -> None:
    x, w = random(1, 2, 3, 3), random(2, 2, 3, 3)
    assert price_of(name, one, x, w) == price_of(name, other, x, w)


def tensor(*shape: int, dtype: str = "float32") -> TensorInfo:
    """Return what a contiguous tensor is."""
    return TensorInfo(shape, tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape))), dtype)


def test_operation_without_a_rule_is_unknown_and_has_no_amounts() -> None:
    for name in ("mylib::op", "add.Tensor", "aten::add", ""):
        priced = price(Operation(name, {}, (tensor(2),), (OutputInfo(tensor(2)),)))
        assert (priced.state, dict(priced.amounts)) == (State.UNKNOWN, {})


@pytest.mark.parametrize("name", sorted(RULES))
def test_operation_that_does_not_fit_its_rule_is_unknown_rather_than_an_error(name: str) -> None:
    """A saved ledger may be damaged, or come from another torch."""
    given = (tensor(2, 3), tensor(3, dtype="int64"))
    for inputs, outputs in ((), ()), ((), (OutputInfo(tensor(2)),)), (given, ()), (given, (OutputInfo(tensor(2)),)):
        for arguments in ({}, {"self": TensorRef(0)} if inputs else {}, dict.fromkeys(("dim", "input", "weight"), "x")):
            priced = price(Operation(name, arguments, inputs, outputs))
            assert priced.state in (State.UNKNOWN, State.PRICED)
            assert (priced.state is State.UNKNOWN) == (not priced.amounts)


def test_dtype_of_unknown_size_makes_the_operation_unknown() -> None:
    strange = tensor(2, dtype="float1_e0m0")
    assert price(Operation("relu", {"self": TensorRef(0)}, (strange,), (OutputInfo(strange),))).state is State.UNKNOWN


def test_rule_of_an_in_place_form() -> None:
    assert rule_of("relu_") is RULES["relu"]
    assert rule_of("scatter_") is RULES["scatter_"]
    assert rule_of("relu__") is None
    assert rule_of("nothing_") is None


def test_complex_and_small_numbers_count_as_floating_point() -> None:
    assert price_of("mul", torch.mul, torch.complex(X, Y), torch.complex(Y, X))["flops"] == 12
    small = TensorInfo((4,), (1,), "float8_e4m3fn")
    amounts = price(Operation("to_copy", {"self": TensorRef(0)}, (small,), (OutputInfo(tensor(4)),))).amounts
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, 4, 16)
