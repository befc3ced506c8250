"""Numbers that count what is done with them, to compare formulas with arithmetic that is carried out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

Array = Any  # a numpy array of Number


class Number:
    """A number that counts what is done with it, in `counts`; a plain float beside it is one too."""

    counts: ClassVar[Counter[str]] = Counter()
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value

    def __add__(self, other: Number | float) -> Number:
        return self.to("add", lambda a, b: a + b, other)

    def __sub__(self, other: Number | float) -> Number:
        return self.to("subtract", lambda a, b: a - b, other)

    def __mul__(self, other: Number | float) -> Number:
        return self.to("multiply", lambda a, b: a * b, other)

    def __truediv__(self, other: Number | float) -> Number:
        return self.to("divide", lambda a, b: a / b, other)

    def larger(self, other: Number | float) -> Number:
        return self.to("compare", max, other)

    def smaller(self, other: Number | float) -> Number:
        return self.to("compare", min, other)

    def to(self, name: str, function: Callable[..., float], *others: Number | float) -> Number:
        """Return `function` of this number and others, as one operation."""
        Number.counts[name] += 1
        return Number(function(self.value, *(o.value if isinstance(o, Number) else o for o in others)))

    def plus_product(self, left: Number, right: Number) -> Number:
        """Return self + left right: a multiply-accumulate."""
        Number.counts["macs"] += 1
        return Number(self.value + left.value * right.value)


def root(x: Number) -> Number:
    return x.to("root", math.sqrt)


def exponential(x: Number) -> Number:
    return x.to("exp", math.exp)


def logarithm(x: Number) -> Number:
    return x.to("log", math.log)


def inverse_root(x: Number) -> Number:
    return x.to("rsqrt", lambda value: 1 / math.sqrt(value))


def total(row: Sequence[Number]) -> Number:
    return reduce(Number.__add__, row)


def mean(row: Sequence[Number]) -> Number:
    return total(row) / len(row)


def largest(row: Sequence[Number]) -> Number:
    return reduce(Number.larger, row)


def product_sum(left: Sequence[Number], right: Sequence[Number]) -> Number:
    return reduce(lambda sum_, pair: sum_.plus_product(*pair), zip(left, right, strict=True), Number(0.0))


def numbers(tensor: Tensor) -> Array:
    array = np.empty(tensor.numel(), dtype=object)
    array[:] = [Number(value) for value in tensor.flatten().tolist()]
    return array.reshape(tuple(tensor.shape))


def values(array: Array) -> Tensor:
    array = np.asarray(array, dtype=object)
    return torch.tensor([number.value for number in array.flat]).reshape(array.shape)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    Number.counts.clear()
    yield Number.counts


def flops(counts: Counter[str]) -> int:
    return sum(counts.values()) + counts["macs"]  # a multiply-accumulate is two


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 100 * len(shape) + sum(shape)))


def positive(*shape: int) -> Tensor:
    return random(*shape).abs() + 0.1


def rows(array: Array) -> Array:
    """Return the array as a list of its last dimension's rows."""
    return array.reshape(-1, array.shape[-1])
