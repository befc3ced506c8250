"""`torchledger trace SOURCE --by macs -o trace.json`."""

from __future__ import annotations

from typing import Annotated

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Device
from torchledger.cli.subject import Given, captured
from torchledger.errors import UserError


def trace(
    source: o.SourceName,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="QUANTITY",
            help="What the width of a bar is: macs, flops, bytes, bytes_read, bytes_written, activation_bytes, another "
            "column of the convention, seconds_measured (with --measure), or operations.",
        ),
    ] = "macs",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The trace, such as trace.json.")
    ] = "trace.json",
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
    convention: o.ConventionName = "full",
    device: o.DeviceName = Device.cuda,
    measure: o.MeasureChoice = None,
    debug: o.Debug = False,
) -> None:
    """Write a flame graph for Perfetto and speedscope to open.

    Its bars are phases, the tree of modules, and operations; the memory lies below.

    Example: torchledger trace resnet50 --by macs -o resnet50.json
    """
    from torchledger import pricing, sources
    from torchledger.ledger import traced
    from torchledger.report import axis, chrome
    from torchledger.writing import check_writable

    chosen = pricing.convention(convention)
    given = Given(
        source, classes, arg, weights, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute,
        measure,
    )  # fmt: skip
    if output == "-":
        raise UserError("a trace goes to a file: --output trace.json")
    named = sources.resolve(source)
    axis.check(by, chosen, bool(measure) or named.kind == "ledger")
    given.check_arguments()
    check_writable(output)
    ledger, failure = captured(given)
    if failure is not None:
        raise failure
    along, drawn = traced(ledger, by, convention, device.value)
    chrome.save(output, drawn)
    for note in ledger.by_module(0, convention).notes:
        if note.startswith(("unknown:", "assumed:", "incomplete:")):
            typer.echo(note, err=True)
    if along.is_rounded:
        typer.echo(
            f"rounded: bars end at whole multiples of {along.per:,} {along.by}, and what ends before the next one has "
            "no bar; the arguments of bars are exact",
            err=True,
        )
    total = f"{'>=' if along.unknown else ''}{along.value(along.total):,}"
    typer.echo(f"Written: {output} ({total} {along.by}; {along.scale})", err=True)
