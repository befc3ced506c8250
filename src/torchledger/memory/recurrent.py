"""What LSTM, GRU and RNN layers keep and hold: which kernel runs them, and what that one needs.

On a CPU an LSTM without projections runs as one oneDNN kernel a layer and direction, with a workspace; all others as
some operations a step (aten/src/ATen/native/RNN.cpp). On a GPU cuDNN runs all of them, with a reserve space.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchledger.record import Operation, TensorInfo

# Numbers a hidden unit and step that a CPU keeps, in the operations of RNN.cpp's cells:
# LSTM with a projection: four gates, the new cell, its tanh, the state before the projection;
# GRU: three gates, the state's share of the new gate before the reset, the new gate, and the difference from the old
# state before and after the update gate; RNN: the result.
PER_STEP = {"lstm": 7, "gru": 7, "rnn_tanh": 1, "rnn_relu": 1}
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # of the input, for all steps before the first
# cuDNN's reserve space: the gates and, of an LSTM, the cell and its tanh; an estimate, since cuDNN does not say.
RESERVED = {"lstm": 6, "gru": 5, "rnn_tanh": 2, "rnn_relu": 2}
PAGE = 4096


@dataclass(frozen=True)
class Layers:
    """A stack of recurrent layers: `rows` steps of all samples, `hidden` units; `item` bytes a number."""

    cell: str
    rows: int
    steps: int
    samples: int
    features: int
    hidden: int
    projected: int  # width of what a layer puts out, for each direction
    count: int
    directions: int
    item: int
    drops: bool
    copies_input: bool  # batch_first: the steps are put in front
    has_biases: bool = True

    @property
    def _one(self) -> int:
        """What one layer and direction keeps."""
        if not self._by_onednn:
            return PER_STEP[self.cell] * self.rows * self.hidden * self.item
        return self._workspace + 2 * self.samples * self.hidden * self.item  # and its last state and cell

    @property
    def _by_onednn(self) -> bool:
        return self.cell == "lstm" and self.projected == self.hidden

    @property
    def _workspace(self) -> int:
        """oneDNN's workspace for a layer of an LSTM that trains, on x86.

        Found from the sizes that torch 2.13's kernel returns, and equal to them to the byte for each of the tested
        ones, in float32 and bfloat16: gates of each step; states, the cell and their gradients for two layers and one
        step more, some in float32 in either case; each part in whole pages, its rows in whole cache lines.
        """
        item, rows, states = self.item, self.steps * self.samples, 2 * (self.steps + 1) * self.samples
        wide = max(self.features, self.hidden)
        parts = (
            rows * _padded(4 * self.hidden, item) * item,
            states * _padded(wide, 4) * 4,
            states * _padded(wide, 4) * 4,
            states * _padded(wide, item) * item,
            states * self.hidden * 4,
            states * self.hidden * item,
            rows * _padded(self.hidden, item) * item,
        )
        return sum(-(-part // PAGE) * PAGE for part in parts)

    @property
    def _between(self) -> int:
        """What goes from one layer to the next: its output, or with dropout noise and the product.

        oneDNN's kernel needs the output besides.
        """
        parts = (3 if self._by_onednn and self.directions == 1 else 2) if self.drops else 1
        return self.rows * self.projected * self.directions * self.item * parts

    @property
    def kept_on_cpu(self) -> int:
        # oneDNN's kernel needs the output of its direction, which for two directions is not the layer's.
        apart = self.rows * self.projected * self.item if self._by_onednn and self.directions > 1 else 0
        return self.count * self.directions * (self._one + apart) + (self.count - 1) * self._between

    @property
    def kept_on_cuda(self) -> int:
        reserved = RESERVED[self.cell] * self.rows * self.hidden * self.item
        return self.count * (self.directions * reserved + (self._between if self.drops else 0))

    @property
    def _input_copy(self) -> int:
        return self.rows * self.features * self.item if self.copies_input else 0

    @property
    def _input_gates(self) -> int:
        """The input's part of a layer's gates, for all steps."""
        return 0 if self._by_onednn else GATES[self.cell] * self.rows * self.hidden * self.item

    @property
    def _directions_apart(self) -> int:
        """Both directions' outputs, before they are joined."""
        return self.rows * self.projected * self.directions * self.item if self.directions > 1 else 0

    @property
    def _without_biases(self) -> int:
        """oneDNN's kernel copies the weights of a layer that has no biases."""
        if self.has_biases or not self._by_onednn:
            return 0
        widest = self.features if self.count == 1 else max(self.features, self.hidden * self.directions)
        return 4 * self.hidden * (widest + self.hidden) * self.item

    @property
    def passing_training(self) -> int:
        apart = 0 if self._by_onednn else self._directions_apart
        return self._input_copy + self._input_gates + apart + self._without_biases

    @property
    def passing_backward(self) -> int:
        """Step by step: gradients of the input's gates and all of them stacked, beyond what the steps let go of."""
        return max(0, 2 * self._input_gates - self._one) if not self._by_onednn else 0

    @property
    def passing_inference(self) -> int:
        """A layer's input, its output, and where it goes step by step the input's gates and the steps' results."""
        out = 0 if self._by_onednn else self.rows * self.projected * self.item
        between = self.rows * self.projected * self.directions * self.item if self.count > 1 else 0
        if self.directions > 1:  # each direction's steps and their stack, or what its kernel puts out, then joined
            out = self._directions_apart * (1 if self._by_onednn else 2)
        return max(self._input_copy, between) + self._input_gates + out + self._without_biases

    def released_in_backward(self, gradients: int) -> int:
        """Return by how much less is alive at once than all that was kept and all `gradients` (bytes).

        The last layer lets go of its own before the first layer's gradients are made.
        """
        layers = self.count * self.directions
        return (layers - 1) * min(self._one, gradients // layers)


def _padded(numbers: int, item: int) -> int:
    """Return the length of a row in whole cache lines of 64 bytes, one more where it would alias (get_good_ld)."""
    line = 64 // item
    length = -(-numbers // line) * line
    return length + line if length % 256 == 0 else length


def layers(operation: Operation) -> Layers:
    """Read a stack of layers off its operation, or off its backward's."""
    arguments = operation.arguments
    x = operation.tensor("input") or operation.tensor("data")
    states = operation.tensors("hx") or tuple(t for t in [operation.tensor("hx")] if t is not None)
    if x is None or not states:
        raise LookupError(f"{operation.name} has no input or no state")
    directions = 2 if arguments.get("bidirectional") else 1
    count = arguments.get("num_layers")
    batch_first = bool(arguments.get("batch_first"))
    samples = states[0].shape[-2]
    rows = x.elements // max(x.shape[-1], 1)
    return Layers(
        cell=operation.name.removesuffix("_backward"),
        rows=rows,
        steps=-(-rows // max(samples, 1)),
        samples=samples,
        features=x.shape[-1],
        hidden=states[-1].shape[-1],
        projected=states[0].shape[-1],
        count=count if isinstance(count, int) else 1,
        directions=directions,
        item=x.item_size,
        drops=bool(arguments.get("dropout")) and bool(arguments.get("train")),
        copies_input=batch_first and _is_copied(x),
        has_biases=bool(arguments.get("has_biases", True)),
    )


def _is_copied(x: TensorInfo) -> bool:
    """Whether putting the steps in front moves numbers: with one step or one sample it does not."""
    return len(x.shape) == 3 and 1 not in x.shape[:2]
