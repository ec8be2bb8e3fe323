"""In words: where an arm needs fewer training FLOPs than dense and more of something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier import DENSE
from experiments.frontier.decisions import decide, decision_on, has_interval, training_decision
from experiments.frontier.wording import least, listed, multiplier_text
from experiments.report.axes import axis_names
from experiments.report.marks import KNOCKOUT

DOUBTS = {
    "worse": "",
    "undecided": ", which is not shown at 95 %",
    "no interval": ", which one seed does not show",
}
# A difference that no interval shows and that is smaller is not worth a sentence.
SMALL = 1.1


def trade_offs(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each arm and budget that is better on training FLOPs and has a dearer axis.

    A multiplier *m* below 1 on an axis is ``1/m`` times what dense of equal loss needs there. Whether the interval
    shows it is said; the gain in FLOPs itself is always shown, by both ways of counting.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
    """
    return [
        sentence
        for name, budgets in summary["arms"].items()
        for budget, entry in budgets.items()
        if entry["arm"] != DENSE and KNOCKOUT not in name
        if (sentence := _sentence(name, budget, entry, axis_names(summary)))
    ]


def _sentence(name: str, budget: str, entry: Mapping[str, Any], axes: Mapping[str, str]) -> str | None:
    if "train_flops" not in entry or training_decision(entry) != "better":
        return None
    compared = [(words, *_held(entry, axis)) for axis, words in axes.items() if axis in entry]
    dearer = [
        f"{_times(cell)} times the {words} ({multiplier_text(cell)}{DOUBTS[decision]})"
        for words, cell, decision in compared
        if words != axes["train_flops"] and _dearer(cell, decision)
    ]
    if not dearer:
        return None
    cheaper = entry["train_flops"]
    times = (
        f"at least {least(cheaper):.2f}" if cheaper["beyond"] == "point" else f"{cheaper['multiplier']:.2f}"
    )
    return (
        f"At {budget}, {name} needs {times} times fewer training FLOPs than dense of "
        f"equal loss, but {listed(dearer)}."
    )


def _held(entry: Mapping[str, Any], axis: str) -> tuple[Mapping[str, Any], str]:
    """What an arm is held against on an axis: of two dense frontiers the one that needs less."""
    tuned, strict = entry[axis], entry[axis].get("any_width")
    if strict and strict["multiplier"] and strict["multiplier"] < (tuned["multiplier"] or 0):
        return strict, decide(strict, has_interval(entry))
    return tuned, decision_on(entry, axis)


def _dearer(cell: Mapping[str, Any], decision: str) -> bool:
    """Whether more than dense of equal loss is used; "at least 0.8x" may be anything above."""
    if decision not in DOUBTS or not cell["multiplier"] or cell["multiplier"] >= 1:
        return False
    if cell["beyond"] == "point" and cell["bound"] == "at least":
        return False
    return decision == "worse" or cell["multiplier"] < 1 / SMALL


def _times(cell: Mapping[str, Any]) -> str:
    return f"at least {1 / least(cell):.2f}" if cell["beyond"] == "point" else f"{1 / cell['multiplier']:.2f}"
