"""LSTMs, attention and dropout are one operation each also where TorchScript, a graph or inference mode calls them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchledger import ForwardError, Ledger, analyze


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        yield


class Attention(nn.Module):
    """Attention over rows of 4, with dropout before it and on its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 12)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.drop(self.fc(x)).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


class Packed(nn.Module):
    """An LSTM over two samples of three rows and one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        rows = PackedSequence(x, torch.tensor([2, 1, 1]), None, None)
        return self.rnn(rows)[0].data


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Callable[[], nn.Module]:
    return lambda: First(kind(4, 6, batch_first=True, **options))


IMAGE, ROWS = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4)
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "lstm": (recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2), ROWS),
    "gru": (recurrent(nn.GRU), ROWS),
    "rnn": (recurrent(nn.RNN), ROWS),
    "rnn, relu": (recurrent(nn.RNN, nonlinearity="relu"), ROWS),
    "packed": (Packed, torch.randn(4, 4)),
    "attention": (Attention, ROWS),
    "dropout in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2, inplace=True)), ROWS),
    "channels": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout2d(0.2)), IMAGE),
}


def booked(ledger: Ledger) -> list[Any]:
    """Return what ran in each phase, in some order, but for the first states: TorchScript makes one for h and c.

    Nor what it does with its constants while it optimises a graph, which hangs on where they lie in memory.
    """
    record = ledger.record
    ran = [(entry.phase, record.operations[entry.operation]) for entry in record.entries]
    return sorted(
        (phase, operation.name, repr(operation.inputs), repr(operation.outputs))
        for phase, operation in ran
        if operation.name not in ("zeros", "empty", "equal")
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", ["scripted inside", "traced"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("execute", [False, True])
def test_torchscript_is_booked_as_the_module(name: str, form: str, training: bool, execute: bool) -> None:
    build, x = NETS[name]
    plain = build().train(training)
    script = torch.jit.trace(plain, x, check_trace=False) if form == "traced" else torch.jit.script(plain)
    model = nn.Sequential(script, nn.ReLU()) if form == "scripted inside" else script
    theirs = nn.Sequential(plain, nn.ReLU()) if form == "scripted inside" else plain
    options: dict[str, Any] = {"training": training, "execute": execute, "mode": "as_is"}
    found, expected = analyze(model, x, **options), analyze(theirs, x, **options)
    assert booked(found) == booked(expected)
    assert not found.unknown and found.assumptions == expected.assumptions
    for quantity in ("params", "macs", "flops"):
        assert found.totals()[quantity] == expected.totals()[quantity], quantity
    assert all(parameter.grad is None for parameter in model.parameters()), "gradients went to the stand-ins"
    assert all(type(parameter) is nn.Parameter and not parameter.is_meta for parameter in model.parameters())


def test_what_a_script_books_does_not_hang_on_earlier_runs() -> None:
    """TorchScript optimises a graph for what it was given first, for all scripts of a class."""

    class Dropping(nn.Module):
        """Of the test's own, which nothing else has run."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.inner(x).relu(), 0.5, self.training).view(-1)

    plain = Dropping()
    script = torch.jit.script(plain)
    for training in (True, False, True):
        for _ in range(3):
            found, expected = (
                analyze(model, ROWS, training=training, execute=True, mode="as_is") for model in (script, plain)
            )
            assert booked(found) == booked(expected)


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_graph_is_booked_as_the_module(training: bool) -> None:
    plain = Attention().train(training)
    graph = torch.export.export(plain, (ROWS,)).module()
    found, expected = (analyze(model, ROWS, training=training, mode="as_is") for model in (graph, plain))
    # 10 rows by 4 x 12, two products of 2 x 5 x 5 x 4; backward: the weight's gradient, four products
    assert found.totals(phase="forward")["macs"] == 10 * 48 + 2 * 200
    assert not training or found.totals(phase="backward")["macs"] == 10 * 48 + 4 * 200
    for quantity in ("flops", "bytes_written", "activation_bytes"):
        assert found.totals()[quantity] == expected.totals()[quantity], quantity


def test_inference_mode_inside_of_forward() -> None:
    class Own(Attention):
        """A class that no other test scripts: all of a class share what TorchScript made of it, gradients and all."""

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.script = torch.jit.script(Own().eval())

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.script(x.clone())

    found = analyze(Inside(), ROWS).by_operation().rows
    assert "scaled_dot_product_attention" in {row["operation"] for row in found}


def test_torch_is_as_it_was() -> None:
    model = torch.jit.script(First(nn.LSTM(4, 6, batch_first=True)))
    before = model(ROWS)
    dump = torch._C._dispatch_dump("aten::lstm.input")
    seen: list[Any] = []

    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.script = torch.jit.script(First(nn.GRU(4, 6, batch_first=True)))

        def forward(self, x: Tensor) -> Tensor:
            other = threading.Thread(target=lambda: seen.append(model(ROWS)))  # not analysed
            other.start()
            other.join()
            return self.script(x)

    ledger = analyze(Running(), ROWS)
    assert torch._C._dispatch_dump("aten::lstm.input") == dump
    assert torch.equal(seen[0], before) and torch.equal(model(ROWS), before)
    assert "lstm" not in {row["operation"] for row in ledger.by_operation().rows}


# --- what fails in TorchScript -------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if float(y.sum()) > 1e9:
            return y
        return self.fc(y)


def test_scripted_control_flow_is_run_for_real() -> None:
    model = torch.jit.script(Branching())
    ledger = analyze(model, (4,), batch=3)
    assert ledger.totals()["macs"] == 2 * 3 * 16
    assert ledger.assumptions[0].startswith("run for real, since (root): item needs the values of a tensor")
    with pytest.raises(ForwardError, match=r"item needs the values of a tensor.*execute=True \(--execute\)"):
        analyze(model, (4,), execute=False)


def test_what_fails_in_torchscript_is_named() -> None:
    with pytest.raises(ForwardError, match=r"addmm multiplies rows of 5 with columns of 4 \(input 3x5; addmm: "):
        analyze(torch.jit.script(nn.Linear(4, 4)), (5,), batch=3)
    rnn = torch.jit.script(nn.Sequential(nn.LSTM(4, 6)))
    with pytest.raises(ForwardError, match=r"^\(root\): Error: .*Expected 4, got 5 \(inputs 3x5\)$"):
        analyze(rnn, (5,), batch=3)


class Constants(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        counts: list[int] = torch.tensor([3, 1]).tolist()
        return x * torch.tensor([2.0, 1.0, 1.0]) + counts[0]


class Listed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        row: list[float] = x[0].tolist()
        return x + row[0]


class Printed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(x)
        return x + 1


def test_torchscript_goes_to_memory_by_itself() -> None:
    """On meta there is none: a constant is made for real, and what is read without being known is run for real."""
    ledger = analyze(torch.jit.script(Constants()), (3,), batch=2)
    assert ledger.totals()["flops"] == 2 * 6 and not ledger.assumptions
    for module, what in ((Listed(), "tolist"), (Printed(), "TorchScript")):
        ledger = analyze(torch.jit.script(module), (3,), batch=2)
        assert ledger.totals()["flops"] == 6
        assert ledger.assumptions[0].startswith(f"run for real, since (root): {what} needs the values of a tensor")


def test_a_move_in_torchscript_stays_on_meta() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cpu().to("cpu") + torch.empty(3, device="cpu").fill_(1)

    assert analyze(torch.jit.script(Moved()), (3,), execute=False).totals()["flops"] == 3


def test_what_python_makes_on_a_cpu_is_on_meta() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.empty(10**13, device="cpu")[:3]  # 40 TB

    assert analyze(Large(), (3,), execute=False).totals()["flops"] == 3


def test_a_script_that_no_module_holds_runs() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scripts = [torch.jit.script(nn.Linear(4, 4))]

        def forward(self, x: torch.Tensor) -> Any:
            return self.scripts[0](self.layer(x))

    assert analyze(Listed(), (4,)).totals()["macs"] == 32
