"""Random nets from a grammar of layers, functions, reuse and residuals: what must hold of every ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import observing
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchledger import Ledger, analyze
from torchledger.capture import capture
from torchledger.capture.autocast import Region
from torchledger.capture.twins import Copies
from torchledger.training import training_step

Step = tuple[str, int]  # a word of the grammar, and a number that it may choose by
Module = Callable[[], nn.Module]
Function = Callable[["Net", Tensor, list[Tensor], int], Tensor]

WIDTH = 4
# Every step takes and returns (samples, 5, WIDTH), or (samples, WIDTH, 5, 5).
LAYERS: dict[str, Module] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "gelu": nn.GELU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "dropout": lambda: nn.Dropout(0.2),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True),
    "conv1d": lambda: nn.Conv1d(5, 5, 3, padding=1),
    "batch norm 1d": lambda: nn.BatchNorm1d(5),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.SiLU(), nn.Dropout(0.1), nn.Linear(6, WIDTH)),
}
RECURRENT: dict[str, Module] = {
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, 2, dropout=0.1),
}
IMAGE_LAYERS: dict[str, Module] = {
    "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    "grouped conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
    "frozen conv": lambda: nn.Conv2d(WIDTH, WIDTH, 1).requires_grad_(False),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    "down and up": lambda: nn.Sequential(nn.Conv2d(WIDTH, 6, 1, 2), nn.ConvTranspose2d(6, WIDTH, 3, 2, 1)),
    "batch norm": lambda: nn.BatchNorm2d(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda: nn.AvgPool2d(3, 1, 1),
    "hardswish": nn.Hardswish,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "dropout2d": lambda: nn.Dropout2d(0.2),
}


def attend(net: Net, x: Tensor, seen: list[Tensor], number: int) -> Tensor:
    """Attention over an earlier value, causal or with dropout."""
    query, key = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (x, earlier(seen, number)))
    options = ({"is_causal": True}, {"dropout_p": 0.1 if net.training else 0.0}, {})[number % 3]
    return F.scaled_dot_product_attention(query, key, key, **options).transpose(1, 2).flatten(2)


def recheckpointed(net: Net, x: Tensor, seen: list[Tensor], number: int) -> Tensor:
    block = net.block
    return checkpoint(lambda value: block(value), x, use_reentrant=False)


def masked(net: Net, x: Tensor, seen: list[Tensor], number: int) -> Tensor:
    """Rows that a mask of known values picks are written anew."""
    mask = torch.arange(x.shape[1]) < 1 + number % 3
    y = x.clone()
    y[:, mask] = y[:, mask] * 2
    return y


def in_place(net: Net, x: Tensor, seen: list[Tensor], number: int) -> Tensor:
    y = x + 0
    y[:, 0] = 0
    y[..., 1].mul_(2)
    return y.add_(1)


def earlier(seen: list[Tensor], number: int) -> Tensor:
    return seen[number % len(seen)]


FUNCTIONS: dict[str, Function] = {
    "residual": lambda net, x, seen, n: x + earlier(seen, n),
    "gate": lambda net, x, seen, n: x * torch.sigmoid(earlier(seen, n)),
    "detach": lambda net, x, seen, n: x + earlier(seen, n).detach(),
    "join and part": lambda net, x, seen, n: torch.cat([x, earlier(seen, n)], 1).chunk(2, 1)[n % 2],
    "in place": in_place,
    "parameter": lambda net, x, seen, n: x * net.scale,
    "checkpoint": recheckpointed,
    "block": lambda net, x, seen, n: net.block(x),
}
ROW_FUNCTIONS: dict[str, Function] = FUNCTIONS | {
    "softmax": lambda net, x, seen, n: x.softmax(-1),
    "scores": lambda net, x, seen, n: (x @ earlier(seen, n).mT).softmax(-1) @ x,
    "einsum": lambda net, x, seen, n: torch.einsum("nld,lm->nmd", x, net.mixing),
    "attention": attend,
    "mask": masked,
    "index": lambda net, x, seen, n: x[:, [4, 3, 2, 1, n % 5]],
    "cumsum": lambda net, x, seen, n: x.cumsum(1),
    "functional linear": lambda net, x, seen, n: F.linear(x, net.block.weight, None),
}
IMAGE_FUNCTIONS: dict[str, Function] = FUNCTIONS | {
    "squeeze and excite": lambda net, x, seen, n: x * F.adaptive_avg_pool2d(x, 1).relu(),
    "shift": lambda net, x, seen, n: x.roll(1, n % 4),
    "resize": lambda net, x, seen, n: F.interpolate(F.interpolate(x, scale_factor=2.0), size=(5, 5), mode="bilinear"),
    "pad": lambda net, x, seen, n: F.pad(x, (1, 0, 2, 0), mode="reflect")[..., :5, :5],
    "functional conv": lambda net, x, seen, n: F.conv2d(x, net.block.weight, padding=net.block.padding),
}


class Net(nn.Module):
    """A net that is spelled out: a layer for each step that names one, `again` for one that was used before."""

    def __init__(self, steps: list[Step], images: bool) -> None:
        super().__init__()
        self.steps = steps
        self.functions = IMAGE_FUNCTIONS if images else ROW_FUNCTIONS
        self.block = nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if images else nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(()))
        self.mixing = nn.Parameter(torch.eye(5))
        layers = IMAGE_LAYERS if images else LAYERS | RECURRENT
        self.layers = nn.ModuleDict(
            {str(place): layers[word]() for place, (word, _) in enumerate(steps) if word in layers}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        seen, used = [x.clone()], [self.block]
        for place, (word, number) in enumerate(self.steps):
            if word == "again":
                layer: Any = used[number % len(used)]
            elif word in self.functions:
                x = self.functions[word](self, x, seen, number)
                layer = None
            else:
                layer = self.layers[str(place)]
                used.append(layer)
            if layer is not None:
                made = layer(x.clone())  # what works in place may not change what is kept
                x = made[0] if isinstance(made, tuple) else made
            seen.append(x.clone())
        return x


def nets(*words: str) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(st.sampled_from([*words, "again"]), st.integers(0, 11)), min_size=1, max_size=7)


rows = nets(*LAYERS, *RECURRENT, *ROW_FUNCTIONS).map(lambda steps: (steps, False))
images = nets(*IMAGE_LAYERS, *IMAGE_FUNCTIONS).map(lambda steps: (steps, True))
spelled = st.one_of(rows, images)
OPTIMIZERS = ("sgd", "momentum", "adamw", None)


def sample(is_image: bool, batch: int) -> Tensor:
    return torch.randn(batch, WIDTH, 5, 5) if is_image else torch.randn(batch, 5, WIDTH)


@settings(max_examples=40)
@given(spelled, st.sampled_from(["eval", "train"]))
def test_inference_on_meta_is_that_of_a_real_run(spelling: tuple[list[Step], bool], mode: Any) -> None:
    compare(spelling, mode, None)


@settings(max_examples=40)
@given(spelled, st.sampled_from(OPTIMIZERS))
def test_training_step_on_meta_is_that_of_a_real_run(spelling: tuple[list[Step], bool], optimizer: Any) -> None:
    compare(spelling, "train", training_step(None, optimizer))


@settings(max_examples=40)
@given(spelled, st.sampled_from(OPTIMIZERS))
def test_training_step_under_autocast_is_that_of_a_real_run(spelling: tuple[list[Step], bool], optimizer: Any) -> None:
    compare(spelling, "train", training_step(None, optimizer), Region("cpu", torch.bfloat16))


def compare(spelling: tuple[list[Step], bool], mode: Any, training: Any, autocast: Region | None = None) -> None:
    net, x = Net(*spelling), sample(spelling[1], 2)
    before = observing.state(net, x)
    on_meta, real = (
        capture(net, (x,), {}, mode, real=run, training=training, autocast=autocast) for run in (None, Copies())
    )
    if autocast is not None and real.error is not None:  # dtypes that do not go together
        assert type(on_meta.error) is type(real.error)
        return
    assert (on_meta.error, real.error) == (None, None)
    assert observing.assumptions(on_meta.record) == []
    left, right = observing.operations(on_meta.record), observing.operations(real.record)
    for one, other in zip(left, right, strict=False):
        assert one == other
    assert len(left) == len(right)
    assert observing.state(net, x) == before


@settings(max_examples=25)
@given(spelled, st.sampled_from(OPTIMIZERS))
def test_sums_agree_in_every_view_and_phase(spelling: tuple[list[Step], bool], optimizer: Any) -> None:
    net, x = Net(*spelling), sample(spelling[1], 2)
    ledger = analyze(net, x, training=True, optimizer=optimizer)
    assert ledger.unknown == {}
    for convention in ("full", "fvcore"):
        names = QUANTITIES[convention]
        phases = [totals(ledger, convention, phase) for phase in ("forward", "backward", "optimizer")]
        whole = totals(ledger, convention, None)
        assert {name: sum(phase[name] for phase in phases) for name in names} == whole
        for phase, expected in zip((None, "forward", "backward", "optimizer"), (whole, *phases), strict=True):
            views = [
                ledger.by_layer(convention, phase),
                ledger.by_operation(convention, phase),
                *(ledger.by_module(depth, convention, phase) for depth in (0, 1, 2)),
            ]
            for view in views:
                assert {name: sum(row[name] or 0 for row in view.rows) for name in names} == expected
                assert {name: view.total[name] for name in names} == expected


QUANTITIES = {
    "full": ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes", "operations", "priced", "free"),
    "fvcore": ("macs", "activations", "operations", "priced", "free", "excluded"),
}


def totals(ledger: Ledger, convention: str, phase: str | None) -> dict[str, Any]:
    found = ledger.totals(convention, phase)
    return {name: found[name] for name in QUANTITIES[convention]}


@settings(max_examples=25)
@given(spelled)
def test_macs_are_affine_in_the_batch(spelling: tuple[list[Step], bool]) -> None:
    """What belongs to samples grows with their number, and what does not stays: equal differences."""
    net = Net(*spelling)
    found = [analyze(net, sample(spelling[1], batch), training=True) for batch in (2, 3, 5)]
    for phase in ("forward", "backward", "optimizer"):
        two, three, five = (ledger.totals(phase=phase)["macs"] for ledger in found)
        assert five - three == 2 * (three - two) >= 0, phase
