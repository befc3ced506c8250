"""What a user got wrong: one error type, one line, naming the value, the choices and the fix."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path


class UserError(ValueError):
    """Say what the user got wrong, which value it was and what would be right, in one line."""


def close_matches(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the choices nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def check_accepted(name: str, target: Callable[..., object], arguments: Iterable[str]) -> None:
    """Raise `UserError` for arguments that `target` has not, with those that it has; `name` is what it goes by."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unexpected = [argument for argument in arguments if argument not in accepted]
    if unexpected and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        takes = f"it accepts {', '.join(accepted)}" if accepted else "it accepts none"
        raise UserError(
            f"{name!r} takes no argument {', '.join(map(repr, unexpected))}: {takes}."
            f"{close_matches(unexpected[0], accepted)}"
        )


def printable(text: str) -> str:
    r"""Write characters that would move the cursor or hide as escapes.

    >>> printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def raised_at(error: BaseException) -> str:
    """Return ` (file, line N)` for the last line of the user's code that led to the error, or nothing."""
    own = str(Path(__file__).parent) + os.sep
    networks = os.path.join(own, "models") + os.sep
    files = (getattr(sys.modules.get(name), "__file__", None) for name in ("torch", "typer", "click"))
    passed_over = [importlib.__file__, "<frozen", *(str(Path(file).parent) + os.sep for file in files if file)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        if not name.startswith(tuple(passed_over)) and (not name.startswith(own) or name.startswith(networks)):
            return f" ({name}, line {frame.lineno})"
    return ""
