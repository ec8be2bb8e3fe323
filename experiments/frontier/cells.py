"""Rows of a study, checked and grouped into cells: the runs that differ in nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.errors import ResultsError

Row = Mapping[str, Any]

# The name an axis has in a summary, and the column of a run that holds its amount.
AXES = {
    "train_flops": "train_flops",
    "read_flops": "read_flops",
    "seconds": "train_seconds",
    "bytes": "train_bytes",
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

    @property
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
        """A column of the bill, in the order of the seeds."""
        return np.array([row.get(column) or 0 for row in self.runs], dtype=float)


@dataclass(frozen=True)
class Table:
    """Everything the rows say, grouped.

    Args:
        study: name of the study.
        fingerprint: of the corpus all rows share.
        cells: by name, budget and width.
        diverged: one sentence for each run left out because its loss is not a number.
        revisions: code revisions seen; more than one only where the caller allowed it.
    """

    study: str
    fingerprint: str
    cells: tuple[Cell, ...]
    diverged: tuple[str, ...]
    revisions: tuple[str, ...]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in ascending order."""
        return tuple(sorted({cell.budget for cell in self.cells}))

    @property
    def names(self) -> tuple[str, ...]:
        """Arms in the order of reading: dense, arms by regime, then controls by regime."""
        regimes = ("none", "same tokens", "whole corpus")

        def rank(cell: Cell) -> tuple[bool, bool, int, bool]:
            place = regimes.index(cell.regime) if cell.regime in regimes else len(regimes)
            return cell.arm != DENSE, cell.control, place, cell.arm != CONTROL_TO_BEAT

        return tuple(dict.fromkeys(cell.name for cell in sorted(self.cells, key=rank)))

    def best(self, name: str, budget: float) -> Cell | None:
        """The tuned width: lowest mean loss on the validation split, never on the test split."""
        cells = [cell for cell in self.cells if cell.name == name and cell.budget == budget]
        return min(cells, key=lambda cell: (cell.loss("valid"), cell.width)) if cells else None

    def of(self, name: str) -> tuple[Cell, ...]:
        """The tuned cells of one arm, by ascending budget."""
        return tuple(cell for budget in self.budgets if (cell := self.best(name, budget)) is not None)


def budget_key(budget: float) -> str:
    """A budget as a key: ``3e12``, ``1.5e13``; ``float(key)`` gives the budget back."""
    digits, exponent = f"{budget:.6e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def tabulate(rows: Iterable[Row], *, allow_mixed: bool = False) -> Table:
    """Check rows and group them into cells; a run that appears twice counts once, as last written.

    Args:
        rows: one mapping a run.
        allow_mixed: accept rows of several code revisions; never rows of two corpora.

    Raises:
        ResultsError: no rows; two studies or corpora; two revisions without ``allow_mixed``; a row that
            lacks a column; two runs that claim the same place; no dense run.
    """
    unique: dict[tuple[str, str, str], Row] = {}
    for number, row in enumerate(rows, start=1):
        _check_columns(row, number)
        # Derived rows carry their parent's run; arm and regime tell them apart.
        unique[row["run"], row["arm"], row["regime"]] = row
    if not unique:
        raise ResultsError(
            "no results yet: run the study (`mnemograph compare`), then report on its results.jsonl"
        )
    runs = list(unique.values())
    studies = _distinct(runs, "study")
    if len(studies) > 1:
        raise ResultsError(
            f"rows of {len(studies)} studies ({', '.join(studies)}) in one file: "
            "give each study its own --out directory"
        )
    corpora = _distinct(runs, "corpus")
    if len(corpora) > 1:
        raise ResultsError(
            f"rows of {len(corpora)} corpora cannot be compared: {_counted(runs, 'corpus', corpora)}. "
            "Losses on different text are different quantities; move the rows of one corpus to another "
            "directory, or run the study again into a new --out directory"
        )
    revisions = _distinct(runs, "code")
    if len(revisions) > 1 and not allow_mixed:
        raise ResultsError(
            f"rows of {len(revisions)} code revisions: {_counted(runs, 'code', revisions)}. Run the older "
            "ones again, or pass allow_mixed=True (--allow-mixed) if you know that the change between them "
            "touches no number"
        )
    finite = [row for row in runs if _finite(row)]
    diverged = tuple(
        f"{row['arm']}, budget {budget_key(row['budget'])}, width {row['width']}, seed {row['seed']}"
        for row in runs
        if not _finite(row)
    )
    cells = _group(finite, {row["run"]: row for row in runs if row.get("parent") is None})
    if not any(cell.arm == DENSE for cell in cells):
        raise ResultsError(
            "no finished dense run among the rows: a multiplier is read off the dense frontier, "
            "so run the dense arm first"
        )
    return Table(studies[0], corpora[0], cells, diverged, tuple(revisions))


def _group(rows: Sequence[Row], by_run: Mapping[str, Row]) -> tuple[Cell, ...]:
    grouped: dict[tuple[str, float, int], dict[int, Row]] = {}
    for row in rows:
        key = (_name(row, by_run), float(row["budget"]), int(row["width"]))
        seeds = grouped.setdefault(key, {})
        if row["seed"] in seeds:
            raise ResultsError(
                f"two runs of {key[0]} at budget {budget_key(key[1])}, width {key[2]}, seed {row['seed']}: "
                f"{seeds[row['seed']]['run']} and {row['run']}; keep the one whose settings you mean"
            )
        seeds[row["seed"]] = row
    return tuple(
        Cell(name, budget, width, tuple(seeds[seed] for seed in sorted(seeds)))
        for (name, budget, width), seeds in grouped.items()
    )


def _name(row: Row, by_run: Mapping[str, Row]) -> str:
    """Regime and origin of a control are part of the name, so that two of them never share a row."""
    name = row["arm"]
    parent = by_run.get(row.get("parent") or "")
    if parent is not None and parent["arm"] != DENSE and parent["arm"] not in name:
        name = f"{name}, {parent['arm']}"
    return f"{name} (whole corpus)" if row["regime"] == "whole corpus" else name


def _check_columns(row: Row, number: int) -> None:
    needed = (
        "study",
        "run",
        "arm",
        "regime",
        "control",
        "seed",
        "width",
        "budget",
        "losses",
        "corpus",
        *AXES.values(),
    )
    missing = [column for column in needed if column not in row]
    missing += [f"losses.{split}" for split in ("valid", "test") if split not in row.get("losses", {})]
    if missing:
        raise ResultsError(
            f"row {number} lacks {', '.join(missing)}: it was written by another version; "
            "delete that line and run it again"
        )


def _finite(row: Row) -> bool:
    losses = (row["losses"][split].get(METRIC) for split in ("valid", "test"))
    return all(loss is not None and math.isfinite(loss) for loss in losses)


def _distinct(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(str(row.get(column, "unknown")) for row in rows))


def _counted(rows: Sequence[Row], column: str, values: Sequence[str]) -> str:
    counts = [sum(str(row.get(column, "unknown")) == value for row in rows) for value in values]
    return ", ".join(f"{value} ({count} rows)" for value, count in zip(values, counts, strict=True))
