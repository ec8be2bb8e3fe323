"""How an arm is drawn: colour by arm, shape by regime, hollow for controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.frontier import CONTROL_TO_BEAT, DENSE


@dataclass(frozen=True)
class Palette:
    """Colours of a scheme; ``arms`` are Okabe and Ito's, told apart by readers with any colour vision."""

    ink: str
    paper: str
    soft: str
    faint: str
    arms: tuple[str, ...]


LIGHT = Palette(
    "#1f2328", "#ffffff", "#59636e", "#c4cad1", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b")
)
DARK = Palette(
    "#e6e9ee", "#16191d", "#9aa4af", "#444c56", ("#56b4e9", "#f08a4b", "#2ec49a", "#e3a3c7", "#f0c040")
)

SHAPES = {"same tokens": "o", "whole corpus": "D", "none": "o"}
SHAPES_WITH_COUNTS = {"same tokens": "P", "whole corpus": "X", "none": "P"}
WITH_COUNTS = " + counts"
# What a trained arm is worth without what it was trained with says nothing about compute: tables only.
KNOCKOUT = "memory off"
CONTROL_SHAPES = ("^", "v", "s", "<", ">", "p", "h")


@dataclass(frozen=True)
class Mark:
    """One arm in one regime.

    Args:
        name: as in the summary.
        group: heading it stands under: a regime, or the controls.
        color: of marker and bar.
        shape: a matplotlib marker.
        hollow: a control.
    """

    name: str
    group: str
    color: str
    shape: str
    hollow: bool

    def style(self, palette: Palette) -> dict[str, Any]:
        """Keyword arguments of ``Axes.errorbar``."""
        return {
            "fmt": self.shape,
            "color": self.color,
            "markerfacecolor": palette.paper if self.hollow else self.color,
            "markeredgecolor": self.color,
            "markersize": 6.5 if self.shape == "o" else 6,
            "markeredgewidth": 1.4,
            "elinewidth": 1.2,
            "capsize": 0,
        }


def marks(summary: Mapping[str, Any], palette: Palette) -> tuple[Mark, ...]:
    """One mark for each arm but dense, grouped: same tokens, whole corpus, controls; knocked-out arms are left out."""
    firsts = {
        name: next(iter(budgets.values()))
        for name, budgets in summary["arms"].items()
        if KNOCKOUT not in name
    }
    arms = [
        entry["arm"].removesuffix(WITH_COUNTS)
        for entry in firsts.values()
        if not entry["control"] and entry["arm"] != DENSE
    ]
    colors = {arm: palette.arms[place % len(palette.arms)] for place, arm in enumerate(dict.fromkeys(arms))}
    shapes = iter(CONTROL_SHAPES * len(firsts))
    found: list[Mark] = []
    for name, entry in firsts.items():
        if entry["arm"] == DENSE:
            continue
        shape = SHAPES.get(entry["regime"], "o")
        if not entry["control"]:
            arm = entry["arm"].removesuffix(WITH_COUNTS)
            if arm != entry["arm"]:
                shape = SHAPES_WITH_COUNTS.get(entry["regime"], "P")
            found.append(Mark(name, entry["regime"], colors[arm], shape, hollow=False))
        elif entry["arm"] == CONTROL_TO_BEAT:
            found.append(Mark(name, entry["regime"], palette.ink, shape, hollow=True))
        else:
            found.append(Mark(name, "other controls", palette.soft, next(shapes), hollow=True))
    order = ("none", "same tokens", "whole corpus", "other controls")
    return tuple(
        sorted(found, key=lambda mark: (order.index(mark.group) if mark.group in order else 9, mark.hollow))
    )
