"""Count the macs of a real forward on the CPU: a reference that shares no formula with torchledger.

torch's own FlopCounterMode counts two flops a multiply-accumulate of matrix products, convolutions and the attention of
GPUs, and nothing of other operations. `LACKING` has what it leaves out and the CPU runs, each formula derived here from
the sizes. What looks like a contraction and has no formula in either raises, so that the reference is never too small
in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

DRAWN = 1 << 26  # elements: larger parameters are tables of words, of which a run reads a few rows
SPREAD = 0.02  # standard deviation of what is drawn for a parameter, as most models start with

Size = tuple[int, ...]


def _attention(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    """Each query is multiplied with each key, and the weights with each value: D + D' macs a pair, masked or not."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(x: Size, weights: Size, recurrent: Size, *_: Any, **__: Any) -> int:
    """One layer in one direction: at each step of each sample its input and its state go through all gates."""
    return 2 * math.prod(x[:-1]) * (math.prod(weights) + math.prod(recurrent))


def _grouped(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *_: Any, **__: Any) -> int:
    """Rows of `a` up to an offset go to one matrix of `b`, those up to the next to another."""
    if offs is None:  # as many matrices in both
        return 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[-1]
    within = int(offs[-1])
    if a.dim() == 2 and b.dim() == 3:  # rows
        return 2 * within * a.shape[1] * b.shape[2]
    if a.dim() == 3:  # columns of b
        return 2 * a.shape[1] * a.shape[2] * within
    return 2 * a.shape[0] * within * b.shape[1]  # what is summed over


def _distances(x: Size, y: Size, p: float, *_: Any, **__: Any) -> int:
    """Euclidean distances come of one product of all pairs; other norms have none."""
    batch = math.prod(torch.broadcast_shapes(x[:-2], y[:-2]))
    return 2 * batch * x[-2] * y[-2] * x[-1] if p == 2 else 0


def _batches_added(added: Size, a: Size, b: Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Mark a formula that takes tensors, not sizes alone."""
    formula._get_raw = True  # type: ignore[attr-defined]  # the mark that torch looks for
    return formula


def _lacking() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    table: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "mkldnn_rnn_layer": _recurrent,
        "_grouped_mm": _raw(_grouped),
        "_cdist_forward": _distances,
        "_euclidean_dist": lambda x, y, **_: _distances(x, y, 2.0),
        "mv": lambda a, b, **_: 2 * math.prod(a),
        "addmv": lambda added, a, b, **_: 2 * math.prod(a),
        "dot": lambda a, b, **_: 2 * a[0],
        "vdot": lambda a, b, **_: 2 * a[0],
        "addbmm": _batches_added,
        "_int_mm": lambda a, b, **_: 2 * math.prod(a) * b[1],
        "_addmm_activation": lambda added, a, b, **_: 2 * math.prod(a) * b[1],
    }
    return {getattr(aten, name): formula for name, formula in table.items() if hasattr(aten, name)}


LACKING = _lacking()

# Names of what may multiply and add, and those among them that do not, or whose parts are seen one by one.
_CONTRACTIONS = re.compile(r"mm|mv\b|dot|conv|linear|lstm|gru|rnn|attention|dist|bilinear|einsum|matmul|embedding_bag")
_NONE = re.compile(
    r"upsample|grid_sampl|detach|_convert|conv_tbc_|commit|multinomial|logit|smooth|mkldnn_reorder|unsafe_convert"
    r"|^dist$|comm|summ|drop"
)


class _Whole:
    """Stands for the counter's own tracker, which tells modules apart.

    That one asks what a module returns, and requires gradients, for its graph: a view of a parameter may have none.
    """

    parents = frozenset({"Global"})  # the name of the sum over all

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Seen(TorchDispatchMode):
    """Notes what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: dict[Any, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.packets[func._overloadpacket] = None
        return func(*args, **(kwargs or {}))


def draw(model: nn.Module) -> None:
    """Fill the parameters with small random numbers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() <= DRAWN and parameter.is_floating_point():
                parameter.normal_(0, SPREAD)


def drawn(inputs: Any) -> Any:
    """Return inputs with values in place of those on meta; real ones, which a model reads, stay."""
    return tree_map_only(torch.Tensor, lambda x: 0.1 * torch.randn(x.shape, dtype=x.dtype) if x.is_meta else x, inputs)


def count(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Run the model once, without gradients, and return its macs. Raise LookupError for what has no formula."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel that nothing can see into
    seen = _Seen()
    counter = FlopCounterMode(display=False, custom_mapping=LACKING)
    counter.mod_tracker = _Whole()
    try:
        with torch.no_grad(), counter, seen:
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    missing = [
        packet.__name__
        for packet in seen.packets
        if packet not in flop_registry
        and packet not in LACKING
        and _CONTRACTIONS.search(packet.__name__)
        and not _NONE.search(packet.__name__)
    ]
    if missing:
        raise LookupError(f"no reference for {', '.join(missing)}")
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2
