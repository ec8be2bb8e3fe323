"""How long runs take: an assumed rate to begin with, then what finished runs took."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.run import Run

# One core of a laptop, everything counted: small models, so far below what its matrix products reach.
FLOPS_PER_SECOND = 8e10
# Evaluation and preparing; looking neighbours up for them as well, where there is a store.
SECONDS_PER_RUN = 5.0
SECONDS_PER_STORE = 15.0
DAY, YEAR = 86_400, 31_557_600


class Forecast:
    """Seconds a run will take.

    An arm's runs are scaled by what its finished runs took over what was assumed; an arm without any goes by all
    finished runs.

    Args:
        rows: Rows that are finished already.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            if row.get("parent") is None and row.get("seconds"):
                self._observe(row["arm"], row["regime"], row["budget"], sum(row["seconds"].values()))

    @property
    def measured(self) -> int:
        """How many finished runs it rests on."""
        return sum(map(len, self._taken.values()))

    def observe(self, run: Run, seconds: float) -> None:
        """Learn from a finished run."""
        self._observe(run.arm, run.regime, run.budget, seconds)

    def seconds(self, run: Run) -> float:
        """What a run will take."""
        seen = self._taken.get((run.arm, run.regime)) or [
            pair for pairs in self._taken.values() for pair in pairs
        ]
        scale = sum(took for took, _ in seen) / sum(assumed for _, assumed in seen) if seen else 1.0
        return scale * _assumed(run.regime, run.budget)

    def remaining(self, running: Iterable[tuple[Run, float]], waiting: Iterable[Run], workers: int) -> float:
        """Seconds until everything is done, runs going to whichever worker is free.

        Args:
            running: Runs in progress, and for how many seconds they have been.
            waiting: Runs not begun, in order.
            workers: How many work at once.
        """
        # A run that takes longer than foreseen is never about to end at once.
        busy = [max(self.seconds(run) - elapsed, 0.1 * elapsed) for run, elapsed in running]
        free = busy + [0.0] * max(0, workers - len(busy))
        heapq.heapify(free)
        for run in waiting:
            heapq.heappush(free, heapq.heappop(free) + self.seconds(run))
        return max(free, default=0.0)

    def _observe(self, arm: str, regime: str, budget: float, seconds: float) -> None:
        self._taken[arm, regime].append((seconds, _assumed(regime, budget)))


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3.5 h``, ``9 days``; no more digits than a forecast deserves."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 3 * DAY:
        return f"{seconds / 3600:.1f} h"
    if seconds < 2 * YEAR:
        return f"{seconds / DAY:.0f} days"
    return f"{seconds / YEAR:.0f} years" if seconds < 1000 * YEAR else "more than 1000 years"


def _assumed(regime: str, budget: float) -> float:
    return budget / FLOPS_PER_SECOND + SECONDS_PER_RUN + SECONDS_PER_STORE * (regime != "none")
