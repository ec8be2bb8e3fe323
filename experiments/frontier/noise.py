"""How much a loss moves from seed to seed, estimated from all cells: a few seeds alone cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from experiments.frontier.cells import Cell, Table

# A spread estimated with fewer degrees of freedom than this is not used by itself.
ENOUGH = 4
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one run and the degrees of freedom it was estimated with (0: unknown)."""

    sd: float
    df: int

    def half_width(self, runs: float) -> float | None:
        """Half of the 95 % t interval of a mean of ``runs`` runs; ``None`` when no spread is known."""
        if self.df == 0:
            return None
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.df)) * self.sd / math.sqrt(runs)


def pool(samples: Iterable[np.ndarray]) -> Noise:
    """Pool the variance of several small samples, each around its own mean."""
    kept = [sample for sample in samples if len(sample) > 1]
    df = sum(len(sample) - 1 for sample in kept)
    total = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in kept)
    return Noise(math.sqrt(total / df), df) if df else Noise(0.0, 0)


def noise_of(cell: Cell, table: Table) -> Noise:
    """Spread of a cell's test loss.

    Trained arms pool with all trained cells of their budget, or of every budget where that gives fewer
    than four degrees of freedom; an arm whose own seeds, over all budgets, give a wider interval keeps its own spread,
    for arms differ in it. An arm derived from another run (memory switched off, counts mixed in) is
    noisy in its own way and pools with itself over the budgets; with one seed it borrows the trained spread.
    """
    own = pool(other.losses("test") for other in table.cells if other.name == cell.name)
    if cell.derived and own.df > 1:
        return own
    trained = [other for other in table.cells if not other.derived]
    here = pool(other.losses("test") for other in trained if other.budget == cell.budget)
    return _wider(here if here.df >= ENOUGH else pool(other.losses("test") for other in trained), own)


def _wider(common: Noise, own: Noise) -> Noise:
    """The one that gives the wider interval: calm arms must not lend their spread to a restless one."""
    if own.df < ENOUGH:
        return common
    return max(common, own, key=lambda noise: noise.half_width(1) or 0.0)


def shared_part(table: Table) -> float:
    """Correlation of two trained arms' losses at one budget and seed: both saw the same data in one order.

    The estimate is reduced by one standard error under independence (about one over the root of its degrees
    of freedom) before it is used, since a correlation taken too high makes an interval too narrow.
    """
    variance = pool(cell.losses("test") for cell in table.cells if not cell.derived)
    products: list[float] = []
    for one, other in combinations([cell for cell in table.cells if not cell.derived], 2):
        seeds = set(one.seeds) & set(other.seeds)
        if one.budget == other.budget and len(seeds) > 1:
            left, right = at_seeds(one, seeds), at_seeds(other, seeds)
            products.append(float(((left - left.mean()) * (right - right.mean())).sum()) / (len(seeds) - 1))
    if not products or variance.sd == 0:
        return 0.0
    groups = [
        max(len(cell.seeds) for cell in table.cells if cell.budget == budget) - 1 for budget in table.budgets
    ]
    estimate = float(np.mean(products)) / variance.sd**2 - 1 / math.sqrt(max(1, sum(groups)))
    return min(max(estimate, 0.0), 0.9)


def at_seeds(cell: Cell, seeds: Iterable[int]) -> np.ndarray:
    """Test losses of a cell at the given seeds, in ascending order of seed."""
    wanted = set(seeds)
    return np.array(
        [loss for seed, loss in zip(cell.seeds, cell.losses("test"), strict=True) if seed in wanted]
    )


def paired_gain(cell: Cell, control: Cell, pairs: Sequence[tuple[Cell, Cell]]) -> tuple[float, float | None]:
    """Loss of a control minus loss of an arm, over the seeds both have, and half of its 95 % interval.

    Args:
        cell: the arm.
        control: what it has to beat.
        pairs: every (arm, control) pair of the study whose spread of differences is pooled; where the arm's own
            give a wider interval, theirs is taken.
    """
    seeds = set(cell.seeds) & set(control.seeds)
    if not seeds:
        return control.loss("test") - cell.loss("test"), None
    own = pool(_differences(arm, against) for arm, against in pairs if arm.name == cell.name)
    noise = _wider(pool(_differences(arm, against) for arm, against in pairs), own)
    return float(_differences(cell, control).mean()), noise.half_width(len(seeds))


def _differences(cell: Cell, control: Cell) -> np.ndarray:
    seeds = set(cell.seeds) & set(control.seeds)
    return at_seeds(control, seeds) - at_seeds(cell, seeds)
