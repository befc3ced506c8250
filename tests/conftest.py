"""What every test may use: torchvision on a torch without its compiled operations, golden files, a browser."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import hypothesis
import pytest
import torch


def _compiled_part_loads() -> bool:
    """Whether torchvision's compiled part fits this torch: the CUDA wheel's does not fit a CPU torch."""
    spec = importlib.util.find_spec("torchvision")
    try:
        for path in Path(spec.origin).parent.glob("_C.*") if spec is not None and spec.origin is not None else ():
            torch.ops.load_library(path)
            return True
    except OSError:
        pass
    return False


# A worker has a core to itself: threads of several workers would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Without it torchvision imports once the schemas of its two compiled operations are defined. The library must stay
# referenced: its schemas go with it.
_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
if not _compiled_part_loads():
    for _name in ("nms", "qnms"):
        _TORCHVISION.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# The suite draws the same examples every time; --hypothesis-profile explore draws others.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("suite")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew; review them as a diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/NAME, or write it there with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8")
        diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
        assert text == expected, "\n".join(diff)

    return compare


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One for the session: playwright can be started once in a process."""
    with browsing.browser() as started:
        yield started
