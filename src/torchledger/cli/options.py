"""The options that commands share, each with its help."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


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


class Device(StrEnum):
    """Whose kernels run."""

    cuda = "cuda"
    cpu = "cpu"


class Part(StrEnum):
    """What a row of the memory at one moment is."""

    category = "category"
    module = "module"
    operation = "operation"


SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="resnet50 or another network of `torchledger models`; path/to/file.py:Net or "
        "package.module:callable (that code is run); torchvision:resnet50, timm:vit_base_patch16_224, hf:llama or "
        "hf:path/to/config.json; net.pt2 of torch.export; or a saved ledger, net.json.",
    ),
]
Classes = Annotated[int | None, typer.Option("--classes", min=1, help="Number of classes: --arg num_classes=N.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=VALUE", help="Argument of the class or function, or field of hf:'s config. Repeat."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="FILE", help="A .safetensors or torch checkpoint that must fit the model."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SIZE[:DTYPE]",
        help="Size of one sample, such as 3x224x224 or ids=128:int64. Repeat for several inputs.  "
        "(default: the source's own inputs)",
    ),
]
Batch = Annotated[int | None, typer.Option("--batch", help="Samples in an input.  (default: 1)")]
ModeChoice = Annotated[ModeName | None, typer.Option("--mode", help="Training flags.  (default: eval)")]
ModelDtype = Annotated[
    str | None,
    typer.Option("--model-dtype", "--dtype", metavar="DTYPE", help="Take the parameters as bfloat16, for example."),
]
AutocastDtype = Annotated[
    str | None,
    typer.Option(
        "--autocast",
        metavar="DTYPE",
        help="Run forward and loss under autocast: bf16 or fp16, as on a CPU; cuda:bf16, as on a GPU.",
    ),
]
IsTraining = Annotated[
    bool | None,
    typer.Option("--training", help="A whole training step: forward, loss, backward, optimizer.  (default: no)"),
]
LossName = Annotated[
    str | None,
    typer.Option("--loss", help="With --training: cross_entropy, mse, ...  (default: the output's own, or its sum)"),
]
OptimizerName = Annotated[
    str | None, typer.Option("--optimizer", help="With --training: sgd, momentum, adam, adamw, ...  (default: none)")
]
ExecuteChoice = Annotated[
    bool | None,
    typer.Option(
        "--execute/--no-execute",
        help="Run the model for real, or never.  (default: where an analysis without values cannot go on)",
    ),
]
DeviceName = Annotated[Device, typer.Option("--device", help="Whose kernels run: they keep and hold different things.")]
AllocatorName = Annotated[
    str | None,
    typer.Option(
        "--allocator",
        help="exact: bytes asked for; cuda: as torch's caching allocator hands them out.  (default: the device's)",
    ),
]
ConventionName = Annotated[
    str, typer.Option("--convention", help="What is counted, and how: full, torchstat or fvcore.")
]
MeasureChoice = Annotated[
    bool | None,
    typer.Option("--measure/--no-measure", help="Also run the model and show seconds a row.  (default: no)"),
]
Accumulate = Annotated[
    int, typer.Option("--accumulate", help="With --training: micro-batches whose gradients are added up.")
]
FirstStep = Annotated[
    bool, typer.Option("--first-step", help="The first step of a training, in which the optimizer makes its state.")
]
KeepGradients = Annotated[
    bool, typer.Option("--keep-gradients", help="As zero_grad(set_to_none=False): gradients stay, as zeros.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How the table is written.")]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write there instead of to the terminal; packed if it ends in .gz."
    ),
]
Width = Annotated[
    int | None, typer.Option("--width", min=1, help="Columns of text.  (default: the terminal's; piped: no limit)")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
