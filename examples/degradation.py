"""A deep plain network and its residual twin, trained for a few steps on scikit-learn's digits.

They have the same parameters; only the shortcuts differ. benchmarks/degradation.py is the whole experiment.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from torchledger import analyze
from torchledger.models import build

LAYERS, STEPS, BATCH = 44, 40, 32

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # 1797 x 1 x 8 x 8
classes = torch.tensor(digits.target)
torch.set_num_threads(1)  # the maps are too small for more

for name in (f"plain{LAYERS}", f"resnet{LAYERS}"):
    torch.manual_seed(0)
    network = build(name, in_channels=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(network(images[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    params = analyze(network, (1, 8, 8)).totals()["params"]
    print(f"{name}: {params:,} params, training loss {losses[0]:.2f}, after {STEPS} steps {sum(losses[-5:]) / 5:.2f}")
