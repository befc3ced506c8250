"""What makes a training step of a forward that has run: loss, backward, optimizer step, each under its phase."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from torchledger.capture.inner_steps import in_one_go, inherit_state, inner_steps
from torchledger.capture.recorder import Recorder
from torchledger.capture.twins import Copies, Twins
from torchledger.errors import UserError
from torchledger.training import Training, compared, own_loss


def step(
    model: nn.Module, loss: torch.Tensor, training: Training, recorder: Recorder, stand_ins: Twins | Copies
) -> torch.optim.Optimizer | None:
    """Book the rest of a training step after its loss; return the optimizer, which the user's loop holds on to.

    The step is one of the steady state: the optimizer takes a first, unbooked step, in which it makes its state, and
    that state counts as there from the start.
    """
    with inner_steps(recorder, stand_ins):
        return _after(loss, _trained(model), training, recorder, stand_ins)


def _after(
    loss: torch.Tensor,
    parameters: list[nn.Parameter],
    training: Training,
    recorder: Recorder,
    stand_ins: Twins | Copies,
) -> torch.optim.Optimizer | None:
    """Book what comes after the loss; return the optimizer."""
    recorder.phase = "backward"
    loss.backward()  # type: ignore[no-untyped-call]
    with torch._C.DisableTorchFunction():  # which each question to a tensor would go through
        for parameter in parameters:
            recorder.is_gradient(parameter)
    optimizer = None
    if training.optimizer is not None:
        recorder.phase = "optimizer"
        with recorder.silent():
            optimizer = training.optimizer({id(user): twin for user, twin in stand_ins.pairs}, parameters)
            undecided = in_one_go(optimizer)
            optimizer.step()
        with torch._C.DisableTorchFunction():
            inherit_state(recorder, optimizer)
        optimizer.step()
        if undecided:
            recorder.record.one_by_one = _one_by_one(optimizer, recorder)
        optimizer.zero_grad()
    return optimizer


def _one_by_one(optimizer: torch.optim.Optimizer, recorder: Recorder) -> int:
    """Return the most bytes of temporaries in a step that takes one parameter after another, as torch does on a CPU.

    What the loop's variables hold of one parameter is alive while the next one has its turn: the largest pair of
    neighbours takes a step of its own, unbooked.
    """
    groups = optimizer.param_groups
    with torch._C.DisableTorchFunction():
        trained = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
        if not trained:
            return 0
        sizes = [parameter.untyped_storage().nbytes() for parameter in trained]
        last = max(range(len(trained)), key=lambda place: 2 * sizes[place] + (sizes[place - 1] if place else 0))
        gradients = [(p, p.grad) for place, p in enumerate(trained) if place not in (last - 1, last)]
    try:
        with torch._C.DisableTorchFunction():
            for parameter, _ in gradients:
                parameter.grad = None
        for group in groups:
            group["foreach"] = False
        with recorder.aside() as record:
            optimizer.step()
    finally:
        for group in groups:
            group["foreach"] = True
        with torch._C.DisableTorchFunction():
            for parameter, gradient in gradients:
                parameter.grad = gradient
    changes = [0] * (len(record.entries) + 2)
    for allocation in record.allocations:
        changes[allocation.born] += allocation.bytes
        changes[-1 if allocation.died is None else allocation.died] -= allocation.bytes
    return max(itertools.accumulate(changes))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    with torch._C.DisableTorchFunction():
        return [parameter for parameter in model.parameters() if parameter.requires_grad]


def loss_of(
    model: nn.Module, output: Any, training: Training, recorder: Recorder
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Book the loss of what forward returned; return it, and what it was compared with, which lives as long."""
    if not _trained(model):
        raise UserError("no parameter of the model asks for a gradient: there is nothing to train")
    recorder.record.loss_at = len(recorder.record.entries)
    chosen = training.loss
    remark = target = None
    if chosen is None:
        loss, remark = own_loss(output)
    elif chosen.target is None:
        loss = chosen.compute(output)
    else:
        looked_at, remark = compared(output)
        with recorder.paused():
            target = chosen.target(looked_at)
        recorder.born(target, "input", from_start=True)
        loss = chosen.compute(looked_at, target)
    if remark is not None:
        recorder.record.assumptions.append(remark)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        made = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise UserError(f"the loss is {made}, expected a scalar tensor")
    if not loss.requires_grad:
        raise UserError("the loss does not hang on any parameter that trains: there is nothing to go back through")
    return loss, target
