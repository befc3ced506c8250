"""Models -> a picture: macs against parameters, a dot each, as large as its memory, with its name beside it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchledger.report.picture import check_drawable, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Of Okabe and Ito's colours those that stand out on white, each with a form of its own.
FORMS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#000000", "P"))
LARGEST = 900  # square points of the largest dot
SMALLEST = 12  # and of one that still shows
EQUAL = 60  # where all are of one size
APART = 20  # largest over smallest, from which an axis is logarithmic
LONGEST_NAME = 32
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Dot:
    """A model: parameters, macs, bytes at its peak (None: all dots are of one size), top-1 in percent, family."""

    name: str
    params: int
    macs: int
    peak: int | None = None
    top1: float | None = None
    family: str = ""

    @property
    def label(self) -> str:
        name = self.name if len(self.name) <= LONGEST_NAME else f"{self.name[:15]}…{self.name[-16:]}"
        return plain(name) + (f" ({self.top1:.1f}%)" if self.top1 is not None else "")


def draw(path: str | os.PathLike[str], dots: Sequence[Dot], title: str, size_title: str = "") -> None:
    """Draw dots to a .png or .svg file. Raise UserError where that cannot be. A family has a colour and a form."""
    check_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)  # which measures text
    axes = figure.subplots()
    sizes = _areas([dot.peak for dot in dots])
    families = list(dict.fromkeys(dot.family for dot in dots))
    for number, family in enumerate(families):
        colour, form = FORMS[number % len(FORMS)]
        own = [place for place, dot in enumerate(dots) if dot.family == family]
        axes.scatter(
            [dots[place].params for place in own],
            [dots[place].macs for place in own],
            s=[sizes[place] for place in own],
            c=colour, marker=form, alpha=0.65, edgecolors="black", linewidths=0.5, label=plain(family),
            gid=f"dots-{number}",
        )  # fmt: skip
    for axis, values in (("x", [dot.params for dot in dots]), ("y", [dot.macs for dot in dots])):
        _scale(axes, axis, values)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel="parameters", ylabel="macs")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(plain(title), fontsize=10)
    if len(families) > 1:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    elif any(dot.peak for dot in dots):
        _sizes_legend(axes, max(dot.peak or 0 for dot in dots), size_title)
    _name(figure, axes, dots, sizes)
    save(figure, path)


def is_logarithmic(values: Sequence[int]) -> bool:
    """Whether values lie so far apart that an axis of them is logarithmic."""
    return min(values) > 0 and max(values) / min(values) > APART


def _areas(peaks: Sequence[int | None]) -> list[float]:
    """Return the dots' areas in square points, in proportion to the bytes."""
    largest = max((peak or 0 for peak in peaks), default=0)
    return [EQUAL if peak is None or not largest else max(LARGEST * peak / largest, SMALLEST) for peak in peaks]


def _scale(axes: Axes, axis: str, values: Sequence[int]) -> None:
    """Take a logarithmic axis where values lie far apart, else one from 0; both with room for dots and names."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = min(values), max(values)
    logarithmic = is_logarithmic(values)
    set_limits = axes.set_xlim if axis == "x" else axes.set_ylim
    if logarithmic:
        (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
        room = (high / low) ** 0.12
        set_limits(low / room, high * room)
        ticks = axes.xaxis if axis == "x" else axes.yaxis
        ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ticks.set_minor_locator(NullLocator())
    else:
        set_limits(0, 1.2 * high or 1)


def _sizes_legend(axes: Axes, largest: int, title: str) -> None:
    """Say what the areas mean: the largest, and a quarter of it, to two digits."""
    from matplotlib.ticker import EngFormatter

    said = EngFormatter(unit="B", places=0)
    for share in (1, 4):
        size = largest / share
        step = 10 ** max(math.floor(math.log10(size)) - 1, 0)
        rounded = round(size / step) * step
        axes.scatter([], [], s=LARGEST * rounded / largest, c="#999999", alpha=0.65, label=said(rounded))
    axes.legend(
        title=title, fontsize=9, title_fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1, 1),
        labelspacing=2.4, borderpad=1.6, handletextpad=1.4,
    )  # fmt: skip


def _name(figure: Figure, axes: Axes, dots: Sequence[Dot], sizes: Sequence[float]) -> None:
    """Write each name beside its dot, at the side where it covers least."""
    figure.draw_without_rendering()  # the layout is final
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of the Agg canvas
    frame = axes.get_window_extent(renderer)
    points = DOTS_PER_INCH / 72
    taken: list[Bbox] = []
    centres = axes.transData.transform([(dot.params, dot.macs) for dot in dots])
    for (x, y), size in zip(centres, sizes, strict=True):
        radius = math.sqrt(size / math.pi) * points
        taken.append(_box(x - radius, y - radius, 2 * radius, 2 * radius))
    for dot, size in zip(dots, sizes, strict=True):
        text = axes.annotate(
            dot.label, (dot.params, dot.macs), xytext=(0, 0), textcoords="offset points", fontsize=8, va="center"
        )
        box = text.get_window_extent(renderer)
        text.remove()
        best: tuple[float, float, float, float, Bbox] | None = None
        radius = math.sqrt(size / math.pi)
        for ring, dx, dy in _offsets(radius + 3, box.width / points, box.height / points):
            there = box.translated(dx * points, dy * points)
            covered = sum(_overlap(there, other) for other in taken)
            covered += 10 * (there.width * there.height - _overlap(there, frame))
            if best is None or covered < best[0] - 1:
                best = covered, ring, dx, dy, there
            if not best[0]:
                break
        assert best is not None
        _, ring, dx, dy, there = best
        taken.append(there)
        axes.annotate(
            dot.label, (dot.params, dot.macs), xytext=(dx, dy), textcoords="offset points", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": radius} if ring > 1 else None,
        )  # fmt: skip


def _offsets(gap: float, width: float, height: float) -> list[tuple[float, float, float]]:
    """Return how far away, and by how many points a name's left edge is moved from the dot's centre; nearest first."""
    found = []
    for ring in (1.0, 1.8, 2.8):
        away = gap * ring
        over, aslant = away + height / 2, 0.75 * away  # straight above; and half to the side
        straight = [(away, 0.0), (-away - width, 0.0), (-width / 2, over), (-width / 2, -over)]
        corners = itertools.product((aslant, -aslant - width), (aslant + height / 2, -aslant - height / 2))
        found += [(ring, dx, dy) for dx, dy in (*straight, *corners)]
    return found


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x, y, width, height)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0
