"""How much a loss moves from seed to seed, estimated from all cells: a few seeds alone cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy import special

from experiments.frontier.cells import Cell, Table

# A spread estimated with fewer degrees of freedom than this is not used by itself.
ENOUGH = 4
# Chance of taking an arm like the others for a restless one.
RESTLESS = 0.1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Runs:
    """One number a run, for runs that differ in nothing but the seed.

    Args:
        values: losses or differences of losses, in bits per byte.
        influence: of each document on each value, ``[runs, documents]``, where the rows tell documents.
    """

    values: np.ndarray
    influence: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.values)

    def __sub__(self, other: Runs) -> Runs:
        """Differences, run by run."""
        if self.influence is None or other.influence is None:
            return Runs(self.values - other.values)
        return Runs(self.values - other.values, self.influence - other.influence)


@dataclass(frozen=True)
class Noise:
    """Spread of one run from seed to seed.

    Args:
        sd: standard deviation.
        df: degrees of freedom it was estimated with (0: unknown).
        within: the part of the variance that comes document by document. The spread over documents of a mean holds
            it already, so it is taken off where the two are added (Cameron, Gelbach and Miller 2011,
            "Robust inference with multiway clustering").
    """

    sd: float
    df: float
    within: float = 0.0

    @property
    def besides(self) -> float:
        """Standard deviation of what moves all documents alike."""
        return math.sqrt(max(0.0, self.sd**2 - self.within))

    def half_width(self, runs: float) -> float | None:
        """Half of the 95 % t interval of a mean of ``runs`` runs over seeds; ``None`` when no spread is known."""
        return Error(self, runs).half_width()


@dataclass(frozen=True)
class Error:
    """What a mean may be off by.

    Args:
        noise: from seed to seed.
        runs: how many seeds the mean is over.
        documents: variance over documents.
        df: its degrees of freedom.
    """

    noise: Noise
    runs: float
    documents: float = 0.0
    df: float = 1.0

    @property
    def seeds(self) -> float:
        """Variance over seeds."""
        return (self.noise.besides if self.documents else self.noise.sd) ** 2 / self.runs

    def half_width(self) -> float | None:
        """Half of the 95 % t interval (Satterthwaite's degrees of freedom); ``None`` when no spread is known."""
        if self.noise.df == 0:
            return None
        return float(special.stdtrit(self._df, (1 + CONFIDENCE) / 2)) * math.sqrt(self._variance)

    def p_value(self, mean: float) -> float | None:
        """Two-sided p-value of a mean of 0, by the same t; ``None`` when no spread is known."""
        if self.noise.df == 0:
            return None
        if self._variance == 0:
            return float(mean == 0)
        return 2 * float(special.stdtr(self._df, -abs(mean) / math.sqrt(self._variance)))

    @property
    def _variance(self) -> float:
        return self.seeds + self.documents

    @property
    def _df(self) -> float:
        parts = self.seeds**2 / self.noise.df + self.documents**2 / self.df
        return self._variance**2 / parts if parts > 0 else self.noise.df


def pool(samples: Iterable[Runs]) -> Noise:
    """Pool the variance of several small samples, each around its own mean."""
    kept = [sample for sample in samples if len(sample) > 1]
    df = sum(len(sample) - 1 for sample in kept)
    if not df:
        return Noise(0.0, 0)
    total = sum(_scatter(sample.values) for sample in kept)
    told = [_scatter(sample.influence) for sample in kept if sample.influence is not None]
    return Noise(math.sqrt(total / df), df, sum(told) / df if len(told) == len(kept) else 0.0)


class Spreads:
    """What the rows of a study tell about how far its losses may be off.

    Args:
        table: all rows.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._runs = {cell.key: self._measured(cell) for cell in table.cells}
        self._noise: dict[tuple[str, float], Noise] = {}
        self._trained = [cell for cell in table.cells if not cell.derived]
        self._everywhere = pool(self.runs(cell) for cell in self._trained)

    def runs(self, cell: Cell) -> Runs:
        """Test losses of a cell."""
        return self._runs[cell.key]

    def noise(self, cell: Cell) -> Noise:
        """Spread of a cell's test loss.

        Trained arms pool with all trained cells of their budget, or of every budget where that gives fewer
        than four degrees of freedom; an arm whose own seeds, over all budgets, spread more than chance allows keeps its
        own spread, for arms differ in it. An arm derived from another run (memory switched off, counts mixed in) is
        noisy in its own way and pools with itself over the budgets; with one seed it borrows the trained spread.
        """
        key = cell.name, cell.budget
        if key not in self._noise:
            own = pool(self.runs(other) for other in self.table.cells if other.name == cell.name)
            here = pool(self.runs(other) for other in self._trained if other.budget == cell.budget)
            common = here if here.df >= ENOUGH else self._everywhere
            self._noise[key] = own if cell.derived and own.df > 1 else restless(common, own)
        return self._noise[key]

    def error(self, cell: Cell) -> Error:
        """What the mean loss of a cell may be off by, over seeds and, where the rows tell them, documents."""
        return self.error_of(self.runs(cell), self.noise(cell))

    def error_of(self, runs: Runs, noise: Noise) -> Error:
        """What the mean of some runs may be off by, given their spread from seed to seed."""
        if runs.influence is None or self.table.text is None:
            return Error(noise, len(runs))
        return Error(noise, len(runs), float((runs.influence.mean(axis=0) ** 2).sum()), self.table.text.df)

    @cached_property
    def shared(self) -> float:
        """Correlation of two trained arms' losses at one budget and seed: both saw the same data in one order.

        Over all pairs of trained cells, and never taken for more than 0.9 or less than 0.
        """
        products: list[float] = []
        for one, other in combinations(self._trained, 2):
            seeds = set(one.seeds) & set(other.seeds)
            if one.budget == other.budget and len(seeds) > 1:
                left, right = self._at(one, seeds).values, self._at(other, seeds).values
                products.append(float((left - left.mean()) @ (right - right.mean())) / (len(seeds) - 1))
        variance = self._everywhere.sd**2
        if not products or variance == 0:
            return 0.0
        return min(max(float(np.mean(products)) / variance, 0.0), 0.9)

    def differences(self, cell: Cell, other: Cell) -> Runs:
        """Loss of ``other`` minus loss of ``cell``, over the seeds that both have."""
        seeds = set(cell.seeds) & set(other.seeds)
        return self._at(other, seeds) - self._at(cell, seeds)

    def _at(self, cell: Cell, seeds: set[int]) -> Runs:
        runs = self.runs(cell)
        kept = [place for place, seed in enumerate(cell.seeds) if seed in seeds]
        return Runs(runs.values[kept], None if runs.influence is None else runs.influence[kept])

    def _measured(self, cell: Cell) -> Runs:
        text = self.table.text
        return Runs(cell.losses("test"), None if text is None else text.influence(cell.nats()))


def restless(common: Noise, own: Noise) -> Noise:
    """An arm's own spread where it is larger than all arms' by more than chance, else that of all arms.

    Calm arms must not lend their spread to a restless one. Taking the larger of the two whichever it is makes
    intervals too wide: 98 % cover where 95 % is claimed.
    """
    if own.df < ENOUGH or common.df == 0:
        return common
    beyond = float(special.fdtri(own.df, common.df, 1 - RESTLESS)) * common.sd**2
    return own if own.sd**2 > beyond else common


def _scatter(values: np.ndarray) -> float:
    return float(((values - values.mean(axis=0)) ** 2).sum())
