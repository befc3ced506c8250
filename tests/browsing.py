"""A browser for tests, Debian's Chromium or another one that is there, and what they read out of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Open = Callable[..., Any]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """Start a browser; skip the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser is driven by playwright: pip install playwright"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def value(shown: Any, selector: str) -> str:
    return str(shown.locator(selector).first.get_attribute("value"))


def column(shown: Any, name: str, table: str = "layer") -> list[str]:
    """Return the exact values of a column of numbers, of the rows that are shown."""
    heads = shown.locator(f"#{table}-table thead th").all_inner_texts()
    place = heads.index(name) + 1
    return [
        str(cell.get_attribute("value"))
        for cell in shown.locator(f"#{table}-table tbody td:nth-child({place}) data").all()
    ]


def names(shown: Any, table: str = "layer") -> list[str]:
    return [
        str(text)
        for text in shown.locator(f"#{table}-table tbody td.path > span").evaluate_all(
            "spans => spans.map((span) => span.firstChild.textContent)"
        )
    ]


def until(shown: Any, script: str, expected: object) -> None:
    """Wait until a script gives a value. The page's policy forbids playwright's own way, which evaluates text."""
    for _ in range(100):
        if shown.evaluate(script) == expected:
            return
        shown.wait_for_timeout(50)
    assert shown.evaluate(script) == expected


def choose(shown: Any, quantity: str) -> None:
    shown.locator(f"#by-{quantity}").check(force=True)
