"""Rules of recurrent layers: a whole stack of LSTM, GRU or RNN layers is one operation, and so is its backward.

`lstm`, `gru`, `rnn_tanh`, `rnn_relu` have torch's arguments: `input` (or `data`, the steps of all samples packed in
one, and `batch_sizes`), `hx`, `params` (for each layer and direction w_ih, w_hh, b_ih, b_hh where it has biases,
w_hr where an LSTM projects), has_biases, num_layers, dropout, train, bidirectional, batch_first. Every step of every
sample meets every matrix once. Their `_backward` have the same arguments and may have `output_mask`: whether the
gradients of input, states and parameters are wanted; the gradients that come in are the other tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchledger.pricing import rules as r
from torchledger.record import Operation, TensorInfo


@dataclass(frozen=True, slots=True)
class Cell:
    """The arithmetic of one hidden unit in one step, matrices and biases apart."""

    gates: int
    forward: int
    backward: int
    text: str
    text_backward: str


LSTM = Cell(
    gates=4,
    forward=13,
    backward=18,
    text="gates from two sums 4, sigmoid 3, tanh 2, f c + i g 3, o tanh(c) 1",
    text_backward="h's two gradients 1; o's 1; c's through tanh 3, added 1; i, f, g, old c's 4; through gates 8",
)
GRU = Cell(
    gates=3,
    forward=11,
    backward=15,
    text="gates from two sums 3, sigmoid 2, tanh 1, reset 1, (1 - z) n + z h 4",
    text_backward="h's two gradients 1; z's 2, n's 2, h's before 1; through three gates 6; reset 2; added to h's 1",
)
RNN = Cell(1, 2, 3, "sum 1, tanh or max 1", "h's two gradients 1, through tanh or max 2")
CELLS = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN, "rnn_relu": RNN}
CUDNN_MODES = (RNN, RNN, LSTM, GRU)


def rows(operation: Operation) -> int:
    """Return the steps of all samples together."""
    x = r.need(operation, "input", "data")
    return x.elements // x.shape[-1] if x.shape[-1] else 0


def parameters(operation: Operation) -> list[TensorInfo]:
    """Return the flat weights; mkldnn's layer gives them one by one."""
    listed = operation.tensors("params") or operation.tensors("weight")
    singles = (operation.tensor(f"weight{place}") for place in range(5))
    return list(listed) or [tensor for tensor in singles if tensor is not None]


def matrices(operation: Operation) -> list[TensorInfo]:
    return [tensor for tensor in parameters(operation) if len(tensor.shape) == 2]


def units(operation: Operation, cell: Cell) -> int:
    """Return the hidden units of all layers and directions: the biases' or w_hh's rows over the gates.

    Matrices come as w_ih, w_hh (gates hidden, ..), then w_hr (projection, hidden) where there is one.
    """
    each = 3 if is_projected(operation, cell) else 2
    return sum(matrix.shape[0] for matrix in matrices(operation)[::each]) // cell.gates


def is_projected(operation: Operation, cell: Cell) -> bool:
    """Whether there is a w_hr: a third matrix a layer and direction."""
    given = operation.arguments
    stacked = r.number(operation, "num_layers", 1) * (1 + bool(given.get("bidirectional")))
    return cell is LSTM and len(matrices(operation)) == 3 * stacked


def forward_macs(operation: Operation) -> int:
    """A step of a sample meets each element of each matrix once."""
    return rows(operation) * sum(matrix.elements for matrix in matrices(operation))


def bias_elements(operation: Operation) -> int:
    return sum(tensor.elements for tensor in parameters(operation) if len(tensor.shape) == 1)


def dropped(operation: Operation) -> int:
    """Return the elements that pass from layer to layer, which dropout in training masks and scales."""
    given = operation.arguments
    if not (given.get("train") and given.get("dropout")):
        return 0
    width = matrices(operation)[1].shape[1] * (1 + bool(given.get("bidirectional")))  # w_hh: (gates hidden, output)
    return rows(operation) * width * (r.number(operation, "num_layers", 1) - 1)


def forward_flops(cell: Cell) -> r.Formula:
    """Return 2 macs, 1 for each bias, the cell's arithmetic for each hidden unit, a step of a sample; dropout 2 an
    element."""

    def flops(operation: Operation) -> int:
        each = bias_elements(operation) + cell.forward * units(operation, cell)
        return 2 * forward_macs(operation) + rows(operation) * each + 2 * dropped(operation)

    return flops


def wanted(operation: Operation) -> tuple[bool, bool, bool]:
    """Return whether the gradients of input, states and parameters are wanted."""
    given = operation.arguments.get("output_mask")
    mask = given if isinstance(given, tuple) else (True, True, True)  # cuDNN's has both states of an LSTM apart
    return bool(mask[0]), bool(mask[1]), bool(mask[-1])


def wanted_parameters(operation: Operation) -> list[TensorInfo]:
    """Return the parameters whose gradients are wanted: `output_mask` may have a flag for each, or one for all."""
    listed, mask = parameters(operation), operation.arguments.get("output_mask")
    if operation.tensors("params") and isinstance(mask, tuple) and len(mask) > max(3, len(listed)):
        return [tensor for tensor, wants in zip(listed, mask[-len(listed) :], strict=True) if wants]
    return listed if wanted(operation)[2] else []


def backward_macs(operation: Operation) -> int:
    """As many as the forward's for what goes back through the matrices, less the first layer's w_ih where the
    input's gradient is not wanted, and as many for the gradients of the matrices that are wanted."""
    x, _, _ = wanted(operation)
    each = sum(matrix.elements for matrix in matrices(operation))
    first = 0 if x else (1 + bool(operation.arguments.get("bidirectional"))) * matrices(operation)[0].elements
    learnt = sum(tensor.elements for tensor in wanted_parameters(operation) if len(tensor.shape) == 2)
    return rows(operation) * (each - first + learnt)


def backward_flops(cell: Cell) -> r.Formula:
    """Return 2 macs, the cell's arithmetic for each hidden unit, n - 1 for each bias over n steps; dropout 2 an
    element."""

    def flops(operation: Operation) -> int:
        steps = rows(operation)
        learnt = sum(tensor.elements for tensor in wanted_parameters(operation) if len(tensor.shape) == 1)
        biases = learnt * max(steps - 1, 0)
        cells = steps * cell.backward * units(operation, cell)
        return 2 * backward_macs(operation) + cells + biases + 2 * dropped(operation)

    return flops


def by_mode(operation: Operation) -> Cell:
    """Return the cell that a kernel for all of them is told to run."""
    return CUDNN_MODES[r.number(operation, "mode")]


def fused_cell(cell: Cell) -> r.Formula:
    """Return the cell's arithmetic and its biases for each hidden unit; the gates' two products came before."""

    def flops(operation: Operation) -> int:
        biases = sum(t.elements > 0 for name in ("input_bias", "hidden_bias") if (t := operation.tensor(name)))
        return r.out(operation).elements * (cell.forward + cell.gates * biases)

    return flops


KERNEL_INPUTS = ("input", "weight", *(f"weight{place}" for place in range(5)), "hx", "cx", "hx_", "cx_", "cx_tmp")


def results_bytes(operation: Operation) -> int:
    """Output and states, without what the kernel keeps for its backward."""
    return sum(output.tensor.distinct_bytes for output in operation.outputs[:3])


def _table() -> dict[str, r.Rule]:
    table = {}
    for name, cell in CELLS.items():
        table[name] = r.Rule(
            f"each step of each sample: 2 macs, biases 1, {cell.forward} a hidden unit ({cell.text}); "
            "dropout 2 an element",
            forward_macs,
            forward_flops(cell),
        )
        table[f"{name}_backward"] = r.gradient(
            f"2 macs, the forward's once back and once for the parameters; {cell.backward} a hidden unit a step "
            f"({cell.text_backward}); biases n - 1 over n steps",
            backward_flops(cell),
            backward_macs,
        )
    kernel = r.Rule(
        "as `lstm`, `gru`, `rnn_tanh` or `rnn_relu`, by its mode",
        forward_macs,
        lambda operation: forward_flops(by_mode(operation))(operation),
        r.bytes_of(*KERNEL_INPUTS, said="input, weights and states"),
        results_bytes,
        primary=3,
    )
    backward = r.gradient(
        "as the backward of `lstm`, `gru`, `rnn_tanh` or `rnn_relu`, by its mode",
        lambda operation: backward_flops(by_mode(operation))(operation),
        backward_macs,
        read=r.bytes_of(
            *KERNEL_INPUTS,
            "grad_output",
            "grad_hy",
            "grad_cy",
            "output",
            said="gradients, input, weights, states, output",
        ),
    )
    table |= {"_cudnn_rnn": kernel, "miopen_rnn": kernel, "mkldnn_rnn_layer": kernel}
    table |= {"_cudnn_rnn_backward": backward, "miopen_rnn_backward": backward, "mkldnn_rnn_layer_backward": backward}
    table["_pad_packed_sequence"] = r.rule("moved: 0 flops")
    for name, cell in (("lstm", LSTM), ("gru", GRU)):
        table[f"_thnn_fused_{name}_cell"] = r.Rule(
            f"{cell.forward} a hidden unit ({cell.text}), biases 1", r.nothing, fused_cell(cell)
        )
    table["_thnn_fused_lstm_cell_backward_impl"] = r.gradient(
        "18 a hidden unit, see `lstm_backward`", lambda o: 18 * r.need(o, "cx").elements
    )
    table["_thnn_fused_gru_cell_backward"] = r.gradient(
        "15 a hidden unit, see `gru_backward`", lambda o: 15 * r.need(o, "grad_hy").elements
    )
    return table


RULES: Mapping[str, r.Rule] = _table()
