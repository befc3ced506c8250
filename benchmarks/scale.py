"""How an analysis grows and what it costs once: training steps, Llama 405B, long chains, start-up, memory.

    benchmarks/scale.py                     what has no figures of these versions yet
    benchmarks/scale.py --part llama        one part, anew

Each part has a fresh process with one thread. An analysis is `analyze(...).by_layer()`, timed as in speed.py. Results
go to results/scale.json, which `make docs` puts into docs/performance.md (speed_page.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import resident

HERE = Path(__file__).parent
Figures = dict[str, Any]
ROUNDS = 5


def ratios(bare: Callable[[], object], analysis: Callable[[], object]) -> Figures:
    """Return the milliseconds of the bare run, and the analysis over it, cold and warm."""
    import speed

    for warm_up in (bare, analysis, bare):
        warm_up()
    forward, cold, warm = map(statistics.median, speed.timed(bare, analysis, speed.emptied))
    return {"bare_ms": round(1e3 * forward, 3), "cold": round(cold / forward, 4), "warm": round(warm / forward, 4)}


def training() -> Figures:
    """Measure training steps of batch 1."""
    import peer_cases
    import torch

    from torchledger import analyze

    peer_cases.import_torchvision()
    from torchvision import models

    found: Figures = {}
    for name in ("resnet50", "vit_b_16"):
        with torch.device("meta"):
            model = models.get_model(name).train()
            x, target = torch.empty(1, 3, 224, 224), torch.empty(1, dtype=torch.int64)
        optimizer = torch.optim.AdamW(model.parameters())

        def step(model: Any = model, x: Any = x, target: Any = target, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()

        with torch.device("meta"):
            other = models.get_model(name)  # without the gradients of the bare steps

        def analysis(model: Any = other) -> Any:
            ledger = analyze(model, (3, 224, 224), training=True, loss="cross_entropy", optimizer="adamw")
            ledger.by_layer()
            return ledger

        found[name] = {"operations": analysis().totals()["operations"], **ratios(step, analysis)}
    return found


def build_llama() -> Any:
    """Build Llama 3.1 405B on meta, with the sizes of its config (arXiv:2407.21783, table 3)."""
    import torch

    from torchledger.sources.libraries import complete_torchvision

    complete_torchvision()  # transformers imports it
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval()


PROMPT = 2048  # tokens


def analyzed_llama(model: Any) -> Any:
    from torchledger import analyze

    ledger = analyze(model, (PROMPT,), input_dtype="int64")
    ledger.by_layer()
    return ledger


def llama() -> Figures:
    """Measure the forward of a prompt."""
    import torch

    model = build_llama()
    ids = torch.empty(1, PROMPT, dtype=torch.int64, device="meta")

    def bare() -> None:
        with torch.no_grad():
            model(ids)

    ledger = analyzed_llama(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama.json"
        ledger.save(path)
        size = path.stat().st_size
    totals = ledger.totals()
    del ledger
    found = ratios(bare, lambda: analyzed_llama(model))
    return {"params": totals["params"], "operations": totals["operations"], "json_bytes": size, **found}


def llama_memory() -> Figures:
    """Measure what a process holds that does nothing but one analysis."""
    model = build_llama()
    resident_before = held()
    analyzed_llama(model)
    return {"before_mb": resident_before, "peak_mb": round(resident.peak(), 1)}


def held() -> float:
    """Return the MB that the process holds now, from where the peak begins anew."""
    resident.forget_peak()
    return round(resident.peak(), 1)


def vgg16_memory() -> Figures:
    """Measure what an analysis adds to a process with a model on a CPU."""
    import peer_cases

    peer_cases.import_torchvision()
    from torchvision import models

    model = models.vgg16().eval()
    before = held()
    from torchledger import analyze

    analyze(model, (3, 224, 224)).by_layer()
    return {"before_mb": before, "added_mb": round(resident.peak() - before, 1)}


SIZES = (1_000, 10_000, 100_000)


def chain_of_functions(size: int) -> Any:
    import torch

    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(size // 2):
                x = torch.relu(x + 1)
            return x

    return Chain()


def chain_of_layers(size: int) -> Any:
    import torch

    return torch.nn.Sequential(*(torch.nn.ReLU() if at % 2 else torch.nn.LayerNorm(8) for at in range(size)))


def growth() -> Figures:
    """Measure the time an operation in longer and longer chains, all sizes in turns."""
    import torch

    from torchledger import analyze

    chains = {}
    for name, make in (("functions", chain_of_functions), ("layers", chain_of_layers)):
        with torch.device("meta"):
            models = {size: make(size) for size in SIZES}
        counts = {size: analyze(model, (8,)).totals()["operations"] for size, model in models.items()}
        assert list(counts.values()) == list(SIZES), counts
        times: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
        gc.disable()
        for _ in range(ROUNDS):
            for size, model in models.items():
                runs = max(1, SIZES[1] // size)
                gc.collect()
                found = [parts(model) for _ in range(runs)]
                times[size].append((sum(first for first, _ in found) / runs, sum(last for _, last in found) / runs))
        gc.enable()
        whole = {size: statistics.median(map(sum, found)) for size, found in times.items()}
        chains[name] = {
            str(size): {
                "ms": round(1e3 * whole[size], 2),
                "table_ms": round(1e3 * statistics.median(table for _, table in times[size]), 2),
                "relative": round(whole[size] / size / (whole[SIZES[0]] / SIZES[0]), 3),
            }
            for size in SIZES
        }
    return {"chains": chains}


def parts(model: Any) -> tuple[float, float]:
    """Return the seconds of an analysis without its table, and those of the table."""
    from torchledger import analyze

    started = time.perf_counter()
    ledger = analyze(model, (8,))
    captured = time.perf_counter()
    ledger.by_layer()
    return captured - started, time.perf_counter() - captured


TORCH = "import torch"
ANALYSIS = """\
import torch
from torch import nn
from torchledger import analyze
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
analyze(net, (3, 32, 32)).by_layer()
"""
TURNS = 11


def start() -> Figures:
    """Measure whole processes: with torch alone, and with an analysis."""

    def took(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    took(TORCH), took(ANALYSIS)  # files are read into the system's cache
    turns = [(took(TORCH), took(ANALYSIS)) for _ in range(TURNS)]
    return {
        "torch_s": round(statistics.median(alone for alone, _ in turns), 3),
        "beyond_s": round(statistics.median(both - alone for alone, both in turns), 3),
        "rounds": TURNS,
    }


PARTS: dict[str, tuple[Callable[[], Figures], tuple[str, ...]]] = {
    "training": (training, ("torchvision",)),
    "llama": (llama, ("transformers",)),
    "llama-memory": (llama_memory, ("transformers",)),
    "growth": (growth, ()),
    "start": (start, ()),
    "vgg16-memory": (vgg16_memory, ("torchvision",)),
}


def alone(part: str) -> None:
    """Run a part in this process, and print its figures as JSON."""
    if part != "start":  # which imports nothing itself
        import torch

        torch.set_num_threads(1)
    print(json.dumps(PARTS[part][0]()))


def machine() -> str:
    """Return what the processor calls itself."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Run the parts that are asked for, or those without figures of these versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one, anew (repeatable)")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where results go  (default: in results/)")
    args = parser.parse_args()
    if args.alone:
        alone(args.alone)
        return
    from peers import stamped, write_text
    from speed_page import SCALE, bars

    path = args.output or SCALE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "src")}
    for part, (_, libraries) in PARTS.items():
        versions = stamped(("torch", *libraries, "torchledger"), [HERE / "scale.py", HERE / "speed.py"])
        if part not in args.part if args.part else found.get(part, {}).get("versions") == versions:
            continue
        print(part, file=sys.stderr)
        command = [sys.executable, str(HERE / "scale.py"), "--alone", part]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        stamp = {"date": date.today().isoformat(), "machine": machine(), "versions": versions}
        found[part] = json.loads(done.stdout.splitlines()[-1]) | stamp
        write_text(path, json.dumps({name: found[name] for name in PARTS if name in found}, indent=1) + "\n")
    missed = [bar for bar in bars([], found) if bar.missed]
    print("\n".join(f"{bar.text}: {bar.said}" for bar in bars([], found) if bar.value is not None))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
