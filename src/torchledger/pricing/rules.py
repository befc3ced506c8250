"""Formulas over one operation: multiply-accumulates, arithmetic, bytes. Each is a plain function of shapes.

n is the number of elements that a row or a result is made of. Derivations follow the textbook form of the operation;
DEFINITIONS of the units: macs are multiply-accumulates of contractions, flops all floating-point arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

from torchledger.record import Operation, TensorInfo, TensorRef

Formula = Callable[[Operation], int]


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
    """Whether floating-point numbers go in or come out, or quantised ones, which stand for them."""
    return any(map(is_real, operation.inputs)) or any(is_real(o.tensor) for o in operation.outputs)


def is_real(tensor: TensorInfo) -> bool:
    return tensor.is_floating or tensor.dtype.startswith(("qint", "quint"))


def integers(value: object) -> tuple[int, ...]:
    """Return an int or a tuple of ints as a tuple."""
    return (value,) if isinstance(value, int) else tuple(v for v in value if isinstance(v, int))  # type: ignore[attr-defined]


def number(operation: Operation, name: str, default: int | None = None) -> int:
    """Return an argument that is a whole number. Raise TypeError where it is none."""
    value = operation.arguments.get(name, default)
    if not isinstance(value, int):
        raise TypeError(f"{operation.name} has {name}={value!r}")
    return value


def kernel_elements(weight: TensorInfo) -> int:
    """Return the elements of one filter over one channel: the spatial part of a convolution's weight."""
    return math.prod(weight.shape[2:])


def window(operation: Operation, dimensions: int) -> int:
    """Return the elements of a pooling window."""
    sizes = integers(operation.arguments["kernel_size"])
    return math.prod(sizes) if len(sizes) > 1 else sizes[0] ** dimensions


# --- bytes ---------------------------------------------------------------------------------------------------------


def nothing(operation: Operation) -> int:
    """Nothing."""
    return 0


def written_to(operation: Operation) -> frozenset[int]:
    """The inputs that are only written to (`out=`): they stand last, and the operation returns them."""
    if operation.name.endswith("_"):
        return frozenset()
    aliases = [output.alias for output in operation.outputs if output.alias is not None]
    first_out = max(len(operation.inputs) - len(operation.outputs), 1)
    return frozenset(alias for alias in aliases if alias >= first_out) if aliases else frozenset()


def inputs_bytes(operation: Operation, skipped: frozenset[int] = frozenset()) -> int:
    """All inputs (but those `skipped`), the same elements once; a tensor that is only written to is not read."""
    inputs, written = operation.inputs, written_to(operation)
    if not (skipped or written or operation.repeated):
        return sum([tensor.distinct_bytes for tensor in inputs])
    apart = {*skipped, *written, *operation.repeated}
    return sum([inputs[index].distinct_bytes for index in range(len(inputs)) if index not in apart])


def outputs_bytes(operation: Operation) -> int:
    """All outputs."""
    return sum([output.tensor.distinct_bytes for output in operation.outputs])


def output_bytes(operation: Operation) -> int:
    """The output."""
    return out(operation).distinct_bytes


def bytes_of(*names: str, said: str = "") -> Formula:
    """Return the bytes of the tensors (and lists of them) among the arguments `names`, the same elements once.

    `said`: how the documents call them, where that is not by their names.
    """

    def read(operation: Operation) -> int:
        given = (operation.arguments.get(name) for name in names)
        listed = [v for value in given for v in (value if isinstance(value, tuple) else (value,))]
        indices = dict.fromkeys(v.index for v in listed if isinstance(v, TensorRef))
        return sum(operation.inputs[index].distinct_bytes for index in indices if index not in operation.repeated)

    read.__doc__ = said or ", ".join(names)
    return read


def first_bytes(operation: Operation) -> int:
    """The first input."""
    return first(operation).distinct_bytes


def other_inputs_bytes(operation: Operation) -> int:
    """All inputs but self, which is written to: the value of a fill, the source of a copy."""
    written = written_to(operation)
    return sum(t.distinct_bytes for index, t in enumerate(operation.inputs) if index and index not in written)


def index_tensors(operation: Operation) -> tuple[TensorInfo, ...]:
    """The tensors of an operation's `index` or `indices`, the same one once."""
    given = operation.arguments.get("index", operation.arguments.get("indices"))
    listed = given if isinstance(given, tuple) else (given,)
    return tuple(
        operation.inputs[value.index]
        for value in listed
        if isinstance(value, TensorRef) and value.index not in operation.repeated
    )


def gathered_bytes(operation: Operation) -> int:
    """Indices, and as many elements of the source as come out."""
    return sum(tensor.distinct_bytes for tensor in index_tensors(operation)) + output_bytes(operation)


def masked_gathered_bytes(operation: Operation) -> int:
    """Indices, mask, and as many elements of the source as come out."""
    return gathered_bytes(operation) + need(operation, "mask").distinct_bytes


def scattered_read_bytes(operation: Operation) -> int:
    """Indices and source; a copy that is made first (no trailing underscore) reads all of self too."""
    others = inputs_bytes(operation, skipped=frozenset({0}))
    return others if operation.name.endswith("_") else others + first(operation).distinct_bytes


def scattered_elements(operation: Operation) -> int:
    """Elements that are written through an index; all of self where a mask says which, as far as shapes tell."""
    x, index = first(operation), operation.tensor("index")
    source = operation.tensor("source")
    if index is None:
        return min(_indexed_elements(operation, x), x.elements) if "indices" in operation.arguments else x.elements
    if "put" in operation.name or "scatter" in operation.name:
        return index.elements  # a larger source is read as far as the index goes
    if source is not None:
        return source.elements
    return index.elements * (x.elements // max(row_length(operation), 1))


def _indexed_elements(operation: Operation, x: TensorInfo) -> int:
    """The elements of `x[indices]`: what the indices broadcast to, by the dimensions that none of them takes."""
    indices = cast(tuple[object, ...], operation.arguments["indices"])
    chosen = {dim: operation.inputs[value.index] for dim, value in enumerate(indices) if isinstance(value, TensorRef)}
    if any(index.dtype in ("bool", "uint8") for index in chosen.values()):
        return x.elements
    rest = math.prod(size for dim, size in enumerate(x.shape) if dim not in chosen)
    return math.prod(broadcast(*(index.shape for index in chosen.values()))) * rest


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `shapes` broadcast to."""
    reversed_sizes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return tuple(0 if 0 in sizes else max(sizes) for sizes in reversed_sizes)[::-1]


def scattered_written_bytes(operation: Operation) -> int:
    if not operation.name.endswith("_"):
        return output_bytes(operation)
    return min(scattered_elements(operation) * out(operation).item_size, output_bytes(operation))


def batch_norm_written_bytes(operation: Operation) -> int:
    """The output, and in training the running mean and variance."""
    running = operation.tensor("running_mean")
    updated = 2 * running.distinct_bytes if running is not None and in_training(operation) else 0
    return output_bytes(operation) + updated


# --- rules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operation is priced: formulas, and the derivation in words.

    Each formula takes an `Operation` (shapes, dtypes and arguments, no values) and returns a whole number. Left out:
    no macs; flops two a multiply-accumulate, and `beyond` these; all inputs read and all outputs written, once.

    `primary`: how many of the outputs are results (None: all); the others are kernels' by-products (pooling indices,
    saved statistics, dropout masks), which count in memory only. 0: gradients and updates, which are no activations.
    """

    text: str
    macs: Formula = nothing
    flops: Formula | None = None
    bytes_read: Formula = inputs_bytes
    bytes_written: Formula = outputs_bytes
    primary: int | None = None
    beyond: Formula = nothing

    def arithmetic(self, operation: Operation) -> tuple[int, int]:
        """Return macs and flops."""
        macs = self.macs(operation)
        return macs, 2 * macs + self.beyond(operation) if self.flops is None else self.flops(operation)

    def price(self, operation: Operation) -> dict[str, int]:
        """Return the amounts of one operation by the names of the quantities."""
        macs, flops = self.arithmetic(operation)
        results = operation.outputs if self.primary is None else operation.outputs[: self.primary]
        return {
            "macs": macs,
            "flops": flops,
            "bytes_read": self.bytes_read(operation),
            "bytes_written": self.bytes_written(operation),
            "activation_bytes": sum([o.tensor.distinct_bytes for o in results if o.alias is None]),
        }


def rule(
    text: str,
    flops: Formula = nothing,
    macs: Formula = nothing,
    read: Formula = inputs_bytes,
    written: Formula = outputs_bytes,
    primary: int | None = None,
) -> Rule:
    """Return a rule; where by-products are left out of the results, only the first output is written."""
    if primary and written is outputs_bytes:
        written = output_bytes
    return Rule(text, macs, flops, read, written, primary)


def contraction(text: str, macs: Formula, adds: bool = False, bias: str | None = None) -> Rule:
    """Return the rule of a contraction: `adds` 1 an output, or where there is a tensor `bias`."""
    return Rule(text, macs, beyond=one_an_output(bias) if adds or bias else nothing)


def gradient(text: str, flops: Formula = nothing, macs: Formula = nothing, read: Formula = inputs_bytes) -> Rule:
    """Return the rule of a backward operation: all that it returns is written, none of it is an activation."""
    return Rule(text, macs, flops, read, outputs_bytes, primary=0)


# --- contractions --------------------------------------------------------------------------------------------------


def convolution_macs(operation: Operation) -> int:
    """Each output element takes in_channels / groups * kernel products; transposed: each input element spreads so."""
    x, weight = need(operation, "input", "self", "qx", "X"), need(operation, "weight", "qw", "W")
    # weight: (out, in / groups, *kernel); transposed: (in, out / groups, *kernel)
    base = x if is_transposed(operation) else out(operation)
    return base.elements * weight.shape[1] * kernel_elements(weight)


def is_transposed(operation: Operation) -> bool:
    """Whether a convolution is transposed; kernels that do nothing else say so by name or take an output_padding."""
    named = "transpose" in operation.name or "output_padding" in operation.arguments
    return bool(operation.arguments.get("transposed", named))


def matrix_macs(operation: Operation) -> int:
    """(.., n, k) @ (.., k, m): n k m for each matrix of the batch."""
    left = need(operation, "mat1", "batch1", "self", "input")
    right = need(operation, "mat2", "batch2", "other")
    return left.elements * right.shape[-1]


def vector_macs(operation: Operation) -> int:
    """A matrix or vector times a vector: as many products as the left side has elements."""
    return need(operation, "mat", "self").elements


def sequence_convolution_macs(operation: Operation) -> int:
    """Weight (kernel, in, out) over (time, sample, in): kernel in products an output."""
    weight = need(operation, "weight")
    return out(operation).elements * weight.shape[0] * weight.shape[1]


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


def grouped_macs(operation: Operation) -> int:
    """Rows that belong to one matrix each, (n, k) by (g, k, m): n k m; or columns split into groups, n k m in all."""
    left, right = first(operation), operation.inputs[1]
    if len(left.shape) == len(right.shape) == 2:
        return left.elements * right.shape[-1]
    return out(operation).elements * left.shape[-1]


def affine_grid_macs(operation: Operation) -> int:
    """Each coordinate is a row of theta (one longer than the coordinates are many) by a point of the grid."""
    return out(operation).elements * first(operation).shape[-1]


def embedding_bag_elements(operation: Operation) -> int:
    """Elements of the rows that the bags add up."""
    return need(operation, "indices").elements * need(operation, "weight").shape[-1]


def embedding_bag_macs(operation: Operation) -> int:
    """Weighted bags multiply each row by its weight and add it."""
    return embedding_bag_elements(operation) if operation.tensor("per_sample_weights") is not None else 0


def embedding_bag_flops(operation: Operation) -> int:
    """Weighted: 2 macs. Else n - 1 additions or comparisons for a bag of n rows, and a division for a mean."""
    if operation.tensor("per_sample_weights") is not None:
        return 2 * embedding_bag_macs(operation)
    is_mean = operation.arguments.get("mode") == 1
    return max(embedding_bag_elements(operation) - (0 if is_mean else out(operation).elements), 0)


def embedding_bag_bytes(operation: Operation) -> int:
    """Indices, offsets and weights, and a row of the table for each index."""
    table = need(operation, "weight")
    others = inputs_bytes(operation, skipped=frozenset({0}))
    return others + embedding_bag_elements(operation) * table.item_size


def cdist_macs(operation: Operation) -> int:
    """Euclidean distances of P and R points in M dimensions: P R M; other norms contract nothing."""
    return euclidean_macs(operation) if operation.arguments.get("p") == 2 else 0


def euclidean_macs(operation: Operation) -> int:
    """P R M, see `cdist_macs`."""
    return out(operation).elements * need(operation, "x1").shape[-1]


def cdist_flops(operation: Operation) -> int:
    """p = 2: 2 macs and a root an output. Else M subtractions and the norm of M differences."""
    if operation.arguments.get("p") == 2:
        return 2 * euclidean_macs(operation) + out(operation).elements
    return distance_flops(out(operation).elements, need(operation, "x1").shape[-1], operation.arguments.get("p"))


def pdist_flops(operation: Operation) -> int:
    """As `cdist`, without the product that needs two sets of points: M subtractions and a norm a pair."""
    return distance_flops(out(operation).elements, first(operation).shape[-1], operation.arguments.get("p"))


def distance_flops(pairs: int, length: int, order: object) -> int:
    amount, per_result = norm_amounts(order)
    return max(pairs * ((amount + 1) * length + per_result), 0)


def norm_amounts(order: object) -> tuple[int, int]:
    """Return flops an element and flops a result of a norm of some order.

    2: square n, sum n - 1, root 1. 1, 0, inf: absolute value or comparison n, sum or maximum n - 1. Any other p:
    absolute value n, power n, sum n - 1, root 1.
    """
    if order in (0, 1, math.inf, -math.inf):
        return 2, -1
    return (2, 0) if order in (None, 2) else (3, 0)


def norm_flops(operation: Operation) -> int:
    amount, per_result = norm_amounts(operation.arguments.get("ord", operation.arguments.get("p")))
    return reduction(amount, per_result)(operation)


def power_sum(operation: Operation) -> int:
    """As a norm, without its root."""
    amount, _ = norm_amounts(operation.arguments.get("ord"))
    return reduction(amount, -1)(operation)


def distance_of_tensors(operation: Operation) -> int:
    """The difference, and its norm."""
    amount, per_result = norm_amounts(operation.arguments.get("p"))
    return max((amount + 1) * first(operation).elements + per_result, 0)


def renormed(operation: Operation) -> int:
    """Norm, comparison 1, eps and quotient 2, product n, for each part along `dim`."""
    x, dim = first(operation), number(operation, "dim")
    return _renormed(x.elements, x.shape[dim], operation.arguments.get("p"))


def renormed_rows(operation: Operation) -> int:
    """Norm, comparison 1, eps and quotient 2, product n, for each row that an index names."""
    rows, width = need(operation, "indices").elements, first(operation).shape[-1]
    return _renormed(rows * width, rows, operation.arguments.get("norm_type"))


def _renormed(elements: int, parts: int, order: object) -> int:
    amount, per_result = norm_amounts(order)
    return (amount + 1) * elements + (per_result + 3) * parts if elements else 0


def closeness(operation: Operation) -> int:
    """|x - y| <= a + r |y|: 6 an element."""
    return 6 * first(operation).elements if is_arithmetic(operation) else 0


def counted(operation: Operation) -> int:
    """A weight is added into its bin."""
    weights = operation.tensor("weights")
    return weights.elements if weights is not None else 0


def binned(operation: Operation) -> int:
    """Less the least, over the width, rounded down."""
    return 3 * first(operation).elements if is_arithmetic(operation) else 0


def histogram(operation: Operation) -> int:
    """A bin for each coordinate: 3, or a binary search among given edges; weights 1, density 2 a bin."""
    x, edges = first(operation), operation.tensors("bins") or tuple(filter(None, [operation.tensor("bins")]))
    if edges:
        points = x.elements // len(edges)
        searched = points * sum(edge.elements.bit_length() for edge in edges)
    else:
        searched = binned(operation)
    weights = operation.tensor("weight")
    density = 2 * out(operation).elements * bool(operation.arguments.get("density"))
    return searched + (weights.elements if weights is not None else 0) + density


def gathered_statistics(operation: Operation) -> int:
    """Two means and sums of squares into one: difference, shares 4, square, products and sums 4."""
    return 10 * need(operation, "mean").elements


def weight_norm_flops(operation: Operation) -> int:
    """g v / |v|: square n, sum n - 1, root 1, divide g 1, multiply n: 3 n + 1 a norm."""
    return 3 * first(operation).elements + need(operation, "g").elements


def accumulated_flops(operation: Operation) -> int:
    """One operation for each element that is added, multiplied or compared into its place; a plain write has none."""
    is_combined = operation.arguments.get("accumulate") or operation.arguments.get("reduce") is not None
    adds = "add" in operation.name or is_combined
    if not adds or not first(operation).is_floating:
        return 0
    divisions = out(operation).elements if operation.arguments.get("reduce") == "mean" else 0
    return scattered_elements(operation) + divisions


def fourier_flops(operation: Operation) -> int:
    """5 N log2 N for each transform of N points; N counts the real side of a real transform."""
    points = out(operation) if operation.name == "_fft_c2r" else first(operation)
    length = math.prod(points.shape[dim] for dim in integers(operation.arguments["dim"]))
    return round(5 * points.elements * math.log2(length)) if length else 0


def doubled(macs: Formula) -> Formula:
    """Return flops of a contraction: a multiplication and an addition each."""
    return lambda operation: 2 * macs(operation)


def one_an_output(bias: str | None = None) -> Formula:
    """Return an addition for each output element (where the tensor `bias` is given)."""

    def flops(operation: Operation) -> int:
        return out(operation).elements if bias is None or operation.tensor(bias) is not None else 0

    return flops


# --- elementwise and reductions ------------------------------------------------------------------------------------


def per_output(amount: int) -> Formula:
    """Return `amount` floating-point operations for each element of the first output; integers and bools: 0."""
    return lambda operation: amount * out(operation).elements if is_arithmetic(operation) else 0


def scaled_addition(operation: Operation) -> int:
    """Return 1 an element, and 1 for the factor `alpha` of the second operand; a factor of 1 is not multiplied by."""
    return per_output(1 + (operation.arguments.get("alpha", 1) != 1))(operation)


def scaled_product(operation: Operation) -> int:
    """Return 2 an element, product or quotient and addition, and 1 for the factor `value` where it is not 1."""
    return per_output(2 + (operation.arguments.get("value", 1) != 1))(operation)


def reduction(amount: int, per_result: int) -> Formula:
    """Return `amount` for each input element and `per_result` for each result: n - 1 for a sum is (1, -1)."""

    def flops(operation: Operation) -> int:
        x = first(operation)
        if not is_arithmetic(operation) or not x.elements:
            return 0
        return amount * x.elements + per_result * out(operation).elements

    return flops


def scan(operation: Operation) -> int:
    """A running sum of n elements takes n - 1."""
    x = first(operation)
    dim = operation.arguments.get("dim")
    length = x.shape[dim] if isinstance(dim, int) and x.shape else 1
    return x.elements - x.elements // length if is_arithmetic(operation) and length else 0


def ordering(operation: Operation) -> int:
    """Comparisons of a merge sort: n ceil(log2 n) for each row of n, along `dim` or over all elements."""
    x = first(operation)
    if not is_arithmetic(operation) or not x.elements:
        return 0
    length = row_length(operation) if operation.arguments.get("dim") is not None else x.elements
    return x.elements * (length - 1).bit_length()


def searching(operation: Operation) -> int:
    """Comparisons of a binary search among n: ceil(log2(n + 1)) for each value."""
    if not is_arithmetic(operation):
        return 0
    edges = need(operation, "sorted_sequence", "boundaries")
    return out(operation).elements * (edges.shape[-1] if edges.shape else 1).bit_length()


def row_length(operation: Operation) -> int:
    """Return the size of the first input along `dim`; none given is the last."""
    x = first(operation)
    dim = operation.arguments.get("dim")
    dim = -1 if dim is None else dim
    return x.shape[dim] if isinstance(dim, int) and x.shape else 1


def per_row(amount: int, constant: int) -> Formula:
    """Return `amount` an element plus `constant` a row along `dim`."""

    def flops(operation: Operation) -> int:
        elements, length = first(operation).elements, row_length(operation)
        return max(amount * elements + constant * (elements // length), 0) if length else 0

    return flops


# --- dropout and losses --------------------------------------------------------------------------------------------


def dropout_flops(operation: Operation) -> int:
    """2 an element, mask and scale; a kernel that is told that it does not train does neither."""
    return 0 if operation.arguments.get("train") is False else per_output(2)(operation)


def loss(amount: int) -> Formula:
    """Return `amount` an element, 1 for its weight, 4 for a weight of the positive ones ((w - 1) y + 1, times that
    term); then a sum (n - 1) or a mean (n)."""

    def flops(operation: Operation) -> int:
        elements = first(operation).elements
        weights = (operation.tensor("weight") is not None) + 4 * (operation.tensor("pos_weight") is not None)
        return elements * (amount + weights) + _loss_reduction(operation, elements)

    return flops


def likelihood_flops(operation: Operation) -> int:
    """Negate what each target picks, and weigh it; a weighted mean divides by the sum of the weights, n - 1 more."""
    targets, weighs = need(operation, "target").elements, operation.tensor("weight") is not None
    sums = max(targets - 1, 0) if weighs and operation.arguments.get("reduction") == 1 else 0
    return targets * (1 + weighs) + _loss_reduction(operation, targets) + sums


def likelihood_bytes(operation: Operation) -> int:
    """Targets, the element that each picks, and the weights."""
    target, weight = need(operation, "target"), operation.tensor("weight")
    picked = target.elements * first(operation).item_size
    return target.distinct_bytes + picked + (weight.distinct_bytes if weight is not None else 0)


def _loss_reduction(operation: Operation, elements: int) -> int:
    return (0, elements, max(elements - 1, 0))[number(operation, "reduction", 1)]  # none, mean, sum


# --- normalisation -------------------------------------------------------------------------------------------------


def normalised(operation: Operation, elements: int, groups: int, statistics: int, constant: int) -> int:
    """Statistics and 1 an element for the scaling, `constant` a group, then weight and bias, 1 an element each."""
    affine = (operation.tensor("weight") is not None) + (operation.tensor("bias") is not None)
    return elements * (statistics + 1 + affine) + groups * constant


def in_training(operation: Operation) -> bool:
    """Whether a batch norm takes the statistics of its input."""
    return bool(operation.arguments.get("training", operation.name == "_batch_norm_with_update"))


def batch_norm_flops(operation: Operation) -> int:
    """Eval: subtract, scale, weight, bias, and 2 a channel (eps, rsqrt). Training: as LayerNorm over each channel
    (7 n + 2), and 3 for each of two running statistics."""
    x = first(operation)
    channels = x.shape[1]
    if not in_training(operation):
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
    groups = number(operation, "N") * number(operation, "group")
    return normalised(operation, first(operation).elements, groups, statistics=4, constant=2)


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
        windows = adaptive_windows(x.shape[-dimensions:], result.shape[-dimensions:])
        return math.prod(result.shape[:-dimensions]) * windows - result.elements * additions_apart

    return flops


def adaptive_windows(sizes: tuple[int, ...], results: tuple[int, ...]) -> int:
    """Return the elements of all windows from floor(i n / m) to ceil((i + 1) n / m) together."""
    pairs = zip(sizes, results, strict=True)
    return math.prod(sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in pairs)


def grid_sampled(dimensions: int) -> Formula:
    """Return the sum of 2^d (linear) or 4^d (cubic) weighted neighbours of each output element; nearest: none."""

    def flops(operation: Operation) -> int:
        neighbours = (2**dimensions, 0, 4**dimensions)[number(operation, "interpolation_mode", 0)]
        return out(operation).elements * max(2 * neighbours - 1, 0)

    return flops
