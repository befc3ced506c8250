"""A first table: what every layer of a model costs, and where a function outside of layers stands."""

import torch
from torch import Tensor, nn

from torchledger import stat


class Net(nn.Module):
    """Two branches that are joined by torch.cat, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, kernel_size=5, padding=2)
        self.narrow = nn.Conv2d(3, 16, kernel_size=1)
        self.classifier = nn.Linear(32 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Take N x 3 x 32 x 32, return N x 10."""
        x = torch.cat([self.wide(x), self.narrow(x)], dim=1).relu()
        return self.classifier(x.flatten(1))


ledger = stat(Net(), (3, 32, 32))  # prints the table; analyze() does not
totals = ledger.totals()
print(f"{totals['params']:,} params, {totals['macs']:,} macs, unknown: {ledger.unknown}")
