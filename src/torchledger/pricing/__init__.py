"""The conventions, by name."""

from __future__ import annotations

from torchledger.errors import UserError, close_matches
from torchledger.pricing.convention import Convention
from torchledger.pricing.custom import NO_RULES, Rules, checked_rules, register_rule, with_rules
from torchledger.pricing.full import FULL
from torchledger.pricing.fvcore import FVCORE
from torchledger.pricing.rules import Rule
from torchledger.pricing.torchstat import TORCHSTAT

__all__ = [
    "CONVENTIONS",
    "FULL",
    "FVCORE",
    "TORCHSTAT",
    "Convention",
    "Rule",
    "Rules",
    "checked_rules",
    "convention",
    "register_rule",
]

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in (FULL, TORCHSTAT, FVCORE)}


def convention(name: str, rules: Rules = NO_RULES) -> Convention:
    """Return the convention called `name`, with the rules that users registered and `rules`.

    Raise UserError where there is none.
    """
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise UserError(
            f"unknown convention {name!r}; the conventions are {', '.join(CONVENTIONS)}."
            f"{close_matches(str(name), CONVENTIONS)}"
        )
    return with_rules(CONVENTIONS[name], rules)
