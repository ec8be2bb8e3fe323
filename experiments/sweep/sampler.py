"""Which parameters a trial gets. What is chosen depends on the file, the seed and the trials before, on nothing else:
a sweep that was interrupted goes on as if it had not been."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.errors import RunError
from experiments.sweep.config import Metric, Sweep
from experiments.sweep.parameter import LARGEST_GRID
from experiments.sweep.trial import FAILED, FINISHED, Place, Trial

if TYPE_CHECKING:
    import optuna

# Optuna's own number of random trials before TPE.
RANDOM_FIRST = 10


class Sampler:
    """Parameters of a trial by its number.

    Args:
        sweep: The file.
        seed: Of everything random.
    """

    def __init__(self, sweep: Sweep, seed: int) -> None:
        self.sweep = sweep
        self.seed = seed
        self._grid = [parameter.grid() for parameter in sweep.parameters] if sweep.method == "grid" else []
        if self.size is not None and self.size > LARGEST_GRID:
            raise RunError(
                f"{sweep.path}: parameters: {self.size} combinations are too many for method: grid"
            )

    @property
    def size(self) -> int | None:
        """The number of combinations of a grid; without end otherwise."""
        return math.prod(map(len, self._grid)) if self._grid else None

    def place(self, number: int, before: Sequence[Trial], running: Sequence[Place] = ()) -> Place:
        """Where a trial lies.

        Args:
            number: The trial.
            before: Trials that have ended.
            running: Where those lie that have not.
        """
        if self.size is not None:
            # The last parameter turns fastest.
            place: Place = {}
            for parameter, values in zip(reversed(self.sweep.parameters), reversed(self._grid), strict=True):
                number, place[parameter.name] = divmod(number, len(values))
            return place
        earlier = sorted((one for one in before if one.number < number), key=lambda one: one.number)
        if self.sweep.method == "bayes" and len(earlier) >= RANDOM_FIRST:
            return self._likely(number, earlier, running)
        random = np.random.default_rng([self.seed, number])
        return {one.name: one.place(float(random.random())) for one in self.sweep.parameters}

    def params(self, place: Place) -> dict[str, Any]:
        """The parameters at a place, nested as in the file."""
        params: dict[str, Any] = {}
        for number, parameter in enumerate(self.sweep.parameters):
            where = place[parameter.name]
            value = self._grid[number][int(where)] if self._grid else parameter.value(where)
            level = params
            for part in parameter.path[:-1]:
                level = level.setdefault(part, {})
            level[parameter.path[-1]] = value
        return params

    def _likely(self, number: int, earlier: Sequence[Trial], running: Sequence[Place]) -> Place:
        """By Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), told all earlier trials anew."""
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution
        from optuna.trial import TrialState, create_trial

        metric = self.sweep.metric
        assert metric is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searched = [one for one in self.sweep.parameters if one.distribution != "constant"]
        space: dict[str, optuna.distributions.BaseDistribution] = {
            one.name: FloatDistribution(0, 1)
            if one.choices is None
            else CategoricalDistribution(range(len(one.choices)))
            for one in searched
        }
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True
            )
        study = optuna.create_study(sampler=sampler)
        costs = _costs(earlier, metric)
        for trial in earlier:
            if trial.number in costs:
                params = {name: trial.place[name] for name in space}
                study.add_trial(create_trial(params=params, distributions=space, value=costs[trial.number]))
        for place in running:
            params = {name: place[name] for name in space}
            study.add_trial(create_trial(params=params, distributions=space, state=TrialState.RUNNING))
        return {one.name: 0.0 for one in self.sweep.parameters} | study.ask(space).params


def _costs(trials: Sequence[Trial], metric: Metric) -> Mapping[int, float]:
    """What each trial was worth, something to be made small; of a failed one, what ``metric.impute`` says."""
    known = {
        one.number: metric.cost(one.value) for one in trials if one.value is not None and one.state != FAILED
    }
    finished = [known[one.number] for one in trials if one.state == FINISHED and one.number in known]
    costs = dict(known)
    for trial in trials:
        if trial.state != FAILED:
            continue
        if metric.impute == "latest" and trial.value is not None:
            costs[trial.number] = metric.cost(trial.value)
        elif finished:
            costs[trial.number] = min(finished) if metric.impute == "best" else max(finished)
    return costs
