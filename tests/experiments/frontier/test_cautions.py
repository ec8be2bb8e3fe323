"""What is to be held against a comparison is said, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.frontier import answer, summarize, verdict
from experiments.frontier.decisions import counts_decision, training_decision
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


def test_nothing_is_claimed_of_an_arm_that_was_not_asked():
    why = "ngram was not asked whether it reads the future: it says something else each time"
    table = [row | ({"unasked": why} if row["arm"] == "ngram" else {}) for row in rows(noise=0.001)]
    sure, unsure = summarize(rows(noise=0.001)), summarize(table)
    entry = unsure["arms"]["ngram"]["3e12"]
    assert training_decision(sure["arms"]["ngram"]["3e12"]) == "better"
    assert (training_decision(entry), counts_decision(entry)) == ("not asked", "not asked")
    assert entry["train_flops"]["multiplier"] == sure["arms"]["ngram"]["3e12"]["train_flops"]["multiplier"]
    assert "ngram" in answer(sure)
    assert "ngram" not in answer(unsure).replace("ngram + counts", "")
    told = verdict(unsure)
    assert "no claim from an arm not asked whether it reads the future" in told
    assert "no claim" in told.split("ngram, same tokens")[-1].split("\n")[0]


def test_a_finished_study_without_best_widths_is_finished_untuned_and_says_what_to_set():
    summary = summarize(own_study())
    assert summary["missing"] == []
    assert summary["cautions"]["tuning"].startswith("Settings are untuned: no trial chose batch")
    assert "`mnemograph tune`" in summary["cautions"]["tuning"]
    widths = summary["cautions"]["widths"]
    assert "at 1e12 at 96, dense being best at 64, with 1 of 2 seeds" in widths
    assert "`best_width={1e12: 64, 3e12: 64, 1e13: 96}`" in widths
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


@pytest.mark.parametrize("told", [{"settings_from": "defaults"}, {"settings": {"trials": 0, "rates": {}}}])
def test_an_arm_nobody_tuned_is_not_said_to_have_settings_of_another_size(told: dict[str, Any]):
    given = [row | told if (row["arm"], row["budget"]) == ("ngram", 3e12) else row for row in rows(arms=FEW)]
    summary = summarize(given)
    assert summary["tuned"]
    assert summary["cautions"]["tuning"].startswith(
        "Not tuned at any size, but run with the settings of the study and the defaults: ngram at 3e12."
    )
    assert "found" not in summary["cautions"]["tuning"]


def test_each_source_of_settings_has_a_sentence_of_its_own():
    given = rows(arms=FEW)
    for row in given:
        sources = {("dense", 1e13): "another size", ("ngram", 1e12): "another arm", ("knn", 3e12): "defaults"}
        if source := sources.get((row["arm"], row["budget"])):
            row["settings"] = {"trials": 0, "rates": {"matrix": 0.01}}
            row["settings_from"] = source
    told = summarize(given)["cautions"]["tuning"]
    assert "found at another size or budget: dense at 1e13." in told
    assert "found for the arm that they are like: ngram at 1e12." in told
    assert "the settings of the study and the defaults: knn at 3e12." in told


@pytest.mark.parametrize("source", ["another size", "defaults"])
def test_dense_is_not_called_tuned_because_an_arm_is(source: str):
    given = rows(arms=FEW)
    for row in given:
        if row["arm"] == "dense":
            row["settings"]["trials"] = 0
            row["settings_from"] = source
    summary = summarize(given)
    assert not summary["tuned"]
    assert "better than untuned dense per training FLOP" in answer(summary)
    told = summary["cautions"]["tuning"]
    assert told.startswith(
        "No trial at these sizes and budgets chose settings of dense, but trials chose those"
    )
    assert "those of ngram, knn and graph: part of what these gain" in told
    assert "dense at 1e12, dense at 3e12 and dense at 1e13" in told


def test_dense_widths_that_are_not_compared_with_do_not_make_it_tuned():
    given = rows(arms=FEW)
    for row in given:
        if row["arm"] != "dense" or row["width"] != 128:
            row["settings"]["trials"] = 0
    assert not summarize(given)["tuned"]


def test_where_all_settings_are_from_other_sizes_it_is_not_said_that_no_trial_chose_them():
    given = [row | {"settings": {"trials": 0}, "settings_from": "another size"} for row in rows(arms=FEW)]
    summary = summarize(given)
    assert not summary["tuned"]
    told = summary["cautions"]["tuning"]
    assert told.startswith(
        "Not tuned there, but run with settings found at another size or budget: dense at 1e12"
    )
    assert "trial" not in told


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


def test_an_arm_that_could_not_be_asked_whether_it_reads_the_future_is_named_before_all_else():
    given = rows(arms=FEW)
    why = "knn was not asked whether it reads the future: a store cannot be built"
    for row in given:
        row["unasked"] = why if row["arm"] == "knn" else ""
    summary = summarize(given)
    assert next(iter(summary["cautions"].items())) == (
        "future",
        f"{why}. Until that is asked no result of such an arm stands, also where it is called better: it may have read "
        "what it was to predict.",
    )
    assert why in verdict(summary)
