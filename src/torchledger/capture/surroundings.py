"""What is at work around a call: where that is nothing out of the ordinary, an earlier call can answer for it."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.overrides
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


_HOME = os.path.dirname(torch.__file__)


def is_of_torch(function: Any) -> bool:
    """Whether a function or method is torch's own: made in C, or in a file of torch's."""
    code = getattr(function, "__code__", None)
    return code is None or str(code.co_filename).startswith(_HOME)


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
        self.may_answer = is_alone and self._recorder.replays_calls and not torch.is_grad_enabled()

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
            and not _is_tracing()
        )
