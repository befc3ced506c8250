"""What makes a training step of a forward that has run: loss, backward, optimizer step, each under its phase."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchledger.capture.inner_steps import inner_steps
from torchledger.capture.recorder import Recorder
from torchledger.capture.twins import Copies, Twins
from torchledger.errors import UserError
from torchledger.training import Training, compared, own_loss


def step(
    model: nn.Module, output: Any, training: Training, recorder: Recorder, stand_ins: Twins | Copies
) -> tuple[Any, ...]:
    """Book the rest of a training step after its forward; return what the user's loop would still hold at its end.

    The step is one of the steady state: the optimizer takes a first, unbooked step, in which it makes its state, and
    that state counts as there from the start.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("no parameter of the model asks for a gradient: there is nothing to train")
    loss = _loss(output, training, recorder)
    with inner_steps(recorder, stand_ins):
        return loss, _after(loss, parameters, training, recorder, stand_ins)


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
    for parameter in parameters:
        recorder.is_now(parameter.grad, "gradient")
    optimizer = None
    if training.optimizer is not None:
        recorder.phase = "optimizer"
        with recorder.silent():
            optimizer = training.optimizer({id(user): twin for user, twin in stand_ins.pairs}, parameters)
            optimizer.step()
        recorder.inherit(
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
        )
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def _loss(output: Any, training: Training, recorder: Recorder) -> torch.Tensor:
    chosen = training.loss
    remark = None
    if chosen is None:
        loss, remark = own_loss(output)
    elif chosen.target is None:
        loss = chosen.compute(output)
    else:
        looked_at, remark = compared(output)
        with recorder.paused():
            target = chosen.target(looked_at)
        recorder.born(target, "input")
        loss = chosen.compute(looked_at, target)
    if remark is not None:
        recorder.record.assumptions.append(remark)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        made = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise UserError(f"the loss is {made}, expected a scalar tensor")
    if not loss.requires_grad:
        raise UserError("the loss does not hang on any parameter that trains: there is nothing to go back through")
    return loss
