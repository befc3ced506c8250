"""Formulas over one operation: multiply-accumulates, arithmetic, bytes. Each is a plain function of shapes.

n is the number of elements that a row or a result is made of. Derivations follow the textbook form of the operation;
DEFINITIONS of the units: macs are multiply-accumulates of contractions, flops all floating-point arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchledger.record import Operation, TensorInfo, TensorRef

Formula = Callable[[Operation], int]


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operation is priced: four formulas, and the derivation in words.

    `primary`: how many of the outputs are results (None: all); the others are kernels' by-products (pooling indices,
    saved statistics, dropout masks), which count in memory only.
    """

    text: str
    macs: Formula
    flops: Formula
    bytes_read: Formula
    bytes_written: Formula
    primary: int | None = None


# --- tensors of an operation ---------------------------------------------------------------------------------------


def need(operation: Operation, *names: str) -> TensorInfo:
    """Return the first of the arguments `names` that is a tensor."""
    for name in names:
        tensor = operation.tensor(name)
        if tensor is not None:
            return tensor
    raise LookupError(f"{operation.name} has no tensor {' or '.join(names)}")


def first(operation: Operation) -> TensorInfo:
    return operation.inputs[0]


def out(operation: Operation) -> TensorInfo:
    return operation.outputs[0].tensor


def is_arithmetic(operation: Operation) -> bool:
    """Whether floating-point numbers go in or come out."""
    return any(t.is_floating for t in operation.inputs) or any(o.tensor.is_floating for o in operation.outputs)


def integers(value: object) -> tuple[int, ...]:
    """Return an int or a tuple of ints as a tuple."""
    return (value,) if isinstance(value, int) else tuple(v for v in value if isinstance(v, int))  # type: ignore[attr-defined]


def kernel_elements(weight: TensorInfo) -> int:
    """Return the elements of one filter over one channel: the spatial part of a convolution's weight."""
    return math.prod(weight.shape[2:])


def window(operation: Operation, dimensions: int) -> int:
    """Return the elements of a pooling window."""
    sizes = integers(operation.arguments["kernel_size"])
    return math.prod(sizes) if len(sizes) > 1 else sizes[0] ** dimensions


# --- bytes ---------------------------------------------------------------------------------------------------------


def nothing(operation: Operation) -> int:
    return 0


def inputs_bytes(operation: Operation) -> int:
    """All inputs, the same elements once; a tensor that is only written to (`out=`) is not read."""
    outs = operation.arguments.get("out")
    written = outs.index if isinstance(outs, TensorRef) else None
    return sum(
        tensor.distinct_bytes
        for index, tensor in enumerate(operation.inputs)
        if index != written and index not in operation.repeated
    )


def outputs_bytes(operation: Operation) -> int:
    return sum(output.tensor.distinct_bytes for output in operation.outputs)


def output_bytes(operation: Operation) -> int:
    return out(operation).distinct_bytes


def source_bytes(operation: Operation) -> int:
    """`copy_` and its kin read their source alone."""
    return need(operation, "src", "source").distinct_bytes


def other_inputs_bytes(operation: Operation) -> int:
    """All inputs but the one written to."""
    return sum(tensor.distinct_bytes for tensor in operation.inputs[1:])


def gathered_bytes(operation: Operation) -> int:
    """Indices, and as many elements of the source as come out."""
    given = operation.tensor("index") or operation.tensor("indices")
    indices = (given,) if given is not None else operation.tensors("indices")
    return sum(tensor.distinct_bytes for tensor in indices) + output_bytes(operation)


def scattered_read_bytes(operation: Operation) -> int:
    """Indices and source; a copy that is made first (no trailing underscore) reads all of self too."""
    others = sum(tensor.distinct_bytes for tensor in operation.inputs[1:])
    return others if operation.name.endswith("_") else others + first(operation).distinct_bytes


def scattered_written_bytes(operation: Operation) -> int:
    if not operation.name.endswith("_"):
        return output_bytes(operation)
    source = operation.tensor("src") or operation.tensor("source") or operation.tensor("values")
    index = operation.tensor("index")
    elements = (
        source.elements if source is not None else index.elements if index is not None else out(operation).elements
    )
    return min(elements * out(operation).item_size, output_bytes(operation))


def batch_norm_written_bytes(operation: Operation) -> int:
    """The output, and in training the running mean and variance."""
    running = operation.tensor("running_mean")
    updated = 2 * running.distinct_bytes if running is not None and operation.arguments.get("training") else 0
    return output_bytes(operation) + updated


# --- contractions --------------------------------------------------------------------------------------------------


def convolution_macs(operation: Operation) -> int:
    """Each output element takes in_channels / groups * kernel products; transposed: each input element spreads so."""
    x, weight = need(operation, "input"), need(operation, "weight")
    # weight: (out, in / groups, *kernel); transposed: (in, out / groups, *kernel)
    base = x if operation.arguments.get("transposed") else out(operation)
    return base.elements * weight.shape[1] * kernel_elements(weight)


def matrix_macs(operation: Operation) -> int:
    """(.., n, k) @ (.., k, m): n k m for each matrix of the batch."""
    left = need(operation, "mat1", "batch1", "self", "input")
    right = need(operation, "mat2", "batch2", "other")
    return left.elements * right.shape[-1]


def vector_macs(operation: Operation) -> int:
    """A matrix or vector times a vector: as many products as the left side has elements."""
    return need(operation, "mat", "self").elements


def attention_macs(operation: Operation) -> int:
    """Q K^T and P V over the full square: rows L, columns S, widths E and Ev, for each head of each sample."""
    query, key, value = need(operation, "query"), need(operation, "key"), need(operation, "value")
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1])


def attention_flops(operation: Operation) -> int:
    """2 macs, one for the scale and 5 S - 2 a row for softmax; one for the mask, two for dropout, an element of it."""
    query, key = need(operation, "query"), need(operation, "key")
    rows, columns = math.prod(query.shape[:-1]), key.shape[-2]
    masked = operation.tensor("attn_mask") is not None
    dropped = bool(operation.arguments.get("dropout_p"))
    extra = 1 + masked + 2 * dropped
    return 2 * attention_macs(operation) + rows * columns * extra + rows * max(5 * columns - 2, 0)


def trilinear_macs(operation: Operation) -> int:
    """`nn.Bilinear` and its kin: a product for each point of the space that the three tensors span together.

    `_trilinear(i1, i2, i3, expand1, ...)`: dimensions of size 1 stand at the `expand` places of each tensor.
    """
    shapes = [operation.inputs[index].shape for index in range(3)]
    expanded = []
    for shape, name in zip(shapes, ("expand1", "expand2", "expand3"), strict=True):
        full = list(shape)
        for dim in sorted(integers(operation.arguments[name])):
            full.insert(dim, 1)
        expanded.append(full)
    return math.prod(max(sizes) for sizes in zip(*expanded, strict=True))


def matrix_macs_linear(operation: Operation) -> int:
    """(.., in) times (out, in): every row of the input by every row of the weight."""
    return need(operation, "input").elements * need(operation, "weight").shape[0]


def cdist_macs(operation: Operation) -> int:
    """Euclidean distances of P and R points in M dimensions: P R M; other norms contract nothing."""
    return euclidean_macs(operation) if operation.arguments.get("p") == 2 else 0


def euclidean_macs(operation: Operation) -> int:
    """P R M, see `cdist_macs`."""
    return out(operation).elements * need(operation, "x1").shape[-1]


def cdist_flops(operation: Operation) -> int:
    """p = 2: 2 macs and a root an output. Else subtract, power and add for each of M dimensions, and a root."""
    products = (2 if operation.arguments.get("p") == 2 else 3) * euclidean_macs(operation)
    return products + out(operation).elements


def scatter_add_flops(operation: Operation) -> int:
    """One addition for each element of the source."""
    source = need(operation, "src", "source")
    return source.elements if source.is_floating else 0


def doubled(macs: Formula) -> Formula:
    """Return flops of a contraction: a multiplication and an addition each."""
    return lambda operation: 2 * macs(operation)


def doubled_plus_output(macs: Formula, bias: str | None = None) -> Formula:
    """Return flops of a contraction with an addition for each output element (where the tensor `bias` is given)."""

    def flops(operation: Operation) -> int:
        adds = bias is None or operation.tensor(bias) is not None
        return 2 * macs(operation) + (out(operation).elements if adds else 0)

    return flops


# --- elementwise and reductions ------------------------------------------------------------------------------------


def per_output(amount: int) -> Formula:
    """Return `amount` floating-point operations for each element of the first output; integers and bools: 0."""
    return lambda operation: amount * out(operation).elements if is_arithmetic(operation) else 0


def per_list_element(amount: int) -> Formula:
    return lambda operation: (
        amount * sum(t.elements for t in operation.tensors("self")) if is_arithmetic(operation) else 0
    )


def reduction(amount: int, per_result: int) -> Formula:
    """Return `amount` for each input element and `per_result` for each result: n - 1 for a sum is (1, -1)."""

    def flops(operation: Operation) -> int:
        x = first(operation)
        if not x.is_floating or not x.elements:
            return 0
        return amount * x.elements + per_result * out(operation).elements

    return flops


def scan(operation: Operation) -> int:
    """A running sum of n elements takes n - 1."""
    x = first(operation)
    dim = operation.arguments.get("dim")
    length = x.shape[dim] if isinstance(dim, int) and x.shape else 1
    return x.elements - x.elements // length if x.is_floating and length else 0


def row_length(operation: Operation) -> int:
    x = first(operation)
    dim = operation.arguments.get("dim", -1)
    return x.shape[dim] if isinstance(dim, int) and x.shape else 1


def per_row(amount: int, constant: int) -> Formula:
    """Return `amount` an element plus `constant` a row along `dim`."""

    def flops(operation: Operation) -> int:
        elements, length = first(operation).elements, row_length(operation)
        return max(amount * elements + constant * (elements // length), 0) if length else 0

    return flops


# --- normalisation -------------------------------------------------------------------------------------------------


def normalised(operation: Operation, elements: int, groups: int, statistics: int, constant: int) -> int:
    """Statistics and 1 an element for the scaling, `constant` a group, then weight and bias, 1 an element each."""
    affine = (operation.tensor("weight") is not None) + (operation.tensor("bias") is not None)
    return elements * (statistics + 1 + affine) + groups * constant


def batch_norm_flops(operation: Operation) -> int:
    """Eval: subtract, scale, weight, bias, and 2 a channel (eps, rsqrt). Training: as LayerNorm over each channel
    (7 n + 2), and 3 for each of two running statistics."""
    x = first(operation)
    channels = x.shape[1] if len(x.shape) > 1 else 1
    if not operation.arguments.get("training"):
        return normalised(operation, x.elements, channels, statistics=1, constant=2)
    running = 6 if operation.tensor("running_mean") is not None else 0
    return normalised(operation, x.elements, channels, statistics=4, constant=2 + running)


def layer_norm_flops(operation: Operation) -> int:
    """Mean n, centre n, square n, variance n, eps and rsqrt 2, scale n, weight n, bias n: 7 n + 2 a row."""
    x = first(operation)
    length = math.prod(integers(operation.arguments.get("normalized_shape", ()))) or 1
    return normalised(operation, x.elements, x.elements // length, statistics=4, constant=2)


def group_norm_flops(operation: Operation) -> int:
    """As LayerNorm, over each group of channels of each sample."""
    samples, groups = operation.arguments["N"], operation.arguments["group"]
    assert isinstance(samples, int) and isinstance(groups, int)
    return normalised(operation, first(operation).elements, samples * groups, statistics=4, constant=2)


def rms_norm_flops(operation: Operation) -> int:
    """Square n, mean n, eps and rsqrt 2, scale n, weight n: 4 n + 2 a row."""
    x = first(operation)
    length = math.prod(integers(operation.arguments.get("normalized_shape", ()))) or 1
    return normalised(operation, x.elements, x.elements // length, statistics=2, constant=2)


# --- pooling and resampling ----------------------------------------------------------------------------------------


def pooled(dimensions: int, additions_apart: int) -> Formula:
    """Return k - 1 comparisons an output element (max), or k for an average (k - 1 additions, one division)."""
    return lambda operation: out(operation).elements * (window(operation, dimensions) - additions_apart)


def adaptive_pooled(dimensions: int, additions_apart: int) -> Formula:
    """As pooling, over the windows from floor(i n / m) to ceil((i + 1) n / m)."""

    def flops(operation: Operation) -> int:
        x, result = first(operation), out(operation)
        sizes = zip(x.shape[-dimensions:], result.shape[-dimensions:], strict=True)
        windows = math.prod(sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in sizes)
        return math.prod(result.shape[:-dimensions]) * windows - result.elements * additions_apart

    return flops
