"""How many seeds, or how much text, it would take to show a difference of the size seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from experiments.frontier.cells import Cell
from experiments.frontier.corrections import ALPHA
from experiments.frontier.draws import Draws

Floats = NDArray[np.float64]

POWER = 0.8


@dataclass(frozen=True)
class Gap:
    """An arm's loss against the dense frontier's at the same amount.

    Args:
        size: bits per byte; positive where the arm is better.
        seeds: variance over seeds, as many as there are.
        documents: variance over documents, as many as there are.
        runs: how many seeds there are.
    """

    size: float
    seeds: float
    documents: float
    runs: int


def gap(dense: list[Cell], log_amounts: Floats, cell: Cell, log_amount: float, draws: Draws) -> Gap | None:
    """The gap by interpolation; ``None`` where the arm's amount lies outside of the dense range.

    Args:
        dense: cells of the frontier.
        log_amounts: what each used.
        cell: the arm's.
        log_amount: what it used.
        draws: of all losses.
    """
    # A bill is a step or two off its budget: that is no extrapolation.
    near = 0.02
    if not log_amounts.min() - near <= log_amount <= log_amounts.max() + near:
        return None
    weights = [np.interp(log_amount, log_amounts, row) for row in np.eye(len(dense))]
    seeds, documents = -draws.from_seeds(cell), -draws.from_documents(cell)
    size = -cell.loss("test")
    for weight, each in zip(weights, dense, strict=True):
        size += weight * each.loss("test")
        if weight:
            seeds = seeds + weight * draws.from_seeds(each)
            documents = documents + weight * draws.from_documents(each)
    return Gap(float(size), _variance(seeds), _variance(documents), len(cell.seeds))


def needed(gap: Gap, comparisons: int) -> dict[str, Any] | None:
    """Seeds of every cell, and text, at which a gap of this size would be claimed with power 0.8.

    By the normal approximation, at the level that the first step of the correction asks for. Documents of the same
    sources are meant by more text. Where the documents there are move the gap so far that no number of seeds
    is enough, seeds and documents get half of the variance each.

    Args:
        gap: as it was seen; a guess at the true one.
        comparisons: how many the correction is for.

    Returns:
        ``seeds``, ``text`` (times the documents there are; 1 where seeds are enough) and ``power``; ``None`` without a
        gap.
    """
    if gap.size == 0 or gap.seeds + gap.documents == 0:
        return None
    reach = special.ndtri(POWER) - special.ndtri(ALPHA / 2 / max(1, comparisons))
    allowed = (gap.size / float(reach)) ** 2
    text = 1.0 if gap.documents < allowed else 2 * gap.documents / allowed
    seeds = gap.runs * gap.seeds / (allowed - gap.documents / text)
    return {"seeds": max(2, math.ceil(seeds)), "text": text, "power": POWER}


def _variance(draws: Floats) -> float:
    """From the middle two thirds: with few degrees of freedom the tails have no second moment."""
    low, high = np.quantile(draws, special.ndtr([-1, 1]))
    return float((high - low) / 2) ** 2
