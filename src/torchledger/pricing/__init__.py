"""The conventions, by name."""

from __future__ import annotations

import dataclasses

from torchledger.errors import UserError, close_matches
from torchledger.pricing.convention import Convention, Price
from torchledger.pricing.custom import NO_RULES, Rules, checked_rules, register_rule, with_rules
from torchledger.pricing.full import FULL
from torchledger.pricing.fvcore import FVCORE
from torchledger.pricing.rules import Rule
from torchledger.pricing.torchstat import TORCHSTAT
from torchledger.record import Operation

__all__ = [
    "CONVENTIONS",
    "FULL",
    "FVCORE",
    "TORCHSTAT",
    "Convention",
    "Priced",
    "Rule",
    "Rules",
    "checked_rules",
    "convention",
    "register_rule",
]

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in (FULL, TORCHSTAT, FVCORE)}


# By convention and id of an operation: the operation, held so that the id stays its own, and its price.
Priced = dict[tuple[str, int], tuple[Operation, Price]]


def convention(name: str, rules: Rules = NO_RULES, priced: Priced | None = None) -> Convention:
    """Return the convention called `name`, with the rules that users registered and `rules`.

    `priced`: where to keep prices by torchledger's own rules, which do not change. Raise UserError where there is no
    such convention.
    """
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise UserError(
            f"unknown convention {name!r}; the conventions are {', '.join(CONVENTIONS)}."
            f"{close_matches(str(name), CONVENTIONS)}"
        )
    chosen = CONVENTIONS[name]
    return with_rules(chosen if priced is None else _once(chosen, priced), rules)


def _once(chosen: Convention, priced: Priced) -> Convention:
    """Return a convention that looks into `priced` before it prices."""

    def price(operation: Operation) -> Price:
        found = priced.get((chosen.name, id(operation)))
        if found is None or found[0] is not operation:
            found = priced[chosen.name, id(operation)] = operation, chosen.price(operation)
        return found[1]

    return dataclasses.replace(chosen, price=price)
