"""Holm by hand, and the family it is applied to."""

from __future__ import annotations

import pytest

from experiments.frontier import summarize
from experiments.frontier.corrections import holm
from tests.experiments.synthetic import rows


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([]) == []


def test_the_family_is_every_arm_at_every_budget_of_a_regime_without_controls():
    summary = summarize(rows())
    assert summary["corrections"]["same tokens"] == {
        "method": "Holm",
        "comparisons": 6,
        "comparisons_with_counts": 6,
    }
    assert summary["corrections"]["whole corpus"]["comparisons"] == 4
    for name, budgets in summary["arms"].items():
        for entry in budgets.values():
            found = entry["train_flops"]
            assert (found["p_holm"] is None) == (name == "dense" or entry["control"])
            if found["p_holm"] is not None:
                assert found["p"] <= found["p_holm"] <= 1
            gain = entry["gain_over_counts"]
            if gain is not None and not entry["control"]:
                assert gain["p"] <= gain["p_holm"] <= 1
                assert (gain["p"] < 0.05) == (gain["low"] > 0 or gain["high"] < 0)
