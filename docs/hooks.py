"""What mkdocs calls while it builds the site."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")  # a link to what is beside docs/


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name the files of the repository that a page links to: they are no part of the site."""
    return OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return f"`{path}`" if path.endswith(text) else f"{text}, `{path}`"
