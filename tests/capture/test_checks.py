"""Wrong calls that torch's meta kernels let pass: refused here as on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchledger import ForwardError, analyze

HALF, FLOAT, INT = torch.bfloat16, torch.float32, torch.int64


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


WRONG: list[tuple[Callable[..., Any], list[tuple[tuple[int, ...], torch.dtype]]]] = [
    (lambda a, b: a @ b, [((2, 3), HALF), ((3, 4), FLOAT)]),
    (torch.bmm, [((2, 3, 4), HALF), ((2, 4, 5), FLOAT)]),
    (F.linear, [((2, 3), HALF), ((4, 3), FLOAT), ((4,), FLOAT)]),
    (torch.baddbmm, [((2, 3, 5), HALF), ((2, 3, 4), FLOAT), ((2, 4, 5), FLOAT)]),
    (F.conv2d, [((1, 3, 4, 4), HALF), ((2, 3, 1, 1), FLOAT)]),
    (F.conv2d, [((1, 3, 4, 4), FLOAT), ((2, 3, 1, 1), FLOAT), ((3,), FLOAT)]),
    (lambda a, b: F.conv2d(a, b, groups=2), [((1, 4, 4, 4), FLOAT), ((3, 2, 1, 1), FLOAT)]),
    (lambda a, b: F.conv2d(a, b, padding=-1), [((1, 3, 4, 4), FLOAT), ((2, 3, 1, 1), FLOAT)]),
    (F.conv_transpose2d, [((1, 4, 4, 4), FLOAT), ((3, 2, 1, 1), FLOAT)]),
    (lambda a: F.softmax(a, 7), [((2, 3), FLOAT)]),
    (lambda a: F.log_softmax(a, -3), [((2, 3), FLOAT)]),
    (lambda a: F.softmax(a, 1), [((2, 3), INT)]),
    (lambda a, b: F.batch_norm(a, b, b), [((1, 3, 4), INT), ((3,), FLOAT)]),
    (F.gelu, [((2, 3), INT)]),
    (lambda a, b: a.index_select(1, b), [((2, 3), FLOAT), ((2, 2), INT)]),
    (F.cross_entropy, [((2, 3), FLOAT), ((2,), torch.int32)]),
    (lambda a, b, c: a.addmm_(b, c), [((2, 4), HALF), ((2, 3), HALF), ((3, 4), FLOAT)]),
    (lambda a, b, c: a.baddbmm_(b, c), [((1, 2, 4), HALF), ((1, 2, 3), HALF), ((1, 3, 4), FLOAT)]),
    (lambda a, i, b: a.index_add(0, i, b), [((2, 3), FLOAT), ((2,), INT), ((2, 3), HALF)]),
    (lambda a, i, b: a.index_add_(0, i, b), [((2, 3), FLOAT), ((2,), INT), ((2, 3), HALF)]),
]


@pytest.mark.parametrize(("function", "arguments"), WRONG)
def test_refused_as_on_a_cpu(function: Callable[..., Any], arguments: list[Any]) -> None:
    real = [torch.zeros(shape, dtype=dtype) for shape, dtype in arguments]
    with pytest.raises((RuntimeError, IndexError, NotImplementedError)):
        function(*real)
    with pytest.raises(ForwardError):
        analyze(Call(function), *(tensor.to("meta") for tensor in real))


def test_mixed_dtypes_pass_under_autocast() -> None:
    def forward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return a @ b

    ledger = analyze(Call(forward), torch.zeros(2, 3, dtype=HALF), torch.zeros(3, 4))
    assert ledger.totals()["macs"] == 2 * 3 * 4
    assert ledger.assumptions == [], "the casts are made"
