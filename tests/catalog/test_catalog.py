"""Every module of the catalogue costs what is derived for it, wherever it lies and however it is called."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from catalog.modules import CASES, Case
from torch import nn
from torch.nn.parameter import is_lazy

from torchledger import Ledger, analyze
from torchledger.capture import capture
from torchledger.capture.twins import Copies
from torchledger.pricing.full import rule_of
from torchledger.record import Operation, TensorRef
from torchledger.training import SUMMED, training_step

ON_META = [case for case in CASES if case.on_meta]
TRAINABLE = [case for case in CASES if case.backward is not None]
ON_DEVICES = [(case, device) for case in TRAINABLE for device in (None, "meta") if device is None or case.on_meta]
OUTRIGHT = [case for case in CASES if case.assumes is None]  # where a way was taken for granted, a real one may differ
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(case: Case, device: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    if device is None:
        return case.build()
    with torch.device(device):
        return case.build()


def priced(case: Case, model: nn.Module, **options: Any) -> Ledger:
    inputs, keywords = case.inputs(), case.keywords()
    before = state(model)
    ledger = analyze(model, *inputs, kwargs=keywords, execute=False, **options)
    assert same(before, state(model)), "the model is as it was"
    assert ledger.unknown == {}
    said = [text for text in ledger.assumptions if text != SUMMED]
    assert bool(said) == (case.assumes is not None) and all(case.assumes in text for text in said), said
    return ledger


def booked(ledger: Ledger) -> list[Any]:
    record = ledger.record
    return [
        (canonical(record.operations[e.operation]), record.modules.paths[record.calls.modules[e.call]], e.phase)
        for e in record.entries
    ]


def canonical(operation: Operation) -> Any:
    """Return an operation without its kernel's by-products: a bag's offsets have other sizes on other devices."""
    rule = rule_of(operation.name)
    results = operation.outputs[: rule.primary] if rule is not None and rule.primary else operation.outputs
    by_products = ("offset2bag", "bag_size", "maximum_indices") if "embedding_bag" in operation.name else ()
    left_out = {ref.index for key in by_products if isinstance(ref := operation.arguments.get(key), TensorRef)}
    given = [tensor for index, tensor in enumerate(operation.inputs) if index not in left_out]
    return operation.name, dict(operation.arguments), given, results, operation.repeated


def state(model: nn.Module) -> list[Any]:
    """Return what a user could find changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        [(name, copy.deepcopy(value)) for name, value in model.state_dict().items()],
        [
            (module.training, type(module), [dict(getattr(module, hook)) for hook in hooks])
            for module in model.modules()
        ],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        (torch.is_grad_enabled(), torch.get_rng_state().tolist()),
    ]


def same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and not before.is_quantized:
        known = not (is_lazy(before) or before.is_meta)
        return before.dtype == after.dtype and (torch.equal(before, after) if known else type(before) is type(after))
    if isinstance(before, (list, tuple)) and type(before) is type(after):
        return len(before) == len(after) and all(map(same, before, after))
    return isinstance(before, torch.Tensor) or before == after


@every
def test_forward(case: Case) -> None:
    model = built(case)
    assert priced(case, model).totals()["macs"] == case.forward
    trained = case.forward if case.train is None else case.train
    assert priced(case, model, mode="train").totals()["macs"] == trained


@pytest.mark.parametrize("case", ON_META, ids=lambda case: case.name)
def test_forward_of_a_model_on_meta(case: Case) -> None:
    assert priced(case, built(case, "meta")).totals()["macs"] == case.forward


@pytest.mark.parametrize(("case", "device"), ON_DEVICES, ids=lambda value: getattr(value, "name", value or "cpu"))
def test_backward(case: Case, device: str | None) -> None:
    ledger = priced(case, built(case, device), training=True, optimizer="sgd")
    trained = case.forward if case.train is None else case.train
    assert [ledger.totals(phase=phase)["macs"] for phase in ("forward", "backward")] == [trained, case.backward]


@pytest.mark.parametrize("case", OUTRIGHT, ids=lambda case: case.name)
def test_meta_ledger_is_the_real_one(case: Case) -> None:
    """Canonical operation by canonical operation."""
    step = training_step(None, "sgd") if case.backward is not None else None
    found = []
    for real in (None, Copies()):
        model, inputs = built(case), case.inputs()
        if any(map(is_lazy, model.parameters())):
            model(*inputs)  # a run for real needs values
        captured = capture(model, inputs, case.keywords(), "train" if step else "eval", real=real, training=step)
        assert captured.error is None, captured.record.error
        found.append(booked(Ledger(captured.record)))
    assert found[0] == found[1]


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 50


def test_a_wrong_number_is_found() -> None:
    def check(change: Callable[[Case], Case]) -> None:
        with pytest.raises(AssertionError):
            test_forward(change(CASES[0]))

    check(lambda case: Case(case.name, case.build, case.inputs, case.forward + 1, case.backward))
