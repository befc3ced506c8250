"""Does a training step fit into a GPU that is not here? The peak, what is alive then, the batch that fits."""

from torchledger import analyze, fit
from torchledger.models import build

MODEL, SIZE, GPU = build("resnet18"), (3, 224, 224), "4GB"
STEP = {"training": True, "loss": "cross_entropy", "optimizer": "adamw"}

report = analyze(MODEL, SIZE, batch=32, **STEP).memory(device="cuda")
print(f"batch 32: peak {report.peak_bytes:,} bytes in {report.at}")
for category, size in report.alive.items():
    print(f"  {category:24} {size:14,}")

found = fit(MODEL, SIZE, memory=GPU, **STEP)
print(found)

half = fit(MODEL, SIZE, memory=GPU, autocast="cuda:bfloat16", **STEP)
print(f"under autocast, batch {half.batch} fits")
