"""A module's parameters or buffers whose stand-ins are made once somebody looks at them: most are never looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree

_LOCK = threading.RLock()  # forward may look from two threads
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, stride, dtype


class Waiting(dict[str, "torch.Tensor | None"]):
    """Stands in a module for its dict `real` of the user's tensors; each way to look into it puts the stand-ins there.

    `Twins.wait` makes it of that dict; there are hundreds, so that it has no constructor. `make` returns the stand-in
    of a tensor. What looks past these methods, as C code may, sees the user's own tensors.
    """

    __slots__ = ("bytes", "layouts", "make", "names", "places", "real", "trains")
    real: dict[str, torch.Tensor | None]
    names: tuple[str, ...]
    layouts: tuple[Layout | None, ...]  # of each
    make: Callable[[torch.Tensor], torch.Tensor] | None  # None: somebody has looked
    bytes: list[int]  # of the storages of those that are there
    trains: tuple[bool, ...]  # whether these ask for gradients
    places: Sequence[int]  # in the record, of parameters

    def fill(self) -> None:
        """Put the stand-ins there."""
        if self.make is not None:
            with _LOCK:
                if (make := self.make) is not None:
                    for name, tensor in self.real.items():
                        if tensor is not None:
                            super().__setitem__(name, make(tensor))
                    self.make = None

    def __iter__(self) -> Iterator[str]:
        # Names are no look. That there is a method here keeps dict() and | from copying past the others.
        return super().__iter__()

    def __reduce__(self) -> Any:
        """Return a plain dict to pickle or copy."""
        return dict, (dict(self.items()),)


def _looking(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def look(self: Waiting, *args: Any, **kwargs: Any) -> Any:
        self.fill()
        return method(self, *args, **kwargs)

    look.__name__ = name
    return look


for _name in """
    __getitem__ __setitem__ __delitem__ __reversed__ __eq__ __ne__ __or__ __ror__ __ior__ __repr__
    get items values pop popitem setdefault copy clear update
    """.split():
    setattr(Waiting, _name, _looking(_name))

# torch.func and others take dicts apart by their exact class.
_pytree.register_pytree_node(
    Waiting,
    lambda waiting: (list(waiting.values()), list(waiting)),
    lambda values, names: dict(zip(names, values, strict=True)),
)
