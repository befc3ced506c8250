"""Entering torch's modes so that they are off afterwards, whatever forward did to the stack of modes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch.overrides
import torch.utils._python_dispatch as dispatch


@contextlib.contextmanager
def entered(function_mode: Any, dispatch_mode: Any) -> Iterator[None]:
    """Hold both modes; on the way out take off what forward left above them."""
    with (
        _on_top(function_mode, torch.overrides._get_current_function_mode_stack, torch.overrides._pop_mode),
        _on_top(dispatch_mode, dispatch._get_current_dispatch_mode_stack, dispatch._pop_mode),
    ):
        yield


@contextlib.contextmanager
def _on_top(mode: Any, stack: Callable[[], list[Any]], pop: Callable[[], Any]) -> Iterator[None]:
    mode.__enter__()
    try:
        yield
    finally:
        while any(other is mode for other in stack()) and stack()[-1] is not mode:
            pop()
        if stack() and stack()[-1] is mode:
            mode.__exit__(None, None, None)
