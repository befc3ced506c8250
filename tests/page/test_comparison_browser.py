"""The page of a comparison in a browser: what the DOM shows is what the table and the difference say."""

from __future__ import annotations

import re
from typing import Any

import paging
import pytest
import torch
from browsing import Open, choose, column, names, until, value

from torchledger import Ledger, analyze, compare

pytestmark = paging.needs_libraries

QUANTITIES = {"params": "params", "macs": "macs", "bytes_read": "read", "peak": "peak"}  # and their titles
CHANGE, HIDDEN, TOTAL = "td:nth-child(2) data", "#difference-table tfoot tr.left", "#difference-table tfoot tr.total"


def column_of(quantity: str) -> str:
    return "peak_bytes" if quantity == "peak" else quantity


def test_models_stand_side_by_side(show: Open) -> None:
    small, large = paging.ledger(unknown=False), paging.ledger(unknown=False, training=True)
    three = compare(small, large, small, names=["a", "b", "c"], top1=[56.522, None, 70], by=["macs", "params"])
    shown = show(three)
    assert names(shown, "model") == ["b", "a", "c"], "heaviest first, equals in their order"
    whole = compare(small, large, small, by=list(QUANTITIES)).table.rows
    for quantity, title in QUANTITIES.items():
        expected = [str(whole[place][column_of(quantity)]) for place in (1, 0, 2)]
        assert column(shown, title, "model") == expected
    assert column(shown, "top-1 (%)", "model") == ["", "56.522", "70"]
    assert shown.locator("#difference").count() == 0 and shown.locator("tfoot").count() == 0
    heading = shown.locator("#model-table thead th").filter(has_text="top-1").locator("[role=button]")
    heading.click()
    shown.locator("#model-table th[aria-sort=descending]").filter(has_text="top-1").wait_for()
    assert names(shown, "model") == ["c", "a", "b"]
    choose(shown, "peak_bytes")
    assert shown.locator("#model-table thead th").nth(1).inner_text().startswith("peak, of the largest")


def test_totals_are_the_exact_difference(show: Open) -> None:
    both = paging.comparison()
    before, after = (model.cells for model in both.models)
    shown = show(both)
    for quantity in QUANTITIES:
        choose(shown, column_of(quantity))
        change = int(after[quantity] or 0) - int(before[quantity] or 0)  # type: ignore[call-overload]
        assert value(shown, f"label[for=by-{column_of(quantity)}] data") == str(change)
        cells = shown.locator(f"{TOTAL} data").evaluate_all("all => all.map((one) => one.value)")
        assert cells[:3] == [str(change), str(before[quantity]), str(after[quantity])]
        summary = shown.locator("#difference-summary data").evaluate_all("all => all.map((one) => one.value)")
        assert summary == [str(change), str(before[quantity]), str(after[quantity])]
        assert change != 0


@pytest.mark.parametrize("threshold", ["0%", "1%", "25%", "200"])
def test_what_is_shown_hidden_and_counted(show: Open, threshold: str) -> None:
    both = paging.comparison()
    shown = show(both, {"threshold": threshold})
    shown.locator("#difference .dt-length select").first.select_option("-1")
    for quantity in QUANTITIES:
        choose(shown, column_of(quantity))
        table = both.difference([quantity], threshold)
        other = [row for row in table.rows if row["change"] == "other"]
        expected = [row for row in table.rows if row["change"] != "other"]
        amounts = [int(row[f"{column_of(quantity)}_change"]) for row in expected]  # type: ignore[arg-type]
        found = [int(cell) for cell in column(shown, f"± {QUANTITIES[quantity]}", "difference")]
        assert sorted(found) == sorted(amounts) and [abs(one) for one in found] == sorted(map(abs, found), reverse=True)
        assert sorted(names(shown, "difference")) == sorted(str(row["module"] or "(root)") for row in expected)
        words = shown.locator("#difference-table tbody td.what").all_inner_texts()
        assert sorted(word.lstrip("▲▼ ") for word in words) == sorted(str(row["change"]) for row in expected)
        hidden = re.search(r"not shown: (.*)", "\n".join(table.notes))
        assert bool(other) == bool(hidden) == shown.locator(HIDDEN).is_visible()
        if hidden is not None:
            said = shown.locator(f"{HIDDEN} th").inner_text()
            of_peak = [int(count) for count in re.findall(r"(\d+) only of the peak", said)]
            assert len(of_peak) == (quantity != "peak")
            count = int(re.findall(r"\((\d+) rows? not shown\)", str(other[0]["module"]))[0]) + sum(of_peak)
            assert said.startswith(f"{count} rows hidden: ")
            assert re.findall(r"\d+ (?:unchanged|free)", said) == re.findall(r"\d+ (?:unchanged|free)", hidden[1])
            assert re.findall(r"\d+ below", said) == re.findall(r"\d+ below", hidden[1])
            assert said in shown.locator("#difference-matches").inner_text()
            assert value(shown, f"{HIDDEN} {CHANGE}") == str(other[0][f"{column_of(quantity)}_change"])


def test_the_threshold_is_chosen_and_every_row_is_shown_at_once(show: Open) -> None:
    both = paging.comparison()
    shown = show(both)
    shown.locator("#difference .dt-length select").first.select_option("-1")
    for share, text in (("0.25", "25%"), ("0", "0")):
        shown.get_by_label("Hide changes below").select_option(
            label="25 % of the largest change" if share == "0.25" else "no threshold"
        )
        expected = [row for row in both.difference(["macs"], text).rows if row["change"] != "other"]
        assert len(names(shown, "difference")) == len(expected)
    shown.get_by_role("button", name="Show every row").click()
    every = len(both._changes(("macs", "peak")))
    assert len(names(shown, "difference")) == every > len(expected)
    assert not shown.locator(HIDDEN).is_visible()
    assert value(shown, f"{TOTAL} {CHANGE}") == str(both.difference(["macs"]).total["macs_change"])
    shown.get_by_role("button", name="Hide rows again").click()
    assert len(names(shown, "difference")) == len(expected)


def test_signs_words_and_bars(show: Open) -> None:
    shown = show(paging.comparison())
    rows = {row.locator("td").first.inner_text(): row for row in shown.locator("#difference-table tbody tr").all()}
    removed, added = rows[f"named.{paging.HOSTILE[0]}"], rows["named.last"]
    # A Linear of 8 to 8 went, one of 8 to 2 came, batch 4; the largest change: blocks.1's width, 4 * 8 * (24 - 16)
    assert removed.locator(CHANGE).inner_text() == "-256" and added.locator(CHANGE).inner_text() == "+64"
    assert removed.locator("td.what").inner_text() == "▼ removed" and added.locator("td.what").inner_text() == "▲ added"
    bars = {
        way: row.locator(".track span").evaluate("bar => [bar.className, bar.style.width]")
        for way, row in (("less", removed), ("more", added))
    }
    assert bars == {"less": ["less", "50%"], "more": ["more", "12.5%"]}
    colours = {row.locator(CHANGE).evaluate("one => getComputedStyle(one).color") for row in (removed, added)}
    assert len(colours) == 2
    assert rows["blocks.1.wide"].locator("td.share").inner_text().split() == ["+256", "+50.0", "%"]


def test_a_search_shows_the_total_of_its_matches(show: Open) -> None:
    both = paging.comparison()
    shown = show(both, {"threshold": "25%"})
    shown.get_by_label("Search changes:").fill("blocks")
    until(shown, "document.querySelector('#difference-matches').textContent.includes('match')", True)
    found = [int(cell) for cell in column(shown, "± macs", "difference")]
    rows = [change for change in both._changes(("macs", "peak")) if "blocks" in change.module]
    assert len(found) == len(rows) >= 16 and sum(found) == 512, "hidden or not; 4 * 8 * 8 twice"
    assert value(shown, f"{TOTAL} {CHANGE}") == "512"
    assert shown.locator(f"{TOTAL} th").inner_text() == f"total of {len(rows)} matches"
    # before: 8 times 4 * 8 * 16
    assert shown.locator("#difference-matches").inner_text() == f"{len(rows)} rows match: +512 macs, 4.096 K → 4.608 K"
    assert not shown.locator(HIDDEN).is_visible()


def test_a_click_on_a_heading_sorts_by_sign(show: Open) -> None:
    shown = show(paging.comparison())
    heading = shown.locator("#difference-table thead th").filter(has_text="± params").first
    heading.locator("[role=button]").first.click()
    shown.locator("#difference-table th[aria-sort=descending]").filter(has_text="± params").wait_for()
    falling = [int(cell) for cell in column(shown, "± params", "difference")]
    assert falling == sorted(falling, reverse=True) and falling[0] > 0 > falling[-1]


def test_the_picture(show: Open) -> None:
    small, large = paging.ledger(unknown=False), paging.ledger(unknown=False, training=True)
    three = compare(small, large, small, names=["a", "b" + paging.IMAGE, "c"], top1=[56.522, None, 70])
    shown = show(three)
    drawn = shown.evaluate(
        "(() => { const t = document.getElementById('scatter').data[0]; "
        "return [t.x, t.y, t.marker.size, t.customdata, t.text]; })()"
    )
    order = [1, 0, 2]  # large dots below
    cells = [three.models[place].cells for place in order]
    assert drawn[0] == [cell["params"] for cell in cells] and drawn[1] == [cell["macs"] for cell in cells]
    areas = [width**2 for width in drawn[2]]
    assert areas[1] / areas[0] == pytest.approx(cells[1]["peak"] / cells[0]["peak"])  # type: ignore[operator]
    assert [said[3].replace(",", "") for said in drawn[3]] == [f"{cell['peak']} B" for cell in cells]
    assert [said[4] for said in drawn[3]] == ["", "<br>top-1 56.522 %", "<br>top-1 70 %"]
    assert drawn[4][1:] == ["a (56.5 %)", "c (70.0 %)"] and "<img" not in drawn[4][0]
    assert shown.locator("#scatter text").filter(has_text="a (56.5 %)").count() == 1
    assert "the table" in str(shown.locator("#scatter").get_attribute("aria-label"))


SIZES = "[...new Set(document.getElementById('scatter').data[0].marker.size)].length"


def test_without_allocations_there_is_no_peak(show: Open) -> None:
    small, large = paging.ledger(unknown=False), paging.ledger(unknown=False, training=True)
    bare = [Ledger.from_json({**ledger.to_json(), "allocations": []}) for ledger in (small, large)]
    shown = show(compare(*bare, by=["peak"]))
    assert shown.locator("#by-peak_bytes").count() == 0 and shown.locator("#by-macs").count() == 1
    assert "peak" not in shown.locator("body").inner_text()
    assert shown.locator("#scatter-hint").inner_text() == "The table above says the same."
    assert "as large as" not in str(shown.locator("#scatter").get_attribute("aria-label"))
    assert shown.evaluate(SIZES) == 1


def test_without_allocations_of_one_a_peak_has_no_difference(show: Open) -> None:
    small, large = paging.ledger(unknown=False), paging.ledger(unknown=False, training=True)
    bare = Ledger.from_json({**small.to_json(), "allocations": []})
    shown = show(compare(bare, large, by=["peak"]), {"threshold": "1%"})
    assert column(shown, "peak", "model") == [str(large.memory().peak_bytes), ""]
    assert value(shown, "label[for=by-peak_bytes] data") == "" and value(shown, f"{TOTAL} {CHANGE}") == ""
    assert shown.locator("#difference-table tbody").inner_text().strip() == "no change to show"
    shown.get_by_role("button", name="Show every row").click()
    assert set(column(shown, "± peak", "difference")) == {""}
    assert "peak of its memory" not in shown.locator("#scatter-hint").inner_text() and shown.evaluate(SIZES) == 1
    shown = show(compare(small, large))
    assert "peak of its memory" in shown.locator("#scatter-hint").inner_text() and shown.evaluate(SIZES) == 2


def test_what_is_not_known_is_always_shown(show: Open) -> None:
    both = paging.comparison(unknown=True)
    shown = show(compare(paging.ledger(unknown=False), both.models[1].ledger, names=["a", "b"]), {"threshold": "25%"})
    row = shown.locator("#difference-table tbody tr").filter(has_text="?").first
    assert row.locator(CHANGE).get_attribute("value") == "?" and row.locator("td.what").inner_text() == "added"
    assert value(shown, f"{TOTAL} {CHANGE}") == "?" and shown.locator(f"{TOTAL} {CHANGE}").inner_text() == "?"
    assert value(shown, "label[for=by-macs] data") == "?"
    assert value(shown, f"{TOTAL} td:nth-child(4) data").startswith(">=")
    assert "pagetest::_values (1) [b]" in shown.locator("#notices").inner_text()
    # what runs on other shapes may cost something else
    shown = show(both, {"threshold": "25%"})
    row = shown.locator("#difference-table tbody tr").filter(has_text="?").first
    assert row.locator(CHANGE).get_attribute("value") == "?" and row.locator("td.what").inner_text() == "changed"


def test_a_model_beside_itself(show: Open) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(compare(ledger, ledger))
    assert shown.locator("#difference-table tbody").inner_text().strip() == "no change to show"
    every = len(shown.evaluate("JSON.parse(document.getElementById('data').textContent).difference.rows"))
    assert shown.locator(f"{HIDDEN} th").inner_text().startswith(f"{every} rows hidden: ")
    assert [value(shown, f"{TOTAL} td:nth-child({place}) data") for place in (2, 3)] == [
        "0",
        str(ledger.totals()["macs"]),
    ]


def test_names_stay_text(show: Open) -> None:
    shown = show(paging.comparison())
    shown.get_by_role("button", name="Show every row").click()
    assert shown.locator("h1").inner_text() == f"before, after{paging.IMAGE}"
    assert f"after{paging.IMAGE}" in names(shown, "model")
    assert {f"named.{name}" for name in paging.HOSTILE} <= set(names(shown, "difference"))
    shown.get_by_label("Search changes:").fill(paging.HOSTILE[0])
    until(shown, "document.querySelectorAll('#difference-table tbody tr').length", 1)
    assert names(shown, "difference") == [f"named.{paging.HOSTILE[0]}"]
    assert shown.locator("img, #scatter a").count() == 0 and shown.evaluate("typeof broken") == "undefined"


def test_large_integers_are_exact(show: Open) -> None:
    sides = (2**18 + 1, 2**18 + 3)
    ledgers = [
        analyze(torch.nn.Linear(2**18 - 1, side, bias=False, device="meta"), (2**18 - 1,), batch=2**18 + 1)
        for side in sides
    ]
    before, after = ((2**18 - 1) * side * (2**18 + 1) for side in sides)
    assert before != int(float(before)), "no number of JavaScript's"
    shown = show(compare(*ledgers))
    cells = shown.locator(f"{TOTAL} data").evaluate_all("all => all.map((one) => one.value)")
    assert cells[:3] == [str(after - before), str(before), str(after)]
    assert sorted(column(shown, "macs", "model")) == sorted([str(before), str(after)])


# ---- how it looks


def test_dark_and_light(show: Open) -> None:
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    font = "document.getElementById('scatter').layout.font.color"
    shown = show(paging.comparison(), color_scheme="dark")
    assert shown.evaluate(brightness) < 60 and shown.evaluate(font) == "#e8ecf0"
    shown.emulate_media(color_scheme="light")
    until(shown, font, "#1b1f24")
    assert shown.evaluate(brightness) == 255


@pytest.mark.parametrize("width", [390, 800])  # a phone, a tablet
def test_narrow_screens_scroll_down_alone(show: Open, width: int) -> None:
    shown = show(paging.comparison(), viewport={"width": width, "height": 844})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper(show: Open) -> None:
    # At the right of its dot, a name of 22 letters fits on a screen and not on a sheet.
    both = compare(*(model.ledger for model in paging.comparison().models), names=["before", "after some improvement"])
    shown = show(both, color_scheme="dark")
    shown.locator("#difference .dt-length select").first.select_option("25")
    shown.get_by_role("button", name="Show every row").click()
    shown.locator("#difference .dt-paging-button").filter(has_text="2").click()
    second = names(shown, "difference")
    assert len(second) == len(both._changes(("macs", "peak"))) - 25
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")  # some browsers say it twice
    shown.emulate_media(media="print", color_scheme="dark")
    assert not shown.locator("#threshold").is_visible() and not shown.locator("#expand").is_visible()
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(names(shown, "difference")) == len(both._changes(("macs", "peak"))) > 25
    assert shown.evaluate("document.getElementById('scatter')._fullLayout.width") == 700
    edge = shown.evaluate("document.getElementById('scatter').getBoundingClientRect().left") + 700
    boxes = [text.bounding_box() for text in shown.locator("#scatter .textpoint text").all()]
    assert len(boxes) == 2 and all(box["x"] + box["width"] <= edge for box in boxes), "the names fit on the sheet"
    shown.emulate_media(media="screen", color_scheme="dark")
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.locator("#threshold").is_visible()
    assert shown.locator("#difference .dt-length select").first.input_value() == "25"
    assert names(shown, "difference") == second
    assert shown.evaluate("document.getElementById('scatter')._fullLayout.width") > 700


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(show: Open, scheme: str) -> None:
    axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    shown = show(paging.comparison(unknown=True), color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(shown).response
    assert found["passes"]
    worst = [
        (v["id"], [node["html"] for node in v["nodes"]])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert worst == []
