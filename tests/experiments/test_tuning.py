"""Tuning: the same trials for everybody, winners by validation loss."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.data import CodeCorpus
from experiments.run import DEFAULTS
from experiments.study import Study
from experiments.tuning import LAYERS, RANGES, best, plan, trials, tuned

STUDY: dict[str, Any] = {
    "data": CodeCorpus(),
    "arms": ("ngram", "graph"),
    "whole_corpus": ("graph",),
    "controls": ("unigram table", "shuffled edges", "random neighbours"),
    "widths": (32, 48, 64, 96, 128),
    "budgets": (3e12, 1e12),
    "best_width": {1e12: 48, 3e12: 64},
    "sized": {128: {"batch": 8}},
}


def _row(rate: float, loss: float, **changes: Any) -> dict[str, Any]:
    rates = {role: (low * high) ** 0.5 for role, (low, high) in RANGES.items()} | {"matrix": rate}
    return {
        "arm": "dense",
        "regime": "none",
        "width": 64,
        "budget": 1e12,
        "parent": None,
        "params": {"table": 0},
        "settings": {"rates": rates, "layers": 2, "batch": 4},
        "losses": {"valid": {"bits_per_byte": loss}, "test": {"bits_per_byte": -loss}},
        **changes,
    }


def test_trials_are_inside_their_ranges_and_fewer_are_the_first_of_more() -> None:
    for trial in trials(16):
        assert trial["layers"] in LAYERS
        for role, (low, high) in RANGES.items():
            assert low * 0.999 <= trial["rates"][role] <= high * 1.001
    assert {trial["layers"] for trial in trials(8)} == set(LAYERS)
    assert trials(16)[:9] == trials(8)
    assert trials(0)[0]["layers"] == DEFAULTS["layers"]


def test_everything_compared_is_tuned_alike_and_what_is_like_another_is_not() -> None:
    runs = plan(Study(**STUDY), 2)
    tried = {
        (run.arm, run.regime, run.width, run.budget): [
            trial.settings["rates"]
            for trial in runs
            if (trial.arm, trial.regime, trial.width, trial.budget)
            == (run.arm, run.regime, run.width, run.budget)
        ]
        for run in runs
    }
    widths = {1e12: (32, 48, 64, 96), 3e12: (48, 64, 96, 128)}
    expected = {("dense", "none", width, budget) for budget, some in widths.items() for width in some}
    for width, budget in ((48, 1e12), (64, 3e12)):
        expected |= {(arm, "same tokens", width, budget) for arm in ("ngram", "graph", "unigram table")}
        expected |= {("graph", "whole corpus", width, budget)}
    assert set(tried) == expected
    assert all(rates == [trial["rates"] for trial in trials(2)] for rates in tried.values())
    assert [run.budget for run in runs] == sorted(run.budget for run in runs)
    assert {run.settings["batch"] for run in runs if run.width == 128} == {8}


def test_a_control_takes_over_the_tuning_of_what_it_explains() -> None:
    found = {("graph", "same tokens", 48, 1e12): {"rates": {"matrix": 0.007}, "layers": 3}}
    runs = Study(**STUDY, tuned=found).plan()
    shuffled = [run for run in runs if run.arm == "shuffled edges" and run.regime == "same tokens"]
    assert {run.settings["layers"] for run in shuffled} == {3}
    assert all(run.settings["layers"] == DEFAULTS["layers"] for run in runs if run.regime == "whole corpus")


def test_the_winner_has_the_lowest_validation_loss_and_edges_are_told() -> None:
    rows = [_row(0.01, 1.8), _row(0.0041, 1.7), _row(0.02, 1.0, parent="another")]
    (found,) = best(rows)
    assert found["bits_per_byte"] == pytest.approx(1.7)
    assert found["trials"] == 2
    assert found["at_edge"] == ["matrix"]
    assert set(found["settings"]) == {"rates", "layers"}
    deepest = _row(0.009, 1.6)
    deepest["settings"] |= {"layers": LAYERS[-1]}
    assert best([*rows, deepest])[0]["at_edge"] == ["layers"]


def test_a_study_reads_winners_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(best([_row(0.01, 1.8)])))
    assert tuned(path)["dense", "none", 64, 1e12]["layers"] == 2
    assert ("dense", "none", 48, 1e12) in tuned()
