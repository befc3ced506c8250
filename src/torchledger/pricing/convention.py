"""What a convention is: named quantities and a rule for each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from torchledger.record import ModuleCall, Operation


class State(StrEnum):
    """What a convention says of an operation."""

    PRICED = "priced"
    FREE = "free"  # moves and computes nothing, by rule: a view, an allocation
    EXCLUDED = "excluded"  # outside what a narrower convention counts
    UNKNOWN = "unknown"  # no rule


class Price(NamedTuple):
    """State and amounts of one operation. A quantity that is missing from `amounts` is not counted for it."""

    state: State
    amounts: Mapping[str, int]


FREE = Price(State.FREE, {})
UNKNOWN = Price(State.UNKNOWN, {})
EXCLUDED = Price(State.EXCLUDED, {})


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column: its name in CSV and JSON, its title in a table, its unit (B, MiB or none), what it counts."""

    name: str
    title: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Convention:
    """A named way to price operations.

    `quantities`: what `price` gives, in order. `of_calls`: quantities of a row that follow from the calls of its
    module rather than from operations. `leaves_only`: operations outside leaf modules are excluded, rows stand in
    registration order. `forward_only`: backward and optimizer are excluded. `exact`: amounts print in full, as the
    tool it follows prints them.
    """

    name: str
    summary: str
    quantities: tuple[Quantity, ...]
    price: Callable[[Operation], Price]
    of_calls: Mapping[Quantity, Callable[[ModuleCall], float]]
    leaves_only: bool = False
    exact: bool = False
    forward_only: bool = False
    notes: tuple[str, ...] = ()
