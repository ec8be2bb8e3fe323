"""Joint draws: as far apart as seeds and documents move losses, together where they do so together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.frontier import tabulate
from experiments.frontier.draws import Draws
from experiments.frontier.noise import Spreads
from tests.experiments.synthetic import rows


def test_documents_move_all_arms_alike_and_their_difference_as_the_jackknife_says():
    table = tabulate(rows(documents=80, noise=0.01))
    spreads = Spreads(table)
    draws = Draws(table, spreads, 20_000)
    dense, ngram = table.tuned["dense", 3e12], table.tuned["ngram", 3e12]
    moved = draws.from_documents(dense), draws.from_documents(ngram)
    assert np.corrcoef(*moved)[0, 1] > 0.9
    assert table.text is not None
    # A t distribution is wider than its scale.
    wide = math.sqrt(table.text.df / (table.text.df - 2))
    for cell, each in ((dense, moved[0]), (ngram, moved[1])):
        assert each.std() == pytest.approx(math.sqrt(spreads.error(cell).documents) * wide, rel=0.05)
    difference = (spreads.runs(dense) - spreads.runs(ngram)).influence
    assert difference is not None
    expected = math.sqrt((difference.mean(axis=0) ** 2).sum()) * wide
    assert (moved[0] - moved[1]).std() == pytest.approx(expected, rel=0.05)


def test_seeds_move_a_mean_by_its_standard_error_and_arms_of_a_budget_together_where_seen():
    table = tabulate(rows(seeds=12, noise=0.01, shared=0.8))
    spreads = Spreads(table)
    draws = Draws(table, spreads, 20_000)
    dense, ngram, other = table.tuned["dense", 3e12], table.tuned["ngram", 3e12], table.tuned["ngram", 1e12]
    assert draws.from_seeds(ngram).std() == pytest.approx(spreads.noise(ngram).sd / math.sqrt(12), rel=0.05)
    together = np.corrcoef(draws.from_seeds(dense), draws.from_seeds(ngram))[0, 1]
    assert together == pytest.approx(spreads.shared, abs=0.05)
    assert abs(np.corrcoef(draws.from_seeds(other), draws.from_seeds(ngram))[0, 1]) < 0.05
    assert (draws.losses(ngram) == ngram.loss("test") + draws.from_seeds(ngram)).all()
