"""Holding a keyboard interrupt back while the user's model is taken apart or put together."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """What becomes of a keyboard interrupt: it is held back, but where it is let through; later ones are held again."""

    def __init__(self, before: Any) -> None:
        self._before = before  # the handler that is there without this
        self._is_open = False
        self.is_waiting = False  # one is held back

    def let_through(self) -> Interrupts:
        """Return a context that an interrupt may end, also one that has been held back before."""
        return self

    def __enter__(self) -> None:
        self._is_open = True
        if self.is_waiting:
            self.is_waiting = False
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                self._is_open = False  # the block does not begin
                raise

    def __exit__(self, *_: object) -> None:
        self._is_open = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take an interrupt."""
        if not self._is_open:
            self.is_waiting = True
        elif callable(self._before):
            self._before(number, frame)
        else:  # the process goes
            signal.signal(signal.SIGINT, self._before)
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def uninterrupted() -> Iterator[Interrupts]:
    """Hold a keyboard interrupt back until the block is done: half a model put back would be no model.

    Only the main thread gets interrupts; in others, and where they are ignored, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    interrupts = Interrupts(before)
    if before is None or before is signal.SIG_IGN:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupts.is_waiting:
            signal.raise_signal(signal.SIGINT)
