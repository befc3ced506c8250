"""`torchledger models`."""

from __future__ import annotations

from typing import Annotated

import typer

from torchledger.cli.options import Format, Output
from torchledger.cli.writing import write


def models(
    format: Annotated[Format, typer.Option("--format", help="json and csv have all columns.")] = Format.text,
    output: Output = None,
) -> None:
    """List the networks that come with torchledger.

    With what the ledger counts for each, and the accuracy that it reached.

    Example: torchledger models --format markdown
    """
    from torchledger.report import catalog
    from torchledger.sources import networks
    from torchledger.writing import check_writable

    output = None if output == "-" else output
    if output is not None:
        check_writable(output)
    write(catalog.written(networks(), format.value), output)
