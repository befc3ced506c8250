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


class Interrupts:
    """What becomes of a keyboard interrupt: it is held back, but where it is let through; later ones are held again."""

    def __init__(self, before: Any) -> None:
        self._before = before  # the handler that is there without this
        self._is_open = False
        self.is_waiting = False  # one is held back

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Let an interrupt end the block, also one that has been held back before."""
        self._is_open = True
        try:
            if self.is_waiting:
                self.is_waiting = False
                signal.raise_signal(signal.SIGINT)
            yield
        finally:
            self._is_open = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take an interrupt."""
        if not self._is_open:
            self.is_waiting = True
            return
        self._is_open = False  # what it ends is put back without another one
        if callable(self._before):
            self._before(number, frame)
            self._is_open = True  # it did not end the block
        else:  # the process goes
            _handle(_INTERRUPT, self._before)
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def uninterrupted() -> Iterator[Interrupts]:
    """Hold a keyboard interrupt back until the block is done: half a model put back would be no model.

    Only the main thread gets interrupts; in others, and where they are ignored, this does nothing.
    """
    before = _handler(_INTERRUPT) if threading.current_thread() is threading.main_thread() else None
    interrupts = Interrupts(before)
    if before is None or before == signal.SIG_IGN:
        yield interrupts
        return
    _handle(_INTERRUPT, interrupts.handle)
    try:
        yield interrupts
    finally:
        _handle(_INTERRUPT, before)
        if interrupts.is_waiting:
            signal.raise_signal(signal.SIGINT)
