"""Convention `full`: what every operation computes and must move, unfused."""

from __future__ import annotations

from collections.abc import Mapping

from torchledger.pricing import algebra, attention, backward, gradients, optimizers, quantized, recurrent, vision
from torchledger.pricing import rules as r
from torchledger.pricing.convention import FREE, UNKNOWN, Convention, Price, Quantity, State
from torchledger.record import Operation

# Views and allocations: they compute nothing and move nothing.
FREE_OPERATIONS = frozenset(
    """view view_as reshape t transpose permute movedim swapaxes swapdims expand expand_as squeeze unsqueeze select
    slice narrow split split_with_sizes chunk unbind as_strided diagonal unfold view_as_real view_as_complex real
    imag conj _conj _neg_view adjoint mT mH resolve_conj resolve_neg unflatten flatten squeeze_ unsqueeze_ t_
    transpose_ as_strided_ swapaxes_ swapdims_ resize_ resize_as_ set_ requires_grad_ values indices crow_indices
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided is_same_size sym_size sym_stride
    sym_numel sym_storage_offset record_stream is_pinned _has_compatible_shallow_copy_type _assert_async
    _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size _linalg_check_errors
    slice_inverse is_set_to _has_same_storage_numel _fused_sdp_choice _use_cudnn_ctc_loss _use_miopen_ctc_loss
    q_scale q_zero_point q_per_channel_axis qscheme _empty_affine_quantized _empty_per_channel_affine_quantized
    empty_quantized _efficientzerotensor
    """.split()
)

# One floating-point operation for each output element, whatever the function (exp, comparison, activation alike).
POINTWISE = """
    mul div neg abs sign sgn reciprocal sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p pow
    float_power sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh sigmoid logit erf erfc erfinv lgamma
    digamma polygamma igamma igammac i0 special_entr special_erfcx special_i0 special_i0e special_i1 special_i1e
    special_ndtri special_log_ndtr special_xlog1py special_zeta xlogy logaddexp logaddexp2 hypot fmod remainder floor
    ceil round trunc frac floor_divide true_divide maximum minimum fmax fmin clamp clamp_min clamp_max clip eq ne lt le
    gt ge isnan isinf isfinite isposinf isneginf signbit copysign nextafter ldexp heaviside relu relu6 leaky_relu elu
    celu selu gelu silu mish softplus softshrink hardshrink threshold hardtanh hardswish hardsigmoid _prelu_kernel prelu
    where nan_to_num deg2rad rad2deg sinc angle logical_and logical_or logical_xor logical_not bitwise_and bitwise_or
    bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__
    __ilshift__ __irshift__ gcd lcm frexp conj_physical _conj_physical ger outer mvlgamma special_airy_ai
    special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_spherical_bessel_j0
    special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
    special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_chebyshev_polynomial_t
    special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_hermite_polynomial_h
    special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p
    """.split()

# (operations, flops an output element, derivation)
FUSED_POINTWISE: tuple[tuple[str, int, str], ...] = (
    ("lerp", 3, "end - start, times weight, plus start"),
    ("glu", 2, "sigmoid and product"),
    ("polar", 4, "cosine, sine, and a product each"),
    ("linalg_cross", 3, "2 products and a difference"),
    ("_add_relu", 2, "addition and ReLU"),
    ("batch_norm_elemt", 4, "centre, scale, weight, bias"),
)

# (operations, flops an input element, flops a result, derivation)
REDUCTIONS: tuple[tuple[str, int, int, str], ...] = (
    ("sum nansum prod amax amin max min argmax argmin", 1, -1, "n - 1 a result"),
    ("aminmax", 2, -2, "n - 1 a minimum and n - 1 a maximum"),
    ("mean nanmean", 1, 0, "n - 1 additions and a division"),
    ("var var_mean", 4, 0, "mean n; centre n, square n, sum n - 1, divide 1"),
    ("std std_mean", 4, 1, "variance and a square root"),
    ("logsumexp", 4, 0, "max n - 1, subtract n, exp n, sum n - 1, log and add 2"),
    ("any all count_nonzero _is_all_true _is_any_true", 0, 0, "bool or integer results: no floating-point arithmetic"),
    ("hash_tensor", 0, 0, "integers: no floating-point arithmetic"),
    ("segment_reduce", 1, 0, "one an element of its segment"),
    ("batch_norm_stats batch_norm_update_stats", 4, 0, "mean n; centre n, square n, mean n"),
    ("_histogramdd_bin_edges", 2, 0, "a minimum and a maximum"),
)

# Moved, not computed: read all of the inputs, write the output.
MOVED = """
    cat stack clone contiguous to_copy repeat repeat_interleave flip roll rot90 tril triu tril_ triu_ constant_pad_nd
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col masked_fill masked_fill_ diag_embed
    block_diag one_hot unique_consecutive isin nonzero nonzero_static masked_select masked_scatter masked_scatter_
    diagonal_scatter unique_dim_consecutive _chunk_cat _stack _pack_padded_sequence _lazy_clone _pin_memory
    resize resize_as set int_repr max_unpool2d max_unpool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d complex equal
    """.split()
# Views that copy: what they show is moved.
COPIES = """
    alias as_strided _conj detach expand narrow _neg_view permute _reshape _reshape_alias select slice split
    split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as_complex view_as_real
    """.split()
# Put in order, or a part of it.
ORDERED = "sort topk kthvalue median nanmedian mode _unique2 unique_dim".split()
GATHERED = ["embedding", "index", "index_select", "gather", "take", "take_along_dim"]
SCATTERED = """
    scatter scatter_ index_put index_put_ put put_ index_copy index_copy_ index_fill index_fill_ slice_scatter
    select_scatter as_strided_scatter
    """.split()
# Added, multiplied or compared into their places.
ACCUMULATED = """
    scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_add index_add_ index_reduce index_reduce_
    """.split()
# Filled from nothing: only written.
FILLED = """
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor arange linspace logspace
    eye tril_indices triu_indices fill fill_ zero zero_ rand randn randint randperm rand_like randn_like randint_like
    normal_ uniform_ random_ exponential_ geometric_ cauchy_ log_normal_ hann_window hamming_window blackman_window
    bartlett_window kaiser_window fft_fftfreq fft_rfftfreq range random uniform exponential cauchy geometric
    log_normal normal_functional
    """.split()
# (operations, flops an element, derivation); the sum or the mean comes on top
LOSSES: tuple[tuple[str, int, str], ...] = (
    ("mse_loss", 2, "difference and square"),
    ("smooth_l1_loss", 6, "difference, absolute value, comparison, square, half, over beta"),
    ("huber_loss", 5, "difference, absolute value, comparison, square, half"),
    ("soft_margin_loss", 5, "log(1 + exp(-y x)): product, negation, exp, addition, log"),
    ("multilabel_margin_loss_forward", 4, "margin - x_y + x_j 2, comparison with 0, sum"),
    ("binary_cross_entropy", 8, "-(y log x + (1 - y) log(1 - x)): 2 log, 2 differences, 2 products, sum, negation"),
    ("binary_cross_entropy_with_logits", 7, "x - x y + log(1 + exp(-x)): product, difference, 5 for the last term"),
)
# (operations, flops an output element, derivation)
INTERPOLATED: tuple[tuple[str, int, str], ...] = (
    ("upsample_linear1d", 3, "2 products and 1 addition"),
    ("upsample_bilinear2d _upsample_bilinear2d_aa", 7, "4 products and 3 additions"),
    ("upsample_trilinear3d", 15, "8 products and 7 additions"),
    ("upsample_bicubic2d _upsample_bicubic2d_aa", 31, "16 products and 15 additions"),
    ("_upsample_lanczos2d_aa", 71, "36 products and 35 additions"),
)


def _table() -> dict[str, r.Rule]:
    table: dict[str, r.Rule] = {
        "convolution": r.contraction("2 macs; + 1 an output where there is a bias", r.convolution_macs, bias="bias"),
        "linear": r.contraction("2 macs; + 1 an output where there is a bias", r.matrix_macs_linear, bias="bias"),
        "_trilinear": r.contraction("2 macs", r.trilinear_macs),
        "_cdist_forward": r.rule(
            "p = 2: 2 macs and a root; else M differences and their norm",
            r.cdist_flops,
            r.cdist_macs,
        ),
        "_euclidean_dist": r.contraction("2 macs and a root an output", r.euclidean_macs, adds=True),
        "batch_norm": r.rule(
            "eval: 4 an element (2 without weight and bias), 2 a channel; training: 7 n + 2 a channel, 3 a statistic",
            r.batch_norm_flops,
            written=r.batch_norm_written_bytes,
            primary=1,
        ),
        "layer_norm": r.rule("7 n + 2 a row; 5 n + 2 without weight and bias", r.layer_norm_flops, primary=1),
        "group_norm": r.rule("7 n + 2 a group; 5 n + 2 without weight and bias", r.group_norm_flops, primary=1),
        "rms_norm": r.rule("4 n + 2 a row; 3 n + 2 without weight", r.rms_norm_flops, primary=1),
        "softmax": r.rule("5 n - 2 a row: max n - 1, subtract n, exp n, sum n - 1, divide n", r.per_row(5, -2)),
        "log_softmax": r.rule(
            "5 n - 1 a row: max n - 1, subtract n, exp n, sum n - 1, log 1, subtract n", r.per_row(5, -1)
        ),
        "_pdist_forward": r.rule("M differences and their norm", r.pdist_flops),
        "affine_grid_generator": r.contraction("2 macs", r.affine_grid_macs),
        "_embedding_bag": r.rule(
            "weighted: 2 macs; else n - 1 for a bag of n rows, a mean n",
            r.embedding_bag_flops,
            r.embedding_bag_macs,
            read=r.embedding_bag_bytes,
            primary=1,
        ),
        "_weight_norm_interface": r.rule(
            "3 n + 1 a norm: square n, sum n - 1, root 1, divide 1, multiply n", r.weight_norm_flops, primary=1
        ),
        "col2im": r.rule("1 an element of the source: added into its place", lambda o: r.first(o).elements),
        "unfold_backward": r.rule("1 an element of the source: added into its place", lambda o: r.first(o).elements),
        "conv_tbc": r.contraction("2 macs + 1 an output", r.sequence_convolution_macs, adds=True),
        "_addmm_activation": r.rule(
            "2 macs + 2 an output: bias and activation",
            lambda o: 2 * r.matrix_macs(o) + 2 * r.out(o).elements,
            r.matrix_macs,
        ),
        "_ctc_loss": r.rule(
            "13 a state of the recursion: maximum 2, subtract 3, exp 3, add 2, log 1, add 2; a sample 5",
            backward.ctc,
            primary=1,
        ),
        "multi_margin_loss": r.rule(
            "4 an element, 1 for its weight, then the sum or mean: margin - x_y + x_j 2, comparison with 0, sum",
            r.loss(4),
        ),
        "allclose": r.rule("6 an element: difference, 2 absolute values, product, addition, comparison", r.closeness),
        "dist": r.rule("1 an element, and the norm of the differences", r.distance_of_tensors),
        "linalg__powsum": r.rule("as the norm, without its root", r.power_sum),
        "renorm": r.rule("norm 2 n, comparison, factor 2, n products a part", r.renormed),
        "embedding_renorm": r.rule("norm 2 n, comparison, factor 2, n products a row", r.renormed_rows),
        "bincount": r.rule("1 a weight: added into its bin; none without", r.counted),
        "histc": r.rule("3 an element: less the least, over the width, rounded down", r.binned),
        "histogram": r.rule(
            "3 an element (less the least, over the width, rounded down), among given edges ceil(log2(n + 1)); "
            "1 a weight, density 2 a bin",
            r.histogram,
        ),
        "batch_norm_gather_stats": r.rule("10 a statistic of each process: Chan et al. 1979", r.gathered_statistics),
        "_unsafe_masked_index": r.rule("moved: reads indices, mask, output's size", read=r.masked_gathered_bytes),
        "_unsafe_masked_index_put_accumulate": r.rule(
            "1 an element of the values: added into its place", lambda o: r.need(o, "values").elements
        ),
        "_masked_softmax": r.rule("5 n - 2 a row", r.per_row(5, -2)),
        "diagonal_copy": r.rule("moved: reads the diagonal", read=r.outputs_bytes),
    }
    table["_batch_norm_with_update"] = table["batch_norm"]
    table["batch_norm_gather_stats_with_counts"] = table["batch_norm_gather_stats"]
    for name in ("_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"):
        table[name] = table["histogram"]
    for name in ("embedding_bag", "_embedding_bag_forward_only"):  # without gradients it has another name
        table[name] = table["_embedding_bag"]
    for name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_"):
        table[name] = r.rule("2 an element: mask and scale; 0 in eval", r.dropout_flops, primary=1)
    for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
        table[name] = r.rule("n - 1 a row", r.scan)
    for name in ("norm", "linalg_vector_norm"):
        table[name] = r.rule("square n, sum n - 1, root 1; p = 1, inf: 2 n - 1; other p: 3 n", r.norm_flops)
    for name in ("_fft_r2c", "_fft_c2c", "_fft_c2r"):
        table[name] = r.rule("5 N log2 N a transform", r.fourier_flops)
    for name in ("nll_loss_forward", "nll_loss2d_forward"):
        table[name] = r.rule(
            "1 a target, 2 with weights; then the sum or mean", r.likelihood_flops, read=r.likelihood_bytes, primary=1
        )
    for names, amount, text in LOSSES:
        table[names] = r.rule(f"{amount} an element, then the sum or mean: {text}", r.loss(amount))
    for dimensions, kinds in ((2, "7 linear, 31 cubic"), (3, "15 linear")):
        table[f"grid_sampler_{dimensions}d"] = r.rule(
            f"{kinds}, 0 nearest an output element: products and additions", r.grid_sampled(dimensions)
        )
        table[f"fractional_max_pool{dimensions}d"] = r.rule("k - 1 an output", r.pooled(dimensions, 1), primary=1)
    for name in ("bernoulli", "multinomial", "normal", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet"):
        table[name] = r.rule("random: reads its probabilities or moments")
    for name in ("copy", "copy_", "bernoulli_"):
        table[name] = r.rule("written: reads the source or the probabilities alone", read=r.other_inputs_bytes)
    for name in ("mm", "bmm", "_int_mm"):
        table[name] = r.contraction("2 macs", r.matrix_macs)
    table["_grouped_mm"] = r.contraction("2 macs; + 1 an output where there is a bias", r.grouped_macs, bias="bias")
    for name in ("addmm", "baddbmm", "addbmm"):
        table[name] = r.contraction("2 macs + 1 an output", r.matrix_macs, adds=True)
    for name in ("mv", "dot", "vdot"):
        table[name] = r.contraction("2 macs", r.vector_macs)
    table["addmv"] = r.contraction("2 macs + 1 an output", r.vector_macs, adds=True)
    table["addr"] = r.rule("product and addition an output", r.per_output(2))
    for dimensions in (1, 2, 3):
        table[f"max_pool{dimensions}d"] = r.rule("k - 1 an output", r.pooled(dimensions, 1), primary=1)
        table[f"avg_pool{dimensions}d"] = r.rule("k an output", r.pooled(dimensions, 0))
        table[f"adaptive_avg_pool{dimensions}d"] = r.rule("window an output", r.adaptive_pooled(dimensions, 0))
        table[f"adaptive_max_pool{dimensions}d"] = r.rule(
            "window - 1 an output", r.adaptive_pooled(dimensions, 1), primary=1
        )
    for name in POINTWISE:
        table[name] = r.rule("1 an output element (floating point)", r.per_output(1))
    for name in ("add", "sub", "rsub"):
        table[name] = r.rule(
            "1 an output element (floating point), 2 where alpha, a factor of one side, is not 1", r.scaled_addition
        )
    for name in ("addcmul", "addcdiv"):
        table[name] = r.rule(
            "2 an output element: product or quotient, plus self; 3 where value, a factor, is not 1", r.scaled_product
        )
    for name in ("rrelu_with_noise", "log_sigmoid_forward"):  # the noise and the buffer are written, not read
        table[name] = r.rule("1 an output element", r.per_output(1), read=r.first_bytes, primary=1)
    for names, amount, text in FUSED_POINTWISE + INTERPOLATED:
        table |= dict.fromkeys(names.split(), r.rule(f"{amount} an output element: {text}", r.per_output(amount)))
    for names, amount, constant, text in REDUCTIONS:
        table |= dict.fromkeys(names.split(), r.rule(text, r.reduction(amount, constant)))
    table |= dict.fromkeys(MOVED, r.rule("moved: 0 flops"))
    copied = r.rule("moved: what the view shows", read=r.outputs_bytes)
    table |= {f"{name}_copy": copied for name in COPIES}
    ordered = r.rule("n ceil(log2 n) a row, or over all of n: comparisons of a merge sort", r.ordering)
    table |= dict.fromkeys(ORDERED, ordered)
    searched = r.rule("ceil(log2(n + 1)) a value: comparisons of a binary search among n", r.searching)
    table |= dict.fromkeys(("searchsorted", "bucketize"), searched)
    table |= dict.fromkeys(GATHERED, r.rule("moved: reads indices and output's size", read=r.gathered_bytes))
    scattered = r.rule(
        "moved: reads indices and source, writes as many; 1 an element where it accumulates",
        r.accumulated_flops,
        read=r.scattered_read_bytes,
        written=r.scattered_written_bytes,
    )
    table |= dict.fromkeys(SCATTERED, scattered)
    accumulated = r.rule("1 an element of the source; a mean also 1 an output", r.accumulated_flops)
    table |= dict.fromkeys(ACCUMULATED, accumulated)
    table |= dict.fromkeys(FILLED, r.rule("written from nothing", read=r.nothing))
    return table


def _assembled() -> dict[str, r.Rule]:
    """Return the rules of all files. Raise ValueError where two of them have one for the same operation."""
    parts = [_table(), attention.RULES, backward.RULES, gradients.RULES, recurrent.RULES, algebra.RULES]
    parts += [quantized.RULES, vision.RULES, optimizers.RULES]
    rules: dict[str, r.Rule] = {}
    for part in parts:
        twice = rules.keys() & part.keys()
        if twice:
            raise ValueError(f"two rules for {', '.join(sorted(twice))}")
        rules |= part
    return rules | optimizers.of_list(rules)


RULES: Mapping[str, r.Rule] = _assembled()


def rule_of(name: str) -> r.Rule | None:
    """Return the rule for a canonical operation; an in-place form without one of its own takes the plain form's."""
    return RULES.get(name) or RULES.get(name.removesuffix("_"))


def price(operation: Operation) -> Price:
    """Price one operation: macs, flops, bytes_read, bytes_written, activation_bytes."""
    if operation.name in FREE_OPERATIONS:
        return FREE
    rule = rule_of(operation.name)
    if rule is None:
        return UNKNOWN
    try:
        amounts = rule.price(operation)
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return UNKNOWN  # not the arguments that the rule knows: another version's, or a damaged ledger's
    return Price(State.PRICED, amounts)


FULL = Convention(
    name="full",
    summary="all arithmetic and all bytes of every operation, unfused",
    quantities=(
        Quantity("macs", "macs", "", "multiply-accumulates of contractions"),
        Quantity("flops", "flops", "", "all floating-point arithmetic; a multiply-accumulate is two"),
        Quantity("bytes_read", "read", "B", "distinct bytes that each operation must read"),
        Quantity("bytes_written", "written", "B", "bytes of results"),
        Quantity("activation_bytes", "activations", "B", "results in a storage of their own"),
    ),
    price=price,
    of_calls={},
)
