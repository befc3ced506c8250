"""What is at work around a call: where that is nothing out of the ordinary, an earlier call can answer for it."""

from __future__ import annotations

import operator
import os
import types
from typing import Any

import torch
import torch.nn.functional as F
import torch.overrides
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext

from torchledger.capture.recorder import Recorder
from torchledger.capture.scopes import Scopes

# Looked up once: each call asks for all of them.
_C = torch._C
_dispatch_modes, _function_modes = _C._len_torch_dispatch_stack, _C._len_torch_function_stack
_any_autocast, _transforms, _is_tracing = (
    _C._is_any_autocast_enabled, _C._functorch.peek_interpreter_stack, _C._get_tracing_state,
)  # fmt: skip
_is_grad_enabled, _is_inference = torch.is_grad_enabled, torch.is_inference_mode_enabled
_FORWARD_HOOKS, _FORWARD_PRE_HOOKS = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks


# They read no values, and write to nothing but their first argument.
_OF_TENSORS = """
    add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ mul mul_ __mul__ __rmul__ __imul__ div div_
    __truediv__ __rtruediv__ __itruediv__ pow __pow__ neg __neg__ rsqrt sqrt exp sigmoid tanh relu relu_ softmax clamp
    matmul __matmul__ __rmatmul__ bmm mean sum view reshape permute transpose t flatten unflatten unsqueeze squeeze
    expand contiguous chunk split roll masked_fill float __getitem__
"""
_OF_TORCH = """
    add sub mul div pow neg rsqrt sqrt exp sigmoid tanh relu relu_ softmax clamp matmul bmm baddbmm addmm mean sum
    reshape permute transpose t flatten unsqueeze squeeze chunk split roll cat stack layer_norm
"""
_OF_NN = """
    linear layer_norm group_norm relu relu6 gelu silu hardswish hardsigmoid hardtanh leaky_relu elu softmax pad conv1d
    conv2d conv3d max_pool2d avg_pool2d adaptive_avg_pool2d scaled_dot_product_attention multi_head_attention_forward
"""
PURE_NAMES: dict[Any, str] = {torch.Tensor: _OF_TENSORS, torch: _OF_TORCH, F: _OF_NN}
# What layers and these call besides.
_CALLED: dict[Any, str] = {
    torch: "adaptive_avg_pool1d batch_norm conv1d conv2d conv3d dropout group_norm",
    F: """
        adaptive_avg_pool1d batch_norm dropout mish relu_ _in_projection _in_projection_packed _mha_shape_check
        _none_or_dtype _canonical_mask
    """,
}
_HOME = os.path.dirname(torch.__file__) + os.sep
_OF_C = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def own_of(home: Any, names: str) -> list[Any]:
    """Return the functions of these names that a module or class has now; a torch that lacks one goes without it."""
    return [getattr(home, name) for name in names.split() if hasattr(home, name)]


def is_of_torch(function: Any) -> bool:
    """Whether a function or method is torch's own: made in C, or in a file of torch's."""
    if isinstance(function, _OF_C):
        return True
    return isinstance(function, types.FunctionType) and function.__code__.co_filename.startswith(_HOME)


# A module or class, what takes functions out of it, and these as they are now.
_FUNCTIONS = [
    (home, operator.attrgetter(*found), tuple(getattr(home, name) for name in found))
    for home, names in [*PURE_NAMES.items(), *_CALLED.items()]
    if (found := [name for name in names.split() if hasattr(home, name)])
]
_WAS_UNPATCHED = all(is_of_torch(function) for *_, own in _FUNCTIONS for function in own)


def is_unpatched() -> bool:
    """Whether torch's functions are its own: somebody may have put others in their place."""
    if not _WAS_UNPATCHED:
        return False
    try:
        return not any(False in map(operator.is_, take(home), own) for home, take, own in _FUNCTIONS)
    except AttributeError:
        return False


class Surroundings:
    """What one run finds around a call."""

    def __init__(self, recorder: Recorder, scopes: Scopes) -> None:
        self._recorder = recorder
        self._scopes = scopes
        self.function_modes = 0  # beside the front door
        self.may_answer = False

    def begin(self) -> None:
        """Look at what is there when the run begins, its own modes entered: answers are for inference on meta alone."""
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        self.function_modes = len(modes) - 1
        # The front door is the innermost; what another one makes of functions is seen where they run.
        is_alone = all(isinstance(mode, DeviceContext) for mode in modes[:-1])
        self.may_answer = is_alone and is_unpatched() and self._recorder.replays_calls and not torch.is_grad_enabled()

    def are_plain(self, in_front_door: bool) -> bool:
        """Whether nothing is at work now that could change what a call does: modes, transforms, hooks.

        `in_front_door`: asked from the front door itself, which is no mode then.
        """
        return (
            self.may_answer
            and _dispatch_modes() == 1
            and _function_modes() + in_front_door == self.function_modes + 1
            and not _any_autocast()
            and not _is_grad_enabled()
            and not _is_inference()
            and self._recorder.replays_calls
            and len(_FORWARD_HOOKS) == 1
            and len(_FORWARD_PRE_HOOKS) == 1
            and self._scopes.is_inside
            and _transforms() is None
            and forward_ad._current_level < 0
            and not _is_tracing()
        )
