"""Rules of backward operations against arithmetic that is carried out.

Each backward is written in plain loops over numbers that count; the loops must give the gradients that torch gives,
and the rule must give what the numbers counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
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
    numbers,
    positive,
    product_sum,
    random,
    rows,
    total,
    values,
)
from dispatching import backward_of
from torch import Tensor

from torchledger import analyze
from torchledger.pricing.convention import State
from torchledger.pricing.full import price

aten = torch.ops.aten


def price_of(name: str, function: Callable[..., Any], *tensors: Tensor) -> dict[str, int]:
    """Return the price of the one operation `name` in the backward of `function`."""
    found, _, _ = backward_of(function, *tensors)
    (operation,) = [one for one in found if one.name == name]
    priced = price(operation)
    assert priced.state is State.PRICED, operation
    assert priced.amounts["activation_bytes"] == 0, "a gradient is no activation"
    return dict(priced.amounts)


def check(name: str, function: Callable[..., Any], by_hand: Callable[..., Any], *tensors: Tensor) -> dict[str, int]:
    """Compare gradients and price with what `by_hand`, given the gradient and the tensors, gives and counts."""
    found, gradients, given = backward_of(function, *tensors)
    with counting() as counts:
        results = by_hand(numbers(given), *(numbers(t) if t.is_floating_point() else t for t in tensors))
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(gradients)
    for result, expected in zip(results, gradients, strict=True):
        torch.testing.assert_close(values(result).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    (operation,) = [one for one in found if one.name == name]
    amounts = price(operation).amounts
    assert (amounts["macs"], amounts["flops"]) == (counts["macs"], flops(counts)), (operation, counts)
    assert amounts["flops"], "nothing was compared"
    assert amounts["activation_bytes"] == 0
    return dict(amounts)


def zeros(*shape: int) -> Array:
    """Return places to accumulate into: what comes first into one is counted too, as an addition to zero."""
    return np.array([Number(0.0) for _ in range(math.prod(shape))], dtype=object).reshape(shape)


# --- contractions ------------------------------------------------------------------------------------------------


def convolution_backward(g: Array, x: Array, w: Array, b: Array, stride: int, padding: int, groups: int) -> Any:
    """Each product of the forward once for x and once for w, those with the padding too."""
    (samples, channels, *size), (filters, per_group, *kernel) = x.shape, w.shape
    inner = (..., *(slice(padding, padding + n) for n in size))
    padded = zeros(samples, channels, *(n + 2 * padding for n in size))
    padded[inner] = x
    dx, dw = zeros(*padded.shape), zeros(*w.shape)
    for sample, out, *place in np.ndindex(g.shape):
        for channel, *tap in np.ndindex((per_group, *kernel)):
            source = out // (filters // groups) * per_group + channel
            at = (sample, source, *(p * stride + t for p, t in zip(place, tap, strict=True)))
            one = g[(sample, out, *place)]
            dx[at] = dx[at].plus_product(one, w[(out, channel, *tap)])
            dw[(out, channel, *tap)] = dw[(out, channel, *tap)].plus_product(one, padded[at])
    db = np.array([total([*g[:, channel].flatten()]) for channel in range(filters)])
    return dx[inner], dw, db


@pytest.mark.parametrize(
    ("size", "weight", "stride", "padding", "groups"),
    [
        ((2, 3, 7), (4, 3, 3), 1, 0, 1),
        ((1, 4, 6, 6), (4, 1, 3, 3), 2, 1, 4),
        ((2, 4, 5, 4), (6, 2, 3, 2), 1, 1, 2),
        ((1, 2, 3, 4, 4), (2, 2, 2, 3, 1), 1, 0, 1),
    ],
)
def test_convolution(size: Any, weight: Any, stride: int, padding: int, groups: int) -> None:
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(size)]
    amounts = check(
        "convolution_backward",
        lambda x, w, b: function(x, w, b, stride, padding, 1, groups),
        lambda g, x, w, b: convolution_backward(g, x, w, b, stride, padding, groups),
        random(*size),
        random(*weight),
        random(weight[0]),
    )
    out = function(random(*size), random(*weight), None, stride, padding, 1, groups)
    # the gradient, the weight for one, the input for the other; three gradients
    assert amounts["bytes_read"] == 4 * (out.numel() + math.prod(weight) + math.prod(size))
    assert amounts["bytes_written"] == 4 * (math.prod(size) + math.prod(weight) + weight[0])


def test_convolution_of_what_needs_no_gradient() -> None:
    """One third of training's macs falls away for the first layer, another where the layer is frozen."""
    x, w, b = random(1, 3, 5, 5), random(4, 3, 3, 3), random(4)
    once = 4 * 3 * 3 * 3 * 3 * 3  # 4 3 3 outputs of 3 3 3 products
    first = price_of("convolution_backward", lambda w, b: F.conv2d(x, w, b), w, b)
    frozen = price_of("convolution_backward", lambda x: F.conv2d(x, w, b), x)
    bias_alone = price_of("convolution_backward", lambda b: F.conv2d(x, w, b), b)
    assert (first["macs"], frozen["macs"], bias_alone["macs"]) == (once, once, 0)
    assert (first["flops"], frozen["flops"], bias_alone["flops"]) == (2 * once + 36 - 4, 2 * once, 36 - 4)
    assert first["bytes_read"] == 4 * (36 + 75) and frozen["bytes_read"] == 4 * (36 + 108)
    assert bias_alone["bytes_read"] == 4 * 36


def test_transposed_convolution() -> None:
    x, w = random(2, 3, 4, 4), random(3, 2, 3, 3)
    amounts = price_of("convolution_backward", lambda x, w: F.conv_transpose2d(x, w, stride=2), x, w)
    # each of 2 3 4 4 inputs meets 2 3 3 weights, for either gradient
    assert amounts["macs"] == 2 * (2 * 3 * 16) * (2 * 9)


def test_linear_layers_are_two_products() -> None:
    found, _, _ = backward_of(F.linear, random(5, 3), random(4, 3), random(4))
    prices = [price(one) for one in found]
    assert sum(p.amounts.get("macs", 0) for p in prices) == 2 * 5 * 3 * 4
    assert State.UNKNOWN not in [p.state for p in prices]


# --- attention ---------------------------------------------------------------------------------------------------


def attention_backward(g: Array, q: Array, k: Array, v: Array, wanted: Sequence[bool] = (True, True, True)) -> Any:
    """One head after the other, the probabilities kept from the forward; the gradients that are wanted."""
    scale = 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = zeros(*q.shape), zeros(*k.shape), zeros(*v.shape)
    for head in np.ndindex(q.shape[:2]):
        kept = (values(q[head]) @ values(k[head]).T * scale).softmax(-1)
        p = numbers(kept)
        for i, j in np.ndindex(p.shape):
            for d in range(v.shape[-1] if wanted[2] else 0):
                dv[head][j, d] = dv[head][j, d].plus_product(p[i, j], g[head][i, d])
        if not any(wanted[:2]):
            continue
        dp = np.array([[product_sum(g[head][i], v[head][j]) for j in range(p.shape[1])] for i in range(p.shape[0])])
        ds = np.array([softmax_backward(dp[i], p[i]) for i in range(p.shape[0])])
        ds = np.array([[one * scale for one in row] for row in ds])
        for i, j in np.ndindex(p.shape):
            for d in range(q.shape[-1]):
                if wanted[0]:
                    dq[head][i, d] = dq[head][i, d].plus_product(ds[i, j], k[head][j, d])
                if wanted[1]:
                    dk[head][j, d] = dk[head][j, d].plus_product(ds[i, j], q[head][i, d])
    return dq, dk, dv


@pytest.mark.parametrize("shapes", [((1, 2, 3, 4),) * 3, ((2, 1, 3, 4), (2, 1, 5, 4), (2, 1, 5, 4))])
def test_attention(shapes: Any) -> None:
    given = [random(*shape, seed=index) for index, shape in enumerate(shapes)]
    amounts = check("scaled_dot_product_attention_backward", F.scaled_dot_product_attention, attention_backward, *given)
    # twice the forward's macs; reads the gradient, q, k, v; writes theirs
    assert amounts["bytes_read"] == 4 * (given[0].numel() + sum(t.numel() for t in given))
    assert amounts["bytes_written"] == 4 * sum(t.numel() for t in given)


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:])
def test_attention_of_what_needs_no_gradient(wanted: tuple[bool, bool, bool]) -> None:
    shapes = ((2, 1, 3, 4), (2, 1, 5, 4), (2, 1, 5, 6))
    given = [
        random(*shape, seed=index).requires_grad_(wants)
        for index, (shape, wants) in enumerate(zip(shapes, wanted, strict=True))
    ]
    ledger = analyze(Attention(), *given, training=True)
    (operation,) = [one for one in ledger.record.operations if one.name == "scaled_dot_product_attention_backward"]
    q, k, v = (tensor.detach() for tensor in given)
    with counting() as counts:
        results = attention_backward(numbers(torch.ones(2, 1, 3, 6)), numbers(q), numbers(k), numbers(v), wanted)
    F.scaled_dot_product_attention(*given).sum().backward()
    for tensor, result in zip(given, results, strict=True):
        if tensor.grad is not None:
            torch.testing.assert_close(values(result).reshape(tensor.shape), tensor.grad, rtol=1e-4, atol=1e-5)
    amounts = price(operation).amounts
    assert (amounts["macs"], amounts["flops"]) == (counts["macs"], flops(counts))
    sizes = [tensor.numel() for tensor in given]
    assert amounts["bytes_written"] == 4 * sum(n for n, wants in zip(sizes, wanted, strict=True) if wants)
    # the one value of the gradient, which is spread; the values only for that of the scores
    assert amounts["bytes_read"] == 4 * (1 + sizes[0] + sizes[1] + any(wanted[:2]) * sizes[2])


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # a step needs one that trains

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


# --- softmax, activations, losses ---------------------------------------------------------------------------------


def softmax_backward(g: Sequence[Number], y: Sequence[Number]) -> list[Number]:
    weighted = total([a * b for a, b in zip(g, y, strict=True)])
    return [(a - weighted) * b for a, b in zip(g, y, strict=True)]


def log_softmax_backward(g: Sequence[Number], y: Sequence[Number]) -> list[Number]:
    sum_ = total(g)
    return [a - exponential(b) * sum_ for a, b in zip(g, y, strict=True)]


@pytest.mark.parametrize(
    ("name", "function", "by_hand"),
    [
        ("_softmax_backward_data", F.softmax, softmax_backward),
        ("_log_softmax_backward_data", F.log_softmax, log_softmax_backward),
    ],
)
def test_softmax(name: str, function: Any, by_hand: Any) -> None:
    def rowwise(g: Array, x: Array) -> Array:
        kept = numbers(function(values(x), dim=-1))
        pairs = zip(rows(g), rows(kept), strict=True)
        return np.array([by_hand(*pair) for pair in pairs]).reshape(x.shape)

    amounts = check(name, lambda x: function(x, dim=-1), rowwise, random(2, 3, 4))
    assert amounts["bytes_read"] == 2 * amounts["bytes_written"] == 2 * 4 * 24


# (operation, function): one derivative and one product an element
ACTIVATIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("threshold_backward", torch.relu),
    ("gelu_backward", F.gelu),
    ("silu_backward", F.silu),
    ("sigmoid_backward", torch.sigmoid),
    ("tanh_backward", torch.tanh),
    ("elu_backward", F.elu),
    ("hardtanh_backward", F.hardtanh),
    ("hardswish_backward", F.hardswish),
    ("hardsigmoid_backward", F.hardsigmoid),
    ("hardshrink_backward", F.hardshrink),
    ("softshrink_backward", F.softshrink),
    ("leaky_relu_backward", F.leaky_relu),
    ("softplus_backward", F.softplus),
    ("log_sigmoid_backward", F.logsigmoid),
    ("logit_backward", lambda x: torch.logit(x, 1e-6)),
    ("rrelu_with_noise_backward", lambda x: F.rrelu(x, training=True)),
]


@pytest.mark.parametrize(("name", "function"), ACTIVATIONS)
def test_activations_are_a_derivative_and_a_product(name: str, function: Any) -> None:
    amounts = price_of(name, function, positive(2, 3, 4) / 4)
    assert (amounts["macs"], amounts["flops"]) == (0, 2 * 24)
    assert amounts["bytes_written"] == 4 * 24


def test_gates_and_slopes() -> None:
    def gated(g: Array, x: Array) -> Array:
        result = np.empty_like(x)
        for i in range(3):
            s, a = x[i + 3].to("sigmoid", lambda value: 1 / (1 + math.exp(-value))), x[i]
            result[i] = g[i] * s
            result[i + 3] = result[i] * a * (Number(1.0) - s)
        return result

    check("glu_backward", lambda x: F.glu(x, 0), gated, random(6))
    slopes = price_of("_prelu_kernel_backward", F.prelu, random(2, 3, 4), random(3))
    assert slopes["flops"] == 4 * 24


def difference(g: Number, x: Number, y: Number) -> Number:
    return (x - y) * 2.0 * g


def smooth(g: Number, x: Number, y: Number) -> Number:
    apart = x - y
    size = apart.to("abs", abs)
    slope = size.to("compare", lambda value: float(value < 1.0))
    picked = apart.to("over beta or sign", lambda value: value if slope.value else math.copysign(1.0, value))
    return picked * g


def entropy(g: Number, x: Number, y: Number) -> Number:
    return (x - y) / (x * (Number(1.0) - x)) * g


def margin(g: Number, x: Number, y: Number) -> Number:
    e = exponential((y * x).to("negate", lambda value: -value))
    return (y * e).to("divide", lambda value, other: -value / other, e + 1.0) * g


@pytest.mark.parametrize(
    ("name", "function", "by_hand"),
    [
        ("mse_loss_backward", F.mse_loss, difference),
        ("smooth_l1_loss_backward", F.smooth_l1_loss, smooth),
        ("huber_loss_backward", F.huber_loss, smooth),
        ("binary_cross_entropy_backward", F.binary_cross_entropy, entropy),
        ("soft_margin_loss_backward", F.soft_margin_loss, margin),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(name: str, function: Any, by_hand: Any, reduction: str) -> None:
    target = torch.tensor([1.0, 0.0, 1.0, 1.0])

    def elementwise(g: Array, x: Array) -> Array:
        each = {"none": lambda: g, "mean": lambda: [g.item() / 4.0] * 4, "sum": lambda: [g.item()] * 4}[reduction]()
        return np.array([by_hand(*three) for three in zip(each, x, numbers(target), strict=True)])

    check(name, lambda x: function(x, target, reduction=reduction), elementwise, positive(4) / 4)


def test_likelihood_gives_one_number_a_target() -> None:
    target, weight = torch.tensor([0, 2, 1]), positive(4)
    mean = price_of("nll_loss_backward", lambda x: F.nll_loss(x, target), random(3, 4))
    weighted = price_of("nll_loss_backward", lambda x: F.nll_loss(x, target, weight, reduction="sum"), random(3, 4))
    # negate 3, the gradient over 3; negate 3, times the weight 3
    assert (mean["flops"], weighted["flops"]) == (3 + 1, 3 + 3)
    assert mean["bytes_read"] == 4 + 8 * 3 and weighted["bytes_read"] == 4 + 8 * 3 + 4 * 4
    assert mean["bytes_written"] == 4 * 12, "zeros elsewhere"


@pytest.mark.parametrize("function", [F.multi_margin_loss, F.multilabel_margin_loss])
def test_margin_losses(function: Any) -> None:
    target = torch.tensor([0, 2]) if function is F.multi_margin_loss else torch.tensor([[0, -1, -1], [2, 1, -1]])
    amounts = price_of(f"{function.__name__}_backward", lambda x: function(x, target), random(2, 3))
    assert amounts["flops"] == 5 * 6 + 1


def test_connectionist_loss() -> None:
    target = torch.tensor([[1, 2, 3], [2, 1, 0]])
    lengths = [5, 4], [3, 2]
    amounts = price_of("_ctc_loss_backward", lambda x: F.ctc_loss(x, target, *lengths), random(5, 2, 4).log_softmax(2))
    # 7 states in 5 steps, 5 states in 4; 5 2 4 log-probabilities
    assert amounts["flops"] == 19 * (5 * 7 + 4 * 5) + 5 * 40


# --- normalisation -----------------------------------------------------------------------------------------------


def average(row: Sequence[Number]) -> Number:
    return total(row) / float(len(row))


def batch_norm_backward(g: Array, x: Array, w: Array, b: Array) -> Any:
    """Training, with the mean and deviation that the forward kept."""
    dx, dw, db = np.empty_like(x), zeros(3), zeros(3)
    for c in range(3):
        kept = values(x[:, c])
        mean, rstd = Number(kept.mean().item()), Number(1 / math.sqrt(kept.var(unbiased=False).item() + 1e-5))
        z = [(one - mean) * rstd for one in x[:, c].flatten()]
        flat = [*g[:, c].flatten()]
        db[c], dw[c] = total(flat), total([a * b for a, b in zip(flat, z, strict=True)])
        mean_g, mean_gz, scale = db[c] / float(len(z)), dw[c] / float(len(z)), rstd * w[c]
        made = [(a - mean_g - b * mean_gz) * scale for a, b in zip(flat, z, strict=True)]
        dx[:, c] = np.array(made).reshape(x[:, c].shape)
    return dx, dw, db


def test_batch_norm_in_training() -> None:
    amounts = check(
        "batch_norm_backward",
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        batch_norm_backward,
        random(2, 3, 4),
        random(3),
        random(3, seed=1),
    )
    assert amounts["flops"] == 9 * 24 + 3
    # gradient, input, weight, mean and deviation of 3 channels; three gradients
    assert amounts["bytes_read"] == 4 * (2 * 24 + 3 * 3)
    assert amounts["bytes_written"] == 4 * (24 + 2 * 3)
    plain = price_of("batch_norm_backward", lambda x: F.batch_norm(x, None, None, training=True), random(2, 3, 4))
    assert plain["flops"] == 9 * 24


def test_batch_norm_in_eval() -> None:
    mean, variance = random(3), positive(3)

    def by_hand(g: Array, x: Array, w: Array, b: Array) -> Any:
        dx, dw, db = np.empty_like(x), zeros(3), zeros(3)
        for c in range(3):
            rstd = inverse_root(Number(variance[c].item()) + 1e-5)
            scale, flat = rstd * w[c], [*g[:, c].flatten()]
            dx[:, c] = np.array([one * scale for one in flat]).reshape(x[:, c].shape)
            z = [(one - mean[c].item()) * rstd for one in x[:, c].flatten()]
            dw[c], db[c] = total([a * b for a, b in zip(flat, z, strict=True)]), total(flat)
        return dx, dw, db

    given = random(2, 3, 4), random(3), random(3, seed=1)
    amounts = check("batch_norm_backward", lambda x, w, b: F.batch_norm(x, mean, variance, w, b), by_hand, *given)
    assert amounts["bytes_read"] == 4 * (2 * 24 + 3 * 3)


def norm_row(g: Sequence[Number], x: Sequence[Number], w: Sequence[Number] | None) -> tuple[list[Number], list[Number]]:
    """Return the gradient of a row (or group), and its normalised numbers; mean and deviation are kept."""
    kept = torch.tensor([one.value for one in x])
    mean, rstd = Number(kept.mean().item()), Number(1 / math.sqrt(kept.var(unbiased=False).item() + 1e-5))
    z = [(one - mean) * rstd for one in x]
    h = g if w is None else [a * b for a, b in zip(g, w, strict=True)]
    mean_h, mean_hz = average(h), average([a * b for a, b in zip(h, z, strict=True)])
    return [(a - mean_h - b * mean_hz) * rstd for a, b in zip(h, z, strict=True)], z


@pytest.mark.parametrize("with_affine", [True, False])
def test_layer_norm(with_affine: bool) -> None:
    def by_hand(g: Array, x: Array, w: Any = None, b: Any = None) -> Any:
        made = [norm_row(*pair, w) for pair in zip(rows(g), rows(x), strict=True)]
        dx = np.array([row for row, _ in made])
        if w is None:
            return dx
        products = np.array(
            [[a * b for a, b in zip(row, z, strict=True)] for row, (_, z) in zip(rows(g), made, strict=True)]
        )
        return dx, np.array([total([*c]) for c in products.T]), np.array([total([*c]) for c in rows(g).T])

    given = [random(2, 3, 4), *([random(4), random(4, seed=1)] if with_affine else [])]
    amounts = check("native_layer_norm_backward", lambda x, *rest: F.layer_norm(x, [4], *rest), by_hand, *given)
    # gradient and input, a mean and a deviation of 6 rows, weight
    assert amounts["bytes_read"] == 4 * (2 * 24 + 2 * 6 + 4 * with_affine)


def test_group_norm() -> None:
    def by_hand(g: Array, x: Array, w: Array, b: Array) -> Any:
        dx, products = np.empty_like(x), np.empty_like(x)
        spread = np.broadcast_to(w.reshape(1, 4, 1), x.shape)
        for sample, group in np.ndindex((2, 2)):
            part = (sample, slice(2 * group, 2 * group + 2))
            row, z = norm_row(*([*t[part].flatten()] for t in (g, x, spread)))
            dx[part] = np.array(row).reshape(2, 3)
            flat = zip(g[part].flatten(), z, strict=True)
            products[part] = np.array([a * b for a, b in flat]).reshape(2, 3)
        channels = [[*t[:, c].flatten()] for t in (products, g) for c in range(4)]
        sums = [total(channel) for channel in channels]
        return dx, np.array(sums[:4]), np.array(sums[4:])

    given = random(2, 4, 3), random(4), random(4, seed=1)
    check("native_group_norm_backward", lambda x, w, b: F.group_norm(x, 2, w, b), by_hand, *given)


def test_frozen_norms_give_the_input_alone() -> None:
    w, b = random(4), random(4)
    layer = price_of("native_layer_norm_backward", lambda x: F.layer_norm(x, [4], w, b), random(6, 4))
    bias = price_of("native_layer_norm_backward", lambda b: F.layer_norm(random(6, 4), [4], w, b), b)
    assert (layer["flops"], bias["flops"]) == (10 * 24, 24 - 4)


def test_weight_norm() -> None:
    def by_hand(g: Array, v: Array, length: Array) -> Any:
        dv, dlength = np.empty_like(v), np.empty_like(length)
        for i, row in enumerate(v):
            norm = Number(math.sqrt(sum(one.value**2 for one in row)))
            dlength[i, 0] = total([a * b for a, b in zip(g[i], row, strict=True)]) / norm
            scale = length[i, 0] / norm
            other = scale * dlength[i, 0] / norm
            dv[i] = [a * scale - b * other for a, b in zip(g[i], row, strict=True)]
        return dv, dlength

    check(
        "_weight_norm_interface_backward", lambda v, g: torch._weight_norm(v, g), by_hand, random(3, 4), positive(3, 1)
    )


# --- pooling, resampling, indices --------------------------------------------------------------------------------


def test_average_pool() -> None:
    def by_hand(g: Array, x: Array) -> Array:
        dx = zeros(*x.shape)
        for channel, i, j in np.ndindex(g.shape):
            share = g[channel, i, j] / 6.0
            for di, dj in np.ndindex((2, 3)):
                at = (channel, 2 * i + di, j + dj)
                dx[at] = dx[at] + share
        return dx

    amounts = check("avg_pool2d_backward", lambda x: F.avg_pool2d(x, (2, 3), (2, 1)), by_hand, random(2, 4, 5))
    assert amounts["bytes_read"] == 4 * 2 * 2 * 3, "the input is not read"


def test_adaptive_average_pool() -> None:
    def by_hand(g: Array, x: Array) -> Array:
        dx = zeros(*x.shape)
        for channel, i, j in np.ndindex(g.shape):
            places = [
                (a, b) for a in range(i * 5 // 2, -(-(i + 1) * 5 // 2)) for b in range(j * 4 // 3, -(-(j + 1) * 4 // 3))
            ]
            share = g[channel, i, j] / float(len(places))
            for a, b in places:
                dx[channel, a, b] = dx[channel, a, b] + share
        return dx

    check("_adaptive_avg_pool2d_backward", lambda x: F.adaptive_avg_pool2d(x, (2, 3)), by_hand, random(2, 5, 4))


def test_maximum_pool() -> None:
    def by_hand(g: Array, x: Array) -> Array:
        dx = zeros(*x.shape)
        for channel, i, j in np.ndindex(g.shape):
            window = [(channel, i + di, j + dj) for di, dj in np.ndindex((3, 3))]
            best = max(window, key=lambda at: x[at].value)
            dx[best] = dx[best] + g[channel, i, j]
        return dx

    amounts = check("max_pool2d_with_indices_backward", lambda x: F.max_pool2d(x, 3, 1), by_hand, random(2, 5, 4))
    assert amounts["bytes_read"] == (4 + 8) * 2 * 3 * 2, "gradient and indices"


def test_bilinear_interpolation() -> None:
    def by_hand(g: Array, x: Array) -> Array:
        """Twice as wide along one dimension with corners aligned: 2 neighbours, weights ready."""
        dx, n, m = zeros(*x.shape), x.shape[-1], g.shape[-1]
        for batch, channel, i in np.ndindex(g.shape):
            position = i * (n - 1) / (m - 1)
            low = min(int(position), n - 2)
            for place, weight in ((low, 1 - position + low), (low + 1, position - low)):
                at = (batch, channel, place)
                dx[at] = dx[at] + g[batch, channel, i] * weight
        return dx

    function = lambda x: F.interpolate(x, 8, mode="linear", align_corners=True)  # noqa: E731
    check("upsample_linear1d_backward", function, by_hand, random(1, 2, 4))
    for mode, dimensions, neighbours in (
        ("bilinear", 2, 4),
        ("trilinear", 3, 8),
        ("bicubic", 2, 16),
        ("nearest", 2, 0),
    ):
        found, _, _ = backward_of(
            lambda x, m=mode: F.interpolate(x, scale_factor=2, mode=m), random(1, 2, *dimensions * [3])
        )
        ((cost, read),) = [
            (p["flops"], p["bytes_read"]) for p in (price(one).amounts for one in found) if p.get("flops")
        ]
        outputs = 2 * 6**dimensions
        assert (cost, read) == (outputs * max(2 * neighbours, 1), 4 * outputs)


@pytest.mark.parametrize(("mode", "neighbours"), [("bilinear", 4), ("bicubic", 16)])
def test_sampled_grid(mode: str, neighbours: int) -> None:
    amounts = price_of(
        "grid_sampler_2d_backward",
        lambda x, g: F.grid_sample(x, g, mode=mode, align_corners=False),
        random(1, 2, 4, 4),
        random(1, 3, 3, 2) / 4,
    )
    # 2 channels of 3 3 places: 2 k for the input; for each of two coordinates 2 k - 1, times the gradient, added
    assert amounts["flops"] == 18 * (2 * neighbours + 2 * (2 * neighbours - 1 + 2))
    alone = price_of(
        "grid_sampler_2d_backward",
        lambda x: F.grid_sample(x, random(1, 3, 3, 2) / 4, mode=mode, align_corners=False),
        random(1, 2, 4, 4),
    )
    assert alone["flops"] == 18 * 2 * neighbours


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_adds_into_its_places(mode: str) -> None:
    name = {"reflect": "reflection_pad2d_backward", "replicate": "replication_pad2d_backward"}[mode]
    amounts = price_of(name, lambda x: F.pad(x, (1, 1, 1, 1), mode=mode), random(1, 2, 4, 4))
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (2 * 36, 4 * 2 * 36, 4 * 2 * 16)


def test_embedding() -> None:
    places = torch.tensor([[0, 2], [1, 1]])
    amounts = price_of("embedding_dense_backward", lambda w: F.embedding(places, w), random(5, 3))
    # 4 rows of 3 added into a table of 5 rows
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (12, 8 * 4 + 4 * 12, 4 * 15)


def test_embedding_bags() -> None:
    places, name = torch.tensor([[0, 2, 4], [1, 1, 3]]), "_embedding_bag_backward"
    by_mode = [
        price_of(name, lambda w, m=m: F.embedding_bag(places, w, mode=m), random(5, 4)) for m in ("sum", "mean", "max")
    ]
    # 6 rows of 4, divided first for a mean; a maximum is one of each of 2 4 outputs
    assert [amounts["flops"] for amounts in by_mode] == [24, 2 * 24, 8]
    # the gradient, 2 by 4; 6 indices and the bag of each; a mean: 2 bags' sizes; a maximum: 8 rows
    assert [amounts["bytes_read"] for amounts in by_mode] == [32 + 8 * 12, 32 + 8 * 12 + 8 * 2, 32 + 8 * 8]
    function = lambda w, p: F.embedding_bag(places, w, mode="sum", per_sample_weights=p)  # noqa: E731
    weighted = price_of(name, function, random(5, 4), random(2, 3))
    weights = price_of("_embedding_bag_per_sample_weights_backward", function, random(5, 4), random(2, 3))
    for amounts in (weighted, weights):
        assert (amounts["macs"], amounts["flops"]) == (24, 48)


VIEWS: list[tuple[str, Callable[[Tensor], Tensor], int]] = [
    ("select_backward", lambda x: x[1], 4),
    ("slice_backward", lambda x: x[:2], 8),
    ("diagonal_backward", lambda x: x.diagonal(), 3),
]


@pytest.mark.parametrize(("name", "function", "elements"), VIEWS)
def test_views_are_written_into_zeros(name: str, function: Any, elements: int) -> None:
    amounts = price_of(name, function, random(3, 4))
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, 4 * elements, 4 * 12)


def test_dropout() -> None:
    from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

    x, mask = TensorInfo((3, 4), (4, 1), "float32"), TensorInfo((3, 4), (4, 1), "bool")
    arguments = {"grad_output": TensorRef(0), "mask": TensorRef(1), "scale": 2.0}
    amounts = price(Operation("dropout_backward", arguments, (x, mask), (OutputInfo(x),))).amounts
    assert (amounts["flops"], amounts["bytes_read"], amounts["activation_bytes"]) == (2 * 12, 5 * 12, 0)


# --- distances ---------------------------------------------------------------------------------------------------


def test_euclidean_distances_contract() -> None:
    """x1's gradient is sum(c) x1 - c x2, c the gradient over the distance; x2's the other way round."""

    def by_hand(g: Array, x: Array) -> Array:
        dx = np.empty_like(x)
        for i, row in enumerate(x):
            apart = [Number(math.dist([a.value for a in row], other)) for other in other_points.tolist()]
            c = [a / b for a, b in zip(g[i], apart, strict=True)]
            weight = total(c)
            for d in range(row.size):
                pulled = product_sum(c, [Number(value) for value in other_points[:, d].tolist()])
                dx[i, d] = row[d] * weight - pulled
        return dx

    other_points = random(5, 4)
    amounts = check("_cdist_backward", lambda x: torch.cdist(x, other_points), by_hand, random(3, 4))
    assert amounts["macs"] == 3 * 5 * 4


@pytest.mark.parametrize(("order", "a_feature", "a_pair"), [(1.0, 4, 0), (math.inf, 4, 0), (3.0, 6, 2)])
def test_other_distances(order: float, a_feature: int, a_pair: int) -> None:
    amounts = price_of("_cdist_backward", lambda x: torch.cdist(x, random(5, 4), p=order), random(3, 4))
    assert (amounts["macs"], amounts["flops"]) == (0, 15 * (4 * a_feature + a_pair))


def test_distances_within_one_set() -> None:
    def by_hand(g: Array, x: Array) -> Array:
        dx, place = zeros(*x.shape), 0
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                c = g[place] / math.dist([a.value for a in x[i]], [b.value for b in x[j]])
                place += 1
                for d in range(x.shape[1]):
                    pull = (x[i, d] - x[j, d]) * c
                    dx[i, d], dx[j, d] = dx[i, d] + pull, dx[j, d] - pull
        return dx

    check("_pdist_backward", F.pdist, by_hand, random(4, 3))
