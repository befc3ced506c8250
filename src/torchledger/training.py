"""What makes a training step of a forward: a loss and an optimizer, by name or as the user has them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from torchledger.errors import UserError, close_matches
from torchledger.inputs import tensors_in

LossLike = str | Callable[[Any], torch.Tensor] | nn.Module | None
OptimizerLike = str | type[torch.optim.Optimizer] | torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None
RATE = 1e-3  # no count hangs on it
SUMMED = "the loss is the sum of all that forward returns (loss= takes another)"
FIRST = "the loss is that of forward's first output alone"


def _classes(output: torch.Tensor) -> torch.Tensor:
    """Return a class for each row of logits: those lie along dimension 1, or 0 where there is no other."""
    shape = output.shape[:1] + output.shape[2:] if output.dim() > 1 else ()
    return torch.zeros(shape, dtype=torch.int64, device=output.device)


def _like(output: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(output, requires_grad=False)


@dataclass(frozen=True)
class Loss:
    """How a loss is made: `target` makes what the output is compared with (None: nothing), `compute` the scalar."""

    name: str
    compute: Callable[..., torch.Tensor]
    target: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Training:
    """A training step: its loss, and how the optimizer is made of the parameters (None: no optimizer step)."""

    loss: Loss | None
    optimizer: Callable[[Mapping[int, torch.Tensor], Sequence[torch.Tensor]], torch.optim.Optimizer] | None
    optimizer_name: str

    @property
    def description(self) -> str:
        """How a table's title says it."""
        step = f", {self.optimizer_name}" if self.optimizer is not None else ", no optimizer"
        return f"training step ({self.loss.name if self.loss is not None else 'forward’s own loss'}{step})"


_BY_NAME: dict[str, tuple[Callable[..., torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "cross_entropy": (F.cross_entropy, _classes),
    "nll": (F.nll_loss, _classes),
    "mse": (F.mse_loss, _like),
    "l1": (F.l1_loss, _like),
    "smooth_l1": (F.smooth_l1_loss, _like),
    "huber": (F.huber_loss, _like),
    "bce": (F.binary_cross_entropy, _like),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, _like),
}
_BY_CLASS: dict[type[nn.Module], Callable[[torch.Tensor], torch.Tensor]] = {
    nn.CrossEntropyLoss: _classes,
    nn.NLLLoss: _classes,
    nn.MSELoss: _like,
    nn.L1Loss: _like,
    nn.SmoothL1Loss: _like,
    nn.HuberLoss: _like,
    nn.BCELoss: _like,
    nn.BCEWithLogitsLoss: _like,
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=RATE),
    "momentum": functools.partial(torch.optim.SGD, lr=RATE, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=RATE),
    "adamw": functools.partial(torch.optim.AdamW, lr=RATE),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=RATE),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=RATE),
    "adamax": functools.partial(torch.optim.Adamax, lr=RATE),
    "nadam": functools.partial(torch.optim.NAdam, lr=RATE),
    "radam": functools.partial(torch.optim.RAdam, lr=RATE),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=RATE),
}


def training_step(loss: LossLike, optimizer: OptimizerLike) -> Training:
    """Return the step that `loss` and `optimizer` describe. Raise UserError for what names none."""
    make, name = _optimizer(optimizer)
    return Training(_loss(loss), make, name)


def _loss(loss: LossLike) -> Loss | None:
    if loss is None:
        return None
    if isinstance(loss, str):
        if loss not in _BY_NAME:
            raise UserError(
                f"unknown loss {loss!r}; the losses are {', '.join(_BY_NAME)}, or a function of forward's output."
                f"{close_matches(loss, _BY_NAME)}"
            )
        return Loss(loss, *_BY_NAME[loss])
    if isinstance(loss, type) or not callable(loss):
        raise UserError(
            f"loss is {loss!r}; write a name such as 'cross_entropy', a module such as nn.CrossEntropyLoss(), or a "
            "function of forward's output that returns a scalar"
        )
    for kind, target in _BY_CLASS.items():
        if isinstance(loss, kind):
            return Loss(type(loss).__name__, loss, target)
    if _required(loss) > 1:
        raise UserError(
            f"loss {_name(loss)!r} takes {_required(loss)} arguments; it is called with forward's output alone: write "
            "loss=lambda output: criterion(output, target)"
        )
    return Loss(_name(loss), loss)


def _required(function: Callable[..., object]) -> int:
    """Return how many arguments a function must get."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _name(value: object) -> str:
    return str(getattr(value, "__name__", type(value).__name__)).replace("<lambda>", "loss of the caller's")


def _optimizer(
    optimizer: OptimizerLike,
) -> tuple[Callable[[Mapping[int, torch.Tensor], Sequence[torch.Tensor]], torch.optim.Optimizer] | None, str]:
    """Return what makes the optimizer of twins (by id of the parameter, and all that train), and its name."""
    if optimizer is None:
        return None, ""
    if isinstance(optimizer, torch.optim.Optimizer):
        _check_step(type(optimizer))
        return functools.partial(_again, optimizer), type(optimizer).__name__
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise UserError(
                f"unknown optimizer {optimizer!r}; the optimizers are {', '.join(OPTIMIZERS)}, or one of torch.optim, "
                f"or a function of the parameters.{close_matches(optimizer, OPTIMIZERS)}"
            )
        make, name = OPTIMIZERS[optimizer], optimizer
    elif callable(optimizer):
        make, name = optimizer, _name(optimizer)
        if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
            _check_step(optimizer)
            if (count := _required(optimizer)) > 1:
                raise UserError(
                    f"optimizer {name} takes {count} arguments; it is called with the parameters alone: write "
                    f"optimizer=lambda parameters: {name}(parameters, ...)"
                )
    else:
        raise UserError(f"optimizer is {optimizer!r}; write a name such as 'adamw', or a class of torch.optim")

    def made(_: Mapping[int, torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        _check_step(type(optimizer))
        return optimizer

    return made, name


def _check_step(kind: type[torch.optim.Optimizer]) -> None:
    """Raise UserError for an optimizer whose step cannot be taken after one forward and one backward."""
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer {kind.__name__} steps by a closure, which runs forward and backward as often as it likes: "
            "choose one whose step() takes none, such as 'adamw'"
        )


def _again(
    optimizer: torch.optim.Optimizer, twins: Mapping[int, torch.Tensor], parameters: Sequence[torch.Tensor]
) -> torch.optim.Optimizer:
    """Make an optimizer like the user's, with its groups and settings, for the parameters' twins."""
    groups = groups_of(optimizer, twins)
    if not any(group["params"] for group in groups):
        raise UserError(f"the {type(optimizer).__name__} holds none of the model's parameters: make it of this model's")
    kind = type(optimizer)
    again: torch.optim.Optimizer = object.__new__(kind)  # its __init__ may want more than it keeps
    for name, value in vars(optimizer).items():
        # What stands in place of a method, as a scheduler's count of steps does, is bound to the user's own.
        if not callable(getattr(kind, name, None)):
            vars(again)[name] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
    again.param_groups, again.state = groups, state_of(optimizer, twins)
    return again


def groups_of(optimizer: torch.optim.Optimizer, twins: Mapping[int, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the optimizer's groups with twins, by id of the parameter, in place of the parameters that have one."""
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        chosen = [twins[id(parameter)] for parameter in group["params"] if id(parameter) in twins]
        groups.append({**settings, "params": chosen})
    return groups


def state_of(optimizer: torch.optim.Optimizer, twins: Mapping[int, torch.Tensor]) -> defaultdict[Any, Any]:
    """Return copies of what the optimizer keeps, under the twin of each parameter; what it has not made yet it will."""
    state: defaultdict[Any, Any] = defaultdict(dict)
    for key, kept in optimizer.state.items():
        if not isinstance(key, torch.Tensor):
            state[key] = copy.copy(kept)
        elif id(key) in twins:
            tensors = {name: value.detach().clone() for name, value in kept.items() if isinstance(value, torch.Tensor)}
            state[twins[id(key)]] = {name: tensors.get(name, value) for name, value in kept.items()}
    return state


def own_loss(output: Any) -> tuple[torch.Tensor, str | None]:
    """Return the loss that forward's output carries, else the sum of its floating-point tensors and a remark."""
    carried = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(carried, torch.Tensor) and not carried.dim():
        return carried, None
    found = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad]
    if not found:
        raise UserError("forward returns no tensor that has a gradient; give loss=, a function of its output")
    total = found[0].sum() if found[0].dim() else found[0]
    for tensor in found[1:]:
        total = total + (tensor.sum() if tensor.dim() else tensor)
    return total, SUMMED


def compared(output: Any) -> tuple[torch.Tensor, str | None]:
    """Return the tensor that a loss with a target looks at, and a remark where there are others."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits, None
    found = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if not found:
        raise UserError("forward returns no floating-point tensor; give loss=, a function of its output")
    return found[0], FIRST if len(found) > 1 else None
