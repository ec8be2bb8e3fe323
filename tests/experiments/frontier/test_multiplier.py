"""A multiplier is a number inside the measured range, a bound outside, and its p-value knows which side it is on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.frontier import summarize
from experiments.frontier.curve import Frontier
from experiments.frontier.decisions import decide, training_decision
from experiments.frontier.multiplier import Multiplier, multiplier
from experiments.frontier.wording import multiplier_text
from tests.experiments.synthetic import rows


def only(worth: float) -> dict[tuple[str, str], dict[str, float]]:
    return {("ngram", "same tokens"): {"worth": worth, "read": 1.0}}


def test_outside_of_the_dense_range_there_is_a_bound_and_no_number():
    arms = {
        ("a", "same tokens"): {"worth": 10.0, "read": 1.0},
        ("b", "same tokens"): {"worth": 0.3, "read": 1.0},
    }
    summary = summarize(rows(arms=arms))
    above = summary["arms"]["a"]["3e12"]["train_flops"]
    assert (above["bound"], above["beyond"], above["high"]) == ("at least", "point", None)
    assert above["multiplier"] == pytest.approx(1e13 / 3e12)
    assert above["low"] == pytest.approx(above["multiplier"])
    below = summary["arms"]["b"]["1e12"]["train_flops"]
    assert (below["bound"], below["beyond"], below["low"]) == ("at most", "point", None)
    assert below["multiplier"] == pytest.approx(1.0)
    assert multiplier_text(above) == "at least 3.33x"


def test_the_range_ends_at_the_best_dense_run_not_at_the_dearest():
    logs, losses = np.log([1.0, 2.0, 8.0, 4.0]), np.array([2.0, 1.8, 1.9, 1.6])
    frontier = Frontier(logs, losses, np.zeros(4), logs[None], losses[None])
    found = multiplier(frontier, 1.5, math.log(2.0), np.array([1.5]), np.array([math.log(2.0)]))
    assert (found.multiplier, found.low, found.bound) == (pytest.approx(2.0), pytest.approx(2.0), "at least")


def test_an_interval_that_leaves_the_range_is_marked():
    summary = summarize(rows(arms=only(3.25), budgets=(3e12,), noise=0.02, rng=5))
    cell = summary["arms"]["ngram"]["3e12"]["train_flops"]
    assert (cell["bound"], cell["high"]) == ("at least", None)
    assert cell["low"] is not None
    assert cell["multiplier"] <= 1e13 / 3e12 * (1 + 1e-9)


def test_a_bound_of_exactly_one_decides_where_every_draw_is_beyond():
    arms = {
        ("a", "same tokens"): {"worth": 3.0, "read": 1.0},
        ("b", "same tokens"): {"worth": 0.3, "read": 1.0},
    }
    summary = summarize(rows(arms=arms, budgets=(1e12, 1e13)))
    above, below = summary["arms"]["a"]["1e13"], summary["arms"]["b"]["1e12"]
    assert (above["train_flops"]["bound"], above["train_flops"]["multiplier"]) == (
        "at least",
        pytest.approx(1.0),
    )
    assert training_decision(above) == "better"
    assert training_decision(below) == "worse"
    assert decide(Multiplier(0.98, 0.98, None, "at least", "point").to_dict(), True) == "undecided"
    assert decide(Multiplier(1.0, 0.9, None, "at least", "point").to_dict(), True) == "undecided"
    assert decide(Multiplier(1.3, 0.99, 1.6).to_dict(), True) == "undecided"


def frontier(draws: int) -> Frontier:
    logs, losses = np.log([1e12, 3e12, 1e13]), np.array([2.0, 1.8, 1.6])
    return Frontier(logs, losses, np.zeros(3), np.tile(logs, (draws, 1)), np.tile(losses, (draws, 1)))


def compared(loss: float, own: float, spread: float) -> Multiplier:
    drawn = loss + spread * np.linspace(-2, 2, 999)
    return multiplier(frontier(999), loss, math.log(own), drawn, np.full(999, math.log(own)))


def test_the_p_value_is_twice_the_part_of_the_draws_on_the_lesser_side():
    # Losses from 1.70 to 1.86 around 1.78: those above 1.8, a quarter, are worse than dense at 3e12.
    found = compared(1.78, 3e12, 0.04)
    assert found.p == pytest.approx(2 * (1.86 - 1.8) / 0.16, abs=0.01)
    assert found.low is not None
    assert found.low < 1
    assert compared(1.7, 3e12, 0.01).p == pytest.approx(2 / 1000)
    assert compared(1.8, 3e12, 0.01).p == pytest.approx(1.0, abs=0.01)


def test_a_draw_beyond_the_range_counts_for_the_side_where_it_left_unless_the_arm_stands_there_itself():
    assert compared(1.5, 1e13, 0.001).p == pytest.approx(2 / 1000)
    assert compared(1.5, 2e13, 0.001).p == 1.0
    assert compared(2.1, 1e12, 0.001).p == pytest.approx(2 / 1000)
    assert compared(2.1, 5e11, 0.001).p == 1.0


def test_without_draws_there_is_neither_interval_nor_p_value():
    found = multiplier(frontier(1), 1.7, math.log(3e12), np.empty(0), np.empty(0))
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.multiplier == pytest.approx(math.exp(math.log(10 / 3) / 2))
