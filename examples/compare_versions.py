"""Two versions of a model: what was added, removed and changed, layer by layer."""

from torch import nn

from torchledger import analyze, compare


def network(norm: bool) -> nn.Sequential:
    """Return a small network; the new version has batch norms in place of biases."""
    layers: list[tuple[str, nn.Module]] = []
    for number, (channels, features) in enumerate([(3, 32), (32, 64)], 1):
        layers.append((f"conv{number}", nn.Conv2d(channels, features, 3, padding=1, bias=not norm)))
        if norm:
            layers.append((f"norm{number}", nn.BatchNorm2d(features)))
        layers.append((f"relu{number}", nn.ReLU()))
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    return model


before, after = (analyze(network(norm), (3, 32, 32)) for norm in (False, True))
both = compare(before, after, names=["biases", "norms"])
print(both.table.to_text(100))
print(both.difference(by=["params", "flops", "activation_bytes"]).to_text(100))
