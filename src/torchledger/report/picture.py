"""Live bytes over the operations -> a picture: one area a category, the phases apart, the peak marked."""

from __future__ import annotations

import importlib
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchledger.errors import UserError, printable
from torchledger.record import Record
from torchledger.writing import check_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
# Okabe and Ito's colours, which people who see colours otherwise can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = {
    "parameters": "#0072B2",
    "buffers": "#56B4E9",
    "inputs": "#999999",
    "optimizer state": "#CC79A7",
    "gradients": "#D55E00",
    "saved activations": "#009E73",
    "recomputed activations": "#8FD3B6",
    "temporaries": "#F0E442",
    "outputs": "#E69F00",
    "kernel scratch": "#000000",
}
MOST_POINTS = 4000  # more would lie within one pixel


def draw(
    path: str | os.PathLike[str], record: Record, by_category: Mapping[str, Sequence[int]], peak: int, title: str
) -> None:
    """Draw bytes by category over the operations to a .png or .svg file. Raise UserError where that cannot be."""
    check_drawable(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    moments = len(record.entries) + 1
    chosen = _chosen(by_category, moments, peak)
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    areas = [[sizes[moment] for moment in chosen] for sizes in by_category.values()]
    if areas:
        colours = [COLOURS[name] for name in by_category]
        axes.stackplot(
            chosen,
            *areas,
            labels=list(by_category),
            colors=colours,
            step="post",
            linewidth=0,
        )
    top = sum(sizes[peak] for sizes in by_category.values())
    axes.plot([peak], [top], "k.", markersize=8)
    most = EngFormatter(unit="B", places=2)(top)
    axes.annotate(
        f"peak {most}",
        (peak, top),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
    )
    for start, phase in _phases(record):
        axes.axvline(start, color="black", linewidth=0.6, linestyle=":")
        axes.annotate(f" {phase}", (start, 1), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axes.set(xlim=(0, max(moments - 1, 1)), ylim=(0, 1.12 * top or 1), xlabel="operation", ylabel="bytes alive")
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_title(plain(title), fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, reverse=True)
    save(figure, path)


def check_drawable(path: str | os.PathLike[str]) -> str:
    """Return png or svg, as the name says. Raise UserError where that cannot be written, or matplotlib is missing."""
    target = check_writable(path)
    if target.suffix.lower() not in ENDINGS:
        raise UserError(f"cannot draw to {os.fspath(path)!r}: a picture ends in {' or '.join(ENDINGS)}")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'torchledger[plot]'") from error
    return target.suffix.lower()[1:]


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a .png or .svg file, whole or not at all."""
    import matplotlib

    kind = check_drawable(path)
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "torchledger"}):  # the same file for the same record
        figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    write_whole(path, drawn.getvalue())


def _chosen(by_category: Mapping[str, Sequence[int]], moments: int, peak: int) -> list[int]:
    """Return the moments that are drawn: all, or the highest of each stretch of a long run."""
    if moments <= MOST_POINTS:
        return list(range(moments))
    live = [sum(sizes) for sizes in zip(*by_category.values(), strict=True)] or [0] * moments
    edges = [place * moments // MOST_POINTS for place in range(MOST_POINTS + 1)]
    highest = (max(range(a, b), key=live.__getitem__) for a, b in itertools.pairwise(edges) if b > a)
    return sorted({0, *highest, peak, moments - 1})


def _phases(record: Record) -> list[tuple[int, str]]:
    """Return where each phase of a training step begins."""
    if record.step is None:
        return []
    starts: dict[str, int] = {}
    for place, phase in enumerate(record.entries.phases):
        starts.setdefault(phase, place)
    return [(place, phase) for phase, place in starts.items()]


def plain(title: str) -> str:
    """Return a title that matplotlib takes for text, also with what would be mathematics to it."""
    return printable(title).replace("$", r"\$")
