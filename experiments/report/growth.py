"""Multipliers over the budget: does what a memory is worth survive more compute?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.frontier import budget_key
from experiments.report.content import compared_budgets
from experiments.report.forest import multiplier_range, powers_of_two
from experiments.report.marks import Mark, Palette


def draw_growth(
    rows: Sequence[Sequence[Axes]],
    axes: Mapping[str, str],
    summary: Mapping[str, Any],
    chosen: Sequence[Mark],
    palette: Palette,
) -> None:
    """Fill a row of panels for each group of arms, one panel an axis.

    Args:
        rows: as many as there are groups, from top to bottom.
        axes: the axes and their names, as many as a row has panels.
        summary: of a study.
        chosen: the arms; those of a group stand together.
        palette: colours of ink and paper.
    """
    limits = multiplier_range(summary, chosen)
    budgets = [float(budget) for budget in compared_budgets(summary)]
    for panels, group in zip(rows, dict.fromkeys(mark.group for mark in chosen), strict=True):
        members = [mark for mark in chosen if mark.group == group]
        for panel, (axis, words) in zip(panels, axes.items(), strict=True):
            for place, mark in enumerate(members):
                # Side by side, within a tenth of a decade.
                aside = 10 ** (0.10 * ((place + 0.5) / len(members) - 0.5))
                _draw(panel, summary["arms"][mark.name], axis, mark, aside, palette)
            _frame(panel, budgets, limits, palette)
            if panels is rows[0]:
                panel.set_title(words, size=9, color=palette.ink)
        panels[0].set_ylabel(group, size=9, style="italic", color=palette.soft)


def explain_growth(panel: Axes, palette: Palette) -> None:
    """Say above the first panel how all of them are read."""
    panel.text(
        0.0,
        1.22,
        "dense needs this many times what the arm used (above 1: the arm is cheaper); "
        "arrows: dense was not measured further",
        transform=panel.transAxes,
        size=9.5,
        color=palette.ink,
    )


def _draw(
    panel: Axes, entries: Mapping[str, Any], axis: str, mark: Mark, aside: float, palette: Palette
) -> None:
    ascending = sorted(entries, key=float)
    measured = [budget for budget in ascending if axis in entries[budget]]
    points = [(float(budget) * aside, entries[budget][axis]) for budget in measured]
    for (x, cell), (next_x, following) in pairwise(points):
        # No line to a bound: it would fall towards the budget where dense ends, whatever the arm does.
        if _measured(cell) and _measured(following):
            ends = [cell["multiplier"], following["multiplier"]]
            panel.plot([x, next_x], ends, color=mark.color, linewidth=1.0, zorder=2)
    for x, cell in points:
        value = cell["multiplier"]
        if not value:
            continue
        ends = [end for end in (cell["low"], cell["high"]) if end is not None]
        panel.plot([x, x], [min(value, *ends, value), max(value, *ends, value)], color=mark.color, zorder=2)
        if not _measured(cell):
            panel.annotate(
                "",
                xy=(x, value),
                xytext=(0, 15 if cell["bound"] == "at least" else -15),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": mark.color, "shrinkA": 0, "shrinkB": 2},
                annotation_clip=False,
                zorder=2,
            )
        face = palette.paper if mark.hollow else mark.color
        panel.plot(x, value, mark.shape, color=mark.color, markerfacecolor=face, markersize=4.8, zorder=3)


def _measured(cell: Mapping[str, Any]) -> bool:
    """Whether the multiplier itself is known, and not only a bound of it."""
    return bool(cell["multiplier"]) and cell["beyond"] != "point"


def _frame(panel: Axes, budgets: Sequence[float], limits: tuple[float, float], palette: Palette) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_facecolor(palette.paper)
    panel.axhline(1.0, color=palette.ink, linewidth=0.9, zorder=1)
    panel.set_xlim(budgets[0] / 1.6, budgets[-1] * 1.6)
    panel.set_ylim(*limits)
    panel.xaxis.set_major_locator(FixedLocator(budgets))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: budget_key(value)))
    panel.yaxis.set_major_locator(FixedLocator(powers_of_two(limits)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    for scale in (panel.xaxis, panel.yaxis):
        scale.set_minor_locator(NullLocator())
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(palette.soft)
    panel.tick_params(colors=palette.soft, labelcolor=palette.ink, labelsize=8)
    panel.grid(axis="y", color=palette.faint, linewidth=0.5, alpha=0.6)
    panel.set_axisbelow(True)
