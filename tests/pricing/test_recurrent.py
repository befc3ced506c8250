"""Recurrent layers as one operation each, against stepping through them with numbers that count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from counting import Array, Number, counting, flops, numbers, product_sum, random, total, values
from dispatching import dispatched
from torch import Tensor, nn

from torchledger.capture.operations import tensor_info
from torchledger.pricing.convention import State
from torchledger.pricing.full import price
from torchledger.record import Operation, OutputInfo, TensorRef

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


def layer_of(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    extra = {"nonlinearity": "relu"} if name == "rnn_relu" else {}
    return KINDS[name](*args, **extra, **kwargs)


def operation_of(name: str, layer: Any, x: Tensor, **more: object) -> Operation:
    """Return the one entry of a whole layer, with the arguments that torch's own function takes."""
    with torch.no_grad():
        output, states = layer(x)
    states = states if isinstance(states, tuple) else (states,)
    weights = [w for group in layer._all_weights for w in (getattr(layer, key) for key in group)]
    given = [x, *states, *weights]  # states have the shapes of hx
    places = [TensorRef(index) for index in range(len(given))]
    hx = tuple(places[1 : 1 + len(states)])
    arguments: dict[str, object] = {
        "input": places[0],
        "hx": hx if name == "lstm" else hx[0],
        "params": tuple(places[1 + len(states) :]),
        "has_biases": layer.bias,
        "num_layers": layer.num_layers,
        "dropout": layer.dropout,
        "train": layer.training,
        "bidirectional": layer.bidirectional,
        "batch_first": layer.batch_first,
    }
    outputs = tuple(OutputInfo(tensor_info(tensor)) for tensor in (output, *states))
    return Operation(name, arguments | more, tuple(map(tensor_info, given)), outputs)


def sigmoid(x: Number) -> Number:
    return x.to("sigmoid", lambda value: 1 / (1 + math.exp(-value)))


def tanh(x: Number) -> Number:
    return x.to("tanh", math.tanh)


def gates(x: Array, h: Array, w: dict[str, Array], apart: bool = False) -> list[Any]:
    """Return the sums of both products with their biases; `apart`: the two sums."""
    sums = []
    for unit in range(len(w["ih"])):
        left, right = product_sum(w["ih"][unit], x), product_sum(w["hh"][unit], h)
        if "b_ih" in w:
            left, right = left + w["b_ih"][unit], right + w["b_hh"][unit]
        sums.append((left, right) if apart else left + right)
    return sums


def lstm_cell(x: Array, h: Array, c: Array, w: dict[str, Array]) -> tuple[Array, Array]:
    n = len(c)
    z = gates(x, h, w)
    i, f, g, o = [sigmoid(a) for a in z[:n]], [sigmoid(a) for a in z[n : 2 * n]], z[2 * n : 3 * n], z[3 * n :]
    c = np.array([f[k] * c[k] + i[k] * tanh(g[k]) for k in range(n)])
    h = np.array([sigmoid(o[k]) * tanh(c[k]) for k in range(n)])
    if "hr" in w:
        h = np.array([product_sum(row, h) for row in w["hr"]])
    return h, c


def gru_cell(x: Array, h: Array, c: Array, w: dict[str, Array]) -> tuple[Array, Array]:
    n = len(h)
    s = gates(x, h, w, apart=True)
    made = []
    for k in range(n):
        r, z = sigmoid(s[k][0] + s[k][1]), sigmoid(s[n + k][0] + s[n + k][1])
        new = tanh(s[2 * n + k][0] + r * s[2 * n + k][1])
        made.append((Number(1.0) - z) * new + z * h[k])
    return np.array(made), c


def rnn_cell(x: Array, h: Array, c: Array, w: dict[str, Array]) -> tuple[Array, Array]:
    return np.array([tanh(one) for one in gates(x, h, w)]), c


def relu_cell(x: Array, h: Array, c: Array, w: dict[str, Array]) -> tuple[Array, Array]:
    return np.array([one.to("max", lambda value: max(value, 0.0)) for one in gates(x, h, w)]), c


CELLS = {"lstm": lstm_cell, "gru": gru_cell, "rnn_tanh": rnn_cell, "rnn_relu": relu_cell}


def run(name: str, layer: Any, x: Array) -> Array:
    """Return the output of a stack, step by step."""
    groups = iter(layer._all_weights)
    for _ in range(layer.num_layers):
        parts = []
        for direction in range(1 + layer.bidirectional):
            keys = {"weight_ih": "ih", "weight_hh": "hh", "bias_ih": "b_ih", "bias_hh": "b_hh", "weight_hr": "hr"}
            w = {keys["_".join(key.split("_")[:2])]: numbers(getattr(layer, key).detach()) for key in next(groups)}
            steps, samples, _ = x.shape
            made = np.empty((steps, samples, layer.proj_size or layer.hidden_size), dtype=object)
            for sample in range(samples):
                h = np.array([Number(0.0) for _ in range(made.shape[-1])])
                c = np.array([Number(0.0) for _ in range(layer.hidden_size)])
                for step in range(steps)[:: -1 if direction else 1]:
                    h, c = CELLS[name](x[step, sample], h, c, w)
                    made[step, sample] = h
            parts.append(made)
        x = np.concatenate(parts, -1)
    return x


STACKS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    *((name, (4, 3), {}) for name in KINDS),
    *((name, (4, 3, 2), {"bidirectional": True}) for name in KINDS),
    *((name, (4, 3), {"bias": False}) for name in KINDS),
    ("lstm", (4, 3, 2), {"proj_size": 2, "bidirectional": True}),
    ("lstm", (4, 3, 3), {"bias": False}),  # three layers of two matrices are no projection
]


@pytest.mark.parametrize(("name", "sizes", "options"), STACKS)
def test_stack_of_layers(name: str, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = layer_of(name, *sizes, **options), random(5, 2, 4)
    with counting() as counts:
        result = run(name, layer, numbers(x))
    torch.testing.assert_close(values(result), layer(x)[0].detach(), rtol=1e-4, atol=1e-5)
    operation = operation_of(name, layer, x)
    amounts = price(operation).amounts
    assert (amounts["macs"], amounts["flops"]) == (counts["macs"], flops(counts))
    # weights, input and states once; output and states
    assert amounts["bytes_read"] == sum(t.distinct_bytes for t in operation.inputs)
    assert amounts["bytes_written"] == sum(o.tensor.distinct_bytes for o in operation.outputs)


def test_batch_first_and_packed_sequences_cost_by_their_steps() -> None:
    layer = nn.LSTM(4, 3, batch_first=True)
    first = price(operation_of("lstm", layer, random(2, 5, 4))).amounts
    plain = price(operation_of("lstm", nn.LSTM(4, 3), random(5, 2, 4))).amounts
    assert first == plain
    whole = operation_of("lstm", nn.LSTM(4, 3), random(5, 2, 4))
    # lengths 5 and 3: 8 steps in all
    arguments = dict(whole.arguments) | {"data": whole.arguments["input"]}
    del arguments["input"]
    inputs = (tensor_info(random(8, 4)), *whole.inputs[1:])
    packed = price(Operation("lstm", arguments, inputs, whole.outputs)).amounts
    assert packed["macs"] == 8 * (4 * 3) * (4 + 3) == plain["macs"] * 8 // 10


def test_dropout_between_layers_takes_mask_and_scale() -> None:
    layer = nn.GRU(4, 3, 3, dropout=0.5, bidirectional=True)
    dropped, kept = (
        price(operation_of("gru", layer, random(5, 2, 4))),
        price(operation_of("gru", layer.eval(), random(5, 2, 4))),
    )
    # between three layers twice, both directions of 3, 10 steps
    assert dropped.amounts["flops"] - kept.amounts["flops"] == 2 * 2 * (2 * 3) * 10


# --- backward ----------------------------------------------------------------------------------------------------


def lstm_backward(layer: nn.LSTM, x: Array, gradient: Array) -> dict[str, Array]:
    """Back through time in one direction; what the forward made is kept."""
    steps, samples, width = x.shape
    n = layer.hidden_size
    plain = {key: value.detach() for key, value in layer.named_parameters()}
    w = {key: numbers(value) for key, value in plain.items()}
    kept = run_plain(plain, values(x), n)
    made = {key: np.array([Number(0.0) for _ in range(value.size)]).reshape(value.shape) for key, value in w.items()}
    made |= {"input": np.empty_like(x)}
    biases: list[Array] = []
    for sample in range(samples):
        dh_next, dc_next = [Number(0.0)] * n, [Number(0.0)] * n
        for step in range(steps - 1, -1, -1):
            i, f, g, o, c, c_before, h_before = (numbers(one) for one in kept[step, sample])
            dz = np.empty(4 * n, dtype=object)
            for k in range(n):
                dh = gradient[step, sample, k] + dh_next[k]
                t = math.tanh(c[k].value)
                do = dh * t
                slope = Number(t).to("derivative", lambda value: 1 - value**2)
                dc = dh * o[k] * slope + dc_next[k]
                di, dg, df, dc_next[k] = dc * g[k], dc * i[k], dc * c_before[k], dc * f[k]
                for place, (gate, one) in enumerate(((i, di), (f, df), (g, dg), (o, do))):
                    slope = gate[k].to("derivative", (lambda v: 1 - v**2) if place == 2 else (lambda v: v * (1 - v)))
                    dz[place * n + k] = one * slope
            biases.append(dz)
            dh_next = [product_sum(w["weight_hh_l0"][:, k], dz) for k in range(n)]
            made["input"][step, sample] = [product_sum(w["weight_ih_l0"][:, k], dz) for k in range(width)]
            for key, other in (("weight_ih_l0", x[step, sample]), ("weight_hh_l0", h_before)):
                for place in np.ndindex(made[key].shape):
                    made[key][place] = made[key][place].plus_product(dz[place[0]], other[place[1]])
    for key in ("bias_ih_l0", "bias_hh_l0"):
        made[key] = np.array([total([one[unit] for one in biases]) for unit in range(4 * n)])
    return made


def run_plain(w: dict[str, Tensor], x: Tensor, n: int) -> dict[tuple[int, int], tuple[Tensor, ...]]:
    kept = {}
    for sample in range(x.shape[1]):
        h, c = torch.zeros(n), torch.zeros(n)
        for step in range(x.shape[0]):
            z = w["weight_ih_l0"] @ x[step, sample] + w["bias_ih_l0"] + w["weight_hh_l0"] @ h + w["bias_hh_l0"]
            i, f, g, o = z[:n].sigmoid(), z[n : 2 * n].sigmoid(), z[2 * n : 3 * n].tanh(), z[3 * n :].sigmoid()
            before, h_before = c, h
            c = f * c + i * g
            h = o * c.tanh()
            kept[step, sample] = (i, f, g, o, c, before, h_before)
    return kept


def test_backward_of_an_lstm() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(4, 3), random(5, 2, 4).requires_grad_()
    output, _ = layer(x)
    given = random(*output.shape)
    output.backward(given)
    with counting() as counts:
        made = lstm_backward(layer, numbers(x.detach()), numbers(given))
    for key, value in layer.named_parameters():
        torch.testing.assert_close(values(made[key]), value.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values(made["input"]), x.grad, rtol=1e-4, atol=1e-5)
    amounts = price(operation_of("lstm_backward", layer, x.detach())).amounts
    assert (amounts["macs"], amounts["flops"]) == (counts["macs"], flops(counts))
    assert amounts["activation_bytes"] == 0


@pytest.mark.parametrize("name", KINDS)
def test_backward_is_twice_the_forward_but_for_what_needs_no_gradient(name: str) -> None:
    layer, x = layer_of(name, 4, 3, 2, bidirectional=True), random(5, 2, 4)
    forward = price(operation_of(name, layer, x)).amounts["macs"]
    whole, first, frozen = (
        price(operation_of(f"{name}_backward", layer, x, output_mask=mask)).amounts["macs"]
        for mask in ((True, True, True), (False, False, True), (True, True, False))
    )
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    # nothing goes back through w_ih of the first layer, in both directions
    assert (whole, whole - first, frozen) == (2 * forward, 2 * 10 * gates * 3 * 4, forward)


@pytest.mark.parametrize(("name", "a_unit"), [("gru", 15), ("rnn_tanh", 3)])
def test_backward_of_the_other_cells(name: str, a_unit: int) -> None:
    amounts = price(operation_of(f"{name}_backward", layer_of(name, 4, 3), random(5, 2, 4))).amounts
    gates = 3 if name == "gru" else 1
    # 10 steps of 3 units; two biases a gate, n - 1 for each
    assert amounts["flops"] - 2 * amounts["macs"] == 10 * 3 * a_unit + 2 * gates * 3 * (10 - 1)


# --- kernels that a device may show ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("grad", [False, True])
def test_kernels_of_layers_are_known(name: str, device: str, grad: bool) -> None:
    layer, x = layer_of(name, 4, 3).to(device), random(5, 2, 4).to(device)

    def step() -> None:
        with torch.set_grad_enabled(grad):
            output, _ = layer(x)
            if grad:
                output.sum().backward()

    found = {one.name: price(one).state for one in dispatched(step)}
    assert State.UNKNOWN not in found.values(), found


def test_layer_of_mkldnn_costs_what_lstm_does() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(4, 3), random(5, 2, 4)
    with torch.no_grad():
        kernels = [one for one in dispatched(lambda: layer(x)) if one.name == "mkldnn_rnn_layer"]
    if not kernels:
        pytest.skip("this build of torch has no oneDNN")
    whole = price(operation_of("lstm", layer, x)).amounts
    (amounts,) = [price(one).amounts for one in kernels]
    assert (amounts["macs"], amounts["flops"]) == (whole["macs"], whole["flops"])


def test_cudnn_layer_costs_what_lstm_does() -> None:
    """As on a GPU: a flat copy of the weights is no further read, and what it keeps for the backward no result."""
    layer, x = nn.LSTM(4, 3), random(5, 2, 4)
    whole = operation_of("lstm", layer, x)
    states = whole.arguments["hx"]
    assert isinstance(states, tuple)
    extra = (tensor_info(random(132)),)
    arguments = {
        "input": whole.arguments["input"], "weight": whole.arguments["params"],
        "weight_buf": TensorRef(len(whole.inputs)),
        "hx": states[0], "cx": states[1], "mode": 2, "hidden_size": 3, "proj_size": 0, "num_layers": 1,
        "batch_first": False, "dropout": 0.0, "train": True, "bidirectional": False, "batch_sizes": (),
    }  # fmt: skip
    kept = tuple(OutputInfo(one) for one in (*extra, *extra))
    made = Operation("_cudnn_rnn", arguments, whole.inputs + extra, whole.outputs + kept)
    assert price(made) == price(whole)
