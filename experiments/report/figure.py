"""The figure: loss against training FLOPs, and multipliers with intervals on every axis of cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.report.axes import axis_names
from experiments.report.content import MANY_BUDGETS, compared_budgets
from experiments.report.forest import draw_multipliers, explain_multipliers
from experiments.report.growth import draw_growth, explain_growth
from experiments.report.marks import DARK, LIGHT, Mark, Palette, marks

Summary = Mapping[str, Any]

# A control far above everything else (a memory switched off) would flatten the plot; beyond this part of the
# range of the others it is named in a corner instead.
HEADROOM = 0.25
WIDTH = 10.0
# Panels beside one another, and where the last one ends.
ABREAST = 4
RIGHT = 0.98


def draw(summary: Summary, palette: Palette = LIGHT) -> Figure:
    """Draw the summary of a study.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        palette: colours of ink and paper.
    """
    chosen = marks(summary, palette)
    groups = len({mark.group for mark in chosen})
    growing = bool(chosen) and len(compared_budgets(summary)) > MANY_BUDGETS
    blocks = _blocks(axis_names(summary)) if chosen else []
    # Everything is placed in inches, so that many arms make the figure taller and nothing smaller.
    block = 2.3 * groups if growing else 0.27 * (len(chosen) + groups) + 0.6
    below = len(blocks) * block + 0.75 if blocks else 0.0
    height = 4.6 + below
    figure = Figure(figsize=(WIDTH, height), facecolor=palette.paper)
    FigureCanvasAgg(figure)
    top = figure.add_axes((0.075, (below + 0.6) / height, 0.62, 3.8 / height))
    _losses(top, summary, chosen, palette)
    for number, axes in enumerate(blocks):
        foot = (len(blocks) - 1 - number) * block
        if growing:
            rows = [
                _panels(figure, len(axes), 0.075, 0.045, (foot + 0.35 + 2.3 * row) / height, 1.75 / height)
                for row in reversed(range(groups))
            ]
            draw_growth(rows, axes, summary, chosen, palette)
            if number == 0:
                explain_growth(rows[0][0], palette)
        else:
            panels = _panels(figure, len(axes), 0.215, 0.024, (foot + 0.55) / height, (block - 0.6) / height)
            draw_multipliers(panels, axes, summary, chosen, palette)
            if number == 0:
                explain_multipliers(panels[0], summary, chosen, palette)
    if load := summary["cautions"].get("seconds"):
        sentence = load.partition(":")[0]
        figure.text(0.01, 0.06 / height, f"{sentence}.", va="bottom", size=7, color=palette.soft)
    return figure


def to_bytes(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Render; the bytes depend on nothing but the figure (no date, no random ids)."""
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "mnemograph"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _blocks(axes: Mapping[str, str]) -> list[dict[str, str]]:
    """The axes in lines of equal length, as few as can be read."""
    lines = math.ceil(len(axes) / ABREAST)
    length = math.ceil(len(axes) / lines)
    pairs = list(axes.items())
    return [dict(pairs[start : start + length]) for start in range(0, len(pairs), length)]


def _panels(figure: Figure, count: int, left: float, gap: float, bottom: float, height: float) -> list[Axes]:
    """As many axes side by side, up to the right edge."""
    step = (RIGHT + gap - left) / count
    return [figure.add_axes((left + step * place, bottom, step - gap, height)) for place in range(count)]


def _losses(axes: Axes, summary: Summary, chosen: Sequence[Mark], palette: Palette) -> None:
    dense = [point for point in summary["dense"] if point["tuned"]]
    amounts = [point["amounts"]["train_flops"] for point in dense]
    values = [_over_seeds(point["bits_per_byte"]) for point in dense]
    means = [value["mean"] for value in values]
    others = [point for point in summary["dense"] if not point["tuned"]]
    axes.scatter(
        [point["amounts"]["train_flops"] for point in others],
        [point["bits_per_byte"]["mean"] for point in others],
        s=9,
        color=palette.faint,
        label="dense, other widths" if others else None,
        zorder=1,
    )
    if all(value["low"] is not None for value in values):
        low, high = [value["low"] for value in values], [value["high"] for value in values]
        axes.fill_between(amounts, low, high, color=palette.ink, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(
        amounts,
        means,
        "-o",
        color=palette.ink,
        markersize=5,
        linewidth=1.4,
        label="dense, best widths",
        zorder=2,
    )

    ceiling = max(means) + HEADROOM * (max(means) - min(_all_means(summary)) + 0.05)
    above: list[str] = []
    for place, mark in enumerate(chosen):
        label: str | None = mark.name
        for budget, entry in summary["arms"][mark.name].items():
            value = _over_seeds(entry["bits_per_byte"])
            if value["mean"] > ceiling:
                above.append(f"{mark.name} at {budget}: {value['mean']:.2f}")
                continue
            # Arms at one budget stand side by side, within a tenth of a decade.
            aside = 10 ** (0.10 * ((place + 0.5) / len(chosen) - 0.5))
            x = entry["amounts"]["train_flops"]
            if not x:
                continue
            bar = (
                None
                if value["low"] is None
                else [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            )
            axes.errorbar(x * aside, value["mean"], yerr=bar, label=label, zorder=3, **mark.style(palette))
            label = None
    if above:
        axes.text(
            0.01,
            0.98,
            "above: " + "; ".join(above),
            transform=axes.transAxes,
            va="top",
            size=7,
            color=palette.soft,
        )
    _frame(axes, amounts, palette)
    axes.set_ylabel("bits per byte on test text (lower is better)")
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5, handletextpad=0.6
    )
    for text in legend.get_texts():
        text.set_color(palette.ink)


def _over_seeds(value: Mapping[str, Any]) -> dict[str, Any]:
    """A loss and its interval over seeds: other documents would move all arms together."""
    return {"mean": value["mean"], **value["over_seeds"]}


def _frame(axes: Axes, amounts: Sequence[float], palette: Palette) -> None:
    axes.set_xscale("log")
    axes.set_facecolor(palette.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.soft)
    axes.tick_params(colors=palette.soft, labelcolor=palette.ink, labelsize=9)
    axes.grid(axis="y", color=palette.faint, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(FixedLocator(sorted(amounts)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}".replace("e+", "e")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training FLOPs, building and search included (log scale)", color=palette.ink)
    axes.yaxis.label.set_color(palette.ink)


def _all_means(summary: Summary) -> list[float]:
    return [
        entry["bits_per_byte"]["mean"] for budgets in summary["arms"].values() for entry in budgets.values()
    ]


__all__ = ["DARK", "LIGHT", "draw", "to_bytes"]
