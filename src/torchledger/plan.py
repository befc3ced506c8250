"""Answers that take several captures: the largest batch that fits, and what would make more fit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchledger.amounts import parse_bytes
from torchledger.api import analyze, floating_dtype
from torchledger.errors import UserError
from torchledger.inputs import as_dtype, check_batch, example_inputs, mapped, tensors_in
from torchledger.ledger import ForwardError, Ledger
from torchledger.memory_report import MemoryReport, size_text
from torchledger.record import ITEM_SIZES, Record
from torchledger.report.text import short_size
from torchledger.rows import Rows
from torchledger.tables import Table
from torchledger.views import Cell, Column

LARGEST_BATCH = 1 << 20
SMALLEST_QUANTISED = 4096  # elements of a parameter whose moments are kept in 8 bits
STRAIGHT = 8  # guesses by a straight line; then by halves
Told = Callable[[str], None]  # is told what is being captured


@dataclass(frozen=True)
class Subject:
    """A model, what makes its inputs for a batch, and how it is analysed: the arguments of `analyze` by name.

    `device` and `memory` are those of `Ledger.memory`.
    """

    model: nn.Module
    inputs: Callable[[int], tuple[Sequence[Any], Mapping[str, Any]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)

    def ledger(self, batch: int, **changes: Any) -> Ledger:
        """Return the ledger at a batch, with other options than the subject's own."""
        args, kwargs = self.inputs(batch)
        return analyze(self.model, *args, kwargs=kwargs, batch=batch, **{**self.options, **changes})

    def report(self, batch: int) -> MemoryReport:
        """Return the memory at a batch."""
        return self.ledger(batch).memory(**self.memory)


# --- the batch that fits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits into `memory` bytes, 0 where none does; `reports` of all batches captured."""

    memory: int
    batch: int
    reports: dict[int, MemoryReport]

    @property
    def peak_bytes(self) -> int | None:
        """The peak at the batch that fits."""
        return self.reports[self.batch].peak_bytes if self.batch else None

    @property
    def peak_bytes_above(self) -> int | None:
        """The peak at one sample more, which does not fit; None where no batch was found that does not."""
        above = self.reports.get(self.batch + 1)
        return None if above is None else above.peak_bytes

    @property
    def table(self) -> Table:
        """One row for each batch that was captured."""
        any_report = next(iter(self.reports.values()))
        columns = (
            Column("batch", "batch", weight=100),
            Column("peak_bytes", "peak", "B", weight=90),
            Column("fits", "fits", text=True, weight=95),
        )
        rows: list[dict[str, Cell]] = [
            {"batch": batch, "peak_bytes": report.peak_bytes, "fits": "yes" if batch <= self.batch else "no"}
            for batch, report in sorted(self.reports.items())
        ]
        record = any_report.record
        run = record.step or f"{record.mode} mode"
        title = f"{record.model}, batches in {size_text(self.memory)}, {run}, {any_report.device}"
        total: dict[str, Cell] = {"batch": self.batch, "peak_bytes": self.peak_bytes or 0, "fits": "largest that fits"}
        at = self.reports[self.batch or min(self.reports)].at
        parts = ", ".join(f"{name} {short_size(size)}" for name, size in at.alive.items())
        notes = [str(self), f"alive at the peak of batch {self.batch or min(self.reports)}, {at}: {parts}"]
        notes += [f"not in it: {name}, {size}" for name, size in any_report.workspaces.items()]
        notes += [f"assumed: {assumption}" for assumption in record.assumptions]
        return Table(title, "memory", columns, rows, total, notes)

    def to_json(self) -> dict[str, object]:
        """Return the batch, its peak and the one above it, for `json.dumps`."""
        return {
            "memory": self.memory,
            "batch": self.batch,
            "peak_bytes": self.peak_bytes,
            "peak_bytes_above": self.peak_bytes_above,
        }

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    def __str__(self) -> str:
        if not self.batch:
            return f"no batch fits into {size_text(self.memory)}"
        above = self.peak_bytes_above
        more = f"; {self.batch + 1} would take {size_text(above)}" if above is not None else ""
        if self.batch == LARGEST_BATCH:
            more = "; no larger batch was tried"
        return f"batch {self.batch} fits: {size_text(self.peak_bytes or 0)} of {size_text(self.memory)}{more}"


def fit(
    model: nn.Module,
    *inputs: Any,
    memory: int | str,
    kwargs: Mapping[str, Any] | None = None,
    device: str = "cuda",
    allocator: str | None = None,
    accumulate: int = 1,
    **options: Any,
) -> Fit:
    """Return the largest batch whose peak fits into `memory`, from a few captures; nothing is computed or allocated.

    Args:
        model, inputs, kwargs, options: as for `analyze`; inputs are sizes of one sample.
        memory: bytes, or a text such as "24GB" (10^9) or "24GiB" (2^30): what torch may take. A GPU's driver, CUDA's
            context and other processes have theirs besides.
        device, allocator, accumulate: as for `Ledger.memory`.

    Raises:
        UserError: for an argument that is wrong, or where memory does not grow with the batch.

    Examples:
        >>> from torch import nn
        >>> fit(nn.Linear(250, 250), (250,), memory="1MB", device="cpu").batch  # 251,000 + 2,000 a sample
        374
    """
    if "batch" in options:
        raise UserError("batch is what fit looks for: leave it out")
    chosen = {"device": device, "allocator": allocator, "accumulate": accumulate}
    subject = Subject(model, lambda _: (inputs, kwargs or {}), options, chosen)
    return largest_batch(subject, parse_bytes(memory))


def largest_batch(subject: Subject, memory: int, told: Told = lambda _: None) -> Fit:
    """Return the largest batch whose peak fits into `memory` bytes.

    Memory is nearly a straight line over the batch: two captures tell where it meets the limit, and those on either
    side of it are captured to be sure.
    """
    reports: dict[int, MemoryReport] = {}

    def fits(batch: int) -> bool:
        told(f"batch {batch}")
        reports[batch] = subject.report(batch)
        return reports[batch].fits(memory)

    low, high = 0, LARGEST_BATCH + 1  # fits; does not

    for batch in (2, 3):  # some networks take no batch of one while they train
        if fits(batch):
            low = batch
        else:
            high = batch
            break
    if high == 2:
        try:
            low, high = (1, 2) if fits(1) else (0, 1)
        except ForwardError:
            high = 2
        return Fit(memory, low, reports)
    if low == 3 and reports[3].record.inputs == reports[2].record.inputs:
        raise UserError(
            "memory does not grow with the batch; give inputs as sizes of one sample, such as (3, 224, 224)"
        )
    guesses = 0
    while high - low > 1:
        guesses += 1
        halve = high in reports and guesses > STRAIGHT
        guess = (low + high) // 2 if halve else _crossing(reports, low, high, memory)
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
    return Fit(memory, low, reports)


def _crossing(reports: Mapping[int, MemoryReport], low: int, high: int, memory: int) -> int:
    """Return the last batch below the limit on a line: through what fits and what does not, or the two largest.

    A peak that hangs on the optimizer, or is rounded, may not grow at first: then the batch is doubled.
    """
    a, b = (low, high) if high in reports else sorted(reports)[-2:]
    first, second = (reports[batch].least_bytes for batch in (a, b))
    slope = (second - first) / (b - a)
    if slope <= 0:
        return 2 * b
    return int(a + (memory - first) / slope)


# --- what would help -------------------------------------------------------------------------------------------------


def savings(
    model: nn.Module,
    *inputs: Any,
    batch: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    device: str = "cuda",
    allocator: str | None = None,
    **options: Any,
) -> Table:
    """Return one row for each change that may lower the peak of a training step: its peak, and what it costs.

    Each is a capture of the changed step: half the batch, gradients added up over two halves, blocks checkpointed
    (with the macs that are computed again), an optimizer without state or with one of 8 bits, bfloat16, channels last,
    and all but the last layer frozen. Arguments are those of `analyze` and `Ledger.memory`.
    """
    check_batch(batch)
    if not options.get("training"):
        raise UserError("savings are those of a training step: ask for training=True")
    subject = Subject(model, lambda _: (inputs, kwargs or {}), options, {"device": device, "allocator": allocator})
    return what_would_help(subject, batch)


def what_would_help(subject: Subject, batch: int, told: Told = lambda _: None) -> Table:
    """Capture a training step as it is and with each change that applies to it."""
    told("as it is")
    ledger = subject.ledger(batch)
    base = ledger.memory(**subject.memory)
    macs = _macs(ledger)
    rows = [_row("as it is", base.peak_bytes, base.peak_bytes, 0)]
    for name, change in _changes(subject, batch, ledger):
        told(name)
        try:
            peak, now = change()
        except (ForwardError, UserError) as error:
            rows.append(_row(name, None, base.peak_bytes, None, str(error)))
            continue
        rows.append(_row(name, peak, base.peak_bytes, None if now is None else now - macs))
    columns = (
        Column("change", "change", text=True, weight=100),
        Column("peak_bytes", "peak", "B", weight=95),
        Column("saved_bytes", "saved", "B", weight=80),
        Column("saved", "saved (%)", "%", weight=90),
        Column("more_macs", "more macs", weight=85),
        Column("note", "note", text=True, weight=40),
    )
    record = base.record
    title = f"{record.model}, what would lower the peak, {record.step}, batch {batch}, {base.device}"
    remarks = ["more macs: those of a step over the same samples, beyond what it takes as it is", *base.notes()]
    total: dict[str, Cell] = {"change": "peak as it is", "peak_bytes": base.peak_bytes}
    return Table(title, "memory", columns, rows, total, remarks)


def _follows(subject: Subject, batch: int, ledger: Ledger) -> bool:
    """Whether the inputs are other ones at another batch: tensors that were given are not."""
    args, kwargs = _made(subject, batch)
    sizes = [tensor.shape for tensor in tensors_in((args, kwargs))]
    args, kwargs = _made(subject, ledger.record.batch)
    return sizes != [tensor.shape for tensor in tensors_in((args, kwargs))]


Change = Callable[[], tuple[int, int | None]]  # returns the peak, and macs over the same samples where that is asked


def _changes(subject: Subject, batch: int, ledger: Ledger) -> Iterator[tuple[str, Change]]:
    """Yield each change by name."""

    def captured(with_batch: int = batch, memory: Mapping[str, Any] | None = None, **changes: Any) -> tuple[int, int]:
        made = subject.ledger(with_batch, **changes)
        return made.memory(**{**subject.memory, **(memory or {})}).peak_bytes, _macs(made)

    half = batch // 2
    if half and _follows(subject, half, ledger):
        yield f"batch {half}", lambda: (captured(half)[0], None)
        if batch % 2 == 0:
            yield f"gradients added up over {half}-sample halves", lambda: _halves(captured, half, batch)
    stacks = _stacks(subject.model)
    for name, blocks in stacks:
        yield f"checkpoint each of {name}", lambda blocks=blocks: _with(checkpointed(blocks), captured)  # type: ignore[misc]
    if len(stacks) > 1:
        every = [block for _, blocks in stacks for block in blocks]
        yield "checkpoint each of all these", lambda: _with(checkpointed(every), captured)
    if any(allocation.kind == "optimizer" for allocation in ledger.record.allocations):
        yield "SGD, which keeps no state", lambda: captured(optimizer="sgd")
        yield "optimizer state in 8 bits", lambda: (_in_8_bits(ledger, subject), _macs(ledger))
    if subject.options.get("model_dtype") is None and any(
        parameter.dtype == torch.float32 for parameter in subject.model.parameters()
    ):
        yield "all in bfloat16", lambda: captured(model_dtype="bfloat16")
    if any(isinstance(module, nn.Conv2d) for module in subject.model.modules()):
        last = dataclasses.replace(subject, inputs=lambda size: _channels_last(subject, size))
        yield "channels last", lambda: (last.report(batch).peak_bytes, _macs(ledger))
    head = _head(ledger.record)
    if head is not None:
        yield f"train {head} alone", lambda: _with(frozen_but(subject.model, head), captured)


def _row(name: str, peak: int | None, before: int, more: int | None, note: str = "") -> dict[str, Cell]:
    saved = None if peak is None else before - peak
    share = None if saved is None else 100 * saved / (before or 1)
    return {"change": name, "peak_bytes": peak, "saved_bytes": saved, "saved": share, "more_macs": more, "note": note}


def _macs(ledger: Ledger) -> int:
    macs = ledger.totals()["macs"]
    return int(macs) if isinstance(macs, int) else 0


def _halves(captured: Callable[..., tuple[int, int]], half: int, batch: int) -> tuple[int, int]:
    peak, macs = captured(half, memory={"accumulate": 2})
    return peak, macs * batch // half


def _with(changed: contextlib.AbstractContextManager[None], captured: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    with changed:
        return captured()


def _in_8_bits(ledger: Ledger, subject: Subject) -> int:
    """Return the peak with moments of one byte a number, and a float32 scale for each block of 256 of them.

    Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, with the block and the smallest tensor that
    bitsandbytes takes now.
    """
    record = ledger.record
    smaller = dataclasses.replace(record)
    smaller.allocations = Rows(
        dataclasses.replace(a, bytes=_quantised(a.bytes // ITEM_SIZES[record.parameters[a.owner].dtype]))
        if a.kind == "optimizer" and a.owner is not None and record.parameters[a.owner].elements >= SMALLEST_QUANTISED
        else a
        for a in record.allocations
    )
    return MemoryReport(smaller, **subject.memory).peak_bytes


def _quantised(numbers: int) -> int:
    return numbers + 4 * -(-numbers // 256)


def _channels_last(subject: Subject, batch: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return inputs of which images lie with their channels innermost; convolutions hand that on."""
    positional, keywords = _made(subject, batch)

    def laid(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    found: tuple[Sequence[Any], Mapping[str, Any]] = mapped((tuple(positional), dict(keywords)), laid)
    return found


def _made(subject: Subject, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a batch, with sizes as tensors on meta."""
    args, kwargs = subject.inputs(batch)
    cast = subject.options.get("model_dtype")
    default = floating_dtype(subject.model) if cast is None else as_dtype(cast, "model_dtype")
    return example_inputs(args, kwargs, batch, subject.options.get("input_dtype"), default)


def _stacks(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Return the stacks of equal blocks of a model, by path: what checkpoints are set around.

    A stack is a list or a sequence with two or more children of one class that have parts of their own; of stacks
    within stacks the outermost. Without any, the model's own children that have parts.
    """
    found: list[tuple[str, list[nn.Module]]] = []
    inside: set[int] = set()
    for path, module in model.named_modules():
        if id(module) in inside or isinstance(module, torch.jit.ScriptModule):
            continue
        blocks = [child for child in module._modules.values() if child is not None and any(child.children())]
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(blocks) > 1 and len({*map(type, blocks)}) == 1:
            found.append((path or "the blocks", blocks))
            inside.update(id(inner) for inner in module.modules())
    if not found:
        blocks = [child for child in model.children() if any(True for _ in child.children())]
        found = [("the model's blocks", blocks)] if blocks and not isinstance(model, torch.jit.ScriptModule) else []
    return found


@contextlib.contextmanager
def checkpointed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have modules computed again in the backward (torch.utils.checkpoint, without reentry) while the block lasts."""
    before = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module in modules:
            module.__dict__["forward"] = _again(module.forward)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _head(record: Record) -> str | None:
    """Return the path of the module with parameters of its own that ran last, where others have some too."""
    owners = {p.module for p in record.parameters if p.shared_with is None}
    ran = [record.modules.paths[module] for module in record.calls.modules]
    return next((path for path in reversed(ran) if path in owners), None) if len(owners) > 1 else None


@contextlib.contextmanager
def frozen_but(model: nn.Module, path: str) -> Iterator[None]:
    """Let the parameters of one module train, and no others, while the block lasts."""
    kept = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    changed = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
