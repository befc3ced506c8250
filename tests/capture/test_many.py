"""An optimizer takes thousands of tensors in one operation."""

from __future__ import annotations

import torch

from torchledger.capture.operations import sharing, storages_of
from torchledger.capture.shapes import classify
from torchledger.pricing.optimizers import singles
from torchledger.record import Operation, TensorInfo, TensorRef


def pairs(count: int) -> list[torch.Tensor]:
    """Return tensors of which two and two share a storage."""
    return [view for _ in range(count // 2) for view in torch.empty(2, 4, device="meta").unbind()]


def test_places_are_those_of_the_first_argument() -> None:
    a, b = pairs(2)
    again = a.view(2, 2)
    (first, second, third), _ = classify([b, again, torch.empty(1, device="meta")], [a, b, a])
    assert (first.source, first.is_argument) == (1, True)
    assert (second.source, second.is_argument, second.offset) == (0, False, 0)
    assert third.source is None
    assert sharing([a, b, a, torch.empty(1, device="meta")], [*storages_of([a, b, a]), 1]) == (
        (0, 0, 0), (0, 4, 1), (0, 0, 0), (3, 0, 3)
    )  # fmt: skip
    assert [
        count
        for _, count in singles(
            Operation("_foreach_sqrt", {"self": (TensorRef(0),) * 2}, (TensorInfo((4,), (1,), "float32"),), ())
        )
    ] == [2]
