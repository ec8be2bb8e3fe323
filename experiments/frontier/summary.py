"""From rows to the summary: every arm at every budget, on every axis, with what it has to beat beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.frontier.cells import (
    AXES,
    CONTROL_TO_BEAT,
    DENSE,
    METRIC,
    Cell,
    Row,
    Table,
    budget_key,
    tabulate,
)
from experiments.frontier.multiplier import Multiplier, Point, multiplier
from experiments.frontier.noise import CONFIDENCE, Noise, noise_of, paired_gain, pool, shared_part


def summarize(rows: Iterable[Row], *, allow_mixed: bool = False) -> dict[str, Any]:
    """Build the summary of a study.

    Four axes are compared. On all of them the frontier has one point a budget: the dense width with the
    lowest mean *validation* loss there, its mean *test* loss, and what it cost. So the four multipliers of an
    arm speak of one and the same dense model, the tuned one that predicts as well. On ``read_flops`` a
    stricter figure stands beside it (``any_budget``): the frontier over the widths, each with the training
    budget of the table that suits it best. It puts the training bill aside, so a small dense model trained
    for longer counts in full against an arm trained for less.

    Args:
        rows: one mapping a run.
        allow_mixed: accept rows of several code revisions.

    Returns:
        JSON-safe values: ``study``, ``fingerprint``, ``budgets``, ``axes``, and ``arms[NAME][BUDGET]`` with
        the axes (``multiplier``, ``low``, ``high``, ``bound``, ``beyond``), ``bits_per_byte`` (``mean``,
        ``low``, ``high``), ``heldout`` (mean bits per byte on sources that train has nothing of), ``control``,
        ``regime``, ``arm``, ``width``, ``seeds``, ``gain_over_counts`` and ``copying``. A missing number is
        ``None``, never NaN.

    Raises:
        ResultsError: when the rows cannot be compared.
    """
    table = tabulate(rows, allow_mixed=allow_mixed)
    shared = shared_part(table)
    arms = {
        name: {budget_key(cell.budget): _cell(cell, table, shared) for cell in table.of(name)}
        for name in table.names
    }
    return {
        "study": table.study,
        "fingerprint": table.fingerprint,
        "budgets": list(table.budgets),
        "axes": list(AXES),
        "arms": arms,
        "dense": [_dense_width(cell, table) for cell in _dense_cells(table)],
        "metric": METRIC,
        "confidence": CONFIDENCE,
        "seeds": sorted({seed for cell in table.cells for seed in cell.seeds}),
        "shared_seed_correlation": shared,
        "missing": _missing(table),
        "diverged": list(table.diverged),
        "revisions": list(table.revisions),
    }


def _cell(cell: Cell, table: Table, shared: float) -> dict[str, Any]:
    noise = noise_of(cell, table)
    half = noise.half_width(len(cell.seeds))
    entry: dict[str, Any] = {axis: _on_axis(cell, table, column, shared) for axis, column in AXES.items()}
    entry["read_flops"]["any_budget"] = _any_budget(cell, table, shared)
    entry["matmul_flops"] = _on_axis(cell, table, "matmul_flops", shared)
    entry[METRIC] = _interval(cell.loss("test"), half)
    entry |= {
        "control": cell.control,
        "regime": cell.regime,
        "arm": cell.arm,
        "width": cell.width,
        "seeds": list(cell.seeds),
        "gain_over_counts": _gain(cell, table),
        "heldout": _heldout(cell),
        "copying": _copying(cell),
        "amounts": {axis: _mean(cell.amounts(column)) for axis, column in AXES.items()},
    }
    return entry


def _on_axis(cell: Cell, table: Table, column: str, shared: float) -> dict[str, Any]:
    if cell.name == DENSE:  # the reference: 1 by definition
        return Multiplier(1.0, 1.0, 1.0).to_dict() | {"reference": True}
    return _compare(cell, table.of(DENSE), table, column, shared)


def _any_budget(cell: Cell, table: Table, shared: float) -> dict[str, Any]:
    if cell.name == DENSE:
        return Multiplier(1.0, 1.0, 1.0).to_dict() | {"reference": True}
    column = AXES["read_flops"]
    best: dict[int, Cell] = {}
    for dense in _dense_cells(table):
        if dense.width not in best or dense.loss("valid") < best[dense.width].loss("valid"):
            best[dense.width] = dense
    return _compare(
        cell, sorted(best.values(), key=lambda each: each.amounts(column).mean()), table, column, shared
    )


def _compare(cell: Cell, dense: Sequence[Cell], table: Table, column: str, shared: float) -> dict[str, Any]:
    amounts = [each.amounts(column) for each in (*dense, cell)]
    # An arm that costs nothing on an axis (a table of counts has no matrix products) has no ratio there.
    if not all((each > 0).all() and np.isfinite(each).all() for each in amounts):
        return Multiplier(None).to_dict()
    points = [_point(each, table, column, _overlap(each, cell) * shared) for each in dense]
    spread = pool(np.log(each) for each in amounts)
    return multiplier(points, _point(cell, table, column), amount_noise=spread).to_dict()


def _point(cell: Cell, table: Table, column: str, shared: float = 0.0) -> Point:
    noise: Noise = noise_of(cell, table)
    return Point(cell.amounts(column), cell.loss("test"), noise, len(cell.seeds), shared)


def _overlap(one: Cell, other: Cell) -> float:
    """How far two means rest on the same seeds: 1 for equal sets, 0 across budgets."""
    if one.budget != other.budget or one.derived or other.derived:
        return 0.0
    return len(set(one.seeds) & set(other.seeds)) / math.sqrt(len(one.seeds) * len(other.seeds))


def _gain(cell: Cell, table: Table) -> dict[str, Any] | None:
    """Against the dense arm with counts of the same regime: positive where the arm is better."""
    control = _control_to_beat(cell, table)
    if control is None or cell.arm in (DENSE, CONTROL_TO_BEAT):
        return None
    pairs = [
        (other, against)
        for name in table.names
        for other in table.of(name)
        if not other.derived and (against := _control_to_beat(other, table)) is not None
    ]
    if cell.derived:
        pairs = [
            (other, against) for other in table.of(cell.name) if (against := _control_to_beat(other, table))
        ]
    mean, half = paired_gain(cell, control, pairs)
    return _interval(mean, half) | {"control": control.name}


def _control_to_beat(cell: Cell, table: Table) -> Cell | None:
    for name in table.names:
        control = table.best(name, cell.budget)
        if control is not None and control.arm == CONTROL_TO_BEAT and control.regime == cell.regime:
            return control
    return None


def _heldout(cell: Cell) -> float | None:
    if not all("heldout" in row["losses"] for row in cell.runs):
        return None
    return _mean(cell.losses("heldout"))


def _copying(cell: Cell) -> dict[str, float] | None:
    probes = [probe for row in cell.runs if (probe := (row.get("probes") or {}).get("copying"))]
    if not probes:
        return None
    return {copy: float(np.mean([probe[copy] for probe in probes])) for copy in ("first", "second")}


def _dense_cells(table: Table) -> tuple[Cell, ...]:
    cells = [cell for cell in table.cells if cell.name == DENSE]
    return tuple(sorted(cells, key=lambda cell: (cell.budget, cell.width)))


def _dense_width(cell: Cell, table: Table) -> dict[str, Any]:
    half = noise_of(cell, table).half_width(len(cell.seeds))
    return {
        "budget": cell.budget,
        "width": cell.width,
        "seeds": list(cell.seeds),
        "valid": cell.loss("valid"),
        METRIC: _interval(cell.loss("test"), half),
        "tuned": table.best(DENSE, cell.budget) is cell,
        "amounts": {axis: _mean(cell.amounts(column)) for axis, column in AXES.items()},
    }


def _missing(table: Table) -> list[str]:
    """What other arms have and one arm lacks, in words; budgets that only dense ran are no gap.

    Controls are held against each other: a study may give them fewer budgets and seeds. What is derived from a run
    lacks what that run lacks, which is said once.
    """
    compared = [cell for cell in table.cells if cell.name != DENSE]
    budgets = sorted({cell.budget for cell in compared})
    trained = [cell for cell in table.cells if not cell.derived]
    expected = {
        control: {seed for cell in trained if cell.control == control for seed in cell.seeds}
        for control in (False, True)
    }
    controls = tuple({cell.arm for cell in trained if cell.control})
    controlled = {cell.budget for cell in trained if cell.control}
    gaps: list[str] = []
    for name in table.names:
        for budget in budgets:
            if budget not in controlled and table.of(name)[0].arm.startswith(controls):
                continue
            cell = table.best(name, budget)
            place = f"{name} at {budget_key(budget)}"
            if cell is None:
                gaps.append(f"{place}: not run")
            elif not cell.derived and (lacking := sorted(expected[cell.control] - set(cell.seeds))):
                without = ", ".join(map(str, lacking))
                planned = len(expected[cell.control])
                gaps.append(f"{place}: {len(cell.seeds)} of {planned} seeds (without {without})")
    if not compared:
        gaps.append("every arm but dense")
    return gaps


def _mean(values: np.ndarray) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


def _interval(mean: float, half: float | None) -> dict[str, Any]:
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
    }
