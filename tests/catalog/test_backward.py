"""Macs of the backward of convolution and linear nets, against arithmetic that is carried out number by number.

A net is run a second time on scalars. Each sum of products keeps its pairs; going back, every number that somebody
wants the gradient of takes one multiply-accumulate from each product that it is in. The gradients that come out are
torch's own, so the counted arithmetic is the right one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchledger import analyze

Array = Any  # a numpy array of Scalar


class Scalar:
    """A number with its gradient, and how it was made: a sum of products, which gradients flow back through."""

    __slots__ = ("gradient", "passes", "products", "value", "wanted")

    def __init__(self, value: float, wanted: bool = False) -> None:
        self.value, self.wanted, self.gradient = value, wanted, 0.0
        self.products: list[tuple[Scalar, Scalar]] = []
        self.passes: list[Scalar] = []  # what its gradient reaches without a product


class Tape:
    """The numbers that a run made, in order, and the multiply-accumulates of each direction."""

    def __init__(self) -> None:
        self.made: list[Scalar] = []
        self.macs: Counter[str] = Counter()

    def total(self, pairs: list[tuple[Scalar, Scalar]], *added: Scalar) -> Scalar:
        """Return the sum of products, and of what is added to them."""
        value = sum(left.value * right.value for left, right in pairs) + sum(number.value for number in added)
        made = Scalar(value, any(n.wanted for n in itertools.chain(added, *pairs)))
        made.products, made.passes = pairs, list(added)
        self.macs["forward"] += len(pairs)
        self.made.append(made)
        return made

    def positive(self, x: Scalar) -> Scalar:
        made = Scalar(max(x.value, 0.0), x.wanted)
        made.passes = [x] if x.value > 0 else []
        self.made.append(made)
        return made

    def back(self) -> None:
        """Send back the gradient of the sum of what was made last."""
        for made in reversed(self.made):
            for number in made.passes:
                number.gradient += made.gradient
            for left, right in made.products:
                for one, other in ((left, right), (right, left)):
                    if one.wanted:
                        one.gradient += made.gradient * other.value
                        self.macs["backward"] += 1


def scalars(tensor: Tensor) -> Array:
    array = np.empty(tensor.numel(), dtype=object)
    array[:] = [Scalar(value, tensor.requires_grad) for value in tensor.flatten().tolist()]
    return array.reshape(tuple(tensor.shape))


def linear(tape: Tape, layer: nn.Linear, weight: Array, bias: Array | None, x: Array) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    made = np.empty((len(rows), len(weight)), dtype=object)
    for row, unit in np.ndindex(made.shape):
        added = () if bias is None else (bias[unit],)
        made[row, unit] = tape.total(list(zip(rows[row], weight[unit], strict=True)), *added)
    return made.reshape(*x.shape[:-1], len(weight))


def convolution(tape: Tape, layer: nn.Conv2d, weight: Array, bias: Array | None, x: Array) -> Array:
    """Padding is part of what is convolved: it wants its gradient where the input does, as the kernels have it."""
    (pad, _), (step, _), (kernel, _), groups = layer.padding, layer.stride, layer.kernel_size, layer.groups
    samples, channels, height, width = x.shape
    wide = np.empty((samples, channels, height + 2 * pad, width + 2 * pad), dtype=object)
    for place in np.ndindex(wide.shape):
        wide[place] = Scalar(0.0, x.flat[0].wanted)
    wide[:, :, pad : pad + height, pad : pad + width] = x
    rows, columns = ((size + 2 * pad - kernel) // step + 1 for size in (height, width))
    made = np.empty((samples, len(weight), rows, columns), dtype=object)
    share = channels // groups
    for n, unit, row, column in np.ndindex(made.shape):
        start = unit // (len(weight) // groups) * share
        window = wide[
            n, start : start + share, row * step : row * step + kernel, column * step : column * step + kernel
        ]
        added = () if bias is None else (bias[unit],)
        made[n, unit, row, column] = tape.total(list(zip(window.flat, weight[unit].flat, strict=True)), *added)
    return made


def transposed(tape: Tape, layer: nn.ConvTranspose2d, weight: Array, bias: Array | None, x: Array) -> Array:
    """Each number of the input is spread over a window of what comes out."""
    (step, _), (kernel, _) = layer.stride, layer.kernel_size
    samples, _, height, width = x.shape
    units = weight.shape[1]
    shape = (samples, units, (height - 1) * step + kernel, (width - 1) * step + kernel)
    pairs: dict[Any, list[tuple[Scalar, Scalar]]] = {place: [] for place in np.ndindex(shape)}
    for n, channel, row, column, unit, i, j in np.ndindex(*x.shape, units, kernel, kernel):
        place = (n, unit, row * step + i, column * step + j)
        pairs[place].append((x[n, channel, row, column], weight[channel, unit, i, j]))
    made = np.empty(shape, dtype=object)
    for place, products in pairs.items():
        made[place] = tape.total(products, *(() if bias is None else (bias[place[1]],)))
    return made


class Twice:
    """Runs the modules of a net on scalars, with one array for each parameter however often it is used."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.parameters: dict[int, tuple[Tensor, Array]] = {}

    def of(self, parameter: Tensor | None) -> Array | None:
        if parameter is None:
            return None
        return self.parameters.setdefault(id(parameter), (parameter, scalars(parameter)))[1]

    def run(self, module: nn.Module, x: Array) -> Array:
        if isinstance(module, nn.Sequential):
            for part in module:
                x = self.run(part, x)
            return x
        if isinstance(module, Adapted):
            return self.added(self.run(module.base, x), self.run(module.adapter, x))
        if isinstance(module, Residual):
            return self.added(x, self.run(module.inner, x))
        if isinstance(module, nn.Flatten):
            return x.reshape(len(x), -1)
        if isinstance(module, nn.ReLU):
            made = np.empty(x.shape, dtype=object)
            for place in np.ndindex(x.shape):
                made[place] = self.tape.positive(x[place])
            return made
        layers: dict[type, Callable[..., Array]] = {
            nn.Linear: linear,
            nn.Conv2d: convolution,
            nn.ConvTranspose2d: transposed,
        }
        return layers[type(module)](self.tape, module, self.of(module.weight), self.of(module.bias), x)

    def added(self, left: Array, right: Array) -> Array:
        made = np.empty(left.shape, dtype=object)
        for place in np.ndindex(left.shape):
            made[place] = self.tape.total([], left[place], right[place])
        return made


class Adapted(nn.Module):
    """A frozen layer, and what is learnt beside it."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base.requires_grad_(False), adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def lora() -> nn.Module:
    return Adapted(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)))


def conv_lora() -> nn.Module:
    adapter = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.Conv2d(1, 3, 1, bias=False))
    return Adapted(nn.Conv2d(2, 3, 3, padding=1), adapter)


def shared_layer() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3), nn.ReLU())


def shared_weight() -> nn.Module:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), Residual(second))


def frozen(module: nn.Module, *names: str) -> nn.Module:
    """Return a net whose parameters of these names (or beginnings of names) do not train."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return module


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4),
        nn.Linear(4, 3),
    )


ROWS, IMAGE = (3, 4), (2, 2, 4, 4)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), ROWS),
    "linear over steps": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), (2, 3, 4)),
    "convolutions": (small_net, IMAGE),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2, 2)), IMAGE),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 3, 1)), IMAGE),
    "first frozen": (lambda: frozen(small_net(), "0."), IMAGE),
    "middle frozen": (lambda: frozen(small_net(), "2.", "5."), IMAGE),
    "last frozen": (lambda: frozen(small_net(), "6."), IMAGE),
    "all but the last frozen": (lambda: frozen(small_net(), "0.", "2.", "5."), IMAGE),
    "weights frozen, biases train": (lambda: frozen(small_net(), "0.w", "2.w", "5.w", "6.w"), IMAGE),
    "biases frozen": (lambda: frozen(small_net(), "0.b", "2.b", "5.b", "6.b"), IMAGE),
    "adapters": (lambda: nn.Sequential(lora(), nn.ReLU(), lora()), ROWS),
    "adapted convolutions": (lambda: nn.Sequential(conv_lora(), nn.ReLU(), nn.Conv2d(3, 2, 3)), IMAGE),
    "residuals": (lambda: nn.Sequential(Residual(nn.Linear(4, 4)), nn.ReLU(), Residual(nn.Linear(4, 4))), ROWS),
    "shared layer": (shared_layer, ROWS),
    "shared weight": (shared_weight, IMAGE),
    "shared and frozen": (lambda: frozen(shared_weight(), "0.weight"), IMAGE),
}


@pytest.mark.parametrize("asks", [False, True], ids=["input asks for none", "input asks for its gradient"])
@pytest.mark.parametrize("name", NETS)
def test_backward_macs_are_those_of_scalar_arithmetic(name: str, asks: bool) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=asks)

    twice = Twice()
    given = scalars(x)
    result = twice.run(net, given)
    for number in result.flat:
        number.gradient = 1.0  # of the sum
    twice.tape.back()

    output = net(x)
    values = torch.tensor([number.value for number in result.flat], dtype=torch.float64)
    torch.testing.assert_close(values.reshape(output.shape), output.detach())
    leaves = [(tensor, array) for tensor, array in (*twice.parameters.values(), (x, given)) if tensor.requires_grad]
    gradients = torch.autograd.grad(output.sum(), [tensor for tensor, _ in leaves])
    for (tensor, array), gradient in zip(leaves, gradients, strict=True):
        found = torch.tensor([number.gradient for number in array.flat], dtype=torch.float64)
        torch.testing.assert_close(found.reshape(tensor.shape), gradient)

    ledger = analyze(net, x, training=True)
    macs = {phase: ledger.totals(phase=phase)["macs"] for phase in ("forward", "backward")}
    assert macs == dict(twice.tape.macs)
