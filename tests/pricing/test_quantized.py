"""Scaled, packed and quantised contractions, and torchvision's own operations, against stated arithmetic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import Number, counting, flops, random
from dispatching import dispatched
from torch import Tensor

from torchledger.pricing.convention import State
from torchledger.pricing.full import price
from torchledger.pricing.quantized import RULES
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

aten = torch.ops.aten


def tensor(*shape: int, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(shape, tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape))), dtype)


def made(name: str, result: TensorInfo, /, **arguments: Any) -> dict[str, int]:
    """Return the price of an operation given by hand, as another device or a packed object would show it."""
    inputs = [value for value in arguments.values() if isinstance(value, TensorInfo)]
    places = {key: TensorRef(inputs.index(v)) if isinstance(v, TensorInfo) else v for key, v in arguments.items()}
    priced = price(Operation(name, places, tuple(inputs), (OutputInfo(result),)))
    assert priced.state is State.PRICED, name
    return dict(priced.amounts)


def price_of(name: str, function: Callable[..., Any], *tensors: Any) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantisation moves to torchao
        (operation,) = [one for one in dispatched(lambda: function(*tensors)) if one.name == name]
    priced = price(operation)
    assert priced.state is State.PRICED, operation
    return dict(priced.amounts)


# --- scaled and packed products ----------------------------------------------------------------------------------


def test_scaled_product() -> None:
    left, right, one = tensor(4, 16, dtype="float8_e4m3fn"), tensor(16, 8, dtype="float8_e4m3fn"), tensor()
    amounts = made("_scaled_mm", tensor(4, 8, dtype="bfloat16"), self=left, mat2=right, scale_a=one, scale_b=tensor(1))
    # 4 16 8 products; two scales for each of 4 8 outputs
    assert (amounts["macs"], amounts["flops"]) == (512, 2 * 512 + 2 * 32)
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (64 + 128 + 8, 2 * 32)
    biased = made("_scaled_mm", tensor(4, 8), self=left, mat2=right, bias=tensor(8))
    assert biased["flops"] == 2 * 512 + 3 * 32


def test_scaled_groups() -> None:
    """6 rows, each with one of 2 matrices of 16 by 8."""
    amounts = made("_scaled_grouped_mm", tensor(6, 8), self=tensor(6, 16), mat2=tensor(2, 16, 8))
    assert (amounts["macs"], amounts["flops"]) == (6 * 16 * 8, 2 * 6 * 16 * 8 + 2 * 48)


def test_bytes_and_half_bytes_as_weights() -> None:
    x, scale = random(4, 32).bfloat16(), random(16).bfloat16()
    weight = torch.ones(16, 32, dtype=torch.int8)
    amounts = price_of("_weight_int8pack_mm", aten._weight_int8pack_mm, x, weight, scale)
    # a scale an output
    assert (amounts["macs"], amounts["flops"]) == (4 * 32 * 16, 2 * 4 * 32 * 16 + 4 * 16)
    assert amounts["bytes_read"] == 2 * 4 * 32 + 16 * 32 + 2 * 16
    packed, scales = tensor(2, 2, 32, 4, dtype="int32"), tensor(2, 16, 2, dtype="bfloat16")
    result = tensor(4, 16, dtype="bfloat16")
    amounts = made(
        "_weight_int4pack_mm", result, self=tensor(4, 32, dtype="bfloat16"), mat2=packed, qScaleAndZeros=scales
    )
    # 16 32 weights: zero point off, times scale
    assert (amounts["macs"], amounts["flops"]) == (4 * 32 * 16, 2 * 4 * 32 * 16 + 2 * 16 * 32)


def test_layers_of_packed_weights() -> None:
    """The object that holds the weights shows neither shape nor bytes: 4 features into 8, a byte each."""
    x, result = tensor(2, 3, 4, dtype="quint8"), tensor(2, 3, 8, dtype="quint8")
    amounts = made("quantized::linear", result, X=x, W_prepack="LinearPackedParamsBase")
    assert (amounts["macs"], amounts["flops"]) == (6 * 4 * 8, 2 * 6 * 4 * 8)
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (24 + 32, 48)
    activated = made("quantized::linear_relu", result, X=x, W_prepack="LinearPackedParamsBase")
    assert activated["flops"] == amounts["flops"] + 48
    unpacked = made("mkldnn::_linear_pointwise", tensor(2, 8), X=tensor(2, 4), W=tensor(8, 4), B=tensor(8))
    assert (unpacked["flops"], unpacked["bytes_read"]) == (2 * 64 + 16, 4 * (8 + 32 + 8))


def test_convolutions_of_packed_weights_need_them_unpacked() -> None:
    x, result = tensor(1, 4, 6, 6, dtype="quint8"), tensor(1, 8, 4, 4, dtype="quint8")
    unknown = Operation("quantized::conv2d", {"qx": TensorRef(0), "packed_weight": "?"}, (x,), (OutputInfo(result),))
    assert price(unknown).state is State.UNKNOWN, "a filter does not show in what comes out"
    weight = tensor(8, 2, 3, 3, dtype="qint8")
    amounts = made("quantized::conv2d_relu", result, qx=x, weight=weight, bias=tensor(8))
    # 8 4 4 outputs of 2 3 3 products, two groups; bias and ReLU
    assert (amounts["macs"], amounts["flops"]) == (128 * 18, 2 * 128 * 18 + 2 * 128)
    assert amounts["bytes_read"] == 144 + 144 + 32
    transposed = made("quantized::conv_transpose2d", tensor(1, 8, 8, 8), qx=x, weight=tensor(4, 8, 3, 3, dtype="qint8"))
    assert transposed["macs"] == 144 * 8 * 9, "each input spreads"
    fused = made("cudnn_convolution_add_relu", result, self=x, weight=weight, z=result, bias=tensor(8))
    assert fused["flops"] == 2 * 128 * 18 + 3 * 128


# --- quantised numbers -------------------------------------------------------------------------------------------


def quantised(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 3, torch.quint8)


def test_there_and_back() -> None:
    x = random(3, 4)
    there = price_of("quantize_per_tensor", quantised, x)
    with counting() as counts:
        for value in x.flatten().tolist():
            place = (Number(value) / 0.1).to("round", round) + 3.0
            place.larger(0.0).smaller(255.0)
    assert there["flops"] == flops(counts) == 5 * 12
    assert (there["bytes_read"], there["bytes_written"]) == (4 * 12, 12)
    back = price_of("dequantize", lambda q: q.dequantize(), quantised(x))
    assert (back["flops"], back["bytes_read"], back["bytes_written"]) == (2 * 12, 12, 4 * 12)
    both = price_of(
        "fake_quantize_per_tensor_affine_cachemask",
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 255),
        x,
    )
    assert (both["flops"], both["bytes_written"]) == (7 * 12, 4 * 12), "the mask is a by-product"


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("quantized::add", lambda q: torch.ops.quantized.add(q, q, 0.1, 3), 12),
        ("quantized::add_relu", lambda q: torch.ops.quantized.add_relu(q, q, 0.1, 3), 24),
        ("quantized::mul", lambda q: torch.ops.quantized.mul(q, q, 0.1, 3), 12),
        ("quantized::cat", lambda q: torch.ops.quantized.cat([q, q], 0, 0.1, 3), 0),
        ("quantized::hardswish", lambda q: torch.ops.quantized.hardswish(q, 0.1, 3), 12),
        ("relu", torch.relu, 12),  # quantised numbers stand for real ones
        ("mean", lambda q: q.mean(1), 12),
        ("quantized_max_pool2d", lambda q: torch.max_pool2d(q.reshape(1, 1, 3, 4), 2), 2 * 3),
    ],
)
def test_quantised_forms_cost_what_plain_ones_do(name: str, function: Any, expected: int) -> None:
    amounts = price_of(name, function, quantised(random(3, 4)))
    assert amounts["flops"] == expected
    assert amounts["bytes_read"] == 12, "the same numbers once"


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_prices_something(name: str) -> None:
    """What a rule needs, under each of the names that kernels have for it."""
    x, weight = tensor(1, 4, 6, 6), tensor(4, 4, 3, 3)
    given: dict[str, Any] = dict.fromkeys(("self", "X", "qx", "x", "input", "inp", "qa", "a", "c"), x)
    given |= dict.fromkeys(("weight", "qw", "W"), weight) | {"mat2": tensor(6, 4), "kernel_size": (2, 2), "dim": 1}
    amounts = made(name, tensor(1, 4, 4, 4), **given)
    assert all(type(amount) is int and amount >= 0 for amount in amounts.values())
    assert amounts["flops"] or name in ("quantized::cat", "quantized::dropout")
    assert amounts["flops"] >= 2 * amounts["macs"]


# --- torchvision -------------------------------------------------------------------------------------------------


def test_boxes_that_suppress_each_other() -> None:
    def overlap(left: list[Number], right: list[Number], areas: list[Number]) -> None:
        sides = [(left[k + 2].smaller(right[k + 2]) - left[k].larger(right[k])).larger(0.0) for k in (0, 1)]
        shared = sides[0] * sides[1]
        (shared / (areas[0] + areas[1] - shared)).larger(0.5)

    boxes = [[Number(float(value)) for value in row] for row in random(5, 4).tolist()]
    with counting() as counts:
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
        for i in range(5):
            for j in range(i + 1, 5):
                overlap(boxes[i], boxes[j], [areas[i], areas[j]])
    amounts = made("torchvision::nms", tensor(5, dtype="int64"), dets=tensor(5, 4), scores=tensor(5), iou_threshold=0.5)
    # and the order of 5 scores: 5 ceil(log2 5)
    assert amounts["flops"] == flops(counts) + 5 * 3


def test_regions() -> None:
    x, rois = tensor(1, 8, 16, 16), tensor(3, 5)
    options = {"spatial_scale": 1.0, "pooled_height": 4, "pooled_width": 4}
    aligned = made("torchvision::roi_align", tensor(3, 8, 4, 4), input=x, rois=rois, **options, sampling_ratio=2)
    # 3 8 4 4 outputs, the mean of 4 samples of 4 products and 3 additions
    assert aligned["flops"] == 384 * 4 * 8
    free = made("torchvision::roi_align", tensor(3, 8, 4, 4), input=x, rois=rois, **options, sampling_ratio=-1)
    assert free["flops"] == 384 * (4 * 4) * 8, "a region as large as the image: 16 / 4 samples a side"
    pooled = made("torchvision::roi_pool", tensor(3, 8, 4, 4), input=x, rois=rois, **options)
    assert pooled["flops"] == 384 * (16 - 1)
    grad = tensor(3, 8, 4, 4)
    sizes = {"batch_size": 1, "channels": 8, "height": 16, "width": 16}
    back = made(
        "torchvision::_roi_align_backward", x, grad=grad, rois=rois, **options, **sizes, sampling_ratio=2, aligned=False
    )
    assert (back["flops"], back["activation_bytes"]) == (384 * (4 * 8 + 1), 0)


def test_deformable_convolution() -> None:
    """4 channels in 2 groups into 6, 3 by 3, 5 by 5 places of 2 images."""
    x, weight = tensor(2, 4, 7, 7), tensor(6, 2, 3, 3)
    given = {"input": x, "weight": weight, "offset": tensor(2, 18, 5, 5), "mask": tensor(2, 9, 5, 5), "bias": tensor(6)}
    macs, sampled, outputs = 2 * 6 * 25 * (2 * 9), 2 * 4 * 9 * 25, 2 * 6 * 25
    masked = made("torchvision::deform_conv2d", tensor(2, 6, 5, 5), **given, use_mask=True)
    assert (masked["macs"], masked["flops"]) == (macs, 2 * macs + 8 * sampled + outputs)
    plain = made("torchvision::deform_conv2d", tensor(2, 6, 5, 5), **given, use_mask=False)
    assert plain["flops"] == masked["flops"] - sampled
    back = made("torchvision::_deform_conv2d_backward", x, grad=tensor(2, 6, 5, 5), **given, use_mask=True)
    # 4 products and additions into the input; for each of two offsets 4 products, 3 sums, times the gradient, added;
    # mask: the sample's gradient times it, its own a product and an addition
    assert (back["macs"], back["flops"]) == (2 * macs, 4 * macs + (8 + 2 * 9 + 3) * sampled + outputs - 6)
