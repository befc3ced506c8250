"""The command line: `torchledger stat`, `memory`, `fit`, `report`, `trace`, `compare`, `check`, `models`.

What the user got wrong is one line, status 2.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from torchledger import __version__
from torchledger.cli.check import check
from torchledger.cli.compare import compare
from torchledger.cli.memory import fit, memory
from torchledger.cli.models import models
from torchledger.cli.report import report
from torchledger.cli.stat import stat
from torchledger.cli.trace import trace
from torchledger.errors import UserError, printable, raised_at

USER_ERROR = 2

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table of options leaves 20 of 80 columns for the words
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {command.__name__: command for command in (stat, memory, fit, report, trace, compare, check, models)}
for command in COMMANDS.values():
    app.command()(command)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    0; 1 where `fit` finds nothing or `check` something; 2 for what the user got wrong or a forward that fails; 3 under
    --strict.
    """
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
        print(f"torchledger: {_one_line(error, given)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(status)


def _one_line(error: Exception, given: Sequence[str]) -> str:
    """Return what is said of an error: the user's own as it is, one of the model's code with its type and place."""
    from torchledger.ledger import ForwardError

    text = str(error)
    if hasattr(error, "format_message"):  # click's, for an option that it could not read
        context = getattr(error, "ctx", None)
        named = given[0] if given[0] in COMMANDS else "stat"
        command = context.command_path if context is not None else f"torchledger {named}"
        return f"{printable(error.format_message())} ({command} --help lists the options)"
    if not isinstance(error, UserError | ForwardError):
        text = f"{type(error).__name__}: {text}{raised_at(error)} (--debug shows the traceback)"
    return printable(text)
