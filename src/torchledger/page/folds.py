"""Repeated blocks of a by-layer table: rows of equal modules in one place -> one row that stands for them all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchledger.views import Table

NUMBER = re.compile("0|[1-9][0-9]{0,8}")  # as ModuleList and Sequential write it
OF_ONE_RUN = frozenset({"module", "seconds_measured", "duration_percent"})  # may differ between equal blocks


@dataclass(frozen=True)
class Fold:
    """A row that stands for `rows` of the table: its path has `1–35` where theirs have a number each."""

    path: str
    rows: tuple[int, ...]


@dataclass
class _Node:
    """A module of the tree: rows of its own, children by name."""

    rows: list[int] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)
    form: int = -1  # the same for two modules whose rows are equal all the way down


def folds(table: Table, kinds: Mapping[str, str]) -> tuple[list[Fold], dict[str, str], dict[str, int]]:
    """Return the rows that repeat; of each module that holds such rows the kind and, of several in one, how many.

    Siblings fold that have a number for a name, children of their own, and rows that are equal in all but the seconds,
    all the way down: the blocks of a stage, the layers of a transformer. Every row is in at most one fold.
    """
    root, nodes = _tree(table)
    _set_forms(nodes, table)
    found: list[Fold] = []
    named: dict[str, str] = {}
    times: dict[str, int] = {}
    waiting = [("", "", [root])]  # path, path of the first member, members
    while waiting:
        path, first, members = waiting.pop()
        if len(members) > 1:
            if first in kinds:
                named[path] = kinds[first]
            for place in range(len(members[0].rows)):
                found.append(Fold(path, tuple(member.rows[place] for member in members)))
        for names in _alike(members[0]):
            children = [member.children[name] for member in members for name in names]
            below = _joined(path, _ranges(names))
            if len(names) > 1:
                times[below] = len(names)
            waiting.append((below, _joined(first, names[0]), children))
    return sorted(found, key=lambda fold: fold.rows), named, times


def _tree(table: Table) -> tuple[_Node, list[_Node]]:
    """Return the root and all modules, parents before children."""
    root = _Node()
    nodes = [root]
    for index, row in enumerate(table.rows):
        node = root
        for name in str(row["module"]).split(".") if row["module"] else ():
            if name not in node.children:
                node.children[name] = _Node()
                nodes.append(node.children[name])
            node = node.children[name]
        node.rows.append(index)
    return root, nodes


def _set_forms(nodes: Sequence[_Node], table: Table) -> None:
    """Give modules of equal rows the same `form`. Children first, without recursion: a tree may be deep."""
    known: dict[object, int] = {}
    compared = [column.name for column in table.columns if column.name not in OF_ONE_RUN]
    for node in reversed(nodes):
        rows = tuple(tuple((type(c), c) for c in map(table.rows[index].get, compared)) for index in node.rows)
        below = tuple((name, child.form) for name, child in node.children.items())
        node.form = known.setdefault((rows, below), len(known))


def _alike(node: _Node) -> list[list[str]]:
    """Return the names of the children, those of equal blocks together."""
    together: dict[object, list[str]] = {}
    for name, child in node.children.items():
        together.setdefault(child.form if child.children and NUMBER.fullmatch(name) else name, []).append(name)
    found: list[list[str]] = []
    for names in together.values():
        # A module may have the very name that the folded ones would have.
        apart = len(names) > 1 and _ranges(names) in node.children
        found += [[name] for name in names] if apart else [names]
    return found


def _ranges(names: Sequence[str]) -> str:
    """Write numbers as ranges.

    >>> _ranges(["0", "2", "3", "4"])
    '0,2–4'
    """
    if len(names) == 1:
        return names[0]
    numbers = sorted(map(int, names))
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
