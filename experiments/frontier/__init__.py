"""Rows in, answer out: the tuned dense frontier, multipliers with intervals on four axes, and a verdict."""

from experiments.frontier.cells import (
    AXES,
    CONTROL_TO_BEAT,
    DENSE,
    METRIC,
    ResultsError,
    budget_key,
    tabulate,
)
from experiments.frontier.summary import summarize
from experiments.frontier.verdict import answer, verdict

__all__ = [
    "AXES",
    "CONTROL_TO_BEAT",
    "DENSE",
    "METRIC",
    "ResultsError",
    "answer",
    "budget_key",
    "summarize",
    "tabulate",
    "verdict",
]
