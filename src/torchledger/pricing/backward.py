"""Rules of backward operations: activations, softmax, losses, pooling, resampling, what indexing gives back.

Contractions and normalisations are in `gradients`. A derivative is taken from what the forward kept (its input, its
result, indices of maxima); recomputing it is a kernel's choice and is not counted. "Read" names what the formula
needs: a kernel that takes the input only for its shape does not read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchledger.pricing import rules as r
from torchledger.record import Operation, TensorInfo

# The activation's derivative, one as the activation is one, times the gradient.
ACTIVATIONS = """
    threshold gelu silu sigmoid tanh elu hardtanh hardswish hardsigmoid hardshrink softshrink leaky_relu softplus mish
    logit log_sigmoid rrelu_with_noise
    """.split()

# (operations, flops an element of the prediction, derivation)
LOSSES: tuple[tuple[str, int, str], ...] = (
    ("mse_loss", 3, "difference, times 2, times the gradient"),
    ("smooth_l1_loss", 5, "difference, absolute value, comparison, sign or over beta, times the gradient"),
    ("huber_loss", 5, "difference, absolute value, comparison, times delta, times the gradient"),
    (
        "soft_margin_loss",
        7,
        "-y e / (1 + e), e = exp(-y x): product, negation, exp, addition, product, division; gradient",
    ),
    ("binary_cross_entropy", 5, "(x - y) / (x (1 - x)): 2 differences, product, division; times the gradient"),
    ("multi_margin_loss", 5, "margin - x_y + x_j 2, comparison, times the gradient, added to that of x_y"),
    ("multilabel_margin_loss", 5, "margin - x_y + x_j 2, comparison, times the gradient, added to that of x_y"),
)

# (operation, neighbours that a gradient is spread over)
SPREAD: tuple[tuple[str, int], ...] = (
    ("upsample_linear1d", 2),
    ("upsample_bilinear2d _upsample_bilinear2d_aa", 4),
    ("upsample_trilinear3d", 8),
    ("upsample_bicubic2d _upsample_bicubic2d_aa", 16),
    ("_upsample_lanczos2d_aa", 36),
)

# Written into zeros: what is left out of a view has no gradient.
WRITTEN_INTO_ZEROS = "select_backward slice_backward diagonal_backward masked_scatter_backward".split()

# Added into their places, one an element of the gradient.
ADDED = """
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d
    """.split()
ADDED_BY_INDEX = """
    max_pool2d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d fractional_max_pool3d mkldnn_max_pool2d mkldnn_max_pool3d
    """.split()

read_gradient = r.bytes_of("grad_output", "grad_out", "grad", said="the gradient")
read_gradient_and_indices = r.bytes_of("grad_output", "indices", said="gradient and indices")


def gradient_of(operation: Operation) -> TensorInfo:
    """Return the gradient that comes in."""
    return r.need(operation, "grad_output", "grad_out", "grad", "grad_out_", "grad_w", "grad_y")


def per_gradient(amount: int) -> r.Formula:
    """Return `amount` for each element of the gradient that comes in."""
    return lambda operation: amount * gradient_of(operation).elements


def parametric_relu(operation: Operation) -> int:
    """For the input and for the slope, each: pick the derivative by the sign, times the gradient."""
    return 4 * r.first(operation).elements


def softmax(operation: Operation) -> int:
    """y (g - sum(g y)): product n, sum n - 1, subtract n, product n: 4 n - 1 a row."""
    return r.per_row(4, -1)(operation)


def likelihood(operation: Operation) -> int:
    """Negate the gradient for each target, times its weight; a mean divides the gradient once, and sums are kept."""
    targets = r.need(operation, "target").elements
    weighs = operation.tensor("weight") is not None
    return targets * (1 + weighs) + (r.number(operation, "reduction", 1) == 1)


def likelihood_bytes(operation: Operation) -> int:
    """Gradient, targets and weights."""
    return r.bytes_of("grad_output", "target", "weight")(operation)


def loss(amount: int) -> r.Formula:
    """Return `amount` an element, 1 for its weight, and once 1 where a mean divides the gradient."""

    def flops(operation: Operation) -> int:
        weighs = operation.tensor("weight") is not None
        elements = r.need(operation, "self").elements
        return elements * (amount + weighs) + (r.number(operation, "reduction", 1) == 1 and elements > 0)

    return flops


def ctc_samples(operation: Operation) -> int:
    shape = r.need(operation, "log_probs").shape
    return shape[1] if len(shape) > 2 else 1


def ctc_states(operation: Operation) -> int:
    """Return T (2 S + 1) summed over samples: T steps of a recursion over S targets with blanks between them.

    Lengths that come as a tensor have no value here: as long as the log-probabilities and the targets are.
    """
    lengths, targets = operation.arguments.get("input_lengths"), operation.arguments.get("target_lengths")
    if isinstance(lengths, tuple) and isinstance(targets, tuple):
        return sum(t * (2 * s + 1) for t, s in zip(r.integers(lengths), r.integers(targets), strict=True))
    steps, samples = r.need(operation, "log_probs").shape[0], ctc_samples(operation)
    return steps * (2 * r.need(operation, "targets").elements + samples)


def ctc(operation: Operation) -> int:
    """A state adds three: maximum 2, subtract 3, exp 3, add 2, log 1, add 1, its log-probability 1: 13; loss 5 a
    sample."""
    return 13 * ctc_states(operation) + 5 * ctc_samples(operation)


def ctc_backward(operation: Operation) -> int:
    """Backward recursion 13 a state, alpha + beta 1 and its log-sum 5; an element exp, exp, 2 differences, product
    5."""
    return 19 * ctc_states(operation) + 5 * r.need(operation, "log_probs").elements


def pooled(dimensions: int) -> r.Formula:
    """Return k + 1 an element of the gradient: divided once, added to each of the k elements of its window."""
    return lambda operation: gradient_of(operation).elements * (r.window(operation, dimensions) + 1)


def adaptive_pooled(dimensions: int) -> r.Formula:
    """Return as `pooled`, over windows from floor(i n / m) to ceil((i + 1) n / m)."""

    def flops(operation: Operation) -> int:
        gradient, x = gradient_of(operation), r.need(operation, "self")
        windows = r.adaptive_windows(x.shape[-dimensions:], gradient.shape[-dimensions:])
        return math.prod(gradient.shape[:-dimensions]) * windows + gradient.elements

    return flops


def grid_sampled(dimensions: int) -> r.Formula:
    """Return for k = 2^d (linear) or 4^d (cubic) neighbours: a product and an addition each into the input's
    gradient; for each of d coordinates k products, k - 1 additions, times the gradient, added over the channels: d
    (2 k + 1)."""

    def flops(operation: Operation) -> int:
        neighbours = (2**dimensions, 1, 4**dimensions)[r.number(operation, "interpolation_mode", 0)]
        mask = masks(operation, 2)
        spread = 2 * neighbours if neighbours > 1 else 1
        moved = dimensions * (2 * neighbours + 1) if neighbours > 1 else 0  # the nearest one does not move
        return gradient_of(operation).elements * (spread * mask[0] + moved * mask[1])

    return flops


def masks(operation: Operation, count: int) -> tuple[bool, ...]:
    """Return which gradients are wanted: `output_mask` under one of its names, all where there is none."""
    for name in ("output_mask", "grad_input_mask", "mask"):
        given = operation.arguments.get(name)
        if isinstance(given, tuple):
            return tuple(map(bool, given)) + (False,) * (count - len(given))
    return (True,) * count


def embedding(operation: Operation) -> int:
    """Each row of the gradient is added to its place; divided by how often it occurs where that is asked for."""
    return gradient_of(operation).elements * (1 + bool(operation.arguments.get("scale_grad_by_freq")))


def _bag_elements(operation: Operation) -> int:
    return r.need(operation, "indices").elements * gradient_of(operation).shape[-1]


def embedding_bag_macs(operation: Operation) -> int:
    """Weighted bags add the gradient of the bag times its weight to each row."""
    return _bag_elements(operation) if operation.tensor("per_sample_weights") is not None else 0


def embedding_bag(operation: Operation) -> int:
    """Weighted: 2 macs. Else one addition for each element of each row, and for a mean one division; a maximum one
    addition for each element of the gradient."""
    if operation.tensor("per_sample_weights") is not None:
        return 2 * embedding_bag_macs(operation)
    mode = operation.arguments.get("mode")
    if mode == 2:
        return gradient_of(operation).elements
    return _bag_elements(operation) * (2 if mode == 1 else 1)


def embedding_bag_bytes(operation: Operation) -> int:
    """Gradient; indices, the bag of each, weights, for a mean the bags' sizes; for a maximum the rows it was in."""
    mode = operation.arguments.get("mode")
    if mode == 2:
        return r.bytes_of("grad", "maximum_indices")(operation)
    named = ("grad", "indices", "per_sample_weights", *(("bag_size",) if mode == 1 else ()))
    return r.bytes_of(*named)(operation) + _bag_of_each(operation)


def _bag_of_each(operation: Operation) -> int:
    """Return the bytes of the bag that each index belongs to, whether a device keeps them or finds them again."""
    return r.need(operation, "indices").distinct_bytes


def embedding_bag_weights_macs(operation: Operation) -> int:
    """The weight of a row gets the product of the row and its bag's gradient."""
    return _bag_elements(operation)


def embedding_bag_weights_bytes(operation: Operation) -> int:
    """Gradient, indices, bags, and a row of the table for each index."""
    table = r.need(operation, "weight")
    others = r.bytes_of("grad", "indices")(operation) + _bag_of_each(operation)
    return others + r.need(operation, "indices").elements * table.shape[-1] * table.item_size


def learned_quantisation(operation: Operation) -> int:
    """Position 3 (over scale, round, add), clamp 2, gradient picked 1; scale's: difference, product, sum 3; zero's
    2."""
    return 11 * gradient_of(operation).elements


def _table() -> dict[str, r.Rule]:
    activation = r.gradient(
        "2 an element: the derivative (one function, as the activation is), times the gradient", per_gradient(2)
    )
    table: dict[str, r.Rule] = {f"{name}_backward": activation for name in ACTIVATIONS}
    table["_prelu_kernel_backward"] = r.gradient("4 an element: 2 for the input, 2 for the slope", parametric_relu)
    table["glu_backward"] = r.gradient(
        "5 an element of the gradient, s the sigmoid: s; g s; times a, 1 - s, their product", per_gradient(5)
    )
    for name in ("dropout_backward", "feature_dropout_backward", "_masked_scale"):
        table[name] = r.gradient("2 an element: mask and scale", per_gradient(2))
    text = "4 n - 1 a row: y (g - sum(g y)): product n, sum n - 1, subtract n, product n"
    table["_softmax_backward_data"] = r.gradient(text, softmax)
    table["_masked_softmax_backward"] = r.gradient(text, softmax)
    table["_log_softmax_backward_data"] = r.gradient(
        "4 n - 1 a row: g - exp(y) sum(g): sum n - 1, exp n, product n, subtract n", softmax
    )
    for name in ("nll_loss_backward", "nll_loss2d_backward"):
        table[name] = r.gradient(
            "1 a target, 2 with weights, and 1 for a mean; zeros elsewhere", likelihood, read=likelihood_bytes
        )
    for name, amount, text in LOSSES:
        table[f"{name}_backward"] = r.gradient(f"{amount} an element, and 1 for a mean: {text}", loss(amount))
    table["_ctc_loss_backward"] = r.gradient("19 a state, 5 an element of the log-probabilities", ctc_backward)
    for name in ADDED:
        table[f"{name}_backward"] = r.gradient(
            "1 an element of the gradient: added into its place", per_gradient(1), read=read_gradient
        )
    for name in ADDED_BY_INDEX:
        table[f"{name}_backward"] = r.gradient(
            "1 an element of the gradient: added into the place of its maximum",
            per_gradient(1),
            read=read_gradient_and_indices,
        )
    for names, neighbours in SPREAD:
        text = f"{2 * neighbours} an element of the gradient: times its {neighbours} weights, added into their places"
        for name in names.split():
            table[f"{name}_backward"] = r.gradient(text, per_gradient(2 * neighbours), read=read_gradient)
    for dimensions in (2, 3):
        table[f"avg_pool{dimensions}d_backward"] = r.gradient(
            "k + 1 an element of the gradient: divided once, added to each of its window",
            pooled(dimensions),
            read=read_gradient,
        )
        adaptive = r.gradient(
            "window + 1 an element of the gradient: divided once, added to each of its window",
            adaptive_pooled(dimensions),
            read=read_gradient,
        )
        table[f"_adaptive_avg_pool{dimensions}d_backward"] = adaptive
        table[f"grid_sampler_{dimensions}d_backward"] = r.gradient(
            "an element of the gradient, k neighbours in d dimensions: 2 k for the input, d (2 k + 1) for the grid",
            grid_sampled(dimensions),
        )
    table["adaptive_avg_pool3d_backward"] = table["_adaptive_avg_pool3d_backward"]
    table["mkldnn_adaptive_avg_pool2d_backward"] = table["_adaptive_avg_pool2d_backward"]
    table["cudnn_grid_sampler_backward"] = table["grid_sampler_2d_backward"]
    for name in ("_pack_padded_sequence_backward", "_pad_packed_sequence_backward"):
        table[name] = r.gradient("moved: 0 flops", read=read_gradient)
    table |= dict.fromkeys(
        WRITTEN_INTO_ZEROS,
        r.gradient(
            "moved: the gradient into zeros of the input's size",
            read=r.bytes_of("grad_output", "mask", said="the gradient, and a mask"),
        ),
    )
    table["embedding_dense_backward"] = r.gradient(
        "1 an element of the gradient: added into its row; 2 where it is scaled by frequency", embedding
    )
    table["_embedding_bag_backward"] = r.gradient(
        "weighted: 2 macs; else 1 an element of each row, a mean 2; a maximum 1 an element of the gradient",
        embedding_bag,
        embedding_bag_macs,
        read=embedding_bag_bytes,
    )
    table["_embedding_bag_per_sample_weights_backward"] = r.gradient(
        "2 macs: a row by the gradient of its bag",
        r.doubled(embedding_bag_weights_macs),
        embedding_bag_weights_macs,
        read=embedding_bag_weights_bytes,
    )
    for kind in ("tensor", "channel"):
        table[f"_fake_quantize_learnable_per_{kind}_affine_backward"] = r.gradient(
            "11 an element: place 5 (over scale, round, add, clamp 2), gradient 1, scale 3, zero point 2",
            learned_quantisation,
        )
    table["segment_reduce_backward"] = r.gradient(
        "1 an element: the gradient of its segment, over n or picked", lambda o: r.need(o, "data").elements
    )
    table["_segment_reduce_backward"] = table.pop("segment_reduce_backward")
    table["_dirichlet_grad"] = r.gradient("1 an element: a function of its own", r.per_output(1))
    table["_standard_gamma_grad"] = r.gradient("1 an element: a function of its own", r.per_output(1))
    return table


RULES: Mapping[str, r.Rule] = _table()
