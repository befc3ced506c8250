"""Kernels that other devices run in an operation's place have its name and its price; forms that only they have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counting import Number, counting, flops, random, root, total
from dispatching import dispatched
from torch import Tensor

from torchledger.canonical import canonical
from torchledger.pricing.convention import State
from torchledger.pricing.full import price
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

aten = torch.ops.aten
Amounts = dict[str, int]


def tensor(*shape: int, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(shape, tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape))), dtype)


def made(name: str, results: list[TensorInfo], **arguments: Any) -> Amounts:
    """Return the price of a kernel by its ATen name, given the arguments that its schema has."""
    booked = canonical(*name.split("::")) if "::" in name else canonical("aten", name)
    assert booked is not None
    inputs: list[TensorInfo] = []
    places: dict[str, object] = {}
    for key, value in arguments.items():
        places[key] = TensorRef(len(inputs)) if isinstance(value, TensorInfo) else value
        inputs += [value] if isinstance(value, TensorInfo) else []
    priced = price(Operation(booked, places, tuple(inputs), tuple(OutputInfo(result) for result in results)))
    assert priced.state is State.PRICED, name
    return dict(priced.amounts)


Q, K, V, OUT = tensor(2, 4, 3, 8), tensor(2, 4, 5, 8), tensor(2, 4, 5, 6), tensor(2, 4, 3, 6)
SCORES, ROWS = 2 * 4 * 3 * 5, 2 * 4 * 3
COMMON = {"query": Q, "key": K, "value": V, "dropout_p": 0.0, "is_causal": False}
KEPT = {"out": OUT, "logsumexp": tensor(2, 4, 3), "philox_seed": tensor(dtype="int64"), "max_q": 3, "max_k": 5}
BACKWARD: list[tuple[str, dict[str, Any]]] = [
    ("_scaled_dot_product_flash_attention_backward", {"grad_out": OUT, **COMMON, **KEPT}),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", {"grad_out": OUT, **COMMON, "out": OUT}),
    (
        "_scaled_dot_product_efficient_attention_backward",
        {"grad_out_": OUT, **COMMON, **KEPT, "grad_input_mask": (True, True, True, False)},
    ),
    ("_scaled_dot_product_cudnn_attention_backward", {"grad_out": OUT, **COMMON, **KEPT}),
    ("_scaled_dot_product_fused_attention_overrideable_backward", {"grad_out": OUT, **COMMON, **KEPT}),
    ("higher_order::flex_attention_backward", {"query": Q, "key": K, "value": V, "out": OUT, "grad_out": OUT}),
    ("_cudnn_attention_backward", {"grad_out": OUT, **COMMON, **KEPT}),
]


@pytest.mark.parametrize(("name", "given"), BACKWARD)
def test_backward_of_attention_costs_the_same_by_every_kernel(name: str, given: dict[str, Any]) -> None:
    amounts = made(name, [Q, K, V], **given)
    # dV and dP of width 6, dQ and dK of width 8 a score; softmax 4 5 - 1 a row, scale
    assert amounts["macs"] == SCORES * 2 * (6 + 8)
    assert amounts["flops"] == 2 * amounts["macs"] + ROWS * (4 * 5 - 1) + SCORES
    assert amounts["bytes_read"] == 4 * (OUT.elements + Q.elements + K.elements + V.elements), "not what is kept"
    assert (amounts["bytes_written"], amounts["activation_bytes"]) == (4 * (Q.elements + K.elements + V.elements), 0)


def test_dropout_in_the_backward_of_attention_takes_mask_and_scale() -> None:
    name, given = BACKWARD[0]
    dropped = made(name, [Q, K, V], **{**given, "dropout_p": 0.1})
    assert dropped["flops"] - made(name, [Q, K, V], **given)["flops"] == 2 * SCORES


def test_the_gradient_of_a_mask_goes_through_the_scores_and_is_written() -> None:
    name, given = BACKWARD[2]
    mask = tensor(2, 4, 3, 5)
    amounts = made(name, [mask], **{**given, "attn_bias": mask, "grad_input_mask": (False, False, False, True)})
    assert amounts["macs"] == SCORES * 6, "dP, of the values' width"
    assert amounts["bytes_written"] == 4 * SCORES


def test_a_masked_softmax_without_a_dimension_takes_the_last() -> None:
    """5 n - 2 a row of n = 6, backward 4 n - 1; of the 4 by 3 rows."""
    x, mask = tensor(4, 3, 6), tensor(4, 3, 6, dtype="bool")
    for dim in (None, -1, 2):
        assert made("_masked_softmax", [x], self=x, mask=mask, dim=dim, mask_type=None)["flops"] == 12 * (5 * 6 - 2)
        back = made("_masked_softmax_backward", [x], grad_output=x, output=x, mask=mask, dim=dim)
        assert back["flops"] == 12 * (4 * 6 - 1)
    assert made("_masked_softmax", [x], self=x, mask=mask, dim=0, mask_type=None)["flops"] == 18 * (5 * 4 - 2)


def test_fewer_heads_of_keys_add_up_in_their_gradients() -> None:
    narrow = {"key": tensor(2, 2, 5, 8), "value": tensor(2, 2, 5, 6)}
    name, given = BACKWARD[0]
    assert made(name, [Q, K, V], **{**given, **narrow})["macs"] == SCORES * 2 * (6 + 8)


def test_kernels_below_the_front_door_have_heads_after_lengths() -> None:
    """(batch, length, heads, width); then sequences packed in one, whose lengths are values: the longest for all."""
    query, key, value, out = tensor(2, 3, 4, 8), tensor(2, 5, 4, 8), tensor(2, 5, 4, 6), tensor(2, 3, 4, 6)
    whole = made("scaled_dot_product_attention", [OUT], **COMMON)
    given = {"query": query, "key": key, "value": value, "dropout_p": 0.0}
    for name in ("_flash_attention_forward", "_efficient_attention_forward"):
        assert made(name, [out, tensor(2, 4, 3)], **given) == whole
    packed = {"query": tensor(7, 4, 8), "key": tensor(9, 4, 8), "value": tensor(9, 4, 6), "max_q": 4, "max_k": 5}
    lengths = {"cum_seq_q": tensor(3, dtype="int32"), "cum_seq_k": tensor(3, dtype="int32")}
    amounts = made("_flash_attention_forward", [tensor(7, 4, 6)], **packed, **lengths)
    assert amounts["macs"] == (7 * 4) * 5 * (8 + 6)
    back = made("_flash_attention_backward", [packed["query"]], grad_out=tensor(7, 4, 6), **packed, **lengths)
    assert back["macs"] == 2 * amounts["macs"]


def test_flexible_attention_counts_the_full_square() -> None:
    amounts = made("higher_order::flex_attention", [OUT, tensor(2, 4, 3)], query=Q, key=K, value=V)
    assert amounts == made("scaled_dot_product_attention", [OUT], **COMMON)


def test_backward_of_batch_norm_costs_the_same_by_every_kernel() -> None:
    x, each = tensor(2, 3, 4), tensor(3)
    native = made(
        "native_batch_norm_backward", [x, each, each], grad_out=x, input=x, weight=each, running_mean=each,
        running_var=each, save_mean=each, save_invstd=each, train=True, output_mask=(True, True, True),
    )  # fmt: skip
    for name in ("cudnn_batch_norm_backward", "miopen_batch_norm_backward"):
        kernel = made(
            name, [x, each, each], input=x, grad_output=x, weight=each, running_mean=each, running_var=each,
            save_mean=each, save_var=each, reserveSpace=tensor(100, dtype="uint8"),
        )  # fmt: skip
        assert kernel == native
    updated = made(
        "batch_norm_backward", [x, each, each], grad_out=x, input=x, weight=each, running_mean=each, running_var=each,
        save_mean=each, save_var=each, update=True, output_mask=(True, True, True), reserve=tensor(9, dtype="uint8"),
    )  # fmt: skip
    assert updated == native
    assert native["flops"] == 9 * 24 + 3


CONVOLUTIONS = """
    cudnn_convolution miopen_convolution mkldnn_convolution _slow_conv2d_forward slow_conv_dilated2d _conv_depthwise2d
    """.split()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_cost_the_same_by_every_kernel(name: str) -> None:
    x, weight, out = tensor(1, 4, 6, 6), tensor(8, 2, 3, 3), tensor(1, 8, 4, 4)
    plain = made("convolution", [out], input=x, weight=weight, transposed=False, output_padding=(0, 0), groups=2)
    assert made(name, [out], self=x, weight=weight) == plain
    assert plain["macs"] == 128 * 2 * 9


@pytest.mark.parametrize(
    "name", ["cudnn_convolution_transpose", "miopen_convolution_transpose", "slow_conv_transpose2d"]
)
def test_transposed_convolutions_cost_the_same_by_every_kernel(name: str) -> None:
    x, weight, out = tensor(1, 4, 6, 6), tensor(4, 2, 3, 3), tensor(1, 2, 8, 8)
    plain = made("convolution", [out], input=x, weight=weight, transposed=True, output_padding=(0, 0), groups=1)
    assert made(name, [out], self=x, weight=weight, output_padding=(0, 0)) == plain
    assert plain["macs"] == 144 * 2 * 9


def test_slow_convolutions_backward() -> None:
    x, weight, out = tensor(1, 4, 6, 6), tensor(8, 4, 3, 3), tensor(1, 8, 4, 4)
    mask = (True, True, False)
    plain = made(
        "convolution_backward", [x, weight], grad_output=out, input=x, weight=weight, transposed=False,
        output_padding=(0, 0), output_mask=mask,
    )  # fmt: skip
    assert made("_slow_conv2d_backward", [x, weight], grad_output=out, self=x, weight=weight, output_mask=mask) == plain


def test_norms_over_several_processes() -> None:
    x, each, counts = tensor(2, 3, 4), tensor(3), tensor(2)
    # mean n, centre n, square n, mean n
    assert made("batch_norm_stats", [each, each], input=x)["flops"] == 4 * 24
    assert made("batch_norm_elemt", [x], input=x, weight=each, bias=each, mean=each, invstd=each)["flops"] == 4 * 24
    given = {"input": x, "mean": tensor(2, 3), "invstd": tensor(2, 3), "counts": counts}
    assert made("batch_norm_gather_stats_with_counts", [each, each], **given)["flops"] == 10 * 2 * 3
    reduced = made("batch_norm_backward_reduce", [each] * 4, grad_out=x, input=x, mean=each, invstd=each)
    spread = made("batch_norm_backward_elemt", [x], grad_out=x, input=x, mean=each, invstd=each)
    assert (reduced["flops"], spread["flops"]) == (4 * 24, 5 * 24)


def test_root_mean_square_norm_backward() -> None:
    """One row after the other; what the forward kept is its inverse root."""
    x, g, w = ([[Number(v) for v in row] for row in random(6, 4, seed=s).tolist()] for s in range(3))
    with counting() as counts:
        products = []
        for i in range(6):
            z = [value * 0.5 for value in x[i]]
            h = [a * b for a, b in zip(g[i], w[0], strict=True)]
            mean = total([a * b for a, b in zip(h, z, strict=True)]) / 4.0
            [(a - b * mean) * 0.5 for a, b in zip(h, z, strict=True)]
            products.append([a * b for a, b in zip(g[i], z, strict=True)])
        [total([row[k] for row in products]) for k in range(4)]
    rows, weight = tensor(6, 4), tensor(4)
    given = {"grad_out": rows, "input": rows, "normalized_shape": (4,), "rstd": tensor(6, 1), "weight": weight}
    amounts = made("_fused_rms_norm_backward", [rows, weight], **given, output_mask=(True, True))
    assert amounts["flops"] == flops(counts)
    assert amounts["bytes_read"] == 4 * (24 + 24 + 6 + 4)


# --- forms that few use ------------------------------------------------------------------------------------------


def price_of(name: str, function: Callable[..., Any], *tensors: Any) -> Amounts:
    (operation,) = [one for one in dispatched(lambda: function(*tensors)) if one.name == name]
    priced = price(operation)
    assert priced.state is State.PRICED, operation
    return dict(priced.amounts)


def distance(rows: list[list[Number]]) -> Number:
    return root(total([(a - b) * (a - b) for a, b in zip(*rows, strict=True)]))


X = random(3, 4)
STATED: list[tuple[str, Callable[[Tensor], Any], int]] = [
    # 12 differences; square 12, sum 11, root 1
    ("dist", lambda x: torch.dist(x, x + 1), 12 + 24),
    ("dist", lambda x: torch.dist(x, x + 1, 1), 12 + 23),
    # 6 an element: |x - y| <= a + r |y|
    ("allclose", lambda x: torch.allclose(x, x + 1), 6 * 12),
    # norm 8 a row, comparison, eps, quotient, and 4 products
    ("renorm", lambda x: x.renorm(2, 0, 1.0), 3 * (8 + 3 + 4)),
    # two rows that are looked up
    ("embedding_renorm_", lambda x: F.embedding(torch.tensor([0, 2]), x, max_norm=1.0), 2 * (8 + 3 + 4)),
    ("histc", lambda x: torch.histc(x, 5, -1, 1), 3 * 12),
    ("histogram", lambda x: torch.histogram(x, 5, range=(-1, 1)), 3 * 12),
    ("histogram", lambda x: torch.histogram(x, torch.arange(5.0)), 12 * 3),  # ceil(log2(5 + 1))
    ("bincount", lambda x: torch.bincount(torch.tensor([0, 1, 1]), x[0, :3]), 3),
    ("bincount", lambda x: torch.bincount(torch.tensor([0, 1, 1])), 0),
    # 3 5 outputs of 4 products, bias and activation
    ("_addmm_activation", lambda x: aten._addmm_activation(x.new_ones(5), x, x.new_ones(4, 5)), 2 * 60 + 2 * 15),
    # kernel 2 over 5 steps leaves 4, of 2 samples and 4 features; each 2 3 products, and a bias
    ("conv_tbc", lambda x: aten.conv_tbc(random(5, 2, 3), random(2, 3, 4), random(4)), 2 * (4 * 2 * 4) * 6 + 32),
    ("multi_margin_loss", lambda x: F.multi_margin_loss(x, torch.tensor([0, 3, 1])), 4 * 12 + 12),
    # 7 states in 5 steps and 5 in 4, 13 each; 5 a sample
    (
        "_ctc_loss",
        lambda x: F.ctc_loss(
            random(5, 2, 4).log_softmax(2), torch.tensor([[1, 2, 3], [2, 1, 0]]), [5, 4], [3, 2], reduction="none"
        ),
        13 * (5 * 7 + 4 * 5) + 5 * 2,
    ),
    ("segment_reduce", lambda x: torch.segment_reduce(x[0], "sum", lengths=torch.tensor([3, 1])), 4),
    ("linalg__powsum", lambda x: aten.linalg__powsum(x), 23),
    ("special_bessel_j0", torch.special.bessel_j0, 12),
    ("mvlgamma", lambda x: torch.mvlgamma(x + 9, 2), 12),
]


@pytest.mark.parametrize(("name", "function", "expected"), STATED)
def test_stated_arithmetic(name: str, function: Any, expected: int) -> None:
    assert price_of(name, function, X.clone())["flops"] == expected


def test_distance_by_hand() -> None:
    with counting() as counts:
        distance([[Number(v) for v in row] for row in random(2, 5).tolist()])
    # a square of a difference is one difference and one product: it is taken twice here
    assert price_of("dist", torch.dist, random(5), random(5))["flops"] == flops(counts) - 5


@pytest.mark.parametrize(
    ("name", "function", "elements"),
    [
        ("expand_copy", lambda x: aten.expand_copy(x[0], [3, 4]), 12),
        ("select_copy", lambda x: aten.select_copy(x, 0, 1), 4),
        ("view_copy", lambda x: aten.view_copy(x, [4, 3]), 12),
        ("slice_copy", lambda x: aten.slice_copy(x, 0, 0, 2), 8),
    ],
)
def test_views_that_copy_move_what_they_show(name: str, function: Any, elements: int) -> None:
    amounts = price_of(name, function, X)
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (0, 4 * elements, 4 * elements)


@pytest.mark.parametrize("dim", [(), (None,), (1,)])
def test_a_masked_softmax_goes_along_the_last_dimension_unless_it_is_told(dim: Any) -> None:
    x = torch.rand(4, 6)
    made = dispatched(lambda: torch.ops.aten._masked_softmax(x, x > 0.5, *dim, mask_type=1))
    (operation,) = [one for one in made if one.name == "_masked_softmax"]
    assert price(operation).amounts["flops"] == 4 * (5 * 6 - 2)
