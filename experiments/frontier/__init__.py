"""Rows in, answer out: the tuned dense frontier, multipliers with intervals on six axes, and a verdict."""

from experiments.errors import ResultsError
from experiments.frontier.cautions import OTHER_ARM, OTHER_SIZE, TUNED_HERE, UNTUNED
from experiments.frontier.cells import AXES, CONTROL_TO_BEAT, DENSE, FURTHER_AXES, METRIC, budget_key
from experiments.frontier.rows import tabulate
from experiments.frontier.summary import summarize
from experiments.frontier.verdict import answer, verdict

__all__ = [
    "AXES",
    "CONTROL_TO_BEAT",
    "DENSE",
    "FURTHER_AXES",
    "METRIC",
    "OTHER_ARM",
    "OTHER_SIZE",
    "TUNED_HERE",
    "UNTUNED",
    "ResultsError",
    "answer",
    "budget_key",
    "summarize",
    "tabulate",
    "verdict",
]
