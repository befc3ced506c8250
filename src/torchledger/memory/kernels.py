"""What kernels keep for their backward, and hold while they run, by device: a trace on meta shows neither.

Where a device's kernel for an operation is made of several, what these hand to one another counts as `tensors`; what a
single kernel allocates and frees for itself as `scratch`, as far as it follows from the sizes. The sources are torch
2.13's, below aten/src/ATen/native. For the CPU the figures are those of real runs (benchmarks/memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torchledger.memory.recurrent import layers
from torchledger.record import Operation, TensorInfo

Device = Literal["cpu", "cuda"]


class Passing(NamedTuple):
    """The most bytes that an operation holds while it runs, beyond what it takes, keeps and puts out."""

    tensors: int = 0
    scratch: int = 0


def kept_bytes(operation: Operation, device: Device, storages: int | None = None) -> int:
    """Return the bytes that an operation which is booked whole keeps for its backward, beyond inputs and outputs.

    `storages`: how many its inputs lie in, where that is known.
    """
    if operation.name == "scaled_dot_product_attention":
        return _attention_kept(operation, device, storages)
    rule = _KEPT.get(operation.name.removesuffix("_"))
    return rule(operation, device) if rule is not None else 0


def released_bytes(operation: Operation, device: Device) -> int:
    """Return how much of what is kept for a backward it lets go of before most is alive."""
    if device != "cpu" or operation.name not in _RECURRENT_BACKWARD:
        return 0
    made = sum(_bytes(output.tensor) for output in operation.outputs)
    return layers(operation).released_in_backward(made)


def passing_bytes(operation: Operation, device: Device, trains: bool) -> Passing:
    """Return what an operation holds while it runs; `trains`: in a run that goes on to a backward."""
    rule = _PASSING.get(operation.name.removesuffix("_"))
    return rule(operation, device, trains) if rule is not None else Passing()


def output_bytes(operation: Operation, device: Device, size: int) -> int:
    """Return the bytes of the storage of an output, of which a trace shows `size`.

    On a CPU a loss that is reduced to one number keeps the storage that all of its elements were computed in
    (Loss.cpp: the reduction writes into it).
    """
    if device == "cpu" and operation.name in _REDUCED_IN_PLACE and len(operation.inputs) > 1:
        x = max(operation.inputs[:2], key=lambda tensor: tensor.elements)
        return max(size, x.elements * operation.outputs[0].tensor.item_size)
    return size


_REDUCED_IN_PLACE = frozenset({"mse_loss", "smooth_l1_loss", "binary_cross_entropy", "soft_margin_loss"})


# --- products ------------------------------------------------------------------------------------------------------


def _product(operation: Operation, device: Device, trains: bool) -> Passing:
    """Copies of operands that no BLAS takes as they lie: `mm` and `bmm` clone those, on either device.

    A matrix has to be contiguous along rows or columns (LinearAlgebra.cpp, cuda/Blas.cpp); the gradient of a sum,
    spread out with strides of 0, is not.
    """
    matrices = [t for t in operation.inputs if len(t.shape) >= 2 and not _is_matrix(t)]
    return Passing(scratch=max((t.elements * t.item_size for t in matrices), default=0))


def _is_matrix(tensor: TensorInfo) -> bool:
    (rows, columns), (down, across) = tensor.shape[-2:], tensor.stride[-2:]
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


# --- dropout (Dropout.cpp) -------------------------------------------------------------------------------------------


def _mask(operation: Operation, device: Device) -> int:
    """A CPU multiplies by noise in the input's dtype, a GPU's fused kernel keeps a bool an element."""
    x = operation.inputs[0]
    return x.elements * (x.item_size if device == "cpu" else 1)


def _channel_mask(operation: Operation, device: Device) -> int:
    """One number a channel of each sample, in the input's dtype."""
    x = operation.inputs[0]
    return math.prod(x.shape[:2]) * x.item_size


def _unkept(kept: Callable[[Operation, Device], int]) -> Callable[[Operation, Device, bool], Passing]:
    """What would be kept for a backward lives only as long as the operation where there is none."""

    def rule(operation: Operation, device: Device, trains: bool) -> Passing:
        return Passing() if trains else Passing(tensors=kept(operation, device))

    return rule


# --- attention (transformers/attention.cpp, sdp_utils_cpp.cpp, cuda/sdp_utils.cpp) -----------------------------------


def _attention_kept(operation: Operation, device: Device, storages: int | None = None) -> int:
    """Fused: the scores' log-sum-exp in float32; unfused: probabilities, and with dropout noise and their product.

    The scaled copies of query and key that the unfused form keeps stand in for those, which it lets go; unless the
    value lies in one storage with them and is not copied too. Halves are turned into float32 first, all three of them.
    """
    rows, columns, item = _scores(operation)
    if _is_fused(operation, device):
        wide = 8 if operation.inputs[0].dtype == "float64" else 4
        random = 16 if device == "cuda" else 0  # seed and offset
        if device == "cuda" and not _is_flash(operation):  # rows padded to 32 (kernel_forward.h, kAlignLSE)
            length = operation.inputs[0].shape[-2]
            rows = rows // length * _rounded(length, 32)
        return rows * wide + random + _mask_as_numbers(operation)
    query, key, value = (tensor.elements * item for tensor in _query_key_value(operation))
    kept = rows * columns * item * (3 if _drops(operation) else 1)
    if _is_half(operation):
        return kept + query + key + value - _given(operation, storages)
    packed = storages is not None and storages < 3 and not _is_copied(operation.inputs[2])
    return kept + (query + key if packed else 0)


def _given(operation: Operation, storages: int | None) -> int:
    """Return the bytes of query, key and value where they share a storage that copies of all of them let go."""
    return sum(map(_bytes, _query_key_value(operation))) if storages is not None and storages < 3 else 0


def _is_half(operation: Operation) -> bool:
    return operation.inputs[0].item_size < 4


def _is_copied(tensor: TensorInfo) -> bool:
    """Whether samples and heads have to be copied to lie in one dimension, as `bmm` takes them."""
    shape, stride = tensor.shape, tensor.stride
    return len(shape) > 3 and shape[0] != 1 != shape[1] and stride[0] != shape[1] * stride[1]


def _attention_passing(operation: Operation, device: Device, trains: bool) -> Passing:
    """Unfused: scores and probabilities, beside scaled copies of query and key, and later one of the value."""
    rows, columns, item = _scores(operation)
    if _is_fused(operation, device):
        return Passing() if trains else Passing(tensors=_attention_kept(operation, device))
    scores, mask = rows * columns * item, _mask_as_numbers(operation)
    query, key, value = (tensor.elements * item for tensor in _query_key_value(operation))
    made = _bytes(operation.outputs[0].tensor)
    if operation.arguments.get("is_causal"):
        mask = operation.inputs[0].shape[-2] * columns * item
    wide = query + key + value if _is_half(operation) else 0  # in float32
    value = 0 if _is_half(operation) or not _is_copied(operation.inputs[2]) else value
    if not trains:
        # Copies of query and key, then scores and probabilities; then probabilities, a copy of value and the result.
        return Passing(tensors=mask + wide + query + max(query + 2 * key + scores, 2 * scores - made, scores + value))
    kept = scores * (3 if _drops(operation) else 1) + wide
    return Passing(tensors=mask + max(wide + query + key + 2 * scores - kept - made, query + key + value))


def _attention_backward(operation: Operation, device: Device, trains: bool) -> Passing:
    """Unfused: the gradients of probabilities and of scores; with dropout what the product kept is gone by then."""
    if _is_fused(operation, device):
        if device == "cpu":
            return Passing()
        query, key, _ = _query_key_value(operation)
        rows, _, _ = _scores(operation)
        if not _is_flash(operation):
            return Passing(scratch=4 * rows)  # one number a row (attention_backward.cu, delta)
        # flash_api.cpp (mha_bwd): dQ is summed up in float32 and there is one number a row, both in whole tiles; of
        # grouped queries dK and dV are made for each head.
        length, width = query.shape[-2:]
        whole = rows // length * _rounded(length, 128)
        apart = 2 * query.elements // length * key.shape[-2] if query.shape[1] != key.shape[1] else 0
        return Passing(scratch=4 * whole * (_rounded(width, 32) + 1) + apart * query.item_size)
    rows, columns, item = _scores(operation)
    scores = rows * columns * item
    most = scores + operation.inputs[2].elements * item if _drops(operation) else 2 * scores
    cast = _bytes(operation.outputs[0].tensor) if _is_half(operation) else 0  # the gradient that comes in
    return Passing(tensors=max(most - cast - sum(_bytes(output.tensor) for output in operation.outputs), 0))


def _query_key_value(operation: Operation) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
    return operation.inputs[0], operation.inputs[1], operation.inputs[2]


def _scores(operation: Operation) -> tuple[int, int, int]:
    """Return rows and columns of the scores, and the bytes of one: unfused they are float32 at least."""
    query, key, _ = _query_key_value(operation)
    return math.prod(query.shape[:-1]), key.shape[-2], max(query.item_size, 4)


def _drops(operation: Operation) -> bool:
    return bool(operation.arguments.get("dropout_p"))


def _mask_as_numbers(operation: Operation) -> int:
    mask = operation.tensor("attn_mask")
    return mask.elements * operation.inputs[0].item_size if mask is not None and mask.dtype == "bool" else 0


def _is_fused(operation: Operation, device: Device) -> bool:
    """Whether the device has a fused kernel for the operation.

    CPU: four dimensions, one width, no dropout, a mask of two or four dimensions that asks for no gradient
    (use_flash_attention_cpp). CUDA: flash for float16 and bfloat16 up to width 256 without a mask, else the
    memory-efficient kernel, which takes float32 and masks too (select_sdp_backend); cuDNN's, which some GPUs prefer, is
    taken for flash.
    """
    query, key, value = _query_key_value(operation)
    if len(query.shape) != 4 or 0 in query.shape or 0 in key.shape or query.shape[0] != key.shape[0]:
        return False
    same_width = query.shape[-1] == value.shape[-1]
    if device == "cpu":
        dense = all(tensor.stride[-1] == 1 for tensor in (query, key, value))
        mask = operation.tensor("attn_mask")
        plain = mask is None or (len(mask.shape) in (2, 4) and not operation.arguments.get("attn_mask_trains"))
        return same_width and not _drops(operation) and dense and plain
    is_half = query.dtype in ("float16", "bfloat16")
    if is_half and same_width and query.shape[-1] <= 256 and operation.tensor("attn_mask") is None:
        return True
    aligned = 8 if is_half else 4
    widths = query.shape[-1] % aligned == 0 == value.shape[-1] % aligned
    return (is_half or query.dtype == "float32") and widths


def _is_flash(operation: Operation) -> bool:
    """Whether CUDA's fused kernel is flash."""
    query, _, value = _query_key_value(operation)
    return _is_half(operation) and query.shape[-1] == value.shape[-1] <= 256 and operation.tensor("attn_mask") is None


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step


def _bytes(tensor: TensorInfo) -> int:
    return tensor.elements * tensor.item_size


# --- recurrent layers (RNN.cpp, mkldnn/RNN.cpp, cudnn/RNN.cpp) -------------------------------------------------------


def _recurrent_kept(operation: Operation, device: Device) -> int:
    stack = layers(operation)
    return stack.kept_on_cpu if device == "cpu" else stack.kept_on_cuda


def _recurrent_passing(operation: Operation, device: Device, trains: bool) -> Passing:
    stack = layers(operation)
    if device == "cuda":
        return Passing()
    return Passing(tensors=stack.passing_training if trains else stack.passing_inference)


def _recurrent_backward(operation: Operation, device: Device, trains: bool) -> Passing:
    """Step by step: the gradients of the input's gates of each step, and all of them stacked."""
    return Passing(tensors=layers(operation).passing_backward if device == "cpu" else 0)


_RECURRENT_BACKWARD = ("lstm_backward", "gru_backward", "rnn_tanh_backward", "rnn_relu_backward")
_KEPT: dict[str, Callable[[Operation, Device], int]] = {
    "dropout": _mask,
    "feature_dropout": _channel_mask,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent_kept),
}
_PASSING: dict[str, Callable[[Operation, Device, bool], Passing]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    "dropout": _unkept(_mask),
    "feature_dropout": _unkept(_channel_mask),
    "scaled_dot_product_attention": _attention_passing,
    "scaled_dot_product_attention_backward": _attention_backward,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent_passing),
    **dict.fromkeys(_RECURRENT_BACKWARD, _recurrent_backward),
}

# What libraries take for themselves, outside of what a model asks for. cuBLAS: cuda/CublasHandlePool.cpp,
# 2 of 4096 KiB and 8 of 16 KiB, or on Hopper 8 of 4096 KiB; within torch's own figures once a product has run.
WORKSPACES: dict[Device, dict[str, str]] = {
    "cpu": {"scratch space of convolutions and other kernels": "as the algorithm takes it"},
    "cuda": {
        "cuBLAS's workspace": "8,519,680 bytes (33,554,432 on Hopper)",
        "cuDNN's workspaces": "as the algorithms that it picks take them",
        "CUDA's context": "some hundred MB outside of torch's memory; nvidia-smi shows it",
    },
}
