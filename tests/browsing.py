"""What the tests of the pages read out of a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Open = Callable[..., Any]


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
