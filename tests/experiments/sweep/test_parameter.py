"""Parameters: every distribution is the one W&B's documentation names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.sweep.parameter import KEYS, LARGEST_GRID, Parameter

LOW, HIGH = math.log(0.01), math.log(10)
SHARES = np.linspace(0.01, 0.99, 25)
CONTINUOUS: dict[str, tuple[dict[str, float], Any]] = {
    "uniform": ({"min": -1.0, "max": 3.0}, stats.uniform(-1, 4)),
    "log_uniform": ({"min": LOW, "max": HIGH}, stats.loguniform(0.01, 10)),
    "log_uniform_values": ({"min": 0.01, "max": 10}, stats.loguniform(0.01, 10)),
    "inv_log_uniform": ({"min": -HIGH, "max": -LOW}, stats.loguniform(0.01, 10)),
    "inv_log_uniform_values": ({"min": 0.01, "max": 10}, stats.loguniform(0.01, 10)),
    "normal": ({"mu": 2.0, "sigma": 0.5}, stats.norm(2, 0.5)),
    "log_normal": ({"mu": 0.5, "sigma": 0.25}, stats.lognorm(0.25, scale=math.exp(0.5))),
    "beta": ({"a": 2.0, "b": 5.0}, stats.beta(2, 5)),
}


@pytest.mark.parametrize("distribution", CONTINUOUS)
def test_quantiles_are_those_of_the_distribution(distribution: str) -> None:
    options, truth = CONTINUOUS[distribution]
    parameter = Parameter(("x",), distribution, options)
    assert [parameter.value(share) for share in SHARES] == pytest.approx(list(truth.ppf(SHARES)))


@pytest.mark.parametrize("distribution", [name for name in KEYS if name.startswith("q_")])
def test_a_step_rounds_to_its_multiples(distribution: str) -> None:
    options, truth = CONTINUOUS[distribution.removeprefix("q_")]
    for step in (2, 0.25):
        parameter = Parameter(("x",), distribution, {**options, "q": step})
        values = [parameter.value(share) for share in SHARES]
        assert values == pytest.approx(list(np.round(truth.ppf(SHARES) / step) * step))
        assert step == 0.25 or all(isinstance(value, int) for value in values)


def test_every_distribution_has_a_value_at_both_ends() -> None:
    more = {"values": ["a", "b"], "probabilities": [0.0, 1.0], "value": 7, "q": 1.0}
    for name, keys in KEYS.items():
        options: dict[str, Any] = {**{key: more.get(key) for key in keys}}
        options |= CONTINUOUS.get(name.removeprefix("q_"), ({"min": 1, "max": 4}, None))[0]
        parameter = Parameter(("x",), name, options)
        for share in (0.0, 1.0):
            value = parameter.value(parameter.place(share))
            assert isinstance(value, str) or math.isfinite(value), name


def test_whole_numbers_and_choices_are_drawn_evenly_and_by_their_weights() -> None:
    whole = Parameter(("x",), "int_uniform", {"min": 3, "max": 6})
    shares = (np.arange(1000) + 0.5) / 1000
    drawn = [whole.value(whole.place(share)) for share in shares]
    assert {value: drawn.count(value) for value in set(drawn)} == {3: 250, 4: 250, 5: 250, 6: 250}
    even = Parameter(("x",), "categorical", {"values": ["a", {"b": 1}]})
    assert [even.value(even.place(share)) for share in (0.0, 0.49, 0.51)] == ["a", "a", {"b": 1}]
    weights = {"values": ["a", "b", "c"], "probabilities": [0.1, 0.9, 0.0]}
    weighted = Parameter(("x",), "categorical_w_probabilities", weights)
    drawn = [weighted.value(weighted.place(share)) for share in (*shares, 1.0)]
    assert (drawn.count("a"), drawn.count("c")) == (100, 0)


def test_a_grid_visits_every_value_once() -> None:
    def grid(distribution: str, **options: Any) -> Sequence[Any]:
        return Parameter(("x",), distribution, options).grid()

    assert grid("constant", value=5) == [5]
    assert grid("categorical", values=[2, 1, 2, "1"]) == [2, 1, "1"]
    assert list(grid("int_uniform", min=1, max=3)) == [1, 2, 3]
    assert grid("categorical", values=[1, True, 0, False]) == [1, True, 0, False]
    assert len(grid("int_uniform", min=0, max=10**12)) == 10**12 + 1
    assert len(grid("q_uniform", min=0, max=1e12, q=1)) == LARGEST_GRID + 1
    # W&B's controller goes through numpy.arange, which leaves the end out.
    assert grid("q_uniform", min=0, max=1, q=0.25) == [0, 0.25, 0.5, 0.75]
