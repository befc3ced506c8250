"""`torchledger memory SOURCE` and `torchledger fit SOURCE --memory 24GB`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Device, Format, Part
from torchledger.cli.subject import Given, captured, subject
from torchledger.cli.waiting import waiting
from torchledger.cli.writing import check_targets, drawn, write
from torchledger.errors import UserError

if TYPE_CHECKING:
    from torchledger import plan


def memory(
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
    device: o.DeviceName = Device.cuda,
    allocator: o.AllocatorName = None,
    first_step: o.FirstStep = False,
    accumulate: o.Accumulate = 1,
    keep_gradients: o.KeepGradients = False,
    by: Annotated[Part, typer.Option("--by", help="One row for each of these.")] = Part.category,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="With --by module: levels of the tree.  (default: 1)")
    ] = None,
    moment: Annotated[
        int | None,
        typer.Option("--moment", metavar="N", help="What is alive at the Nth operation.  (default: at the peak)"),
    ] = None,
    savings: Annotated[
        bool, typer.Option("--savings", help="With --training: what would lower the peak, and what it costs.")
    ] = False,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the bytes alive over the run, .png or .svg.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write a trace that Perfetto opens, .json.")
    ] = None,
    format: o.OutputFormat = Format.text,
    output: o.Output = None,
    width: o.Width = None,
    debug: o.Debug = False,
) -> None:
    """Show the peak of a model's memory, and what is alive then.

    Nothing is allocated for it.

    Example: torchledger memory resnet50 --batch 32 --training --loss cross_entropy --optimizer adamw --dtype bf16
    """
    from torchledger import sources

    output = None if output == "-" else output
    if depth is not None and by is not Part.module:
        raise UserError(f"--depth {depth} goes with --by module, and the rows are by {by.value}")
    given = Given(
        source, classes, arg, weights, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute
    )
    named = sources.resolve(source)
    given.check_arguments()
    check_targets({"--plot": plot, "--trace": trace, "--output": output})
    if savings:
        if named.kind == "ledger" or not training:
            raise UserError("--savings takes several captures of a training step: give a model, and --training")
        if asked := _asked(first_step, accumulate, keep_gradients, moment, plot, trace):
            raise UserError(f"--savings shows the step as it is and changed: leave {', '.join(asked)} out")
        table = _savings(given, device, allocator)
        write(drawn(table, format, width, output is not None), output)
        return
    ledger, failure = captured(given)
    if failure is not None:
        raise failure
    report = ledger.memory(device.value, allocator, first_step, accumulate, not keep_gradients)
    if moment is not None and not 1 <= moment <= report.moments:
        raise UserError(f"--moment {moment}: the run has {report.moments - 1} operations, and one moment after them")
    there = None if moment is None else moment - 1
    if by is Part.category:
        table = report.by_category(there)
    elif by is Part.module:
        table = report.by_module(1 if depth is None else depth, there)
    else:
        table = report.by_operation(there)
    if plot is not None:
        report.plot(plot)
    if trace is not None:
        report.save_chrome_trace(trace)
    write(drawn(table, format, width, output is not None, report.to_json() if format is Format.json else None), output)


def fit(
    source: o.SourceName,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="What torch may take: 24GB (10^9 bytes) or 24GiB (2^30).")
    ],
    classes: o.Classes = None,
    arg: o.Arguments = None,
    weights: o.Weights = None,
    input: o.Inputs = None,
    mode: o.ModeChoice = None,
    model_dtype: o.ModelDtype = None,
    autocast: o.AutocastDtype = None,
    training: o.IsTraining = None,
    loss: o.LossName = None,
    optimizer: o.OptimizerName = None,
    execute: o.ExecuteChoice = None,
    device: o.DeviceName = Device.cuda,
    allocator: o.AllocatorName = None,
    accumulate: o.Accumulate = 1,
    format: o.OutputFormat = Format.text,
    output: o.Output = None,
    width: o.Width = None,
    debug: o.Debug = False,
) -> None:
    """Find the largest batch that fits into so much memory.

    It takes a few captures, and exits with 1 where no batch fits.

    Example: torchledger fit resnet50 --memory 24GB --training --loss cross_entropy --optimizer adamw
    """
    from torchledger import sources
    from torchledger.writing import check_writable

    output = None if output == "-" else output
    named = sources.resolve(source)
    if named.kind == "ledger":
        raise UserError(
            f"{source!r} is a saved ledger, a run that is over; the batch that fits takes several: give a model"
        )
    given = Given(
        source, classes, arg, weights, input, None, mode, model_dtype, autocast, training, loss, optimizer, execute
    )
    given.check_arguments()
    if output is not None:
        check_writable(output)
    from torchledger import plan
    from torchledger.amounts import parse_bytes

    limit = parse_bytes(memory, "--memory")
    with _planned(given, device, allocator, accumulate) as (chosen, told):
        found = plan.largest_batch(chosen, limit, told)
    write(drawn(found.table, format, width, output is not None, found.to_json()), output)
    if not found.batch:
        raise typer.Exit(1)


def _asked(
    first_step: bool, accumulate: int, keep_gradients: bool, moment: int | None, plot: str | None, trace: str | None
) -> list[str]:
    given = {
        "--first-step": first_step, "--accumulate": accumulate != 1, "--keep-gradients": keep_gradients,
        "--moment": moment is not None, "--plot": plot is not None, "--trace": trace is not None,
    }  # fmt: skip
    return [name for name, is_given in given.items() if is_given]


def _savings(given: Given, device: Device, allocator: str | None) -> Any:
    from torchledger import plan

    with _planned(given, device, allocator, 1) as (chosen, told):
        return plan.what_would_help(chosen, 1 if given.batch is None else given.batch, told)


@contextlib.contextmanager
def _planned(
    given: Given, device: Device, allocator: str | None, accumulate: int
) -> Iterator[tuple[plan.Subject, Callable[[str], None]]]:
    """Hand out a model to make several captures of, and what shows which of them runs."""
    from torchledger import plan, sources

    named = sources.resolve(given.source)
    built = subject(given, named)
    options = {"device": device.value, "allocator": allocator, "accumulate": accumulate}
    with sources.importable(named), waiting() as told:
        yield plan.Subject(built.model, built.inputs, built.options, options), told
