"""Tuning: the same trials for everybody, winners by validation loss."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.data import CodeCorpus
from experiments.run import DEFAULTS, Run
from experiments.study import Study
from experiments.tuning import COORDINATES, best, round_of, steps, tuned
from mann.module import RATES

STUDY: dict[str, Any] = {
    "data": CodeCorpus(),
    "arms": ("ngram", "graph"),
    "whole_corpus": ("graph",),
    "controls": ("unigram table", "shuffled edges", "random neighbours"),
    "widths": (32, 48, 64, 96, 128),
    "budgets": (3e12, 1e12),
    "best_width": {1e12: 48, 3e12: 64},
    "sized": {128: {"batch": 16}},
}


def _row(rate: float, loss: float, **changes: Any) -> dict[str, Any]:
    return {
        "arm": "dense",
        "regime": "none",
        "width": 64,
        "budget": 1e12,
        "parent": None,
        "settings": {"rates": {**RATES, "matrix": rate}, "layers": 2, "batch": 4},
        "losses": {"valid": {"bits_per_byte": loss}, "test": {"bits_per_byte": -loss}},
        **changes,
    }


def _all_places() -> set[tuple[str, str, int, float]]:
    widths = {1e12: (32, 48, 64, 96), 3e12: (48, 64, 96, 128)}
    places = {("dense", "none", width, budget) for budget, some in widths.items() for width in some}
    for width, budget in ((48, 1e12), (64, 3e12)):
        places |= {(arm, "same tokens", width, budget) for arm in ("ngram", "graph", "unigram table")}
        places |= {("graph", "whole corpus", width, budget)}
    return places


def test_everything_compared_is_tuned_alike_and_what_is_like_another_is_not() -> None:
    study = Study(**STUDY)
    for budget, number in itertools.product((1e12, 3e12), range(len(COORDINATES) + 1)):
        runs = round_of(study, budget, [], number)
        tried = Counter((run.arm, run.regime, run.width, run.budget) for run in runs)
        places = [place for place in _all_places() if place[-1] == budget]
        assert tried == dict.fromkeys(places, 2 if number else 1)
        assert number == 1 or {run.settings["batch"] for run in runs if run.width == 128} <= {16}
        changes = {json.dumps({**run.settings, "batch": 0}, sort_keys=True) for run in runs}
        assert len(changes) == (1 if number < 2 else 2)


def test_a_larger_budget_begins_with_what_a_smaller_one_found() -> None:
    study = Study(**STUDY)
    found = _row(0.02, 1.0)
    rows = [found, _row(0.004, 2.0), _row(0.001, 0.5, budget=3e12)]
    starts = {run.arm: run.settings for run in round_of(study, 3e12, rows, 0) if run.width == 64}
    assert starts["dense"]["rates"] == found["settings"]["rates"]
    assert starts["ngram"]["rates"] == RATES


def test_the_search_walks_downhill_and_rounds_done_later_change_nothing() -> None:
    study = Study(
        **{**STUDY, "arms": (), "whole_corpus": (), "controls": (), "widths": (64,), "budgets": (1e12,)}
    )

    def finished(run: Run) -> dict[str, Any]:
        miss = (
            abs(run.settings["batch"] - 4) + abs(run.settings["layers"] - 3) + run.settings["rates"]["matrix"]
        )
        return _row(0.0, miss, settings=run.settings)

    rounds: list[list[Run]] = []
    rows: list[dict[str, Any]] = []
    for number in range(4):
        rounds.append(round_of(study, 1e12, rows, number))
        rows += map(finished, rounds[-1])
    assert [run.settings["batch"] for run in rounds[1]] == [4, 16]
    assert [(run.settings["batch"], run.settings["layers"]) for run in rounds[2]] == [(4, 1), (4, 3)]
    assert {run.settings["layers"] for run in rounds[3]} == {3}
    assert [round_of(study, 1e12, rows, number) for number in range(4)] == rounds
    (winner,) = best(rows)
    assert (winner["settings"]["batch"], winner["settings"]["layers"], winner["trials"]) == (4, 3, 7)
    assert set(winner["at_edge"]) == {"batch", "layers", "matrix"}


def test_a_step_never_leaves_what_can_be_built() -> None:
    settings = {"batch": 1, "layers": 1, "rates": {"embedding": 0.1, "table": 0.2}}
    assert [trial["batch"] for trial in steps(settings, "batch")] == [2, 4]
    assert [trial["layers"] for trial in steps(settings, "layers")] == [2, 3]
    assert steps(settings, "embedding")[1]["rates"] == {"embedding": 0.16, "table": 0.32}


def test_a_control_takes_over_the_tuning_of_what_it_explains() -> None:
    found = {("graph", "same tokens", 48, 1e12): {"rates": {"matrix": 0.007}, "layers": 3}}
    runs = Study(**STUDY, tuned=found).plan()
    shuffled = [run for run in runs if run.arm == "shuffled edges" and run.regime == "same tokens"]
    assert {run.settings["layers"] for run in shuffled} == {3}
    assert all(run.settings["layers"] == DEFAULTS["layers"] for run in runs if run.regime == "whole corpus")


def test_the_winner_has_the_lowest_validation_loss_and_edges_are_told() -> None:
    rows = [_row(0.01, 1.8), _row(0.004, 1.7), _row(0.02, 1.0, parent="another")]
    (found,) = best(rows)
    assert found["bits_per_byte"] == pytest.approx(1.7)
    assert found["trials"] == 2
    assert found["at_edge"] == ["matrix"]
    assert set(found["settings"]) == {"rates", "layers", "batch"}


def test_a_study_reads_winners_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(best([_row(0.01, 1.8)])))
    assert tuned(path)["dense", "none", 64, 1e12]["layers"] == 2
    assert all(found["trials"] > 1 for found in tuned().values())
