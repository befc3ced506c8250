"""`torchledger check SOURCE --max macs=1G --baseline main.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchledger.cli import options as o
from torchledger.cli.options import Device, Format
from torchledger.cli.subject import Given, captured
from torchledger.cli.writing import drawn, write
from torchledger.errors import UserError

if TYPE_CHECKING:
    from torchledger.gate import Check

TOO_MUCH = 1


def check(
    source: o.SourceName,
    max: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            metavar="QUANTITY=AMOUNT",
            help="The most that may be: params=60M, trainable_params, macs=1G, flops, bytes_read, bytes_written, "
            "activation_bytes, peak=2GB (or 2GiB), unknown=0. Repeat.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="FILE", help="A saved ledger that no quantity may have grown from."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            "--tolerance", metavar="SHARE", help="With --baseline: growth allowed, such as 1%.  (default: 0%)"
        ),
    ] = None,
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
    device: Annotated[
        Device | None, typer.Option("--device", help="Whose kernels run, for the peak.  (default: cuda)")
    ] = None,
    allocator: o.AllocatorName = None,
    first_step: o.FirstStep = False,
    accumulate: o.Accumulate = 1,
    keep_gradients: o.KeepGradients = False,
    format: o.OutputFormat = Format.text,
    output: o.Output = None,
    width: o.Width = None,
    debug: o.Debug = False,
) -> None:
    """Hold a model against limits and a baseline.

    Exits with 0 where all is within, with 1 where something is not, and says which layers it lies in.

    Example: torchledger check resnet50 --max params=60M --max macs=5G --max peak=2GB
    """
    from torchledger import gate, sources
    from torchledger.amounts import parse_share
    from torchledger.ledger import Ledger
    from torchledger.writing import check_writable

    output = None if output == "-" else output
    given = Given(
        source, classes, arg, weights, input, batch, mode, model_dtype, autocast, training, loss, optimizer, execute
    )
    sources.resolve(source)
    given.check_arguments()
    if output is not None:
        check_writable(output)
    limits = _limits(max or [])
    share = parse_share("0%" if tolerance is None else tolerance, "--tolerance")
    if tolerance is not None and baseline is None:
        raise UserError(f"--tolerance {tolerance} goes with --baseline FILE, the ledger that may grow by so much")
    memory: dict[str, Any] = {} if device is None else {"device": device.value}
    memory |= {} if allocator is None else {"allocator": allocator}
    memory |= {"first_step": True} if first_step else {}
    memory |= {} if accumulate == 1 else {"accumulate": accumulate}
    memory |= {"set_to_none": False} if keep_gradients else {}
    before = None if baseline is None else Ledger.load(baseline)
    gate.check_asked(limits, before, share, memory)
    ledger, failure = captured(given)
    if failure is not None:
        raise failure
    checked = gate.check(ledger, limits, before, share, memory)
    write(_drawn(checked, format, width, output is not None), output)
    if not checked.within:
        raise typer.Exit(TOO_MUCH)


def _limits(texts: Sequence[str]) -> dict[str, int]:
    """Read `QUANTITY=AMOUNT` texts."""
    from torchledger import gate

    limits: dict[str, int] = {}
    for text in texts:
        quantity, equals, amount = (part.strip() for part in text.partition("="))
        if not equals:
            raise UserError(f"--max {text!r} is no limit: write QUANTITY=AMOUNT, such as params=60M or peak=2GB")
        if quantity in limits:
            raise UserError(f"--max {text!r}: {quantity} was given before; give each quantity once")
        limits[quantity] = gate.parse_limit(quantity, amount, f"--max {quantity}")
    return limits


def _drawn(checked: Check, format: Format, width: int | None, to_file: bool) -> str:
    if format is Format.csv:
        return checked.to_csv()
    if format is Format.json:
        return drawn(checked.table, format, width, to_file, checked.to_json())
    return "\n".join(drawn(table, format, width, to_file) for table in checked.tables)
