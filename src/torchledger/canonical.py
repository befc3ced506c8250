"""ATen name -> canonical operation: one name for what different devices and modes run under several.

The name of an operation is its ATen packet name without overload (`aten::add.Tensor` is `add`); a trailing underscore
(in place) stays, and operations of other libraries keep their namespace (`torchvision::nms`).
"""

from __future__ import annotations

# Bookkeeping of torch itself: they appear or not with autograd, functionalisation and the device.
DROPPED = frozenset({"detach", "detach_", "alias", "lift", "lift_fresh", "lift_fresh_copy", "_local_scalar_dense"})

_BATCH_NORM = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
_ATTENTION = (
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)

NAMES: dict[str, str] = {
    **dict.fromkeys(_BATCH_NORM, "batch_norm"),
    **dict.fromkeys(_ATTENTION, "scaled_dot_product_attention"),
    "_convolution": "convolution",
    "convolution_overrideable": "convolution",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "native_dropout": "dropout",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_unsafe_view": "view",
    "_reshape_alias": "view",
    "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes",
    "unsafe_chunk": "chunk",
    "_to_copy": "to_copy",
    "_unsafe_index": "index",
    "_unsafe_index_put": "index_put",
}


def canonical(namespace: str, packet: str) -> str | None:
    """Return the canonical name of the operation `namespace::packet`, or None where it is not booked at all."""
    if namespace == "profiler":  # marks of torch.profiler
        return None
    if namespace != "aten":
        return f"{namespace}::{packet}"
    return None if packet in DROPPED else NAMES.get(packet, packet)
