"""Whether every network learns: how far the loss on one fixed batch of small images falls.

    python benchmarks/learning.py [NAME ...]     # all, or these; renews their rows of benchmarks/results/learning.csv

A batch of 8 images of 4 classes, no dropout, Adam (for the two deepest plain networks `graded_step`). An image is a
smooth random pattern: fields of pure noise look alike to a network that pools. A network whose classifier does not see
the image stays near ln 4 = 1.39. One that has lost a single branch may still learn 8 images by heart;
`without_gradient` finds that.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchledger.models import build
from torchledger.models.registry import REGISTRY

RESULTS = Path(__file__).parent / "results" / "learning.csv"
COLUMNS = ("name", "pixels", "steps", "rule", "rate", "first_loss", "last_loss", "head_alone_loss")
IMAGES, CLASSES = 8, 4
# Where 30 are not enough.
STEPS = {
    "alexnet_2012": 80,
    "googlenet_v1": 60,
    "vgg19": 60,
    "plain44": 120,
    "plain56": 300,
    "plain110": 150,
    "plain1202": 120,
}
FACTOR = 10  # the loss must fall to a tenth
# Plain networks of this depth do not learn with the usual rules, which is what their twins are there to show: plain110
# comes from 1.39 to 1.18 in 300 steps of Adam at 1e-3 and to 1.29 in 72 at 1e-5, and to 1.21 at best by steps of one
# length relative to each layer's weights. They take `graded_step`. Their last layer stays as it was drawn: alone it can
# learn images by heart from features of any kind (head_alone_loss), and the fall shall be the body's.
GRADED = ("plain110", "plain1202")
# Towards the first convolution of plain1202 the gradient grows to 1e79, more than float32 holds: there all is NaN after
# one step. Even in float64 the steps of the first three fifths of its tensors are below the rounding of their values:
# what learns are the others, some 1,540 of 3,603.
DTYPES = {"plain1202": torch.float64}
RATE = 1e-3
GRADED_RATE = 0.3
# Pixels a side, where 32 are not enough, in train mode with heads; and rates, where the default is not sound: without
# BatchNorm, or with linear layers of this width, a network takes smaller steps.
SIDES = {
    "alexnet": 63,
    "alexnet_2012": 227,
    "googlenet_v1": 223,
    "inception_v3": 299,
    "inception_v4": 75,
    "plain1202": 16,  # a quarter of the time
}
RATES = {"alexnet": 3e-4, "alexnet_2012": 3e-5, "googlenet_v1": 1e-4} | {
    f"vgg{layers}{norm}": 1e-4 for layers in (11, 13, 16, 19) for norm in ("", "_bn")
}
# The 2012 network takes raw pixels, 0 to 255 less their mean (section 2), and its initialisation counts on that.
SCALES = {"alexnet_2012": 64.0}
HEAD_WEIGHT = 0.3  # of an auxiliary head in the loss (Szegedy et al. 2015, section 5)


EVERY = [name for name in REGISTRY if not REGISTRY[name].of_article]
HEAD = "linear."  # the last layer of a network for CIFAR


def rate_of(name: str) -> float:
    """Return the rate of Adam for the network `name`; of `graded_step`, the share of the loss that a step promises."""
    return GRADED_RATE if name in GRADED else RATES.get(name, RATE)


def steps_of(name: str) -> int:
    """Return how many steps the network `name` takes."""
    return STEPS.get(name, 30)


def losses(name: str) -> list[float]:
    """Train the network `name` on one batch; return the loss before each step and after the last."""
    network, images, classes = _prepared(name)
    trained = [value for key, value in network.named_parameters() if name not in GRADED or not key.startswith(HEAD)]
    optimizer = torch.optim.Adam(trained, lr=rate_of(name), fused=True)
    seen = []
    for _ in range(steps_of(name)):
        optimizer.zero_grad()
        loss, of_trunk = _loss(network(images), classes)
        loss.backward()
        if name in GRADED:
            graded_step(trained, rate_of(name) * of_trunk)
        else:
            optimizer.step()
        seen.append(of_trunk)
    with torch.no_grad():
        return [*seen, _loss(network(images), classes)[1]]


@torch.no_grad()
def graded_step(parameters: list[nn.Parameter], fall: float) -> None:
    """Move each tensor along its gradient g by |g| ** -1.5, scaled such that all together promise the loss to fall so.

    Without shortcuts the gradient grows from layer to layer towards the image (by some 1.17 each: 0.5 to 1e7 in
    plain110), and the range in which the loss is straight shrinks as much. Equal steps, and Adam's, move the first
    layers far out of it, and all behind them with it; tensors that each promise the same fall (|g| ** -1) still do.
    """
    norms = [float(parameter.grad.norm()) for parameter in parameters if parameter.grad is not None]
    scale = fall / sum(norm**-0.5 for norm in norms)  # what they promise: |g| * |g| ** -1.5 each
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter -= scale * norm**-2.5 * parameter.grad


def head_alone(name: str) -> float:
    """Return the loss after as many steps of Adam for the last layer alone, on what the body makes as it was drawn."""
    network, images, classes = _prepared(name)
    (head,) = (module for key, module in network.named_modules() if f"{key}." == HEAD)
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        network(images)
    hook.remove()
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    for _ in range(steps_of(name)):
        optimizer.zero_grad()
        F.cross_entropy(head(features[0]), classes).backward()
        optimizer.step()
    return F.cross_entropy(head(features[0]), classes).item()


def without_gradient(name: str) -> list[str]:
    """Return the parameters of the network `name` that the loss of a batch does not reach."""
    network, images, classes = _prepared(name)
    _loss(network(images), classes)[0].backward()
    return [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]


def _prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network in train mode, and the batch."""
    torch.manual_seed(0)
    side = SIDES.get(name, 32)
    network = build(name, num_classes=CLASSES, dropout=0.0, **({"dropout_aux": 0.0} if "googlenet" in name else {}))
    images = F.interpolate(torch.randn(IMAGES, 3, 4, 4), side, mode="bilinear") * SCALES.get(name, 1.0)
    dtype = DTYPES.get(name, torch.float32)
    return network.to(dtype).train(), images.to(dtype), torch.arange(IMAGES) % CLASSES


def _loss(outputs: Tensor | tuple[Tensor, ...], classes: Tensor) -> tuple[Tensor, float]:
    """Return what is minimised, heads included, and the loss of the trunk."""
    logits, *heads = [outputs] if isinstance(outputs, Tensor) else outputs
    of_trunk = F.cross_entropy(logits, classes)
    total = of_trunk
    for head in heads:
        total = total + HEAD_WEIGHT * F.cross_entropy(head, classes)
    return total, of_trunk.item()


def main(names: list[str]) -> int:
    """Print a line a network, write its row in the results, return 1 if one did not learn."""
    # The order of sums hangs on the number of threads, and with it what a deep plain network ends with.
    torch.set_num_threads(1)
    failed = []
    for name in names or EVERY:
        start = time.process_time()
        first, *_, last = losses(name)
        learned = last * FACTOR <= first
        failed += [] if learned else [name]
        print(
            f"{name:13} {SIDES.get(name, 32):3} pixels  {first:6.3f} -> {last:.4f} in {steps_of(name)} steps"
            f"  {time.process_time() - start:6.1f} s{'' if learned else '  DID NOT LEARN'}",
            flush=True,
        )
        rule, alone = ("graded", f"{head_alone(name):.4f}") if name in GRADED else ("Adam", "")
        _write(name, SIDES.get(name, 32), steps_of(name), rule, rate_of(name), f"{first:.4f}", f"{last:.4f}", alone)
    return 1 if failed else 0


def _write(name: str, *cells: object) -> None:
    """Put a row in the place of the network's, at once: a sweep that is stopped has not run in vain."""
    rows: dict[str, tuple[object, ...]] = {}
    if RESULTS.exists():
        with RESULTS.open(encoding="utf-8") as opened:
            rows = {there: tuple(others) for there, *others in list(csv.reader(opened))[1:]}
    rows[name] = cells
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((there, *rows[there]) for there in EVERY if there in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
