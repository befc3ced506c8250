"""Holding a keyboard interrupt back while the user's model is taken apart or put together."""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_INTERRUPT = int(signal.SIGINT)
# Without making enumerations of numbers, which takes longer than all else here.
_handler: Callable[[int], Any] = inspect.unwrap(signal.getsignal)
_handle: Callable[[int, Any], Any] = inspect.unwrap(signal.signal)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a keyboard interrupt back until the block is done: half a model put back would be no model.

    Only the main thread gets interrupts; in others, and where they are ignored, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handler(_INTERRUPT)
    if before is None or before == signal.SIG_IGN:
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    _handle(_INTERRUPT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        _handle(_INTERRUPT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)
