"""Tuning: the same trials for everybody, winners by validation loss."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.data import CodeCorpus
from experiments.errors import RunError
from experiments.results import Results
from experiments.run import DEFAULTS, Run
from experiments.study import Study
from experiments.tuning import LATER, REACH, TRIALS, best, first_round, round_of, trials_around, tune, tuned
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
        "seed": run.seed,
        "width": run.width,
        "budget": run.budget,
    }
    known = {"corpus": corpus, "run": run.key(corpus), "settings": dict(run.settings)}
    return _row(0.0, loss, **place, **known)


def _search(folder: Path, study: Study, loss: Loss, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Tune with a made-up loss; a trial whose loss is not finite diverges."""
    titles = []
    with Results(folder, "text", "tuning") as results:

        def carry_out(title: str, runs: list[Run]) -> None:
            titles.append(title)
            for run in runs:
                if run.key("text") in results.finished:
                    continue
                lost = loss(run) == float("inf")
                row = _finished(run, loss(run))
                results.append([{**row, "losses": {}, "diverged": "nan"} if lost else row])

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
    widths = {1e12: (32, 48, 64, 96), 3e12: (48, 64, 96, 128), 1e13: (48, 64, 96)}
    expected = {("dense", "none", width, budget) for budget, some in widths.items() for width in some}
    for width, budget in ((48, 1e12), (64, 3e12)):
        expected |= {(arm, "same tokens", width, budget) for arm in ("ngram", "graph", "unigram table")}
        expected |= {("graph", "whole corpus", width, budget)}
    assert study.tuning_budgets == [1e12, 3e12, 1e13]
    assert Study(**{**STUDY, "reach": (1e13, 3.1e11)}).tuning_budgets == [1e12, 3e12, 3.1e11, 1e13]
    for number in range(LATER, len(REACH)):
        tried = Counter(
            (run.arm, run.regime, run.width, run.budget)
            for budget in study.tuning_budgets
            for run in round_of(study, budget, [], number)
        )
        assert tried == dict.fromkeys(expected, TRIALS)


def test_a_round_is_as_wide_for_all_and_narrower_than_the_one_before() -> None:
    settings = {"batch": 8, "layers": 3, "rates": dict(RATES)}
    widest = float("inf")
    for number, reach in enumerate(REACH):
        trials = trials_around(settings, number)
        assert len(trials) == len({json.dumps(trial) for trial in trials}) == TRIALS
        octaves = np.log2([trial["rates"]["matrix"] / RATES["matrix"] for trial in trials])
        # Quasi-random points leave no half of the range empty.
        assert -reach <= octaves.min() < -reach / 2 < reach / 2 < octaves.max() <= reach
        assert np.ptp(octaves) < widest
        widest = np.ptp(octaves)
        for trial in trials:
            table, embedding = (trial["rates"][role] / RATES[role] for role in ("table", "embedding"))
            assert table == pytest.approx(embedding, rel=0.01)
            assert trial["rates"]["scalar"] == RATES["scalar"]
    other = {"batch": 2, "layers": 1, "rates": {role: 2 * rate for role, rate in RATES.items()}}
    moved = [trial["rates"]["head"] for trial in trials_around(other, 1)]
    assert moved == pytest.approx(
        [2 * trial["rates"]["head"] for trial in trials_around(settings, 1)], rel=0.01
    )


def test_the_first_trial_at_the_smallest_budget_is_what_the_study_says() -> None:
    study = Study(**STUDY)
    for number in (0, 1):
        firsts = {run.arm: run for run in reversed(round_of(study, 1e12, [], number)) if run.width == 48}
        same = {arm: run.settings["rates"] == RATES for arm, run in firsts.items()}
        assert set(same.values()) == {number == 0}


def test_a_larger_budget_begins_with_what_a_smaller_one_found() -> None:
    study = Study(**STUDY)
    found = _row(0.02, 1.0)
    rows = [found, _row(0.004, 2.0), _row(0.001, 0.5, budget=3e12)]
    starts = _starts(study, 3e12, rows)
    assert starts["dense"]["rates"] == found["settings"]["rates"]
    assert starts["ngram"]["rates"] == RATES


def test_a_search_at_a_large_budget_alone_goes_on_from_what_the_study_knows() -> None:
    known = {("dense", "none", 64, budget): {"layers": layers} for budget, layers in ((1e12, 5), (3e12, 7))}
    study = Study(**STUDY, tuned=known)
    assert round_of(study, 1e12, [], 0)[0].settings["layers"] == DEFAULTS["layers"]
    assert _starts(study, 3e12, [])["dense"]["layers"] == 5


def test_what_is_known_of_an_arm_counts_where_only_others_were_searched() -> None:
    known = {
        (arm, regime, 64, 1e12): {"layers": 5}
        for arm, regime in (("dense", "none"), ("ngram", "same tokens"))
    }
    rows = [_row(0.02, 1.0)]
    starts = _starts(Study(**STUDY, tuned=known), 3e12, rows)
    assert starts["dense"]["layers"] == 2
    assert starts["ngram"]["layers"] == 5


def test_a_search_goes_on_from_an_earlier_one_that_was_everywhere() -> None:
    study = Study(**STUDY)
    known = {
        (*place, budget): {"layers": 5, "trials": 11}
        for budget in (1e12, 3e12)
        for place in study.tuning_places(budget)
    }
    assert first_round(study, 1e12) == 0
    for budget in (1e12, 3e12):
        assert first_round(Study(**STUDY, tuned=known), budget) == LATER
        starts = {
            (run.arm, run.regime, run.width): run
            for run in reversed(round_of(Study(**STUDY, tuned=known), budget, [_row(0.02, 1.0)], LATER))
        }
        assert {run.settings["layers"] for run in starts.values()} == {5}
    # An arm that the earlier search left out would be behind: all of them begin wide.
    lacking = {place: found for place, found in known.items() if place[0] != "graph"}
    assert first_round(Study(**STUDY, tuned=lacking), 1e12) == 0
    assert round_of(Study(**STUDY, tuned=lacking), 1e12, [], 0)[0].settings["layers"] == DEFAULTS["layers"]


def _starts(study: Study, budget: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where each arm begins at a larger budget."""
    first = {}
    for run in round_of(study, budget, rows, LATER):
        if run.width == 64:
            first.setdefault(run.arm, run.settings)
    return first


def test_the_search_closes_in(tmp_path: Path) -> None:
    found, titles = _search(tmp_path, Study(**SMALL), _miss, len(REACH))
    assert titles[:2] == ["1e12, round 1 of 4", "1e12, round 2 of 4"]
    assert titles[4:] == ["3e12, round 1 of 2", "3e12, round 2 of 2"]
    by_arm = {(entry["arm"], entry["budget"]): entry for entry in found}
    for budget in (1e12, 3e12):
        dense, ngram = by_arm["dense", budget], by_arm["ngram", budget]
        assert dense["trials"] == ngram["trials"] == (4 if budget == 1e12 else 2) * TRIALS
        assert (dense["settings"]["batch"], dense["settings"]["layers"]) == (4, 3)
        assert (ngram["settings"]["batch"], ngram["settings"]["layers"]) == (8, 2)
        assert dense["settings"]["rates"]["matrix"] < RATES["matrix"]


def test_no_range_ends_a_search(tmp_path: Path) -> None:
    """What is best lies far outside of where the first round looks."""
    found, _ = _search(tmp_path, Study(**SMALL), lambda run: -run.settings["rates"]["head"], len(REACH))
    for entry in found:
        assert entry["settings"]["rates"]["head"] > 2 ** REACH[0] * RATES["head"]
        assert "head" in entry["at_edge"]


def test_trials_stay_equal_when_a_search_goes_on_or_finds_foreign_rows(tmp_path: Path) -> None:
    study = Study(**SMALL)
    _search(tmp_path, study, _miss, 3)
    with Results(tmp_path, "text", "tuning") as results:
        foreign = Run("tuning", "dense", "none", 1000, 64, 1e12, {**DEFAULTS, "rates": RATES, "time": 7})
        results.append([_finished(foreign, 0.001)])
    found, _ = _search(tmp_path, study, _miss, 4)
    assert {entry["trials"] for entry in found} == {4 * TRIALS, 2 * TRIALS}
    again, _ = _search(tmp_path, study, _miss, 4)
    assert again == found
    fresh, _ = _search(tmp_path / "fresh", study, _miss, 4)
    assert fresh == found


def test_a_trial_that_diverges_counts_and_never_wins(tmp_path: Path) -> None:
    def loss(run: Run) -> float:
        return float("inf") if run.settings["batch"] == 4 else _miss(run)

    found, _ = _search(tmp_path, Study(**SMALL), loss, 3)
    assert {entry["trials"] for entry in found} == {3 * TRIALS, 2 * TRIALS}
    assert all(entry["settings"]["batch"] != 4 for entry in found)


def test_there_are_so_many_rounds(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="1 to 4"):
        _search(tmp_path, Study(**SMALL), _miss, 5)


def test_a_trial_never_leaves_what_can_be_built() -> None:
    settings = {"batch": 1, "layers": 1, "rates": dict(RATES)}
    assert all(trial["batch"] >= 1 and trial["layers"] >= 1 for trial in trials_around(settings, 0))


def test_the_winner_has_the_lowest_validation_loss_and_edges_are_told() -> None:
    (found,) = best([_row(0.01, 1.8), _row(0.004, 1.7), _row(0.02, 1.75)])
    assert found["bits_per_byte"] == pytest.approx(1.7)
    assert found["trials"] == 3
    assert found["at_edge"] == ["matrix"]
    assert set(found["settings"]) == {"rates", "layers", "batch"}


def test_the_least_that_there_is_is_no_edge() -> None:
    def row(layers: int, loss: float) -> dict[str, Any]:
        return _row(0.01, loss, settings={"rates": dict(RATES), "layers": layers, "batch": 4})

    (found,) = best([row(1, 1.0), row(2, 1.5)])
    assert found["at_edge"] == []
    (found,) = best([row(2, 1.0), row(3, 1.5)])
    assert found["at_edge"] == ["layers"]


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
