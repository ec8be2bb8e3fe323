"""Tuning: the same trials for everybody, winners by validation loss."""

import pytest

from experiments.tuning import RANGES, best, plan, trials


def test_trials_are_the_same_for_everybody_and_inside_their_ranges() -> None:
    runs = plan([("dense", "none", 64), ("ngram", "same tokens", 64)], 1e12, 8, {64: {"batch": 4}})
    assert len(runs) == 18
    dense, ngram = ([run.settings for run in runs if run.arm == arm] for arm in ("dense", "ngram"))
    assert dense == ngram
    for trial in trials(16):
        assert trial["layers"] in (2, 3)
        for role, (low, high) in RANGES.items():
            assert low * 0.999 <= trial["rates"][role] <= high * 1.001
    assert trials(16)[:9] == trials(8)


def test_the_winner_has_the_lowest_validation_loss_and_edges_are_told() -> None:
    rows = [
        {
            "arm": "dense",
            "regime": "none",
            "width": 64,
            "budget": 1e12,
            "parent": parent,
            "settings": {"rates": {"matrix": rate}, "layers": 2},
            "losses": {"valid": {"bits_per_byte": loss}, "test": {"bits_per_byte": -loss}},
        }
        for rate, loss, parent in ((0.01, 1.8, None), (0.0051, 1.7, None), (0.02, 1.0, "another"))
    ]
    (found,) = best(rows)
    assert found["bits_per_byte"] == pytest.approx(1.7)
    assert found["trials"] == 2
    assert found["at_edge"] == ["matrix"]
