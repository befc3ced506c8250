"""flex_attention is one operation, and does not set the compiler going."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from torchledger import analyze
from torchledger.capture.whole import SCORES


class Flex(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.masked = masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.fc(x).view(2, 32, 2, 8).transpose(1, 2)
        mask = None
        if self.masked:
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 32, 32, device=x.device)
        return flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + 1, block_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention(masked: bool) -> None:
    # 64 rows of 16 x 16, and 2 products of 32 x 32 scores by 8 for each of 2 x 2 heads: the full square
    linear, scores = 64 * 16 * 16, 2 * 2 * 2 * 32 * 32 * 8
    ledger = analyze(Flex(masked), (32, 16), batch=2)
    assert ledger.totals()["macs"] == linear + scores
    assert not ledger.unknown and ledger.assumptions == [SCORES]
    step = analyze(Flex(masked), (32, 16), batch=2, training=True, loss=lambda output: output.sum())
    assert step.totals(phase="backward")["macs"] == linear + 2 * scores


def test_compiler_that_forward_imports_first() -> None:
    """In a process of its own: torch's compiler must not be there yet."""
    code = """
import os
import torch
from torch import nn
from torchledger import analyze
class Flex(nn.Module):
    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention
        return flex_attention(x, x, x)
class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        return torch.compile(self.layer)(x)
which = {"flex": (Flex(), (2, 16, 8)), "compile": (Compiled(), (8,))}
print(*[analyze(model, size).totals()["macs"] for name, (model, size) in which.items() if name in NAMES])
assert "TORCHDYNAMO_DISABLE" not in os.environ
"""
    free = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    for name, macs in (("flex", 2 * 2 * 16 * 16 * 8), ("compile", 64)):
        words = [sys.executable, "-c", f"NAMES = {name!r}\n{code}"]
        done = subprocess.run(words, capture_output=True, text=True, env=free)
        assert (done.returncode, done.stdout.split()) == (0, [str(macs)]), done.stderr
