"""The page in a browser: Chromium, driven by playwright. What the DOM shows is what the tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paging
import pytest
import torch
from browsing import Open, choose, column, names, until, value
from torch import nn

from torchledger import Ledger, analyze
from torchledger.page.folds import folds
from torchledger.record import Measured, Measurement

pytestmark = paging.needs_libraries
FOOT = "#layer-table tfoot data"


def test_totals_are_those_of_the_ledger(show: Open) -> None:
    ledger = paging.ledger(unknown=False)
    totals = ledger.totals()
    shown = show(ledger)
    for name in ("params", "macs", "flops", "activation_bytes"):
        choose(shown, name)
        assert value(shown, f"label[for=by-{name}] data") == str(totals[name])
        assert value(shown, "#outline summary data") == str(totals[name])
        assert value(shown, "#layer-table tfoot td.share data") == str(totals[name])
        drawn = shown.evaluate(
            "(() => { const t = document.getElementById('icicle').data[0]; return [t.ids[0], t.values[0]]; })()"
        )
        assert drawn == ["/", totals[name]]
    choose(shown, "bytes")
    assert value(shown, "#outline summary data") == str(totals["bytes_read"] + totals["bytes_written"])  # type: ignore[operator]
    sums = [cell.get_attribute("value") for cell in shown.locator(FOOT).all()]
    expected = [totals[name] for name in ("params", "macs", "flops", "bytes_read", "bytes_written")]
    assert sums[1:6] == [str(total) for total in expected]


@pytest.mark.parametrize("quantity", ["params", "macs", "bytes"])
def test_heaviest_first_and_the_rows_add_up(show: Open, quantity: str) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(ledger)
    choose(shown, quantity)
    found = [int(text) for text in column(shown, f"{quantity}, share")]
    assert found == sorted(found, reverse=True) and len(set(found)) > 2
    assert sum(found) == int(value(shown, f"label[for=by-{quantity}] data"))
    table = ledger.by_layer()
    folded = {index for fold in folds(table, {})[0] for index in fold.rows[1:]}
    assert len(found) == len(table.rows) - len(folded) - len(table.free_rows - folded)


def test_a_click_on_a_heading_sorts(show: Open) -> None:
    shown = show(paging.ledger(unknown=False))
    for name in ("params", "read"):
        heading = shown.locator("#layer-table thead th").filter(has_text=name).first
        heading.locator("[role=button]").first.click()
        shown.locator("th[aria-sort=descending]").filter(has_text=name).wait_for()  # DataTables sorts after the event
        falling = [int(text) for text in column(shown, name)]
        assert falling == sorted(falling, reverse=True)
        heading.locator("[role=button]").first.press("Enter")
        shown.locator("th[aria-sort=ascending]").filter(has_text=name).wait_for()
        rising = [int(text) for text in column(shown, name)]
        assert rising == sorted(falling) and rising != falling


def test_a_search_shows_the_total_of_its_matches(show: Open) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(ledger)
    shown.get_by_label("Search layers:").fill("narrow")
    rows = [row for row in ledger.by_layer().rows if "narrow" in str(row["module"])]
    assert sorted(names(shown)) == sorted(str(row["module"]) for row in rows)  # not folded
    # 4 blocks, 4 * 16 * 8 macs each; params 16 * 8 weights and 8 biases, but for the last block's biases
    assert [value(shown, f"#layer-table tfoot td:nth-child({place}) data") for place in (2, 5, 4)] == [
        "2048",
        "2048",
        "536",
    ]
    assert shown.locator("#layer-matches").inner_text().startswith("4 layers match: 2.048 K macs, ")
    choose(shown, "params")
    assert shown.locator("#layer-matches").inner_text().startswith("4 layers match: 536 params, ")
    assert "total of 4 matches" in shown.locator("#layer-table tfoot").inner_text()
    shown.get_by_label("Search layers:").fill("no such layer")
    assert value(shown, FOOT) == "0" and "nothing matches" in shown.locator("#layer-table").inner_text()


def test_one_button_expands_all(show: Open) -> None:
    ledger = paging.ledger(unknown=False, training=True)
    shown = show(ledger)
    shown.locator(".dt-length select").first.select_option("-1")
    # Nobody asks for the input's gradient: the backward of block 0 is another than that of 1 and 2.
    assert "blocks.1–2.wide" in names(shown) and "blocks.1.wide" not in names(shown)
    before = shown.locator("#outline details[open]").count()
    assert before == 1
    shown.get_by_role("button", name="Expand all").click()
    assert sorted(names(shown)) == sorted(str(row["module"] or "(root)") for row in ledger.by_layer().rows)
    assert shown.locator("#outline details:not([open])").count() == 0 and shown.locator("#outline details").count() > 5
    assert value(shown, "#outline summary data") == str(ledger.totals()["macs"])
    shown.get_by_role("button", name="Collapse all").click()
    assert "blocks.1–2.wide" in names(shown) and shown.locator("#outline details[open]").count() == before


def test_the_tree_opens_with_the_keyboard_and_the_icicle_with_a_click(show: Open) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(ledger)
    blocks = shown.locator("#outline summary").filter(has_text="blocks").first
    blocks.focus()
    blocks.press("Enter")
    inner = shown.locator("#outline summary").filter(has_text="0–2×3").first
    inner.wait_for()
    assert "Block" in inner.inner_text()
    per_block = 4 * 2 * 8 * 16  # a sample: 8 to 16 and back, batch 4
    assert inner.locator("data").get_attribute("value") == str(3 * per_block)
    level = "document.getElementById('icicle')._fullData[0].level"
    shown.locator("#icicle g.slice").filter(has_text="blocks").first.click()
    until(shown, level, "/blocks")
    choose(shown, "params")
    assert shown.evaluate(level) == "/blocks"  # it stays there while the quantity changes


def test_what_is_too_small_to_see_shows_when_one_goes_in(show: Open) -> None:
    side = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(200)))
    shown = show(analyze(torch.nn.Sequential(side, torch.nn.Sequential(*side, torch.nn.ReLU())), (4,)))
    drawn = "document.getElementById('icicle').data[0].ids"
    hint = shown.locator("#tree-hint")
    assert shown.evaluate(drawn) == ["/", "/0", "/1"]  # an area is 1/400 of the width
    assert "400 modules and operations are too small to see from here" in hint.inner_text()
    shown.locator("#icicle g.slice").nth(2).click()
    until(shown, f"{drawn}.length", 202)
    assert shown.evaluate(f"{drawn}.slice(0, 3)") == ["/", "/1", "/1.0"]
    assert "too small" not in hint.inner_text()
    choose(shown, "flops")  # also the ReLU's 4, beside 200 times 36
    assert shown.evaluate(f"{drawn}.slice(0, 2)") == ["/", "/1"] and "1 module or operation is" in hint.inner_text()
    shown.locator("#icicle g.slice").first.click()  # what fills the width leads back out
    until(shown, f"{drawn}.length", 3)


def test_tabs(show: Open) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(ledger)
    assert shown.locator("#panel-layers").is_visible() and not shown.locator("#panel-operations").is_visible()
    shown.get_by_role("tab", name="Operations").click()
    assert shown.locator("#panel-operations").is_visible() and not shown.locator("#panel-layers").is_visible()
    expected = {str(row["operation"]): row["macs"] for row in ledger.by_operation().rows if row["priced"]}
    assert dict(zip(names(shown, "operation"), column(shown, "macs", "operation"), strict=True)) == {
        name: str(macs) for name, macs in expected.items()
    }
    choose(shown, "params")
    assert "This table has no params" in shown.locator("#operation-matches").inner_text()
    shown.get_by_role("tab", name="Operations").focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#panel-memory").is_visible() and shown.evaluate("document.activeElement.id") == "tab-memory"
    shown.keyboard.press("End")
    counting = shown.locator("#panel-counting")
    assert counting.is_visible() and "multiply-accumulates of contractions" in counting.inner_text()
    assert "1 GB is 10^9 bytes" in counting.inner_text() and "Convention full" in counting.inner_text()


def test_a_click_on_a_moment_lists_what_is_alive(show: Open) -> None:
    ledger = paging.ledger(unknown=False, training=True)
    report = ledger.memory()
    shown = show(ledger)
    shown.get_by_role("tab", name="Memory").click()
    assert value(shown, "#moment-said data") == str(report.peak_bytes)
    box = shown.locator("#timeline .nsewdrag").bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    shown.wait_for_selector("#timeline .hoverlayer .legend, #timeline .hoverlayer .hovertext")
    shown.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    moment = report.moment(int(shown.locator("#moment").input_value()) - 1)
    assert 0 < moment.index < report.moments / 2
    for _ in range(2):  # clicked, and one on with the keyboard
        assert value(shown, "#moment-said data") == str(moment.bytes)
        assert str(moment) in shown.locator("#moment-said").inner_text()
        kinds = shown.locator("#alive table").first.locator("tbody tr")
        found = {
            row.locator("td").first.inner_text(): int(row.locator("data").get_attribute("value")) for row in kinds.all()
        }
        assert found == moment.alive
        shown.locator("#moment").press("ArrowRight")
        moment = report.moment(moment.index + 1)
    shown.get_by_role("button", name="Peak").click()
    assert value(shown, "#moment-said data") == str(report.peak_bytes)


def test_without_allocations_there_is_no_memory_tab(show: Open) -> None:
    ledger = Ledger.from_json({**paging.ledger(unknown=False).to_json(), "allocations": []})
    shown = show(ledger)
    assert shown.get_by_role("tab").all_inner_texts() == ["Layers", "Operations", "How it is counted"]


def test_unknown_operations_stand_in_plain_sight(show: Open) -> None:
    shown = show(paging.ledger())
    notices = shown.locator("#notices")
    assert "pagetest::_values, 1 call" in notices.inner_text() and "no rule" in notices.inner_text()
    assert shown.locator("label[for=by-macs] strong").inner_text().startswith("≥")
    assert value(shown, "label[for=by-macs] data").startswith(">=")
    shown = show(paging.ledger(unknown=False))
    assert "Every operation has a rule" in shown.locator("#notices").inner_text()


def test_names_stay_text(show: Open) -> None:
    shown = show(paging.ledger(training=True))
    shown.get_by_role("button", name="Expand all").click()
    shown.locator(".dt-length select").first.select_option("-1")
    assert set(names(shown)) >= {f"named.{name}" for name in paging.HOSTILE}
    for name in paging.HOSTILE:
        shown.get_by_label("Search layers:").fill(name)
        assert set(names(shown)) == {f"named.{name}"}
        assert name in shown.locator("#outline").inner_text()
        slices = shown.locator("#icicle g.slice text").evaluate_all(
            "texts => texts.map((text) => text.getAttribute('data-unformatted'))"
        )
        assert not any("<img" in text for text in slices)
    shown.get_by_role("tab", name="Memory").click()
    assert "</script>" in shown.locator("#alive").inner_text()
    assert shown.locator("img, #icicle a, #icicle tspan[style*=bold]").count() == 0
    assert shown.evaluate("typeof broken") == "undefined"


def test_dark_and_light(show: Open) -> None:
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    font = "document.getElementById('icicle').layout.font.color"
    shown = show(paging.ledger(unknown=False), color_scheme="dark")
    assert shown.evaluate(brightness) < 60 and shown.evaluate(font) == "#e8ecf0"
    shown.emulate_media(color_scheme="light")
    until(shown, font, "#1b1f24")
    assert shown.evaluate(brightness) == 255


@pytest.mark.parametrize("width", [390, 800])  # a phone, a tablet
def test_narrow_screens_scroll_down_alone(show: Open, width: int) -> None:
    shown = show(paging.ledger(training=True), viewport={"width": width, "height": 844})
    for tab in ("Layers", "Operations", "Memory", "How it is counted"):
        shown.get_by_role("tab", name=tab).click()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_on_paper(show: Open) -> None:
    shown = show(paging.ledger(unknown=False, training=True), color_scheme="dark")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.emulate_media(media="print", color_scheme="dark")
    for panel in ("layers", "operations", "memory", "counting"):
        assert shown.locator(f"#panel-{panel}").is_visible(), panel
    assert not shown.locator("#expand").is_visible()
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    widths = "['icicle', 'timeline'].map((id) => document.getElementById(id)._fullLayout.width)"
    assert shown.evaluate(widths) == [700, 700]
    shown.emulate_media(media="screen", color_scheme="dark")
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not shown.locator("#panel-operations").is_visible()
    assert shown.evaluate(widths)[0] > 700


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(show: Open, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    shown = show(paging.ledger(training=True), color_scheme=scheme, bypass_csp=True)
    for tab in ("Layers", "Operations", "Memory", "How it is counted"):
        shown.get_by_role("tab", name=tab).click()
        found = axe.Axe().run(shown).response
        assert found["passes"]
        worst = [
            (v["id"], [node["html"] for node in v["nodes"]])
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert worst == [], tab


@pytest.mark.parametrize("convention", ["torchstat", "fvcore"])
def test_other_conventions(show: Open, convention: str) -> None:
    ledger = paging.ledger(unknown=False)
    shown = show(ledger, {"convention": convention})
    name = {"torchstat": "madd", "fvcore": "macs"}[convention]
    choose(shown, name)
    assert value(shown, "#outline summary data") == str(ledger.totals(convention)[name])


def test_large_integers_are_exact(show: Open) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2**18 - 1, 2**18 + 1, bias=False, device="meta"))
    ledger = analyze(net, (2**18 - 1,), batch=2**18 + 1)
    exact = (2**18 - 1) * (2**18 + 1) ** 2
    assert exact != int(float(exact)), "no number of JavaScript's"
    shown = show(ledger)
    assert value(shown, "#layer-table tfoot td.share data") == str(exact) == str(ledger.totals()["macs"])


MEMBERS = ("constructor", "toString", "valueOf", "hasOwnProperty", "__proto__", "(root)", "#1", "1,2", "0–9")


class Named(nn.Module):
    """Children with the names of members of every object, and of what the page itself writes."""

    def __init__(self) -> None:
        super().__init__()
        for name in MEMBERS:
            self._modules[name] = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x + 1).relu()
        for layer in self._modules.values():
            x = layer(x)  # type: ignore[misc]
        return x.relu()


def test_names_that_mean_something_to_the_page(show: Open) -> None:
    ledger = analyze(Named(), (4,))
    shown = show(ledger)
    for quantity in ("macs", "flops", "params"):
        choose(shown, quantity)
        assert value(shown, "#layer-table tfoot td.share data") == str(ledger.totals()[quantity])
        drawn = shown.evaluate("document.getElementById('icicle').data[0].ids")
        assert set(drawn) >= {"/", *(f"/{name}" for name in MEMBERS)}
    kinds = shown.locator("#outline summary .kind").all_inner_texts()
    assert kinds.count("Sequential") == len(MEMBERS)
    assert not shown.locator("#outline .times").count() and shown.locator("#failed").is_hidden()


def test_a_failed_draw_leaves_no_numbers_standing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    paging.ledger().save_html(path)
    shown = browser.new_page()
    shown.goto(path.as_uri())
    shown.wait_for_selector("html[data-ready=all]")
    shown.evaluate("Plotly.react = () => { throw new Error('no'); }; void 0")
    choose(shown, "flops")
    until(shown, "document.getElementById('failed').hidden", False)
    assert "could not be drawn: no" in shown.locator("#failed").inner_text()
    assert not shown.locator("main section:visible").count() and not shown.locator("#switch").is_visible()
    shown.close()


def test_seconds_of_rows_that_are_free_are_shown(show: Open) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential())
    model.forward = lambda x: torch.flatten(model[0](x), 1)  # type: ignore[method-assign]
    ledger = analyze(model, (3, 8, 8))
    rows = [Measured("0", "", 0, 0.003), Measured("", "view", 0, 0.001)]
    ledger.record.measurement = Measurement(rows, 0.01, 3, "CPU")
    shown = show(ledger)
    choose(shown, "seconds_measured")
    assert float(value(shown, "#layer-table tfoot td.share data")) == pytest.approx(0.004)
    assert ledger.by_layer().free_rows == frozenset()


def test_long_paths_do_not_widen_a_phone(show: Open) -> None:
    model = nn.Linear(4, 4)
    for _ in range(60):
        model = nn.Sequential(model)  # type: ignore[assignment]
    shown = show(analyze(model, (4,)), viewport={"width": 390, "height": 800})
    for name in ("layers", "operations", "memory", "counting"):
        shown.click(f"#tab-{name}")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_a_model_without_operations_has_sums_of_nothing(show: Open) -> None:
    shown = show(analyze(nn.Identity(), (4,)))
    assert value(shown, "#outline .number data") == "0"
    assert value(shown, "#operation-table tfoot td.share data") == "0"
