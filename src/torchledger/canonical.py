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
    "_native_batch_norm_legit_functional",
    "_batch_norm_no_update",
)
_BATCH_NORM_BACKWARD = ("native_batch_norm_backward", "cudnn_batch_norm_backward", "miopen_batch_norm_backward")
_CONVOLUTION = (
    "_convolution",
    "convolution_overrideable",
    "cudnn_convolution",
    "cudnn_convolution_transpose",
    "miopen_convolution",
    "miopen_convolution_transpose",
    "miopen_depthwise_convolution",
    "mkldnn_convolution",
    "_mps_convolution",
    "_nnpack_spatial_convolution",
    "_slow_conv2d_forward",
    "slow_conv3d_forward",
    "slow_conv_dilated2d",
    "slow_conv_dilated3d",
    "slow_conv_transpose2d",
    "slow_conv_transpose3d",
    "_conv_depthwise2d",
    "conv_depthwise3d",
)
_CONVOLUTION_BACKWARD = ("convolution_backward_overrideable", "_slow_conv2d_backward", "mps_convolution_backward")
_ATTENTION = (
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
_ATTENTION_BACKWARD = (
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward",
    "_scaled_dot_product_fused_attention_overrideable_backward",
)

NAMES: dict[str, str] = {
    **dict.fromkeys(_BATCH_NORM, "batch_norm"),
    **dict.fromkeys(_ATTENTION, "scaled_dot_product_attention"),
    "_batch_norm_with_update_functional": "_batch_norm_with_update",  # has no argument that says it is in training
    **dict.fromkeys(_BATCH_NORM_BACKWARD, "batch_norm_backward"),
    **dict.fromkeys(_ATTENTION_BACKWARD, "scaled_dot_product_attention_backward"),
    **dict.fromkeys(_CONVOLUTION, "convolution"),
    **dict.fromkeys(_CONVOLUTION_BACKWARD, "convolution_backward"),
    "cudnn_affine_grid_generator": "affine_grid_generator",
    "cudnn_grid_sampler": "grid_sampler_2d",
    "_grid_sampler_2d_cpu_fallback": "grid_sampler_2d",
    "_grid_sampler_2d_cpu_fallback_backward": "grid_sampler_2d_backward",
    "_cudnn_ctc_loss": "_ctc_loss",
    "miopen_ctc_loss": "_ctc_loss",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "native_dropout": "dropout",
    "native_dropout_backward": "dropout_backward",
    "_fused_dropout": "dropout",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "mkldnn_max_pool2d": "max_pool2d",
    "mkldnn_max_pool3d": "max_pool3d",
    "mkldnn_adaptive_avg_pool2d": "adaptive_avg_pool2d",
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
    "_index_put_impl": "index_put",
    "_index_put_impl_": "index_put_",
    "_aminmax": "aminmax",
    "_unique": "_unique2",
    "_logcumsumexp": "logcumsumexp",
    "_embedding_bag_dense_backward": "_embedding_bag_backward",
    "_lstm_mps": "lstm",
    "rrelu_with_noise_functional": "rrelu_with_noise",
}

# What torch's decompositions (of forward-mode gradients) run in place of the ATen operation of that name.
PRIMITIVES = frozenset("add sub mul div neg exp log sqrt rsqrt sin cos tanh pow sum where".split())


def canonical(namespace: str, packet: str) -> str | None:
    """Return the canonical name of the operation `namespace::packet`, or None where it is not booked at all."""
    if namespace == "profiler":  # marks of torch.profiler
        return None
    if namespace == "prims" and packet in PRIMITIVES:
        return packet
    if namespace != "aten":
        return f"{namespace}::{packet}"
    return None if packet in DROPPED else NAMES.get(packet, packet)
