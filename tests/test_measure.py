"""Real seconds: rows that add up, a model that is left as it was, and nobody measured who did not ask."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchledger import ForwardError, Ledger, UserError, analyze, api, stat
from torchledger import measure as measure_module
from torchledger.measure import FEWEST, REPEATS, has_values, measure

SLEEP = 0.003


def on_meta(x: torch.Tensor) -> bool:
    """Whether `x` has no values; `x.is_meta` answers as if it lay where the model does."""
    return x.untyped_storage().device.type == "meta"


@torch.library.custom_op("ledgertest::slow", mutates_args=())
def slow(x: torch.Tensor) -> torch.Tensor:
    time.sleep(SLEEP)
    return x.clone()


@slow.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.ledgertest.slow(x)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep timings apart from the other tests': threads that wait for each other take long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OUTSIDE = torch.zeros(4)  # a tensor that hangs on no module


class Net(nn.Module):
    """All that a real run could leave behind: statistics, counters, random numbers, tensors written to, prints."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(1))
        self.calls: list[int] = []
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("forward of Net")
        self.calls.append(1)
        self.count += 1
        self.last = x.mul_(2)
        self.layer.bias.data.add_(1)
        OUTSIDE.add_(1)
        noise = torch.rand(4, device=x.device) * random.random() * float(np.random.rand())
        return self.drop(self.norm(self.layer(x) + noise)).relu() + self.count


class FailsForReal(Net):
    """A forward that raises, halfway, on real tensors alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if not on_meta(x):
            raise RuntimeError("out of something")
        return x


class Sleepy(nn.Module):
    """3 calls of a slow operation, 2 of them in one leaf, one outside; and a pause that is no operation's."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Slow()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(SLEEP)
        return self.layer(slow(self.leaf(self.leaf(x))))


def state(model: nn.Module, *tensors: torch.Tensor) -> dict[str, Any]:
    """Return everything that must be the same after a measured run, as values that `==` compares."""
    held = {**model.state_dict(keep_vars=True), **{f"input {i}": tensor for i, tensor in enumerate(tensors)}}
    return {
        "values": {name: (id(tensor), tensor.detach().tolist()) for name, tensor in held.items()},
        "gradients": {name: (tensor.requires_grad, tensor.grad is None) for name, tensor in held.items()},
        "flags": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "outside": OUTSIDE.tolist(),
        "own": (list(getattr(model, "calls", [])), getattr(model, "last", None)),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


# ---- left as it was


@pytest.mark.parametrize("mode", ["eval", "train", "as_is"])
@pytest.mark.parametrize("build", [Net, FailsForReal])
def test_model_inputs_and_random_states_are_as_before(
    build: Callable[[], Net], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "REPEATS", 2)
    model = build()
    model.drop.eval()  # flags that differ: each must come back to its own
    x = torch.randn(3, 4)
    before = state(model, x)
    runs: list[Callable[[], object]] = [
        lambda: measure(model, (x,), {}, mode),
        lambda: stat(model, x, mode=mode, measure=True),
        lambda: stat(model, (4,), batch=3, mode=mode, measure=True),  # inputs are made up
    ]
    for run in runs * 2:
        with pytest.raises(ForwardError) if build is FailsForReal else contextlib.nullcontext():
            run()
        assert state(model, x) == before


def test_batch_statistics_are_made_and_put_back_in_train_mode() -> None:
    """The run is the one that was asked for: it does update running statistics, on copies."""
    seen: list[list[float]] = []

    class Watched(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = super().forward(x)
            if not on_meta(x):
                assert self.running_mean is not None
                seen.append(self.running_mean.tolist())
            return result

    model = Watched(4)
    measure(model, (torch.full((3, 4), 10.0),), {}, "train")
    # 0.9 x 0 + 0.1 x 10, from fresh copies in every run.
    assert seen == [[pytest.approx(1.0)] * 4] * (2 * (REPEATS + 1))
    assert model.running_mean.tolist() == [0.0] * 4 and int(model.num_batches_tracked) == 0
    assert model.training


def test_inputs_of_all_forms_reach_the_real_run() -> None:
    seen: list[Any] = []

    class Choosy(nn.Module):
        def forward(self, pair: dict[str, Any], scale: float, *, ids: torch.Tensor) -> torch.Tensor:
            if not on_meta(ids):
                seen.append((pair["x"].tolist(), pair["rest"][0].shape, scale, ids.tolist()))
            return pair["x"] * scale + pair["rest"][0] + ids

    ids, x = torch.tensor([1, 2, 3]), torch.ones(3)
    ledger, error = api.open_ledger(
        *(Choosy(), [{"x": x, "rest": [(3,)]}], {"scale": 2.0, "ids": ids}, 1, "eval", None, None),
        measure="yes",
    )
    assert error is None and ledger.record.measurement is not None
    # The tensors that were given with their values; the size (3,) as a batch of one.
    assert seen and all(call == ([1.0] * 3, (1, 3), 2.0, [1, 2, 3]) for call in seen)


# ---- who cannot be measured


def meta_model() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(4, 2)


def half_meta() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[1].running_mean = torch.zeros(2, device="meta")
    return model


@pytest.mark.parametrize("build", [meta_model, half_meta, lambda: nn.LazyLinear(2)], ids=["meta", "buffer", "lazy"])
def test_model_without_values_is_refused(build: Callable[[], nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    model = build()
    assert not has_values(model)
    for run in (lambda: measure(model, (torch.ones(1, 4),), {}, "eval"), lambda: stat(model, (4,), measure=True)):
        with pytest.raises(
            UserError, match=r"cannot measure a model without values: .* or leave measure out"
        ) as caught:
            run()
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_measured_run_takes_the_model_as_it_is() -> None:
    with pytest.raises(UserError, match="leave model_dtype out"):
        stat(nn.Linear(4, 2), (4,), measure=True, model_dtype="bfloat16")


def test_real_run_that_fails_says_so() -> None:
    with pytest.raises(
        ForwardError, match=r"the real run failed, where the run on meta did not: .*out of something"
    ) as caught:
        measure(FailsForReal(), (torch.ones(3, 4),), {}, "eval")
    assert isinstance(caught.value.ledger, Ledger)
    assert caught.value.ledger.totals()["macs"] == 3 * 4 * 4, "what ran before"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_forward_that_fails_on_meta_is_not_measured() -> None:
    with pytest.raises(ForwardError) as caught:
        stat(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 2)), (4,), measure=True)
    assert caught.value.ledger.record.measurement is None


# ---- seconds


def test_rows_are_those_of_the_view_and_add_up() -> None:
    model = Net()
    ledger = stat(model, (4,), batch=3, mode="train", measure=True)
    measurement = ledger.record.measurement
    assert measurement is not None
    measured = {(row.path, row.operation, row.ordinal) for row in measurement.rows}
    assert measured == set(ledger.record.row_keys()), "meta and real run book the same operations"
    assert len(measured) == len(measurement.rows)
    table = ledger.by_layer()
    assert all(row["seconds_measured"] >= 0 for row in table.rows)
    assert not any(row["note"] for row in table.rows), "no row was measured alone"
    seconds = [row["seconds_measured"] for row in table.rows]
    assert (
        table.total["seconds_measured"]
        == pytest.approx(sum(seconds))
        == pytest.approx(sum(row.seconds for row in measurement.rows))
    )
    for view in (table, ledger.by_module(1), ledger.by_module(0), ledger.by_layer("torchstat")):
        assert sum(row["duration_percent"] for row in view.rows) == pytest.approx(100)
        assert view.total["duration_percent"] == 100
    assert ledger.by_module(0).rows[0]["seconds_measured"] == pytest.approx(sum(seconds))


def test_seconds_are_those_of_the_operations() -> None:
    model = Sleepy()
    x = torch.ones(1, 4)
    measurement = measure(model, (x,), {}, "eval")
    seconds = {row.path or row.operation: row.seconds for row in measurement.rows}
    # The leaf ran twice; what lies between operations is in the wall time alone.
    assert set(seconds) == {"leaf", "ledgertest::slow", "layer"}
    assert seconds["leaf"] >= 2 * SLEEP and seconds["ledgertest::slow"] >= SLEEP
    assert seconds["layer"] < SLEEP
    assert measurement.wall_seconds >= 4 * SLEEP
    assert measurement.repeats == REPEATS
    assert measurement.device.startswith("CPU (") and str(torch.get_num_threads()) in measurement.device


def test_median_of_the_repeats() -> None:
    """One slow repeat of seven moves nothing, nor does the warm-up."""
    pauses = iter([0.05, 0.05, *[0.0] * 6, 0.05, 0.05, *[0.0] * 50])

    class Uneven(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not on_meta(x):
                time.sleep(next(pauses))
            return x + 1

    measurement = measure(Uneven(), (torch.ones(2),), {}, "eval")
    assert measurement.wall_seconds < 0.05


def test_long_runs_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "BUDGET_SECONDS", 0.0)
    assert measure(nn.Linear(4, 2), (torch.ones(1, 4),), {}, "eval").repeats == FEWEST < REPEATS


def test_measured_in_the_mode_asked_for_without_gradients() -> None:
    seen: set[tuple[bool, bool, bool]] = set()

    class Flagged(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = super().forward(x)
            seen.add((self.training, torch.is_grad_enabled(), result.requires_grad))
            return result

    for mode, training in (("train", True), ("eval", False), ("as_is", True)):
        seen.clear()
        measure(Flagged(4, 2), (torch.ones(1, 4),), {}, mode)  # type: ignore[arg-type]
        assert seen == {(training, False, False)}


# ---- what is printed


@pytest.mark.parametrize("measured", [False, True])
def test_prints_of_the_model_come_once_and_on_stderr(capsys: pytest.CaptureFixture[str], measured: bool) -> None:
    stat(Net(), (4,), batch=3, measure=measured)
    out, err = capsys.readouterr()
    assert err == "forward of Net\n" and "forward of Net" not in out
    assert ("duration" in out, "\nmeasured on CPU (" in out) == (measured, measured)


# ---- measured without asking


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """Count the models that are measured."""
    measured: list[nn.Module] = []
    real = api.measure_run

    def counted(model: nn.Module, *rest: Any) -> Any:
        measured.append(model)
        return real(model, *rest)

    monkeypatch.setattr(api, "measure_run", counted)
    return measured


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"convention": "torchstat"}, True),
        ({"convention": "torchstat", "measure": True}, True),
        ({"convention": "torchstat", "measure": False}, False),
        ({"convention": "torchstat", "model_dtype": "bfloat16"}, False),
        ({"convention": "full"}, False),
        ({"convention": "full", "measure": True}, True),
        ({}, False),
    ],
    ids=str,
)
def test_default_of_measure(
    runs: list[nn.Module], capsys: pytest.CaptureFixture[str], options: dict[str, Any], measured: bool
) -> None:
    model = nn.Linear(4, 2)
    ledger = stat(model, (4,), **options)
    assert (runs == [model], ledger.record.measurement is not None) == (measured, measured)
    assert ("duration" in capsys.readouterr().out) == measured, "no column of zeros"


@pytest.mark.parametrize("build", [meta_model, half_meta], ids=["meta", "buffer"])
def test_default_leaves_a_model_without_values_alone(
    runs: list[nn.Module], capsys: pytest.CaptureFixture[str], build: Callable[[], nn.Module]
) -> None:
    assert stat(build(), (4,), convention="torchstat").record.measurement is None
    assert runs == [] and "duration" not in capsys.readouterr().out


@pytest.mark.parametrize(("below", "measured"), [(8, False), (9, True)])
def test_default_stops_at_a_cost(
    runs: list[nn.Module], monkeypatch: pytest.MonkeyPatch, below: int, measured: bool
) -> None:
    assert api.MEASURED_BELOW == 20e9
    monkeypatch.setattr(api, "MEASURED_BELOW", below)
    stat(nn.Linear(4, 2), (4,), convention="torchstat")  # 4 x 2 macs
    assert bool(runs) is measured


def test_analyze_never_measures(runs: list[nn.Module]) -> None:
    assert analyze(nn.Linear(4, 2), (4,)).record.measurement is None and runs == []


def test_measured_ledger_is_saved_with_its_seconds(tmp_path: Any) -> None:
    ledger = stat(nn.Linear(4, 2), (4,), measure=True)
    ledger.save(tmp_path / "net.json")
    again = Ledger.load(tmp_path / "net.json")
    assert again.record == ledger.record and str(again.by_layer()) == str(ledger.by_layer())


class OnlyOnMeta(nn.Module):
    """A model whose real run fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not on_meta(x):
            raise RuntimeError("no kernel")
        return x + 1


def test_measuring_that_nobody_asked_for_does_not_fail_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = stat(OnlyOnMeta(), (4,), convention="torchstat")
    assert ledger.record.measurement is None
    assert any("no kernel" in assumption for assumption in ledger.assumptions)
    assert "assumed: not measured" in capsys.readouterr().out


def test_measuring_that_was_asked_for_fails_after_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ForwardError, match=r"the real run failed, where the run on meta did not: .*no kernel"):
        stat(OnlyOnMeta(), (4,), measure=True)
    assert "OnlyOnMeta, by layer" in capsys.readouterr().out
