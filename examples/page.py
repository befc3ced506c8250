"""A page to look at: one HTML file that works offline. Needs torchledger[report]."""

from pathlib import Path

from torchledger import analyze
from torchledger.models import build

ledger = analyze(build("resnet18"), (3, 224, 224), batch=8, training=True, loss="cross_entropy", optimizer="adamw")
ledger.save_html("resnet18.html")
ledger.save("resnet18.json")  # the ledger itself: Ledger.load("resnet18.json").save_html(...) draws it again
print(f"Written: resnet18.html, {Path('resnet18.html').stat().st_size / 1e6:.0f} MB, and resnet18.json")
