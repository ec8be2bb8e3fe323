"""One arm at one budget, held against the dense frontier on every axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.frontier.cells import AXES, CONTROL_TO_BEAT, DENSE, FURTHER_AXES, METRIC, Cell, Table
from experiments.frontier.checks import MATMUL
from experiments.frontier.curve import Frontier
from experiments.frontier.draws import DRAWS, Draws
from experiments.frontier.multiplier import Multiplier, multiplier
from experiments.frontier.noise import Noise, Runs, Spreads, pool
from experiments.frontier.pairs import Pairs
from experiments.frontier.planning import Gap, gap

Floats = NDArray[np.float64]

# Axes along which the widths chosen by training FLOPs need not be the best.
ANY_WIDTH = ("seconds", "bytes")


@dataclass(frozen=True)
class Axis:
    """Dense cells along one axis of cost.

    Args:
        column: of the rows.
        cells: of the frontier, from the least to the most training compute.
        frontier: their losses; ``None`` where an amount is missing.
        noise: spread of the logarithm of one run's amount (seconds vary; FLOPs hardly do).
    """

    column: str
    cells: tuple[Cell, ...]
    frontier: Frontier | None
    noise: Noise


class Entries:
    """Everything a summary says about one arm at one budget.

    Args:
        table: all rows.
        draws: how many to take for an interval.
    """

    def __init__(self, table: Table, draws: int = DRAWS) -> None:
        self.table = table
        self.spreads = Spreads(table)
        self.draws = Draws(table, self.spreads, draws)
        self.pairs = Pairs(table, self.spreads)
        tuned = table.of(DENSE)
        columns = AXES | FURTHER_AXES | {MATMUL: MATMUL}
        self.axes = {name: self._axis(column, tuned) for name, column in columns.items()}
        self.any_budget = self._axis(AXES["read_flops"], self._widths())
        self.any_width = {name: self._axis(AXES[name], self._cheapest(AXES[name])) for name in ANY_WIDTH}

    def of(self, cell: Cell) -> dict[str, Any]:
        """The entry of a cell."""
        entry: dict[str, Any] = {name: self._compare(cell, axis) for name, axis in self.axes.items()}
        entry["read_flops"]["any_budget"] = self._compare(cell, self.any_budget)
        for name, axis in self.any_width.items():
            entry[name]["any_width"] = self._compare(cell, axis)
        return entry | {
            METRIC: self.loss(cell),
            "control": cell.control,
            "regime": cell.regime,
            "arm": cell.arm,
            "unasked": next((str(why) for row in cell.runs if (why := row.get("unasked"))), ""),
            "width": cell.width,
            "seeds": list(cell.seeds),
            "gain_over_counts": self._gain(cell),
            "heldout": _heldout(cell),
            "copying": _copying(cell),
            "amounts": amounts(cell),
        }

    def loss(self, cell: Cell) -> dict[str, Any]:
        """Mean bits per byte with its interval, and with that over seeds alone.

        The first says where the loss on such text lies and is wide, for some documents are harder than others. All arms
        share the documents: to see whether two differ, look at their difference, or at the second.
        """
        mean, error = cell.loss("test"), self.spreads.error(cell)
        halves = error.half_width(), error.noise.half_width(len(cell.seeds))
        whole, seeds = (_interval(mean, half) for half in halves)
        return {"mean": mean} | whole | {"over_seeds": seeds}

    def gap(self, cell: Cell) -> Gap | None:
        """How far the arm's loss stands from the frontier's at its own training FLOPs."""
        axis = self.axes["train_flops"]
        if axis.frontier is None or self.spreads.noise(cell).df == 0:
            return None
        own = log_amount(cell, axis.column)
        return gap(list(axis.cells), axis.frontier.log_amounts, cell, own, self.draws)

    def _axis(self, column: str, cells: Sequence[Cell]) -> Axis:
        spread = pool(
            Runs(np.log(amount))
            for cell in self.table.cells
            if not cell.derived and _usable(amount := cell.amounts(column))
        )
        if not all(_usable(cell.amounts(column)) for cell in cells):
            return Axis(column, tuple(cells), None, spread)
        logs = np.array([log_amount(cell, column) for cell in cells])
        losses = np.array([cell.loss("test") for cell in cells])
        noises = [self.spreads.noise(cell) for cell in cells]
        errors = np.array(
            [noise.sd / math.sqrt(len(cell.seeds)) for noise, cell in zip(noises, cells, strict=True)]
        )
        moved = np.stack([self._drawn_amounts(cell, column, spread) for cell in cells], axis=1)
        drawn = np.stack([self.draws.losses(cell) for cell in cells], axis=1)
        return Axis(column, tuple(cells), Frontier(logs, losses, errors, moved, drawn), spread)

    def _drawn_amounts(self, cell: Cell, column: str, spread: Noise) -> Floats:
        jitter = self.draws.normal(column, *cell.key) * spread.sd / math.sqrt(len(cell.seeds))
        return log_amount(cell, column) + jitter

    def _widths(self) -> tuple[Cell, ...]:
        """Each dense width with the training budget that suits it best, as far as reading more of it predicts better.

        A wide one that was trained too little ends no range: what it costs to read says nothing about what dense needs.
        """
        best: dict[int, Cell] = {}
        for cell in dense_cells(self.table):
            if cell.width not in best or cell.loss("valid") < best[cell.width].loss("valid"):
                best[cell.width] = cell
        return _worth_it(best.values(), AXES["read_flops"])

    def _cheapest(self, column: str) -> tuple[Cell, ...]:
        """Dense of whatever width predicts best for what it costs.

        The width that is best at a number of FLOPs is seldom the one that is best in the time those take.
        """
        return _worth_it(dense_cells(self.table), column)

    def _compare(self, cell: Cell, axis: Axis) -> dict[str, Any]:
        if cell.name == DENSE:  # the reference: 1 by definition
            return Multiplier(1.0, 1.0, 1.0).to_dict() | {"reference": True}
        # An arm that costs nothing on an axis (a table of counts has no matrix products) has no ratio there.
        if axis.frontier is None or not _usable(cell.amounts(axis.column)):
            return Multiplier(None).to_dict()
        known = self.spreads.noise(cell).df > 0
        return multiplier(
            axis.frontier,
            cell.loss("test"),
            log_amount(cell, axis.column),
            self.draws.losses(cell) if known else np.empty(0),
            self._drawn_amounts(cell, axis.column, axis.noise),
        ).to_dict()

    def _gain(self, cell: Cell) -> dict[str, Any] | None:
        """Against the dense arm with counts of the same regime: positive where the arm is better."""
        control = next(
            (
                found
                for name in self.table.names
                if (found := self.table.best(name, cell.budget)) is not None
                and (found.arm, found.regime) == (CONTROL_TO_BEAT, cell.regime)
            ),
            None,
        )
        if control is None or cell.arm in (DENSE, CONTROL_TO_BEAT):
            return None
        return self.pairs.of(cell, control).to_dict() | {"control": control.name}


def dense_cells(table: Table) -> tuple[Cell, ...]:
    """Every dense cell, by budget and width."""
    cells = [cell for cell in table.cells if cell.name == DENSE]
    return tuple(sorted(cells, key=lambda cell: (cell.budget, cell.width)))


def _worth_it(cells: Iterable[Cell], column: str) -> tuple[Cell, ...]:
    """Those that predict better than every cheaper one, by what they cost."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: cell.amounts(column).mean()):
        if not kept or cell.loss("valid") < kept[-1].loss("valid"):
            kept.append(cell)
    return tuple(kept)


def amounts(cell: Cell) -> dict[str, float | None]:
    """What a run of a cell used on each axis, on average; ``None`` where rows do not tell."""
    return {axis: _mean(cell.amounts(column)) for axis, column in (AXES | FURTHER_AXES).items()}


def log_amount(cell: Cell, column: str) -> float:
    """Logarithm of the geometric mean amount."""
    return float(np.log(cell.amounts(column)).mean())


def _usable(amount: np.ndarray) -> bool:
    return bool((amount > 0).all() and np.isfinite(amount).all())


def _heldout(cell: Cell) -> float | None:
    if not all("heldout" in row["losses"] for row in cell.runs):
        return None
    return _mean(cell.losses("heldout"))


def _copying(cell: Cell) -> dict[str, float] | None:
    probes = [probe for row in cell.runs if (probe := (row.get("probes") or {}).get("copying"))]
    if not probes:
        return None
    return {copy: float(np.mean([probe[copy] for probe in probes])) for copy in ("first", "second")}


def _mean(values: np.ndarray) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


def _interval(mean: float, half: float | None) -> dict[str, float | None]:
    return {"low": None if half is None else mean - half, "high": None if half is None else mean + half}
