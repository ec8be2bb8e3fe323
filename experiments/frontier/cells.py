"""Cells of a study: the runs that differ in nothing but the seed; and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.frontier.documents import Text

Row = Mapping[str, Any]

# The name an axis has in a summary, and the column of a run that holds its amount ("a.b": b within a).
AXES = {
    "train_flops": "train_flops",
    "read_flops": "read_flops",
    "seconds": "train_seconds",
    "bytes": "train_bytes",
}
# Compared in the same way, for those who ask; rows may lack them.
FURTHER_AXES = {
    "read_bytes": "read_bytes",
    "params": "params.total",
}
DENSE = "dense"
CONTROL_TO_BEAT = "dense + counts"
METRIC = "bits_per_byte"


@dataclass(frozen=True)
class Cell:
    """Runs of one arm at one budget and width, one per seed.

    Args:
        name: the arm as a summary shows it; the regime is part of it where the whole corpus was read.
        budget: the training FLOPs the runs were given.
        width: model width.
        runs: the rows, sorted by seed.
    """

    name: str
    budget: float
    width: int
    runs: tuple[Row, ...]

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells the cell from every other."""
        return self.name, self.budget, self.width

    @property
    def arm(self) -> str:
        """The arm's name in the rows."""
        return self.runs[0]["arm"]

    @property
    def regime(self) -> str:
        """What the memory may hold: ``same tokens``, ``whole corpus`` or ``none``."""
        return self.runs[0]["regime"]

    @property
    def control(self) -> bool:
        """Whether the arm runs beside a claim rather than making one."""
        return bool(self.runs[0]["control"])

    @property
    def derived(self) -> bool:
        """Whether the runs reuse another run's trained network."""
        return self.runs[0].get("parent") is not None

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds in ascending order, one for each run."""
        return tuple(row["seed"] for row in self.runs)

    def losses(self, split: str) -> np.ndarray:
        """Bits per byte on a split, in the order of the seeds."""
        return np.array([row["losses"][split][METRIC] for row in self.runs], dtype=float)

    def loss(self, split: str) -> float:
        """Mean bits per byte on a split."""
        return float(self.losses(split).mean())

    def amounts(self, column: str) -> np.ndarray:
        """A column of the bill, in the order of the seeds; 0 where a row does not have it."""
        return np.array([_amount(row, column) for row in self.runs], dtype=float)

    def nats(self) -> np.ndarray:
        """Nats of each test document, ``[seeds, documents]``, for tables that have a text."""
        return np.array([row["losses"]["test"]["documents"]["nats"] for row in self.runs], dtype=float)


@dataclass(frozen=True)
class Table:
    """Everything the rows say, grouped.

    Args:
        study: name of the study.
        fingerprint: of the corpus all rows share.
        cells: by name, budget and width.
        diverged: one sentence for each run left out because its loss is not a number.
        revisions: code revisions seen; more than one only where the caller allowed it.
        mixed: settings that differ between runs although they should not, as the caller allowed.
        text: the documents that all rows are scored on; ``None`` where rows do not say, or not the same.
    """

    study: str
    fingerprint: str
    cells: tuple[Cell, ...]
    diverged: tuple[str, ...]
    revisions: tuple[str, ...]
    mixed: tuple[str, ...] = ()
    text: Text | None = None

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in ascending order."""
        return tuple(sorted({cell.budget for cell in self.cells}))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Arms in the order of reading: dense, arms by regime, then controls by regime."""
        regimes = ("none", "same tokens", "whole corpus")

        def rank(cell: Cell) -> tuple[bool, bool, int, bool]:
            place = regimes.index(cell.regime) if cell.regime in regimes else len(regimes)
            return cell.arm != DENSE, cell.control, place, cell.arm != CONTROL_TO_BEAT

        return tuple(dict.fromkeys(cell.name for cell in sorted(self.cells, key=rank)))

    @cached_property
    def tuned(self) -> Mapping[tuple[str, float], Cell]:
        """The best width of each arm at each budget."""
        best: dict[tuple[str, float], Cell] = {}
        for cell in sorted(self.cells, key=lambda cell: (cell.loss("valid"), cell.width), reverse=True):
            best[cell.name, cell.budget] = cell
        return best

    def best(self, name: str, budget: float) -> Cell | None:
        """The tuned width: lowest mean loss on the validation split, never on the test split."""
        return self.tuned.get((name, budget))

    def of(self, name: str) -> tuple[Cell, ...]:
        """The tuned cells of one arm, by ascending budget."""
        return tuple(cell for budget in self.budgets if (cell := self.best(name, budget)) is not None)


def budget_key(budget: float) -> str:
    """A budget as a key: ``3e12``, ``1.5e13``; ``float(key)`` gives the budget back."""
    digits, exponent = f"{budget:.6e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _amount(row: Row, column: str) -> float:
    value: Any = row
    for part in column.split("."):
        value = (value or {}).get(part)
    return float(value or 0)
