"""What is no plain tensor of torch's own: subclasses with a dispatch of their own, nested and fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from torchledger import ForwardError, analyze
from torchledger.errors import UserError


class Wrapped(Tensor):
    """A tensor around another, whose operations are the other's."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Wrapped) else x, (args, kwargs or {}))
        return tree_map(lambda x: Wrapped(x) if isinstance(x, Tensor) else x, func(*args, **kwargs))


class Within(nn.Module):
    """A layer on what `wrap` makes of the input."""

    def __init__(self, wrap: Any, unwrap: Any) -> None:
        super().__init__()
        self.fc, self.wrap, self.unwrap = nn.Linear(4, 5), wrap, unwrap

    def forward(self, x: Tensor) -> Any:
        return self.unwrap(self.fc(self.wrap(x)).relu())


@pytest.mark.parametrize("execute", [False, True])
def test_a_wrapper_that_forward_makes(execute: bool) -> None:
    ledger = analyze(Within(Wrapped, lambda y: y.inner), (3, 4), batch=2, execute=execute)
    assert ledger.totals()["macs"] == 6 * 4 * 5 and not ledger.unknown
    # the layer's 6 x 5, each with a bias, and relu
    assert ledger.totals()["flops"] == 2 * 120 + 30 + 30


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("execute", [False, True])
def test_jagged_tensors(training: bool, execute: bool) -> None:
    def jagged(x: Tensor) -> Tensor:
        return torch.nested.as_nested_tensor([x[0], x[1][:2]], layout=torch.jagged)

    ledger = analyze(Within(jagged, lambda y: y.values()), (3, 4), batch=2, execute=execute, training=training)
    # 3 rows and 2; backward: the weight's gradient
    assert ledger.totals()["macs"] == (1 + training) * 5 * 4 * 5 and not ledger.unknown


@pytest.mark.parametrize("execute", ["auto", True])
def test_nested_tensors_are_refused_in_a_line(execute: Any) -> None:
    model = Within(lambda x: torch.nested.as_nested_tensor([x[0], x[1]]), lambda y: y.to_padded_tensor(0.0))
    with pytest.raises(ForwardError, match=r"^\(root\): nested tensors of the strided layout cannot be analysed: use"):
        analyze(model, (3, 4), batch=2, execute=execute)


def test_fake_tensors() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = nn.Linear(4, 5)
        for training in (False, True):
            with pytest.raises(
                UserError, match="inside of a FakeTensorMode would see fake tensors alone: leave the mode"
            ):
                analyze(model, (4,), training=training)
    assert analyze(model, (4,), batch=3).totals()["macs"] == 3 * 4 * 5
    with mode:
        x = torch.empty(3, 4)
    assert analyze(model, x).totals()["macs"] == 3 * 4 * 5


@torch.library.custom_op("torchledger_tests::sine", mutates_args=())
def sine(x: Tensor) -> Tensor:
    return x.sin()


def test_a_custom_operation_without_a_fake_kernel_is_run_for_real() -> None:
    model = Within(lambda x: sine(x), lambda y: y)
    ledger = analyze(model, (3, 4), batch=2)
    assert ledger.totals()["macs"] == 6 * 4 * 5 and ledger.unknown == {"torchledger_tests::sine": 1}
    assert ledger.assumptions[0].startswith("run for real, since (root): torchledger_tests::sine needs the values")
    with pytest.raises(ForwardError, match=r"execute=True \(--execute\) runs the model for real"):
        analyze(model, (3, 4), execute=False)


def test_patches_of_torch_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside of functions whose body is run here."""
    seen: list[int] = []
    own: Any = F._in_projection_packed  # type: ignore[attr-defined]

    def patched(*args: Any) -> Any:
        seen.append(1)
        return own(*args)

    monkeypatch.setattr(F, "_in_projection_packed", patched)
    attention = nn.MultiheadAttention(8, 2)
    x = torch.zeros(3, 2, 8)
    analyze(attention, x, x, x)
    assert seen == [1]
