"""The counters that are compared, and how each one's own documentation says to call it.

Each call gets a model, its inputs and its keyword inputs, and returns what the counter says the model costs and what it
says it has left out. Nothing is configured beyond what the documentation's first example has, but for the switches that
make it return numbers in place of printing rounded ones.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Inputs = tuple[Any, ...]
Keywords = Mapping[str, Any]


@dataclass(frozen=True)
class Count:
    """What a counter gave: multiply-accumulates, and what it said it does not count (empty where it said nothing)."""

    macs: float
    left_out: str = ""


@dataclass(frozen=True)
class Peer:
    """A counter.

    `package`: what has to be installed. `call`: how it is asked, `written` as its user writes it, which stands in
    `source`. `counts`: its convention. `on_meta`: model and inputs are moved to meta first.
    """

    name: str
    package: str
    call: Callable[[nn.Module, Inputs, Keywords], Count]
    written: str
    source: str
    counts: str
    on_meta: bool = False


class Unfit(Exception):
    """A counter has no way to be given these inputs."""


class Around(nn.Module):
    """A model that gets its keyword inputs by position after the others, or all of it packed, in one keyword."""

    def __init__(self, model: nn.Module, keywords: Keywords) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(keywords)

    def forward(self, *values: Any, packed: Inputs = ()) -> Any:
        values = values or packed
        first = len(values) - len(self.names)
        return self.model(*values[:first], **dict(zip(self.names, values[first:], strict=True)))


def positional(model: nn.Module, inputs: Inputs, keywords: Keywords) -> tuple[nn.Module, Inputs]:
    """Return a model and its inputs for a counter that takes no keywords."""
    return (Around(model, keywords), (*inputs, *keywords.values())) if keywords else (model, inputs)


def image(inputs: Inputs, keywords: Keywords) -> tuple[int, ...] | None:
    """Return the size of the one floating-point tensor that is all of the inputs, or None."""
    if keywords or len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        return None
    return tuple(inputs[0].shape) if inputs[0].dtype == torch.float32 else None


def torchledger(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from torchledger import analyze

    ledger = analyze(model, *inputs, kwargs=dict(keywords))
    said = [f"unknown: {name}" for name in ledger.unknown] + list(map(str, ledger.assumptions))
    return Count(ledger.totals()["macs"], "; ".join(said))


def torchinfo(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from torchinfo import summary

    if not inputs:
        return Count(summary(model, input_data=dict(keywords), verbose=0).total_mult_adds)
    return Count(summary(model, input_data=list(inputs), verbose=0, **keywords).total_mult_adds)


def fvcore(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from fvcore.nn import FlopCountAnalysis

    flops = FlopCountAnalysis(*positional(model, inputs, keywords))
    total = flops.total()
    return Count(total, ", ".join(flops.unsupported_ops()))


NOT_CONTRACTIONS = {"batch_norm", "group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool2d", "grid_sampler"}


def fvcore_contractions(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from fvcore.nn import FlopCountAnalysis

    flops = FlopCountAnalysis(*positional(model, inputs, keywords))
    kinds = flops.by_operator()
    left = sum(n for kind, n in kinds.items() if kind not in NOT_CONTRACTIONS and not kind.startswith("upsample"))
    return Count(left, ", ".join(flops.unsupported_ops()))


def ptflops(backend: str) -> Callable[[nn.Module, Inputs, Keywords], Count]:
    """It takes the size of one sample, or what makes one input or a dict of inputs by name.

    Of one input with several samples its `pytorch` back end gives a mean over some of what it counts: packed in a dict
    they are counted as they are.
    """

    def call(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
        from ptflops import get_model_complexity_info

        # where it prints is bound when it is imported
        options: dict[str, Any] = {
            "as_strings": False,
            "print_per_layer_stat": True,
            "verbose": True,
            "ost": sys.stdout,
        }
        size = image(inputs, keywords)
        if size is None or len(size) < 3 or size[0] != 1:
            packed, size = (*inputs, *keywords.values()), (1, 1)
            model, options["input_constructor"] = Around(model, keywords), lambda _: {"packed": packed}
        macs, _ = get_model_complexity_info(model, size[1:], backend=backend, **options)
        if macs is None:
            raise RuntimeError("gave None in place of a number")
        return Count(macs)

    return call


def thop(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from thop import profile

    model, inputs = positional(model, inputs, keywords)
    macs, _ = profile(model, inputs=inputs)
    return Count(macs)


def calflops(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from calflops import calculate_flops

    size = image(inputs, keywords)
    given = {"args": list(inputs), "kwargs": dict(keywords)} if size is None else {"input_shape": size}
    _, macs, _ = calculate_flops(model=model, output_as_string=False, print_results=False, **given)
    return Count(macs)


def flop_counter(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs, **keywords)
    return Count(counter.get_total_flops() / 2)


def flop_counter_without_grad(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    with torch.no_grad():
        return flop_counter(model, inputs, keywords)


def torchlens(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    import torchlens

    log = torchlens.trace(model, inputs[0] if len(inputs) == 1 else list(inputs), dict(keywords) or None)
    unknown = [group.func_name for group in log.unknown_flop_ops]
    return Count(int(log.total_macs_forward), ", ".join(map(str, (*unknown, *log.macs_unknown_split_ops))))


def torchscan(total: str, per_mac: int) -> Callable[[nn.Module, Inputs, Keywords], Count]:
    def call(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
        from torchscan import crawl_module

        report = crawl_module(model, args=inputs, kwargs=keywords)
        amount = report["totals"][total]
        metric = total.removeprefix("operator_")
        said = [d["message"] for d in report["diagnostics"] if d["metric"] in (total, metric)]
        return Count(amount["known_value"] / per_mac, "" if amount["status"] == "complete" else "; ".join(said))

    return call


def torchstat(model: nn.Module, inputs: Inputs, keywords: Keywords) -> Count:
    from torchstat import stat

    size = image(inputs, keywords)
    if size is None or len(size) != 4 or size[0] != 1:
        raise Unfit("takes one image (channels, height, width) alone")
    with contextlib.redirect_stdout(io.StringIO()) as table:
        stat(model, size[1:])
    print(table.getvalue())
    return Count(read_torchstat(table.getvalue()))


def read_torchstat(printed: str) -> float:
    """Return the total under Flops of the printed table: the numbers there are params, memory, MAdd, Flops, ..."""
    total = re.search(r"^total +(\S+) +(\S+) +(\S+) +(\S+)", printed, re.MULTILINE)
    if total is None:
        raise RuntimeError("printed no total")
    return float(total[4].replace(",", ""))


PTFLOPS = (
    "get_model_complexity_info(model, size, as_strings=False, print_per_layer_stat=True, verbose=True, backend={})"
)
TORCH_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.utils.flop_counter.FlopCounterMode.html"
FVCORE_DOCS = "https://github.com/facebookresearch/fvcore/blob/main/docs/flop_count.md"
FLOP_COUNTER = "with FlopCounterMode(display=False) as counter: model(x)"
HALVED = "FLOPs of convolutions, matrix products and attention, two a multiply-accumulate: halved here"
PEERS = (
    Peer(
        "torchledger", "torchledger", torchledger, "analyze(model, x).totals()['macs']", "this repository",
        "multiply-accumulates of contractions",
    ),
    Peer(
        "torchinfo", "torchinfo", torchinfo, "summary(model, input_data=[x], verbose=0).total_mult_adds",
        "https://github.com/TylerYep/torchinfo",
        "mult-adds: parameters of a layer times the positions that it puts out, so with its bias",
    ),
    Peer(
        "fvcore", "fvcore", fvcore, "FlopCountAnalysis(model, x).total()", FVCORE_DOCS,
        "one flop a fused multiply-add; with norms, adaptive average pools and upsampling",
    ),
    Peer(
        "fvcore, contractions", "fvcore", fvcore_contractions, "FlopCountAnalysis(model, x).by_operator()", FVCORE_DOCS,
        "the same without norms, pools and upsampling, as its own split by operator has them",
    ),
    Peer(
        "ptflops aten", "ptflops", ptflops("aten"), PTFLOPS.format("'aten'"),
        "https://github.com/sovrasov/flops-counter.pytorch",
        "multiply-adds of matrix products and convolutions, with biases (the back end that its README recommends)",
    ),
    Peer(
        "ptflops pytorch", "ptflops", ptflops("pytorch"), PTFLOPS.format("'pytorch'"),
        "https://github.com/sovrasov/flops-counter.pytorch",
        "multiply-adds of modules, with biases, norms, activations and pools (which its README advises against for "
        "transformers)",
    ),
    Peer(
        "thop", "thop", thop, "profile(model, inputs=(x,))", "https://github.com/Lyken17/pytorch-OpCounter",
        "MACs of modules, with norms, pools and softmax",
    ),
    Peer(
        "calflops", "calflops", calflops,
        "calculate_flops(model=model, input_shape=size, output_as_string=False, print_results=False)",
        "https://github.com/MrYxJ/calculate-flops.pytorch", "MACs of functions that it replaces while it runs",
    ),
    Peer("FlopCounterMode", "torch", flop_counter, FLOP_COUNTER, TORCH_DOCS, HALVED),
    Peer(
        "FlopCounterMode, no_grad", "torch", flop_counter_without_grad, f"with torch.no_grad(): {FLOP_COUNTER}",
        TORCH_DOCS, HALVED,
    ),
    Peer(
        "FlopCounterMode, meta", "torch", flop_counter, f"{FLOP_COUNTER}, with model and x on meta", TORCH_DOCS, HALVED,
        on_meta=True,
    ),
    Peer(
        "torchlens", "torchlens", torchlens, "torchlens.trace(model, x).total_macs_forward",
        "https://github.com/johnmarktaylor91/torchlens", "MACs of operations that it has a formula for",
    ),
    Peer(
        "torchscan", "torchscan", torchscan("macs", 1), "crawl_module(model, args=(x,))['totals']['macs']",
        "https://github.com/frgfm/torch-scan", "MACs of modules, with norms and pools; a lower bound where it says so",
    ),
    Peer(
        "torchscan, operators", "torchscan", torchscan("operator_flops", 2),
        "crawl_module(model, args=(x,))['totals']['operator_flops']", "https://github.com/frgfm/torch-scan",
        "FLOPs that FlopCounterMode counts, two a multiply-accumulate: halved here",
    ),
    Peer(
        "torchstat", "torchstat", torchstat, "stat(model, (3, 224, 224)), the total under Flops",
        "https://github.com/Swall0w/torchstat",
        "multiply-accumulates of modules with biases, and elements of activations, norms and pools",
    ),
)  # fmt: skip

# What ptflops, thop and torchstat print of modules and operations that they have no rule for.
SAYS = re.compile(r"is treated as a zero-op|cannot find rule|^\[\w+\]: \w+ is not supported!", re.IGNORECASE)


def said(printed: str) -> str:
    """Return the lines that say something of the model is not counted, each once."""
    lines = (line.strip() for line in printed.splitlines() if SAYS.search(line) and Around.__name__ not in line)
    return "; ".join(dict.fromkeys(lines))


def prepare() -> None:
    """Let this repository's torchledger be imported where it is not installed."""
    source = str(Path(__file__).parents[1] / "src")
    if source not in sys.path:
        sys.path.append(source)
