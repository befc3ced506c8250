"""What a text names, decided without running anything, and the arguments that are written as NAME=VALUE."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchledger.errors import UserError, close_matches
from torchledger.models import registry

NETWORKS = "a network of `torchledger models`"
FORMS = (
    "path/to/file.py:Net, package.module:callable, torchvision:resnet50, timm:vit_base_patch16_224, "
    "hf:llama or hf:path/to/config.json, net.pt2 of torch.export, or a saved ledger such as net.json"
)

Kind = Literal["ledger", "zoo", "file", "module", "torchvision", "timm", "hf", "exported"]
LIBRARIES: tuple[Kind, ...] = ("torchvision", "timm", "hf")
_LISTED = 12  # names that an error lists before it says how many more there are


@dataclass(frozen=True)
class Source:
    """Say what a text names.

    `path` is that of a ledger, file, config or exported program, `module` that of a module; `attribute` is what is
    built in either, or the library's own name of a model.
    """

    name: str
    kind: Kind
    path: Path | None = None
    module: str | None = None
    attribute: str | None = None


def resolve(text: str) -> Source:
    """Decide what `text` names. Runs nothing.

    A library's name and a colon come first (`timm:`); else what follows the last colon is the attribute, so that a
    path may hold colons. Raises `UserError` where `text` has none of the accepted forms, or names a file that does not
    exist.
    """
    if text in registry.REGISTRY:
        return Source(text, "zoo")
    library, colon, name = text.partition(":")
    for kind in LIBRARIES:
        if colon and library == kind:
            return _of_library(text, kind, name)
    if text.lower().endswith((".json", ".json.gz")):
        return Source(text, "ledger", path=existing(Path(text), "ledger"))
    if text.lower().endswith(".pt2"):
        return Source(text, "exported", path=existing(Path(text), "exported program"))
    if text.lower().endswith(".py"):
        raise UserError(f"{text!r} does not say what to build: {_say_which(existing(Path(text), 'file'))}")
    place, colon, attribute = text.rpartition(":")
    if place.lower().endswith(".py") or (colon and ("/" in place or "\\" in place or Path(place).is_file())):
        path = existing(Path(place), "file")
        if not _is_dotted_name(attribute):
            raise UserError(f"{text!r} names nothing to build after its colon: {_say_which(path)}")
        return Source(text, "file", path=path, attribute=attribute)
    if _is_dotted_name(place) and _is_dotted_name(attribute):
        return Source(text, "module", module=place, attribute=attribute)
    module, dot, last = text.rpartition(".")
    hint = f" Did you mean {module + ':' + last!r}?" if dot and _is_dotted_name(text) else ""
    near = close_matches(text, registry.names())
    raise UserError(f"unknown model {text!r}.{near or hint} Choices: {NETWORKS}, {FORMS}.")


def _of_library(text: str, kind: Kind, name: str) -> Source:
    """Name a library's model; for hf the file of a config where `name` is a path, else a model type."""
    if not name:
        known = {"torchvision": "resnet50", "timm": "vit_base_patch16_224"}
        example = known.get(kind, "llama or hf:path/to/config.json")
        raise UserError(f"{text!r} names no model: write {kind}:{example}, for example")
    path = Path(name)
    if kind != "hf":
        return Source(text, kind, attribute=name)
    if path.is_dir() and (path / "config.json").is_file():
        return Source(text, kind, path=path / "config.json", attribute=name)
    if path.is_dir():
        raise UserError(f"{text!r}: the folder {name!r} holds no config.json")
    if name.lower().endswith(".json"):
        return Source(text, kind, path=existing(path, "config"), attribute=name)
    if "/" in name or "\\" in name:
        raise UserError(
            f"{text!r}: there is no folder {name!r}, and nothing is downloaded here: save the model's config.json and"
            " name that file, as in hf:path/to/config.json"
        )
    return Source(text, kind, attribute=name)


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Read `NAME=VALUE` pairs: a value is a Python literal (10, 0.5, True, (3, 3)), or else the text itself.

    A name may have dots, which lead into a part of a config (`text_config.num_hidden_layers=2`). Raises `UserError` for
    a pair without `=`, a name that is none or comes twice, and `true` and `false` in lower case, which as a text would
    both count as true.
    """
    arguments: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not _is_dotted_name(name):
            raise UserError(f"argument {pair!r} is not of the form NAME=VALUE, such as num_classes=10")
        if name in arguments:
            raise UserError(f"argument {name!r} is given twice ({pair!r}): give it once")
        if text in ("true", "false"):
            raise UserError(f"argument {pair!r} would be a text: write {name}={text.title()}, or {name}=\"'{text}'\"")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            arguments[name] = text
    return arguments


# ---- texts and paths


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def existing(path: Path, what: str) -> Path:
    """Return `path`, or raise with the names in its folder that come close."""
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"{what} {str(path)!r} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"no {what} {str(path)!r}: there is no folder {str(path.parent)!r}")
    same_kind = [other.name for other in path.parent.iterdir() if other.suffix == path.suffix]
    raise UserError(
        f"no {what} {str(path)!r}.{close_matches(path.name, sorted(same_kind)) or ' Check the name and the folder.'}"
    )


def _say_which(path: Path) -> str:
    """Name what a file defines, read without running it."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, OSError) as error:
        return f"write {path}:Net ({describe(error)})"
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [name for name in classes + functions if not name.startswith("_")]
    if not found:
        return f"write {path}:Net with the name of a class, function or model in it (it defines no class or function)"
    return f"write {path}:{found[0]} (it defines {listing(found)})"


def listing(found: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = list(found)
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more


def describe(error: BaseException) -> str:
    """Return an error of the code that was named in one line."""
    text = textwrap.shorten(str(error), 400, placeholder=" ...")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
