"""The views over captured records: every one adds up to one total, and says what it leaves out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchledger import ForwardError, Ledger, Table, analyze
from torchledger.pricing import CONVENTIONS
from torchledger.record import Measured, Measurement, Phase
from torchledger.views import COUNTS, AtLeast, Cell

DEPTHS = range(5)


@torch.library.custom_op("ledgertest::_svd", mutates_args=())
def right_vectors(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(x, full_matrices=False)[2]


@right_vectors.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(min(x.shape), x.shape[1])


@torch.library.custom_op("ledgertest::spread", mutates_args=())
def spread(x: torch.Tensor) -> torch.Tensor:
    """An operation of another library: no rule can know it."""
    return x - x.mean()


@spread.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Nested(nn.Module):
    """Depth 3, registered against the order in which it runs, with a module that dispatches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4 * 6 * 6, 5))
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self.step(self.step(x[:, None]).squeeze(1)))


class Parent(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.inner(x))


class Shared(nn.Module):
    """One Linear that two parents hold."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Linear(6, 6)
        self.left, self.right = Parent(inner), Parent(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


class Tied(nn.Module):
    """One weight that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.decode = nn.Linear(4, 10, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decode(self.embed(ids))


class Owning(nn.Module):
    """A root with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + self.token)


class PartlyRun(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.auxiliary = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


class Functional(nn.Module):
    """Operations outside of leaves, before, between and after modules, in place too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 4))
        self.block = Owning()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([F.linear(x, self.weight), self.block(x)], dim=1)
        joined += joined.flip(1)
        return F.relu_(joined)


class Singular(nn.Module):
    """Two operations without a rule: one outside of a leaf, one in a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.spread = Spread()
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.spread(torch.ops.ledgertest._svd(self.first(x))))


class Spread(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.ledgertest.spread(x).relu()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "leaf": (lambda: nn.Linear(4, 3), (4,), {}),
    "nested": (Nested, (3, 8, 8), {}),
    "nested in train": (Nested, (3, 8, 8), {"mode": "train"}),
    "thrice": (Thrice, (6,), {}),
    "shared": (Shared, (6,), {}),
    "tied": (Tied, (7,), {"input_dtype": "int64"}),
    "owning": (Owning, (4,), {}),
    "partly run": (PartlyRun, (4,), {}),
    "functional": (Functional, (4,), {}),
    "singular": (Singular, (4,), {}),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), {}),
    "nothing": (nn.Identity, (4,), {}),
}
KNOWN = [name for name in NETS if name != "singular"]


def ledger_of(name: str, batch: int = 1) -> Ledger:
    build, size, options = NETS[name]
    return analyze(build(), size, batch=batch, **options)


def tables(ledger: Ledger, convention: str) -> list[Table]:
    modules = [ledger.by_module(depth, convention) for depth in DEPTHS]
    return [ledger.by_layer(convention), ledger.by_operation(convention), *modules]


def column(table: Table, name: str) -> list[Any]:
    return [row[name] for row in table.rows]


def added(table: Table, name: str) -> float:
    """Sum a column; a cell that the convention does not count is None."""
    return sum(cell for cell in column(table, name) if cell is not None)


def row_of(table: Table, module: str, kind: str | None = None) -> dict[str, Cell]:
    (row,) = [row for row in table.rows if row["module"] == module and kind in (None, row.get("kind"))]
    return row


# ---- one total


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", NETS)
def test_every_view_adds_up_to_the_totals(name: str, convention: str) -> None:
    ledger = ledger_of(name)
    total = ledger.totals(convention)
    for table in tables(ledger, convention):
        numbers = [c.name for c in table.columns if not c.text and c.name != "calls"]
        assert len(numbers) >= 5
        for quantity in numbers:
            assert added(table, quantity) == pytest.approx(total[quantity], abs=1e-12), (table.title, quantity)
            assert table.total[quantity] == total[quantity], (table.title, quantity)
            assert type(table.total[quantity]) is type(total[quantity]), (table.title, quantity)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", NETS)
def test_params_add_up_to_the_models(name: str, convention: str) -> None:
    model = NETS[name][0]()
    ledger = analyze(model, NETS[name][1], **NETS[name][2])
    elements = sum(p.numel() for p in model.parameters())
    assert ledger.totals(convention)["params"] == elements
    assert ledger.totals(convention)["trainable_params"] == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert ledger.totals(convention)["buffers"] == sum(b.numel() for b in model.buffers())
    for table in (ledger.by_layer(convention), *(ledger.by_module(depth, convention) for depth in DEPTHS)):
        assert added(table, "params") == elements, table.title


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", NETS)
def test_every_operation_is_in_one_state(name: str, convention: str) -> None:
    ledger = ledger_of(name)
    total = ledger.totals(convention)
    assert total["operations"] == len(ledger.record.entries)
    assert total["operations"] == total["priced"] + total["free"] + total["excluded"] + total["unknown"]
    if convention == "full":
        assert total["excluded"] == 0
        for table in tables(ledger, convention):
            for row in table.rows:
                assert row["operations"] == sum(row[state] for state in COUNTS[1:])
        assert added(ledger.by_operation(), "calls") == total["operations"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", KNOWN)
def test_quantities_are_affine_in_the_batch(name: str, convention: str) -> None:
    one, two, three = (ledger_of(name, batch).totals(convention) for batch in (1, 2, 3))
    for quantity in one:
        # With one sample, attention's transposes move nothing, so that torch copies less and fuses a bias more.
        if name != "attention" or (convention == "full" and quantity in ("macs", "flops")):
            assert three[quantity] - two[quantity] == pytest.approx(two[quantity] - one[quantity]), quantity
    if convention == "full":
        assert two["macs"] == 2 * one["macs"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", NETS)
def test_no_child_is_above_its_parent(name: str, convention: str) -> None:
    ledger = ledger_of(name)
    for depth in DEPTHS[:-1]:
        above, below = ledger.by_module(depth, convention), ledger.by_module(depth + 1, convention)
        quantities = [c.name for c in above.columns if not c.text]
        for parent in above.rows:
            path = str(parent["module"]).split(".") if parent["module"] else []
            children = [row for row in below.rows if str(row["module"]).split(".")[:depth] == path] if path else []
            if depth == 0:
                children = below.rows
            elif not path:  # the root's own, which is in no child
                children = [row for row in below.rows if not row["module"]]
            assert children
            for quantity in quantities:
                amounts = [row[quantity] or 0 for row in children]
                assert all(amount <= (parent[quantity] or 0) for amount in amounts), (depth, path, quantity)
                assert sum(amounts) == pytest.approx(parent[quantity] or 0, abs=1e-12), (depth, path, quantity)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_depth_0_is_the_whole_and_deep_is_every_leaf(convention: str) -> None:
    ledger = ledger_of("nested")
    (whole,) = ledger.by_module(0, convention).rows
    assert (whole["module"], whole["kind"]) == ("", "Nested")
    leaves = {str(path) for path in column(ledger.by_layer(convention), "module")}
    assert set(column(ledger.by_module(3, convention), "module")) == leaves
    assert ledger.by_module(3, convention).rows == ledger.by_module(100, convention).rows


@pytest.mark.parametrize("phase", ["forward", "backward", "optimizer"])
def test_phases_split_the_totals(phase: str) -> None:
    ledger = ledger_of("nested")
    operations = len(ledger.record.entries)
    phases: tuple[Phase, Phase] = ("forward", "backward")
    ledger.record.entries.phases = list(itertools.islice(itertools.cycle(phases), operations))
    part, whole = ledger.totals(phase=phase), ledger.totals()
    counts = {"forward": (operations + 1) // 2, "backward": operations // 2, "optimizer": 0}
    assert part["operations"] == counts[phase]
    assert part["params"] == whole["params"], "parameters belong to no phase"
    other = ledger.totals(phase="backward" if phase == "forward" else "forward")
    rest = 0 if phase != "optimizer" else ledger.totals(phase="backward")["flops"]
    assert part["flops"] + other["flops"] + rest == whole["flops"]


# ---- rows


def test_rows_stand_in_the_order_of_execution() -> None:
    rows = [(row["module"], row["kind"]) for row in ledger_of("nested").by_layer().rows]
    # Dropout dispatches nothing in eval, and is called all the same.
    assert rows == [
        ("body.0.0", "Conv2d"),
        ("body.0.1", "BatchNorm2d"),
        ("body.1", "ReLU"),
        ("head.0", "Flatten"),
        ("head.1", "Dropout"),
        ("head.2", "Linear"),
    ]
    # A module that owns parameters has a row of its own, where its call began.
    assert [(row["module"], row["kind"]) for row in ledger_of("functional").by_layer().rows] == [
        ("", "Functional"),
        ("", "t"),
        ("", "mm"),
        ("block", "Owning"),
        ("block", "add"),
        ("block.layer", "Linear"),
        ("", "cat"),
        ("", "flip"),
        ("", "add_"),
        ("", "relu_"),
    ]


def test_rows_stand_in_the_order_of_registration_under_torchstat() -> None:
    table = ledger_of("nested").by_layer("torchstat")
    assert column(table, "module") == ["head.0", "head.1", "head.2", "body.0.0", "body.0.1", "body.1"]
    assert column(ledger_of("partly run").by_layer("torchstat"), "module") == ["used", "auxiliary.0", "auxiliary.2"]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_operations_stand_heaviest_first(convention: str) -> None:
    table = ledger_of("nested").by_operation(convention)
    heaviest = CONVENTIONS[convention].quantities[0].name
    amounts = [row[heaviest] or 0 for row in table.rows]
    assert amounts == sorted(amounts, reverse=True)
    assert table.rows[0]["operation"] == "convolution"


def test_module_called_three_times() -> None:
    (row,) = [row for row in ledger_of("thrice").by_layer().rows if row["kind"] == "Linear"]
    # 3 calls of 6 x 6 with bias: macs 36, flops 2 36 + 6; x 6, weight 36 and bias 6 are read each time, 4 bytes each.
    assert (row["calls"], row["params"], row["macs"], row["flops"]) == (3, 42, 108, 234)
    assert (row["bytes_read"], row["bytes_written"]) == (3 * 48 * 4, 3 * 6 * 4)
    assert (row["input_shape"], row["output_shape"]) == ("1x1x6", "1x1x6"), "those of the first call"
    (under_torchstat,) = ledger_of("thrice").by_layer("torchstat").rows
    # torchstat: 6 (2 6 - 1) multiplications and additions a call, without the bias.
    assert (under_torchstat["module"], under_torchstat["madd"], under_torchstat["params"]) == ("step", 3 * 66, 42)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_module_shared_by_two_parents(convention: str) -> None:
    table = ledger_of("shared").by_layer(convention)
    left, right = row_of(table, "left.inner"), row_of(table, "right.inner")
    quantity = CONVENTIONS[convention].quantities[0].name
    assert left[quantity] == right[quantity] == {"full": 36, "torchstat": 6 * 11, "fvcore": 36}[convention]
    assert (left["params"], right["params"]) == (42, 0), "its parameters belong to the first path"
    if convention == "full":
        assert (left["note"], right["note"]) == ("", "shared with left.inner")
    by_module = ledger_of("shared").by_module(1, convention)
    assert {str(row["module"]): row["params"] for row in by_module.rows if row["module"]} == {"left": 42, "right": 0}


def test_tied_weight_is_counted_under_its_first_path() -> None:
    table = ledger_of("tied").by_layer()
    embed, decode = row_of(table, "embed"), row_of(table, "decode")
    assert (embed["params"], decode["params"]) == (40, 0)
    assert (embed["note"], decode["note"]) == ("", "shared with embed.weight")
    # 7 rows of 4 against 10: 280; the weight is read by both all the same.
    assert (embed["macs"], decode["macs"]) == (0, 280)
    assert decode["bytes_read"] == (7 * 4 + 10 * 4) * 4
    assert ledger_of("tied").by_layer("torchstat").total["params"] == 40


def test_root_that_owns_a_parameter() -> None:
    table = ledger_of("owning").by_layer()
    root, addition = row_of(table, "", "Owning"), row_of(table, "", "add")
    assert (root["params"], root["flops"], root["calls"]) == (4, 0, 1)
    assert (addition["params"], addition["flops"]) == (0, 4)
    assert "(root)" in table.to_text()
    total = ledger_of("owning").totals()
    assert (total["params"], total["trainable_params"]) == (14, 10)
    root = row_of(ledger_of("owning").by_layer("torchstat"), "")
    assert (root["params"], root["flops"], root["memory_mb"]) == (4, None, 0), "no leaf: outside of what counts"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_module_that_does_not_run(convention: str) -> None:
    table = ledger_of("partly run").by_layer(convention)
    rows = [row for row in table.rows if str(row["module"]).startswith("auxiliary")]
    assert [(row["module"], row["params"]) for row in rows] == [("auxiliary.0", 45), ("auxiliary.2", 20)]
    if convention == "full":
        assert [(row["calls"], row["note"]) for row in rows] == [(0, "not run")] * 2
        assert [row["output_shape"] for row in rows] == ["", ""]
    quantities = [quantity.name for quantity in CONVENTIONS[convention].quantities]
    assert all(row[name] is None for row in rows for name in quantities)
    # It stays in the tree, so that the parameters add up there too.
    row = row_of(ledger_of("partly run").by_module(1, convention), "auxiliary")
    assert row["params"] == 65 and not row.get("note") and all(row[name] == 0 for name in quantities)


def test_operations_outside_leaves() -> None:
    table = ledger_of("functional").by_layer()
    assert (row_of(table, "", "mm")["macs"], row_of(table, "", "mm")["input_shape"]) == (4 * 5, "1x4, 4x5")
    # 5 + 2 columns join, are reversed, added in place and clipped in place: one operation an element each.
    assert (row_of(table, "", "cat")["flops"], row_of(table, "", "cat")["bytes_written"]) == (0, 7 * 4)
    assert (row_of(table, "", "add_")["flops"], row_of(table, "", "add_")["bytes_read"]) == (7, 2 * 7 * 4)
    assert (row_of(table, "", "relu_")["flops"], row_of(table, "", "relu_")["activation_bytes"]) == (7, 0)
    torchstat = ledger_of("functional").by_layer("torchstat")
    assert column(torchstat, "module") == ["", "block", "block.layer"]
    assert ledger_of("functional").totals("torchstat")["excluded"] == 6  # mm, add, cat, flip, add_, relu_


def test_what_a_convention_does_not_count_is_neither_zero_nor_unknown() -> None:
    table = ledger_of("tied").by_layer("torchstat")
    assert row_of(table, "embed")["madd"] is None, "torchstat knows no Embedding"
    assert re.search(r"^embed +7 +7x4 +40 +0\.00 +- +- +- +- +-$", table.to_text(), re.MULTILINE)
    operations = ledger_of("functional").by_operation("torchstat")
    assert {row["operation"]: row["madd"] for row in operations.rows if row["madd"] is None} == dict.fromkeys(
        ["mm", "add", "cat", "flip", "add_", "relu_"]
    )


def test_quantity_that_a_convention_lacks_for_an_operation_is_no_zero() -> None:
    """torchstat has a MAdd for a transposed convolution, at the input's size, and nothing else."""
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.ReLU())
    table = analyze(model, (2, 4, 4)).by_layer("torchstat")
    # 16 places of 3 channels: 2 x 2 x 2 products, one addition less and one for the bias.
    assert (row_of(table, "0")["madd"], row_of(table, "0")["flops"]) == (4 * 4 * 3 * (8 + 8), None)
    assert row_of(table, "1")["flops"] == table.total["flops"] == 3 * 5 * 5


def test_rows_of_free_operations_are_kept_but_not_drawn() -> None:
    table = ledger_of("functional").by_layer()
    assert row_of(table, "", "t")["free"] == 1
    assert [table.rows[index]["kind"] for index in table.free_rows] == ["t"]
    assert "1 row of free operations not shown" in table.to_text()
    assert not re.search(r"^\(root\) +t ", table.to_text(), re.MULTILINE)
    # A leaf that only made a view is a module of the user's: its row stays.
    assert re.search(r"^head\.0 +Flatten ", ledger_of("nested").by_layer().to_text(), re.MULTILINE)


# ---- unknown operations


def test_unknown_operations_show_in_row_total_and_notes() -> None:
    ledger = ledger_of("singular")
    assert ledger.unknown == {"ledgertest::_svd": 1, "ledgertest::spread": 1}
    table = ledger.by_layer()
    outside, inside = row_of(table, "", "ledgertest::_svd"), row_of(table, "spread")
    for quantity in ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes"):
        assert isinstance(outside[quantity], AtLeast) and outside[quantity] == 0
        assert isinstance(table.total[quantity], AtLeast)
        assert isinstance(ledger.totals()[quantity], AtLeast)
        assert not isinstance(row_of(table, "first")[quantity], AtLeast)
    # The leaf also clips 4 x 1 numbers, which is known.
    assert isinstance(inside["flops"], AtLeast) and inside["flops"] == 4
    assert (outside["unknown"], inside["unknown"], table.total["unknown"]) == (1, 1, 2)
    for drawn in (table.to_text(), ledger.by_module(0).to_text(), ledger.by_operation().to_text()):
        assert re.search(r"^total( .*)? >=[\d.]+ ", drawn, re.MULTILINE)
        assert re.search(r"^operations: \d+ priced, \d+ free, 2 unknown$", drawn, re.MULTILINE)
        assert "\nunknown: ledgertest::_svd (1), ledgertest::spread (1)\n" in drawn
    assert re.search(r"^\(root\) +ledgertest::_svd .* \? +\? +\? +\? +\? +1$", table.to_text(), re.MULTILINE)


def test_unknown_operations_are_counted_most_frequent_first() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.ops.ledgertest._svd(x)
            return spread(spread(x))

    assert list(analyze(Two(), (4,)).unknown.items()) == [("ledgertest::spread", 2), ("ledgertest::_svd", 1)]


def test_unknown_operation_in_a_leaf_under_torchstat() -> None:
    table = ledger_of("singular").by_layer("torchstat")
    # The leaf's known ReLU alone: 4 in each of the columns that torchstat has for it.
    assert [row_of(table, "spread")[name] for name in ("madd", "flops")] == [4, 4]
    assert isinstance(row_of(table, "spread")["madd"], AtLeast) and isinstance(table.total["madd"], AtLeast)
    assert "Total MAdd: >=" in table.to_text()


def test_unknown_is_never_a_bare_zero_in_any_format() -> None:
    table = ledger_of("singular").by_layer()
    (line,) = [line for line in table.to_csv().splitlines() if "ledgertest::_svd" in line]
    assert line.count(",?") == 5
    assert table.to_json()["total"]["flops"] == {"at_least": int(table.total["flops"])}  # type: ignore[index,call-overload]
    assert re.search(r"ledgertest::\\_svd .*\| \? \| \? \| \? \| \? \| \? \|", table.to_markdown())


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    "changed",
    [
        {"groups": 0},
        {"groups": "one"},
        {"groups": None},
        {"weight": None},
        {"weight": 3},
        {"weight": {"tensor": 2}},  # the bias
    ],
    ids=str,
)
def test_arguments_that_no_rule_can_read_are_unknown(convention: str, changed: dict[str, object]) -> None:
    """Another version's overload, or a ledger that was edited: shown as unknown, and no bare LookupError."""
    data = ledger_of("nested").to_json()
    (convolution,) = [o for o in data["operations"] if o["name"] == "convolution"]  # type: ignore[attr-defined]
    convolution["arguments"] |= changed
    for table in tables(Ledger.from_json(data), convention):
        assert "total" in table.to_text()
        assert table.notes[0].startswith("operations: ")
    if changed == {"weight": None}:
        assert Ledger.from_json(data).unknown == {"convolution": 1}


# ---- notes


def test_coverage_line() -> None:
    # convolution, batch norm, relu, linear; flatten's view and the transposed weight.
    assert ledger_of("nested").by_layer().notes[0] == "operations: 4 priced, 2 free, 0 unknown"
    # cat, mm, add, flip, add_, relu_ and the block's linear; two transposed weights.
    assert ledger_of("functional").by_operation().notes[0] == "operations: 7 priced, 2 free, 0 unknown"
    line = "operations: 1 priced, 2 free, 0 unknown, 6 outside convention torchstat"
    assert ledger_of("functional").by_module(1, "torchstat").notes[0] == line
    assert ledger_of("nothing").by_layer().notes == ["operations: 0 priced, 0 free, 0 unknown"]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_notes_say_what_was_assumed_measured_and_not_reached(convention: str) -> None:
    ledger = ledger_of("nested")
    ledger.record.assumptions.append("autocast was on and is not modelled")
    ledger.record.measurement = Measurement([], 0.00123, 7, "CPU (x86_64, 1 thread)")
    ledger.record.error = "head.2: Linear expects 144 features, got 9"
    for table in tables(ledger, convention):
        assert "assumed: autocast was on and is not modelled" in table.notes
        assert "incomplete: head.2: Linear expects 144 features, got 9" in table.notes
        measured = "measured on CPU (x86_64, 1 thread): median of 7 runs, 1.23 ms a forward without instruments"
        assert measured in table.notes
        assert set(CONVENTIONS[convention].notes) <= set(table.notes)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["nested", "singular"])
def test_title_says_model_view_convention_mode_and_batch(name: str, convention: str) -> None:
    ledger = ledger_of(name, batch=3)
    for table, view in ((ledger.by_layer(convention), "by layer"), (ledger.by_module(2, convention), "to depth 2")):
        model = name.title()
        assert table.title.startswith(f"{model}, ") and view in table.title
        assert table.title.endswith(f", convention {convention}, eval mode, batch 3")


def test_table_up_to_a_failing_operation_adds_up_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ForwardError) as caught:
        analyze(model, (4,))
    ledger = caught.value.ledger
    for convention in CONVENTIONS:
        table = ledger.by_layer(convention)
        assert added(table, "params") == 4 * 4 + 4 + 5 * 2 + 2
        for quantity in CONVENTIONS[convention].quantities:
            name = quantity.name
            assert added(table, name) == table.total[name] == ledger.totals(convention)[name]
    # 16 macs, a bias and a ReLU of 4.
    assert ledger.totals()["flops"] == 2 * 16 + 4 + 4
    assert any(note.startswith("incomplete: 2: Linear expects 5 features, got 4") for note in table.notes)


# ---- measured seconds


def test_measured_seconds_and_shares() -> None:
    ledger = ledger_of("functional")
    assert "seconds_measured" not in ledger.by_layer().rows[0], "no column of zeros where nothing was measured"
    rows = [Measured("block.layer", "", 0, 0.003), Measured("", "cat", 0, 0.001), Measured("", "only_real", 0, 0.004)]
    ledger.record.measurement = Measurement(rows, 0.01, 3, "CPU")
    table = ledger.by_layer()
    assert row_of(table, "block.layer")["duration_percent"] == pytest.approx(100 * 3 / 8)
    assert row_of(table, "", "cat")["seconds_measured"] == 0.001
    assert row_of(table, "", "only_real")["note"] == "measured only"
    assert (table.total["seconds_measured"], table.total["duration_percent"]) == (pytest.approx(0.008), 100)
    assert added(table, "duration_percent") == pytest.approx(100)
    by_module = ledger.by_module(1)
    assert row_of(by_module, "block")["seconds_measured"] == 0.003
    assert added(by_module, "seconds_measured") == pytest.approx(0.008)
    assert "seconds_measured" not in ledger.by_operation().rows[0]
    # Under torchstat only leaves have rows, and the shares are of what is shown.
    torchstat = ledger.by_layer("torchstat")
    assert row_of(torchstat, "block.layer")["duration_percent"] == 100
    assert added(torchstat, "seconds_measured") == torchstat.total["seconds_measured"] == 0.003
    # Added up in the order of the rows: these three give another last digit in another order.
    rows = [Measured("", "mm", 0, 0.3), Measured("block", "add", 0, 0.2), Measured("block.layer", "", 0, 0.1)]
    ledger.record.measurement = Measurement(rows, 0.01, 3, "CPU")
    assert ledger.by_module(0).rows[0]["seconds_measured"] == (0.3 + 0.2) + 0.1 != (0.1 + 0.3) + 0.2


# ---- what is printed

SCALES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def printed(text: str, title: str) -> list[str]:
    """Return the cells of a right-aligned column, the total last: they end where the heading ends."""
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"─"}][:2]
    heading = lines[rules[0] - 1]
    (match,) = re.finditer(rf"(?<= ){re.escape(title)}(?=  |$)", heading)
    body = [*lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1]]
    return [line[: match.end()].ljust(match.end()).rsplit("  ", 1)[-1].strip() for line in body]


def amount(cell: str) -> float:
    number, _, unit = cell.replace(",", "").removeprefix(">=").partition(" ")
    return 0.0 if cell in ("-", "?") else float(number) * SCALES[unit.removesuffix("B")]


@pytest.mark.parametrize("name", NETS)
def test_printed_columns_add_up_to_the_printed_total(name: str) -> None:
    ledger = ledger_of(name, batch=7)
    for table in tables(ledger, "full"):
        text = table.to_text()
        titles = ["macs", "flops", "read (B)", "written (B)", "activations (B)"]
        titles += ["params"] * (table.columns[0].name != "operation")
        for title in titles:
            *rows, total = map(amount, printed(text, title))
            # Four significant digits: a printed number is off by 5 in 10,000 of itself at most.
            assert abs(sum(rows) - total) <= 5e-4 * (sum(rows) + total), (table.title, title)


@pytest.mark.parametrize("name", NETS)
def test_exact_columns_add_up_exactly(name: str) -> None:
    for table in tables(ledger_of(name, batch=7), "torchstat"):
        text = table.to_text()
        for title in ("MAdd", "Flops", "MemRead(B)", "MemWrite(B)", "MemR+W(B)"):
            *rows, total = map(amount, printed(text, title))
            assert sum(rows) == total, (table.title, title)
        if table.columns[0].name != "operation":
            *rows, total = map(amount, printed(text, "memory(MB)"))
            assert abs(sum(rows) - total) <= 0.005 * (len(rows) + 1) + 1e-9


@pytest.mark.parametrize("view", ["by_layer", "by_operation"])
def test_no_printed_total_holds_what_rows_that_are_not_drawn_hold(view: str) -> None:
    """Calls of views are in no drawn row, so a total of calls would be above what is shown."""

    class Reshaping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = x.t().exp()
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Identity())
            self.block = Parent(Reshaping())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = self.block(self.inner(x)).t()
                x = F.relu(x.t())
            return x

    text = getattr(analyze(nn.Sequential(Outer(), Outer()), (4,), batch=4), view)().to_text()
    assert "of free operations not shown" in text
    *rows, total = printed(text, "calls")
    assert total in ("", str(sum(int(cell) for cell in rows if cell)))
