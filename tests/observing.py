"""What a run booked, operation by operation, and what of a model must be the same after it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from torchledger.inputs import tensors_in
from torchledger.record import Record, TensorInfo

# Their by-products are placeholders on one device and filled on another: operation -> outputs, inputs that count.
BY_PRODUCTS = {"batch_norm": (1, None), "_embedding_bag": (1, None), "_embedding_bag_backward": (None, 3)}
# A loss that was not given is an assumption of every training step.
ABOUT_THE_LOSS = "the loss is"


def operations(record: Record) -> list[Any]:
    """Return each canonical operation that a run booked, in order: phase, module, and all that is known of it."""
    found = []
    for entry in record.entries:
        operation = record.operations[entry.operation]
        path = record.modules.paths[record.calls.modules[entry.call]]
        outputs, inputs = BY_PRODUCTS.get(operation.name, (None, None))
        shown = operation._replace(
            inputs=tuple(_laid(info) for info in operation.inputs[:inputs]),
            outputs=tuple(o._replace(tensor=_laid(o.tensor)) for o in operation.outputs[:outputs]),
        )
        found.append((entry.phase, path, shown))
    return found


def _laid(info: TensorInfo) -> TensorInfo:
    """Return a tensor's description with no stride where it has none to tell: a dimension of one place."""
    pairs = zip(info.shape, info.stride, strict=True)
    return TensorInfo(info.shape, tuple(step if size > 1 else 1 for size, step in pairs), info.dtype)


def assumptions(record: Record) -> list[str]:
    """Return what a run took for granted, but for its loss."""
    return [line for line in record.assumptions if not line.startswith(ABOUT_THE_LOSS)]


def _tensor(tensor: torch.Tensor) -> Any:
    if is_lazy(tensor):
        return (id(tensor), type(tensor), tensor.requires_grad)
    values = None if tensor.is_meta or tensor.is_quantized else tensor.tolist()
    return (id(tensor), type(tensor), str(tensor.device), tensor.requires_grad, tensor.grad, values)


def state(model: nn.Module, *given: Any) -> dict[str, Any]:
    """Return what must not change of a model, of what forward is given, and of torch."""
    modules = list(model.named_modules())
    return {
        "parameters": [(name, _tensor(p)) for name, p in model.named_parameters(remove_duplicate=False)],
        "buffers": [(name, _tensor(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        "state_dict": [*model.state_dict()],
        "modules": [(name, id(m), type(m), m.training) for name, m in modules],
        "hooks": [(name, [*m._forward_hooks], [*m._forward_pre_hooks], [*m._backward_hooks]) for name, m in modules],
        "global hooks": {k: [*v] for k, v in vars(torch_module).items() if "_global_" in k and hasattr(v, "keys")},
        "given": [_tensor(tensor) for tensor in tensors_in(given)],
        "rng": (torch.get_rng_state().tolist(), random.getstate()),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "switches": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()),
    }
