"""An operation of a library of your own: unknown until a rule says what it costs."""

import torch
from torch import Tensor, nn

from torchledger import analyze


@torch.library.custom_op("example::scaled_product", mutates_args=())
def scaled_product(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Stand for a kernel of your own."""
    return x @ weight.T * scale


@scaled_product.register_fake
def _(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class Layer(nn.Linear):
    """A linear layer that calls it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.example.scaled_product(x, self.weight, 0.5)


def price(operation):  # sees shapes and dtypes, never values
    macs = operation.tensor("x").elements * operation.tensor("weight").shape[0]
    return {"macs": macs, "flops": 2 * macs + operation.outputs[0].tensor.elements}


print("without a rule:", analyze(Layer(64, 32, bias=False), (64,), batch=8).unknown)
ledger = analyze(Layer(64, 32, bias=False), (64,), batch=8, rules={"example::scaled_product": price})
print("with one:", ledger.unknown, ledger.totals()["macs"], "macs", ledger.totals()["flops"], "flops")
