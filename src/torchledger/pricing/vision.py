"""Rules of torchvision's own operations: boxes, pooling of regions, deformable convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchledger.pricing import rules as r
from torchledger.record import Operation


def suppression(operation: Operation) -> int:
    """n boxes: areas 3 n, sorted n ceil(log2 n), at most n (n - 1) / 2 pairs of 13: corners of what they share 4,
    its sides 2, none below zero 2, area 1, union 2, ratio 1, comparison 1."""
    n = r.need(operation, "dets").shape[0]
    return 3 * n + n * max(n - 1, 0).bit_length() + 13 * (n * max(n - 1, 0) // 2)


def bins(operation: Operation) -> int:
    """Return the elements that come out, or whose gradient comes in."""
    gradient = operation.tensor("grad")
    return (gradient or r.out(operation)).elements


def samples(operation: Operation) -> int:
    """Return the samples of one bin: sampling_ratio^2; where it is left to the region's size, as for the whole
    image."""
    ratio = r.number(operation, "sampling_ratio", -1)
    if ratio > 0:
        return ratio * ratio
    return _largest_bin(operation)


def _largest_bin(operation: Operation) -> int:
    """Return the places of a bin of a region as large as the image."""
    x = operation.tensor("input")
    height, width = x.shape[-2:] if x is not None else (r.number(operation, "height"), r.number(operation, "width"))
    tall, wide = r.number(operation, "pooled_height"), r.number(operation, "pooled_width")
    return math.ceil(height / tall) * math.ceil(width / wide)


def aligned(operation: Operation) -> int:
    """A sample is bilinear, 4 products and 3 additions, and their mean takes one each: 8 a sample."""
    return 8 * samples(operation) * bins(operation)


def aligned_backward(operation: Operation) -> int:
    """The gradient over the number of samples, and 4 products and additions for each: 8 a sample, 1 an element."""
    return (8 * samples(operation) + 1) * bins(operation)


def largest(operation: Operation) -> int:
    """One comparison less than a bin has places, for a region as large as the image."""
    return (_largest_bin(operation) - 1) * bins(operation)


def averaged(operation: Operation) -> int:
    """One for each place of a bin (sum and division), for a region as large as the image."""
    return _largest_bin(operation) * bins(operation)


def averaged_backward(operation: Operation) -> int:
    """The gradient over the number of places, added to each."""
    return (_largest_bin(operation) + 1) * bins(operation)


def _sampled(operation: Operation) -> int:
    """Return the elements that a deformable convolution samples: each channel at each tap of each place that comes
    out."""
    x, weight = r.need(operation, "input"), r.need(operation, "weight")
    places = r.need(operation, "offset").shape[-2:]
    return x.shape[0] * x.shape[1] * r.kernel_elements(weight) * math.prod(places)


def deformed_macs(operation: Operation) -> int:
    """As a convolution: each output takes in_channels / groups * kernel products."""
    weight = r.need(operation, "weight")
    places = math.prod(r.need(operation, "offset").shape[-2:])
    return r.need(operation, "input").shape[0] * weight.shape[0] * places * weight.shape[1] * r.kernel_elements(weight)


def deformed(operation: Operation) -> int:
    """2 macs; each sampled element bilinear 7, times its mask 1; each output its bias 1."""
    masked = bool(operation.arguments.get("use_mask"))
    return 2 * deformed_macs(operation) + (7 + masked) * _sampled(operation) + r.out(operation).elements


def deformed_backward_macs(operation: Operation) -> int:
    """The forward's macs for what was sampled, and as many for the weight."""
    return 2 * deformed_macs(operation)


def deformed_backward(operation: Operation) -> int:
    """2 macs; each sampled element 8 into the input's gradient, 2 (2 4 + 1) into the two offsets', 3 for its mask;
    bias n - 1 a channel. What was sampled is taken as kept."""
    masked = 3 * bool(operation.arguments.get("use_mask"))
    gradient = r.need(operation, "grad")
    bias = max(gradient.elements - gradient.shape[1], 0)
    return 2 * deformed_backward_macs(operation) + (26 + masked) * _sampled(operation) + bias


def _table() -> dict[str, r.Rule]:
    regions = "for a region as large as the image"
    align = f"8 a sample: bilinear 7, mean 1; sampling_ratio^2 samples an output, or {regions}"
    align_backward = f"8 a sample and 1 an element of the gradient; samples as forward, or {regions}"
    read = r.bytes_of("grad", "rois", "channel_mapping", "argmax")
    table = {
        "nms": r.Rule(
            "n boxes: areas 3 n, sort n ceil(log2 n), at most n (n - 1) / 2 pairs of 13", r.nothing, suppression
        ),
        "roi_align": r.Rule(align, r.nothing, aligned),
        "ps_roi_align": r.rule(align, aligned, primary=1),
        "roi_pool": r.rule(f"places of a bin - 1 an output, {regions}", largest, primary=1),
        "ps_roi_pool": r.rule(f"places of a bin an output, {regions}", averaged, primary=1),
        "deform_conv2d": r.Rule(
            "2 macs, as a convolution; 7 an element sampled (bilinear), 1 with a mask; 1 an output for the bias",
            deformed_macs,
            deformed,
        ),
        "_roi_align_backward": r.gradient(align_backward, aligned_backward, read=read),
        "_ps_roi_align_backward": r.gradient(align_backward, aligned_backward, read=read),
        "_roi_pool_backward": r.gradient("1 an element of the gradient: added into its place", bins, read=read),
        "_ps_roi_pool_backward": r.gradient(
            f"places of a bin + 1 an element of the gradient, {regions}", averaged_backward, read=read
        ),
        "_deform_conv2d_backward": r.gradient(
            "2 macs, twice the forward's; 26 an element sampled (8 input, 18 offsets), 3 with a mask; bias n - 1 a "
            "channel",
            deformed_backward,
            deformed_backward_macs,
        ),
    }
    table["qnms"] = table["nms"]
    return {f"torchvision::{name}": rule for name, rule in table.items()}


RULES: Mapping[str, r.Rule] = _table()
