"""Rules of contractions over packed, scaled and quantised numbers, and of going to such numbers and back.

A quantised number stands for a real one: operations cost what their plain forms cost, and bringing numbers to a
scale inside of them is not counted apart. Kernels that take packed weights in an object show their shape in what
comes out; a convolution's filter does not show there, so its rule needs the unpacked `weight`, and without one has
no price.
"""

from __future__ import annotations

from collections.abc import Mapping

from torchledger.pricing import rules as r
from torchledger.record import Operation


def product_macs(operation: Operation) -> int:
    """Each output is a sum over the last dimension of the left side, whatever way the right side is packed."""
    left = r.need(operation, "self", "X", "qx", "input", "inp", "x")
    return r.out(operation).elements * left.shape[-1]


def _has_bias(operation: Operation) -> bool:
    return any(operation.tensor(name) is not None for name in ("bias", "B"))


def product_flops(an_output: int, a_weight: int = 0) -> r.Formula:
    """Return 2 macs, `an_output` for each output, 1 for a bias, `a_weight` for each weight."""

    def flops(operation: Operation) -> int:
        macs, result = product_macs(operation), r.out(operation)
        weights = macs // (result.elements // result.shape[-1]) if result.elements else 0
        return 2 * macs + result.elements * (an_output + _has_bias(operation)) + a_weight * weights

    return flops


def packed_bytes(operation: Operation) -> int:
    """All inputs, and a byte for each weight where those are packed in an object."""
    read = r.inputs_bytes(operation)
    if any(operation.tensor(name) is not None for name in ("weight", "W", "qw")):
        return read
    result = r.out(operation)
    weights = product_macs(operation) // (result.elements // result.shape[-1]) if result.elements else 0
    return read + weights


def grouped_flops(operation: Operation) -> int:
    """2 macs, 2 an output for the two scales, 1 for a bias."""
    return 2 * r.grouped_macs(operation) + r.out(operation).elements * (2 + _has_bias(operation))


def convolution_flops(after: int) -> r.Formula:
    """Return 2 macs, 1 an output for a bias, `after` for what follows (added 1, ReLU 1)."""

    def flops(operation: Operation) -> int:
        return 2 * r.convolution_macs(operation) + r.out(operation).elements * (after + _has_bias(operation))

    return flops


def of_outputs(amount: int) -> r.Formula:
    """Return `amount` for each element that comes out."""
    return lambda operation: amount * sum(output.tensor.elements for output in operation.outputs[:1])


def normalised(training: bool) -> r.Formula:
    """Return the flops of a norm of quantised numbers: as of real ones."""

    def flops(operation: Operation) -> int:
        x = r.first(operation)
        affine = (operation.tensor("weight") is not None) + (operation.tensor("bias") is not None)
        return x.elements * ((5 if training else 2) + affine)

    return flops


# (operations, flops an output, derivation)
SCALED: tuple[tuple[str, int, str], ...] = (
    (
        "quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic "
        "quantized_decomposed::quantize_per_tensor quantized_decomposed::quantize_per_channel "
        "quantized_decomposed::quantize_per_token "
        "quantized_decomposed::quantize_per_channel_group",
        5,
        "over scale, rounded, zero point added, clamped 2",
    ),
    (
        "dequantize quantized_decomposed::dequantize_per_tensor quantized_decomposed::dequantize_per_channel "
        "quantized_decomposed::dequantize_per_token quantized_decomposed::dequantize_per_channel_group",
        2,
        "zero point off, times scale",
    ),
    (
        "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
        "_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine "
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams quantized_decomposed::fake_quant_per_channel",
        7,
        "over scale, rounded, zero point added, clamped 2; zero point off, times scale",
    ),
    (
        "_fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional",
        9,
        "minimum and maximum 2, then fake quantisation 7",
    ),
)
# Quantised forms of pointwise operations: (operations, flops an output, derivation)
POINTWISE: tuple[tuple[str, int, str], ...] = (
    (
        "add add_scalar mul mul_scalar sigmoid hardswish leaky_relu elu celu clamp threshold relu6 prelu",
        1,
        "as the plain form",
    ),
    ("add_relu add_scalar_relu mul_relu mul_scalar_relu", 2, "as the plain form, and 1 for ReLU"),
    ("cat dropout", 0, "moved: 0 flops; inference"),
    ("cat_relu", 1, "moved, and 1 for ReLU"),
)


def _table() -> dict[str, r.Rule]:
    table: dict[str, r.Rule] = {}
    products: tuple[tuple[str, int, int, str], ...] = (
        ("_scaled_mm _scaled_mm_v2", 2, 0, "2 macs; 2 an output for two scales, 1 for a bias"),
        ("_weight_int8pack_mm", 1, 0, "2 macs; 1 an output for its scale"),
        (
            "_weight_int4pack_mm _weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros "
            "_dyn_quant_matmul_4bit _mixed_dtypes_linear",
            0,
            2,
            "2 macs; 2 a weight (zero point off, times scale), 1 an output for a bias",
        ),
    )
    for names, an_output, a_weight, text in products:
        table |= dict.fromkeys(
            names.split(), r.Rule(text, product_macs, product_flops(an_output, a_weight), r.inputs_bytes)
        )
    grouped = r.Rule(products[0][3], r.grouped_macs, grouped_flops)
    table |= {"_scaled_grouped_mm": grouped, "_scaled_grouped_mm_v2": grouped}
    linears = (
        ("quantized::linear quantized::linear_dynamic quantized::linear_dynamic_fp16", 0),
        ("quantized::linear_dynamic_fp16_unpacked_weight onednn::linear_dynamic_fp16 onednn::qlinear_pointwise", 0),
        ("mkldnn::_linear_pointwise mkl::_mkl_linear mkldnn_linear", 0),
        ("quantized::linear_relu quantized::linear_relu_dynamic quantized::linear_relu_dynamic_fp16", 1),
        ("quantized::linear_leaky_relu quantized::linear_tanh onednn::linear_relu_dynamic_fp16", 1),
    )
    for names, after in linears:
        text = "2 macs; + 1 an output where there is a bias" + "; 1 for the activation" * after
        table |= dict.fromkeys(names.split(), r.Rule(text, product_macs, product_flops(after), packed_bytes))
    for dimensions in (1, 2, 3):
        for name, after in (("", 0), ("_relu", 1), ("_dynamic", 0), ("_add", 1), ("_add_relu", 2)):
            text = "2 macs; + 1 an output where there is a bias" + f"; {after} for what is added or ReLU" * bool(after)
            rule = r.Rule(text, r.convolution_macs, convolution_flops(after))
            table[f"quantized::conv{dimensions}d{name}"] = rule
        plain = table[f"quantized::conv{dimensions}d"]
        table |= {f"quantized::conv_transpose{dimensions}d{end}": plain for end in ("", "_dynamic")}
        table[f"onednn::qconv{dimensions}d_pointwise"] = plain
    plain = table["quantized::conv2d"]
    table |= {"onednn::qconv_pointwise": plain, "mkldnn::_convolution_pointwise": plain}
    table["mkldnn::_convolution_transpose_pointwise"] = plain
    table["cudnn_convolution_relu"] = table["miopen_convolution_relu"] = table["quantized::conv2d_relu"]
    table["cudnn_convolution_add_relu"] = table["miopen_convolution_add_relu"] = table["quantized::conv2d_add_relu"]
    for names, amount, text in SCALED:
        table |= dict.fromkeys(names.split(), r.rule(f"{amount} an element: {text}", of_outputs(amount), primary=1))
    for name in ("choose_qparams", "choose_qparams_symmetric"):
        table[f"quantized_decomposed::{name}"] = r.Rule(
            "2 n - 2: minimum and maximum", r.nothing, lambda o: max(2 * r.first(o).elements - 2, 0)
        )
    for names, amount, text in POINTWISE:
        rule = r.Rule(f"{amount} an output element: {text}", r.nothing, of_outputs(amount))
        table |= {f"quantized::{name}": rule for name in names.split()}
    table |= {"onednn::qadd": table["quantized::add"], "onednn::qmul": table["quantized::mul"]}
    table["onednn::qadd_relu"] = table["quantized::add_relu"]
    norm = r.Rule("4 an element, 2 without weight and bias", r.nothing, normalised(training=False))
    relu = r.Rule(
        "4 an element, 2 without weight and bias; 1 for ReLU",
        r.nothing,
        lambda o: normalised(False)(o) + r.out(o).elements,
    )
    for end in ("", "1d", "2d", "3d"):
        table[f"quantized::batch_norm{end}"], table[f"quantized::batch_norm{end}_relu"] = norm, relu
    table["quantized::batch_norm_relu"] = relu
    table |= {"quantized_batch_norm": norm, "onednn::qbatch_norm2d": norm}
    statistics = r.Rule("7 an element, 5 without weight and bias", r.nothing, normalised(training=True))
    table |= {f"quantized::{name}": statistics for name in ("layer_norm", "group_norm", "instance_norm")}
    table["quantized::softmax"] = r.Rule("5 n - 2 a row", r.nothing, r.per_row(5, -2))
    table["quantized::matmul"] = r.Rule("2 macs", product_macs_of_two, r.doubled(product_macs_of_two))
    for dimensions in (1, 2, 3):
        pool = r.Rule("k - 1 an output", r.nothing, r.pooled(dimensions, 1))
        table[f"quantized_max_pool{dimensions}d"] = pool
        if dimensions < 3:
            table[f"quantized::max_pool{dimensions}d"] = pool
    row = r.Rule("2 an element of the rows: times scale, offset added", r.nothing, of_outputs(2), r.outputs_bytes)
    table |= {"quantized::embedding_byte": row, "quantized::embedding_4bit": row}
    table["inductor::_mm_plus_mm"] = r.Rule(
        "2 macs of two products, and 1 an output",
        two_products_macs,
        lambda o: 2 * two_products_macs(o) + r.out(o).elements,
    )
    return table


def product_macs_of_two(operation: Operation) -> int:
    """(.., n, k) @ (.., k, m): n k m for each matrix of the batch."""
    return r.out(operation).elements * r.need(operation, "qa").shape[-1]


def two_products_macs(operation: Operation) -> int:
    """a @ b and c @ d."""
    return r.out(operation).elements * (r.need(operation, "a").shape[-1] + r.need(operation, "c").shape[-1])


RULES: Mapping[str, r.Rule] = _table()
