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
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from torchledger.capture.operations import tensor_info
from torchledger.capture.recorder import FailedOperation, Recorder
from torchledger.inputs import tensors_in


class FrontDoor(TorchFunctionMode):
    """Send the functions of a small table to the recorder whole; let all others through."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.failure: FailedOperation | None = None
        self.saw_autocast = False
        self.saw_move = False  # to a device by name, such as x.cuda()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.recorder.autocast = torch._C._is_any_autocast_enabled()
        self.saw_autocast |= self.recorder.autocast
        special = _TABLE.get(func)
        try:
            return func(*args, **kwargs) if special is None else special(self, func, *args, **kwargs)
        except Exception as error:
            if self.failure is None or self.failure.error is not error:
                self.failure = self._failed(error, func, args, kwargs)
            raise

    def _failed(self, error: Exception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FailedOperation:
        tensors = tensors_in((args, kwargs))
        strided = [t for t in tensors if not is_lazy(t) and t.layout == torch.strided]
        infos = tuple(tensor_info(tensor) for tensor in strided)
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
    given = {"dropout_p": dropout_p, "is_causal": is_causal, **options}
    arguments = {name: _plain(value) for name, value in given.items()}
    run = functools.partial(func, query, key, value, attn_mask, dropout_p, is_causal, **options)
    if query.is_meta:
        fits = _attention_fits(query, key, value, attn_mask, is_causal, bool(options.get("enable_gqa")))
        run = functools.partial(_fused_layout, query, value, None if fits else run)
    return door.recorder.whole("scaled_dot_product_attention", run, tensors, arguments)


def _attention_fits(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, gqa: bool
) -> bool:
    """Whether the shapes are those that attention takes: heads of keys and values may divide the query's (`gqa`)."""
    q, k, v = query.shape, key.shape, value.shape
    if len({query.dtype, key.dtype, value.dtype}) > 1 or not len(q) == len(k) == len(v) >= 2:
        return False
    if q[-1] != k[-1] or k[:-1] != v[:-1] or (mask is not None and is_causal):
        return False
    same_batch = q[:-3] == k[:-3] and k[-3] and q[-3] % k[-3] == 0 if gqa and len(q) > 3 else q[:-2] == k[:-2]
    if mask is None or not same_batch:
        return bool(same_batch)
    scores = (*q[:-1], k[-2])
    sizes = zip(reversed(mask.shape), reversed(scores), strict=False)
    return mask.dtype in (torch.bool, query.dtype) and mask.dim() <= len(scores) and all(a in (1, b) for a, b in sizes)


def _fused_layout(query: torch.Tensor, value: torch.Tensor, run: Callable[[], torch.Tensor] | None) -> torch.Tensor:
    """Return what the fused kernels return: laid out as the query is, so that joining the heads moves nothing.

    `run` runs torch's own function, for its error or for a case that is out of the ordinary.
    """
    shape = (*query.shape[:-1], value.shape[-1]) if run is None else run().shape
    if shape == query.shape:
        return torch.empty_like(query)
    made = query.new_empty((*shape[:-3], shape[-2], shape[-3], shape[-1])) if len(shape) > 2 else query.new_empty(shape)
    return made.transpose(-3, -2) if len(shape) > 2 else made


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
        if input.is_meta and name == "dropout" and input.is_floating_point():
            run = functools.partial(_same, input, inplace)
        return door.recorder.whole(f"{name}_" if inplace else name, run, {"input": input}, {"p": _plain(p)})

    return dropout


def _plain(value: Any) -> object:
    """Return a number as Python has it: numpy's and a tensor's own are no JSON."""
    return value if value is None or isinstance(value, (bool, int)) else float(value)


def _same(input: torch.Tensor, inplace: bool) -> torch.Tensor:
    """Return what an elementwise operation returns."""
    return input if inplace else torch.empty_like(input)


def _dropout_kernel(name: str) -> Callable[..., Any]:
    def dropout(door: FrontDoor, func: Callable[..., Any], input: torch.Tensor, p: float, train: bool) -> Any:
        run = functools.partial(func, input, p, train)
        if not train or not 0 < p <= 1 or not input.numel():
            return run()
        return door.recorder.whole(name, run, {"input": input}, {"p": _plain(p)})

    return dropout


def _set_item(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, index: Any, value: Any) -> Any:
    """Write a number into a slice as the CPU does: on meta, torch would make a tensor of it first and copy that."""
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)
    if tensor.is_meta and plain and isinstance(value, (bool, int, float)):
        tensor[index].fill_(value)
        return None
    return func(tensor, index, value)


def _new_tensor(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a constant; torch copies its values without an operation."""
    made = func(*args, **kwargs)
    if made.is_meta:
        door.recorder.know([made])
    return made


def _to(door: FrontDoor, func: Callable[..., Any], x: torch.Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """Convert, but do not move: the model lives on one device, and what runs here is on meta wherever that is."""
    if not x.is_meta:
        return func(x, *args, **kwargs)
    device = kwargs.pop("device", None)
    other = kwargs.pop("tensor", kwargs.pop("other", None))
    if other is not None:
        args = (other, *args)
    if args and isinstance(args[0], (torch.device, str, int)):
        device, *args = args  # type: ignore[assignment]
    elif args and isinstance(args[0], torch.Tensor):
        args = (args[0].dtype, *args[1:])
    if device is None:
        return func(x, *args, **kwargs)
    door.saw_move |= torch.device(device).type != "meta"
    if args and args[0] is None:
        args = args[1:]
    if args and not isinstance(args[0], torch.dtype):  # to(device, non_blocking, copy) has no dtype
        args = (x.dtype, *args)
    return func(x, *args, **kwargs) if args or kwargs else x


def _move(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Leave the tensor where it is."""
    if not tensor.is_meta:
        return func(tensor, *args, **kwargs)
    door.saw_move = True
    return tensor


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
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.new_tensor: _new_tensor,
    torch.tensor: _new_tensor,
    torch.as_tensor: _new_tensor,
    torch.asarray: _new_tensor,
    torch.Tensor.to: _to,
    torch.Tensor.cpu: _move,
    torch.Tensor.cuda: _move,
    F.dropout: _dropout("dropout"),
    F.dropout1d: _dropout("feature_dropout"),
    F.dropout2d: _dropout("feature_dropout"),
    F.dropout3d: _dropout("feature_dropout"),
    torch.dropout: _dropout_kernel("dropout"),
    torch.dropout_: _dropout_kernel("dropout_"),
    torch.feature_dropout: _dropout_kernel("feature_dropout"),
    torch.feature_dropout_: _dropout_kernel("feature_dropout_"),
}
