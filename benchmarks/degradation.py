"""Do deeper plain networks get worse on their own training set, and do shortcuts cure it?

    python benchmarks/degradation.py                     # digits of scikit-learn, minutes on two cores
    python benchmarks/degradation.py --data DIR          # CIFAR-10, the python version, unpacked in DIR
    python benchmarks/degradation.py --device cuda       # there, in place of the CPU

Trains plain and residual twins (He et al. 2016, arXiv:1512.03385, figure 6) and writes degradation.csv, one row an
epoch, and degradation.svg, the curves of the training error. Needs `pip install scikit-learn matplotlib`.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import torch
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor
from torch.nn import functional as F

from torchledger.errors import UserError
from torchledger.models.resnet import CifarResNet
from torchledger.writing import check_writable, write_whole

KINDS = {True: "resnet", False: "plain"}
SPLIT_SEED = 0  # of the digits that are held out: the same for every run


@dataclass(frozen=True)
class Row:
    """Hold the errors, in percent, of one network with one seed after one epoch.

    The training error is that of the epoch's own batches, in train mode and before each step; the test error that of
    held-out images in eval mode.
    """

    network: str
    layers: int
    shortcuts: bool
    seed: int
    epoch: int
    training_error: float
    test_error: float


@dataclass(frozen=True)
class Data:
    """Hold images, N x channels x height x width, and their classes; mean 0, deviation 1 over all training images."""

    name: str
    images: Tensor
    classes: Tensor
    test_images: Tensor
    test_classes: Tensor

    def on(self, device: str) -> Data:
        """Return the same on a device."""
        tensors = (self.images, self.classes, self.test_images, self.test_classes)
        return Data(self.name, *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class Settings:
    """Hold what a run is made with."""

    epochs: int
    batch: int
    rate: float
    data: str | None
    samples: int | None
    device: str = "cpu"


# ---- data


def load(folder: str | None, samples: int | None) -> Data:
    """Return CIFAR-10 from `folder`, or the digits that scikit-learn carries; `samples` keeps the first ones alone."""
    data = digits() if folder is None else cifar(Path(folder))
    if samples is None:
        return data
    return Data(data.name, data.images[:samples], data.classes[:samples], data.test_images, data.test_classes)


def digits() -> Data:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels; a fifth of each class is held out."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError("the digits come with scikit-learn: pip install scikit-learn, or give --data DIR") from error
    found = load_digits()
    parts = train_test_split(found.images, found.target, test_size=0.2, random_state=SPLIT_SEED, stratify=found.target)
    images, test_images = (torch.tensor(part, dtype=torch.float32).unsqueeze(1) for part in parts[:2])
    return _normalised("digits", images, torch.tensor(parts[2]), test_images, torch.tensor(parts[3]))


class _Arrays(pickle.Unpickler):
    """Read what CIFAR-10's files are made of, and nothing that could run code."""

    ALLOWED = frozenset(("_reconstruct", "ndarray", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        # The second is how Python 3 writes bytes for Python 2, in which the published files were written.
        if (module.split(".")[0] == "numpy" and name in self.ALLOWED) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of CIFAR-10")


def cifar(folder: Path) -> Data:
    """Return CIFAR-10's 50,000 and 10,000 images of 3 x 32 x 32, without augmentation."""
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    batches = [_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    test_images, test_classes = _batch(folder / "test_batch")
    images, classes = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return _normalised("CIFAR-10", images, classes, test_images, test_classes)


def _batch(file: Path) -> tuple[Tensor, Tensor]:
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}: --data takes the folder of CIFAR-10's python version, unpacked")
    try:
        with file.open("rb") as opened:
            content = _Arrays(opened, encoding="bytes").load()
        images = torch.tensor(content[b"data"]).reshape(-1, 3, 32, 32).float()
        classes = torch.tensor(content[b"labels"])
        if classes.shape != images.shape[:1] or not bool(((classes >= 0) & (classes < 10)).all()):
            raise ValueError(f"{len(images)} images want as many labels from 0 to 9")
        return images, classes
    except Exception as error:  # whatever a damaged pickle leads to
        raise UserError(f"{str(file)!r} is no batch of CIFAR-10: {error}") from error


def _normalised(name: str, images: Tensor, classes: Tensor, test_images: Tensor, test_classes: Tensor) -> Data:
    """Bring each channel to mean 0 and deviation 1 over the training images."""
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True)
    if not bool((deviation > 0).all()):
        raise UserError(f"the training images of {name} hold a channel that is the same everywhere: nothing to learn")
    return Data(name, (images - mean) / deviation, classes, (test_images - mean) / deviation, test_classes)


# ---- training


def train(layers: int, shortcuts: bool, seed: int, settings: Settings) -> list[Row]:
    """Train one network; return a row an epoch. SGD with momentum; a tenth of the rate at 1/2 and 3/4 of the epochs.

    A loss that is no number any more raises `UserError`.
    """
    torch.set_num_threads(1)  # two threads gain nothing on maps this small; two processes do
    name = f"{KINDS[shortcuts]}{layers}"
    data = load(settings.data, settings.samples).on(settings.device)
    torch.manual_seed(seed)
    network = CifarResNet(layers, shortcuts, num_classes=10, in_channels=data.images.shape[1]).to(settings.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.rate, momentum=0.9, weight_decay=1e-4)
    milestones = sorted({settings.epochs // 2, settings.epochs * 3 // 4} - {0})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    rows = []
    for epoch in range(1, settings.epochs + 1):
        network.train()
        wrong = seen = 0
        for chosen in torch.randperm(len(data.images)).split(settings.batch):
            if len(chosen) == 1:
                continue  # a single image has no statistics
            logits, classes = network(data.images[chosen]), data.classes[chosen]
            optimizer.zero_grad()
            loss = F.cross_entropy(logits, classes)
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"the loss of {name}, seed {seed}, is {loss.item()} in epoch {epoch}: --rate {settings.rate} is too"
                    f" high for it"
                )
            loss.backward()
            optimizer.step()
            wrong += int((logits.argmax(1) != classes).sum())
            seen += len(chosen)
        schedule.step()
        network.eval()
        with torch.no_grad():
            missed = sum(
                int((network(images).argmax(1) != classes).sum())
                for images, classes in zip(data.test_images.split(512), data.test_classes.split(512), strict=True)
            )
        errors = round(100 * wrong / seen, 3), round(100 * missed / len(data.test_images), 3)
        rows.append(Row(name, layers, shortcuts, seed, epoch, *errors))
        if EPOCHS_DONE is not None:
            with EPOCHS_DONE.get_lock():
                EPOCHS_DONE.value += 1
    return rows


EPOCHS_DONE: Any = None  # in a worker: how many epochs all of them together have done


def as_worker(epochs_done: Any) -> None:
    """Share the count of epochs; leave Control-C, which reaches the workers too, to the process that ends them."""
    global EPOCHS_DONE
    EPOCHS_DONE = epochs_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def train_all(layers: Sequence[int], seeds: int, workers: int, settings: Settings) -> list[Row]:
    """Train every network with every seed, `workers` at a time; return the rows in order."""
    jobs = [(depth, shortcuts, seed) for depth in layers for shortcuts in KINDS for seed in range(seeds)]
    jobs.sort(reverse=True)  # the deep ones first, so that no worker is left waiting for one
    rows: list[Row] = []
    workers = min(workers, len(jobs))
    # A process that was forked cannot use CUDA, and one that starts anew takes seconds to.
    context = multiprocessing.get_context(None if settings.device == "cpu" else "spawn")
    epochs_done = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, as_worker, (epochs_done,))
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress, pool:
        task = progress.add_task("epochs", total=len(jobs) * settings.epochs)
        futures = [pool.submit(train, *job, settings) for job in jobs]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    rows += future.result()
                progress.update(task, completed=epochs_done.value)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # or a stopped run would go on for the minutes that a network takes
            raise
    return sorted(rows, key=lambda row: (row.shortcuts, row.layers, row.seed, row.epoch))


# ---- results


def to_csv(rows: Iterable[Row]) -> str:
    """Return the rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def from_csv(lines: Iterable[str]) -> list[Row]:
    """Return the rows of a CSV that `to_csv` made."""
    return [
        Row(
            found["network"],
            int(found["layers"]),
            found["shortcuts"] == "True",
            int(found["seed"]),
            int(found["epoch"]),
            float(found["training_error"]),
            float(found["test_error"]),
        )
        for found in csv.DictReader(lines)
    ]


def table(rows: Sequence[Row]) -> str:
    """Return the errors after the last epoch as a markdown table: the mean over seeds, lowest and highest."""
    last = max(row.epoch for row in rows)
    lines = ["| network | training error | test error |", "| --- | ---: | ---: |"]
    for network in dict.fromkeys(row.network for row in rows):
        ends = [row for row in rows if row.network == network and row.epoch == last]
        cells = [_spread([row.training_error for row in ends]), _spread([row.test_error for row in ends])]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} % ({min(values):.2f} to {max(values):.2f})"


def title(data: Data, seeds: int) -> str:
    """Return what stands above the picture."""
    return f"{data.name}, {len(data.images):,} images, {seeds} seeds: mean, lowest to highest"


def draw(rows: Sequence[Row], title: str) -> str:
    """Return the curves of the training error as SVG: the mean over seeds as a line, lowest to highest as a band."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the picture needs matplotlib: pip install matplotlib") from error
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = {"plain": "#d55e00", "resnet": "#0072b2"}  # told apart by the colour-blind too (Okabe, Ito)
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        deepest = own[0].layers == max(row.layers for row in rows)
        epochs = sorted({row.epoch for row in own})
        errors = [[row.training_error for row in own if row.epoch == epoch] for epoch in epochs]
        colour = colours[KINDS[own[0].shortcuts]]
        means = [sum(values) / len(values) for values in errors]
        axes.plot(epochs, means, color=colour, linestyle="-" if deepest else "--", label=network)
        axes.fill_between(epochs, list(map(min, errors)), list(map(max, errors)), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="training error (%)", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    text: IO[str] = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "degradation"}):  # the same picture for the same rows
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


# ---- the command


def positive(text: str) -> int:
    """Read a whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return number


positive.__name__ = "whole number"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train plain and residual twins; show who learns the training set.")
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10, the python version, unpacked (default: digits)")
    parser.add_argument("--layers", type=positive, nargs="+", default=[20, 56], help="6n + 2 each (default: 20 56)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each network (default: 3)")
    parser.add_argument("--epochs", type=positive, default=80, help="(default: 80)")
    parser.add_argument("--batch", type=positive, default=128, help="images a step (default: 128)")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate (default: 0.05)")
    parser.add_argument("--samples", type=positive, help="train on the first so many images alone")
    parser.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("--output", metavar="DIR", default=".", help="where degradation.csv and .svg go (default: .)")
    return parser.parse_args(arguments)


def check_device(name: str) -> None:
    """Raise `UserError` where torch cannot compute on the device `name`."""
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        if torch.device(name).type == "meta":  # which takes everything, and computes nothing
            raise ValueError("meta")
        torch.ones(1, device=name).sum().item()
    except Exception as error:  # each backend raises what it likes
        raise UserError(f"--device is {name!r}, which torch cannot use here; there is {', '.join(here)}") from error


def run(arguments: Sequence[str] | None) -> None:
    """Train, write the files, print the table. All that can be wrong is looked at first."""
    options = parse(arguments)
    if not 0 < options.rate < float("inf"):
        raise UserError(f"--rate is {options.rate}, expected a number above 0")
    for name in ("batch", "samples"):
        if getattr(options, name) == 1:
            raise UserError(f"--{name} is 1, expected 2 or more: a single image has no statistics to train with")
    for depth in options.layers:
        if options.layers.count(depth) > 1:
            raise UserError(f"--layers has {depth} more than once")
    check_device(options.device)
    settings = Settings(options.epochs, options.batch, options.rate, options.data, options.samples, options.device)
    data = load(settings.data, settings.samples)
    for depth in options.layers:
        with torch.device("meta"):
            CifarResNet(depth, True)
    draw([Row("plain8", 8, False, 0, 1, 0.0, 0.0)], "")  # matplotlib is there
    paths = [os.path.join(options.output, f"degradation.{kind}") for kind in ("csv", "svg")]
    for path in paths:
        check_writable(path)
    try:  # a folder may be there and take no file, which is better said now than after the training
        with tempfile.TemporaryFile(dir=options.output):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {options.output!r}: {error.strerror}") from error
    rows = train_all(options.layers, options.seeds, options.workers, settings)
    for path, text in zip(paths, (to_csv(rows), draw(rows, title(data, options.seeds))), strict=True):
        write_whole(path, text)
    print(table(rows))
    print(f"Written: {' and '.join(paths)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    try:
        run(arguments)
    except UserError as error:
        print(f"degradation: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("degradation: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Control-C does, workers and all
    sys.exit(main())
