"""Data + libraries + our own script and style -> one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from torchledger import __version__
from torchledger.errors import UserError

# Package, its file, what the page does with it. plotly's package has the whole of plotly.js and no smaller bundle.
LIBRARIES = {
    "plotly": ("plotly", "package_data/plotly.min.js"),
    "tables": ("itables", "html/dt_bundle.js"),
}
TABLE_STYLE = ("itables", "html/dt_bundle.css")


@dataclass(frozen=True)
class Form:
    """What stands in the frame that pages share, and the scripts that draw it."""

    body: str
    scripts: tuple[str, ...]


_SHARED = ("numbers.js", "libraries.js", "frame.js", "tables.js")  # scripts stand one after another, in one scope
LEDGER = Form("ledger.html", (*_SHARED, "rows.js", "tree.js", "layers.js", "memory.js", "ledger.js"))
COMPARISON = Form("comparison.html", (*_SHARED, "models.js", "scatter.js", "difference.js", "comparison.js"))


def check_libraries() -> None:
    """Raise UserError where a library that the page is made with is missing."""
    for package, file in (*LIBRARIES.values(), TABLE_STYLE):
        _path(package, file)


def document(form: Form, title: str, data: Mapping[str, object]) -> str:
    """Return the file. Raise UserError where plotly or itables is missing.

    The policy in its head lets the browser run these scripts and load nothing, whatever is in the data.
    """
    script = "\n".join(_own(name) for name in form.scripts)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "table_style": _path(*TABLE_STYLE).read_text(encoding="utf-8"),
        "style": _own("page.css"),
        "body": _own(form.body),
        "version": __version__,
        "data": embedded(data),
        **{name: _packed(str(_path(package, file))) for name, (package, file) in LIBRARIES.items()},
        "script": script,
    }
    first, *others = _own("page.html").split("{{")
    pieces = [first]
    for piece in others:
        name, _, rest = piece.partition("}}")
        pieces += [parts[name], rest]
    return "".join(pieces)


def embedded(data: Mapping[str, object]) -> str:
    r"""Return JSON that is safe inside of a script element: nothing in it can close the element or open a comment.

    >>> embedded({"</script><!--": "&"})
    '{"\\u003c/script\\u003e\\u003c!--":"\\u0026"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _own(name: str) -> str:
    return (resources.files("torchledger.page") / name).read_text(encoding="utf-8")


def _path(package: str, file: str) -> Path:
    """Return a library's file without importing the library."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"a page needs {package}: pip install 'torchledger[report]'")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise UserError(f"this version of {package} has no {file}: pip install --upgrade 'torchledger[report]'")
    return path


@functools.cache
def _packed(path: str) -> str:
    """Return a library as base64 of gzip: a quarter of its size, and nothing in it is taken for markup."""
    return base64.b64encode(gzip.compress(Path(path).read_bytes(), mtime=0)).decode()
