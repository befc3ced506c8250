"""Every format of every test network: what is printed in a column adds up to the total that is printed below it.

A printed number stands for an interval: half a unit of its last place to each side. A column agrees with its total
where the sum of the rows' intervals meets that of the total; exact formats have intervals of no width.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import paging
import pytest
import torch
from catalog.modules import CASES
from report.test_notebook import Page

from torchledger import Comparison, Ledger, analyze, compare, page
from torchledger.models import build, registry
from torchledger.pricing import CONVENTIONS
from torchledger.report import table_to_json, to_csv, to_html, to_markdown, to_text
from torchledger.report.text import heading
from torchledger.views import Table

POWERS = {letter: 3 * power for power, letter in enumerate(("", "K", "M", "G", "T", "P", "E"))}
NUMBER = re.compile(r"(>=)?([+-]?[\d,]+(?:\.\d+)?)(?: ?([KMGTPE]?)B?)?")
SIGNIFICANT = 4  # digits of a scaled number

Cells = dict[str, list[str]]  # numbers of a column as printed, from above


@dataclass
class Amount:
    """What a printed number may stand for."""

    low: Decimal
    high: Decimal
    at_least: bool


def amount(text: str, exact: bool) -> Amount:
    """Read a number as people read it; `?` and `-` are nothing that is known to be more, and nothing."""
    text = text.strip().strip("*")
    if text in ("?", "-", ""):
        return Amount(Decimal(0), Decimal(0), text == "?")
    found = NUMBER.fullmatch(text)
    assert found is not None, f"no number: {text!r}"
    prefix, digits, letter = found.groups()
    number = Decimal(digits.replace(",", ""))
    half = Decimal(0)
    if letter or (not exact and "." in digits):  # below 1,000 without a letter it is whole, and in full
        half = Decimal(5).scaleb(number.adjusted() - SIGNIFICANT)
    elif "." in digits:  # memory(MB), two places
        half = Decimal("0.005")
    scale = Decimal(10) ** POWERS[letter or ""]
    return Amount((number - half) * scale, (number + half) * scale, prefix is not None)


def agrees(rows: list[str], total: str, exact: bool = False) -> None:
    """Assert that rows add up to the total, and that one of both is open above exactly where the other is."""
    parts, whole = [amount(text, exact) for text in rows], amount(total, exact)
    low, high = sum(part.low for part in parts), sum(part.high for part in parts)
    assert low <= whole.high and whole.low <= high, f"{rows} add up to {low} to {high}, and the total is {total}"
    assert any(part.at_least for part in parts) == whole.at_least, f"{rows}, total {total}"


# ---- what a format prints, read back: columns of numbers, and their totals


def from_text(table: Table) -> tuple[Cells, dict[str, str]]:
    lines = to_text(table, None).splitlines()
    first, last = [number for number, line in enumerate(lines) if line and set(line) == {"─"}][:2]
    found: Cells = {}
    end = 0
    for column in table.columns:  # numbers end where their heading ends
        at = lines[first - 1].find(heading(column), end)
        if at < 0:
            continue
        start, end = end, at + len(heading(column))
        if not column.text:
            drawn = [*lines[first + 1 : last], lines[last + 1]]
            found[column.name] = [line[start:end].rsplit("  ", 1)[-1].strip() for line in drawn]
    return split(found)


def from_markdown(table: Table) -> tuple[Cells, dict[str, str]]:
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    cells = [[html.unescape(cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return split(by_heading(table, [cells[0], *cells[2:]]))


def from_notebook(table: Table) -> tuple[Cells, dict[str, str]]:
    return split(by_heading(table, Page(to_html(table)).rows))


def from_csv(table: Table) -> tuple[Cells, dict[str, str]]:
    """A CSV has no total: its columns are held against the JSON's."""
    rows = list(csv.DictReader(io.StringIO(to_csv(table), newline="")))
    found = {column.name: [row[column.name] for row in rows] for column in table.columns if not column.text}
    return found, from_json(table)[1]


def from_json(table: Table) -> tuple[Cells, dict[str, str]]:
    saved: Any = json.loads(json.dumps(table_to_json(table)))
    return exact_cells(table, saved["rows"], saved["total"])


def from_page(table: Table, ledger: Ledger, convention: str) -> tuple[Cells, dict[str, str]]:
    """The script of the page draws these cells (test_browser.py reads them from the page)."""
    operations = ledger.by_operation(convention)
    data: Any = page.ledger_contents(ledger.record, CONVENTIONS[convention], table, operations, None)
    saved = json.loads(json.dumps(data))["layers"]
    return exact_cells(table, [dict(zip(saved["columns"], row, strict=True)) for row in saved["rows"]], saved["total"])


def exact_cells(table: Table, rows: list[dict[str, Any]], total: dict[str, Any]) -> tuple[Cells, dict[str, str]]:
    names = [column.name for column in table.columns if not column.text]
    return {n: [exactly(row[n]) for row in rows] for n in names}, {n: exactly(total[n]) for n in names}


def exactly(cell: Any) -> str:
    if isinstance(cell, dict):
        return f">={cell['at_least']}" if cell["at_least"] else "?"
    return "-" if cell is None else str(cell)


def by_heading(table: Table, lines: list[list[str]]) -> Cells:
    numbers = {heading(column): column.name for column in table.columns if not column.text}
    names = [numbers.get(re.sub(r"\\(.)", r"\1", title)) for title in lines[0]]
    return {name: [line[place] for line in lines[1:]] for place, name in enumerate(names) if name is not None}


def split(columns: Cells) -> tuple[Cells, dict[str, str]]:
    return {name: cells[:-1] for name, cells in columns.items()}, {name: cells[-1] for name, cells in columns.items()}


READERS = (from_text, from_markdown, from_notebook, from_csv, from_json)

# ---- every network


def of_case(name: str) -> Ledger:
    (case,) = (case for case in CASES if case.name == name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return analyze(case.build(), *case.inputs(), kwargs=case.keywords(), execute=False)


def of_network(name: str) -> Ledger:
    return analyze(build(name), registry.entry(name).input_size, batch=3)


def of_step(name: str) -> Ledger:
    step = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}
    return analyze(build(name), registry.entry(name).input_size, batch=3, **step)  # type: ignore[arg-type]


def with_unknown(name: str) -> Ledger:
    return paging.ledger(unknown=True, training=name == "step")


NETS = [
    *(pytest.param(with_unknown, name, id=f"unknown, {name}") for name in ("forward", "step")),
    *(pytest.param(of_network, name, id=name) for name in registry.names()),
    *(pytest.param(of_step, name, id=f"step of {name}") for name in ("alexnet", "resnet18", "googlenet")),
    *(pytest.param(of_case, case.name, id=case.name) for case in CASES),
]


def views(ledger: Ledger) -> Iterator[tuple[str, str, Table]]:
    for convention in CONVENTIONS:
        yield "layer", convention, ledger.by_layer(convention)
        yield "operation", convention, ledger.by_operation(convention)
        yield "module", convention, ledger.by_module(1, convention)


@pytest.mark.parametrize(("made", "name"), NETS)
def test_printed_columns_add_up_to_printed_totals(made: Callable[[str], Ledger], name: str) -> None:
    ledger = made(name)
    for view, convention, table in views(ledger):
        quantities = [quantity.name for quantity in CONVENTIONS[convention].quantities]
        expected = set(quantities) | {column.name for column in table.columns if column.name == "params"}
        for reader in READERS:
            columns, totals = reader(table)
            assert expected <= set(columns), (view, convention, reader.__name__)
            for column in expected:
                agrees(columns[column], totals[column], table.exact or reader in (from_csv, from_json))
        if view == "layer":
            columns, totals = from_page(table, ledger, convention)
            for column in expected:
                agrees(columns[column], totals[column], exact=True)


def all_agree(table: Table, expected: set[str]) -> None:
    for reader in READERS:
        columns, totals = reader(table)
        assert expected <= set(columns), reader.__name__
        for column in expected:
            if totals[column].strip("*") == "?" and column.endswith("_change"):  # nothing is known of the sum
                assert "?" in columns[column]
            else:
                agrees(columns[column], totals[column], reader in (from_csv, from_json))


MEMORIES = [
    *(pytest.param(with_unknown, name, id=f"unknown, {name}") for name in ("forward", "step")),
    *(pytest.param(of_network, name, id=name) for name in ("alexnet", "resnet18", "googlenet")),
    *(pytest.param(of_step, name, id=f"step of {name}") for name in ("alexnet", "resnet18", "googlenet")),
]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(("made", "name"), MEMORIES)
def test_printed_bytes_add_up_to_the_printed_peak(made: Callable[[str], Ledger], name: str, device: str) -> None:
    memory = made(name).memory(device)
    for moment in (None, 0, memory.moments // 2):
        for table in (
            memory.by_category(moment),
            *(memory.by_module(depth, moment) for depth in (0, 1, 9)),
            memory.by_operation(moment),
        ):
            assert table.rows and table.total["bytes"] == memory.live[memory.peak if moment is None else moment]
            all_agree(table, {"bytes"})


def of_networks(before: str, after: str) -> Comparison:
    return compare(of_network(before), of_network(after))


def of_run_and_step(name: str, _: str) -> Comparison:
    return compare(of_network(name), of_step(name), device="cpu")


def of_the_page(before: str, after: str) -> Comparison:
    """Layers added, removed, changed and of another kind; an "unknown" side has an operation without a rule."""
    old, new = (model.ledger for model in paging.comparison(unknown=after == "unknown").models)
    return compare(paging.ledger(unknown=before == "unknown"), new) if before != after else compare(old, new)


PAIRS = [
    *(
        pytest.param(of_networks, *names, id=" -> ".join(names))
        for names in (
            ("alexnet", "vgg11"),
            ("resnet20", "plain20"),
            ("resnet18", "resnet34"),
            ("googlenet", "resnet18"),
        )
    ),
    *(pytest.param(of_run_and_step, name, name, id=f"step of {name}") for name in ("alexnet", "resnet20")),
    *(
        pytest.param(of_the_page, *names, id=" -> ".join(names))
        for names in (("known", "known"), ("unknown", "unknown"), ("known", "unknown"), ("unknown", "known"))
    ),
]


@pytest.mark.parametrize(("made", "before", "after"), PAIRS)
def test_printed_changes_add_up_to_the_printed_difference(
    made: Callable[[str, str], Comparison], before: str, after: str
) -> None:
    by = ["params", "macs", "flops", "bytes_read", "bytes_written", "activation_bytes", "peak"]
    expected = {
        column.replace("peak", "peak_bytes") + f"_{part}" for column in by for part in ("before", "after", "change")
    }
    both = made(before, after)
    for threshold in (0, "1%", "30%", "10K"):
        table = both.difference(by, threshold)
        assert table.rows[-1]["change"] == "other", "what is not shown is in the sum"
        assert {column.name for column in table.columns if column.signed} == {
            c for c in expected if c.endswith("_change")
        }
        all_agree(table, expected)
