"""The command line: `torchledger stat SOURCE`, `torchledger models`. What the user got wrong is one line, status 2."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchledger import __version__
from torchledger.errors import UserError, printable, raised_at

if TYPE_CHECKING:
    from torchledger.capture.execution import Execute
    from torchledger.ledger import Ledger
    from torchledger.sources import Source
    from torchledger.tables import Table

USER_ERROR = 2
STRICT = 3


class View(StrEnum):
    """What a row is."""

    layer = "layer"
    operation = "operation"
    module = "module"


class Format(StrEnum):
    """How the table is written."""

    text = "text"
    csv = "csv"
    json = "json"
    markdown = "markdown"


class ModeName(StrEnum):
    """Training flags while the model runs."""

    eval = "eval"
    train = "train"
    as_is = "as_is"


class PhaseName(StrEnum):
    """Part of a training step."""

    forward = "forward"
    backward = "backward"
    optimizer = "optimizer"


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"torchledger {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep the books of a PyTorch model: what every operation costs, without running it."""


@app.command()
def stat(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="resnet50 or another network of `torchledger models`; path/to/file.py:Net or "
            "package.module:callable (that code is run); torchvision:resnet50, timm:vit_base_patch16_224, hf:llama or "
            "hf:path/to/config.json; net.pt2 of torch.export; or a saved ledger, net.json.",
        ),
    ],
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Number of classes: --arg num_classes=N.")
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", metavar="NAME=VALUE", help="Argument of the class or function, or field of hf:'s config. Repeat."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="A .safetensors or torch checkpoint that must fit the model."),
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NAME=]SIZE[:DTYPE]",
            help="Size of one sample, such as 3x224x224 or ids=128:int64. Repeat for several inputs.  "
            "[default: the source's own inputs]",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Samples in an input.  [default: 1]")] = None,
    mode: Annotated[ModeName | None, typer.Option("--mode", help="Training flags.  [default: eval]")] = None,
    model_dtype: Annotated[
        str | None, typer.Option("--model-dtype", metavar="DTYPE", help="Take the parameters as bfloat16, for example.")
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(
            "--autocast",
            metavar="DTYPE",
            help="Run forward and loss under autocast: bf16 or fp16, as on a CPU; cuda:bf16, as on a GPU.",
        ),
    ] = None,
    training: Annotated[
        bool | None,
        typer.Option("--training", help="A whole training step: forward, loss, backward, optimizer.  [default: no]"),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss", help="With --training: cross_entropy, mse, ...  [default: the output's own, or its sum]"
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option("--optimizer", help="With --training: sgd, momentum, adam, adamw, ...  [default: none]"),
    ] = None,
    execute: Annotated[
        bool | None,
        typer.Option(
            "--execute/--no-execute",
            help="Run the model for real, or never.  [default: where an analysis without values cannot go on]",
        ),
    ] = None,
    phase: Annotated[
        PhaseName | None, typer.Option("--phase", help="This part of a training step alone.  [default: all]")
    ] = None,
    convention: Annotated[
        str, typer.Option("--convention", help="What is counted, and how: full, torchstat or fvcore.")
    ] = "full",
    by: Annotated[View, typer.Option("--by", help="One row for each of these.")] = View.layer,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="With --by module: levels of the tree.  [default: 1]")
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="json holds the whole ledger.")] = Format.text,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of to the terminal.")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, help="Columns of text.  [default: the terminal's; piped: no limit]")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option("--measure/--no-measure", help="Also run the model and show seconds a row.  [default: no]"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when an operation has no rule.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what every layer, operation or module of a model costs."""
    from torchledger import ledger as ledger_module
    from torchledger import pricing, sources
    from torchledger.writing import check_writable

    pricing.convention(convention)
    output = None if output == "-" else output
    if depth is not None and by is not View.module:
        raise UserError(f"--depth {depth} goes with --by module, and the rows are by {by.value}")
    named = sources.resolve(source)
    arguments = dict(sources.parse_arguments(arg or []))
    if classes is not None:
        if "num_classes" in arguments:
            raise UserError("--classes and --arg num_classes say the same: give one of them")
        arguments["num_classes"] = classes
    if output is not None:
        check_writable(output)
    failure: Exception | None = None
    if named.kind == "ledger":
        given = {
            "--classes": classes, "--arg": arg, "--weights": weights, "--input": input, "--batch": batch,
            "--mode": mode, "--model-dtype": model_dtype, "--measure": measure, "--training": training,
            "--loss": loss, "--optimizer": optimizer, "--execute": execute, "--autocast": autocast,
        }  # fmt: skip
        if asked := [name for name, value in given.items() if value not in (None, [])]:
            raise UserError(f"{source!r} is a saved ledger, a run that is over: {', '.join(asked)} cannot change it")
        ledger = ledger_module.Ledger.load(named.path or source)
    else:
        ledger, failure = _captured(
            named,
            arguments,
            input or [],
            1 if batch is None else batch,
            mode or ModeName.eval,
            model_dtype,
            bool(measure),
            weights,
            (bool(training), loss, optimizer),
            "auto" if execute is None else execute,
            autocast,
        )
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
        _write(_drawn(ledger, table, format, width, to_file=output is not None), output)
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


@app.command()
def models(
    format: Annotated[Format, typer.Option("--format", help="json and csv have all columns.")] = Format.text,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of to the terminal.")
    ] = None,
) -> None:
    """List the networks that come with torchledger, with what the ledger counts for each and what they reached."""
    from torchledger.report import catalog
    from torchledger.sources import networks
    from torchledger.writing import check_writable

    output = None if output == "-" else output
    if output is not None:
        check_writable(output)
    _write(catalog.written(networks(), format.value), output)


def _captured(
    named: Source,
    arguments: dict[str, object],
    inputs: Sequence[str],
    batch: int,
    mode: ModeName,
    model_dtype: str | None,
    measure: bool,
    weights: str | None,
    training: tuple[bool, str | None, str | None],
    execute: Execute,
    autocast: str | None,
) -> tuple[Ledger, Exception | None]:
    """Build the model, on meta unless it is run for real, and capture it; a failing forward comes with its ledger."""
    from torchledger import sources

    sizes, sizes_by_name, dtypes = _parse_inputs(inputs)
    positional: Sequence[Any] = sizes
    keywords: Mapping[str, Any] = sizes_by_name
    built = sources.build(named, arguments, device=None if measure or execute is True else "meta", weights=weights)
    if weights is not None and (said := sources.expected_images(named)):
        typer.echo(f"{named.name} is made for the weights of {said}", err=True)
    from torchledger import api
    from torchledger.inputs import as_dtype, check_batch

    step = api.checked_step(*training, measure)

    chosen = {key: as_dtype(dtype, f"the dtype of --input {key}") for key, dtype in dtypes.items()}
    cast = None if model_dtype is None else as_dtype(model_dtype, "--model-dtype")
    if not inputs:
        if built.example is None:
            raise UserError(
                f"{named.name!r} does not say the size of its input: add --input, such as --input 3x224x224"
            )
        check_batch(batch)
        example = built.example(batch, cast or api.floating_dtype(built.model))
        positional, keywords = example.args, example.kwargs
    with sources.importable(named):
        return api.open_ledger(
            built.model,
            positional,
            keywords,
            batch,
            mode.value,
            chosen,
            cast,
            "yes" if measure else "no",
            training=step,
            execute=execute,
            autocast=autocast,
        )


def _parse_inputs(
    texts: Sequence[str],
) -> tuple[list[tuple[int, ...]], dict[str, tuple[int, ...]], dict[int | str, str]]:
    """Read `[NAME=]SIZE[:DTYPE]` texts into positional sizes, sizes by name, and dtypes by place or name."""
    sizes: list[tuple[int, ...]] = []
    keywords: dict[str, tuple[int, ...]] = {}
    dtypes: dict[int | str, str] = {}
    for text in texts:
        name, equals, rest = text.rpartition("=")
        size_text, colon, dtype = rest.partition(":")
        try:
            size = tuple(int(part) for part in size_text.lower().split("x"))
        except ValueError:
            size = ()
        if not size or min(size) < 1 or bool(colon) != bool(dtype):
            raise UserError(
                f"--input {text!r} is no size: write whole numbers from 1 with x between them and without the batch, "
                "such as 3x224x224, image=3x224x224 or ids=128:int64"
            )
        if equals and not name.isidentifier():
            raise UserError(f"--input {text!r}: {name!r} is no name of an argument of forward")
        if equals and name in keywords:
            raise UserError(f"--input {text!r}: {name!r} was given before; give each input once")
        if dtype:
            dtypes[name if equals else len(sizes)] = dtype
        if equals:
            keywords[name] = size
        else:
            sizes.append(size)
    return sizes, keywords, dtypes


def _drawn(ledger: Ledger, table: Table, format: Format, width: int | None, to_file: bool) -> str:
    from torchledger.report import for_stream

    if format is Format.csv:
        return table.to_csv()
    if format is Format.markdown:
        return table.to_markdown()
    if format is Format.json:
        content: dict[str, Any] = {**ledger.to_json(), "table": table.to_json()}
        return json.dumps(content, indent=None, separators=(",", ":")) + "\n"
    if width is not None or to_file:
        return table.to_text(width)
    return for_stream(table, sys.stdout)


def _write(text: str, output: str | None) -> None:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for what the user got wrong or a forward that fails, 3 under --strict."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without the characters of a table still gets the numbers
    try:
        status = typer.main.get_command(app).main(given, prog_name="torchledger", standalone_mode=False)
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing more to say, also not at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        print(f"torchledger: {_one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(status)


def _one_line(error: Exception) -> str:
    """Return what is said of an error: the user's own as it is, one of the model's code with its type and place."""
    from torchledger.ledger import ForwardError

    text = str(error)
    if hasattr(error, "format_message"):  # click's, for an option that it could not read
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "torchledger stat"
        return f"{printable(error.format_message())} ({command} --help lists the options)"
    if not isinstance(error, UserError | ForwardError):
        text = f"{type(error).__name__}: {text}{raised_at(error)} (--debug shows the traceback)"
    return printable(text)
