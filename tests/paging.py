"""What the tests of the page share: a net with all that a page shows, and what is read out of a file."""

from __future__ import annotations

import functools
import importlib.util
import json
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from torchledger import Comparison, Ledger, analyze, compare

# Their scripts go into the page; the packages are not imported.
MISSING = [name for name in ("plotly", "itables") if importlib.util.find_spec(name) is None]
needs_libraries = pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}: pip install 'torchledger[report]'")

IMAGE = "<img src=x onerror='broken=1'>"
HOSTILE = ("</script>" + IMAGE, "&lt;b&gt;" + IMAGE, "<b>&amp;%{label}</b>", "=HYPERLINK(1)")


@torch.library.custom_op("pagetest::_values", mutates_args=())
def singular_values(x: torch.Tensor) -> torch.Tensor:
    """An operation that has no rule."""
    return torch.linalg.svdvals(x)


@singular_values.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-2], min(x.shape[-2:])))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(self.wide(x).relu())


class Net(nn.Module):
    """Four blocks, of which the last is another, names that are markup, and one operation without a rule."""

    def __init__(self, unknown: bool = True) -> None:
        super().__init__()
        self.unknown = unknown
        self.blocks = nn.Sequential(Block(8), Block(8), Block(8), Block(8))
        self.blocks[3].narrow = nn.Linear(16, 8, bias=False)
        self.named = nn.ModuleDict({name: nn.Linear(8, 8) for name in HOSTILE})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        for layer in self.named.values():
            x = layer(x)
        if self.unknown:
            torch.ops.pagetest._values(x.detach())
        return x


@functools.cache
def ledger(unknown: bool = True, training: bool = False) -> Ledger:
    step: dict[str, Any] = {"training": True, "optimizer": "adamw"} if training else {}
    return analyze(Net(unknown), (8,), batch=4, **step)


class Changed(Net):
    """The same net with a wider block, a layer of another kind, one name less and two more, and a view at the end."""

    def __init__(self, unknown: bool = True) -> None:
        super().__init__(unknown)
        self.blocks[1].wide, self.blocks[1].narrow = nn.Linear(8, 24), nn.Linear(24, 8)
        del self.named[HOSTILE[0]]
        self.named[HOSTILE[1]] = nn.LayerNorm(8)
        self.named["more" + IMAGE] = nn.Linear(8, 8)
        self.named["last"] = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).unsqueeze(0)


@functools.cache
def comparison(unknown: bool = False, **options: Any) -> Comparison:
    """Return the net before and after, under a name that is markup."""
    after = analyze(Changed(unknown), (8,), batch=4)
    return compare(ledger(unknown), after, names=["before", "after" + IMAGE], **options)


class Elements(HTMLParser):
    """The elements of a file as a browser's parser finds them: names, attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def text(self, identity: str) -> str:
        return next(text for (_, said), text in zip(self.found, self.texts, strict=True) if said.get("id") == identity)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.text("data"))  # type: ignore[no-any-return]


def rows(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a page's table by the names of its columns."""
    return [dict(zip(cells["columns"], row, strict=True)) for row in cells["rows"]]
