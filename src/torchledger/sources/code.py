"""A file or module that a source names: it is run, as Python runs what it imports, and what it defines is found."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import cast

from torchledger.errors import UserError, close_matches, raised_at
from torchledger.sources.naming import Source, describe, listing

_file_numbers = itertools.count(1)
_siblings: dict[str, Path] = {}  # modules that earlier files imported from their own folder -> that folder


@contextlib.contextmanager
def importable(source: Source) -> Iterator[None]:
    """Let the code import its neighbours: a file those in its folder, first; a module those in the current one, last.

    Modules that another file imported from its own folder are forgotten, so that two versions of a project, each with
    its own `layers.py`, do not get each other's.
    """
    if source.kind not in ("file", "module"):
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


def run_file(source: Source) -> ModuleType:
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
        raise UserError(f"running {_place(error, location, str(path))} failed: {describe(error)}{hint}") from error
    return module


def import_module(source: Source) -> ModuleType:
    name = cast(str, source.module)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"no module {error.name!r} for {source.name!r}: install it, start in the folder that holds it, or name"
                f" its file as path/to/file.py:{source.attribute}"
            ) from error
        raise UserError(f"importing {name!r} failed: {describe(error)}{raised_at(error)}") from error


def attribute(source: Source, module: ModuleType) -> object:
    """Return what the source names in its module, or raise with what there is."""
    found: object = module
    for part in cast(str, source.attribute).split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            there = _candidates(module, only_own=source.kind == "file")
            choices = f" It defines {listing(there)}." if there else " It defines no model, class or function."
            where = str(source.path) if source.kind == "file" else f"module {source.module!r}"
            raise UserError(f"no {part!r} in {where}.{close_matches(part, there)}{choices}") from error
        except Exception as error:  # a lazy module imports on demand
            reason = f"{describe(error)}{raised_at(error)}"
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


def _place(error: BaseException, location: str, shown: str) -> str:
    """Return `shown, line N` for the line of the file at `location` that raised, or that does not parse."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == location]
    line = lines[-1] if lines else None
    if isinstance(error, SyntaxError) and error.filename == location:
        line = error.lineno
    return f"{shown}, line {line}" if line else shown
