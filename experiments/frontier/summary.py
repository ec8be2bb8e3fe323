"""From rows to the summary: every arm at every budget, on every axis, with what it has to beat beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.frontier.cautions import cautions, is_tuned
from experiments.frontier.cells import AXES, DENSE, FURTHER_AXES, METRIC, Cell, Row, Table, budget_key
from experiments.frontier.corrections import correct
from experiments.frontier.curve import Fit
from experiments.frontier.decisions import conventions_differ, training_decision
from experiments.frontier.draws import DRAWS
from experiments.frontier.entries import Entries, amounts, dense_cells
from experiments.frontier.gaps import missing
from experiments.frontier.noise import CONFIDENCE
from experiments.frontier.planning import needed
from experiments.frontier.rows import tabulate


def summarize(rows: Iterable[Row], *, allow_mixed: bool = False, draws: int = DRAWS) -> dict[str, Any]:
    """Build the summary of a study.

    Six axes are compared. On all of them the frontier has one point a budget: the dense width with the
    lowest mean *validation* loss there, its mean *test* loss, and what it cost. So the multipliers of an
    arm speak of one and the same dense model, the tuned one that predicts as well. On ``read_flops`` a
    stricter figure stands beside it (``any_budget``): the frontier over the widths, each with the training
    budget of the table that suits it best. It puts the training bill aside, so a small dense model trained
    for longer counts in full against an arm trained for less. So it is with ``any_width`` on ``seconds`` and ``bytes``:
    dense of every width and budget, those that no cheaper one predicts as well as.

    Intervals are over seeds and, where every row tells the losses of the same test documents, over documents:
    they speak of other seeds and of other documents of the same sources, not of other sources.

    Args:
        rows: one mapping a run.
        allow_mixed: accept rows of several code revisions.
        draws: how many an interval is taken from.

    Returns:
        JSON-safe values; a missing number is ``None``, never NaN.

        - ``study``, ``fingerprint``, ``budgets``, ``axes``, ``metric``, ``confidence``, ``seeds``, ``missing``,
          ``diverged``, ``revisions``, ``mixed``;
        - ``tuned``: whether any trial chose settings of dense; ``cautions``: sentences about ``future``,
          ``tuning``, ``widths`` and ``seconds``, where there is something to hold against the numbers;
        - ``arms[NAME][BUDGET]``: the axes and ``matmul_flops`` (``multiplier``, ``low``, ``high``, ``bound``,
          ``beyond``, ``p``; on ``train_flops`` also ``p_holm``), ``bits_per_byte`` (``mean``, ``low``, ``high``,
          ``over_seeds``), ``heldout`` (mean bits per byte on sources that train has nothing of), ``control``,
          ``regime``, ``arm``, ``width``, ``seeds``, ``gain_over_counts``, ``copying``, ``amounts`` and
          ``seeds_needed`` (``seeds``, ``text``, ``power``, where nothing could be told apart);
        - ``dense``: every width at every budget;
        - ``pairs``: every two arms of a regime at a budget, ``mean``, ``low`` and ``high`` of the loss of
          ``against`` minus that of ``arm``, without correction for their number;
        - ``intervals``: what they are ``over``, how many ``documents`` were scored, and how many of equal
          size would tell as much (``effective_documents``);
        - ``corrections``: for each regime, for how many comparisons ``p_holm`` is corrected;
        - ``frontier_fit``: how the frontier of training FLOPs is read between its points, and why;
        - ``shared_seed_correlation``: of trained arms of one budget and seed, as used.

    Raises:
        ResultsError: when the rows cannot be compared.
    """
    table = tabulate(rows, allow_mixed=allow_mixed)
    # Enough that a comparison can be significant after correction for all of them.
    claims = sum(not cell.control and cell.name != DENSE for cell in table.cells)
    entries = Entries(table, max(draws, 80 * claims))
    arms = {
        name: {budget_key(cell.budget): entries.of(cell) for cell in table.of(name)} for name in table.names
    }
    corrections = correct(arms)
    for name, budgets in arms.items():
        for cell in table.of(name):
            entry = budgets[budget_key(cell.budget)]
            entry["seeds_needed"] = _needed(cell, entry, entries, corrections)
    return {
        "study": table.study,
        "fingerprint": table.fingerprint,
        "budgets": list(table.budgets),
        "axes": [*AXES, *FURTHER_AXES],
        "arms": arms,
        "dense": [_dense_width(cell, table, entries) for cell in dense_cells(table)],
        "pairs": entries.pairs.all(),
        "metric": METRIC,
        "confidence": CONFIDENCE,
        "intervals": _intervals(table),
        "corrections": corrections,
        "frontier_fit": _fit(entries),
        "seeds": sorted({seed for cell in table.cells for seed in cell.seeds}),
        "shared_seed_correlation": entries.spreads.shared,
        "missing": missing(table),
        "tuned": is_tuned(table),
        "cautions": cautions(table),
        "diverged": list(table.diverged),
        "revisions": list(table.revisions),
        "mixed": list(table.mixed),
    }


def _needed(
    cell: Cell, entry: dict[str, Any], entries: Entries, corrections: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    if cell.arm == DENSE or cell.control or training_decision(entry) != "undecided":
        return None
    if conventions_differ(entry):  # no number of seeds makes them agree
        return None
    found = entries.gap(cell)
    return None if found is None else needed(found, corrections[cell.regime]["comparisons"])


def _intervals(table: Table) -> dict[str, Any]:
    if table.text is None:
        return {"over": ["seeds"], "documents": None, "effective_documents": None}
    return {
        "over": ["seeds", "documents"],
        "documents": table.text.reached,
        "effective_documents": table.text.effective,
    }


def _fit(entries: Entries) -> dict[str, Any]:
    frontier = entries.axes["train_flops"].frontier
    if frontier is None:
        return Fit("log-linear", 0, "dense runs without a bill have no frontier").to_dict()
    return frontier.fit.to_dict()


def _dense_width(cell: Cell, table: Table, entries: Entries) -> dict[str, Any]:
    return {
        "budget": cell.budget,
        "width": cell.width,
        "seeds": list(cell.seeds),
        "valid": cell.loss("valid"),
        METRIC: entries.loss(cell),
        "tuned": table.best(DENSE, cell.budget) is cell,
        "amounts": amounts(cell),
    }
