"""Networks whose calls nest in every way, their traces, and the bars in them, with what the tables add up."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import paging
from torch import Tensor, nn

from torchledger import Ledger, analyze
from torchledger.errors import printable
from torchledger.models import build
from torchledger.pricing import convention
from torchledger.report import axis, chrome


class Shared(nn.Module):
    """A module that two parents share, one that runs twice on end, one that is called past its parent, recursion."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.left = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.right = nn.Sequential(self.left[0], nn.Dropout())
        self.listed = nn.ModuleList([nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x = self.left(x) + self.right(x) @ self.right(x).t()[:, :1]
        for layer in self.listed:
            x = layer(x).relu()
        return self.left[0](x)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a trace: names from the outermost bar to it, where it begins in microseconds, what it takes."""

    names: tuple[str, ...]
    kind: str
    start: float
    length: float
    amount: int
    unknown: int = 0


def ledger(name: str) -> Ledger:
    step: dict[str, Any] = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}
    if name == "resnet18":
        return analyze(build("resnet18"), (3, 64, 64), batch=2, **step)
    if name == "googlenet":
        return analyze(build("googlenet"), (3, 224, 224))
    if name == "shared":
        return analyze(Shared(), (8,), batch=8, training=True, optimizer="sgd")
    return paging.ledger(training=name == "hostile step")


def traced(found: Ledger, by: str, name: str = "full") -> dict[str, Any]:
    chosen = convention(name)
    drawn = chrome.trace(found.record, axis.priced(found.record, chosen, by), found.memory().timeline, name)
    return json.loads(json.dumps(drawn))  # type: ignore[no-any-return]


def bars(trace: dict[str, Any]) -> list[Bar]:
    """Return the bars in the order of their beginnings; the last that began must end first."""
    by = trace["otherData"]["by"]
    opened: list[tuple[int, dict[str, Any]]] = []
    found: list[Bar | None] = []
    now = 0.0
    for event in trace["traceEvents"]:
        if event["ph"] not in "BE":
            continue
        assert event["ts"] >= now, "in order: viewers keep the order of what begins or ends at one place"
        now = event["ts"]
        if event["ph"] == "B":
            assert "args" not in event
            opened.append((len(found), event))
            found.append(None)
            continue
        names = tuple(begun["name"] for _, begun in opened)
        place, begun = opened.pop()
        assert begun["name"] == event["name"]
        assert event["ts"] > begun["ts"], "no bar is empty"
        args = event["args"]
        amount = round(args[by] * 10**9) if by == "seconds_measured" else int(args[by])
        length = event["ts"] - begun["ts"]
        found[place] = Bar(names, begun["cat"], begun["ts"], length, amount, args.get("unknown", 0))
    assert not opened
    return [bar for bar in found if bar is not None]


def expected(found: Ledger, by: str, name: str = "full") -> tuple[int, Counter[str], Counter[str], Counter[str]]:
    """Return what the tables add up: all, by phase, by module with what is below it, by kind of operation."""
    parts = {"bytes": ("bytes_read", "bytes_written")}.get(by, (by,))

    def amount(row: Any) -> int:
        return sum(int(row[part] or 0) for part in parts)

    phases: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for phase in ("forward", "backward", "optimizer"):
        phases[phase] += amount(found.totals(name, phase))
    for row in found.by_layer(name).rows:
        path = str(row["module"])
        steps = path.split(".") if path else []
        for depth in range(len(steps) + 1):
            modules[printable(".".join(steps[:depth])) or printable(found.record.model)] += amount(row)
    operations = Counter({str(row["operation"]): amount(row) for row in found.by_operation(name).rows})
    return amount(found.totals(name)), phases, modules, operations


def sums(found: list[Bar], kind: str) -> Counter[str]:
    added: Counter[str] = Counter()
    for bar in found:
        if bar.kind == kind:
            added[bar.names[-1]] += bar.amount
    return added


def check_sums(trace: dict[str, Any], ledger: Ledger, by: str, name: str = "full") -> None:
    """Check what the bars take, and what has no bar because a rounded axis cuts it to nothing."""
    total, phases, modules, operations = expected(ledger, by, name)
    found = {kind: sums(bars(trace), kind) for kind in ("phase", "module", "operation")}
    for kind, cut in trace["otherData"]["cut"].items():
        found[kind].update({name: int(amount) for name, amount in cut.items()})
    assert total
    assert found["operation"].total() == found["phase"].total() == total
    assert found == {"phase": +phases, "module": +modules, "operation": +operations}
