"""Each format of one small network, as files to look at: blocks that repeat, hostile names, an unknown operation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paging
import pytest
from paging import Elements, needs_libraries

from torchledger import Comparison, Table

Golden = Callable[[str, str], None]


def compared() -> Comparison:
    """A net before and after: layers added, removed, changed and of another kind, and what a threshold hides."""
    return paging.comparison(unknown=True, device="cpu", top1=(56.5, None))


def in_lines(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "80.txt": lambda table: table.to_text(80),
    "md": lambda table: table.to_markdown(),
    "csv": lambda table: table.to_csv(),
    "json": lambda table: in_lines(table.to_json()),
    "html": lambda table: table._repr_html_() + "\n",
}
TABLES: dict[str, Callable[[], Table]] = {
    "layers": lambda: paging.ledger().by_layer(),
    "operations": lambda: paging.ledger().by_operation(),
    "modules": lambda: paging.ledger().by_module(2, "torchstat"),
    "memory": lambda: paging.ledger(training=True).memory("cpu").by_module(),
    "comparison": lambda: compared().table,
    "difference": lambda: compared().difference(["params", "macs", "peak"], "30%"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", TABLES)
def test_a_table(name: str, form: str, golden: Golden) -> None:
    golden(f"formats/{name}.{form}", FORMATS[form](TABLES[name]()))


def test_the_ledger_as_json(golden: Golden) -> None:
    saved: Any = paging.ledger().to_json()
    golden("formats/ledger.json", in_lines(saved | {"torch_version": "(any)"}))


def test_a_trace(golden: Golden, tmp_path: Path) -> None:
    paging.ledger().save_trace(tmp_path / "trace.json", device="cpu")
    golden("formats/trace.json", in_lines(json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))))


@needs_libraries
def test_what_a_page_has_in_it(golden: Golden, tmp_path: Path) -> None:
    paging.ledger(training=True).save_html(tmp_path / "report.html", device="cpu")
    data = Elements((tmp_path / "report.html").read_text(encoding="utf-8")).data
    data |= {"run": data["run"].rsplit(", torch ", 1)[0], "version": "(any)"}
    golden("formats/page.json", in_lines(data))


@needs_libraries
def test_what_the_page_of_a_comparison_has_in_it(golden: Golden, tmp_path: Path) -> None:
    compared().save_html(tmp_path / "compared.html", threshold="30%")
    data = Elements((tmp_path / "compared.html").read_text(encoding="utf-8")).data
    golden("formats/comparison_page.json", in_lines(data | {"version": "(any)"}))


def test_the_difference_has_rows_of_every_sort() -> None:
    rows = compared().difference(["params", "macs", "peak"], "30%").rows
    assert {row["change"] for row in rows} == {"added", "removed", "changed", "other"}
    assert "Linear -> LayerNorm" in [row["kind"] for row in rows]
