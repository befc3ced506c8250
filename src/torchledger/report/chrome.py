"""Live bytes over the operations -> the Trace Event Format that Perfetto and chrome://tracing read.

A run that computes nothing has no time: each operation takes one microsecond of the picture. Format: "Trace Event
Format", Google, counter ("C") and complete ("X") events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torchledger.record import Record

PROCESS, THREAD = 1, 1


def trace(record: Record, by_category: Mapping[str, Sequence[int]]) -> dict[str, object]:
    """Return counters by category at each moment, and a bar for every operation and every call of a module."""
    moments = len(record.entries) + 1
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": f"{record.model}, batch {record.batch}"}}
    ]
    before: dict[str, int] | None = None
    for moment in range(moments):
        now = {name: sizes[moment] for name, sizes in by_category.items()}
        if now != before:
            events.append({"ph": "C", "name": "bytes alive", "pid": PROCESS, "ts": moment, "args": now})
        before = now
    events += _bars(record)
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _bars(record: Record) -> Iterator[dict[str, object]]:
    """Yield a bar for each phase, for each stretch of operations of one module's call, and for each operation."""
    yield from _stretches([(entry.phase, entry.phase) for entry in record.entries], "phase")
    paths = [record.modules[call.module].path or "(root)" for call in record.calls]
    yield from _stretches([(entry.call, paths[entry.call]) for entry in record.entries], "module")
    for place, entry in enumerate(record.entries):
        yield _bar(record.operations[entry.operation].name, place, 1, "operation")


def _stretches(keys: Sequence[tuple[object, str]], kind: str) -> Iterator[dict[str, object]]:
    started = 0
    for place in range(1, len(keys) + 1):
        if place == len(keys) or keys[place] != keys[started]:
            yield _bar(keys[started][1], started, place - started, kind)
            started = place


def _bar(name: str, start: int, length: int, kind: str) -> dict[str, object]:
    event = {"ph": "X", "name": name, "cat": kind, "pid": PROCESS, "tid": THREAD, "ts": start, "dur": length}
    return event
