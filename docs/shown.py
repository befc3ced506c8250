"""Run what a page of docs/ has in Python and in the shell, and write what it prints beneath."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from torchledger.cli import main

PAGES = ("index", "quickstart", "from_torchstat", "how_it_works", "what_is_run", "limits")
PIECE = re.compile(r"^```python\n(?P<code>.*?)^```\n|^    \$ (?P<command>[^\n]*)\n", re.DOTALL | re.MULTILINE)
PRINTS = re.compile(r"\n<!-- prints -->\n.*?<!-- end -->\n", re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")  # the first line of a block that is a file


def shown(page: str, name: str = "page") -> str:
    """Return the text of a page with what its blocks and commands print, each between `prints` and `end`.

    They run in order, in an empty folder, in a terminal of 80 columns; a block has the names of those before it, and
    one that begins with `# NAME.py` is that file too. What prints and has no place for it is an error, and so is a
    place that nothing is printed to. Commands other than torchledger's are left alone.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    parts, done = [], 0
    with _apart():
        for piece in PIECE.finditer(page):
            printed = _run(piece, names, name)
            parts.append(page[done : piece.end()])
            done = piece.end()
            place = PRINTS.match(page, done)
            assert (place is not None) == bool(printed), f"{name}: {piece[0]!r} prints {printed!r}"
            if place is not None:
                parts.append(f"\n<!-- prints -->\n\n```text\n{printed}```\n\n<!-- end -->\n")
                done = place.end()
    return "".join(parts) + page[done:]


def _run(piece: re.Match[str], names: dict[str, object], name: str) -> str:
    out, code, command = io.StringIO(), piece["code"], piece["command"]
    with contextlib.redirect_stdout(out):
        if code is not None:
            if (file := FILE.match(code)) is not None:
                Path(file[1]).write_text(code, encoding="utf-8")
            exec(compile(code, name, "exec"), names)
        elif (words := shlex.split(command, comments=True))[0] == "torchledger":
            try:
                main(words[1:])
            except SystemExit as ended:  # 1: a limit is exceeded, as the page says
                assert ended.code in (None, 0, 1), f"{name}: {command} ends with {ended.code}"
    lines = [line.rstrip() for line in out.getvalue().strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Go to an empty folder, and have 80 columns."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"COLUMNS": "80"}),
        mock.patch.object(sys, "path", [folder, *sys.path]),
        contextlib.chdir(folder),
    ):
        yield
        for file in Path(folder).glob("*.py"):
            sys.modules.pop(file.stem, None)
