"""Rules of the backward operations of contractions and normalisations.

A contraction's two gradients are contractions as large as itself; which of them are wanted stands in `output_mask`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchledger.pricing import rules as r
from torchledger.pricing.backward import gradient_of, masks
from torchledger.record import Operation, TensorInfo

# --- contractions --------------------------------------------------------------------------------------------------


def convolution_pass(operation: Operation) -> int:
    """Return the macs of the forward: each is one of the input's gradient and one of the weight's."""
    x, weight = r.need(operation, "input", "self"), r.need(operation, "weight")
    base = x if r.is_transposed(operation) else gradient_of(operation)
    return base.elements * weight.shape[1] * r.kernel_elements(weight)


def _masked(operation: Operation) -> tuple[bool, bool, bool]:
    """Return which gradients of input, weight and bias are wanted."""
    wanted = masks(operation, 3)
    return wanted[0], wanted[1], wanted[2]


def convolution_macs(operation: Operation) -> int:
    """The forward's macs for the input's gradient, and as many for the weight's."""
    x, weight, _ = _masked(operation)
    return convolution_pass(operation) * (x + weight)


def convolution_flops(operation: Operation) -> int:
    """2 macs; the bias is the sum of the gradient over samples and places: n - 1 a channel."""
    gradient = gradient_of(operation)
    bias = max(gradient.elements - gradient.shape[1], 0) if _masked(operation)[2] else 0
    return 2 * convolution_macs(operation) + bias


def contraction_bytes(operation: Operation) -> int:
    """The gradient; the weight for the input's gradient, the input for the weight's."""
    x, weight, _ = _masked(operation)
    names = ("grad_output", *(("weight",) if x else ()), *(("input", "self") if weight else ()))
    return r.bytes_of(*names)(operation)


def linear_macs(operation: Operation) -> int:
    """Rows by inputs by outputs for the input's gradient, and as many for the weight's."""
    x, weight, _ = _masked(operation)
    return gradient_of(operation).elements * r.need(operation, "weight").shape[1] * (x + weight)


def linear_flops(operation: Operation) -> int:
    """2 macs; the bias is the sum of the gradient over rows: n - 1 an output."""
    gradient = gradient_of(operation)
    bias = max(gradient.elements - gradient.shape[-1], 0) if _masked(operation)[2] else 0
    return 2 * linear_macs(operation) + bias


def matmul_macs(operation: Operation) -> int:
    """The forward's macs for each of the two gradients."""
    return gradient_of(operation).elements * r.need(operation, "self").shape[-1] * sum(masks(operation, 2))


def distance_macs(operation: Operation) -> int:
    """p = 2: x1's gradient is sum(c) x1 - c x2, c the gradient over the distance: P R M; other norms: none."""
    if operation.arguments.get("p") != 2:
        return 0
    return r.need(operation, "grad").elements * r.need(operation, "x1").shape[-1]


def distance_flops(operation: Operation) -> int:
    """p = 2: 2 macs, division 1 a pair, sum R - 1 a point, product and difference 2 an element. p = 1, inf:
    difference, sign or comparison, product, sum 4 for each feature of a pair. Other p: difference, absolute value,
    power, sign, product, sum 6, and 2 a pair for what the norm divides by."""
    pairs, x = r.need(operation, "grad").elements, r.need(operation, "x1", "self")
    return _distances(operation, pairs, x, distance_macs(operation))


def _distances(operation: Operation, pairs: int, x: TensorInfo, macs: int) -> int:
    order = operation.arguments.get("p")
    if order == 0:
        return 0
    if macs:
        return 2 * macs + 2 * pairs - x.elements // x.shape[-1] + 2 * x.elements
    if order in (1, math.inf):
        return 4 * pairs * x.shape[-1]
    return (6 * x.shape[-1] + 2) * pairs


def pair_flops(operation: Operation) -> int:
    """Each pair gives to both of its points: for p = 2 division 1 a pair; difference, product, addition, subtraction
    4 for each feature. p = 1, inf: a sign or comparison more. Other p: absolute value, power, sign more, 2 a pair."""
    pairs, length, order = (
        r.need(operation, "grad").elements,
        r.need(operation, "self").shape[-1],
        operation.arguments.get("p"),
    )
    if order == 0:
        return 0
    if order == 2:
        return pairs * (4 * length + 1)
    return pairs * (5 * length if order in (1, math.inf) else 7 * length + 2)


# --- normalisation -------------------------------------------------------------------------------------------------


def normalised(x: TensorInfo, groups: int, weight: TensorInfo | None, channels: int, wanted: tuple[bool, ...]) -> int:
    """Centred norm over `groups`: z = (x - mean) rstd 2 n; weight's gradient g z, summed 2 n - 1; bias's n - 1.

    The input's gradient: h = g weight n; means of h n and of h z 2 n; rstd (h - mean(h) - z mean(h z)) 4 n.
    """
    flops = 2 * x.elements if wanted[0] or wanted[1] else 0
    if wanted[0]:
        flops += (8 if weight is not None else 7) * x.elements
    if wanted[1]:
        flops += 2 * x.elements - channels
    return max(flops + (x.elements - channels if wanted[2] else 0), 0)


def layer_norm(operation: Operation) -> int:
    """See `normalised`: a row is a group, each place of a row a channel."""
    x, weight = r.need(operation, "input"), operation.tensor("weight")
    length = math.prod(r.integers(operation.arguments.get("normalized_shape", ()))) or 1
    return normalised(x, x.elements // length, weight, length, masks(operation, 3))


def group_norm(operation: Operation) -> int:
    """See `normalised`."""
    groups = r.number(operation, "N") * r.number(operation, "group")
    x, weight = r.need(operation, "input"), operation.tensor("weight")
    return normalised(x, groups, weight, r.number(operation, "C"), masks(operation, 3))


def rms_norm(operation: Operation) -> int:
    """z = x rstd n; h = g weight n, mean of h z 2 n, rstd (h - z mean) 3 n; the weight's gradient g z, summed 2 n -
    1."""
    x, weight = r.need(operation, "input"), operation.tensor("weight")
    length = math.prod(r.integers(operation.arguments.get("normalized_shape", ()))) or 1
    wanted = masks(operation, 2)
    flops = x.elements * (any(wanted) + (6 if weight is not None else 5) * wanted[0] + 2 * wanted[1])
    return max(flops - length * wanted[1], 0)


def batch_norm(operation: Operation) -> int:
    """Training: z 2 n, sum(g) n - 1, sum(g z) 2 n - 1, over n 2, rstd weight 1, (g - mean - z mean) scale 4 n a
    channel: 9 n + 1, without weight 9 n; the sums are the gradients of bias and weight. Eval: g times scale n, 1,
    and eps, rsqrt 2; weight's gradient 4 n - 1, bias's n - 1."""
    x, weight = r.need(operation, "input"), operation.tensor("weight")
    channels, (dx, dweight, dbias) = x.shape[1], _masked(operation)
    in_training = operation.arguments.get("train", operation.arguments.get("update", True))
    if in_training and dx:
        return 9 * x.elements + channels * (weight is not None)
    flops = 0
    if dx:
        flops += x.elements + channels * (weight is not None)
    if dweight:
        flops += 4 * x.elements - channels
    if not in_training and (dx or dweight):
        flops += 2 * channels
    return max(flops + (x.elements - channels if dbias else 0), 0)


def batch_norm_bytes(operation: Operation) -> int:
    """Gradient, input, weight, and the mean and variance that the forward used."""
    in_training = operation.arguments.get("train", operation.arguments.get("update", True))
    dx, dweight, _ = _masked(operation)
    names = ["grad_out", "grad_output"]
    if dweight or (in_training and dx):
        names.append("input")
    if dx:
        names.append("weight")
    if dx or dweight:
        kept = ["save_mean", "save_invstd", "save_var"] if in_training else ["running_mean", "running_var"]
        names += kept
    return r.bytes_of(*names)(operation)


NORM_READ = {1: "gradient, input, weight, root mean square", 2: "gradient, input, weight, mean and deviation"}


def norm_bytes(statistics: int) -> r.Formula:
    """Return the bytes of gradient, input, weight and `statistics` kept numbers a group."""
    return r.bytes_of("grad_out", "input", "weight", *("mean", "rstd")[2 - statistics :], said=NORM_READ[statistics])


def weight_norm(operation: Operation) -> int:
    """Length: h = g v / |v|, 2 n - 1 and 1. Direction: a g - b v, a = length / |v|, b = a h / |v|: 3, and 3 n."""
    return 5 * r.need(operation, "saved_v").elements + 3 * r.need(operation, "saved_g").elements


def synchronised(amount: int) -> r.Formula:
    """Return `amount` an element of the input."""
    return lambda operation: amount * r.need(operation, "input").elements


def _table() -> dict[str, r.Rule]:
    convolution = r.gradient(
        "2 macs, the forward's once for the input and once for the weight; bias n - 1 a channel",
        convolution_flops,
        convolution_macs,
        read=contraction_bytes,
    )
    linear = r.gradient(
        "2 macs, the forward's once for the input and once for the weight; bias n - 1 an output",
        linear_flops,
        linear_macs,
        read=contraction_bytes,
    )
    batch = r.gradient(
        "training 9 n + 1 a channel: centre and scale 2 n, two sums 3 n - 2, over n 2, scale 1, 4 n; eval n + 1, "
        "weight 4 n - 1, bias n - 1, 2 a channel",
        batch_norm,
        read=batch_norm_bytes,
    )
    normed = (
        "10 n a group (9 n without weight): centre and scale 2 n, weight n, two means 3 n, 4 n; weight 2 n - 1, "
        "bias n - 1"
    )
    rms = "7 n a row (6 n without weight): scale n, weight n, mean 2 n, 3 n; weight 2 n - 1"
    distances = (
        "p = 2: 2 macs, 2 a pair less 1 a point, 2 an element; p = 1, inf: 4 for each feature of a pair; other p: 6, "
        "and 2 a pair"
    )
    pairs = "for each feature of a pair p = 2: 4, and 1 a pair; p = 1, inf: 5; other p: 7, and 2 a pair"
    return {
        "convolution_backward": convolution,
        "linear_backward": linear,
        "mkldnn_linear_backward": linear,
        "matmul_backward": r.gradient("2 macs, the forward's once for each side", r.doubled(matmul_macs), matmul_macs),
        "_cdist_backward": r.gradient(distances, distance_flops, distance_macs),
        "_pdist_backward": r.gradient(pairs, pair_flops),
        "batch_norm_backward": batch,
        "native_layer_norm_backward": r.gradient(normed, layer_norm, read=norm_bytes(2)),
        "native_group_norm_backward": r.gradient(normed, group_norm, read=norm_bytes(2)),
        "_fused_rms_norm_backward": r.gradient(rms, rms_norm, read=norm_bytes(1)),
        "_weight_norm_interface_backward": r.gradient(
            "5 n + 3 a norm: product 2 n - 1, over the norm 1, factors 3, two products and a difference 3 n",
            weight_norm,
        ),
        "batch_norm_backward_reduce": r.gradient(
            "4 n a channel: centre n, times the gradient n, two sums 2 n - 2, scale 2", synchronised(4)
        ),
        "batch_norm_backward_elemt": r.gradient(
            "5 n a channel: centre n, times a factor n, two differences 2 n, scale n", synchronised(5)
        ),
    }


RULES: Mapping[str, r.Rule] = _table()
