"""The Ledger: a record with the methods that people call. Reads, prices and draws without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, get_args

from torchledger import page, pricing, views
from torchledger.errors import UserError
from torchledger.memory_report import MemoryReport
from torchledger.record import Phase, Record, read_record
from torchledger.report import axis, chrome
from torchledger.tables import Table
from torchledger.views import Cell
from torchledger.writing import check_writable, read_whole, write_whole

PHASES = get_args(Phase)


class Ledger:
    """What one run of a model did, entry by entry; every number is computed from it when it is asked for."""

    def __init__(self, record: Record, rules: Mapping[str, pricing.Rule | Callable[..., Any]] | None = None) -> None:
        """Keep a record, and rules of custom operations for this ledger alone, which are not saved with it."""
        self.record = record
        self._rules = pricing.checked_rules(rules)
        self._priced: pricing.Priced = {}
        self._is_captured = True  # here, so that others may have its operations too

    def __reduce__(self) -> tuple[Callable[..., Ledger], tuple[Record, dict[str, Any]]]:
        """Return what pickle needs: a worker process may hand the ledger on."""
        return self._from_elsewhere, (self.record, dict(self._rules))

    @classmethod
    def _from_elsewhere(cls, record: Record, rules: Mapping[str, Any] | None = None) -> Ledger:
        """Make a ledger of operations that no other one has: of a file, or of another process."""
        ledger = cls(record, rules)
        ledger._is_captured = False
        return ledger

    def __repr__(self) -> str:
        record = self.record
        return f"<Ledger of {record.model}: {len(record.entries)} operations, {record.mode} mode, batch {record.batch}>"

    def _repr_html_(self) -> str:
        return self.by_layer()._repr_html_()

    @property
    def unknown(self) -> dict[str, int]:
        """Return {operation: calls} for the operations that have no rule, most frequent first."""
        return views.unknown(self.record, self._convention("full"))

    @property
    def assumptions(self) -> list[str]:
        """Return what the capture took for granted."""
        return list(self.record.assumptions)

    def totals(self, convention: str = "full", phase: str | None = None) -> dict[str, Cell]:
        """Return the sums of the whole ledger, by name: parameters, the convention's quantities, operations by state.

        `phase`: only the operations of "forward", "backward" or "optimizer". A sum that unknown operations are missing
        from is an `AtLeast`, an int that prints as `>=n`.
        """
        return views.totals(self.record, self._convention(convention), _checked(phase))

    def by_layer(self, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a leaf module, and one for each operation that ran outside of one; `phase` as in `totals`."""
        return Table.of(views.by_layer(self.record, self._convention(convention), _checked(phase)))

    def by_operation(self, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a kind of operation, heaviest first."""
        return Table.of(views.by_operation(self.record, self._convention(convention), _checked(phase)))

    def by_module(self, depth: int = 1, convention: str = "full", phase: str | None = None) -> Table:
        """Return one row a module of the tree down to `depth` (0: the whole model), with all that ran below it."""
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise UserError(f"depth is {depth!r}, expected a whole number from 0")
        return Table.of(views.by_module(self.record, self._convention(convention), depth, _checked(phase)))

    def memory(
        self,
        device: str = "cuda",
        allocator: str | None = None,
        first_step: bool = False,
        accumulate: int = 1,
        set_to_none: bool = True,
    ) -> MemoryReport:
        """Return the bytes alive over the run's operations: the peak, and what is alive there.

        Args:
            device: "cuda" or "cpu": whose kernels run. They differ in what they keep for the backward.
            allocator: "exact" for the bytes that are asked for; "cuda" for torch's caching allocator, which rounds, and
                reserves more than it hands out. Default: the device's own.
            first_step: the first step of a training, in which the optimizer makes its state and finds none.
            accumulate: micro-batches whose gradients are added up before the optimizer's step; this run is one of them.
            set_to_none: as in `optimizer.zero_grad`; without it gradients stay, as zeros.
        """
        return MemoryReport(self.record, device, allocator, first_step, accumulate, set_to_none)

    def _convention(self, name: str) -> pricing.Convention:
        return pricing.convention(name, self._rules, self._priced, self._is_captured)

    def to_json(self) -> dict[str, object]:
        """Return the whole ledger as values for `json.dumps`; `Ledger.from_json` is its inverse."""
        return self.record.to_json()

    @classmethod
    def from_json(cls, data: object, source: str = "the data") -> Ledger:
        """Build a ledger from what `to_json` gave. Raise UserError for anything else, or for a newer schema."""
        return cls._from_elsewhere(Record.from_json(data, source))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger as JSON, packed by gzip where `path` ends in .gz, such as net.json.gz.

        An existing file is replaced whole or not at all.
        """
        write_whole(path, json.dumps(self.to_json(), separators=(",", ":")) + "\n")

    def save_html(self, path: str | os.PathLike[str], convention: str = "full", device: str = "cuda") -> None:
        """Write a page to look at: one HTML file that works offline. Needs plotly and itables (`torchledger[report]`).

        Args:
            path: an existing file is replaced whole or not at all.
            convention: under which its tables are priced.
            device: whose memory it shows, "cuda" or "cpu".
        """
        chosen = self._convention(convention)
        page.check_libraries()
        check_writable(path)
        memory = self.memory(device)  # also without allocations: an unknown device is said
        shown = memory if self.record.allocations else None
        layers, operations = self.by_layer(convention), self.by_operation(convention)
        data = page.ledger_contents(self.record, chosen, layers, operations, shown)
        write_whole(path, page.document(page.LEDGER, f"{data['model']}", data))

    def save_trace(
        self, path: str | os.PathLike[str], by: str = "macs", convention: str = "full", device: str = "cuda"
    ) -> None:
        """Write a flame graph that Perfetto and speedscope open: phases, calls of modules, operations, live bytes.

        A bar is as wide as what it takes of one quantity; a second of the viewer is 10^9 of it, where that stays exact.
        Raise UserError where operations have no such quantity, or where all of them together have none of it.

        Args:
            path: an existing file is replaced whole or not at all.
            by: a quantity of the convention, such as "macs", "flops", "bytes_read", "activation_bytes"; "bytes" for
                read and written; "seconds_measured" where they were; "operations" for one microsecond each.
            convention: under which operations are priced.
            device: whose memory the counters show, "cuda" or "cpu".
        """
        check_writable(path)
        _, drawn = traced(self, by, convention, device)
        chrome.save(path, drawn)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a saved ledger, also one that gzip packed, whatever its name.

        Raise UserError where the file is missing, is no ledger, is damaged or cut off, or is newer.
        """
        content = read_whole(path)
        try:
            text = content.decode("utf-8-sig")  # some editors begin a file with a mark
        except UnicodeDecodeError as error:
            raise UserError(f"{os.fspath(path)!r} is no ledger: it is not text ({error.reason})") from error
        return cls._from_elsewhere(read_record(text, repr(os.fspath(path))))


def traced(ledger: Ledger, by: str, convention: str, device: str) -> tuple[axis.Axis, dict[str, object]]:
    """Return what `Ledger.save_trace` writes, and the axis that it is drawn along. Raise UserError as it does."""
    record, chosen = ledger.record, ledger._convention(convention)
    along = axis.priced(record, chosen, by)
    memory = ledger.memory(device)  # also without allocations: an unknown device is said
    alive = memory.timeline if record.allocations else {}
    if not along.total:
        unknown = ", ".join(f"{name} ({calls})" for name, calls in ledger.unknown.items())
        rules = f"; without a rule: {unknown}" if unknown else ""
        others = (name for name in axis.choices(chosen, record.measurement is not None) if name != along.by)
        if not record.entries:
            raise UserError("nothing to draw: the run has no operations")
        raise UserError(f"nothing to draw: no operation has {along.by}{rules}. Other quantities: {', '.join(others)}")
    return along, chrome.trace(record, along, alive, convention)


class ForwardError(Exception):
    """The model's own forward failed: says where and what would fit. `ledger` holds what ran before."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger

    def __reduce__(self) -> tuple[type[ForwardError], tuple[str, Ledger]]:
        """Return what pickle needs: a worker process may hand the error on."""
        return type(self), (str(self), self.ledger)


def _checked(phase: str | None) -> str | None:
    if phase is not None and phase not in PHASES:
        raise UserError(f"phase is {phase!r}; the phases are {', '.join(PHASES)}")
    return phase
