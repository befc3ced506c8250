"""What the page of a comparison has in it: models side by side, and of two what changed, for `json.dumps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchledger import __version__
from torchledger.amounts import Limit
from torchledger.errors import printable
from torchledger.page.cells import cells, quantity
from torchledger.report.scatter import is_logarithmic
from torchledger.views import Column, Table

IN_THE_WAY = ("unknown", "incomplete", "assumed")  # what begins a note that stands in plain sight
MOST_NAMES = 4  # in a title


@dataclass(frozen=True)
class Difference:
    """What the second of two models changes in the first.

    `table`: every row, changed or not. Places of rows: `replaced` became another kind, `memory_alone` have a peak and
    nothing else. `limit`: what a change must reach to be shown at first.
    """

    table: Table
    replaced: Sequence[int]
    memory_alone: Sequence[int]
    limit: Limit


def comparison_contents(
    table: Table, names: Sequence[str], quantities: Mapping[Column, str], chosen: str, difference: Difference | None
) -> dict[str, object]:
    """Return all that the page shows; cells are those of the tables, exactly.

    `table`: a row a model, with all quantities. `quantities`: those that the switch offers, and what each means; where
    `peak_bytes` is missing, all dots are of one size. `chosen`: which one it starts with.
    """
    notes = [printable(note) for note in table.notes]
    return {
        "format": "torchledger comparison page",
        "version": __version__,
        "run": printable(table.title),
        "exact": False,
        "quantities": [quantity(column, meaning) for column, meaning in quantities.items()],
        "chosen": chosen,
        "names": [printable(name) for name in names],
        "models": cells(table),
        "logarithmic": {
            name: is_logarithmic([int(row[name] or 0) for row in table.rows]) for name in ("params", "macs")
        },
        "in_the_way": {kind: _after(f"{kind}: ", notes) for kind in IN_THE_WAY},
        "notes": [note for note in notes if not note.startswith(tuple(f"{kind}: " for kind in IN_THE_WAY))],
        "difference": None if difference is None else _difference(difference),
    }


def _after(beginning: str, notes: Sequence[str]) -> list[str]:
    return [note.removeprefix(beginning) for note in notes if note.startswith(beginning)]


def _difference(difference: Difference) -> dict[str, object]:
    table = difference.table
    return {
        "run": printable(table.title),
        **cells(table),
        "replaced": list(difference.replaced),
        "memory_alone": list(difference.memory_alone),
        "limit": {
            "amount": difference.limit.amount,
            "is_share": difference.limit.is_share,
            "text": printable(difference.limit.text),
        },
        "notes": [printable(note) for note in table.notes],
    }


def comparison_title(names: Sequence[str]) -> str:
    """Name the models, or the first of many.

    >>> comparison_title(["alexnet", "vgg16"]), comparison_title(list("abcdef"))
    ('alexnet, vgg16', 'a, b, c and 3 more')
    """
    told = list(names) if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1]]
    text = ", ".join(told)
    return printable(text if len(told) == len(names) else f"{text} and {len(names) - len(told)} more")
