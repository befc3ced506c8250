"""`torchledger compare SOURCE SOURCE ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Device, Format
from torchledger.cli.subject import Given, captured
from torchledger.cli.waiting import waiting
from torchledger.cli.writing import check_targets, drawn, write
from torchledger.errors import UserError

if TYPE_CHECKING:
    from torchledger.ledger import Ledger
    from torchledger.sources import Source


def compare(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Two or more, each as for `torchledger stat`: a network's name, path/to/file.py:Net, "
            "package.module:callable (that code is run), torchvision:, timm:, hf:, net.pt2, or a saved ledger.",
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="NAME,NAME",
            help="Of params, macs, flops, bytes_read, bytes_written, activation_bytes, peak, top1.  "
            "(default: params,macs,peak, and top1 where one was published)",
        ),
    ] = None,
    difference: Annotated[
        bool, typer.Option("--difference", help="Of two: what the second changes in the first, layer by layer.")
    ] = False,
    threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold",
            metavar="SIZE",
            help="With --difference, or two on a page: hide smaller changes: 1% of the largest, or 10M.  (default: 0)",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw macs against parameters, sized by peak, .png or .svg."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page to look at, one file that works offline: table, picture, and of two the difference.",
        ),
    ] = None,
    classes: o.Classes = None,
    arg: o.Arguments = None,
    input: o.Inputs = None,
    batch: o.Batch = None,
    mode: o.ModeChoice = None,
    model_dtype: o.ModelDtype = None,
    autocast: o.AutocastDtype = None,
    training: o.IsTraining = None,
    loss: o.LossName = None,
    optimizer: o.OptimizerName = None,
    execute: o.ExecuteChoice = None,
    device: o.DeviceName = Device.cuda,
    format: o.OutputFormat = Format.text,
    output: o.Output = None,
    width: o.Width = None,
    debug: o.Debug = False,
) -> None:
    """Set models and saved ledgers side by side.

    What is given besides applies to each model.

    Example: torchledger compare alexnet vgg16 googlenet resnet50 --by params,macs,peak
    """
    from torchledger import comparison, page, sources
    from torchledger.amounts import parse_threshold
    from torchledger.report.picture import check_drawable

    output = None if output == "-" else output
    quantities = None if by is None else comparison.checked(by)
    if len(source) < 2 or (difference and len(source) > 2):
        wanted = "exactly two" if difference else "two or more"
        raise UserError(f"{'--difference' if difference else 'compare'} takes {wanted} sources, got {len(source)}")
    if threshold is not None:
        if len(source) != 2 or not (difference or html is not None):
            got = f"{len(source)} sources{'' if difference or html is not None else ' and neither option'}"
            raise UserError(f"--threshold {threshold} needs two models and --difference or --html; got {got}")
        parse_threshold(threshold, "--threshold")
    if difference and quantities is not None and "top1" in quantities:
        raise UserError("--by top1 has no layers: leave it or --difference out")
    given = [
        Given(one, classes, arg, None, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute)
        for one in source
    ]
    named = [sources.resolve(one) for one in source]
    given[0].check_arguments()
    if any(one.kind == "ledger" for one in named) and any(one.kind != "ledger" for one in named):
        # What was asked for is meant for the models; a saved run is over.
        pairs = zip(given, named, strict=True)
        given = [Given(each.source) if one.kind == "ledger" else each for each, one in pairs]
    if html == "-":
        raise UserError("a page goes to a file: --html compared.html")
    check_targets({"--html": html, "--plot": plot, "--output": output})
    if plot is not None:
        check_drawable(plot)
    if html is not None:
        page.check_libraries()
    ledgers = _ledgers(given)
    top1, published = _published(given, named)
    with_top1 = not difference and (quantities is None or "top1" in quantities)
    notes = published if with_top1 else []
    compared = comparison.compare(*ledgers, names=source, by=quantities, device=device.value, top1=top1, notes=notes)
    table = compared.difference(threshold=threshold or 0) if difference else compared.table
    if plot is not None:
        compared.plot(plot)
    if html is not None:  # which has the accuracies in any case
        replace(compared, notes=tuple(published)).save_html(html, threshold or 0)
    write(
        drawn(table, format, width, output is not None, compared.to_json() if format is Format.json else None), output
    )
    if format not in (Format.text, Format.markdown) or output is not None:
        for note in table.notes:
            if note.startswith(("unknown:", "assumed:", "incomplete:")):
                typer.echo(note, err=True)


def _ledgers(given: Sequence[Given]) -> list[Ledger]:
    """Capture or load each; what is wrong with one says which."""
    from torchledger.ledger import ForwardError

    found = []
    with waiting() as told:
        for each in given:
            told(each.source)
            try:
                ledger, failure = captured(each)
            except UserError as error:
                if each.source in str(error):
                    raise
                raise UserError(f"{each.source}: {error}") from error
            if failure is not None:
                raise ForwardError(f"{each.source}: {failure}", ledger) from failure
            found.append(ledger)
    return found


def _published(given: Sequence[Given], named: Sequence[Source]) -> tuple[list[float | None], list[str]]:
    """Return each network's published top-1, and who published it; a changed network has reached nothing yet."""
    from torchledger import sources

    found: list[float | None] = []
    published_by: dict[str, list[str]] = {}
    for each, one in zip(given, named, strict=True):
        published = None
        if not (each.classes or each.arg or each.input):
            published = sources.published_top1(one)
        found.append(None if published is None else published[0])
        if published is not None:
            published_by.setdefault(published[1], []).append(one.name)
    return found, [f"top-1 of {', '.join(names)}: {text}" for text, names in published_by.items()]
