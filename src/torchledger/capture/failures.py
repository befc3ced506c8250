"""Where an exception was raised, noted on the exception itself.

A model may catch it and go on, as `torch.utils.checkpoint` does each time. Held anywhere else, its traceback would keep
every tensor of its frames alive, and the books would show memory that is free.
"""

from __future__ import annotations

from typing import Any, Literal

Place = Literal["operation", "function", "module"]
_NOTES = "_torchledger_notes"


def note(error: BaseException, place: Place, what: Any) -> None:
    """Note `what` of an exception, unless something nearer to where it was raised has been noted."""
    error.__dict__.setdefault(_NOTES, {}).setdefault(place, what)


def noted(chain: list[BaseException], place: Place) -> tuple[BaseException, Any] | None:
    """Return the first exception of a chain of which something was noted, and that."""
    found = ((error, error.__dict__.get(_NOTES, {}).get(place)) for error in chain)
    return next(((error, what) for error, what in found if what is not None), None)


def forget(chain: list[BaseException]) -> None:
    """Take the notes off: the exception goes on to the user."""
    for error in chain:
        error.__dict__.pop(_NOTES, None)
