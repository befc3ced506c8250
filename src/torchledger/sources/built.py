"""What building a source gives: a model, and the arguments of one call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Example:
    """Hold arguments of a forward, as `analyze` takes them.

    Where the model reads values (ids, masks, boxes) they are real tensors, else tensors on meta or sizes of one sample.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


MakeExample = Callable[[int, "torch.dtype"], Example]  # for a batch, with floating-point inputs of a dtype


@dataclass(frozen=True)
class Built:
    """Hold a model, whether it was built on meta, and what makes its example inputs, where the source says which."""

    model: nn.Module
    on_meta: bool
    example: MakeExample | None


def of_size(*sizes: tuple[int, ...]) -> MakeExample:
    """Return what makes positional inputs of `sizes`, each that of one sample."""
    return lambda batch, dtype: Example(sizes)
