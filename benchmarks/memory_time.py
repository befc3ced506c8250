"""How long the memory of a training step takes to find out, and by how much the process grows: `make bench`.

ResNet-50 on meta, batch 32, AdamW: capture, peak, and what is alive at it, in a fresh process, after the imports.
"""

from __future__ import annotations

import resource
import time

import torch

from torchledger import analyze
from torchledger.models import build


def grown() -> float:
    """Return the most that the process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Print the seconds of the first and of a second run, and the growth."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = build("resnet50")
    before = grown()
    for run in ("first", "second"):
        started = time.perf_counter()
        ledger = analyze(model, (3, 224, 224), batch=32, training=True, loss="cross_entropy", optimizer="adamw")
        report = ledger.memory("cuda")
        peak, table = report.peak_bytes, report.by_category()
        seconds = time.perf_counter() - started
        print(f"{run} run: {seconds:.2f} s; peak {peak:,} bytes in {len(table.rows)} categories")
    print(f"the process grew by {grown() - before:.0f} MB")


if __name__ == "__main__":
    main()
