"""The conventions, by name."""

from __future__ import annotations

from torchledger.errors import UserError, close_matches
from torchledger.pricing.convention import Convention
from torchledger.pricing.full import FULL
from torchledger.pricing.fvcore import FVCORE
from torchledger.pricing.torchstat import TORCHSTAT

__all__ = ["CONVENTIONS", "FULL", "FVCORE", "TORCHSTAT", "convention"]

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in (FULL, TORCHSTAT, FVCORE)}


def convention(name: str) -> Convention:
    """Return the convention called `name`. Raise UserError where there is none."""
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise UserError(
            f"unknown convention {name!r}; the conventions are {', '.join(CONVENTIONS)}."
            f"{close_matches(str(name), CONVENTIONS)}"
        )
    return CONVENTIONS[name]
