"""The memory of a large step is found in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory_time.py"


def test_a_training_step_of_resnet50_takes_less_than_100_mb() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    grew = int(done.stdout.split("the process grew by ")[1].split()[0])
    assert 0 <= grew < 100, done.stdout
