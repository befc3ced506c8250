"""The memory of real runs, and how far torchledger's prediction is from it.

    python benchmarks/memory.py [NAME ...]                    # on the CPU: benchmarks/results/memory_cpu.csv
    python benchmarks/memory.py --device cuda [NAME ...]      # benchmarks/results/memory_<gpu>.json
    python benchmarks/memory.py resnet18 --modes adamw --dtypes bfloat16 --timeline FILE --step second

Each network of memory_nets.py runs inference, and two steps of training under each optimizer, in float32, in bfloat16
and in float32 under autocast to bfloat16: a process for each. A step is what one writes: forward, loss, backward,
`optimizer.step()`, `zero_grad()`; its locals (output and loss) live to its end. Inputs, targets, parameters, buffers
and what the optimizer keeps are there before.

On a CPU what counts is what is allocated under the profiler; what a kernel has for itself alone stands beside it (see
allocations.py). On a GPU it is `max_memory_allocated` and `max_memory_reserved`, at three batch sizes; cuBLAS's
workspace, which lies within both, is measured and printed beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from allocations import MODEL, Measured, measure, phase, stored
from memory_nets import LOSSES, NETWORKS, Inputs, Network

from torchledger.training import OPTIMIZERS

RESULTS = Path(__file__).parent / "results"
AUTOCAST = "autocast"  # parameters in float32, forward and loss under autocast to bfloat16
DTYPES = ("float32", "bfloat16", AUTOCAST)
MODES = ("inference", "sgd", "adamw")
STEPS = ("first", "second")
SCALES = (1, 4, 16)  # of a network's batch on a GPU
SECONDS = 600  # a case
MEDIAN_BAR, WORST_BAR = 0.003, 0.02
GPU_MEDIAN_BAR = 0.02
KEY = ("network", "dtype", "mode", "step", "batch")
COLUMNS = (
    *KEY,
    *("peak", "predicted", "apart", "scratch", "peak_with_scratch", "held", "after_model", "phase", "operation"),
    *("scratch_operation", "unaccounted", "seconds", "error", "date", "versions"),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What one process runs: a network at a batch size, inference or an optimizer, in a dtype, on a device."""

    network: str
    dtype: str
    mode: str
    batch: int
    device: str = "cpu"

    @property
    def steps(self) -> Sequence[str]:
        return STEPS[:1] if self.mode == "inference" else STEPS


def predicted(case: Case, step: str, model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Return what torchledger says of a step, in bytes: `peak`, and on a GPU `reserved`."""
    from torchledger import analyze

    cast = f"{case.device}:bfloat16" if case.dtype == AUTOCAST else None
    if case.mode == "inference":
        report = analyze(model, *inputs, autocast=cast).memory(case.device)
    else:
        loss = NETWORKS[case.network].loss
        ledger = analyze(model, *inputs, training=True, loss=loss, optimizer=case.mode, autocast=cast)
        report = ledger.memory(case.device, first_step=step == "first")
    if report.reserved_bytes is not None:
        return {"peak": report.peak_bytes, "reserved": report.reserved_bytes}
    own = report.timeline.get("kernel scratch", [0] * report.moments)  # measured apart
    return {"peak": max(live - scratch for live, scratch in zip(report.live, own, strict=True))}


# ---- one case, in a process of its own


@dataclass
class Prepared:
    """A case with all that lives before its first step. `optimizer` and `target` are None where there are none."""

    case: Case
    model: nn.Module
    inputs: Inputs
    target: Tensor | None
    optimizer: torch.optim.Optimizer | None

    @property
    def held(self) -> int:
        """The bytes of what there is between two steps."""
        state = self.optimizer.state.values() if self.optimizer is not None else ()
        return stored(
            self.model.parameters(),
            self.model.buffers(),
            self.inputs,
            () if self.target is None else (self.target,),
            (value for values in state for value in values.values() if isinstance(value, Tensor)),
        )

    def loss(self, output: Any) -> Tensor:
        loss = NETWORKS[self.case.network].loss
        return LOSSES[loss][1](output, self.target) if isinstance(loss, str) else loss(output)

    @property
    def cast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.dtype == AUTOCAST)

    def infer(self) -> None:
        with torch.no_grad(), phase("forward"), self.cast, phase(MODEL):
            output = self.model(*self.inputs)
        del output

    def train(self) -> None:
        with phase("forward"), self.cast:
            with phase(MODEL):
                output = self.model(*self.inputs)
            loss = self.loss(output)
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @property
    def step(self) -> Callable[[], None]:
        return self.infer if self.optimizer is None else self.train


def prepare(case: Case) -> Prepared:
    """Build the network of a case, its inputs, target and optimizer."""
    network: Network = NETWORKS[case.network]
    torch.manual_seed(0)
    dtype = torch.float32 if case.dtype == AUTOCAST else getattr(torch, case.dtype)
    model = network.build().to(case.device, dtype)
    inputs = tuple(
        x.to(case.device, dtype) if x.is_floating_point() else x.to(case.device) for x in network.inputs(case.batch)
    )
    if case.mode == "inference":
        return Prepared(case, model.eval(), inputs, None, None)
    target = None
    if isinstance(network.loss, str):
        with torch.no_grad():
            target = LOSSES[network.loss][0](model.eval()(*inputs))
    return Prepared(case, model.train(), inputs, target, OPTIMIZERS[case.mode](list(model.parameters())))


def with_prediction(row: Row, prepared: Prepared, step: str) -> Row:
    """Add what is predicted and how far it is from what was measured, where it can be told."""
    try:
        said = predicted(prepared.case, step, prepared.model, prepared.inputs)
    except Exception as error:  # what was measured stays
        return row | {"error": f"prediction: {described(error)}"}
    row |= {"predicted": said["peak"], "apart": said["peak"] / row["peak"] - 1}
    if "reserved" in said:
        row |= {"predicted_reserved": said["reserved"], "reserved_apart": said["reserved"] / row["reserved"] - 1}
    return row


def described(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def run_profiled(case: Case, steps: Sequence[str] = STEPS) -> Iterable[tuple[Row, Measured]]:
    """Run the steps of a case under the profiler, and yield those asked for: a row and the whole measurement."""
    torch.set_num_threads(1)
    # nn.TransformerEncoderLayer's inference is one fused kernel else, which needs less than the ledger's operations.
    torch.backends.mha.set_fastpath_enabled(False)
    prepared = prepare(case)
    for step in case.steps:
        started = time.perf_counter()
        measured = measure(prepared.step, prepared.held, case.device)
        row = {
            "step": step,
            "peak": measured.peak,
            "scratch": measured.scratch,
            "peak_with_scratch": measured.peak_with_scratch,
            "held": measured.held,
            "after_model": measured.after_model,
            "phase": measured.phase,
            "operation": measured.operation,
            "scratch_operation": measured.scratch_operation,
            # Live at the end beyond what is known to last: nothing, or the books are wrong.
            "unaccounted": measured.final - prepared.held,
            "seconds": round(time.perf_counter() - started, 1),
        }
        if step in steps:
            yield with_prediction(row, prepared, step), measured


def run_on_gpu(case: Case) -> Iterable[Row]:
    """Run the steps of a case and yield a row for each; then once more under the profiler, for the scratch space."""
    cuda = torch.cuda
    prepared = prepare(case)
    rows = []
    for step in case.steps:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        held = cuda.memory_allocated()
        prepared.step()
        cuda.synchronize()
        rows.append(
            {
                "step": step,
                "peak": cuda.max_memory_allocated(),
                "reserved": cuda.max_memory_reserved(),
                "held": held,
                "held_by_tensors": prepared.held,
            }
        )
    profiled = profiled_on_gpu(prepared) | {"cublas_workspace": cublas_workspace()}
    for row in rows:
        yield with_prediction(row | profiled, prepared, row["step"])


def profiled_on_gpu(prepared: Prepared) -> Row:
    """Run a last step under the profiler; what the allocator says of the others holds without it."""
    try:
        measured = measure(prepared.step, torch.cuda.memory_allocated(), "cuda")
    except Exception as error:
        return {"profile": described(error)}
    return {
        "scratch": measured.scratch,
        "scratch_operation": measured.scratch_operation,
        "last_peak": measured.peak,
        "last_peak_with_scratch": measured.peak_with_scratch,
        "last_after_model": measured.after_model,
        "phase": measured.phase,
        "operation": measured.operation,
    }


def cublas_workspace() -> int:
    """Return the bytes that cuBLAS's handles keep for themselves, by giving them back."""
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return before - torch.cuda.memory_allocated()


def work(case: Case, results: Connection) -> None:
    """Send the rows of a case, or what went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the profiler's messages, and warnings
    try:
        results.send(list(run_on_gpu(case) if case.device == "cuda" else (row for row, _ in run_profiled(case))))
    except Exception as error:
        results.send(described(error))


# ---- all cases


def isolated(case: Case, context: Any) -> list[Row]:
    """Run a case in a process of its own; one that fails or takes too long gives one row that says so."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(case, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(SECONDS) else f"no result after {SECONDS} s"
    except EOFError:
        process.join()
        answer = f"the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    common = {"network": case.network, "dtype": case.dtype, "mode": case.mode, "batch": case.batch}
    versions = {"date": str(date.today()), "versions": f"torch {torch.__version__}"}
    rows = [{"error": answer}] if isinstance(answer, str) else answer
    return [common | row | versions for row in rows]


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return what is to run, small batches first."""
    scales = SCALES if arguments.device == "cuda" else (1,)
    return [
        Case(name, dtype, mode, NETWORKS[name].batch * scale, arguments.device)
        for name in arguments.names or NETWORKS
        for dtype in arguments.dtypes
        if arguments.device == "cuda" or dtype in NETWORKS[name].on_cpu
        for mode in arguments.modes
        for scale in scales
    ]


def key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(column, "")) for column in KEY)


def read(path: Path) -> list[Row]:
    """Return the rows of a file of results, if there is one."""
    if not path.exists():
        return []
    if path.suffix == ".json":
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return rows
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace a file of results at once, so that a run that is broken off leaves what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    if path.suffix == ".json":
        new.write_text(json.dumps(surroundings() | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    else:
        with new.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    new.replace(path)


def surroundings() -> dict[str, Any]:
    """Return what the figures of a GPU hang on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }


def shown(row: Row) -> str:
    """Return a row as one line of text."""
    name = f"{row['network']:<20}{row['dtype']:<10}{row['mode']:<10}{row.get('step', ''):<7}{row['batch']:>6}"
    if row.get("error"):
        return f"{name}  {row['error']}"
    said = f"{row['apart']:>+9.2%}" if row.get("apart") not in (None, "") else f"{'':>9}"
    peak, scratch = (float(row.get(column) or 0) / 1e6 for column in ("peak", "scratch"))
    return f"{name}{peak:>10.2f} MB{said}{scratch:>10.2f} MB  {row.get('phase')}: {row.get('operation')}"


def summary(rows: Sequence[Row], median_bar: float, worst_bar: float | None) -> tuple[str, bool]:
    """Return how far predictions are from what was measured, and whether that is within the bars."""
    failed = [row for row in rows if row.get("error") and not row["error"].startswith("OutOfMemoryError")]
    apart = [(abs(float(row["apart"])), row) for row in rows if row.get("apart") not in (None, "")]
    text = f"{len(rows)} cases of {len({row['network'] for row in rows})} networks, {len(failed)} failed"
    if not apart:
        return f"{text}; nothing predicted", not failed
    median = statistics.median(value for value, _ in apart)
    worst, where = max(apart, key=lambda pair: pair[0])
    text += f"; median error {median:.2%}, worst {worst:.2%} ({' '.join(key(where))})"
    held = median <= median_bar and (worst_bar is None or worst <= worst_bar)
    return text, held and not failed


def write_timeline(path: Path, measured: Measured) -> None:
    """Write a line for each call: what is live before it, at most during it and after it, and its scratch."""
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("phase", "operation", "part_of", "node", "before", "most", "after", "change", "scratch"))
        for moment in measured.moments:
            call = moment.call
            named = (call.phase, call.name, call.part_of, call.node) if call is not None else ("", "", "", "")
            change = moment.after - moment.before
            writer.writerow((*named, moment.before, moment.most, moment.after, change, moment.scratch))


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks of memory_nets.py (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--output", type=Path, help="where results go (default: in benchmarks/results)")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write one case, operation by operation")
    parser.add_argument("--step", choices=STEPS, default=STEPS[0], help="which step --timeline writes")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.names if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown network {', '.join(unknown)}; the networks are {', '.join(NETWORKS)}")
    if arguments.timeline and not len(arguments.names) == len(arguments.dtypes) == len(arguments.modes) == 1:
        parser.error("--timeline writes one case: give one NAME, one of --dtypes and one of --modes")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is there")
    return arguments


def main() -> None:
    """Run what is asked for, renew its rows of the results, and exit with 1 where a bar is missed."""
    arguments = parsed()
    if arguments.timeline:
        case = cases(arguments)[0]
        for row, measured in run_profiled(case, (arguments.step,)):
            write_timeline(arguments.timeline, measured)
            print(shown({"network": case.network, "dtype": case.dtype, "mode": case.mode, "batch": case.batch} | row))
        return
    on_gpu = arguments.device == "cuda"
    gpu = re.sub(r"\W+", "_", torch.cuda.get_device_name(0)).lower() if on_gpu else ""
    path = arguments.output or RESULTS / (f"memory_{gpu}.json" if on_gpu else "memory_cpu.csv")
    # A copy of this process has torch imported already; but CUDA does not outlive being copied.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" and not on_gpu else "spawn")
    rows = {key(row): row for row in read(path)}
    for case in cases(arguments):
        names = (case.network, case.dtype, case.mode)
        # On a CPU a network has one batch size: rows of another are of an earlier choice.
        for old in [k for k in rows if k[:3] == names and (not on_gpu or k[4] == str(case.batch))]:
            del rows[old]
        for row in isolated(case, context):
            rows[key(row)] = row
            print(shown(row), flush=True)
        write(path, list(rows.values()))
    text, held = summary(list(rows.values()), GPU_MEDIAN_BAR if on_gpu else MEDIAN_BAR, None if on_gpu else WORST_BAR)
    print(f"{path}: {text}")
    sys.exit(not held)


if __name__ == "__main__":
    main()
