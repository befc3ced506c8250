"""Rules of attention and its backward, in all of its kernels' forms.

Two products forward, Q K' and P V, over the full square of scores, causal or masked or not; four backward. Query,
key and value are (.., heads, length, width); the kernels below PyTorch's front door take (batch, length, heads,
width), or sequences of several lengths packed in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torchledger.pricing import rules as r
from torchledger.pricing.backward import masks
from torchledger.record import Operation, TensorInfo

Scores = Callable[[Operation], tuple[int, int]]  # rows of scores, and their length


def _given(operation: Operation, *names: str) -> TensorInfo | None:
    return next((tensor for name in names if (tensor := operation.tensor(name)) is not None), None)


def _result(operation: Operation) -> TensorInfo:
    """Return what comes out forward, or the gradient of it."""
    return _given(operation, "grad_out", "grad_out_") or r.out(operation)


def square(operation: Operation) -> tuple[int, int]:
    """Return rows and columns of (.., heads, length, width), counted where what comes out is: heads and samples
    broadcast."""
    return math.prod(_result(operation).shape[:-1]), r.need(operation, "key").shape[-2]


def packed_square(operation: Operation) -> tuple[int, int]:
    """Return rows and columns of (batch, length, heads, width). Lengths of packed sequences are values: every row
    sees as many keys as the longest sequence has."""
    query, key = r.need(operation, "query"), r.need(operation, "key")
    rows = math.prod(query.shape[:-1])
    if _given(operation, "cum_seq_k", "cu_seqlens_k") is None:
        return rows, key.shape[-3]
    longest = operation.arguments.get("max_k", operation.arguments.get("max_seqlen_k"))
    return rows, longest if isinstance(longest, int) and longest else key.shape[-3]


def forward_macs(scores: Scores) -> r.Formula:
    """Return Q K' and P V over the full square: widths E and Ev for each score."""

    def macs(operation: Operation) -> int:
        rows, columns = scores(operation)
        return rows * columns * (r.need(operation, "query").shape[-1] + r.need(operation, "value").shape[-1])

    return macs


def forward_flops(scores: Scores) -> r.Formula:
    """Return 2 macs, one for the scale and 5 S - 2 a row for softmax; one for the mask, two for dropout, an element
    of it."""

    def flops(operation: Operation) -> int:
        rows, columns = scores(operation)
        masked = _given(operation, "attn_mask", "attn_bias", "bias") is not None
        extra = 1 + masked + 2 * bool(operation.arguments.get("dropout_p"))
        return 2 * forward_macs(scores)(operation) + rows * columns * extra + rows * max(5 * columns - 2, 0)

    return flops


def wanted(operation: Operation) -> tuple[bool, bool, bool, bool]:
    """Return which gradients are wanted: of query, key, value and an added mask."""
    query, key, value, mask = masks(operation, 4)
    return query, key, value, mask


def wants_scores(operation: Operation) -> bool:
    """Whether the gradient goes back through the scores: the value's own does not."""
    query, key, _, mask = wanted(operation)
    return query or key or mask


def backward_macs(scores: Scores) -> r.Formula:
    """Return dV = P' dO and dP = dO V' of width Ev, dQ = dS K and dK = dS' Q of width E: twice the forward's, less
    what nobody wants.

    P is taken as kept. That a flash kernel computes it again, a fifth product, is its choice and not counted: the
    same model costs the same wherever it runs.
    """

    def macs(operation: Operation) -> int:
        rows, columns = scores(operation)
        query, key, value, _ = wanted(operation)
        width, width_of_values = r.need(operation, "query").shape[-1], r.need(operation, "value").shape[-1]
        return rows * columns * (width * (query + key) + width_of_values * (value + wants_scores(operation)))

    return macs


def backward_flops(scores: Scores) -> r.Formula:
    """Return 2 macs; dS = P (dP - sum(P dP)): 4 S - 1 a row; scale 1, dropout 2 a score, where the scores have a
    gradient; an added mask takes nothing."""

    def flops(operation: Operation) -> int:
        rows, columns = scores(operation)
        if not wants_scores(operation):
            return 2 * backward_macs(scores)(operation)
        dropped = 2 * bool(operation.arguments.get("dropout_p"))
        softmax = max(rows * (4 * columns - 1), 0) if columns else 0
        return 2 * backward_macs(scores)(operation) + rows * columns * (1 + dropped) + softmax

    return flops


INPUTS = ("query", "key", "value", "attn_mask", "attn_bias", "bias")


def gradient_bytes_read(operation: Operation) -> int:
    """Gradient, query, key, value, mask; no value where its own gradient alone is wanted."""
    names = INPUTS if wants_scores(operation) else tuple(name for name in INPUTS if name != "value")
    return r.bytes_of("grad_out", "grad_out_", *names)(operation)


def gradients_bytes(operation: Operation) -> int:
    """Gradients of query, key and value, and of an added mask."""
    return sum(output.tensor.distinct_bytes for output in operation.outputs[:4])


def _table() -> dict[str, r.Rule]:
    forward = "2 macs, scale 1 a score, softmax 5 S - 2 a row, mask 1 a score, dropout 2 a score"
    backward = (
        "four products, dV = P' dO, dP = dO V', dQ = dS K, dK = dS' Q: twice the forward's macs, less what nobody "
        "wants; 2 macs, softmax 4 S - 1 a row, scale 1 a score, dropout 2 a score; scores are taken as kept, not "
        "computed again"
    )
    table: dict[str, r.Rule] = {}
    kinds: tuple[tuple[str, str, Scores, str], ...] = (
        ("scaled_dot_product_attention", "scaled_dot_product_attention_backward", square, ""),
        ("_cudnn_attention_forward", "_cudnn_attention_backward", square, ""),
        (
            "_flash_attention_forward _efficient_attention_forward",
            "_flash_attention_backward _efficient_attention_backward",
            packed_square,
            "; packed sequences are as long as the longest",
        ),
        (
            "higher_order::flex_attention",
            "higher_order::flex_attention_backward",
            square,
            "; what score_mod and mask_mod compute is not seen",
        ),
    )
    for forwards, backwards, scores, note in kinds:
        made = r.rule(
            forward + note,
            forward_flops(scores),
            forward_macs(scores),
            read=r.bytes_of(*INPUTS, said="query, key, value, mask"),
            primary=1,
        )
        back = r.Rule(
            backward + note,
            backward_macs(scores),
            backward_flops(scores),
            gradient_bytes_read,
            gradients_bytes,
            primary=0,
        )
        table |= dict.fromkeys(forwards.split(), made) | dict.fromkeys(backwards.split(), back)
    return table


RULES: Mapping[str, r.Rule] = _table()
