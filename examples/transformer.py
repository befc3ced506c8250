"""A transformer block with functional attention: no layer computes it, and it is priced all the same."""

from torch import Tensor, nn
from torch.nn import functional as F

from torchledger import analyze

WIDTH, HEADS, LENGTH = 256, 4, 128


class Block(nn.Module):
    """Attention and an MLP, each with a norm before and a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Take and return N x length x WIDTH."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


ledger = analyze(Block(), (LENGTH, WIDTH))
print(ledger.by_operation().to_text(100))
rows = {row["operation"]: row["macs"] for row in ledger.by_operation().rows}
print(f"attention: {rows['scaled_dot_product_attention']:,} macs = 2 x {LENGTH} x {LENGTH} x {WIDTH}")
