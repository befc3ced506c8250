"""A whole training step: what is booked in which phase and under which module, and the same on meta as for real."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from torchledger import ForwardError, Ledger, UserError, analyze
from torchledger.capture import capture
from torchledger.capture.twins import Copies
from torchledger.capture.whole import TWICE
from torchledger.ledger import PHASES
from torchledger.training import FIRST, OPTIMIZERS, SUMMED, training_step
from torchledger.views import AtLeast


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def booked(ledger: Ledger) -> list[tuple[str, str, str]]:
    """Return operation, module and phase of each entry."""
    record = ledger.record
    return [
        (record.operations[e.operation].name, record.modules.paths[record.calls.modules[e.call]], e.phase)
        for e in record.entries
    ]


def macs(ledger: Ledger) -> tuple[int, ...]:
    return tuple(int(ledger.totals(phase=phase)["macs"]) for phase in PHASES)  # type: ignore[arg-type]


step = functools.partial(analyze, training=True, loss="cross_entropy")

# --- backward macs: twice the forward's, less what nobody asks for -----------------------------------------------


def test_two_linear_layers() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    # forward 2 rows of 4 x 5 and 5 x 3; backward both weights' gradients, and the input's of the second alone
    assert macs(step(net, (4,), batch=2)) == (2 * 20 + 2 * 15, 2 * 20 + 2 * (2 * 15), 0)


def test_an_input_that_asks_for_a_gradient_gets_one() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 4, requires_grad=True)
    assert macs(step(net, x)) == (2 * 12, 2 * 2 * 12, 0)
    assert x.grad is None


def test_a_frozen_layer_passes_the_gradient_on_where_one_is_wanted() -> None:
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    net = nn.Sequential(first, second)
    first.requires_grad_(False)  # nothing to do there at all
    assert macs(step(net, (4,), batch=2)) == (2 * 20 + 2 * 15, 2 * 15, 0)
    first.requires_grad_(True)
    second.requires_grad_(False)  # the input's gradient alone
    assert macs(step(net, (4,), batch=2)) == (2 * 20 + 2 * 15, 2 * 15 + 2 * 20, 0)


def test_an_adapter_beside_a_frozen_layer() -> None:
    """x W + x A B: A's gradient needs that of x A, which B passes on."""
    net = Net(lambda net, x: net.w(x) + net.b(net.a(x)), w=nn.Linear(8, 6, False), a=nn.Linear(8, 2, False))
    net.b = nn.Linear(2, 6, False)
    net.w.requires_grad_(False)
    assert macs(step(net, (8,), batch=3)) == (3 * (48 + 16 + 12), 3 * (2 * 12 + 16), 0)


def test_a_shared_weight_has_a_gradient_for_each_use() -> None:
    net = Net(lambda net, x: net.fc(net.fc(x)), fc=nn.Linear(4, 4, False))
    ledger = step(net, (4,), batch=2)
    # both uses' weight gradients, added up, and the second's input gradient
    assert macs(ledger) == (2 * 2 * 16, 3 * 2 * 16, 0)
    assert ("add", "fc", "backward") in booked(ledger)


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_convolution(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), kind(4, 6, 3, groups=groups), nn.Flatten())
    ledger = step(net, (3, 8, 8))
    # each element of the output (of the input, transposed) meets 3 x 3 x channels of the other side of its group
    elements, other = (4 * 8 * 8, 6) if transposed else (6 * 6 * 6, 4)
    second = elements * 9 * other // groups
    first = 4 * 8 * 8 * 3
    assert macs(ledger) == (first + second, first + 2 * second, 0)


def test_recurrent_layers_and_attention_cost_twice_the_forward() -> None:
    x = torch.zeros(2, 7, 4, requires_grad=True)
    lstm = Net(lambda net, x: net.lstm(x)[0].sum(1), lstm=nn.LSTM(4, 5, batch_first=True))
    forward, backward, _ = macs(step(lstm, x))
    assert forward == 2 * 7 * 4 * 5 * (4 + 5) and backward == 2 * forward
    attention = Net(lambda net, x: F.scaled_dot_product_attention(x, x, x * net.s).sum(1))
    attention.s = nn.Parameter(torch.ones(1))
    forward, backward, _ = macs(step(attention, x))
    assert forward == 2 * 2 * 7 * 7 * 4 and backward == 2 * forward


@pytest.mark.parametrize(
    ("trains", "backward"),
    # Linear(7, 4) on 2 x 7 rows: 392 a weight's gradient; 2 x 7 x 7 scores by 4: 392 each of dV, dP, dQ and dK
    [("v", 2 * 392), ("q", 3 * 392), ("qv", 2 * 392 + 3 * 392), ("qkv", 3 * 392 + 4 * 392)],
)
def test_attention_goes_back_as_far_as_somebody_asks(trains: str, backward: int) -> None:
    net = Net(
        lambda net, x: F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x)),
        **{name: nn.Linear(7, 4, bias=False).requires_grad_(name in trains) for name in "qkv"},
    )
    assert macs(analyze(net, (7, 7), batch=2, training=True))[1] == backward


@pytest.mark.parametrize(
    ("frozen", "macs_of_a_row"),
    # back through w_hh (24 x 6), then the gradients of w_ih (24 x 8) and w_hh
    [((), 144 + 192 + 144), (("bias_ih_l0", "bias_hh_l0"), 144 + 192 + 144), (("weight_hh_l0",), 144 + 192),
     (("weight_ih_l0", "bias_hh_l0"), 144 + 144)],
)  # fmt: skip
def test_frozen_parameters_of_an_lstm(frozen: tuple[str, ...], macs_of_a_row: int) -> None:
    lstm = nn.LSTM(8, 6)
    for name in frozen:
        lstm.get_parameter(name).requires_grad_(False)
    ledger = analyze(lstm, torch.zeros(2, 5, 8), training=True)
    assert ledger.totals(phase="backward")["macs"] == 10 * macs_of_a_row


# --- phases and places ---------------------------------------------------------------------------------------------


def test_backward_is_booked_where_forward_was() -> None:
    net = Net(lambda net, x: net.b(net.a(x).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, 3))
    places = {(name, path) for name, path, phase in booked(step(net, (4,), batch=2)) if phase == "backward"}
    assert {("mm", "a"), ("mm", "b"), ("threshold_backward", ""), ("nll_loss_backward", "")} <= places


def test_a_module_that_two_parents_call_gets_the_backward_of_each_call() -> None:
    fc = nn.Linear(4, 4)
    ledger = step(nn.Sequential(nn.Sequential(fc), nn.Sequential(fc)), (4,), batch=2)
    backward = Counter(path for name, path, phase in booked(ledger) if phase == "backward" and name == "mm")
    assert backward == {"0.0": 1, "1.0": 2}


@pytest.mark.parametrize("view", ["by_layer", "by_operation", "by_module"])
def test_phases_add_up_in_every_view(view: str) -> None:
    ledger = step(nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)), (4,), batch=2, optimizer="adamw")
    for name in ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes", "operations"):
        whole = getattr(ledger, view)().total[name]
        parts = [getattr(ledger, view)(phase=phase) for phase in PHASES]
        assert sum(part.total[name] for part in parts) == whole == ledger.totals()[name]
        assert all(sum(row[name] for row in part.rows) == part.total[name] for part in parts)
    assert ledger.totals(phase="backward")["activation_bytes"] == 0
    assert "backward of the training step" in ledger.by_layer(phase="backward").title
    with pytest.raises(UserError, match="phase is 'forwards'"):
        ledger.by_layer(phase="forwards")


@pytest.mark.parametrize("convention", ["torchstat", "fvcore"])
def test_narrower_conventions_count_the_forward_alone(convention: str) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).train()
    inference = analyze(net, (4,), mode="train").totals(convention)
    training = step(net, (4,)).totals(convention)
    quantities = {"torchstat": ("madd", "flops", "mem_rw_b"), "fvcore": ("macs", "activations")}[convention]
    assert [training[name] for name in quantities] == [inference[name] for name in quantities]
    assert all(training[name] for name in quantities)
    assert training["excluded"] > inference["excluded"]


# --- the same on meta as for real ----------------------------------------------------------------------------------


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def checkpointed(reentrant: bool) -> nn.Module:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.ReLU())
    return Net(
        lambda net, x: torch.utils.checkpoint.checkpoint(net.a, net.b(x), use_reentrant=reentrant),
        b=nn.Linear(4, 4),
        a=inner,
    )


def packed(net: Any, x: torch.Tensor) -> torch.Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 3]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(net.a(rows)[0], batch_first=True)[0]


def penalised(net: Any, x: torch.Tensor) -> torch.Tensor:
    """A gradient that forward itself asks for."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net.a(x).tanh().sum(), x, create_graph=True)
    return net.a(x) + gradient.square().sum()


def gone_back_through_twice(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Two gradients that forward asks for of one graph."""
    x = x.clone().requires_grad_()
    y = net.a(x)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (y.sum(), y.square().sum()))
    return y + (first + second).detach().sum()


class Recurrent(nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)[0]


def attending() -> nn.Module:
    """Attention of a sample to itself, whose queries are projected."""
    q = nn.Linear(4, 4, bias=False)
    return Net(lambda net, x: F.scaled_dot_product_attention(net.q(x), x, x), q=q)


IMAGE = torch.randn(2, 3, 9, 9)
NETS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(5, 3)),
    "dropout in place": lambda: Net(
        lambda net, x: net.b(F.dropout(net.a(x), 0.5, True, True)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)
    ),
    "lstm": lambda: Net(
        lambda net, x: net.a(x)[0], a=nn.LSTM(4, 5, 2, bidirectional=True, dropout=0.2, batch_first=True)
    ),
    "gru": lambda: Net(lambda net, x: net.a(x)[1], a=nn.GRU(4, 5)),
    "packed": lambda: Net(packed, a=nn.LSTM(4, 5, batch_first=True)),
    "attention": lambda: Net(
        lambda net, x: net.a(x, x, x, need_weights=False)[0],
        a=nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1),
    ),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "image": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Dropout2d(),
        nn.ConvTranspose2d(8, 4, 2),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Softmax(-1),
    ),
    "penalty, dropout": lambda: Net(penalised, a=nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Dropout1d())),
    "penalty, attention": lambda: Net(penalised, a=attending()),
    "twice, attention": lambda: Net(gone_back_through_twice, a=attending()),
    "twice, gru": lambda: Net(gone_back_through_twice, a=Recurrent(nn.GRU(4, 5))),
    "twice, dropout": lambda: Net(gone_back_through_twice, a=nn.Sequential(nn.Linear(4, 4), nn.Dropout())),
    "checkpoint": lambda: checkpointed(False),
    "reentrant checkpoint": lambda: checkpointed(True),
    "own function": lambda: Net(lambda net, x: Square.apply(net.a(x)), a=nn.Linear(4, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
    "tied": lambda: Net(lambda net, x: F.linear(net.a(x), net.a.weight.t()), a=nn.Linear(4, 4)),
    "penalty": lambda: Net(penalised, a=nn.Linear(4, 4)),
    "penalty on a convolution and norms": lambda: Net(
        penalised,
        a=nn.Sequential(nn.Conv1d(7, 6, 3), nn.GroupNorm(2, 6), nn.GELU(), nn.LayerNorm(2), nn.Softmax(-1)),
    ),
    "embedding": lambda: Net(lambda net, x: net.a(x.argmax(-1)), a=nn.Embedding(9, 5)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_step_on_meta_is_the_step_for_real(name: str) -> None:
    net, x = NETS[name](), IMAGE if name == "image" else torch.randn(2, 7, 4)
    found = []
    for real in (None, Copies()):
        captured = capture(net, (x,), {}, "train", real=real, training=training_step(None, "adamw"))
        assert captured.error is None, captured.record.error
        record = captured.record
        found.append(
            [
                (*place, record.operations[entry.operation])
                for place, entry in zip(booked(Ledger(record)), record.entries, strict=True)
            ]
        )
        assert not Ledger(record).unknown
    assert found[0] == found[1]
    assert {phase for _, _, phase, _ in found[0]} == set(PHASES)


def tangent(net: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(net.a, (x,), (torch.ones_like(x),))[1]


def frozen_convolutions() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    for layer in net:
        layer.weight.requires_grad_(False)
    return net


BYTES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    **{
        f"bags, {mode}": (functools.partial(nn.EmbeddingBag, 10, 4, mode=mode), torch.zeros(2, 3, dtype=torch.int64))
        for mode in ("sum", "mean", "max")
    },
    "biases alone": (frozen_convolutions, torch.zeros(2, 3, 8, 8)),  # mkldnn hands the weights' gradients out too
    "array": (
        lambda: Net(lambda net, x: net.a(x) + torch.as_tensor(numpy.arange(4, dtype="f4"), device=x.device),
                    a=nn.Linear(4, 4)), torch.zeros(2, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_bytes_on_meta_are_the_bytes_for_real(name: str) -> None:
    build, x = BYTES[name]
    net, found = build(), []
    for execute in (False, True):
        ledger = analyze(net, x, training=True, execute=execute)
        assert not ledger.unknown
        found.append([ledger.totals(phase=phase) for phase in PHASES])
    for quantity in ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes"):
        assert [one[quantity] for one in found[0]] == [one[quantity] for one in found[1]], quantity


def test_forward_mode_gradients_are_known() -> None:
    net = Net(tangent, a=nn.Linear(4, 4))
    for execute in (False, True):
        ledger = analyze(net, (4,), batch=2, execute=execute)
        # the layer itself, and the tangent of x by the weight and of the weight, which is zero, by x
        assert not ledger.unknown and ledger.totals()["macs"] == 3 * 2 * 16


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
def test_sparse_gradients_are_named_and_never_stop_a_step() -> None:
    net = nn.Embedding(10, 4, sparse=True)
    for optimizer in ("sgd", "adagrad", torch.optim.SparseAdam):
        ledger = analyze(net, (3,), input_dtype="int64", training=True, optimizer=optimizer)
        assert ledger.unknown["_sparse_coo_tensor_with_dims_and_tensors"]
        assert isinstance(ledger.totals()["bytes_read"], AtLeast)
        was_real = any("run for real, since optimizer" in one for one in ledger.assumptions)
        assert was_real == (optimizer == "adagrad"), "which asks a sparse gradient for its mask"


def test_an_array_is_taken_as_it_lies() -> None:
    places = numpy.array([2, 1])

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        kept = int(torch.as_tensor(places, device=x.device).sum())  # its values are known
        return net.a(x)[:, :kept] + torch.asarray(numpy.ones(3, "f4"), dtype=torch.float64)

    ledger = analyze(Net(forward, a=nn.Linear(4, 4)), (4,), execute=False)
    names = Counter(ledger.record.operations[entry.operation].name for entry in ledger.record.entries)
    assert names["to_copy"] == 1, "from single to double"
    (sum_,) = [one for one in ledger.record.operations if one.name == "add"]
    assert sum_.outputs[0].tensor.shape == (1, 3) and sum_.outputs[0].tensor.dtype == "float64"


def test_a_checkpoint_is_seen_as_it_is() -> None:
    """Its forward runs again in the backward."""
    plain = checkpointed(False)
    again = step(plain, (7, 4), loss=lambda output: output.sum())
    forward, backward, _ = macs(again)
    inner, outer = 7 * 4 * 5, 7 * 4 * 4
    assert (forward, backward) == (inner + outer, inner + (2 * inner + outer))
    assert ("addmm", "a.0", "backward") in booked(again)


# --- the optimizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_by_name(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    ledger = step(net, (4,), batch=2, optimizer=name)
    taken = Counter(operation for operation, _, phase in booked(ledger) if phase == "optimizer")
    assert taken and not ledger.unknown and all(operation.startswith("_foreach_") for operation in taken)
    assert not any(p.grad is not None for p in net.parameters())


def test_the_step_is_one_of_the_steady_state() -> None:
    """The state is there from the start, and is not made within the step."""
    net = nn.Sequential(nn.Linear(4, 5))
    allocations = step(net, (4,), optimizer="adamw").record.allocations
    kinds = {
        kind: [a for a in allocations if a.kind == kind] for kind in ("optimizer", "host", "gradient", "parameter")
    }
    kinds["optimizer"] += kinds["host"]  # the counts of steps
    # two moments of 4 x 5 and of 5, a count of steps for each
    assert sorted(a.bytes for a in kinds["optimizer"]) == sorted(2 * [80, 20] + 2 * [4])
    assert all((a.born, a.died) == (0, None) for a in kinds["optimizer"])
    assert sorted(a.bytes for a in kinds["gradient"]) == [20, 80]
    assert all(a.died is not None for a in kinds["gradient"]), "zero_grad frees them"


def test_sgd_by_hand() -> None:
    ledger = step(nn.Sequential(nn.Linear(4, 5)), (4,), optimizer="sgd")
    # p += -rate g for each of the 25 parameters: a product and a sum
    assert ledger.totals(phase="optimizer")["flops"] == 2 * 25
    assert [name for name, _, phase in booked(ledger) if phase == "optimizer"] == ["_foreach_add_"]


def test_an_optimizer_of_the_users_own_keeps_its_groups() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    groups = [{"params": net[0].parameters(), "weight_decay": 0.0}, {"params": net[1].parameters()}]
    own = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True)
    before = copy.deepcopy(own.state_dict())
    ledger = step(net, (4,), optimizer=own)
    decayed = [name for name, _, phase in booked(ledger) if phase == "optimizer"]
    assert decayed.count("_foreach_add") == 1, "weight decay of the second group alone"
    assert own.state_dict() == before and all(p.grad is None for p in net.parameters())
    with pytest.raises(ForwardError, match="SGD holds none of the model's parameters"):
        step(nn.Linear(4, 3), (4,), optimizer=own)


def test_a_penalty_on_a_gradient_through_attention() -> None:
    ledger = analyze(Net(penalised, a=attending()), torch.zeros(6, 2, 4), training=True)
    projection, product = 6 * 2 * 4 * 4, 6 * 2 * 2 * 4
    # forward: attention twice, and of one the gradient of x: four products, and through the projection
    forward = 2 * (projection + 2 * product) + 4 * product + projection
    # Through the gradient: two for each of its products (dQ, dK, dP, dV, and the projection's), and two for the scores.
    # Then both attentions, and the queries' weight and x of both.
    backward = 2 * projection + 10 * product + 2 * (4 * product + 2 * projection)
    assert macs(ledger) == (forward, backward, 0)
    assert TWICE in ledger.assumptions and not ledger.unknown


def test_a_penalty_on_a_gradient_through_a_recurrent_layer() -> None:
    """For real, torch takes the steps' inputs together: other operations, of the same sizes in all."""
    found = []
    for execute in (False, True):
        ledger = analyze(Net(penalised, a=Recurrent(nn.LSTM(4, 4))), (7, 4), batch=2, training=True, execute=execute)
        assert TWICE in ledger.assumptions and not ledger.unknown
        found.append(macs(ledger))
    assert found[0] == found[1]
    # 2 steps of 7 rows: two layers, and of one of them the gradients of inputs, of states but for the first, of weights
    inputs, states = 2 * 7 * 4 * 4 * 4, 2 * 7 * 4 * 4 * 4
    assert found[0][0] == 2 * (inputs + states) + inputs + states // 2 + (inputs + states)


X = torch.randn(6, 2, 4)
PROJECTION, PRODUCT = 6 * 2 * 4 * 4, 6 * 2 * 2 * 4
# Operations that are booked whole elsewhere, and their macs under a transform of torch.func.
TRANSFORMED: dict[str, tuple[Callable[..., Any], nn.Module, int]] = {
    "vmap, attention": (lambda net, x: torch.vmap(net.a)(x), attending(), PROJECTION + 2 * PRODUCT),
    "vmap, dropout": (
        lambda net, x: torch.vmap(net.a, randomness="different")(x),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
        PROJECTION,
    ),
    # and back through four products and the projection
    "grad, attention": (
        lambda net, x: torch.func.grad(lambda x: net.a(x).sum())(x),
        attending(),
        2 * PROJECTION + 6 * PRODUCT,
    ),
    "grad, dropout": (
        lambda net, x: torch.func.grad(lambda x: net.a(x).sum())(x),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
        2 * PROJECTION,
    ),
    # 6 steps of 2 rows, 4 gates of 4 from 4 and 4; and the gradients of inputs, and of states but for the first
    "grad, lstm": (
        lambda net, x: torch.func.grad(lambda x: net.a(x).sum())(x),
        Recurrent(nn.LSTM(4, 4)),
        6 * 2 * 4 * 4 * (4 + 4) + (6 + 5) * 2 * 4 * 4 * 4,
    ),
}


@pytest.mark.parametrize(("forward", "inner", "expected"), TRANSFORMED.values(), ids=TRANSFORMED)
def test_transforms_of_torch_func(forward: Callable[..., Any], inner: nn.Module, expected: int) -> None:
    ledger = analyze(Net(forward, a=inner), X, mode="train", execute=False)
    assert ledger.totals()["macs"] == expected and not ledger.unknown


@pytest.mark.parametrize("differentiates", [False, True])
def test_what_can_be_gone_back_through_once_alone_says_so(differentiates: bool) -> None:
    def penalty(net: Any, x: torch.Tensor) -> torch.Tensor:
        rows = nn.utils.rnn.PackedSequence(net.a(x.clone().requires_grad_()), torch.tensor([2, 2, 1]))
        y, _ = nn.utils.rnn.pad_packed_sequence(rows)
        (gradient,) = torch.autograd.grad(y.square().sum(), rows.data, create_graph=True)
        return y.sum() + (gradient.square().sum() if differentiates else 0)

    net = Net(penalty, a=nn.Linear(4, 4))
    if differentiates:
        with pytest.raises(ForwardError, match=r"backward: .*goes back through _pad_packed_sequence once"):
            analyze(net, (4,), batch=5, training=True)
    else:
        assert not analyze(net, (4,), batch=5, training=True).unknown


class Careless(torch.optim.Optimizer):
    """Makes known tensors that it does not use, then asks for the size of a gradient."""

    read: ClassVar[list[float]] = []

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            for _ in range(3):
                torch.ones(parameter.shape)
            for size in [parameter.grad.abs() for _ in range(8)] + [parameter.grad.neg() for _ in range(8)]:
                with contextlib.suppress(RuntimeError):
                    self.read.append(size.max().item())


def test_the_unbooked_step_of_an_optimizer_leaves_nothing_known_behind() -> None:
    """A storage that died may have its address again: the gradient is no tensor of ones."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3))
    step(net, (4,), batch=2, optimizer=Careless, execute=False)
    assert Careless.read == []


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, "radam"])
def test_the_unbooked_step_of_an_optimizer_is_all_seen_and_nowhere_booked(optimizer: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    done = threading.Event()
    idle = threading.Thread(target=done.wait, daemon=True)  # with threads about, a stranger might be one of theirs
    idle.start()
    try:
        ledger = step(net, (4,), batch=2, optimizer=optimizer)
    finally:
        done.set()
    assert ledger.assumptions == []
    record = ledger.record
    assert {entry.operation for entry in record.entries} == set(range(len(record.operations)))


def test_other_ways_to_name_an_optimizer() -> None:
    net = nn.Linear(4, 3)
    fused = step(net, (4,), optimizer=lambda parameters: torch.optim.AdamW(parameters, fused=True))
    assert ("_fused_adamw_", "", "optimizer") in booked(fused)
    assert macs(step(net, (4,), optimizer=torch.optim.Adam))[2] == 0
    for wrong, said in (("adamww", "Did you mean 'adamw'"), (3, "optimizer is 3")):
        with pytest.raises(UserError, match=said):
            step(net, (4,), optimizer=wrong)


class Prepared(torch.optim.Optimizer):
    """Makes its state at once, and needs it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["mean"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.state[parameter]["mean"].mul_(0.9).add_(parameter.grad))


@pytest.mark.parametrize("execute", [False, True])
def test_an_optimizer_that_has_its_state_already(execute: bool) -> None:
    net = nn.Linear(4, 5)
    own = Prepared(net.parameters())
    for given in (own, Prepared):
        ledger = step(net, (4,), optimizer=given, execute=execute)
        assert ledger.totals(phase="optimizer")["flops"] == 3 * 25, "a product, a sum, a difference"
        assert sorted(a.bytes for a in ledger.record.allocations if a.kind in ("optimizer", "host")) == [20, 80]
    assert [id(key) for key in own.state] == [id(parameter) for parameter in net.parameters()]
    assert all(not state["mean"].any() for state in own.state.values())


class Paced(torch.optim.SGD):
    """An optimizer whose __init__ wants more than it keeps, and which counts its steps."""

    def __init__(self, parameters: Any, pace: float) -> None:
        super().__init__(parameters, lr=pace / 2, momentum=0.9, foreach=True)
        self.log: list[int] = []

    def step(self, closure: Any = None) -> Any:
        self.log.append(1)
        return super().step(closure)


def test_an_optimizer_of_the_users_own_class() -> None:
    net = nn.Linear(4, 5)
    own = Paced(net.parameters(), pace=0.2)
    torch.optim.lr_scheduler.ConstantLR(own)  # puts something in place of the step, bound to this optimizer
    weight = net.weight.detach().clone()
    ledger = step(net, (4,), optimizer=own)
    # m b + g, p - lr b: 4 for each of 4 x 5 + 5 parameters
    assert ledger.totals(phase="optimizer")["flops"] == 4 * 25
    assert own.log == [] and not own.state and own.param_groups[0]["params"][0] is net.weight
    assert torch.equal(net.weight, weight)
    by_function = step(net, (4,), optimizer=lambda parameters: Paced(parameters, pace=0.2))
    assert by_function.totals() == ledger.totals()
    with pytest.raises(UserError, match=r"Paced takes 2 arguments.*lambda parameters: Paced\(parameters, ...\)"):
        step(net, (4,), optimizer=Paced)


def test_an_optimizer_that_steps_by_a_closure_is_refused() -> None:
    net = nn.Linear(4, 5)
    for given in (torch.optim.LBFGS, torch.optim.LBFGS(net.parameters())):
        with pytest.raises(UserError, match=r"optimizer LBFGS steps by a closure, .* such as 'adamw'"):
            step(net, (4,), optimizer=given)
    with pytest.raises(ForwardError, match="optimizer LBFGS steps by a closure"):
        step(net, (4,), optimizer=lambda parameters: torch.optim.LBFGS(parameters))


# --- hooks on parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execute", [False, True])
def test_a_hook_on_a_gradient_is_booked(execute: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5))
    plain = macs(analyze(net, (4,), batch=2, training=True))

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient @ gradient.mT @ gradient

    handle = net[0].weight.register_hook(hook)
    found = macs(analyze(net, (4,), batch=2, training=True, execute=execute))
    # 5 x 4 by 4 x 5, then 5 x 5 by 5 x 4
    assert found == (plain[0], plain[1] + 100 + 100, 0)
    assert list(net[0].weight._backward_hooks.values()) == [hook], "what a hook takes away is put back"


@pytest.mark.parametrize("execute", [False, True])
def test_a_hook_that_steps_by_itself_is_part_of_the_backward(execute: bool) -> None:
    net = nn.Linear(4, 5, bias=False)
    weight, version = net.weight.detach().clone(), net.weight._version

    @torch.no_grad()
    def hook(parameter: torch.Tensor) -> None:
        parameter.sub_(parameter.grad, alpha=0.1)
        parameter.grad = None

    net.weight.register_post_accumulate_grad_hook(hook)
    ledger = analyze(net, (4,), batch=2, training=True, execute=execute)
    assert ("sub_", "", "backward") in booked(ledger)
    assert torch.equal(net.weight, weight) and net.weight.grad is None and net.weight._version == version


def in_dict(net: nn.Module, kind: Any) -> list[torch.optim.Optimizer]:
    """An optimizer for each parameter, as torch's tutorial has it."""
    optimizers = {parameter: kind([parameter]) for parameter in net.parameters()}

    def hook(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return list(optimizers.values())


def in_partials(net: nn.Module, kind: Any) -> list[torch.optim.Optimizer]:
    def hook(optimizer: Any, _: torch.Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    optimizers = [kind([parameter]) for parameter in net.parameters()]
    for parameter, optimizer in zip(net.parameters(), optimizers, strict=True):
        parameter.register_post_accumulate_grad_hook(functools.partial(hook, optimizer))
    return optimizers


class Stepper:
    """Looks optimizers up by parameter, in a method."""

    def __init__(self, net: nn.Module, kind: Any) -> None:
        self.optimizers = {parameter: kind([parameter]) for parameter in net.parameters()}
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(self.hook)

    def hook(self, parameter: torch.Tensor) -> None:
        self.optimizers[parameter].step()
        self.optimizers[parameter].zero_grad()


@pytest.mark.parametrize("hold", [in_dict, in_partials, lambda net, kind: list(Stepper(net, kind).optimizers.values())])
@pytest.mark.parametrize("execute", [False, True])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "adagrad"])
def test_optimizers_that_step_in_the_backward(name: str, execute: bool, hold: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    expected = analyze(net, (4,), batch=2, training=True, optimizer=name)
    optimizers = hold(net, OPTIMIZERS[name])
    before = [(p.detach().clone(), p._version) for p in net.parameters()]
    attributes = [{**vars(optimizer)} for optimizer in optimizers]
    for _ in range(2):
        ledger = analyze(net, (4,), batch=2, training=True, execute=execute)
        for phase in PHASES:
            for quantity in ("macs", "flops", "bytes_written"):
                assert ledger.totals(phase=phase)[quantity] == expected.totals(phase=phase)[quantity]
        kinds = ("optimizer", "host")
        sizes = [sorted(a.bytes for a in one.record.allocations if a.kind in kinds) for one in (ledger, expected)]
        assert sizes[0] == sizes[1], "states that are there from the start"
        for parameter, (value, version) in zip(net.parameters(), before, strict=True):
            assert torch.equal(parameter, value) and parameter._version == version and parameter.grad is None
        for optimizer, attribute in zip(optimizers, attributes, strict=True):
            assert all(vars(optimizer)[name] is value for name, value in attribute.items())
            assert {id(key) for key in optimizer.state} <= {id(parameter) for parameter in net.parameters()}
    net(torch.ones(2, 4)).sum().backward()
    assert all(not torch.equal(p, value) for p, (value, _) in zip(net.parameters(), before, strict=True))


def test_what_optimizers_hold_is_put_back_when_a_hook_fails() -> None:
    net = nn.Linear(4, 5, bias=False)
    optimizer = torch.optim.Adam(net.parameters())

    def hook(_: torch.Tensor) -> None:
        optimizer.step()
        raise RuntimeError("told to")

    net.weight.register_post_accumulate_grad_hook(hook)
    with pytest.raises(ForwardError, match="told to"):
        analyze(net, (4,), training=True)
    assert optimizer.param_groups[0]["params"][0] is net.weight and not optimizer.state
    assert net.weight.grad is None


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    ["cross_entropy", "nll", "mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits",
     nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss(), nn.BCEWithLogitsLoss(), lambda out: out.square().mean()],
)  # fmt: skip
def test_losses(loss: Any) -> None:
    ledger = analyze(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), (4,), batch=2, training=True, loss=loss)
    assert not ledger.unknown and not ledger.assumptions
    assert macs(ledger) == (24, 24, 0)


def test_classes_of_every_pixel() -> None:
    ledger = step(nn.Conv2d(3, 5, 1), (3, 6, 6), batch=2)
    (loss,) = [o for o in ledger.record.operations if o.name == "nll_loss2d_forward"]
    assert loss.inputs[1].shape == (2, 6, 6)


def test_the_loss_that_an_output_carries() -> None:
    net = Net(lambda net, x: {"loss": net.fc(x).sum(), "logits": net.fc(x)}, fc=nn.Linear(4, 3))
    assert analyze(net, (4,), training=True).assumptions == []


def test_what_is_taken_for_the_loss_is_said() -> None:
    net = Net(lambda net, x: (net.fc(x), net.fc(x).sum()), fc=nn.Linear(4, 3))
    assert analyze(net, (4,), training=True).assumptions == [SUMMED]
    assert step(net, (4,)).assumptions == [FIRST]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output: output, r"the loss is a tensor of shape \(2, 3\), expected a scalar"),
        (lambda output: 3.0, "the loss is 3.0, expected a scalar tensor"),
        (lambda output: output.detach().sum(), "does not hang on any parameter"),
    ],
)
def test_a_loss_that_is_none(loss: Any, said: str) -> None:
    with pytest.raises(ForwardError, match=said):
        analyze(nn.Linear(4, 3), (4,), batch=2, training=True, loss=loss)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"loss": "cross_entrpy"}, "Did you mean 'cross_entropy'"),
        ({"loss": F.cross_entropy}, "takes 2 arguments; .*lambda output: criterion"),
        ({"loss": nn.CrossEntropyLoss}, r"loss is <class .*nn.CrossEntropyLoss\(\)"),
        ({"training": False, "optimizer": "sgd"}, "optimizer was given without training"),
        ({"training": False, "loss": "mse"}, "loss was given without training"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        analyze(nn.Linear(4, 3), (4,), **{"training": True, **arguments})


def test_nothing_to_train() -> None:
    with pytest.raises(ForwardError, match="there is nothing to train"):
        analyze(nn.Linear(4, 3).requires_grad_(False), (4,), training=True)


def test_the_users_model_is_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)).eval()
    net[0].weight.grad = torch.ones(5, 4)
    before, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    step(net, (4,), batch=2, optimizer="adamw")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags and not net.training
    assert torch.equal(net[0].weight.grad, torch.ones(5, 4)) and net[3].weight.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Rprop", "ASGD", "Adafactor"])
@pytest.mark.parametrize("execute", ["auto", True])
def test_a_graph_that_the_user_holds_can_still_go_back(kind: str, execute: Any) -> None:
    """Autograd keeps count of what is written to: a step for real must not be among it."""
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 6))
    pending = net(torch.randn(3, 4)).square().sum()
    before = copy.deepcopy(net.state_dict())
    ledger = analyze(net, (4,), batch=3, training=True, optimizer=getattr(torch.optim, kind), execute=execute)
    assert ledger.totals(phase="optimizer")["flops"]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    pending.backward()


@pytest.mark.parametrize("execute", [False, True])
def test_a_tensor_outside_of_the_model_is_as_unwritten_as_before(execute: bool) -> None:
    outside, weight = torch.ones(4), nn.Parameter(torch.ones(4))

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        outside.add_(1)
        outside[1:].mul_(2)
        return net.fc(x) * outside

    pending = (weight * outside).sum()
    analyze(Net(forward, fc=nn.Linear(4, 4)), (4,), training=True, execute=execute)
    assert outside.tolist() == [1, 1, 1, 1] and outside._version == 0
    pending.backward()


def test_a_frozen_batch_norm_stays_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten()).eval()
    names = {
        o.arguments.get("training")
        for o in step(net, (3, 2, 2), mode="as_is").record.operations
        if o.name == "batch_norm"
    }
    assert names == {False}


def test_a_ledger_of_a_step_is_saved_and_read(tmp_path: Any) -> None:
    ledger = step(nn.Linear(4, 3), (4,), optimizer="sgd")
    ledger.save(tmp_path / "net.json")
    read = Ledger.load(tmp_path / "net.json")
    assert read.record == ledger.record and "training step (cross_entropy, sgd)" in read.by_layer().title
