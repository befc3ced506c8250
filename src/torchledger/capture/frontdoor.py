"""The small function mode: what the dispatch mode cannot see, because torch takes it apart first or answers it itself.

What is booked whole, under one name whatever kernels the device would choose, is in whole.py.
"""

from __future__ import annotations

import contextlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._higher_order_ops.flex_attention import flex_attention
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from torchledger.capture import overloads, whole
from torchledger.capture.autocast import Autocast
from torchledger.capture.failures import note
from torchledger.capture.functions import PURE, Functions
from torchledger.capture.operations import tensor_info
from torchledger.capture.recorder import FailedOperation, Recorder
from torchledger.inputs import tensors_in

_CPU = torch.device("cpu")


class FrontDoor(TorchFunctionMode):
    """Send the functions of a small table to the recorder whole; let all others through."""

    def __init__(
        self, recorder: Recorder, device: torch.device, autocast: Autocast, functions: Functions | None = None
    ) -> None:
        """`functions` answers calls of what is pure, if any does."""
        super().__init__()
        self.recorder = recorder
        self.functions = functions
        self.autocast = autocast
        self.device = device  # where the model lives, and where its code shall think that it does
        self.saw_move = False  # to a device by name, such as x.cuda()
        # The model is taken to live on a GPU, and there is none: torch would look for it before a mode is asked.
        self._stands_in = device.type == "cuda" and not torch.cuda.is_available()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch._C._is_any_autocast_enabled() and self.autocast.device is None:
            if self.functions is not None and func in PURE:
                return self.functions.call(func, args, kwargs or {}, self._answer)
            if kwargs or func in _TABLE:
                return self._answer(func, args, kwargs or {})
            try:
                return func(*args)
            except Exception as error:
                note(error, "function", self._failed(func, args, {}))
                raise
        kwargs = kwargs or {}
        with self.casting():
            return self._answer(func, args, kwargs)

    @contextlib.contextmanager
    def casting(self) -> Iterator[None]:
        """Run what comes with the casts that autocast makes at this moment."""
        recorder = self.recorder
        before = recorder.autocast, recorder.keeps_dtypes
        with self.autocast.as_it_is_now():
            recorder.autocast, recorder.keeps_dtypes = True, self.autocast.is_unmodelled()
            try:
                yield
            finally:
                recorder.autocast, recorder.keeps_dtypes = before

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._stands_in and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _CPU}
        special = _TABLE.get(func)
        try:
            return func(*args, **kwargs) if special is None else special(self, func, *args, **kwargs)
        except Exception as error:
            note(error, "function", self._failed(func, args, kwargs))
            raise

    def _failed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FailedOperation:
        tensors = tensors_in((args, kwargs))
        strided = [t for t in tensors if not is_lazy(t) and t.layout == torch.strided]
        infos = tuple(tensor_info(tensor) for tensor in strided)
        name = getattr(func, "__name__", str(func))
        arguments: dict[str, object] = {}
        if name in ("view", "reshape"):
            given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
            arguments["size"] = tuple(given) or tuple(kwargs.get("shape", ()))
        return FailedOperation(name, infos, arguments, self.recorder.scopes.current)


def _index_tensors(index: Any) -> Any:
    """Return an index with its lists as tensors: of a list, torch makes one that no mode sees."""
    if isinstance(index, list):
        return torch.tensor(index) if _is_flat(index) else index
    if isinstance(index, tuple):
        return tuple(_index_tensors(part) for part in index)
    return index


def _is_flat(index: list[Any]) -> bool:
    """Whether a list holds numbers alone, to any depth."""
    return bool(index) and all(_is_flat(part) if isinstance(part, list) else isinstance(part, int) for part in index)


def _get_item(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, index: Any) -> Any:
    """Read with lists of places or of bools, whose values stay known."""
    return func(tensor, _index_tensors(index))


def _linear(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Add the bias in place where torch does for plain tensors; under any mode, and on meta, it adds out of place."""
    result = _linear_in_place(door, *args, **kwargs)
    return func(*args, **kwargs) if result is None else result


def _linear_in_place(
    door: FrontDoor, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor | None:
    if bias is None or input.dim() < 3 or weight.dim() != 2 or input.is_contiguous():
        return None  # `addmm` has the bias in it
    input, weight, bias = door.autocast.lowered(input, weight, bias)
    return torch.matmul(input, weight.t()).add_(bias)


def _set_item(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, index: Any, value: Any) -> Any:
    """Write a number into a slice as the CPU does: on meta, torch would make a tensor of it first and copy that."""
    index = _index_tensors(index)
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)
    if tensor.is_meta and plain and isinstance(value, (bool, int, float)):
        target, number = tensor[index], door.recorder.constant(value, tensor.dtype)
        if number is None:
            number = torch.tensor(value, dtype=tensor.dtype)
        if target.dim():
            target.fill_(number)
        else:
            target.copy_(number)
        return None
    return func(tensor, index, value)


def _new_tensor(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a constant; torch copies its values without an operation."""
    is_plain = len(args) == 1 and type(args[0]) in (int, float, bool) and kwargs.keys() <= {"dtype", "device"}
    if is_plain and kwargs.get("device") in (None, "cpu", _CPU):
        number = door.recorder.constant(args[0], kwargs.get("dtype"))
        if number is not None:
            return number
    made = func(*args, **kwargs)
    if made.is_meta:
        door.recorder.know([made])
    return made


def _as_tensor(door: FrontDoor, func: Callable[..., Any], data: Any, *args: Any, **kwargs: Any) -> Any:
    """Take an array of numpy's as it lies: under a mode, torch would copy it."""
    is_array = type(data).__module__ == "numpy" and type(data).__name__ == "ndarray"
    if door.recorder.is_real or not is_array or not kwargs.keys() <= {"dtype", "device"}:
        return _new_tensor(door, func, data, *args, **kwargs)
    made = torch.from_numpy(data)
    dtype = args[0] if args else kwargs.get("dtype")
    return made if dtype in (None, made.dtype) else made.to(dtype)


def _new_tensor_like(door: FrontDoor, func: Callable[..., Any], like: torch.Tensor, data: Any, **kwargs: Any) -> Any:
    """Make a constant whose values stay known: torch would write them to meta where no mode sees them."""
    made = torch.tensor(data, dtype=kwargs.pop("dtype", None) or like.dtype, **{**kwargs, "device": None})
    door.recorder.know([made])
    return made


# Where torch itself asks for a device. A checkpoint compares what it saw where no mode answers with what it sees when
# it runs again; flex_attention has a backward on a GPU alone, and says so: a training step with it is one on a GPU; the
# lengths of a packed sequence lie on the CPU wherever its rows do.
_ASKING: dict[tuple[str, str], Callable[[torch.device], torch.device]] = {
    ("torch.utils.checkpoint", "_default_meta_extractor"): lambda device: device,
    ("torch.nn.attention.flex_attention", "_validate_device"): lambda _: torch.device("cuda"),
    ("torch.nn.utils.rnn", "_packed_sequence_init_args"): lambda _: _CPU,
}


def _device(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor) -> torch.device:
    """Answer where the tensor would lie: code that asks goes another way on meta."""
    device: torch.device = func(tensor)
    if device.type != "meta":
        return device
    asking = sys._getframe(3)  # past this mode's own
    place = (asking.f_globals.get("__name__", ""), asking.f_code.co_name)
    if place == ("torch.amp.autocast_mode", "_cast") and door.autocast.lives_on is None:
        return torch.device(asking.f_locals["device_type"])  # custom_fwd, of a model that goes by any autocast
    answer = _ASKING.get(place)
    return door.device if answer is None else answer(device)


def _lies_on(kind: str) -> Callable[..., bool]:
    def answer(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor) -> bool:
        return _device(door, torch.Tensor.device.__get__, tensor).type == kind

    return answer


def _with_values(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Hand values out where they are known (`tolist`, `numpy`, whose array shares them)."""
    if door.recorder.has_stand_in(tensor):  # from outside of the run, but the run may have written to it
        tensor = door.recorder.stand_in(tensor)
    value = _value(door, tensor, to_write=func is not torch.Tensor.tolist)
    if value is None:
        value = tensor
    with _disable_current_modes() if not value.is_meta else contextlib.nullcontext():  # torch refuses under a mode
        return func(value, *args, **kwargs)


def _item(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor) -> Any:
    """Answer at once where the number is known: an optimizer asks for the steps of each parameter."""
    with torch._C.DisableTorchFunction():
        number = door.recorder.known_item(tensor)
    return func(tensor) if number is None else number


def _value(door: FrontDoor, tensor: torch.Tensor, to_write: bool = False) -> torch.Tensor | None:
    if not tensor.is_meta or tensor.layout != torch.strided:
        return None
    return door.recorder.values_of(tensor, to_write=to_write)


def _tensor_split(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Split at places that are known as at numbers: torch reads a tensor of them in C++."""
    if "tensor_indices_or_sections" in kwargs:
        args = (kwargs.pop("tensor_indices_or_sections"),)
    places = _value(door, args[0]) if args and isinstance(args[0], torch.Tensor) else None
    if places is not None:
        with _disable_current_modes():
            args = (places.tolist(), *args[1:])
    return func(tensor, *args, **kwargs)


def _format(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, form: str) -> str:
    """Write a number that is not known as nan: what is printed changes nothing."""
    if not tensor.is_meta or tensor.dim():
        return str(func(tensor, form))
    value = _value(door, tensor)
    if value is None and not form:
        return str(func(tensor, form))
    return format(math.nan if value is None else value.item(), form)


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
    door.saw_move |= torch.device(device).type not in ("meta", door.device.type)
    if args and args[0] is None:
        args = args[1:]
    if args and not isinstance(args[0], torch.dtype):  # to(device, non_blocking, copy) has no dtype
        args = (x.dtype, *args)
    return func(x, *args, **kwargs) if args or kwargs else x


def _move(door: FrontDoor, func: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Leave the tensor where it is."""
    if not tensor.is_meta:
        return func(tensor, *args, **kwargs)
    door.saw_move |= func.__name__ != door.device.type
    return tensor


def _under_transform() -> bool:
    """Whether torch.vmap or torch.func is at work: torch takes operations apart for them."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _whole(book: Callable[..., Any]) -> Callable[..., Any]:
    def run(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) if _under_transform() else book(door.recorder, func, *args, **kwargs)

    return run


def _attention(
    door: FrontDoor,
    func: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    tensors = door.autocast.lowered(query, key, value, attn_mask)
    if _under_transform():
        return func(*tensors, *args, **kwargs)
    return whole.attention(door.recorder, func, *tensors, *args, **kwargs)


def _recurrent(name: str) -> Callable[..., Any]:
    book = whole.recurrent(name)

    def run(door: FrontDoor, func: Callable[..., Any], *args: Any) -> Any:
        args = tuple(door.autocast.recurrent(name, args))
        return func(*args) if _under_transform() else book(door.recorder, func, *args)

    return run


def _overload(door: FrontDoor, func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func._schema.name.partition("::")[2]
    if name == "scaled_dot_product_attention":
        mask = args[3] if len(args) > 3 else kwargs.pop("attn_mask", None)
        args = (*door.autocast.lowered(*args[:3], mask), *args[4:])
    elif name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        args = tuple(door.autocast.recurrent(name, args))
    return func(*args, **kwargs) if _under_transform() else overloads.WHOLE[func](door.recorder, func, *args, **kwargs)


def _seen_inside(function: Any) -> Callable[..., Any]:
    """Return what runs the Python body of a torch function with this mode on, so that what happens inside is seen.

    The same code, but it never hands itself to a mode (which would end here again, without end).
    """
    unasked = {"has_torch_function": lambda *_: False, "has_torch_function_unary": lambda *_: False}

    def run(door: FrontDoor, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        names = {**function.__globals__, **unasked}  # as they are now: somebody may have patched torch
        body = types.FunctionType(function.__code__, names, argdefs=function.__defaults__)
        body.__kwdefaults__ = function.__kwdefaults__
        with door:
            return body(*args, **kwargs)

    return run


_TABLE: dict[Any, Callable[..., Any]] = {
    **{func: _overload for func in overloads.WHOLE},
    F.scaled_dot_product_attention: _attention,
    flex_attention: _whole(whole.flex_attention),
    F.multi_head_attention_forward: _seen_inside(F.multi_head_attention_forward),
    torch.Tensor.backward: _seen_inside(torch.Tensor.backward),
    torch.autograd.backward: _seen_inside(torch.autograd.backward),
    torch.autograd.grad: _seen_inside(torch.autograd.grad),
    F.linear: _linear,
    torch.Tensor.__getitem__: _get_item,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.__format__: _format,
    torch.tensor_split: _tensor_split,
    torch.Tensor.tensor_split: _tensor_split,
    torch.Tensor.item: _item,
    torch.Tensor.tolist: _with_values,
    torch.Tensor.numpy: _with_values,
    torch.Tensor.__array__: _with_values,
    torch.Tensor.device.__get__: _device,
    torch.Tensor.is_meta.__get__: _lies_on("meta"),  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: _lies_on("cpu"),  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: _lies_on("cuda"),  # type: ignore[attr-defined]
    torch.Tensor.new_tensor: _new_tensor_like,
    torch.tensor: _new_tensor,
    torch.as_tensor: _as_tensor,
    torch.asarray: _as_tensor,
    torch.Tensor.to: _to,
    torch.Tensor.cpu: _move,
    torch.Tensor.cuda: _move,
    F.mish: _whole(whole.mish),
    F.dropout: _whole(whole.dropout("dropout")),
    F.dropout1d: _whole(whole.dropout("feature_dropout")),
    F.dropout2d: _whole(whole.dropout("feature_dropout")),
    F.dropout3d: _whole(whole.dropout("feature_dropout")),
    torch.dropout: _whole(whole.dropout_kernel("dropout", in_place=False)),
    torch.dropout_: _whole(whole.dropout_kernel("dropout", in_place=True)),
    torch.feature_dropout: _whole(whole.dropout_kernel("feature_dropout", in_place=False)),
    torch.feature_dropout_: _whole(whole.dropout_kernel("feature_dropout", in_place=True)),
    torch._VF._pad_packed_sequence: _whole(whole.pad_packed_sequence),
    F.one_hot: _whole(whole.one_hot),
    **{getattr(torch, name): _recurrent(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
