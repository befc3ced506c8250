"""What is alive when: by arithmetic on small networks, beside real runs, and sums that must agree everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchledger import MemoryReport, UserError, analyze
from torchledger.memory.timeline import CATEGORIES
from torchledger.models import build, registry

MIB = 1 << 20


class Repeated(nn.Module):
    """One linear layer, a hundred times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1024, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            x = self.layer(x)
        return x


def test_torchinfos_case() -> None:
    """Its issue 144: an estimate of 130 MB where 4,044 MiB are alive after the forward.

    A batch is 40 MiB (10,240 rows of 1,024 float32). After forward: 100 outputs and the input, 101 x 40, and the layer,
    4 MiB + 4 KiB. The peak is in the last layer's backward: the weight's gradient (4) is made while the gradient of its
    input (40) is there, and mm copies the gradient of the sum (40), which is one number spread out.
    """
    report = analyze(Repeated(), (1024,), batch=10240, training=True).memory("cpu")
    assert report.after_forward / MIB == 4044 + 4 / 1024
    assert report.peak_bytes / MIB == pytest.approx(4128, rel=1e-5)
    assert report.alive["kernel scratch"] == 40 * MIB
    assert (report.at.phase, report.at.operation, report.at.module) == ("backward", "mm", "layer")


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))


# 64 rows: x 64 x 256, h 64 x 512 (before and after ReLU), y 64 x 64; parameters 131,584 and 32,832
X, H, Y, W1, W2 = (4 * n for n in (64 * 256, 64 * 512, 64 * 64, 256 * 512 + 512, 512 * 64 + 64))


def test_inference_by_hand() -> None:
    report = analyze(two_layers(), (256,), batch=64).memory("cpu")
    moments = {m.operation: m for m in map(report.moment, range(report.moments))}
    # ReLU: its input is still there; the second layer: its input is, the first layer's output is not
    assert report.peak_bytes == moments["relu"].bytes == W1 + W2 + X + 2 * H
    assert moments["relu"].alive == {"parameters": W1 + W2, "inputs": X, "temporaries": 2 * H}
    assert report.moment(report.moments - 1).alive == {"parameters": W1 + W2, "inputs": X, "outputs": Y}
    assert report.after_forward == W1 + W2 + X + Y


def trained(**options: Any) -> MemoryReport:
    ledger = analyze(two_layers(), (256,), batch=64, training=True, loss=lambda y: (y * y).sum(), optimizer="adamw")
    return ledger.memory("cpu", **options)


def at(report: MemoryReport, operation: str, number: int = 0) -> dict[str, int]:
    found = [m for m in map(report.moment, range(report.moments)) if m.operation == operation]
    return found[number].alive


def test_training_by_hand() -> None:
    steady, first = trained(), trained(first_step=True)
    # the linear layers keep their inputs, ReLU its output; y is kept twice by its square, and is the output
    assert steady.after_forward == first.after_forward + 2 * (W1 + W2) + STEPS
    assert first.after_forward == W1 + W2 + X + H + Y
    state = 2 * (W1 + W2) + STEPS
    # gradients of both layers, the two moments, and for the largest weight a square root and a quotient
    largest = 4 * 256 * 512
    for report in (steady, first):
        alive = at(report, "_foreach_addcdiv_")
        assert alive["optimizer state"] == state and alive["gradients"] == W1 + W2
        assert alive["temporaries"] == 2 * largest
    assert "optimizer state" not in at(first, "threshold_backward")
    assert at(steady, "threshold_backward")["gradients"] == W2


STEPS = 4 * 4  # a float32 step count for each of the four parameters


def test_gradients_that_stay() -> None:
    for report in (trained(accumulate=2), trained(set_to_none=False)):
        assert all(report.moment(m).alive["gradients"] == W1 + W2 for m in range(report.moments))
        # the new gradient of the second weight is there beside the old one
        assert at(report, "threshold_backward")["temporaries"] == at(trained(), "threshold_backward")["temporaries"]
        assert max(report.timeline["temporaries"]) >= 4 * 512 * 64
    assert "gradients" not in trained().moment(0).alive


def test_foreach_holds_a_copy_of_all_parameters() -> None:
    ledger = analyze(two_layers(), (256,), batch=64, training=True, optimizer="adamw")
    cuda, cpu = (at(ledger.memory(device, "exact"), "_foreach_addcdiv_")["temporaries"] for device in ("cuda", "cpu"))
    assert (cuda, cpu) == (W1 + W2, 2 * 4 * 256 * 512)


def test_an_optimizer_that_says_itself_how_it_goes() -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, foreach=True)

    ledger = analyze(two_layers(), (256,), batch=64, training=True, optimizer=optimizer)
    assert ledger.record.one_by_one is None
    assert at(ledger.memory("cpu"), "_foreach_addcdiv_")["temporaries"] == W1 + W2


class Checkpointed(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4))
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


def test_checkpointing_is_seen_as_it_is() -> None:
    kept, again = (analyze(Checkpointed(r), (64,), batch=512, training=True, loss="mse") for r in (False, True))
    # each block's two products run once more, but for the last layer's, whose result nobody needs: 4 x 512 x 64 x 256
    assert again.totals()["macs"] - kept.totals()["macs"] == 4 * 512 * 64 * 256
    a, b = kept.memory("cpu"), again.memory("cpu")
    # of a block remain its input and nothing between: 2 x 256 numbers a row
    assert a.after_forward - b.after_forward == 4 * 4 * 512 * (2 * 256)
    assert b.peak_bytes < a.peak_bytes
    assert b.alive["recomputed activations"] and "recomputed activations" not in a.alive
    # what the first block recomputed is gone when the step is over
    assert sum(b.moment(b.moments - 1).alive.values()) < a.after_forward


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "alexnet": lambda: (build("alexnet"), (3, 224, 224)),
    "vgg11_bn": lambda: (build("vgg11_bn"), (3, 64, 64)),
    "googlenet": lambda: (build("googlenet"), (3, 96, 96)),
    "resnet50": lambda: (build("resnet50"), (3, 64, 64)),
    "checkpointed": lambda: (Checkpointed(True), (64,)),
    "encoder": lambda: (nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (16, 64)),
    "lstm": lambda: (nn.LSTM(16, 32, 2, batch_first=True, dropout=0.1), (12, 16)),
    "gru": lambda: (nn.GRU(16, 32, bidirectional=True), (12, 16)),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_categories_add_up_at_every_moment(name: str, training: bool, device: str) -> None:
    with torch.device("meta"):
        model, size = NETS[name]()
    ledger = analyze(model, size, batch=2, training=training, optimizer="momentum" if training else None)
    for options in ({}, {"first_step": True}, {"accumulate": 2}) if training else ({},):
        report = ledger.memory(device, **options)
        assert set(report.timeline) <= set(CATEGORIES)
        exact = [sum(sizes) for sizes in zip(*report.timeline.values(), strict=True)]
        for index in range(0, report.moments, 7):
            moment = report.moment(index)
            assert sum(moment.alive.values()) == moment.bytes == report.live[index]
            assert sum(size for part, size in moment.alive.items() if part in CATEGORIES) == exact[index]
        if device == "cpu":
            assert report.live == exact
        assert all(size >= 0 for sizes in report.timeline.values() for size in sizes)
        assert report.peak_bytes == max(report.live) == sum(report.alive.values())
        for table in (report.by_category(), report.by_module(2), report.by_operation()):
            assert sum(row["bytes"] for row in table.rows) == table.total["bytes"] == report.peak_bytes  # type: ignore[misc]


def test_a_saved_ledger_says_the_same(tmp_path: Any) -> None:
    from torchledger import Ledger

    ledger = analyze(Checkpointed(True), (64,), batch=8, training=True, optimizer="adamw")
    ledger.save(tmp_path / "net.json")
    again = Ledger.load(tmp_path / "net.json")
    for device in ("cpu", "cuda"):
        for first in (False, True):
            one, other = (it.memory(device, first_step=first) for it in (ledger, again))
            assert (one.live, one.timeline, one.reserved_bytes) == (other.live, other.timeline, other.reserved_bytes)


def test_reserved_is_what_the_allocator_takes_from_the_device() -> None:
    report = analyze(two_layers(), (256,), batch=64).memory("cuda")
    # all requests are below 1 MiB: one segment of 2 MiB; each is rounded up to 512 bytes
    assert report.reserved_bytes == 2 * MIB
    rounded = {"parameters": 4 * 131072 + 2048 + 4 * 32768 + 512, "inputs": X, "temporaries": 2 * H}
    assert report.peak_bytes == sum(rounded.values())
    assert report.alive["allocator's rounding"] == 512 - 4 * 64
    assert analyze(two_layers(), (256,)).memory("cuda", "exact").reserved_bytes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "unknown device 'mps'; memory is known for cpu, cuda"),
        ({"allocator": "best"}, "unknown allocator 'best'; the allocators are exact, cuda"),
        ({"accumulate": 0}, "accumulate is 0, expected a whole number of micro-batches from 1"),
        ({"accumulate": 2}, "this ledger is of a forward alone"),
        ({"first_step": True}, "this ledger is of a forward alone"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    ledger = analyze(two_layers(), (256,))
    with pytest.raises(UserError, match=message):
        ledger.memory(**options)


def test_wrong_moments() -> None:
    report = analyze(two_layers(), (256,)).memory()
    for index in (-1, report.moments, True, 1.0):
        with pytest.raises(UserError, match=r"moment is .*, expected a whole number from 0 to 5"):
            report.moment(index)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="depth is -1"):
        report.by_module(-1)


def test_a_network_without_operations() -> None:
    report = analyze(nn.Identity(), (4,), batch=2).memory("cpu")
    assert (report.moments, report.peak_bytes, report.alive) == (1, 32, {"inputs": 32})
    assert "after the last operation" in report.by_category().to_text()


def test_nothing_of_a_handled_error_stays_alive() -> None:
    """An exception that the model catches has a traceback with all that was alive: the books must let go of it."""

    class Careful(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                y = x * 2
                y.view(7)
            except RuntimeError:
                pass
            del y
            return x + 1

    report = analyze(Careful(), (1024,)).memory("cpu")
    assert report.moment(report.moments - 1).alive == {"inputs": 4096, "outputs": 4096}


class Shared(nn.Module):
    """Three layers of one batch, and one layer three times: their gradients are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 64)
        self.heads = nn.ModuleList(nn.Linear(64, 8) for _ in range(3))
        self.again = nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.body(x))
        for _ in range(3):
            x = self.again(x)
        y: torch.Tensor = self.heads[0](x) * self.heads[1](x) * self.heads[2](x)
        return y


def test_gradients_are_added_where_nothing_else_has_their_storage() -> None:
    """x's gradients are products' results: sums go into the first. Of the weight that ran three times the first is a

    transpose of its product: the sum of two is new, and the third goes into that.
    """
    record = analyze(Shared(), (16,), batch=4, training=True, loss=lambda y: y.sum()).record
    sums = [place for place, e in enumerate(record.entries) if record.operations[e.operation].name == "add"]
    shapes = [record.operations[record.entries[place].operation].inputs[0].shape for place in sums]
    assert shapes == [(4, 64), (4, 64), (64, 64), (64, 64)]
    assert [place in record.in_place for place in sums] == [True, True, False, True]


def test_picking_goes_back_in_place_and_a_backward_of_the_users_own_does_not() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 2 + gradient * 3

    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = Twice.apply(self.layer(x))[torch.tensor([0, 2])]  # type: ignore[no-untyped-call]
            return y

    record = analyze(Picks(), (8,), batch=4, training=True, loss=lambda y: y.sum()).record
    assert [record.operations[record.entries[place].operation].name for place in record.in_place] == ["index_put"]


def test_an_older_ledger_of_a_step_is_refused() -> None:
    data: Any = analyze(two_layers(), (256,), training=True, optimizer="sgd").to_json()
    for key in ("loss_at", "one_by_one", "in_place"):
        del data[key]
    data["allocations"] = [a[:4] for a in data["allocations"] if a[3] not in ("kernel", "host")]
    from torchledger import Ledger

    with pytest.raises(UserError, match="saved by an older torchledger"):
        Ledger.from_json({**data, "schema": 2}).memory()


def test_before_the_first_step_there_are_no_gradients() -> None:
    assert "gradients" not in trained(first_step=True, set_to_none=False).moment(0).alive
    assert "gradients" in trained(first_step=True, accumulate=2).moment(0).alive


def test_counts_of_steps_stay_on_the_host() -> None:
    ledger = analyze(two_layers(), (256,), training=True, optimizer="adam")
    on_cuda, on_cpu = (ledger.memory(device, "exact").moment(0).alive["optimizer state"] for device in ("cuda", "cpu"))
    assert on_cpu - on_cuda == STEPS


def test_an_optimizer_without_gradients() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.used(x)
            return y

    net = Half()
    optimizer = torch.optim.SGD(net.unused.parameters())
    assert analyze(net, (4,), training=True, optimizer=optimizer).record.one_by_one == 0


def test_rounding_is_never_less_than_nothing() -> None:
    ledger = analyze(nn.LSTM(16, 32, 2, bidirectional=True), (12, 16), batch=4, training=True)
    for device, allocator in (("cpu", "cuda"), ("cuda", "cuda"), ("cpu", "exact")):
        report = ledger.memory(device, allocator)
        for index in range(report.moments):
            assert min(report.moment(index).alive.values()) > 0
        assert report.fits(report.least_bytes) and report.least_bytes >= report.peak_bytes


# The article's block adds in place to what its backward needs: it does not train, here as in torch.
NETWORKS = [(n, training) for n in sorted(registry.REGISTRY) for training in (False, True) if n != "article_basicblock"]


@pytest.mark.parametrize(("name", "training"), [*NETWORKS, ("article_basicblock", False)])
def test_every_network_adds_up_at_every_moment(name: str, training: bool) -> None:
    """The categories' bytes against the births and deaths that the record has, reckoned here once more."""
    entry = registry.REGISTRY[name]
    with torch.device("meta"):
        model = build(name)
    record = (ledger := analyze(model, entry.input_size, batch=2, training=training)).record
    report = ledger.memory("cpu")

    changes = [0] * (report.moments + 1)
    for a in record.allocations:
        size = a.bytes
        if a.kind == "kernel":  # dropout: noise in the dtype of its input
            x = record.operations[record.entries[a.born].operation].inputs[0]
            size = x.elements * x.item_size
        born = a.born + (a.born in record.in_place and a.kind in ("activation", "gradient"))
        changes[born] += size
        changes[report.moments if a.died is None else a.died] -= size
    expected = list(itertools.accumulate(changes[:-1]))
    scratch = report.timeline.get("kernel scratch", [0] * report.moments)
    parts = [sum(sizes) for sizes in zip(*report.timeline.values(), strict=True)]
    assert parts == report.live == [one + own for one, own in zip(expected, scratch, strict=True)]


def test_what_autograd_saves_in_mid_forward_is_let_go() -> None:
    """Each result is detached, so that two maps and the weights are alive at most, as in a real run."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                for _ in range(6):
                    x = torch.relu(self.conv(x)).detach()
            return x

    peaks = [
        analyze(Net(), (3, 64, 64), execute=execute).memory(device="cpu").peak_bytes for execute in (False, False, True)
    ]
    # Four maps of 3 x 64 x 64 (the input, that of the turn, and what the turn makes), 81 weights and 3 biases.
    assert peaks == [4 * (4 * 3 * 64 * 64 + 81 + 3)] * 3
