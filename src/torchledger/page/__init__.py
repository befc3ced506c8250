"""Ledgers as one HTML file: data.py and comparison.py say what is in it, document.py puts the file together."""

from torchledger.page import comparison
from torchledger.page.comparison import Difference
from torchledger.page.data import contents
from torchledger.page.document import COMPARISON, LEDGER, check_libraries, document

__all__ = ["COMPARISON", "LEDGER", "Difference", "check_libraries", "comparison", "contents", "document"]
