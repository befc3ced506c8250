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
    "forget",
    "register_rule",
]

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in (FULL, TORCHSTAT, FVCORE)}


# By convention, then by id of an operation: the operation, held so that the id stays its own, and its price.
Priced = dict[str, dict[int, tuple[Operation, Price]]]

# Prices by torchledger's own rules follow from the operation alone: the second capture finds the first one's. So many
# of a convention are kept, then it begins anew; a larger ledger has its own (the `priced` of `convention`), and so has
# one that was read from a file, whose operations nobody else has.
LIMIT = 20_000
_KEPT: Priced = {}


def convention(
    name: str, rules: Rules = NO_RULES, priced: Priced | None = None, is_captured: bool = False
) -> Convention:
    """Return the convention called `name`, with the rules that users registered and `rules`.

    `priced`: where a ledger keeps the prices of its operations by torchledger's own rules. `is_captured`: they are
    those of a capture, and other captures may have them too. Raise UserError where there is no such convention.
    """
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise UserError(
            f"unknown convention {name!r}; the conventions are {', '.join(CONVENTIONS)}."
            f"{close_matches(str(name), CONVENTIONS)}"
        )
    return with_rules(_once(CONVENTIONS[name], {} if priced is None else priced, is_captured), rules)


def forget() -> None:
    """Drop the prices that are kept for the process, as the first ledger finds it. No price changes by it."""
    for kept in _KEPT.values():
        kept.clear()


def _once(chosen: Convention, priced: Priced, is_captured: bool) -> Convention:
    """Return a convention that prices an operation once a ledger, and where it `is_captured` mostly once a process."""
    own, kept = priced.setdefault(chosen.name, {}), _KEPT.setdefault(chosen.name, {})

    def price(operation: Operation) -> Price:
        key = id(operation)
        found = own.get(key) or (kept.get(key) if is_captured else None)
        if found is None:
            found = operation, chosen.price(operation)
            if is_captured:
                if len(kept) >= LIMIT:
                    kept.clear()
                kept[key] = found
        own[key] = found
        return found[1]

    return dataclasses.replace(chosen, price=price)
