"""What a training step costs, phase by phase, and what freezing most of the network saves."""

from torch import nn

from torchledger import Ledger, analyze
from torchledger.models import build

STEP = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}


def show(name: str, ledger: Ledger) -> None:
    """Print the macs of each phase, and the flops of the optimizer, which multiplies no matrices."""
    forward, backward = (ledger.totals(phase=phase)["macs"] for phase in ("forward", "backward"))
    flops = ledger.totals(phase="optimizer")["flops"]
    print(f"{name:10} forward {forward:,} macs, backward {backward:,} macs, optimizer {flops:,} flops")


model: nn.Module = build("resnet18")
show("all", analyze(model, (3, 224, 224), batch=8, **STEP))

for name, parameter in model.named_parameters():
    parameter.requires_grad = name.startswith("fc.")
show("last layer", analyze(model, (3, 224, 224), batch=8, **STEP))
