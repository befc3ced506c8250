"""Convention `fvcore`: the GMACs and activation counts that timm and Detectron2 publish.

fvcore 0.1.5 counts in a TorchScript trace, one entry for each function that a model calls (`linear`, `matmul`,
`einsum`, `batch_norm`). The ledger holds what these come down to (`addmm`, `mm`, `bmm`), and the same totals follow
from there. "Flops" are its name for multiply-accumulates, with rates of its own for norms, adaptive pools and
upsampling; an activation is an element that a contraction puts out. What it has no handle for it leaves out: here that
is excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchledger.pricing import rules as r
from torchledger.pricing.attention import forward_macs, square
from torchledger.pricing.convention import EXCLUDED, FREE, UNKNOWN, Convention, Price, Quantity, State
from torchledger.pricing.full import price as full_price
from torchledger.record import Operation

Amounts = dict[str, int]
Rule = Callable[[Operation], Amounts | None]  # None: outside of what fvcore counts


def _contraction(macs: r.Formula) -> Rule:
    def amounts(operation: Operation) -> Amounts:
        """As under `full`; activations: the output."""
        return {"macs": macs(operation), "activations": r.out(operation).elements}

    return amounts


def _attention(operation: Operation) -> Amounts:
    """Unfused: Q K^T and P V over the full square; activations: the scores and the output."""
    rows, columns = r.out(operation), r.need(operation, "key").shape[-2]
    scores = rows.elements // rows.shape[-1] * columns if rows.shape[-1] else 0
    return {"macs": forward_macs(square)(operation), "activations": scores + rows.elements}


def _norm(operation: Operation) -> Amounts:
    """5 an element of the input, 4 without weight."""
    affine = operation.tensor("weight") is not None
    return {"macs": r.first(operation).elements * (5 if affine else 4)}


def _batch_norm(operation: Operation) -> Amounts:
    """Eval: 2 an element, 1 without weight; training (InstanceNorm always): 5 an element, 4 without weight."""
    if operation.arguments.get("training"):
        return _norm(operation)
    affine = operation.tensor("weight") is not None
    return {"macs": r.first(operation).elements * (2 if affine else 1)}


def _per_output(amount: int) -> Rule:
    def amounts(operation: Operation) -> Amounts:
        return {"macs": amount * r.out(operation).elements}

    amounts.__doc__ = f"{amount} an output element."
    return amounts


def _adaptive_pool(operation: Operation) -> Amounts | None:
    """1 an element of the input; none at height 1, as which torch runs `adaptive_avg_pool1d`, left out by fvcore."""
    x = r.first(operation)
    return {"macs": x.elements} if x.shape[-2] > 1 else None


def _mean(operation: Operation) -> Amounts | None:
    """As the pool where it is one, to 1x1: over dimensions (-1, -2), which are kept; no other mean counts.

    torch runs `adaptive_avg_pool2d(x, 1)` as this mean on every device, and its dimensions stand in this order.
    """
    is_pool = operation.arguments.get("dim") == (-1, -2) and operation.arguments.get("keepdim") is True
    return _adaptive_pool(operation) if is_pool else None


RULES: Mapping[str, Rule] = {
    "convolution": _contraction(r.convolution_macs),
    "linear": _contraction(r.matrix_macs_linear),
    **dict.fromkeys(("addmm", "mm", "bmm"), _contraction(r.matrix_macs)),
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "layer_norm": _norm,
    "group_norm": _norm,
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    "upsample_nearest2d": _per_output(1),
    "upsample_bilinear2d": _per_output(4),
    "grid_sampler_2d": _per_output(4),
    "grid_sampler_3d": _per_output(4),
}


def price(operation: Operation) -> Price:
    """Price one operation as fvcore counts the function that it comes from: macs, activations."""
    rule = RULES.get(operation.name)
    try:
        amounts = rule(operation) if rule else None
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return UNKNOWN  # not the arguments that the rule knows: another version's, or a damaged ledger's
    if amounts is not None:
        return Price(State.PRICED, amounts)
    ours = full_price(operation).state
    return {State.FREE: FREE, State.UNKNOWN: UNKNOWN}.get(ours, EXCLUDED)


FVCORE = Convention(
    name="fvcore",
    summary="the GMACs and activation counts of fvcore 0.1.5, which timm and Detectron2 publish",
    quantities=(
        Quantity("macs", "macs", "", "fvcore's flops: multiply-accumulates of contractions, and its rates for norms"),
        Quantity("activations", "activations", "", "elements that contractions put out"),
    ),
    price=price,
    forward_only=True,
    of_calls={},
)
