"""torchledger keeps the books of a PyTorch model: what every operation costs, without running it.

The names below are loaded on first use, so importing the package costs nothing and a saved ledger can be read
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchledger.api import analyze, assert_within, stat
    from torchledger.comparison import Comparison, compare
    from torchledger.errors import UserError
    from torchledger.ledger import ForwardError, Ledger
    from torchledger.memory_report import MemoryReport
    from torchledger.plan import Fit, fit, savings
    from torchledger.pricing.custom import register_rule
    from torchledger.pricing.rules import Rule
    from torchledger.tables import Table
    from torchledger.views import AtLeast

__version__ = "0.1.0"
__all__ = [
    "AtLeast",
    "Comparison",
    "Fit",
    "ForwardError",
    "Ledger",
    "MemoryReport",
    "Rule",
    "Table",
    "UserError",
    "__version__",
    "analyze",
    "assert_within",
    "compare",
    "fit",
    "register_rule",
    "savings",
    "stat",
]

_HOME = {
    "analyze": "torchledger.api",
    "assert_within": "torchledger.api",
    "stat": "torchledger.api",
    "Comparison": "torchledger.comparison",
    "compare": "torchledger.comparison",
    "Fit": "torchledger.plan",
    "fit": "torchledger.plan",
    "savings": "torchledger.plan",
    "UserError": "torchledger.errors",
    "AtLeast": "torchledger.views",
    "ForwardError": "torchledger.ledger",
    "Ledger": "torchledger.ledger",
    "MemoryReport": "torchledger.memory_report",
    "Table": "torchledger.tables",
    "Rule": "torchledger.pricing.rules",
    "register_rule": "torchledger.pricing.custom",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
