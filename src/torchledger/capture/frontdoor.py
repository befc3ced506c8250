"""The small function mode: what the dispatch mode cannot see, because torch takes it apart first or answers it itself.

Attention and dropout are booked whole here, under the same name whatever kernels the device would choose.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from torchledger.capture.recorder import FailedOperation, Recorder
from torchledger.inputs import tensors_in
from torchledger.record import TensorInfo


class FrontDoor(TorchFunctionMode):
    """Send the functions of a small table to the recorder whole; let all others through."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.failure: FailedOperation | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        special = _TABLE.get(func)
        try:
            return func(*args, **kwargs) if special is None else special(self, func, *args, **kwargs)
        except Exception as error:
            if self.failure is None or self.failure.error is not error:
                self.failure = self._failed(error, func, args, kwargs)
            raise

    def _failed(self, error: Exception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FailedOperation:
        tensors = tensors_in((args, kwargs))
        strided = [t for t in tensors if t.layout == torch.strided]
        infos = tuple(
            TensorInfo(tuple(t.shape), tuple(t.stride()), str(t.dtype).removeprefix("torch.")) for t in strided
        )
        name = getattr(func, "__name__", str(func))
        arguments: dict[str, object] = {}
        if name in ("view", "reshape"):
            given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
            arguments["size"] = tuple(given) or tuple(kwargs.get("shape", ()))
        return FailedOperation(error, name, infos, arguments, self.recorder.scopes.current)


def _attention(
    door: FrontDoor,
    func: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    tensors = {"query": query, "key": key, "value": value, "attn_mask": attn_mask}
    arguments = {"dropout_p": dropout_p, "is_causal": is_causal, **options}
    run = functools.partial(func, query, key, value, attn_mask, dropout_p, is_causal, **options)
    return door.recorder.whole("scaled_dot_product_attention", run, tensors, arguments)


def _dropout(name: str) -> Callable[..., Any]:
    def dropout(
        door: FrontDoor,
        func: Callable[..., Any],
        input: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Any:
        run = functools.partial(func, input, p, training, inplace)
        if not training or not 0 < p <= 1 or not input.numel():
            return run()
        return door.recorder.whole(f"{name}_" if inplace else name, run, {"input": input}, {"p": p})

    return dropout


def _dropout_kernel(name: str) -> Callable[..., Any]:
    def dropout(door: FrontDoor, func: Callable[..., Any], input: torch.Tensor, p: float, train: bool) -> Any:
        run = functools.partial(func, input, p, train)
        if not train or not 0 < p <= 1 or not input.numel():
            return run()
        return door.recorder.whole(name, run, {"input": input}, {"p": p})

    return dropout


def _multi_head_attention(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the Python body with this mode on, so that the attention inside it is seen."""
    with door:
        return _multi_head_attention_forward(*args, **kwargs)


# The same code, but it never hands itself to a mode (which would end here again, without end).
_multi_head_attention_forward = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda *_: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)

_TABLE: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.dropout: _dropout("dropout"),
    F.dropout1d: _dropout("feature_dropout"),
    F.dropout2d: _dropout("feature_dropout"),
    F.dropout3d: _dropout("feature_dropout"),
    torch.dropout: _dropout_kernel("dropout"),
    torch.dropout_: _dropout_kernel("dropout_"),
    torch.feature_dropout: _dropout_kernel("feature_dropout"),
    torch.feature_dropout_: _dropout_kernel("feature_dropout_"),
}
