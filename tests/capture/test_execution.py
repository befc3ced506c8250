"""A model whose forward goes by what it computes: run for real by itself, refused, or run for real because asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchledger import ForwardError, UserError, analyze
from torchledger.capture import execution
from torchledger.capture.twins import MadeUp


class Gate(nn.Module):
    """Linear 4 -> 4; where its sum is above -1e9, as it always is, Linear 4 -> 8 on it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("first")
        y = self.first(x)
        if y.sum().item() > -1e9:
            y = self.second(y)
        print("second")
        return y


class Straight(Gate):
    """What Gate does, without asking."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y.sum()
        return self.second(y)  # type: ignore[no-any-return]


class Wrong(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x[:, : 2 + (self.first(x).sum().item() > 1e9)])  # type: ignore[no-any-return]


def made(kind: type[nn.Module], where: str) -> nn.Module:
    with torch.device(where):
        return kind()


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("training", [False, True])
def test_what_needs_values_is_run_for_real(where: str, training: bool) -> None:
    gate, straight = made(Gate, where), made(Straight, "meta")
    options: dict[str, Any] = {"batch": 3, "training": training, "optimizer": "adamw" if training else None}
    found, expected = analyze(gate, (4,), **options), analyze(straight, (4,), **options)
    # the same ledger but for reading the number, which has a row of its own
    columns = ("macs", "flops", "bytes_written", "activation_bytes", "params", "unknown")
    for phase in ("forward", "backward", "optimizer"):
        totals, same = found.totals(phase=phase), expected.totals(phase=phase)
        assert [totals[name] for name in columns] == [same[name] for name in columns], phase
    assert found.totals(phase="forward")["macs"] == 3 * (4 * 4 + 4 * 8)
    assert [row["module"] for row in found.by_layer().rows if row["params"]] == ["first", "second"]
    notice = found.assumptions[0]
    assert notice.startswith("run for real, since (root): item needs the values of a tensor, and an analysis computes")
    assert "test_execution.py" in notice and execution.FELL in notice and execution.INPUTS_MADE_UP in notice
    assert (execution.MADE_UP in notice) == (where == "meta")
    assert not any("run for real" in text for text in expected.assumptions)


class Splits(Gate):
    """Where torch reads values in C++, before an operation runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x.tensor_split(3 + x.sum().long() * 0)[0])  # type: ignore[no-any-return]


class Aligns(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        likely = self.first(x).view(3, 1, -1).log_softmax(-1)
        return F.ctc_loss(likely, torch.ones(1, 2, dtype=torch.int64), (3,), (2,))


def test_values_that_are_read_out_of_sight_are_asked_for_as_well() -> None:
    ledger = analyze(Splits(), (4,), batch=3)
    assert ledger.totals()["macs"] == 4 * 4 and not ledger.unknown
    assert ledger.assumptions[0].startswith("run for real, since (root): ")
    with pytest.raises(ForwardError, match="needs the values"):
        analyze(Splits(), (4,), batch=3, execute=False)


def test_lengths_that_are_numbers_need_no_values() -> None:
    for execute in ("auto", False):
        ledger = analyze(Aligns(), (4,), batch=3, execute=execute)
        assert ledger.totals()["macs"] == 3 * 4 * 4 and not ledger.unknown and not ledger.assumptions


def test_given_inputs_keep_their_values() -> None:
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(2, 3) @ torch.ones(3, int((2 * x).sum()))

    x = torch.full((5,), 0.7)
    ledger = analyze(Counts(), x)  # 2 * 5 * 0.7 = 7 columns
    assert ledger.totals()["macs"] == 2 * 3 * 7
    assert execution.INPUTS_MADE_UP not in ledger.assumptions[0]
    assert torch.equal(x, torch.full((5,), 0.7))


def test_false_refuses_and_names_the_flag() -> None:
    with pytest.raises(
        ForwardError, match=r"item needs the values of a tensor.*; execute=True \(--execute\) runs"
    ) as e:
        analyze(Gate(), (4,), execute=False)
    assert e.value.ledger.totals()["macs"] == 4 * 4


def test_true_always_runs_for_real() -> None:
    ledger = analyze(made(Straight, "meta"), (4,), execute=True)
    assert ledger.totals() == analyze(Straight(), (4,)).totals()
    assert ledger.assumptions[0].startswith("run for real, as asked; ")


def test_dtype_of_the_model_is_that_of_the_real_run() -> None:
    ledger = analyze(Gate(), (4,), model_dtype="bfloat16", batch=3)
    assert ledger.totals()["activation_bytes"] == 2 * (3 * 4 + 3 * 8) + 2  # and the sum


def test_failing_for_real_too() -> None:
    with pytest.raises(ForwardError) as error:
        analyze(Wrong(), (4,), batch=3)
    said = str(error.value)
    assert said.startswith("second: Linear expects 4 features, got 2 (input 3x2"), said
    assert "(run for real, since (root): item needs the values" in said
    assert error.value.ledger.totals()["macs"] == 3 * 4 * 4


def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_for_real", None)
    with pytest.raises(ForwardError, match="first: Linear expects 4 features, got 5"):
        analyze(Gate(), (5,))


def test_too_large_to_run_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 * (16 + 4 + 32 + 8) of the model and 4 * 4 of the input: 256 bytes
    monkeypatch.setattr(execution, "LARGEST", 256)
    assert analyze(Gate(), (4,)).totals()["macs"] == 48
    monkeypatch.setattr(execution, "LARGEST", 255)
    with pytest.raises(
        ForwardError, match=r"not run for real.*more than 2.55e-07 GB are run when asked to alone: exec"
    ):
        analyze(Gate(), (4,))
    assert analyze(Gate(), (4,), execute=True).totals()["macs"] == 48
    with pytest.raises(
        ForwardError, match=r"values for at most 2.55e-07 GB are made up: build it smaller, or with val"
    ):
        analyze(made(Gate, "meta"), (4,))
    with pytest.raises(
        UserError, match=r"execute=True runs the model for real, but its parameters, buffers and inputs"
    ):
        analyze(made(Gate, "meta"), (4,), execute=True)


def test_uninitialised_parameters_are_not_run() -> None:
    with pytest.raises(UserError, match="parameters that are not initialised: call it once, or build it with sizes"):
        analyze(nn.Sequential(nn.LazyLinear(3)), (4,), execute=True)


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_wrong_values(value: object) -> None:
    with pytest.raises(UserError, match=f"execute is {value!r}; write True"):
        analyze(Gate(), (4,), execute=value)  # type: ignore[arg-type]


def test_what_forward_prints_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    analyze(Gate(), (4,))
    assert capsys.readouterr() == ("", "first\nsecond\n")


def test_model_and_random_state_are_as_before() -> None:
    gate = made(Gate, "meta")
    before, state = dict(gate.named_parameters()), torch.get_rng_state()
    analyze(gate, (4,), training=True, optimizer="sgd")
    assert all(parameter is before[name] and parameter.is_meta for name, parameter in gate.named_parameters())
    assert all(parameter.grad is None for parameter in gate.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    gate = Gate()
    values = {name: value.clone() for name, value in gate.state_dict().items()}
    analyze(gate, (4,), training=True, optimizer="sgd")
    assert all(torch.equal(value, values[name]) for name, value in gate.state_dict().items())


def test_made_up_values() -> None:
    with torch.device("meta"):
        weight, image, ids = nn.Parameter(torch.empty(50, 40)), torch.empty(64), torch.empty(5, dtype=torch.int64)
        view, wide = weight.data[1:3].t(), torch.empty(1, 3).expand(4, 3)
    values = MadeUp(torch.device("cpu"))
    drawn = values.of(weight)
    assert 0.01 < drawn.std() < 0.03 and abs(drawn.mean()) < 0.005
    assert torch.equal(values.of(view), drawn[1:3].t()) and values.of(view).stride() == (1, 40)
    assert values.of(view).untyped_storage().data_ptr() == drawn.untyped_storage().data_ptr()
    assert 0 <= values.of(image).min() < 0.2 and 0.8 < values.of(image).max() < 1
    assert values.of(ids).tolist() == [0] * 5
    assert values.of(wide).stride() == (0, 1)
    assert torch.equal(MadeUp(torch.device("cpu")).of(weight), drawn)
    assert values.filled(drawn) is drawn
