"""What is to be held against a comparison is said, and only then."""

from __future__ import annotations

from typing import Any

from experiments.frontier import answer, summarize, verdict
from tests.experiments.synthetic import ARMS, rows

FEW = {key: ARMS[key] for key in list(ARMS)[:3]}


def own_study() -> list[dict[str, Any]]:
    """Without a best width: dense has all seeds at the middle width, 96, and is better at 64 with the first seed."""
    given = rows(seeds=2, arms=FEW, noise=0.001)
    kept = [row for row in given if row["arm"] != "dense" or row["seed"] == 0 or row["width"] == 96]
    for row in kept:
        row["settings"]["trials"] = 0
        if row["arm"] != "dense":
            row["width"] = 96
    return kept


def test_a_tuned_study_on_a_quiet_machine_has_none():
    summary = summarize(rows(arms=FEW))
    assert (summary["tuned"], summary["cautions"]) == (True, {})
    older = rows(arms=FEW)
    for row in older:
        del row["settings"]["trials"]  # rows that do not say are not blamed
    assert (summarize(older)["tuned"], summarize(older)["cautions"]) == (True, {})


def test_a_finished_study_without_best_widths_is_finished_untuned_and_says_what_to_set():
    summary = summarize(own_study())
    assert summary["missing"] == []
    assert summary["cautions"]["tuning"].startswith("Settings are untuned: no trial chose batch")
    assert "`mnemograph tune`" in summary["cautions"]["tuning"]
    widths = summary["cautions"]["widths"]
    assert "at 1e12 at 96, dense being best at 64, with 1 of 2 seeds" in widths
    assert "`best_width={1e12: 64, 3e12: 64}`" in widths
    assert "untuned dense per training FLOP" in answer(summary)
    told = verdict(summary)
    assert "Partial" not in told
    assert all(caution in told for caution in summary["cautions"].values())


def test_a_seed_that_dense_lacks_at_every_width_is_missing():
    lacking = [row for row in own_study() if (row["arm"], row["seed"], row["budget"]) != ("dense", 1, 3e12)]
    assert summarize(lacking)["missing"] == ["dense at 3e12: 1 of 2 seeds (without 1)"]


def test_settings_from_another_size_are_named_in_a_study_that_is_tuned():
    given = rows(arms=FEW)
    for row in given:
        if (row["arm"], row["budget"]) == ("ngram", 3e12):
            row["settings"]["trials"] = 0
    assert summarize(given)["cautions"] == {
        "tuning": "Not tuned there, but run with settings found at another size or budget: ngram at 3e12."
    }


def test_seconds_of_a_busy_machine_are_said_to_mean_little():
    given = rows(arms=FEW)
    slow = next(row for row in given if (row["arm"], row["budget"], row["seed"]) == ("ngram", 3e12, 1))
    slow["seconds"] = {**slow["seconds"], "train": 1.9 * slow["seconds"]["train"]}
    assert "seconds" not in summarize(given)["cautions"]
    slow["seconds"] = {**slow["seconds"], "train": 2.0 * slow["seconds"]["train"]}
    told = summarize(given)["cautions"]["seconds"]
    assert told.startswith(
        "Seconds were measured under uneven load and mean little: runs of ngram at 3e12, width 64"
    )
    assert "3.8 times as long per FLOP" in told
