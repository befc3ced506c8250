"""What a notebook shows, and data frames: the numbers of the text format, escaped names, rows that add up."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import paging
import pytest
from torch import nn

from torchledger import AtLeast, Table, UserError, analyze, compare, fit
from torchledger.report import to_html, to_text
from torchledger.views import Cell, Column
from torchledger.views import Table as Rows

HOSTILE = ("</td><script>alert(1)</script>", "=HYPERLINK(1)", '"><img src=x onerror="f()">', "$x$", "a&lt;b", "\x1b[2J")
TAGS = {"div", "style", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "ul", "li"}


class Page(HTMLParser):
    """The cells of a table by row, and all tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self.items: list[str] = []
        self.feed(text)
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open[-1] == "li":
            self.items[-1] += data


def table(count: int = 3, **changes: Any) -> Rows:
    """Return `count` layers with 1, 2, ... kilomacs, and as many parameters in all but one."""
    columns = (Column("module", "module", text=True, weight=100), Column("params", "params"), Column("macs", "macs"))
    rows: list[dict[str, Cell]] = [{"module": f"layer{n}", "params": 4, "macs": 1000 * n} for n in range(1, count + 1)]
    total: dict[str, Cell] = {"module": "total", "params": 4 * count, "macs": 500 * count * (count + 1)}
    fields: dict[str, Any] = {"title": "Net", "convention": "full", "columns": columns, "rows": rows, "total": total}
    return Rows(**(fields | {"notes": ["a note"]} | changes))


def test_numbers_are_those_of_the_text(golden: Callable[[str, str], None]) -> None:
    drawn = analyze(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10)), (3, 32, 32))
    page = Page(drawn.by_layer()._repr_html_())
    lines = drawn.by_layer().to_text().splitlines()
    text = [re.split(r"\s{2,}", line.strip()) for line in lines if line and not set(line) <= {"─"}]
    assert page.rows[:-1] == text[1 : len(page.rows)]
    assert [cell for cell in page.rows[-1] if cell] == text[len(page.rows)]
    assert page.items == lines[-len(page.items) :]
    golden("notebook.html", drawn._repr_html_())


def test_a_bar_is_a_share_of_the_total() -> None:
    """1000, 2000 and 3000 of 6000; four parameters of twelve."""
    sizes = re.findall(r"background-size:([\d.]+)%", to_html(table()))
    assert sizes == ["33.3", "16.7", "33.3", "33.3", "33.3", "50.0"]


@pytest.mark.parametrize("changed", [{"macs": 6001}, {"macs": 0}, {"macs": ""}, {"macs": None}])
def test_no_bar_where_rows_do_not_add_up(changed: dict[str, Cell]) -> None:
    drawn = to_html(table(total=table().total | changed))
    assert re.findall(r"background-size:([\d.]+)%", drawn) == ["33.3"] * 3
    below = table()
    below.rows[0]["macs"], below.rows[1]["macs"] = -1000, 4000  # a difference has no shares
    assert re.findall(r"background-size:([\d.]+)%", to_html(below)) == ["33.3"] * 3


def test_names_are_text() -> None:
    rows: list[dict[str, Cell]] = [{"module": name, "params": 4, "macs": 2000} for name in HOSTILE]
    total: dict[str, Cell] = {"module": "total", "params": 24, "macs": 12000}
    drawn = to_html(table(rows=rows, total=total, title=HOSTILE[0], notes=[f"assumed: {HOSTILE[2]}"]))
    page = Page(drawn)
    assert [row[0] for row in page.rows[1:-1]] == [*HOSTILE[:-1], r"\x1b[2J"]
    assert page.items == [f"assumed: {HOSTILE[2]}"]
    assert page.tags == TAGS and page.attributes == {"class", "scope", "style"}
    assert html.escape(HOSTILE[0]) in drawn and "<script" not in drawn and "<img" not in drawn
    assert "mathjax_ignore" in drawn, "a name between dollars is no formula"


def test_hostile_model_in_every_view() -> None:
    model = nn.Sequential()
    model.add_module(HOSTILE[0], nn.Linear(4, 4))
    ledger = analyze(model, (4,))
    views = (ledger, ledger.memory(), fit(model, (4,), memory="1MB", device="cpu"), ledger.memory().by_module())
    for view in views:
        assert Page(view._repr_html_()).tags <= TAGS  # type: ignore[attr-defined]
    assert HOSTILE[0] in {row[0] for row in Page(views[0]._repr_html_()).rows}  # type: ignore[attr-defined]


def test_reports_show_their_tables() -> None:
    model = nn.Linear(250, 250)
    ledger = analyze(model, (250,))
    assert ledger._repr_html_() == ledger.by_layer()._repr_html_()
    assert ledger.memory()._repr_html_() == ledger.memory().by_category()._repr_html_()
    found = fit(model, (250,), memory="1MB", device="cpu")
    assert found._repr_html_() == found.table._repr_html_()
    assert "374" in {row[0] for row in Page(found._repr_html_()).rows}
    assert "background-size:1" not in found._repr_html_().split("</style>")[1], "batches do not add up"


def test_rows_of_a_long_table_add_up() -> None:
    """Of 1, 2, ..., 250 kilomacs the last fifty are one row: 201 + ... + 250 = 50 x 225.5."""
    long = table(250)
    long.rows[240]["macs"] = AtLeast(241_000)
    page = Page(to_html(long))
    assert len(page.rows) == 1 + 200 + 1 + 1
    assert page.rows[-2] == ["50 more rows", "200", ">=11.28 M"]
    assert page.items[0] == "the first 200 of 250 rows; .rows, .to_csv() and .to_pandas() have all"
    assert Page(to_html(table(200))).rows[-2][0] == "layer200"
    assert Page(to_html(table(201))).rows[-2] == ["1 more row", "4", "201 K"]
    assert "more row" not in to_text(long, None)


def test_uncounted_and_unknown_cells() -> None:
    some = table()
    some.rows[0]["macs"], some.rows[1]["macs"], some.rows[2]["macs"] = None, AtLeast(0), AtLeast(3000)
    assert [row[2] for row in Page(to_html(some)).rows[1:4]] == ["-", "?", ">=3 K"]


# --- data frames -----------------------------------------------------------------------------------------------------


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"to_pandas needs pandas: pip install pandas; \.rows is a list of dicts"):
        Table.of(table()).to_pandas()


def test_to_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    some = table(4)
    some.rows[0]["macs"], some.rows[1]["macs"], some.rows[1]["module"] = None, AtLeast(7), "=HYPERLINK(1)"
    frame = Table.of(some).to_pandas()
    assert list(frame.columns) == ["module", "params", "macs"] and len(frame) == 4
    assert list(frame["module"]) == ["layer1", "=HYPERLINK(1)", "layer3", "layer4"]
    assert str(frame["macs"].dtype) == "Int64" and list(frame["macs"].isna()) == [True, True, False, False]
    assert frame["macs"].sum() == 3000 + 4000  # what is not known is missing, not zero
    assert frame.attrs == {"title": "Net", "notes": ["a note"]}
    assert frame["params"].sum() == some.total["params"]
    some.rows[2]["macs"], some.rows[3]["params"] = 2**70, 0.5
    frame = Table.of(some).to_pandas()
    assert frame["macs"][2] == 2**70 and str(frame["params"].dtype) == "Float64"
    assert Table.of(table(0)).to_pandas().empty
    ledger = analyze(nn.Linear(4, 3), (4,))
    assert ledger.by_layer().to_pandas()["macs"].sum() == 12 == pandas.DataFrame(ledger.by_layer().rows)["macs"].sum()


def test_rows_are_plain_dicts() -> None:
    rows = analyze(nn.Linear(4, 3), (4,)).by_layer().rows
    assert all(type(row) is dict and all(type(name) is str for name in row) for row in rows)
    assert all(type(cell) in (int, float, str, type(None)) for row in rows for cell in row.values())


def test_a_change_that_is_not_known_is_missing_in_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = compare(paging.ledger(), paging.ledger(unknown=False), device="cpu").difference().to_pandas()
    assert pandas.isna(frame["macs_change"]).any() and frame["params_change"].notna().all()
