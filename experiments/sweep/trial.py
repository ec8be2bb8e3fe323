"""One trial of a sweep, and the line it leaves in ``trials.jsonl``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.sweep.config import Metric

FINISHED: Literal["finished"] = "finished"
STOPPED: Literal["stopped early"] = "stopped early"
FAILED: Literal["failed"] = "failed"
State = Literal["finished", "stopped early", "failed"]
# By parameter: where in its distribution a trial lies, from 0 to 1, or the number of a choice.
Place = dict[str, float | int]


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Args:
        number: From 0, in the order of beginning.
        params: What it ran with.
        state: How it ended.
        value: The metric; of a trial that was stopped or failed, what it logged last.
        steps: How many times it logged the metric.
        seconds: How long it took.
        run: W&B's id.
        place: Where the parameters lie in their distributions.
        stops: With early termination: the cost at each stop it reached.
        reason: Why it failed.
    """

    number: int
    params: dict[str, Any]
    state: State
    value: float | None
    steps: int
    seconds: float
    run: str
    place: Place
    stops: dict[int, float] = field(default_factory=dict)
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """As it stands in ``trials.jsonl``."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Trial:
        """Read back.

        Raises:
            ValueError: If it is no such line.
        """
        trial = cls(**{**row, "stops": {int(stop): cost for stop, cost in row["stops"].items()}})
        right = (
            isinstance(trial.number, int) and isinstance(trial.params, dict) and isinstance(trial.place, dict)
        )
        if not right or not (trial.value is None or isinstance(trial.value, int | float)):
            raise ValueError("a trial has a number, parameters and a value")
        return trial


def ranked(trials: Sequence[Trial], metric: Metric | None) -> list[Trial]:
    """The best first: finished trials before stopped ones, failed ones not at all."""
    whole = [trial for trial in trials if trial.state != FAILED]
    if metric is None:
        return sorted(whole, key=lambda trial: trial.number)
    return sorted(
        (trial for trial in whole if trial.value is not None),
        key=lambda trial: (trial.state != FINISHED, metric.cost(trial.value or 0.0), trial.number),
    )
