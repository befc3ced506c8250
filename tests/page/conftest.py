"""Pages opened for their tests, in the browser of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchledger import Comparison, Ledger


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the page of a ledger or a comparison; nothing may ask for anything of a network, or complain."""
    complaints: list[str] = []
    opened = []

    def show(paged: Ledger | Comparison, save: dict[str, Any] | None = None, **options: Any) -> Any:
        path = tmp_path / "report.html"
        paged.save_html(path, **(save or {}))
        context = browser.new_context(**options)
        opened.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("dialog", lambda dialog: complaints.append(dialog.message))
        shown.on("request", lambda request: asked(request.url))
        shown.goto(path.as_uri())
        shown.wait_for_selector("html[data-ready=all]")
        return shown

    def asked(url: str) -> None:
        if not url.startswith(("file:", "blob:", "data:")):
            complaints.append(f"asked for {url}")

    yield show
    for context in opened:
        context.close()
    assert complaints == []
