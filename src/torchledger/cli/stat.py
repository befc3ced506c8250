"""`torchledger stat SOURCE`."""

from __future__ import annotations

from typing import Annotated

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Format, PhaseName, View
from torchledger.cli.subject import Given, captured
from torchledger.cli.writing import drawn, write
from torchledger.errors import UserError

STRICT = 3


def stat(
    source: o.SourceName,
    classes: o.Classes = None,
    arg: o.Arguments = None,
    weights: o.Weights = None,
    input: o.Inputs = None,
    batch: o.Batch = None,
    mode: o.ModeChoice = None,
    model_dtype: o.ModelDtype = None,
    autocast: o.AutocastDtype = None,
    training: o.IsTraining = None,
    loss: o.LossName = None,
    optimizer: o.OptimizerName = None,
    execute: o.ExecuteChoice = None,
    phase: Annotated[
        PhaseName | None, typer.Option("--phase", help="This part of a training step alone.  (default: all)")
    ] = None,
    convention: o.ConventionName = "full",
    by: Annotated[View, typer.Option("--by", help="One row for each of these.")] = View.layer,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="With --by module: levels of the tree.  (default: 1)")
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="json holds the whole ledger.")] = Format.text,
    output: o.Output = None,
    width: o.Width = None,
    measure: o.MeasureChoice = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when an operation has no rule.")] = False,
    debug: o.Debug = False,
) -> None:
    """Show what every layer, operation or module of a model costs.

    Example: torchledger stat resnet50 --by module --depth 1 --batch 8
    """
    from torchledger import pricing, sources
    from torchledger.writing import check_writable

    pricing.convention(convention)
    output = None if output == "-" else output
    if depth is not None and by is not View.module:
        raise UserError(f"--depth {depth} goes with --by module, and the rows are by {by.value}")
    given = Given(
        source, classes, arg, weights, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute,
        measure,
    )  # fmt: skip
    sources.resolve(source)
    given.check_arguments()
    if output is not None:
        check_writable(output)
    ledger, failure = captured(given)
    part = None if phase is None else phase.value
    if by is View.layer:
        table = ledger.by_layer(convention, part)
    elif by is View.operation:
        table = ledger.by_operation(convention, part)
    else:
        table = ledger.by_module(1 if depth is None else depth, convention, part)
    if failure is not None and output is not None:
        format, output = Format.text, None  # a file is written whole or not at all: the table so far is shown instead
    if failure is None or ledger.totals()["operations"]:  # a forward that refuses its input has nothing to show
        whole = ledger.to_json() if format is Format.json else None
        write(drawn(table, format, width, output is not None, whole), output)
    if format not in (Format.text, Format.markdown) or output is not None:
        for note in table.notes:
            if note.startswith(("unknown:", "assumed:")):
                typer.echo(note, err=True)
    if failure is not None:
        raise failure
    if strict and ledger.unknown:
        names = ", ".join(f"{name} ({calls})" for name, calls in ledger.unknown.items())
        typer.echo(f"torchledger: --strict: no rule for {names}", err=True)
        raise typer.Exit(STRICT)
