"""A Table as text, CSV, markdown, JSON or HTML: one file a format; each returns what it drew and prints nothing."""

from torchledger.report.csv import to_csv
from torchledger.report.json_ import cell_to_json, table_to_json
from torchledger.report.markdown import to_markdown
from torchledger.report.notebook import to_html
from torchledger.report.text import for_stream, to_text

__all__ = ["cell_to_json", "for_stream", "table_to_json", "to_csv", "to_html", "to_markdown", "to_text"]
