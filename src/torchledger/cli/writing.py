"""What a command shows: to the terminal, or to a file that is written whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchledger.cli.options import Format
from torchledger.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torchledger.tables import Table


def check_targets(targets: Mapping[str, str | None]) -> None:
    """Check that the file that each option names can be written, and that no other option names it too."""
    from torchledger.writing import check_writable

    found: dict[Path, str] = {}
    for option, path in targets.items():
        if path is None:
            continue
        target = check_writable(path)
        if target in found:
            raise UserError(f"{found[target]} and {option} name one file, {path!r}: name two")
        found[target] = option


def drawn(
    table: Table, format: Format, width: int | None, to_file: bool, whole: dict[str, object] | None = None
) -> str:
    """Return the table in a format; `whole`: what JSON holds besides the table."""
    from torchledger.report import for_stream

    if format is Format.csv:
        return table.to_csv()
    if format is Format.markdown:
        return table.to_markdown()
    if format is Format.json:
        return json.dumps({**(whole or {}), "table": table.to_json()}, indent=None, separators=(",", ":")) + "\n"
    if width is not None or to_file:
        return table.to_text(width)
    return for_stream(table, sys.stdout)


def write(text: str, output: str | None) -> None:
    """Write to the file, or to standard output where none is named."""
    from torchledger.writing import write_whole

    if output is None:
        if sys.stdout is None:
            raise UserError("cannot write: standard output is closed; name a file with --output")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            sys.stdout = None  # nothing to flush at shutdown
            raise UserError(f"cannot write to standard output: {error.strerror}") from error
    else:
        write_whole(output, text)
