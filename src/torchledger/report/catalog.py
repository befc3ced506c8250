"""The list of networks -> text, CSV, JSON or markdown; the same rows in each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torchledger.report.csv import quoted

Row = Mapping[str, object]  # name, input, params, macs, top1, top1_source, authors, year, title, weights

HEADINGS = ("name", "paper", "input", "params", "GMACs", "top-1 %")


def written(rows: Sequence[Row], format: str) -> str:
    """Return the list in a format: text and markdown to read, csv and json with every column."""
    if format == "json":
        return json.dumps({"networks": list(rows)}, ensure_ascii=False, indent=1) + "\n"
    if format == "csv":
        lines = [list(rows[0]), *([_plain(value) for value in row.values()] for row in rows)]
        return "".join(",".join(map(quoted, line)) + "\n" for line in lines)
    return _markdown(rows) if format == "markdown" else _text(rows)


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _sources(rows: Sequence[Row]) -> list[str]:
    """Return who published the top-1 accuracies, each once."""
    return list(dict.fromkeys(str(row["top1_source"]) for row in rows if row["top1_source"]))


def _cells(row: Row, sources: Sequence[str]) -> list[str]:
    macs, top1 = row["macs"], row["top1"]
    mark = f" [{sources.index(str(row['top1_source'])) + 1}]" if row["top1_source"] else ""
    return [
        str(row["name"]),
        f"{str(row['authors']).split()[0].rstrip(',')} {row['year']}",
        str(row["input"]),
        f"{row['params']:,}",
        f"{macs / 1e9:.3f}" if isinstance(macs, int) else "",
        f"{top1:.2f}{mark}" if isinstance(top1, float) else "",
    ]


def _text(rows: Sequence[Row]) -> str:
    """Draw columns as wide as what is in them: 80 columns hold them."""
    sources = _sources(rows)
    lines = [list(HEADINGS), *(_cells(row, sources) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADINGS))]
    drawn = []
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
        drawn.append("  ".join(padded).rstrip())
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    notes = ["params and GMACs (multiply-accumulates of one sample, eval mode): the ledger's"]
    notes += ["top-1: as published by"] + [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    return "\n".join([drawn[0], rule, *drawn[1:], rule, *notes]) + "\n"


def _markdown(rows: Sequence[Row]) -> str:
    sources = _sources(rows)
    lines = [list(HEADINGS), [":---", ":---", ":---", "---:", "---:", "---:"]]
    for row in rows:
        name, *others = _cells(row, sources)
        lines.append([f"`{name}`", *others])
    table = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- [{number}] {source}" for number, source in enumerate(sources, 1)]
    return "\n".join([*table, "", *notes]) + "\n"
