"""Write the pictures of README and docs: `make pictures`. Chromium draws the page; the tests compare the terminal."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from torchledger import Ledger, analyze
from torchledger.models import build

DOCS = Path(__file__).parent
COLUMNS = 80
STEP = ("cross_entropy", "adamw")


def step(batch: int) -> Ledger:
    loss, optimizer = STEP
    return analyze(build("resnet50"), (3, 224, 224), batch=batch, training=True, loss=loss, optimizer=optimizer)


def terminal() -> str:
    """Return a terminal of 80 columns with two commands and what they print, as an SVG."""
    model = analyze(build("resnet50"), (3, 224, 224)).by_module(1)
    peak = step(32).memory().by_category()
    return drawn(
        [
            ("torchledger stat resnet50 --by module --depth 1", model.to_text(COLUMNS, color=True)),
            (
                f"torchledger memory resnet50 --batch 32 --training \\\n      --loss {STEP[0]} --optimizer {STEP[1]}",
                peak.to_text(COLUMNS, color=True),
            ),
        ]
    )


def drawn(runs: Sequence[tuple[str, str]]) -> str:
    """Return commands and what they printed as an SVG."""
    console = Console(
        record=True,
        width=COLUMNS + 2,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        highlight=False,
    )
    for place, (command, output) in enumerate(runs):
        if place:
            console.print()
        console.print(Text("$ ", style="dim") + Text(command, style="bold green"))
        console.print(Text.from_ansi(output.rstrip("\n")))
    drawing = console.export_svg(title="torchledger", unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\n", "", drawing, flags=re.DOTALL)  # the reader's own fonts: it loads nothing


def page(path: Path) -> None:
    """Save a picture of a page in headless Chromium."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = Path(folder) / "report.html"
        step(32).save_html(report)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        seen = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        seen.goto(report.as_uri())
        seen.wait_for_selector("#icicle .slice")
        seen.wait_for_timeout(1500)  # charts settle
        seen.screenshot(path=path)
        browser.close()


def main() -> None:
    """Write every picture."""
    (DOCS / "terminal.svg").write_text(terminal(), encoding="utf-8")
    if shutil.which("chromium") is None:
        sys.exit("docs/page.png needs Debian's chromium; docs/terminal.svg is written")
    page(DOCS / "page.png")


if __name__ == "__main__":
    main()
