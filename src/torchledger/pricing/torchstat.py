"""Convention `torchstat`: the columns and the arithmetic of torchstat 0.0.7, for batch 1, times the batch.

torchstat prices module classes; here the operation that the class runs carries the same formula, so a formula's
numbers are torchstat's wherever torchstat has one (2-d convolutions, batch norms and pools, ReLU and its kin, Linear,
Bilinear, Softmax, Upsample). Its "MAdd" counts multiplications and additions apart, its "Flops" counts
multiply-accumulates of contractions, one per element elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torchledger.pricing.convention import EXCLUDED, FREE, UNKNOWN, Convention, Price, Quantity, State
from torchledger.pricing.full import price as full_price
from torchledger.pricing.rules import kernel_elements, number, window
from torchledger.record import ModuleCall, Operation, TensorInfo

Amounts = dict[str, int]


def _amounts(madd: int | None, flops: int | None, read: int | None, written: int | None, item_size: int) -> Amounts:
    """Return the amounts that torchstat has; reads and writes come in elements."""
    amounts: Amounts = {}
    if madd is not None:
        amounts["madd"] = madd
    if flops is not None:
        amounts["flops"] = flops
    if read is not None and written is not None:
        amounts["mem_read_b"] = read * item_size
        amounts["mem_write_b"] = written * item_size
        amounts["mem_rw_b"] = (read + written) * item_size
    return amounts


def _first(operation: Operation) -> TensorInfo:
    return operation.inputs[0]


def _out(operation: Operation) -> TensorInfo:
    return operation.outputs[0].tensor


def _convolution(operation: Operation) -> Amounts | None:
    """MAdd: k products and k - 1 sums an output, 1 more for a bias, k = kernel C / groups; Flops: k (+ 1) an output."""
    x, weight, bias, out = _first(operation), operation.tensor("weight"), operation.tensor("bias"), _out(operation)
    if weight is None or len(weight.shape) != 4 or len(x.shape) != 4:
        return None
    multiplications = kernel_elements(weight) * (x.shape[1] // number(operation, "groups", 1))  # of one output element
    additions = multiplications - 1 + (bias is not None)
    if operation.arguments.get("transposed"):
        # torchstat knows its MAdd alone, counted at the input's size.
        elements = x.shape[0] * math.prod(x.shape[2:]) * out.shape[1]
        return _amounts(elements * (multiplications + additions), None, None, None, x.item_size)
    parameters = weight.elements + (bias.elements if bias is not None else 0)
    return _amounts(
        out.elements * (multiplications + additions),
        out.elements * (multiplications + (bias is not None)),
        x.elements + x.shape[0] * parameters,
        out.elements,
        x.item_size,
    )


def _linear(operation: Operation) -> Amounts | None:
    """MAdd: 2 features - 1 an output; Flops: features an output; weights are read again for each row."""
    x = operation.tensor("mat1") or operation.tensor("self")
    weight, bias = operation.tensor("mat2"), operation.tensor("self") if operation.name == "addmm" else None
    if x is None or weight is None:
        return None
    rows, features = x.shape
    outputs = weight.shape[1]
    parameters = weight.elements + (bias.elements if bias is not None else 0)
    return _amounts(
        rows * outputs * (2 * features - 1),
        rows * features * outputs,
        rows * (features + parameters),
        rows * outputs,
        x.item_size,
    )


def _bilinear(operation: Operation) -> Amounts | None:
    """MAdd: 2 (left right + right) - 1 an output; no Flops."""
    x, (outputs, left, right) = _first(operation), operation.inputs[1].shape
    multiplications = left * right + right  # x W, then times y
    madd = math.prod(x.shape[:-1]) * outputs * (2 * multiplications - 1)
    return _amounts(madd, None, None, None, x.item_size)


def _batch_norm(operation: Operation) -> Amounts | None:
    """MAdd: 4 an element; Flops: 2 an element, 1 without weight and bias; reads 2 C a sample."""
    x = _first(operation)
    if len(x.shape) != 4:
        return None
    affine = operation.tensor("weight") is not None
    read = x.elements + 2 * x.shape[0] * x.shape[1]
    return _amounts(4 * x.elements, x.elements * (2 if affine else 1), read, x.elements, x.item_size)


def _pool(additions_apart: int) -> Callable[[Operation], Amounts | None]:
    def amounts(operation: Operation) -> Amounts | None:
        x, out = _first(operation), _out(operation)
        if len(x.shape) != 4:
            return None
        return _amounts(
            out.elements * (window(operation, 2) - additions_apart), x.elements, x.elements, out.elements, x.item_size
        )

    amounts.__doc__ = f"MAdd: k^2{' - 1' * bool(additions_apart)} an output; Flops: 1 an element of the input."
    return amounts


def _elementwise(madd: bool) -> Callable[[Operation], Amounts | None]:
    def amounts(operation: Operation) -> Amounts | None:
        x = _first(operation)
        return _amounts(x.elements if madd else None, x.elements, x.elements, x.elements, x.item_size)

    amounts.__doc__ = f"{'MAdd and ' * madd}Flops: 1 an element."
    return amounts


def _prelu(operation: Operation) -> Amounts | None:
    """Flops: 1 an element; the slopes are read again for each sample."""
    x, weight = _first(operation), operation.tensor("weight")
    slopes = x.shape[0] * (weight.elements if weight is not None else 0)
    return _amounts(None, x.elements, x.elements + slopes, x.elements, x.item_size)


def _softmax(operation: Operation) -> Amounts | None:
    """MAdd: 3 n - 1 a sample (exp n, add n - 1, divide n); no Flops."""
    x = _first(operation)
    if len(x.shape) < 2:
        return None
    return _amounts(3 * x.elements - x.shape[0], None, None, None, x.item_size)


def _upsample(operation: Operation) -> Amounts | None:
    """Flops: 1 a place of the output, channels left out."""
    x, out = _first(operation), _out(operation)
    return _amounts(None, out.shape[0] * math.prod(out.shape[2:]), None, None, x.item_size)


RULES: Mapping[str, Callable[[Operation], Amounts | None]] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "_trilinear": _bilinear,
    "batch_norm": _batch_norm,
    "max_pool2d": _pool(1),
    "avg_pool2d": _pool(0),
    "relu": _elementwise(madd=True),
    "hardtanh": _elementwise(madd=True),  # ReLU6
    "elu": _elementwise(madd=False),
    "leaky_relu": _elementwise(madd=False),
    "_prelu_kernel": _prelu,
    "softmax": _softmax,
    **dict.fromkeys(
        (f"{kind}{d}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)), _upsample
    ),
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"), _upsample
    ),
}


def price(operation: Operation) -> Price:
    """Price one operation of a leaf module as torchstat 0.0.7 prices the module."""
    rule = RULES.get(operation.name) or RULES.get(operation.name.removesuffix("_"))
    try:
        amounts = rule(operation) if rule else None
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return UNKNOWN  # not the arguments that the rule knows: another version's, or a damaged ledger's
    if amounts is not None:
        return Price(State.PRICED, amounts)
    ours = full_price(operation).state
    return {State.FREE: FREE, State.UNKNOWN: UNKNOWN}.get(ours, EXCLUDED)


def _output_mebibytes(call: ModuleCall) -> float:
    """Return the size of the first output in MiB, at 4 bytes an element whatever its dtype (torchstat's choice)."""
    return math.prod(call.outputs[0]) * 4 / 2**20 if call.outputs else 0.0


TORCHSTAT = Convention(
    name="torchstat",
    summary="columns and arithmetic of torchstat 0.0.7, leaf modules only",
    quantities=(
        Quantity("madd", "MAdd", "", "multiplications and additions, counted apart"),
        Quantity("flops", "Flops", "", "torchstat's Flops: multiply-accumulates of contractions, elements elsewhere"),
        Quantity("mem_read_b", "MemRead(B)", "B", "bytes of input and parameters, parameters again for each sample"),
        Quantity("mem_write_b", "MemWrite(B)", "B", "bytes of output"),
        Quantity("mem_rw_b", "MemR+W(B)", "B", "MemRead + MemWrite"),
    ),
    price=price,
    forward_only=True,
    of_calls={Quantity("memory_mb", "memory(MB)", "MiB", "output, 4 bytes an element"): _output_mebibytes},
    leaves_only=True,
    exact=True,
    notes=("torchstat prints the last layer's reads and writes as the total; these are the sums",),
)
