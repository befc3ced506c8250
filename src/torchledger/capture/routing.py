"""Which parameters run after the model has chosen by its own values, as a mixture of experts does.

A choice is the indices that top-k, argmax and their like put out; it holds in the smallest module call around
everything that takes these indices, or masks, whole numbers and picked parameters made of them, and ends with the last
of these. From the first choice on it is noted which entry takes which parameter. Storages are told apart as

- *fixed*: parameters, buffers, constants, and what is made of these alone (a cast, a stack, rows picked by an index);
- *moving*: all that hangs on what forward was given.

An operation on something moving uses the parameters it is given, and those that the fixed tensors it is given are made
of. Before the first choice nothing is followed but which storages were taken, so that a model without one pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torchledger.record import CallColumns, Choice, Routing, Use

# An overload's output that holds the indices it chose.
CHOOSING = {"topk": 1, "sort": 1, "argmax": 0, "argmin": 0, "max": 1, "min": 1, "kthvalue": 1, "multinomial": 0}


class Routes:
    """The choices of one run and what came of them. `touched`: storages taken before `is_on`, the first choice."""

    def __init__(self) -> None:
        self.is_on = False
        self.touched: set[int] = set()
        self.used: set[int] = set()  # parameters that were taken before, and have no storage in this run
        self._made_of: dict[int, tuple[int, ...]] = {}  # fixed storages -> the parameters in them
        self._spans: dict[int, list[tuple[int, int, int]]] = {}  # parameters that share one: start, end, index
        self._moving: set[int] = set()
        self._chosen: dict[int, tuple[Choice, ...]] = {}  # storages of indices -> the choices they come from
        self._kept: dict[int, Choice] = {}  # by entry: those whose indices something took
        self._uses: list[Use] = []
        self._first: tuple[int, ...] = ()  # parameters of `touched`

    def own(self, tensor: torch.Tensor, parameter: int | None) -> None:
        """Take `tensor` for the parameter of this index in the record, or for a buffer (None)."""
        storage = tensor.untyped_storage()._cdata
        self.touched.discard(storage)  # by one that died, and had the same address
        before = self._made_of.get(storage, ())
        self._made_of[storage] = before if parameter is None else (*before, parameter)
        if parameter is not None:
            start = int(tensor.storage_offset())
            self._spans.setdefault(storage, []).append((start, start + tensor.numel(), parameter))

    def chose(self, choice: Choice, indices: torch.Tensor, alive: set[int]) -> None:
        """Follow the indices of a choice. `alive`: all storages there are."""
        if not self.is_on:
            self.is_on = True
            self._moving = alive - self._made_of.keys()
            self._first = tuple(sorted(self.used.union(*(self._made_of.get(s, ()) for s in self.touched))))
        self._chosen[indices.untyped_storage()._cdata] = (choice,)

    def follow(
        self,
        calls: CallColumns,
        call: int,
        entry: int | None,
        tensors: list[torch.Tensor],
        returned: list[torch.Tensor],
        is_table: bool = False,
    ) -> None:
        """Bring all this up to date with an operation that ran in `call`, as `entry` where it is booked.

        `is_table`: it looks rows up in a table (`TABLES`).
        """
        given = [(place, t, t.untyped_storage()._cdata) for place, t in enumerate(tensors) if _is_plain(t)]
        # What a choice picks out of a parameter is still a part of it; what is looked up in a table is not.
        deciding = {storage for _, tensor, storage in given if not _is_index(tensor)}
        others = {storage for _, tensor, storage in given if _is_index(tensor)}
        if deciding:
            others -= self._chosen.keys()
        moving = self._moving & (deciding | others)
        is_moving = bool(moving) or is_table
        chosen = tuple({id(c): c for _, _, storage in given for c in self._chosen.get(storage, ())}.values())
        if entry is not None:
            for choice in chosen:
                self._keep(calls, call, choice)
                choice.last = entry if choice.last is not None else None
            if is_moving:
                self._uses += [Use(entry, place, p) for place, t, storage in given for p in self._in(t, storage)]
        made_of = () if is_moving else tuple({p: None for _, t, storage in given for p in self._in(t, storage)})
        # A mask stays one where it is turned into floats, joined with others or filled with probabilities.
        is_mask = not is_table and moving <= self._chosen.keys()
        sizes = {t.numel() for _, t, storage in given if storage in moving and storage in self._chosen}
        for tensor in filter(_is_plain, returned):
            storage = tensor.untyped_storage()._cdata
            if is_moving:
                self._moving.add(storage)
            elif storage not in self._moving:
                self._made_of.setdefault(storage, made_of)
            if chosen and (is_mask or _is_index(tensor) or tensor.numel() in sizes):
                self._chosen[storage] = tuple({id(c): c for c in (*self._chosen.get(storage, ()), *chosen)}.values())

    def read(self, calls: CallColumns, call: int, tensor: torch.Tensor) -> None:
        """Note that the program read values of `tensor`: where it goes by them ends nowhere to be seen."""
        for choice in self._chosen.get(tensor.untyped_storage()._cdata, ()):
            self._keep(calls, call, choice)
            choice.last = None

    def _keep(self, calls: CallColumns, call: int, choice: Choice) -> None:
        choice.call = _common(calls, choice.call, call)
        self._kept[choice.entry] = choice

    def forget(self, storage: int) -> None:
        """Drop a storage that died: its address may come up again."""
        self._moving.discard(storage)
        self._chosen.pop(storage, None)
        self._made_of.pop(storage, None)

    def found(self) -> Routing | None:
        """Return what the record keeps; None where nothing took the indices of a choice."""
        if not self._kept:
            return None
        return Routing([self._kept[entry] for entry in sorted(self._kept)], self._uses, list(self._first))

    def _in(self, tensor: torch.Tensor, storage: int) -> Iterable[int]:
        """Return the parameters that a fixed tensor is made of; none for another one."""
        if storage in self._moving:
            return ()
        parameters = self._made_of.get(storage, ())
        if len(parameters) > 1:
            offset = tensor.storage_offset()
            return [p for start, end, p in self._spans.get(storage, ()) if start <= offset < end] or parameters
        return parameters


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided


def _is_index(tensor: torch.Tensor) -> bool:
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _common(calls: CallColumns, one: int, other: int) -> int:
    """Return the innermost call that two calls are part of; a call comes after the one that made it."""
    while one != other:
        later = max(one, other)
        one, other = min(one, other), calls.parents[later] or 0
    return one


def choice_of(
    packet: str, entry: int, call: int, x: object, dim: object, returned: list[torch.Tensor]
) -> tuple[Choice, torch.Tensor] | None:
    """Return the choice that an operation on `x` made along `dim`, with its indices; None where it made none.

    What is chosen by whole numbers is no choice of the model's own: a sort of indices, the place of a token.
    """
    place = CHOOSING.get(packet, len(returned))
    if place >= len(returned) or not isinstance(x, torch.Tensor) or not x.numel() or _is_index(x):
        return None
    if dim is None and packet == "multinomial":
        dim = -1
    span = x.numel() if dim is None else x.shape[dim] if x.dim() and isinstance(dim, int) else 1
    return Choice(entry, x.numel() // span, call, entry), returned[place]
