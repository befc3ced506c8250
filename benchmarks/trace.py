"""How long an analysis takes, over the model's own forward on meta: `make bench`.

An analysis is capture, pricing and the by-layer table. It is set against the bare forward of the same model on meta
(eval mode, no_grad, batch 1), in the same process, on one thread, the two interleaved; the ratio is that of medians of
9 rounds, garbage collection off. Cold: with an empty memo, all imports done. Warm: with the memo of the round before.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import conftest  # noqa: F401  # torchvision's operations, where its compiled part is missing

from torchledger import analyze
from torchledger.capture.shapes import MEMO

ROUNDS = 9
COLD_BAR, WARM_BAR = 1.0, 0.5
EXEMPT = ("alexnet",)  # its forward takes a millisecond or so: what a call costs at all shows
MODELS = ("alexnet", "resnet50", "resnet152", "densenet201")
SIZE = (3, 224, 224)


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(name: str) -> tuple[float, float, float]:
    """Return median seconds of the bare forward, of a cold analysis and of a warm one."""
    import torchvision.models

    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        x = torch.empty(1, *SIZE)

    def bare() -> None:
        with torch.no_grad():
            model(x)

    def analysis() -> None:
        analyze(model, SIZE).by_layer()

    for warm_up in (bare, analysis, bare, analysis):
        warm_up()
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            times[0].append(seconds(bare))
            MEMO.clear()
            times[1].append(seconds(analysis))
            times[2].append(seconds(analysis))
    finally:
        gc.enable()
    forward, cold, warm = map(statistics.median, times)
    return forward, cold, warm


def main() -> None:
    """Print the table; exit with 1 where a ratio is not below its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="torchvision's names")
    names = parser.parse_args().models
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, Python {platform.python_version()}, one thread")
    print(f"{'model':<14}{'forward on meta':>16}{'cold':>9}{'warm':>9}")
    missed = []
    for name in names:
        forward, cold, warm = measure(name)
        exempt = name in EXEMPT
        print(f"{name:<14}{forward * 1e3:>13.1f} ms{cold / forward:>9.2f}{warm / forward:>9.2f}{' exempt' * exempt}")
        if not exempt and not (cold / forward < COLD_BAR and warm / forward < WARM_BAR):
            missed.append(name)
    print(
        f"bars: below {COLD_BAR} cold, below {WARM_BAR} warm; "
        + (f"missed by {', '.join(missed)}" if missed else "held")
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
