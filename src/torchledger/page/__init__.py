"""Ledgers as one HTML file: data.py and comparison.py say what is in it, document.py puts the file together."""

from torchledger.page.comparison import Difference, comparison_contents, comparison_title
from torchledger.page.data import ledger_contents
from torchledger.page.document import COMPARISON, LEDGER, check_libraries, document

__all__ = [
    "COMPARISON",
    "LEDGER",
    "Difference",
    "check_libraries",
    "comparison_contents",
    "comparison_title",
    "document",
    "ledger_contents",
]
