"""What a study lacks is what other arms have."""

from __future__ import annotations

from experiments.frontier import summarize
from tests.experiments.synthetic import rows


def test_controls_may_have_fewer_seeds_and_budgets_but_no_gaps_among_themselves():
    trained = ("unigram table", "random neighbours", "shuffled edges")
    few = [row for row in rows() if row["arm"] not in trained or (row["seed"], row["budget"]) == (0, 3e12)]
    assert not summarize(few)["missing"]
    more = [row for row in rows() if row["arm"] not in trained[1:] or row["seed"] == 0]
    gaps = summarize(more)["missing"]
    assert "random neighbours at 3e12: 1 of 3 seeds (without 1, 2)" in gaps
    assert not any("ngram" in gap or "unigram" in gap for gap in gaps)
