"""What the command line names -> a model, or the path of a saved ledger.

    resnet50                   a network of the registry
    path/to/file.py:Net        a class, a factory function or an nn.Module of a file
    package.module:callable    the same of an importable module
    net.json                   a saved ledger

A file or module that is named here is *run*, as Python runs what it imports: name only what you would run. A ledger is
data. `resolve` decides what a text names and runs nothing (no torch either); `build` makes the model.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

from torchledger.errors import UserError, check_accepted, close_matches, raised_at
from torchledger.models import registry

if TYPE_CHECKING:
    from torch import nn

NETWORKS = "a network of `torchledger models`"
FORMS = "path/to/file.py:Net, package.module:callable, or a saved ledger such as net.json"

_LISTED = 12  # names that an error lists before it says how many more there are
_file_numbers = itertools.count(1)
_siblings: dict[str, Path] = {}  # modules that earlier files imported from their own folder -> that folder


@dataclass(frozen=True)
class Source:
    """Say what a text names: `path` of a ledger or file, `module` of a module, `attribute` for what is built in it."""

    name: str
    kind: Literal["ledger", "zoo", "file", "module"]
    path: Path | None = None
    module: str | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Built:
    """Hold a model, whether it was built on meta, and the size of one sample that it is made for, where it says so."""

    model: nn.Module
    on_meta: bool
    input_size: tuple[int, ...] | None


def resolve(text: str) -> Source:
    """Decide what `text` names. Runs nothing.

    What follows the last colon is the attribute, so that a path may hold colons. Raises `UserError` where `text` has
    none of the accepted forms, or names a file that does not exist.
    """
    if text in registry.REGISTRY:
        return Source(text, "zoo")
    if text.lower().endswith(".json"):
        return Source(text, "ledger", path=_existing(Path(text), "ledger"))
    if text.lower().endswith(".py"):
        raise UserError(f"{text!r} does not say what to build: {_say_which(_existing(Path(text), 'file'))}")
    place, colon, attribute = text.rpartition(":")
    if place.lower().endswith(".py") or (colon and ("/" in place or "\\" in place or Path(place).is_file())):
        path = _existing(Path(place), "file")
        if not _is_dotted_name(attribute):
            raise UserError(f"{text!r} names nothing to build after its colon: {_say_which(path)}")
        return Source(text, "file", path=path, attribute=attribute)
    if _is_dotted_name(place) and _is_dotted_name(attribute):
        return Source(text, "module", module=place, attribute=attribute)
    module, dot, last = text.rpartition(".")
    hint = f" Did you mean {module + ':' + last!r}?" if dot and _is_dotted_name(text) else ""
    near = close_matches(text, registry.names())
    raise UserError(f"unknown model {text!r}.{near or hint} Choices: {NETWORKS}, {FORMS}.")


def build(
    source: Source,
    arguments: Mapping[str, object] | None = None,
    device: Literal["meta"] | None = None,
    weights: str | None = None,
) -> Built:
    """Build the model that `source` names with `arguments`, running the code that it names as Python does.

    With `device="meta"` no weight is allocated; where a constructor fails on meta it runs again for real, and
    `Built.on_meta` says which happened. A ready nn.Module is returned as it is. What the code prints goes to stderr.
    `weights` is a checkpoint that must fit the model: it is loaded, or on meta compared with it.
    Raises `UserError` for everything that is wrong with the source, the arguments or the constructor.
    """
    if source.kind == "ledger":
        raise UserError(f"{source.name!r} is a saved ledger, not a model: load it with Ledger.load")
    given = dict(arguments or {})
    with contextlib.redirect_stdout(sys.stderr):
        if source.kind == "zoo":
            entry = registry.entry(source.name)
            if weights is not None:
                given = registry.arguments_for_weights(source.name, given)
            model, on_meta = _construct(source, entry.load(), given, device)
            _load(model, weights, on_meta)
            return Built(model, on_meta, entry.input_size_for(given))
        with importable(source):
            module = _run_file(source) if source.kind == "file" else _import_module(source)
            target = _attribute(source, module)
            model, on_meta = _construct(source, target, given, device)
            _load(model, weights, on_meta)
    return Built(model, on_meta, _declared_size(model))


def networks() -> list[dict[str, object]]:
    """Return a row for each network that comes with torchledger, for `report.catalog`. Reads without torch."""
    figures = registry.figures()
    return [
        {
            "name": entry.name,
            "input": "x".join(map(str, entry.input_size)),
            "params": figures[entry.name].params,
            "macs": figures[entry.name].macs,
            "top1": entry.top1,
            "top1_source": entry.top1_source,
            "authors": entry.paper.authors,
            "year": entry.paper.year,
            "title": entry.paper.title,
            "weights": entry.weights,
        }
        for entry in registry.REGISTRY.values()
    ]


def expected_images(source: Source) -> str:
    """Return whose weights a network of the registry loads, and what images those expect, or an empty text."""
    return registry.entry(source.name).weights if source.kind == "zoo" else ""


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Read `NAME=VALUE` pairs: a value is a Python literal (10, 0.5, True, (3, 3)), or else the text itself.

    Raises `UserError` for a pair without `=`, a name that is none or comes twice, and `true` and `false` in lower case,
    which as a text would both count as true.
    """
    arguments: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
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


def _existing(path: Path, what: str) -> Path:
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
        return f"write {path}:Net ({_describe(error)})"
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [name for name in classes + functions if not name.startswith("_")]
    if not found:
        return f"write {path}:Net with the name of a class, function or model in it (it defines no class or function)"
    return f"write {path}:{found[0]} (it defines {_listing(found)})"


def _listing(found: Iterable[str]) -> str:
    shown = list(found)
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more


# ---- running what was named


@contextlib.contextmanager
def importable(source: Source) -> Iterator[None]:
    """Let the code import its neighbours: a file those in its folder, first; a module those in the current one, last.

    Modules that another file imported from its own folder are forgotten, so that two versions of a project, each with
    its own `layers.py`, do not get each other's.
    """
    if source.kind == "zoo":
        yield
        return
    if source.path is not None:
        folder = source.path.resolve().parent
        for name in [name for name, owner in _siblings.items() if owner != folder]:
            sys.modules.pop(name, None)
            del _siblings[name]
        sys.path.insert(0, str(folder))
        added = True
    else:
        folder = Path.cwd()
        added = str(folder) not in sys.path
        if added:
            sys.path.append(str(folder))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        if added and str(folder) in sys.path:  # the code may have removed it
            sys.path.remove(str(folder))
        if source.path is not None:
            for name in set(sys.modules) - before:
                # Its place follows from its name; a virtual environment in the folder, or compiled code, is no sibling.
                stem = folder.joinpath(*name.split("."))
                location = getattr(sys.modules[name], "__file__", None)
                if location in (f"{stem}.py", str(stem / "__init__.py")):
                    _siblings[name] = folder


def _run_file(source: Source) -> ModuleType:
    """Run a file as a module under a name of its own, kept in `sys.modules`: dataclasses and pickle look there."""
    path = cast(Path, source.path)
    name = f"torchledger_source_{next(_file_numbers)}_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    location = str(path.resolve())
    loader = SourceFileLoader(name, location)
    spec = importlib.util.spec_from_file_location(name, location, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled here, not by the loader: that would leave a __pycache__ in the user's folder, or read a stale one.
        exec(loader.source_to_code(path.read_bytes(), location), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "; a file inside a package is named as package.module:Net"
        raise UserError(f"running {_place(error, location, str(path))} failed: {_describe(error)}{hint}") from error
    return module


def _import_module(source: Source) -> ModuleType:
    name = cast(str, source.module)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"no module {error.name!r} for {source.name!r}: install it, start in the folder that holds it, or name"
                f" its file as path/to/file.py:{source.attribute}"
            ) from error
        raise UserError(f"importing {name!r} failed: {_describe(error)}{raised_at(error)}") from error


def _attribute(source: Source, module: ModuleType) -> object:
    """Return what the source names in its module, or raise with what there is."""
    found: object = module
    for part in cast(str, source.attribute).split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            there = _candidates(module, only_own=source.kind == "file")
            choices = f" It defines {_listing(there)}." if there else " It defines no model, class or function."
            where = str(source.path) if source.kind == "file" else f"module {source.module!r}"
            raise UserError(f"no {part!r} in {where}.{close_matches(part, there)}{choices}") from error
        except Exception as error:  # a lazy module imports on demand
            reason = f"{_describe(error)}{raised_at(error)}"
            raise UserError(f"reading {part!r} for {source.name!r} failed: {reason}") from error
    return found


def _candidates(module: ModuleType, only_own: bool) -> list[str]:
    """List what could be built in a module: nn.Module classes, then instances, then other public functions."""
    from torch import nn

    def own(value: object) -> bool:
        return not only_own or getattr(value, "__module__", None) == module.__name__

    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    classes = [n for n, v in public.items() if inspect.isclass(v) and issubclass(v, nn.Module) and own(v)]
    instances = [n for n, v in public.items() if isinstance(v, nn.Module)]
    functions = [n for n, v in public.items() if inspect.isroutine(v) and own(v)]
    return classes + instances + functions


# ---- building


def _construct(
    source: Source, target: object, arguments: dict[str, object], device: Literal["meta"] | None
) -> tuple[nn.Module, bool]:
    """Return the model and whether it was built on meta."""
    import torch
    from torch import nn

    if isinstance(target, nn.Module):
        if arguments:
            raise UserError(
                f"{source.name!r} is a model that is already built: it takes no arguments ({', '.join(arguments)});"
                " name its class or a function to give some"
            )
        return target, False
    if not callable(target) or (inspect.isclass(target) and not issubclass(target, nn.Module)):
        kind = f"class {target.__name__}" if inspect.isclass(target) else f"value of type {type(target).__name__}"
        raise UserError(
            f"{source.name!r} is a {kind}, not an nn.Module: name an nn.Module class, a function that returns one, or a"
            " model"
        )
    _check_arguments(source, target, arguments)
    if device == "meta":
        # A constructor that needs values (a .tolist(), weights read from a file) fails on meta. If it fails for real
        # too, that second error is the one to show.
        # So is what it prints then.
        printed = io.StringIO()
        try:
            with torch.device("meta"), contextlib.redirect_stdout(printed):
                on_meta = target(**arguments)
        except UserError:
            raise
        except (Exception, SystemExit):
            pass
        else:
            print(printed.getvalue(), end="")
            return _checked_model(source, on_meta), True
    return _checked_model(source, _call(source, target, arguments)), False


def _load(model: nn.Module, weights: str | None, on_meta: bool) -> None:
    if weights is not None:
        from torchledger.models.weights import load_weights

        load_weights(model, weights, "meta" if on_meta else None)


def _call(source: Source, target: Callable[..., object], arguments: dict[str, object]) -> object:
    try:
        return target(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        name = source.attribute or source.name
        raise UserError(f"building {name}({written}) failed: {_describe(error)}{raised_at(error)}") from error


def _checked_model(source: Source, model: object) -> nn.Module:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UserError(
            f"{source.name!r} returned a {type(model).__name__}, not an nn.Module: name a function that returns a model"
        )
    return model


def _check_arguments(source: Source, target: Callable[..., object], arguments: dict[str, object]) -> None:
    """Compare the arguments with the signature, where it has one, before anything runs."""
    check_accepted(source.name, target, arguments)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        flags = " ".join(f"--arg {name}=VALUE" for name in missing)
        noun = "argument" if len(missing) == 1 else "arguments"
        raise UserError(f"{source.name!r} needs the {noun} {', '.join(missing)}: say {flags}")


def _declared_size(model: nn.Module) -> tuple[int, ...] | None:
    """Return the model's `input_size` if it is a tuple or list of positive whole numbers (an LSTM's is a number)."""
    size: object = None
    with contextlib.suppress(Exception):  # a property of the user's may raise anything
        size = getattr(model, "input_size", None)
    if not isinstance(size, tuple | list) or not size:
        return None
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in size)
    return tuple(size) if whole else None


# ---- errors of the user's code, in one line


def _describe(error: BaseException) -> str:
    text = textwrap.shorten(str(error), 400, placeholder=" ...")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, location: str, shown: str) -> str:
    """Return `shown, line N` for the line of the file at `location` that raised, or that does not parse."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == location]
    line = lines[-1] if lines else None
    if isinstance(error, SyntaxError) and error.filename == location:
        line = error.lineno
    return f"{shown}, line {line}" if line else shown
