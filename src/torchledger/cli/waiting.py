"""What a terminal shows while several captures are made."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PATIENCE = 1.0  # seconds after which a wait is shown


@contextlib.contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Hand out what shows on a terminal, once a wait is long, what is being captured."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    started = time.monotonic()
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not on_terminal) as progress:
        task = progress.add_task("", total=None, visible=False)

        def told(text: str) -> None:
            progress.update(task, description=text, visible=time.monotonic() - started > PATIENCE)

        yield told
