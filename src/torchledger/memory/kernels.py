"""What kernels keep for their backward, and hold while they run, by device: a trace on meta shows neither.

Where a device's kernel for an operation is made of several, what these hand to one another counts as `tensors`; what a
single kernel allocates and frees for itself as `scratch`, as far as it follows from the sizes. The sources are torch
2.13's, below aten/src/ATen/native; on a CPU the figures equal those of a real run (benchmarks/memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torchledger.memory import recurrent
from torchledger.memory.attention import attention_kept, attention_passing, attention_passing_backward
from torchledger.record import Operation, TensorInfo

Device = Literal["cpu", "cuda"]


class Passing(NamedTuple):
    """The most bytes that an operation holds while it runs, beyond what it takes, keeps and puts out."""

    tensors: int = 0
    scratch: int = 0
