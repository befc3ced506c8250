"""Operations as dispatch sees them, real or on meta, forward, backward and optimizer step, without a capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchledger.capture.operations import arguments_of, operation_of, tensor_info
from torchledger.capture.recorder import classify, kind_of, tensors_in
from torchledger.record import Operation


class Booked(TorchDispatchMode):
    """Keeps each operation that runs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func)
        given = tensors_in((args, kwargs))
        before = tuple(tensor_info(tensor) for tensor in given)
        result = func(*args, **kwargs)
        if kind.name is not None:
            outputs, _ = classify(tensors_in(result), given)
            arguments = arguments_of(kind, args, kwargs)
            self.operations.append(operation_of(kind.name, arguments, given, outputs, before))
        return result


def dispatched(function: Callable[[], Any]) -> list[Operation]:
    """Return what `function` runs."""
    with Booked() as booked:
        function()
    return booked.operations


def backward_of(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[list[Operation], list[Tensor], Tensor]:
    """Return what the backward of `function` runs, the gradients of its floating-point arguments, and the one given."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in tensors]
    result = function(*leaves)
    generator = torch.Generator().manual_seed(7)
    given = torch.randn(result.shape, generator=generator).to(result)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    with Booked() as booked:
        gradients = torch.autograd.grad(result, wanted, given, allow_unused=True)
    return booked.operations, [g for g in gradients if g is not None], given
