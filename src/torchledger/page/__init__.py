"""A ledger as one HTML file: data.py says what is in it, folds.py what repeats, document.py puts the file together."""

from torchledger.page.data import contents
from torchledger.page.document import check_libraries, document

__all__ = ["check_libraries", "contents", "document"]
