"""An optimizer takes thousands of tensors in one operation: what is made of it must take time as they are many."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from torchledger.capture.operations import sharing, storages_of
from torchledger.capture.shapes import classify
from torchledger.pricing.full import price
from torchledger.pricing.optimizers import singles
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef


def pairs(count: int) -> list[torch.Tensor]:
    """Return tensors of which two and two share a storage."""
    return [view for _ in range(count // 2) for view in torch.empty(2, 4, device="meta").unbind()]


def classifying(count: int) -> Callable[[], object]:
    given = pairs(count)
    returned = [*given[::2], *(tensor.view(2, 2) for tensor in given[1::2])]
    return lambda: classify(returned, given)


def sharing_of(count: int) -> Callable[[], object]:
    given = pairs(count)
    return lambda: sharing(given, storages_of(given))


def pricing(count: int) -> Callable[[], object]:
    """Tensors of as many shapes: none is like another."""
    given = tuple(TensorInfo((n + 1,), (1,), "float32") for n in range(count))
    arguments = {"self": tuple(map(TensorRef, range(count)))}
    operation = Operation("_foreach_sqrt", arguments, given, tuple(map(OutputInfo, given)))
    return lambda: price(operation)


@pytest.mark.parametrize("work", [classifying, sharing_of, pricing])
def test_time_grows_as_the_tensors_do(work: Callable[[int], Callable[[], object]]) -> None:
    seconds = []
    for count in (2_000, 16_000):
        run, found = work(count), []
        for _ in range(3):
            started = time.process_time()
            run()
            found.append(time.process_time() - started)
        seconds.append(min(found))
    assert seconds[1] < 24 * seconds[0], "8 times as many: 8 times as long, not 64 times"


def test_places_are_those_of_the_first_argument() -> None:
    a, b = pairs(2)
    again = a.view(2, 2)
    (first, second, third), _ = classify([b, again, torch.empty(1, device="meta")], [a, b, a])
    assert (first.source, first.is_argument) == (1, True)
    assert (second.source, second.is_argument, second.offset) == (0, False, 0)
    assert third.source is None
    assert sharing([a, b, a, torch.empty(1, device="meta")], [*storages_of([a, b, a]), 1]) == (
        (0, 0, True), (0, 4, False), (0, 0, True), (3, 0, True)
    )  # fmt: skip
    assert [
        count
        for _, count in singles(
            Operation("_foreach_sqrt", {"self": (TensorRef(0),) * 2}, (TensorInfo((4,), (1,), "float32"),), ())
        )
    ] == [2]
