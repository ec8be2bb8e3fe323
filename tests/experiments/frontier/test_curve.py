"""The frontier is interpolated only, as a path or as a power law that its points lie on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.frontier.curve import amount_at, choose, fit_power_law, power_law_amount_at


def naive_amount(amounts: list[float], losses: list[float], target: float) -> float:
    """Walk along the path; between two points the loss is straight in log amount."""
    best: list[float] = []
    for loss in losses:
        best.append(min([loss, *best]))
    if target > best[0]:
        return -math.inf
    for place, loss in enumerate(best):
        if loss <= target:
            if place == 0:
                return math.log(amounts[0])
            high, low = math.log(amounts[place]), math.log(amounts[place - 1])
            return low + (best[place - 1] - target) / (best[place - 1] - loss) * (high - low)
    return math.inf


def test_interpolation_agrees_with_a_readable_loop():
    draw = np.random.default_rng(0)
    for _ in range(300):
        count = int(draw.integers(1, 6))
        amounts = np.sort(draw.uniform(1, 100, count))
        losses, target = draw.uniform(1, 3, count), draw.uniform(0.8, 3.2)
        got = amount_at(np.log(amounts)[None], losses[None], np.array([target]))[0]
        assert got == pytest.approx(naive_amount(list(amounts), list(losses), target))


def test_interpolation_meets_its_points_and_never_leaves_their_range():
    logs, losses = np.log([[1e12, 3e12, 1e13]]), np.array([[2.0, 1.8, 1.6]])
    for place in range(3):
        assert amount_at(logs, losses, losses[:, place])[0] == pytest.approx(logs[0, place])
    assert amount_at(logs, losses, np.array([1.5999]))[0] == math.inf
    assert amount_at(logs, losses, np.array([2.0001]))[0] == -math.inf


def test_a_point_worse_than_an_earlier_one_bends_nothing():
    logs = np.log([[1.0, 10.0, 100.0]])
    bumped = amount_at(logs, np.array([[2.0, 2.4, 1.0]]), np.array([1.5]))[0]
    assert bumped == pytest.approx(math.log(10) + math.log(10) / 2)


def test_power_law_is_recovered_and_refused_where_it_does_not_fit():
    logs = np.log(np.array([1e12, 2e12, 4e12, 8e12, 1.6e13]))
    law = 1.0 + 3000.0 * np.exp(-0.3 * logs)
    floor, _, exponent = fit_power_law(logs[None], law[None])
    assert floor[0] == pytest.approx(1.0, abs=0.02)
    assert exponent[0] == pytest.approx(0.3, abs=0.02)
    target = np.array([1.0 + 3000.0 * math.exp(-0.3 * math.log(5e12))])
    assert math.exp(
        power_law_amount_at(logs[None], fit_power_law(logs[None], law[None]), target)[0]
    ) == pytest.approx(5e12, rel=0.01)
    errors = np.full(5, 0.002)
    fit = choose(logs, law, errors)
    assert fit.method == "power law"
    assert fit.floor == pytest.approx(1.0, abs=0.02)
    assert fit.residual is not None
    assert fit.residual < 1
    refused = choose(logs, law - np.array([0, 0.03, 0, 0.03, 0]), errors)
    assert refused.method == "log-linear"
    assert refused.residual is not None
    assert refused.residual > 2
    few = choose(logs[:3], law[:3], errors[:3])
    assert few.method == "log-linear"
    assert "3 budgets" in few.why
    assert few.residual is None


def test_power_law_keeps_to_the_measured_range():
    logs = np.log(np.array([[1e12, 2e12, 4e12, 8e12]]))
    law = 1.0 + 3000.0 * np.exp(-0.3 * logs)
    fit = fit_power_law(logs, law)
    assert power_law_amount_at(logs, fit, np.array([law.min() - 0.01]))[0] == math.inf
    assert power_law_amount_at(logs, fit, np.array([0.5]))[0] == math.inf
    assert power_law_amount_at(logs, fit, np.array([law.max() + 0.01]))[0] == -math.inf


def test_a_draw_below_zero_is_fitted_like_any_other():
    logs = np.log(np.array([[1e12, 2e12, 4e12, 8e12]]))
    law = 3000.0 * np.exp(-0.3 * logs) - 0.5
    floor, log_scale, exponent = fit_power_law(logs, law)
    assert law.min() < 0
    assert floor[0] < law.min()
    assert np.isfinite([log_scale[0], exponent[0]]).all()
