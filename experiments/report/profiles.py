"""IsoFLOP profiles: dense models of several sizes at one budget, and the parabola through them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from experiments.frontier import budget_key
from experiments.report.marks import LIGHT, Palette

Summary = Mapping[str, Any]
Point = Mapping[str, Any]

# A parabola through two points is any.
ENOUGH = 3


def draw_profiles(summary: Summary, palette: Palette = LIGHT) -> Figure:
    """Draw test loss over parameters, a curve a budget (Hoffmann et al. 2022, approach 2).

    The parabolas are drawn and nothing else: the frontier goes through the sizes measured, since the lowest point of a
    parabola is biased where sizes are far apart or lie to one side of the best.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        palette: colours of ink and paper.
    """
    figure = Figure(figsize=(7.2, 4.0), facecolor=palette.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = itertools.cycle(palette.arms)
    for (budget, points), color in zip(profiles(summary).items(), colors, strict=False):
        _draw(axes, budget, points, color, palette)
    _frame(axes, palette)
    return figure


def profiles(summary: Summary) -> dict[float, list[Point]]:
    """Dense points by budget, from the smallest to the largest model; those without a number of parameters left out."""
    found: dict[float, list[Point]] = {}
    for point in sorted(summary["dense"], key=lambda point: (point["budget"], point["width"])):
        if point["amounts"].get("params"):
            found.setdefault(point["budget"], []).append(point)
    return found


def parabola(points: Sequence[Point]) -> NDArray[np.float64] | None:
    """Coefficients of the parabola in the logarithm of parameters, highest power first, by least squares.

    Args:
        points: of one budget.

    Returns:
        ``None`` with fewer than three sizes.
    """
    sizes = np.log([point["amounts"]["params"] for point in points])
    if len(set(sizes)) < ENOUGH:
        return None
    return np.polyfit(sizes, [point["bits_per_byte"]["mean"] for point in points], 2)


def _draw(axes: Axes, budget: float, points: Sequence[Point], color: str, palette: Palette) -> None:
    sizes = [point["amounts"]["params"] for point in points]
    losses = [point["bits_per_byte"]["mean"] for point in points]
    if (fitted := parabola(points)) is not None:
        along = np.geomspace(min(sizes), max(sizes), 100)
        axes.plot(along, np.polyval(fitted, np.log(along)), color=color, linewidth=1.2, zorder=2)
    faces = [color if point["tuned"] else palette.paper for point in points]
    axes.scatter(sizes, losses, s=30, facecolors=faces, edgecolors=color, linewidths=1.3, zorder=3)
    for point, size, loss in zip(points, sizes, losses, strict=True):
        place = {"textcoords": "offset points", "xytext": (0, -12), "ha": "center"}
        axes.annotate(str(point["width"]), (size, loss), size=7.5, color=palette.soft, **place)
    last = int(np.argmax(sizes))
    axes.annotate(
        budget_key(budget),
        (sizes[last], losses[last]),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        size=9,
        color=color,
    )


def _frame(axes: Axes, palette: Palette) -> None:
    axes.set_xscale("log")
    axes.set_facecolor(palette.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.soft)
    axes.tick_params(colors=palette.soft, labelcolor=palette.ink, labelsize=9)
    axes.grid(axis="y", color=palette.faint, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.09, y=0.09)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:.2g} M"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "parameters of the dense model (log scale); its width below each point", color=palette.ink
    )
    axes.set_ylabel("bits per byte on test text", color=palette.ink)
