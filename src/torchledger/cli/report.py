"""`torchledger report SOURCE -o report.html`."""

from __future__ import annotations

from typing import Annotated

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Device
from torchledger.cli.subject import Given, captured
from torchledger.errors import UserError, printable


def report(
    source: o.SourceName,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The page, such as report.html.")
    ] = "report.html",
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
    """Write a page to look at: one HTML file that works offline.

    It has the tree of modules, every layer, the kinds of operations, and the memory over the run.

    Example: torchledger report resnet50 --training --optimizer adamw -o resnet50.html
    """
    from torchledger import page, pricing, sources
    from torchledger.writing import check_writable

    pricing.convention(convention)
    page.check_libraries()
    given = Given(
        source, classes, arg, weights, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute,
        measure,
    )  # fmt: skip
    if output == "-":
        raise UserError("a page goes to a file: --output report.html")
    sources.resolve(source)
    given.check_arguments()
    check_writable(output)
    ledger, failure = captured(given)
    if failure is not None:
        raise failure
    ledger.save_html(output, convention, device.value)
    typer.echo(f"Written: {printable(output)}", err=True)
