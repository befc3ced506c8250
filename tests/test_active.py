"""Active parameters: what one token uses. Every mixture here has 4 experts; a gate of 8 x 4 has 32 weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchledger import Ledger, analyze
from torchledger.errors import UserError
from torchledger.pricing import CONVENTIONS

Forward = Callable[[Any, Tensor], Tensor]
GATE, SQUARE = 4 * 8, 8 * 8


class Net(nn.Module):
    """A module made of parts, whose forward is a function of it and its input."""

    def __init__(self, run: Forward, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def gate() -> nn.Linear:
    return nn.Linear(8, 4, bias=False)


def square(bias: bool = False) -> nn.Linear:
    return nn.Linear(8, 8, bias=bias)


def experts(bias: bool = False) -> nn.ModuleList:
    return nn.ModuleList(square(bias) for _ in range(4))


def active(model: nn.Module, *size: int, **options: Any) -> tuple[object, object]:
    """Return all and the active parameters of a model for inputs of `size` with a batch of 1 in front."""
    totals = analyze(model, size, **options).totals()
    return totals["params"], totals["active_params"]


# ---- mixtures, as they are written


def looped(net: Any, x: Tensor) -> Tensor:
    """Run each expert on the rows that chose it, as Mixtral once did."""
    rows = x.flatten(0, 1)
    weights, chosen = net.gate(rows).softmax(-1).topk(net.k if hasattr(net, "k") else 2)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(net.experts):
        row, place = torch.where(chosen == number)
        out.index_add_(0, row, expert(rows[row]) * weights[row, place, None])
    return out


def hit(net: Any, x: Tensor) -> Tensor:
    """Run the experts that were chosen, and no other."""
    rows = x.flatten(0, 1)
    chosen = net.gate(rows).topk(2)[1]
    mask = F.one_hot(chosen, 4).permute(2, 1, 0)
    out = torch.zeros_like(rows)
    for number in (mask.sum((-1, -2)) > 0).nonzero()[:, 0]:
        _, row = torch.where(mask[number])
        out.index_add_(0, row, net.experts[int(number)](rows[row]))
    return out


def switch(net: Any, x: Tensor) -> Tensor:
    """Run one expert a row, by max."""
    rows = x.flatten(0, 1)
    weight, chosen = net.gate(rows).softmax(-1).max(-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(net.experts):
        row = (chosen == number).nonzero()[:, 0]
        out[row] = expert(rows[row]) * weight[row, None]
    return out


def grouped(net: Any, x: Tensor, stack: Callable[[Any], Tensor] = lambda net: net.stack) -> Tensor:
    """Sort rows by expert, for one grouped product."""
    rows = x.flatten(0, 1)
    weights, chosen = net.gate(rows).softmax(-1).topk(2)
    order = chosen.flatten().argsort()
    ends = torch.histc(chosen.flatten().float(), 4, 0, 3).cumsum(0).to(torch.int32)
    made = torch._grouped_mm(rows[order // 2], stack(net), offs=ends)
    return made * weights.flatten()[order, None]


def picked(net: Any, x: Tensor) -> Tensor:
    """Pick a weight and a bias for each row and choice."""
    rows = x.flatten(0, 1)
    chosen = net.gate(rows).topk(2)[1].flatten()
    made = torch.bmm(rows.repeat_interleave(2, 0)[:, None], net.stack[chosen])[:, 0] + net.bias[chosen]
    return made.view(-1, 2, 8).sum(1)


def dispatched(net: Any, x: Tensor) -> Tensor:
    """Dispatch by products with masks to a fixed number of rows an expert, as GShard does: 5 of 10 rows for 2 of 4."""
    rows = x.flatten(0, 1)
    probabilities = net.gate(rows).softmax(-1)
    mask = F.one_hot(probabilities.topk(2)[1], 4).sum(1)
    places = F.one_hot((mask.cumsum(0) - 1).clamp(0, 4), 5) * mask[:, :, None]
    masks = places.float()
    back = masks * probabilities[:, :, None]
    sent = torch.einsum("tec,td->ecd", masks, rows)
    made = torch.baddbmm(net.bias[:, None], sent, net.stack)
    return torch.einsum("tec,ecd->td", back, made)


def stacked(net: Any, x: Tensor) -> Tensor:
    """The same with a stack made of experts on the way, in another dtype and back."""
    return grouped(net, x, lambda net: torch.stack([expert.weight for expert in net.experts]).double().float())


def cast(net: Any, x: Tensor) -> Tensor:
    """Cast each weight before it is used."""
    rows = x.flatten(0, 1)
    chosen = net.gate(rows).argmax(-1)
    out = torch.zeros_like(rows, dtype=torch.float64)
    for number, expert in enumerate(net.experts):
        row = torch.where(chosen == number)[0]
        out[row] = F.linear(rows[row].double(), expert.weight.double() * torch.tensor(2.0).double())
    return out


def chunked(net: Any, x: Tensor) -> Tensor:
    """Route half of the rows after the other."""
    return torch.cat([looped(net, half[None]) for half in x.flatten(0, 1).chunk(2)])


def twice(net: Any, x: Tensor) -> Tensor:
    """Go through the same block two times."""
    return net.block(net.block(x)[None])


def split_again(net: Any, x: Tensor) -> Tensor:
    """Choose one of 2 groups, then among the rows of a group one of 2 experts."""
    rows = x.flatten(0, 1)
    group = net.groups(rows).argmax(-1)
    out = torch.zeros_like(rows)
    for number, inner in enumerate(net.inner):
        row = torch.where(group == number)[0]
        out[row] = inner(rows[row][None])
    return out


def of_pair(net: Any, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    chosen = net.gate(rows).argmax(-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(net.experts):
        row = torch.where(chosen == number)[0]
        out[row] = expert(rows[row])
    return out


def shared(net: Any, x: Tensor) -> Tensor:
    return looped(net, x) + net.norm(net.shared(x.flatten(0, 1)))


class Router(nn.Module):
    """A router of its own that scales what it chose: 4 scales, 2 of them a token."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scale = gate(), nn.Parameter(torch.ones(4))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.gate(rows).topk(2)
        return weights * self.scale[chosen], chosen


def routed_outside(net: Any, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    weights, chosen = net.router(rows)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(net.experts):
        row, place = torch.where(chosen == number)
        out.index_add_(0, row, expert(rows[row]) * weights[row, place, None])
    return out


def pair() -> Net:
    return Net(of_pair, gate=nn.Linear(8, 2, bias=False), experts=nn.ModuleList(square() for _ in range(2)))


MIXTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # 2 of 4 experts of 8 x 8, and the gate
    "loop": (lambda: Net(looped, gate=gate(), experts=experts()), GATE + 2 * SQUARE),
    "loop with biases": (lambda: Net(looped, gate=gate(), experts=experts(bias=True)), GATE + 2 * (SQUARE + 8)),
    "those that were hit": (lambda: Net(hit, gate=gate(), experts=experts()), GATE + 2 * SQUARE),
    "one of them": (lambda: Net(switch, gate=gate(), experts=experts()), GATE + SQUARE),
    # one layer for all rows and a norm of 8 + 8 beside the experts
    "shared expert": (
        lambda: Net(shared, gate=gate(), experts=experts(), shared=square(bias=True), norm=nn.LayerNorm(8)),
        GATE + 2 * SQUARE + SQUARE + 8 + 16,
    ),
    "grouped product": (lambda: Net(grouped, gate=gate(), stack=torch.ones(4, 8, 8)), GATE + 2 * SQUARE),
    "picked weights": (
        lambda: Net(picked, gate=gate(), stack=torch.ones(4, 8, 8), bias=torch.ones(4, 8)),
        GATE + 2 * (SQUARE + 8),
    ),
    # 4 experts x 5 rows are 2 for each of 10 rows
    "rows of a fixed number": (
        lambda: Net(dispatched, gate=gate(), stack=torch.ones(4, 8, 8), bias=torch.ones(4, 8)),
        GATE + 2 * (SQUARE + 8),
    ),
    "stack of experts": (lambda: Net(stacked, gate=gate(), experts=experts()), GATE + 2 * SQUARE),
    "cast weights": (lambda: Net(cast, gate=gate(), experts=experts()), GATE + SQUARE),
    "in chunks": (lambda: Net(chunked, gate=gate(), experts=experts()), GATE + 2 * SQUARE),
    "two times": (lambda: Net(twice, block=Net(looped, gate=gate(), experts=experts())), GATE + 2 * SQUARE),
    # the gate of the groups, 2 x 8, and of 2 pairs one half each: half of 2 gates of 2 x 8, and one of 4 experts
    "groups": (
        lambda: Net(split_again, groups=nn.Linear(8, 2, bias=False), inner=nn.ModuleList([pair(), pair()])),
        16 + 16 + SQUARE,
    ),
    "router with scales": (lambda: Net(routed_outside, router=Router(), experts=experts()), GATE + 2 + 2 * SQUARE),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_counts_by_the_share_of_its_tokens(name: str) -> None:
    make, expected = MIXTURES[name]
    model = make()
    params = sum(p.numel() for p in model.parameters())
    assert expected < params
    assert active(model, 10, 8) == (params, expected)


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "groups"])  # of random rows 10 are not 5 and 5
def test_real_run_finds_the_same(name: str) -> None:
    make, expected = MIXTURES[name]
    assert active(make(), 10, 8, execute=True)[1] == expected


@pytest.mark.parametrize("name", MIXTURES)
def test_training_step_counts_its_forward(name: str) -> None:
    make, expected = MIXTURES[name]
    ledger = analyze(make(), (10, 8), training=True, optimizer="sgd")
    assert ledger.totals()["active_params"] == expected
    assert ledger.totals(phase="backward")["active_params"] == expected


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("name", ["loop", "those that were hit", "grouped product", "picked weights"])
def test_any_number_of_tokens_gives_the_same(name: str, rows: int) -> None:
    """One token goes through 2 experts, and 2 do not run at all."""
    make, expected = MIXTURES[name]
    assert active(make(), rows, 8)[1] == expected


def test_block_deep_in_a_model_beside_what_runs_for_all() -> None:
    """The layers around the blocks count whole, the embedding and a head on one token as well."""

    def run(net: Any, ids: Tensor) -> Tensor:
        x = net.tokens(ids)
        for norm, block in zip(net.norms, net.blocks, strict=True):
            x = x + block(norm(x)).view_as(x)
        return net.head(x[:, -1])

    blocks = nn.ModuleList(Net(looped, gate=gate(), experts=experts()) for _ in range(2))
    norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
    model = Net(run, tokens=nn.Embedding(50, 8), norms=norms, blocks=blocks, head=nn.Linear(8, 50))
    # embedding 400, norms 2 x 16, blocks 2 x (32 + 2 of 4 experts), head 450
    totals = analyze(model, (10,), input_dtype="int64").totals()
    assert totals["active_params"] == 400 + 2 * 16 + 2 * (GATE + 2 * SQUARE) + 450
    assert totals["params"] == 400 + 2 * 16 + 2 * (GATE + 4 * SQUARE) + 450


def test_tables_in_a_block_count_whole() -> None:
    """One embedding of 50 x 8 is looked up for the experts, and one of 4 x 8 by the choice itself."""

    def run(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        chosen = net.gate(rows).argmax(-1)
        told = rows + net.table(chosen) + net.places(torch.arange(10))
        out = torch.zeros_like(rows)
        for number, expert in enumerate(net.experts):
            row = torch.where(chosen == number)[0]
            out[row] = expert(told[row])
        return out

    model = Net(run, gate=gate(), table=nn.Embedding(4, 8), places=nn.Embedding(50, 8), experts=experts())
    assert active(model, 10, 8)[1] == GATE + 4 * 8 + 50 * 8 + SQUARE


def test_mixture_of_a_second_text_is_found() -> None:
    """What a second embedding puts out hangs on the input, too: each text has an embedding, 50 x 8, and a mixture."""

    def run(net: Any, ids: Tensor) -> Tensor:
        return torch.stack([block(net.tokens(ids)) for block in net.blocks])

    blocks = nn.ModuleList(Net(looped, gate=gate(), experts=experts()) for _ in range(2))
    totals = analyze(Net(run, tokens=nn.Embedding(50, 8), blocks=blocks), (10,), input_dtype="int64").totals()
    assert totals["active_params"] == 400 + 2 * (GATE + 2 * SQUARE)


# ---- choices that route nothing


def head_on_one_row(net: Any, x: Tensor) -> Tensor:
    return net.head(looped(net, x).mean(0))


def proposals(net: Any, x: Tensor) -> Tensor:
    """Take the best 3 of 10 places of each image through a head, as a detector does."""
    best = net.gate(x).amax(-1).topk(3)[1]
    return net.head(x.gather(1, best[..., None].expand(-1, -1, 8)))


def codebook(net: Any, x: Tensor) -> Tensor:
    """Take the nearest of 4 codes: all are compared with every row."""
    return net.head(net.codes[torch.cdist(x, net.codes).argmin(-1)])


def looked_up(net: Any, x: Tensor) -> Tensor:
    return net.head(net.table(net.gate(x).argmax(-1)))


def for_values(net: Any, x: Tensor) -> Tensor:
    """Scale by the largest value, wherever it is."""
    x = x / x.abs().max(-1, keepdim=True)[0]
    return net.head(x[:, 0])


def of_ids(net: Any, x: Tensor) -> Tensor:
    """Find the end of each text, as CLIP does: the largest id is given."""
    return net.head(x[torch.arange(1), torch.tensor([[1, 5, 2]]).argmax(-1)])


WHOLE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "proposals": (lambda: Net(proposals, gate=gate(), head=square()), GATE + SQUARE),
    "codebook": (lambda: Net(codebook, codes=torch.ones(4, 8), head=square()), 4 * 8 + SQUARE),
    "table": (lambda: Net(looked_up, gate=gate(), table=nn.Embedding(4, 8), head=square()), GATE + 32 + SQUARE),
    "values": (lambda: Net(for_values, head=square()), SQUARE),
    "ids": (lambda: Net(of_ids, head=square()), SQUARE),
    "not run": (lambda: Net(proposals, gate=gate(), head=square(), unused=square()), GATE + 2 * SQUARE),
    "no choice": (lambda: Net(lambda net, x: net.head(x), head=square(), unused=square()), 2 * SQUARE),
}


@pytest.mark.parametrize("execute", ["auto", True])
@pytest.mark.parametrize("name", WHOLE)
def test_choice_that_routes_nothing_counts_whole(name: str, execute: Any) -> None:
    make, expected = WHOLE[name]
    assert active(make(), 10, 8, execute=execute) == (expected, expected)


def test_what_runs_after_the_block_counts_whole() -> None:
    """A head on the mean of 10 rows, in the module that routes them: 8 x 8 for every token."""
    model = Net(head_on_one_row, gate=gate(), experts=experts(), head=square())
    assert active(model, 10, 8)[1] == GATE + 2 * SQUARE + SQUARE


def test_what_runs_elsewhere_too_counts_whole() -> None:
    """One of the 4 experts serves all rows before they are routed: it and half of the 3 others."""
    model = Net(lambda net, x: looped(net, net.experts[0](x)), gate=gate(), experts=experts())
    assert active(model, 10, 8)[1] == GATE + SQUARE + 3 * SQUARE // 2


def test_all_experts_on_all_rows_count_whole() -> None:
    def dense(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, chosen = net.gate(rows).topk(2)
        scores = torch.zeros(10, 4).scatter(1, chosen, weights)
        return (torch.stack([expert(rows) for expert in net.experts], 1) * scores[..., None]).sum(1)

    assert active(Net(dense, gate=gate(), experts=experts()), 10, 8) == (GATE + 4 * SQUARE,) * 2


# ---- shown, saved


@pytest.fixture
def ledger() -> Ledger:
    return analyze(MIXTURES["loop with biases"][0](), (10, 8))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_both_are_shown_where_they_differ(ledger: Ledger, convention: str) -> None:
    # 32 + 4 (64 + 8), 32 + 2 (64 + 8)
    line = "parameters: 320 in all, 176 active for a token"
    assert ledger.totals(convention)["active_params"] == 176
    for table in (
        ledger.by_layer(convention),
        ledger.by_operation(convention),
        ledger.by_module(convention=convention),
    ):
        assert line in table.notes and line in str(table)
    plain = analyze(Net(lambda net, x: net.head(x), head=square()), (10, 8))
    assert "active" not in str(plain.by_layer(convention))


def test_round_trip(ledger: Ledger) -> None:
    data = json.loads(json.dumps(ledger.to_json()))
    again = Ledger.from_json(data)
    assert again.record == ledger.record and again.record.routing is not None
    assert again.totals() == ledger.totals()
    del data["routing"]  # as a ledger has it that was saved before
    assert Ledger.from_json(data).totals()["active_params"] == 320


def test_ledger_without_routing_is_as_before() -> None:
    assert "routing" not in analyze(Net(lambda net, x: net.head(x), head=square()), (10, 8)).to_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("choices", 0, 0), 10**6),
        (("choices", 0, 0), -1),
        (("choices", 0, 1), 0),
        (("choices", 0, 2), 10**6),
        (("choices", 0, 3), 0),
        (("choices", 0, 3), 10**6),
        (("choices", 0, 1), "10"),
        (("choices", 0), [1, 2, 3]),
        (("uses", 0, 0), 10**6),
        (("uses", 0, 1), 9),
        (("uses", 0, 1), -1),
        (("uses", 0, 2), 10**6),
        (("uses",), None),
        (("earlier",), [-1]),
    ],
)
def test_damaged_routing_is_refused(ledger: Ledger, path: tuple[Any, ...], value: object) -> None:
    data = json.loads(json.dumps(ledger.to_json()))
    place = data["routing"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(UserError, match="damaged"):
        Ledger.from_json(data, "net.json")


@pytest.mark.parametrize("key", ["choices", "uses", "earlier"])
def test_missing_key_of_routing_is_named(ledger: Ledger, key: str) -> None:
    data = json.loads(json.dumps(ledger.to_json()))
    del data["routing"][key]
    with pytest.raises(UserError, match=f"no '{key}'"):
        Ledger.from_json(data, "net.json")
