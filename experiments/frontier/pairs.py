"""Two arms on the same seeds and the same documents: the difference of their losses, with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from experiments.frontier.cells import CONTROL_TO_BEAT, DENSE, Cell, Table, budget_key
from experiments.frontier.noise import Noise, Runs, Spreads, pool, restless

Pair = tuple[Cell, Cell]


@dataclass(frozen=True)
class Difference:
    """Loss of the second arm minus loss of the first: positive where the first is better.

    Args:
        mean: bits per byte.
        half: half of the 95 % interval; ``None`` without any spread over seeds.
        p: two-sided p-value of no difference; ``None`` likewise.
    """

    mean: float
    half: float | None
    p: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        half = self.half
        return {
            "mean": self.mean,
            "low": None if half is None else self.mean - half,
            "high": None if half is None else self.mean + half,
            "p": self.p,
        }


class Pairs:
    """Differences of the arms of a study.

    Runs of one seed saw the same data in the same order and every run is scored on the same documents, so what moves
    two losses alike is in neither the difference nor its interval: it is far narrower than the intervals of the
    two losses suggest.

    Args:
        table: all rows.
        spreads: of their losses.
    """

    def __init__(self, table: Table, spreads: Spreads) -> None:
        self.table = table
        self.spreads = spreads
        self._pooled: dict[str, Noise] = {}

    def of(self, cell: Cell, other: Cell) -> Difference:
        """The difference of two cells of one budget.

        How far differences move from seed to seed is pooled over all pairs of trained arms, or over all pairs of a
        trained arm with what is derived in one way; where the two arms' own seeds, over all budgets, spread more than
        chance allows, their spread is taken. Two derived arms have only their own.
        """
        runs = self.spreads.differences(cell, other)
        if not len(runs):
            return Difference(other.loss("test") - cell.loss("test"), None, None)
        own = self._pool(self._budgets(cell, other))
        if cell.derived and other.derived:
            noise = own
        else:
            derived = next((each.name for each in (cell, other) if each.derived), None)
            noise = restless(self._common(derived), own)
        error = self.spreads.error_of(runs, noise)
        mean = float(runs.values.mean())
        return Difference(mean, error.half_width(), error.p_value(mean))

    def all(self) -> list[dict[str, Any]]:
        """Every two arms of a regime at every budget, dense among them.

        Of what is derived from a run, mixtures with counts are compared; memories switched off are not.
        """
        found: list[dict[str, Any]] = []
        for regime in ("same tokens", "whole corpus"):
            for budget in self.table.budgets:
                best = (self.table.best(name, budget) for name in self.table.names)
                cells = [cell for cell in best if cell is not None and _compared(cell, regime)]
                found += [
                    {
                        "budget": budget_key(budget),
                        "regime": regime,
                        "arm": other.name,
                        "against": cell.name,
                        **self.of(other, cell).to_dict(),
                    }
                    for cell, other in combinations(cells, 2)
                ]
        return found

    def _budgets(self, cell: Cell, other: Cell) -> list[Pair]:
        """The same two arms wherever both ran."""
        return [
            (mine, against)
            for mine in self.table.of(cell.name)
            if (against := self.table.best(other.name, mine.budget)) is not None
        ]

    def _common(self, derived: str | None) -> Noise:
        """Of all pairs of trained arms, or of all trained arms with one that is derived."""
        key = derived or ""
        if key not in self._pooled:
            trained = [cell for cell in self.table.tuned.values() if not cell.derived]
            if derived is None:
                pairs: Iterable[Pair] = combinations(trained, 2)
            else:
                pairs = ((cell, against) for cell in trained for against in self.table.of(derived))
            self._pooled[key] = self._pool([pair for pair in pairs if pair[0].budget == pair[1].budget])
        return self._pooled[key]

    def _pool(self, pairs: Sequence[Pair]) -> Noise:
        """Pooled spread; pairs that share an arm are not independent and count for less."""
        runs: list[tuple[Pair, Runs]] = [(pair, self.spreads.differences(*pair)) for pair in pairs]
        runs = [(pair, each) for pair, each in runs if len(each) > 1]
        noise = pool(each for _, each in runs)
        # Differences that share an arm correlate by a half where all arms are as noisy, their variances by a quarter.
        df = [len(each) - 1 for _, each in runs]
        double = sum(
            min(df[one], df[other])
            for one, other in combinations(range(len(runs)), 2)
            if _share(runs[one][0], runs[other][0])
        )
        counted = sum(df) ** 2 / (sum(df) + 0.5 * double) if df else 0
        return Noise(noise.sd, counted, noise.within)


def _share(one: Pair, other: Pair) -> bool:
    return any(left is right for left in one for right in other)


def _compared(cell: Cell, regime: str) -> bool:
    if cell.arm == DENSE:
        return True
    if cell.regime != regime:
        return False
    return not (cell.control and cell.derived) or cell.arm == CONTROL_TO_BEAT
