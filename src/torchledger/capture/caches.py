"""Caches of functions (functools.lru_cache) in a model's code: what a run on meta left there is taken out again.

Else the model's next real forward would be handed meta tensors.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, ModuleType
from typing import Any, TypeAlias

import torch

from torchledger.inputs import tensors_in

Cache: TypeAlias = "functools._lru_cache_wrapper[Any]"
_found: dict[str, tuple[ModuleType, list[Cache]]] = {}  # by name of a Python module; what was found in it stays


@contextlib.contextmanager
def without_meta(kinds: Iterable[type], functions: Iterable[Any]) -> Iterator[None]:
    """Empty each cache that has taken up meta tensors when the block is left.

    Looked at are those in the code of classes of modules, `kinds`, and `functions` that hang on the model.
    """
    held = [cache for value in functions for cache in _inside(value)]
    written = [cache for name in _files(kinds) for cache in _caches_of(name)]
    caches = {id(cache): cache for cache in (*held, *written)}.values()
    misses = [cache.cache_info().misses for cache in caches]
    try:
        yield
    finally:
        for cache, before in zip(caches, misses, strict=True):
            if cache.cache_info().misses != before and _holds_meta(cache):
                cache.cache_clear()


def _files(kinds: Iterable[type]) -> set[str]:
    """Return the names of the Python modules that a model's classes were written in, without torch's."""
    names = {base.__module__ for kind in set(kinds) for base in kind.__mro__}
    return {name for name in names if name != "torch" and not name.startswith("torch.")}


def _caches_of(name: str) -> list[Cache]:
    """Return the caches among the functions of a Python module and the methods of its classes."""
    module = sys.modules.get(name)
    if module is None:
        return []
    known = _found.get(name)
    if known is not None and known[0] is module and name != "__main__":
        return known[1]
    values = list(vars(module).values())
    for value in list(values):
        if isinstance(value, type) and value.__module__ == name:
            values += vars(value).values()
    caches = [cache for value in values for cache in _inside(value)]
    _found[name] = (module, caches)
    return caches


def _inside(value: Any) -> Iterator[Cache]:
    """Yield the cache that a function is, or that it calls: a decorator's wrapper has it in its closure."""
    value = getattr(value, "__func__", value) if isinstance(value, (staticmethod, classmethod)) else value
    if isinstance(value, functools._lru_cache_wrapper):
        yield value
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            content = _content(cell)
            if isinstance(content, functools._lru_cache_wrapper):
                yield content


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _holds_meta(cache: Cache) -> bool:
    """Whether a result in the cache is, or has, a meta tensor."""
    held = gc.get_referents(cache)
    return any(tensor.is_meta for tensor in tensors_in(held) if isinstance(tensor, torch.Tensor))
