"""Multipliers with their intervals, one small panel an axis, one line an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.report.marks import SHAPES, Mark, Palette


def draw_multipliers(
    panels: Sequence[Axes],
    axes: Mapping[str, str],
    summary: Mapping[str, Any],
    chosen: Sequence[Mark],
    palette: Palette,
) -> None:
    """Fill one panel an axis.

    Args:
        panels: as many as there are axes, from left to right.
        axes: the axes and their names.
        summary: of a study.
        chosen: the arms, from top to bottom.
        palette: colours of ink and paper.
    """
    places, limits = _places(chosen), multiplier_range(summary, chosen)
    budgets = sorted({budget for mark in chosen for budget in summary["arms"][mark.name]}, key=float)
    for panel, (axis, words) in zip(panels, axes.items(), strict=True):
        for mark in chosen:
            for budget, entry in summary["arms"][mark.name].items():
                if axis not in entry:
                    continue
                rank = budgets.index(budget) - (len(budgets) - 1) / 2
                pale = budget != budgets[-1]
                _draw(panel, entry[axis], places[mark.name] + 0.28 * rank, mark, pale, palette)
        _frame(panel, words, limits, palette)
        panel.set_ylim(max(places.values()) + 0.7, -1.0)
        panel.yaxis.set_major_locator(FixedLocator(list(places.values())))
        labels = list(places) if panel is panels[0] else [""] * len(places)
        panel.set_yticklabels([_under(name, chosen) for name in labels])
        for group, height in _headings(chosen, places).items():
            if panel is panels[0]:
                panel.text(
                    -0.04, height, group, transform=panel.get_yaxis_transform(), ha="right", va="center",
                    size=8, color=palette.soft, style="italic",
                )  # fmt: skip


def _under(name: str, chosen: Sequence[Mark]) -> str:
    """A name under its heading, which says the regime already unless it is that of the other controls."""
    short = name.replace(" (whole corpus)", "")
    group = next((mark.group for mark in chosen if mark.name == name), None)
    return short if group in SHAPES else name.replace(" (", "\n(")


def explain_multipliers(
    panel: Axes, summary: Mapping[str, Any], chosen: Sequence[Mark], palette: Palette
) -> None:
    """Say above the first panel how all of them are read."""
    budgets = sorted({budget for mark in chosen for budget in summary["arms"][mark.name]}, key=float)
    shades = ", ".join(f"{budget}{'' if budget == budgets[-1] else ' pale'}" for budget in budgets)
    panel.set_title(
        f"dense needs this many times what the arm used (right of 1: the arm is cheaper); budgets {shades}",
        loc="left", size=9.5, color=palette.ink, pad=20,
    )  # fmt: skip


def _draw(
    panel: Axes, cell: Mapping[str, Any], height: float, mark: Mark, pale: bool, palette: Palette
) -> None:
    value = cell["multiplier"]
    if value is None or value <= 0:
        return
    color = _blend(mark.color, palette.paper) if pale else mark.color
    ends = [end for end in (cell["low"], cell["high"]) if end is not None]
    panel.plot(
        [min(value, *ends, value), max(value, *ends, value)],
        [height] * 2,
        color=color,
        linewidth=1.3,
        zorder=2,
    )
    if cell["bound"] is not None:
        # An arrow of fixed size: dense was not measured further, so no length is shown.
        towards = 1 if cell["bound"] == "at least" else -1
        panel.annotate(
            "",
            xy=(value, height),
            xytext=(17 * towards, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": color, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
            zorder=2,
        )
    panel.plot(
        value,
        height,
        marker=mark.shape,
        linestyle="none",
        markersize=4.8,
        markeredgewidth=1.1,
        markeredgecolor=color,
        markerfacecolor=palette.paper if mark.hollow else color,
        zorder=3,
    )


def _blend(color: str, paper: str) -> tuple[float, ...]:
    """A pale, opaque tone: a see-through marker would show the bar behind it."""
    return tuple(0.42 * ink + 0.58 * back for ink, back in zip(to_rgb(color), to_rgb(paper), strict=True))


def multiplier_range(summary: Mapping[str, Any], chosen: Sequence[Mark]) -> tuple[float, float]:
    """One scale for all panels, so that a distance means the same in each."""
    cells = [
        entry[axis]
        for mark in chosen
        for entry in summary["arms"][mark.name].values()
        for axis in summary["axes"]
        if axis in entry
    ]
    values = [cell[part] for cell in cells for part in ("multiplier", "low", "high") if cell[part]]
    low, high = min([0.5, *values]), max([2.0, *values])
    room = (high / low) ** 0.09
    return low / room, high * room


def powers_of_two(limits: tuple[float, float]) -> list[float]:
    """Ticks of a scale of multipliers: every power of two, or of four where those are many."""
    ticks = [2.0**power for power in range(-12, 13) if limits[0] <= 2.0**power <= limits[1]]
    if len(ticks) > 5:
        ticks = [4.0**power for power in range(-6, 7) if limits[0] <= 4.0**power <= limits[1]]
    return ticks


def _frame(panel: Axes, words: str, limits: tuple[float, float], palette: Palette) -> None:
    panel.set_xscale("log")
    panel.set_facecolor(palette.paper)
    panel.axvline(1.0, color=palette.ink, linewidth=0.9, zorder=1)
    panel.set_xlim(*limits)
    panel.xaxis.set_major_locator(FixedLocator(powers_of_two(limits)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(palette.soft)
    panel.tick_params(colors=palette.soft, labelcolor=palette.ink, labelsize=8.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color=palette.faint, linewidth=0.5, alpha=0.6)
    panel.set_axisbelow(True)
    panel.set_xlabel(words, color=palette.ink, size=9)


def _places(chosen: Sequence[Mark]) -> dict[str, float]:
    """Heights from the top, with room for a heading above each group."""
    places: dict[str, float] = {}
    height, group = -1.0, None
    for mark in chosen:
        height += 2.0 if mark.group != group and group is not None else 1.0
        group = mark.group
        places[mark.name] = height
    return places


def _headings(chosen: Sequence[Mark], places: Mapping[str, float]) -> dict[str, float]:
    first: dict[str, float] = {}
    for mark in chosen:
        first.setdefault(mark.group, places[mark.name] - 0.85)
    return first
