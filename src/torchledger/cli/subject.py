"""What the shell was given -> a model, its inputs for a batch, and a capture of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from torchledger.errors import UserError

if TYPE_CHECKING:
    from torchledger.capture.execution import Execute
    from torchledger.ledger import Ledger
    from torchledger.sources import Source


@dataclass(frozen=True)
class Given:
    """The options that say what is captured, as they stand on the command line; None where one was not given."""

    source: str
    classes: int | None = None
    arg: Sequence[str] | None = None
    weights: str | None = None
    input: Sequence[str] | None = None
    batch: int | None = None
    mode: str | None = None
    model_dtype: str | None = None
    autocast: str | None = None
    training: bool | None = None
    loss: str | None = None
    optimizer: str | None = None
    execute: bool | None = None
    measure: bool | None = None

    @property
    def chosen(self) -> list[str]:
        """The options that were given, by name."""
        return [
            f"--{name.replace('_', '-')}"
            for name, value in vars(self).items()
            if name != "source" and value not in (None, [])
        ]

    def check_arguments(self) -> None:
        """Raise UserError for arguments that cannot be read or contradict another option."""
        _ = self.arguments

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments of what builds the model."""
        from torchledger import sources

        arguments = dict(sources.parse_arguments(list(self.arg or [])))
        if self.classes is not None:
            if "num_classes" in arguments:
                raise UserError("--classes and --arg num_classes say the same: give one of them")
            arguments["num_classes"] = self.classes
        return arguments

    @property
    def execution(self) -> Execute:
        return "auto" if self.execute is None else self.execute


@dataclass(frozen=True)
class Subject:
    """A model that was built, what makes its inputs for a batch, and how it is analysed."""

    named: Source
    model: Any
    inputs: Callable[[int], tuple[Sequence[Any], Mapping[str, Any]]]
    options: dict[str, Any]  # arguments of `analyze`


def subject(given: Given, named: Source) -> Subject:
    """Build the model, on meta unless it is run for real. Raise UserError for what does not go together."""
    from torchledger import sources

    sizes, sizes_by_name, dtypes = _parse_inputs(given.input or [])
    for_real = bool(given.measure) or given.execution is True
    built = sources.build(named, given.arguments, device=None if for_real else "meta", weights=given.weights)
    if given.weights is not None and (said := sources.expected_images(named)):
        typer.echo(f"{named.name} is made for the weights of {said}", err=True)
    from torchledger import api
    from torchledger.inputs import as_dtype, check_batch

    api.checked_step(bool(given.training), given.loss, given.optimizer, bool(given.measure))
    cast = None if given.model_dtype is None else as_dtype(given.model_dtype, "--model-dtype")
    options: dict[str, Any] = {
        "mode": given.mode or "eval",
        "input_dtype": {key: as_dtype(dtype, f"the dtype of --input {key}") for key, dtype in dtypes.items()},
        "model_dtype": cast,
        "autocast": given.autocast,
        "training": bool(given.training),
        "loss": given.loss,
        "optimizer": given.optimizer,
        "execute": given.execution,
    }
    if given.input:
        return Subject(named, built.model, lambda _: (sizes, sizes_by_name), options)
    make = built.example
    if make is None:
        raise UserError(f"{named.name!r} does not say the size of its input: add --input, such as --input 3x224x224")

    def inputs(batch: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        check_batch(batch)
        example = make(batch, cast or api.floating_dtype(built.model))
        return example.args, example.kwargs

    return Subject(named, built.model, inputs, options)


def captured(given: Given) -> tuple[Ledger, Exception | None]:
    """Load the ledger that was saved, or build the model and capture it; a failing forward comes with its ledger."""
    from torchledger import sources

    named = sources.resolve(given.source)
    if named.kind == "ledger":
        from torchledger.ledger import Ledger

        if asked := given.chosen:
            raise UserError(
                f"{given.source!r} is a saved ledger, a run that is over: {', '.join(asked)} cannot change it"
            )
        return Ledger.load(named.path or given.source), None
    chosen = subject(given, named)
    from torchledger import api

    batch = 1 if given.batch is None else given.batch
    args, kwargs = chosen.inputs(batch)
    options = dict(chosen.options)
    step = api.checked_step(options.pop("training"), options.pop("loss"), options.pop("optimizer"), bool(given.measure))
    with sources.importable(named):
        return api.open_ledger(
            chosen.model,
            args,
            kwargs,
            batch,
            measure="yes" if given.measure else "no",
            training=step,
            **options,
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
