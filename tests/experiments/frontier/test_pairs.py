"""Two arms on the same seeds and documents: what they share is not in their difference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from experiments.frontier import summarize, tabulate
from experiments.frontier.noise import Spreads
from experiments.frontier.pairs import Pairs
from tests.experiments.synthetic import rows


def pair(summary: dict[str, Any], *names: str) -> dict[str, Any]:
    return next(
        each
        for each in summary["pairs"]
        if {each["arm"], each["against"]} == set(names) and each["budget"] == "3e12"
    )


def test_every_two_arms_are_compared_once_and_agree_with_their_losses():
    summary = summarize(rows(noise=0.0))
    keys = [
        (each["budget"], each["regime"], *sorted((each["arm"], each["against"]))) for each in summary["pairs"]
    ]
    assert len(set(keys)) == len(keys)
    for each in summary["pairs"]:
        losses = [
            summary["arms"][each[who]][each["budget"]]["bits_per_byte"]["mean"] for who in ("against", "arm")
        ]
        assert each["mean"] == pytest.approx(losses[0] - losses[1])
    found = pair(summary, "ngram", "dense")
    assert found["arm"] == "ngram"
    assert found["mean"] == pytest.approx(0.16 * math.log(2.2))
    assert not any("memory off" in each["arm"] for each in summary["pairs"])
    assert any({each["arm"], each["against"]} == {"graph", "shuffled edges"} for each in summary["pairs"])


def test_what_moves_all_arms_alike_is_not_in_a_difference():
    own = pair(summarize(rows(noise=0.02, shared=0.0, rng=1)), "ngram", "knn")
    shared = pair(summarize(rows(noise=0.02, shared=0.95, rng=1)), "ngram", "knn")
    assert shared["high"] - shared["low"] < 0.5 * (own["high"] - own["low"])


def test_pairs_that_share_an_arm_count_for_less_than_independent_ones():
    table = tabulate(rows(noise=0.01))
    pairs = Pairs(table, Spreads(table))
    dense, *arms = [
        cell
        for cell in table.tuned.values()
        if cell.budget == 3e12 and cell.name in ("dense", "ngram", "knn", "graph")
    ]
    assert pairs._pool([(dense, arms[0])]).df == 2
    # All six differences of four arms tell as much as three independent ones, two degrees of freedom each.
    every = [(one, other) for place, one in enumerate([dense, *arms]) for other in arms[place:]]
    assert len(every) == 6
    assert pairs._pool(every).df == pytest.approx(6)


def test_intervals_of_differences_cover_over_seeds_and_documents():
    hit, total = 0, 0
    true = 0.16 * math.log(2.2 / 1.3)
    for rng in range(40):
        draw = np.random.default_rng([7, rng])
        table = rows(noise=0.01, rng=rng, budgets=(3e12,), dense_budgets=(3e12,))
        sizes = np.round(4000 * np.exp(draw.standard_normal(50)))
        tastes: dict[str, np.ndarray] = {}
        for row in table:
            taste = tastes.setdefault(row["arm"] + row["regime"], 0.05 * draw.standard_normal(50))
            nats = (row["losses"]["test"]["bits_per_byte"] + taste) * sizes * math.log(2)
            row["losses"]["test"] = {
                "bits_per_byte": nats.sum() / sizes.sum() / math.log(2),
                "documents": {"nats": nats.tolist(), "bytes": sizes.tolist()},
            }
        found = pair(summarize(table, draws=100), "ngram", "graph")
        sign = 1 if found["arm"] == "ngram" else -1
        hit += found["low"] <= sign * true <= found["high"]
        total += 1
    # Of 40 with a coverage of 95 %, fewer than 33 happen once in 1,000 times.
    assert hit >= 33
    assert total == 40
