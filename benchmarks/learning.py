"""Whether every network learns: how far the loss on one fixed batch of small images falls.

    python benchmarks/learning.py [NAME ...]     # all; writes benchmarks/results/learning.csv

A batch of 8 images of 4 classes, no dropout, Adam. An image is a smooth random pattern: fields of pure noise look alike
to a network that pools. A network whose classifier does not see the image stays near ln 4 = 1.39. One that has lost a
single branch may still learn 8 images by heart; `without_gradient` finds that.
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
IMAGES, CLASSES = 8, 4
STEPS = {"alexnet_2012": 80}  # where 30 are not enough
FACTOR = 10  # the loss must fall to a tenth
RATE = 1e-3
# Pixels a side, where 32 are not enough, in train mode with heads; and rates, where the default is not sound: without
# BatchNorm, or with linear layers of this width, a network takes smaller steps.
SIDES = {"alexnet": 63, "alexnet_2012": 227, "googlenet_v1": 223, "inception_v3": 299, "inception_v4": 75}
RATES = {"alexnet": 3e-4, "alexnet_2012": 3e-5, "googlenet_v1": 3e-4} | {
    f"vgg{layers}{norm}": 1e-4 for layers in (11, 13, 16, 19) for norm in ("", "_bn")
}
# The 2012 network takes raw pixels, 0 to 255 less their mean (section 2), and its initialisation counts on that.
SCALES = {"alexnet_2012": 64.0}
HEAD_WEIGHT = 0.3  # of an auxiliary head in the loss (Szegedy et al. 2015, section 5)


def steps_of(name: str) -> int:
    """Return how many steps the network `name` takes."""
    return STEPS.get(name, 30)


def losses(name: str) -> list[float]:
    """Train the network `name` on one batch; return the loss before each step and after the last."""
    network, images, classes = _prepared(name)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATES.get(name, RATE), fused=True)
    seen = []
    for _ in range(steps_of(name)):
        optimizer.zero_grad()
        loss, of_trunk = _loss(network(images), classes)
        loss.backward()
        optimizer.step()
        seen.append(of_trunk)
    with torch.no_grad():
        return [*seen, _loss(network(images), classes)[1]]


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
    return network.train(), images, torch.arange(IMAGES) % CLASSES


def _loss(outputs: Tensor | tuple[Tensor, ...], classes: Tensor) -> tuple[Tensor, float]:
    """Return what is minimised, heads included, and the loss of the trunk."""
    logits, *heads = [outputs] if isinstance(outputs, Tensor) else outputs
    of_trunk = F.cross_entropy(logits, classes)
    total = of_trunk
    for head in heads:
        total = total + HEAD_WEIGHT * F.cross_entropy(head, classes)
    return total, of_trunk.item()


def main(names: list[str]) -> int:
    """Print a line a network, write the results of all, return 1 if one did not learn."""
    rows, failed = [], []
    for name in names or [name for name in REGISTRY if not REGISTRY[name].of_article]:
        start = time.perf_counter()
        first, *_, last = losses(name)
        learned = last * FACTOR <= first
        failed += [] if learned else [name]
        print(
            f"{name:13} {SIDES.get(name, 32):3} pixels  {first:6.3f} -> {last:.4f} in {steps_of(name)} steps"
            f"  {time.perf_counter() - start:6.1f} s{'' if learned else '  DID NOT LEARN'}",
            flush=True,
        )
        rows.append((name, SIDES.get(name, 32), steps_of(name), RATES.get(name, RATE), f"{first:.4f}", f"{last:.4f}"))
    if not names:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(("name", "pixels", "steps", "rate", "first_loss", "last_loss"))
            writer.writerows(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
