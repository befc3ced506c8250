"""flex_attention is one operation, and does not set the compiler going."""

from __future__ import annotations

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
