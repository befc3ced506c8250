"""Whole operations that arrive as overloads of ATen, where whole.py's functions were not called.

An exported graph calls `torch.ops.aten.lstm.input`, which a function mode sees. In inference mode the dispatch mode
gets it whole. TorchScript calls it from C++, where torch takes it apart before any mode sees it: for that a kernel of
ours stands in front of torch's own while a run with scripted modules lasts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchledger.capture import whole
from torchledger.capture.operations import overloads
from torchledger.capture.recorder import Recorder

_FUNCTIONS: dict[Any, Callable[..., Any]] = overloads(
    {
        "scaled_dot_product_attention.default": whole.attention,
        "dropout.default": whole.dropout_kernel("dropout", in_place=False),
        "dropout_.default": whole.dropout_kernel("dropout", in_place=True),
        "feature_dropout.default": whole.dropout_kernel("feature_dropout", in_place=False),
        "feature_dropout_.default": whole.dropout_kernel("feature_dropout", in_place=True),
        "_pad_packed_sequence.default": whole.pad_packed_sequence,
        "one_hot.default": whole.one_hot,
        **{
            f"{name}.{form}": whole.recurrent(name)
            for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
            for form in ("input", "data")
        },
    }
)


def _book(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunction():  # the mode would answer that a meta tensor lies elsewhere
        return _FUNCTIONS[func](recorder, functools.partial(_taken_apart, func), *args, **kwargs)


WHOLE = dict.fromkeys(_FUNCTIONS, _book)  # takes the recorder, the overload and its arguments


def _taken_apart(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run torch's own kernel, as its dispatcher does where nothing stands in front of it."""
    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


_JIT: Any = torch.jit


@contextlib.contextmanager
def from_torchscript(recorder: Recorder, devices: Iterable[str]) -> Iterator[None]:
    """Book whole what TorchScript runs on tensors that lie on `devices`, in this thread."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        for func in WHOLE:
            for key in {_KEYS[device] for device in devices if device in _KEYS}:
                library.impl(func, functools.partial(_kernel, recorder, func), key)
        # By what a graph was run with before, its optimiser makes other operations of it.
        with _JIT.optimized_execution(False):
            yield
    finally:
        library._destroy()


_KEYS = {"meta": "AutogradMeta", "cpu": "AutogradCPU", "cuda": "AutogradCUDA", "mps": "AutogradMPS"}


def reads_lists(module: torch.jit.ScriptModule) -> bool:
    """Whether a scripted module makes lists of tensors, for which it reads memory that a meta tensor has not."""
    graph = getattr(module, "inlined_graph", None)
    return graph is not None and "prim::tolist" in str(graph)


def _kernel(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    if recorder.is_paused or recorder not in _get_current_dispatch_mode_stack():
        return _taken_apart(func, *args, **kwargs)
    return _book(recorder, func, *args, **kwargs)
