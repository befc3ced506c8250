"""Values that are known on meta, and what a run takes for granted where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torchledger import ForwardError, analyze
from torchledger.capture import capture, known
from torchledger.capture.twins import Copies

Forward = Callable[..., Any]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.fc = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.register_buffer("ids", torch.arange(6))

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def booked(net: nn.Module, *args: Any, real: bool = False) -> list[tuple[str, Any]]:
    """Return name and shapes of each operation of a run on meta or for real."""
    captured = capture(net, args, {}, real=Copies() if real else None)
    if captured.error is not None:
        raise captured.error
    operations = [captured.record.operations[entry.operation] for entry in captured.record.entries]
    return [(o.name, [t.shape for t in o.inputs] + [t.tensor.shape for t in o.outputs]) for o in operations]


def written_in_place(net: Any, x: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(3, dtype=torch.bool)
    mask[1] = True
    view = mask[1:]
    view[1] = True
    return net.fc(x[mask])


def forgotten(net: Any, x: torch.Tensor) -> torch.Tensor:
    """What was known is not, once something of the model's has been written into it."""
    flags = torch.zeros(3)
    flags += x.sum(1)
    return net.fc(x[flags > 0])


def packed(net: Any, x: torch.Tensor) -> torch.Tensor:
    rows = pack_padded_sequence(x, torch.tensor([2, 5, 4]), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(net.lstm(rows)[0], batch_first=True)[0]


# Forwards that need values, and a sample for three of them.
BY_VALUE: dict[str, Forward] = {
    "item": lambda net, x: x * torch.ones(3).sum().item(),
    "bool": lambda net, x: net.fc(x) if torch.tensor(True) else x,
    "mask": lambda net, x: net.fc(x[torch.tensor([True, False, True])]),
    "list of bools": lambda net, x: net.fc(x[[True, False, True]]),
    "list of places": lambda net, x: net.fc(x[[2, 0]]),
    "buffer": lambda net, x: net.fc(x[: net.ids[2]]),
    "tolist": lambda net, x: net.fc(x[: net.ids.tolist()[2]]),
    "numpy": lambda net, x: net.fc(x[: int(net.ids.numpy()[2])]),
    "nonzero": lambda net, x: net.fc(x[torch.eye(3).nonzero()[:, 0]]),
    "masked_select": lambda net, x: x.masked_select(torch.tensor([True, False, True])[:, None]),
    "unique": lambda net, x: x[: torch.unique(torch.tensor([1, 2, 2])).numel()],
    "one_hot": lambda net, x: F.one_hot(torch.tensor([1, 2, 3])).float() @ net.fc(x).t().new_ones(4, 2),
    "new_tensor": lambda net, x: x[: int(x.new_tensor([2]).item())],
    "repeat_interleave": lambda net, x: net.fc(x.repeat_interleave(torch.tensor([3, 0, 2]), 0)),
    "lengths": lambda net, x: net.fc(x[torch.arange(3) < torch.tensor([2])]),
    "cumsum": lambda net, x: net.fc(x[: int(torch.ones(2).cumsum(0)[-1])]),
    "in place": written_in_place,
    "a random switch": lambda net, x: net.fc(x) if torch.rand([]) > 0.5 else x,
    "packed": lambda net, x: packed(net, x[:, None, :].expand(3, 5, 4)),
    "tensor_split": lambda net, x: net.fc(x.tensor_split(torch.tensor([1, 2]))[0]),
    "tensor_split by number": lambda net, x: net.fc(
        torch.tensor_split(x, tensor_indices_or_sections=net.ids[2], dim=1)[1].repeat(1, 2)
    ),
}


@pytest.mark.parametrize("forward", BY_VALUE.values(), ids=BY_VALUE)
def test_what_is_known_leads_where_it_leads_for_real(forward: Forward) -> None:
    net, x = Net(forward), torch.randn(3, 4)
    assert booked(net, x) == booked(net, x, real=True)


def filled_mask(x: torch.Tensor) -> Any:
    mask = torch.isnan(x)
    mask.fill_(True)
    return mask.sum().item()


def mask_with_a_row(x: torch.Tensor) -> Any:
    mask = torch.isnan(x)
    mask[:2] = True
    return mask.tolist()


def mask_or_another(x: torch.Tensor) -> Any:
    mask = torch.isinf(x)
    mask |= torch.tensor([True, False, True, False])
    return mask.tolist(), mask.sum().item()


def rotation_undone(x: torch.Tensor) -> Any:
    turned = torch.polar(torch.ones(3), torch.arange(3.0))
    return (turned.conj() * turned).real.tolist()


def written_through(view: Callable[[torch.Tensor], torch.Tensor], write: Forward) -> Callable[[torch.Tensor], Any]:
    def run(x: torch.Tensor) -> Any:
        numbers = torch.ones(3, dtype=torch.complex64)
        write(view(numbers))
        return numbers.tolist()

    return run


# What is read off known values, after writes, through views, off tensors that were made like an activation.
READ: dict[str, Callable[[torch.Tensor], Any]] = {
    "a uniform mask, filled": filled_mask,
    "a uniform mask, a row written": mask_with_a_row,
    "a uniform mask, or another": mask_or_another,
    "a uniform mask, negated in place": lambda x: torch.isfinite(x).logical_not_().sum().item(),
    "a uniform tensor as other bits": lambda x: torch.ones(3).view(torch.int32).tolist(),
    "a conjugate": rotation_undone,
    "a conjugate, filled": written_through(torch.conj, lambda view: view.fill_(1j)),
    "a negated view, filled": written_through(lambda z: z.conj().imag, lambda view: view.fill_(2)),
    "a negated view, added to": written_through(lambda z: z.conj().imag, lambda view: view.add_(2)),
    "zeros_like": lambda x: torch.zeros_like(x).sum().item(),
    "full_like": lambda x: torch.full_like(x, 3, dtype=torch.int64).unique().tolist(),
    "new_full": lambda x: x.new_full((3,), 2.0).tolist(),
    "ones_like, counted": lambda x: torch.ones_like(x, dtype=torch.int64).cumsum(-1).tolist(),
    "an activation, zeroed": lambda x: (x * 2).zero_().tolist(),
    "an activation, filled": lambda x: (x * 2).fill_(torch.tensor(3.0)).tolist(),
    "an activation, written over": lambda x: (x * 2).copy_(torch.arange(4.0)).tolist(),
    "empty, in part written": lambda x: torch.empty(3).fill_(2).tolist(),
    "batch norm of a constant": lambda x: F.batch_norm(torch.ones(2, 3), torch.zeros(3), torch.ones(3), eps=0).tolist(),
    "a bag of constants": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), torch.eye(2), mode="sum").tolist(),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_what_is_read_is_what_a_real_run_reads(read: Callable[[torch.Tensor], Any]) -> None:
    found: list[Any] = []
    analyze(Net(lambda net, x: found.append(read(x)) or net.fc(x)), torch.randn(3, 4), execute=False)
    assert found == [read(torch.randn(3, 4))]


def test_a_view_from_outside_sees_what_the_run_writes() -> None:
    constant = torch.zeros(3)
    view = constant[1:]
    found: list[Any] = []

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        constant.fill_(5)
        found.extend([view.tolist(), view.sum().item(), (view + 1).tolist()])
        view[0] = 2
        found.append(constant.numpy().tolist())
        return x

    analyze(Net(forward), (4,), execute=False)
    assert found == [[5, 5], 10, [6, 6], [5, 2, 5]]
    assert constant.tolist() == [0, 0, 0]


def test_a_view_from_outside_of_a_conjugate_keeps_its_values() -> None:
    view = torch.tensor([1 + 2j]).conj()
    found: list[Any] = []
    analyze(Net(lambda net, x: found.extend([(view * 1).tolist(), (view.imag * 1).tolist()]) or x), (4,))
    assert found == [[1 - 2j], [-2]]


def test_an_array_shares_its_values_with_its_tensor() -> None:
    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        counts = torch.zeros(3, dtype=torch.int64)
        counts.numpy()[0] = 2
        array = counts.numpy()
        counts[1] = 1
        return net.fc(x[: counts.sum().item()]) + net.fc(x[: array[:2].sum()])

    # 2 + 1 rows, twice
    assert analyze(Net(forward), (4,), batch=8, execute=False).totals()["macs"] == 2 * 3 * 4 * 4


def test_an_empty_tensor_reads_as_zeros_every_time() -> None:
    """What was never written to has no value of its own: the count hangs on none that lay there by chance."""
    found: list[Any] = []
    analyze(Net(lambda net, x: found.append([torch.empty(500).tolist(), torch.empty_like(x).tolist()]) or x), (4,))
    assert found == [[[0.0] * 500, [[0.0] * 4]]]


@pytest.mark.parametrize(
    "write", [lambda y: y[1:].fill_(1), lambda y: y.t()[1:].zero_(), lambda y: y[:1].copy_(torch.ones(4))]
)
def test_a_part_that_is_filled_makes_no_whole_known(write: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ForwardError, match="needs the values"):
        analyze(Net(lambda net, x: (write(y := net.fc(x)), y.sum().item())), (4,), batch=3, execute=False)


def test_whole_numbers_that_are_given_are_known() -> None:
    net = Net(lambda net, mask: net.fc(torch.zeros(int(mask.sum()), 4)))
    assert analyze(net, torch.tensor([1, 0, 1])).totals()["macs"] == 2 * 4 * 4
    mask = torch.tensor([1, 1, 1])
    net = Net(lambda net, mask: net.fc(torch.zeros(int(mask.zero_().sum()) + 1, 4)))
    assert analyze(net, mask).totals()["macs"] == 4 * 4
    assert mask.tolist() == [1, 1, 1], "what was given is copied before it is written to"


def test_parameters_and_what_follows_from_them_are_not_known() -> None:
    for forward in (lambda net, x: net.fc.bias.sum().item(), lambda net, x: net.fc(x).sum().item()):
        with pytest.raises(ForwardError, match="needs the values of a tensor"):
            analyze(Net(forward), (4,), execute=False)


def test_number_that_is_formatted_plainly_is_known() -> None:
    """As in a name: the third of three layers, whose 4 x 4 weights one row goes through."""
    net = Net(lambda net, x: net.get_submodule(f"fc{torch.tensor([2])[0]}")(x))
    net.fc2 = nn.Linear(4, 4)
    assert analyze(net, (4,), execute=False).totals()["macs"] == 4 * 4


def moe(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Send each row to 2 of 4 experts, as mixtures do: a loop over experts, and where the choice fell on them."""
    weights, chosen = x.softmax(-1).topk(2)
    out = torch.zeros_like(x)
    for expert in range(4):
        rows, place = torch.where(chosen == expert)
        if rows.numel():
            out.index_add_(0, rows, net.fc(x[rows]) * weights[rows, place, None])
    return out


ASSUMED: dict[str, tuple[Forward, int, str]] = {
    # 6 rows, 2 experts each, 4 x 4 weights, wherever they go
    "routing": (moe, 6 * 2 * 4 * 4, known.CHOSEN),
    "mask of activations": (lambda net, x: net.fc(x[x[:, 0] > 0]), 6 * 4 * 4, known.KEPT),
    "masked_select": (lambda net, x: net.fc(x.masked_select(x > 0).view(-1, 4)), 6 * 4 * 4, known.KEPT),
    "nonzero": (lambda net, x: net.fc(x[x[:, 0].nonzero()[:, 0]]), 6 * 4 * 4, known.KEPT),
    "unique": (lambda net, x: net.fc(torch.unique(x[:, 0])[:, None].expand(-1, 4)), 6 * 4 * 4, known.KEPT),
    "forgotten": (lambda net, x: forgotten(net, x[:3]), 3 * 4 * 4, known.KEPT),
    "finite": (lambda net, x: net.fc(x) if torch.isfinite(x).all() else x, 6 * 4 * 4, known.FINITE),
    "no inf": (lambda net, x: x if torch.isinf(x).any() else net.fc(x), 6 * 4 * 4, known.FINITE),
    "random": (lambda net, x: net.fc(x) if torch.rand([]) < 2 else x, 6 * 4 * 4, known.DRAWN),
}


@pytest.mark.parametrize(("forward", "macs", "assumption"), ASSUMED.values(), ids=ASSUMED)
def test_what_is_taken_for_granted_is_said(forward: Forward, macs: int, assumption: str) -> None:
    ledger = analyze(Net(forward), (4,), batch=6)
    assert ledger.totals()["macs"] == macs
    assert ledger.assumptions == [assumption]
    assert assumption in str(ledger.by_layer())


def test_a_choice_that_nothing_hangs_on_is_no_assumption() -> None:
    assert analyze(Net(lambda net, x: net.fc(x).topk(2)[1].argmax(0)), (4,), batch=6).assumptions == []


def test_random_choices_fall_alike_every_time() -> None:
    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            if torch.rand([]) > 0.5:
                x = net.fc(x)
        return x

    net = Net(forward)
    state = torch.get_rng_state()
    first, second = (analyze(net, (4,)).totals()["macs"] for _ in range(2))
    assert first == second and 0 < int(first) < 8 * 16  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("most", "dtype"), [(known.LARGEST, torch.int64), (known.LARGEST_FLOAT, torch.float32)])
def test_large_tensors_are_not_followed(most: int, dtype: torch.dtype) -> None:
    with pytest.raises(ForwardError, match="needs the values"):
        analyze(Net(lambda net, x: x * torch.arange(most + 1, dtype=dtype).sum().item()), (4,), execute=False)


def twice(count: int, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for _ in range(count):
        x = function(x)
    return x


# Each operation is within the limits of size, all together are above 2^24 elements of work.
COSTLY: dict[str, tuple[int, Forward, int, torch.dtype]] = {
    "pointwise": (17, lambda x: x + 1, 1024, torch.int64),  # 2^20 each
    "sorts": (1, lambda x: x.sort(-1).values, 1024, torch.int64),  # 21 x 2^20
    "products": (3, lambda x: x @ x, 512, torch.float32),  # 512^3 / 16 = 2^23 each
}


@pytest.mark.parametrize(("count", "function", "side", "dtype"), COSTLY.values(), ids=COSTLY)
def test_what_is_computed_beside_the_run_is_bounded(
    count: int, function: Forward, side: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        large = twice(count, function, torch.arange(side * side, dtype=dtype).view(side, side))
        small = twice(9, lambda x: x + 1, torch.arange(3))  # goes on all the same
        return net.fc(x[: small[0] - 9 + 2]) + large.sum().item() * 0

    analyze(Net(forward), (4,), batch=3, execute=False)
    monkeypatch.setattr(known, "WORK", 1 << 24)
    with pytest.raises(ForwardError, match="item needs the values"):
        analyze(Net(forward), (4,), batch=3, execute=False)


def test_what_is_alike_everywhere_is_followed_at_any_size() -> None:
    # all alike, without memory: the test of an activation of any size
    large = analyze(Net(lambda net, x: x * bool(torch.isinf(x).any())), (1 << 24,))
    assert large.assumptions == [known.FINITE]
    large = analyze(Net(lambda net, x: net.fc(x[: torch.full((1 << 24,), 2)[-1]])), (4,), batch=3, execute=False)
    assert large.totals()["macs"] == 2 * 4 * 4


def test_zero_keeps_its_sign() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        signs = [bool(torch.full((3,), value).signbit().all().item()) for value in (0.0, -0.0, 0.0)]
        assert signs == [False, True, False]
        return x + 1

    model = nn.Module()
    model.forward = forward  # type: ignore[method-assign]
    assert analyze(model, (4,), execute=False).assumptions == []


def test_a_number_is_written_into_a_part_under_a_transform() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        def loss(y: torch.Tensor) -> torch.Tensor:
            z = y * 2
            z[0] = 2.0
            return z.sum()

        return torch.func.grad(loss)(x)

    model = nn.Module()
    model.forward = forward  # type: ignore[method-assign]
    assert not analyze(model, (4,), execute=False).unknown
