"""Tuning: the same trials for everybody, winners by validation loss."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.data import CodeCorpus
from experiments.errors import RunError
from experiments.results import Results
from experiments.run import DEFAULTS, Run
from experiments.study import Study
from experiments.tuning import COORDINATES, best, round_of, steps, tune, tuned
from mann.module import RATES

STUDY: dict[str, Any] = {
    "data": CodeCorpus(),
    "arms": ("ngram", "graph"),
    "whole_corpus": ("graph",),
    "controls": ("unigram table", "shuffled edges", "random neighbours"),
    "widths": (32, 48, 64, 96, 128),
    "budgets": (3e12, 1e12),
    "reach": (1e13,),
    "best_width": {1e12: 48, 3e12: 64},
    "sized": {128: {"batch": 16}},
}
SMALL = {**STUDY, "arms": ("ngram",), "whole_corpus": (), "controls": (), "widths": (64,), "reach": ()}
Loss = Callable[[Run], float]


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


def _finished(run: Run, loss: float, corpus: str = "text") -> dict[str, Any]:
    place = {
        "study": "tuning",
        "arm": run.arm,
        "regime": run.regime,
        "width": run.width,
        "budget": run.budget,
    }
    known = {"corpus": corpus, "run": run.key(corpus), "settings": dict(run.settings)}
    return _row(0.0, loss, **place, **known)


def _search(folder: Path, study: Study, loss: Loss, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Tune with a made-up loss; a trial whose loss is not finite diverges."""
    titles = []
    with Results(folder, "text", "tuning") as results:

        def carry_out(title: str, runs: list[Run]) -> Sequence[Run]:
            titles.append(title)
            lost = [run for run in runs if loss(run) == float("inf")]
            for run in runs:
                if run not in lost and run.key("text") not in results.finished:
                    results.append([_finished(run, loss(run))])
            return lost

        *_, found = tune(study, results, carry_out, rounds)
    return found, titles


def _miss(run: Run) -> float:
    """Best at batch 4, three layers and small matrix rates; other arms and budgets a little elsewhere."""
    batch, layers = run.settings["batch"], run.settings["layers"]
    wanted = (4, 3) if run.arm == "dense" else (8, 2)
    deviation = abs(batch - wanted[0]) + abs(layers - wanted[1])
    # More rounds gain dense something, and an n-gram arm nothing: they would begin a larger budget elsewhere.
    gain = run.settings["rates"]["embedding"] if run.arm == "dense" else 0.0
    return 10 + deviation + run.settings["rates"]["matrix"] - gain


def test_everything_compared_is_tuned_and_what_is_like_another_is_not() -> None:
    study = Study(**STUDY)
    widths = {1e12: (32, 48, 64, 96), 3e12: (48, 64, 96, 128), 1e13: (48, 64, 96, 128)}
    expected = {("dense", "none", width, budget) for budget, some in widths.items() for width in some}
    for width, budget in ((48, 1e12), (64, 3e12)):
        expected |= {(arm, "same tokens", width, budget) for arm in ("ngram", "graph", "unigram table")}
        expected |= {("graph", "whole corpus", width, budget)}
    assert study.tuning_budgets == [1e12, 3e12, 1e13]
    for number in range(len(COORDINATES) + 1):
        tried = Counter(
            (run.arm, run.regime, run.width, run.budget)
            for budget in study.tuning_budgets
            for run in round_of(study, budget, [], number)
        )
        assert tried == dict.fromkeys(expected, 2 if number else 1)


def test_each_round_moves_one_coordinate() -> None:
    study = Study(**STUDY)
    (first,) = {_text(run, "batch") for run in round_of(study, 1e12, [], 0)}
    for number, coordinate in enumerate(COORDINATES, start=1):
        texts = {_text(run, "batch") for run in round_of(study, 1e12, [], number)}
        if coordinate == "batch":
            assert texts == {first}
        else:
            assert len(texts) == 2
            assert first not in texts


def _text(run: Run, without: str) -> str:
    return json.dumps({**run.settings, without: None}, sort_keys=True)


def test_a_larger_budget_begins_with_what_a_smaller_one_found() -> None:
    study = Study(**STUDY)
    found = _row(0.02, 1.0)
    rows = [found, _row(0.004, 2.0), _row(0.001, 0.5, budget=3e12)]
    starts = {run.arm: run.settings for run in round_of(study, 3e12, rows, 0) if run.width == 64}
    assert starts["dense"]["rates"] == found["settings"]["rates"]
    assert starts["ngram"]["rates"] == RATES


def test_a_search_at_a_large_budget_alone_goes_on_from_what_the_study_knows() -> None:
    known = {("dense", "none", 64, budget): {"layers": layers} for budget, layers in ((1e12, 5), (3e12, 7))}
    study = Study(**STUDY, tuned=known)
    first = {budget: round_of(study, budget, [], 0)[0] for budget in (1e12, 3e12)}
    assert first[1e12].settings["layers"] == DEFAULTS["layers"]
    assert first[3e12].settings["layers"] == 5


def test_what_is_known_of_an_arm_counts_where_only_others_were_searched() -> None:
    known = {
        (arm, regime, 64, 1e12): {"layers": 5}
        for arm, regime in (("dense", "none"), ("ngram", "same tokens"))
    }
    rows = [_row(0.02, 1.0)]
    starts = {run.arm: run.settings for run in round_of(Study(**STUDY, tuned=known), 3e12, rows, 0)}
    assert starts["dense"]["layers"] == 2
    assert starts["ngram"]["layers"] == 5


def test_the_search_walks_downhill(tmp_path: Path) -> None:
    found, titles = _search(tmp_path, Study(**SMALL), _miss, 3)
    assert titles[:2] == ["1e12, round 0 of 3, where to begin", "1e12, round 1 of 3, batch"]
    by_arm = {(entry["arm"], entry["budget"]): entry for entry in found}
    for budget in (1e12, 3e12):
        dense, ngram = by_arm["dense", budget], by_arm["ngram", budget]
        assert (dense["settings"]["batch"], dense["settings"]["layers"]) == (4, 3)
        assert (ngram["settings"]["batch"], ngram["settings"]["layers"]) == (8, 2)
        assert dense["trials"] == ngram["trials"] == 7
    assert by_arm["ngram", 1e12]["at_edge"] == ["matrix"]


def test_trials_stay_equal_when_a_search_goes_on_or_finds_foreign_rows(tmp_path: Path) -> None:
    study = Study(**SMALL)
    _search(tmp_path, study, _miss, 2)
    with Results(tmp_path, "text", "tuning") as results:
        foreign = Run("tuning", "dense", "none", 1000, 64, 1e12, {**DEFAULTS, "rates": RATES, "time": 7})
        results.append([_finished(foreign, 0.001)])
    found, _ = _search(tmp_path, study, _miss, 5)
    assert {entry["trials"] for entry in found} == {11}
    again, _ = _search(tmp_path, study, _miss, 5)
    assert again == found
    fresh, _ = _search(tmp_path / "fresh", study, _miss, 5)
    assert fresh == found


def test_a_trial_that_diverges_counts_and_never_wins(tmp_path: Path) -> None:
    def loss(run: Run) -> float:
        return float("inf") if run.settings["batch"] == 4 else _miss(run)

    found, _ = _search(tmp_path, Study(**SMALL), loss, 2)
    assert {entry["trials"] for entry in found} == {5}
    assert all(entry["settings"]["batch"] != 4 for entry in found)


def test_a_coordinate_has_one_turn(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="0 to 5"):
        _search(tmp_path, Study(**SMALL), _miss, 6)


def test_a_step_never_leaves_what_can_be_built() -> None:
    settings = {"batch": 1, "layers": 1, "rates": {"embedding": 0.1, "table": 0.2}}
    assert [trial["batch"] for trial in steps(settings, "batch")] == [2, 4]
    assert [trial["layers"] for trial in steps(settings, "layers")] == [2, 3]
    assert steps(settings, "embedding")[1]["rates"] == {"embedding": 0.16, "table": 0.32}


def test_the_winner_has_the_lowest_validation_loss_and_edges_are_told() -> None:
    (found,) = best([_row(0.01, 1.8), _row(0.004, 1.7), _row(0.02, 1.75)])
    assert found["bits_per_byte"] == pytest.approx(1.7)
    assert found["trials"] == 3
    assert found["at_edge"] == ["matrix"]
    assert set(found["settings"]) == {"rates", "layers", "batch"}


def test_a_control_takes_over_the_tuning_of_what_it_explains() -> None:
    found = {("graph", "same tokens", 48, 1e12): {"rates": {"matrix": 0.007}, "layers": 3, "trials": 11}}
    runs = Study(**STUDY, tuned=found).plan()
    shuffled = [run for run in runs if run.arm == "shuffled edges" and run.regime == "same tokens"]
    assert {run.settings["layers"] for run in shuffled} == {3}
    assert {run.settings["trials"] for run in shuffled} == {0}
    graph = {
        run.budget: run.settings["trials"]
        for run in runs
        if run.arm == "graph" and run.settings["layers"] == 3
    }
    assert graph == {1e12: 11, 3e12: 0}
    assert all(run.settings["layers"] == DEFAULTS["layers"] for run in runs if run.regime == "whole corpus")


def test_an_arm_that_is_like_another_can_be_tuned_by_itself() -> None:
    study = Study(**{**STUDY, "arms": ("suffix graph",)})
    assert ("suffix graph", "same tokens", 48) in study.tuning_places(1e12)
    own = {
        ("suffix graph", "same tokens", 48, 1e12): {"layers": 4},
        ("graph", "same tokens", 48, 1e12): {"layers": 3},
    }
    runs = Study(**{**STUDY, "arms": ("suffix graph",)}, tuned=own).plan()
    assert {run.settings["layers"] for run in runs if run.arm == "suffix graph"} == {4}


def test_a_study_reads_winners_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    with pytest.raises(RunError, match="mnemograph tune"):
        tuned(path)
    path.write_text(json.dumps(best([_row(0.01, 1.8)])))
    assert tuned(path)["dense", "none", 64, 1e12]["layers"] == 2


def test_the_library_comes_with_equally_tuned_arms() -> None:
    found = tuned()
    assert {("dense", "none", 64, 1e12), ("graph", "whole corpus", 64, 3e12)} <= set(found)
    compared = [entry["trials"] for (*_, budget), entry in found.items() if budget in (1e12, 3e12)]
    assert len(set(compared)) == 1
