"""Caches of functions keep no meta tensor of an analysis, and what they had before stays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchledger import analyze


def behind_a_wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
    cached = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return cached(*args)

    return wrapper


@functools.cache
def unbounded(length: int) -> tuple[torch.Tensor, int]:
    return torch.arange(length) + 1.0, length


@behind_a_wrapper
def wrapped(length: int) -> torch.Tensor:
    return torch.ones(length)


@functools.lru_cache
def without_tensors(length: int) -> list[int]:
    return [length]


class Positions(nn.Module):
    @staticmethod
    @functools.lru_cache(maxsize=2)
    def static(length: int) -> torch.Tensor:
        return torch.zeros(length)

    @functools.lru_cache  # noqa: B019
    def method(self, length: int) -> torch.Tensor:
        return torch.full((length,), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-1]
        without_tensors(length)
        return x + unbounded(length)[0] + wrapped(length) + self.static(length) + self.method(length)


def test_a_real_forward_after_an_analysis() -> None:
    model = Positions()
    analyze(model, (3,))
    assert model(torch.zeros(1, 3)).tolist() == [[4, 5, 6]]  # 1..3 + 1 + 0 + 2


def test_two_analyses_see_the_same() -> None:
    first = analyze(Positions(), (5,))
    again = analyze(Positions(), (5,))
    assert first.totals() == again.totals()
    # arange + 1, ones, zeros and full are made, and four sums: none comes from before
    assert first.totals()["operations"] == 9


def test_what_holds_no_meta_tensor_stays() -> None:
    without_tensors.cache_clear()
    kept = without_tensors(7)
    analyze(Positions(), (8,))
    assert without_tensors(7) is kept
    real = unbounded(9)
    analyze(Positions(), (9,))  # hits: nothing of the analysis goes in
    assert unbounded(9) is real


def test_a_cache_that_a_model_holds() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ones = functools.lru_cache(None)(lambda length: torch.ones(length))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.ones(x.shape[-1])

    model = Holding()
    analyze(model, (3,))
    assert model(torch.zeros(1, 3)).tolist() == [[1, 1, 1]]
