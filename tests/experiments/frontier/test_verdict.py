"""The verdict says no more than the intervals do, and what they are."""

from __future__ import annotations

import pytest

from experiments.frontier import answer, summarize, verdict
from experiments.frontier.decisions import decide, training_decision
from tests.experiments.synthetic import ARMS, rows


def only(worth: float) -> dict[tuple[str, str], dict[str, float]]:
    return {("ngram", "same tokens"): {"worth": worth, "read": 1.0}}


def test_verdict_names_axis_budget_regime_seeds_and_interval():
    text = verdict(summarize(rows()))
    line = next(
        line for line in text.splitlines() if line.startswith("ngram, same tokens, 3 seeds, budget 3e12")
    )
    assert "training FLOPs 2." in line
    assert "better" in line
    assert 'It beats "dense + counts"' in line
    assert "inference FLOPs" in line
    assert "training seconds" in line
    assert "training bytes" in line
    assert "inference bytes" in line
    assert "parameters" in line
    slow = next(
        line for line in text.splitlines() if line.startswith("knn, same tokens, 3 seeds, budget 3e12")
    )
    assert 'does not beat "dense + counts"' in slow
    assert "training bytes 0.3" in slow
    assert "worse" in slow
    assert "data access, not architecture" in text
    assert "Dense has not learned to copy" in text
    assert "gains over a model that copies" in text


@pytest.mark.parametrize(
    ("worth", "said"),
    [
        (2.5, "ngram is better than tuned dense per training FLOP (ngram 2.5"),
        (1.0, "none of 1 arms (ngram) is shown to be better"),
        (0.6, "ngram is shown to be worse"),
    ],
)
def test_the_answer_follows_the_numbers(worth: float, said: str):
    assert said in answer(summarize(rows(arms=only(worth), rng=2)))


def test_the_answer_holds_a_winner_against_the_control():
    table = only(1.6) | {("dense + counts", "same tokens"): ARMS["dense + counts", "same tokens"]}
    assert 'but not shown to beat "dense + counts"' in answer(summarize(rows(arms=table)))
    assert "the control has not run" in answer(summarize(rows(arms=only(2.0))))


def test_nothing_is_claimed_where_the_two_ways_of_counting_disagree():
    table = rows(arms=only(1.5))
    for row in table:
        if row["arm"] == "ngram":
            row["matmul_flops"] *= 2
    summary = summarize(table)
    assert "none of 1 arms" in answer(summary)
    assert "two conventions disagree" in verdict(summary)


def test_partial_results_are_said():
    table = [row for row in rows() if not (row["arm"] == "graph" and row["regime"] == "same tokens")]
    table = [row for row in table if not (row["arm"] == "knn" and row["seed"] == 2)]
    summary = summarize(table)
    assert "knn at 3e12: 2 of 3 seeds (without 2)" in summary["missing"]
    assert "Partial results" in verdict(summary)
    dense = summarize([row for row in table if row["arm"] == "dense"])
    assert "nothing to compare" in answer(dense)
    assert summarize(rows())["missing"] == []


def test_method_is_told_in_one_paragraph():
    text = verdict(summarize(rows()))
    assert "over seeds only" in text
    assert "6 on the same tokens and 4 on the whole corpus (Holm)" in text
    assert "interpolated, not fitted: dense has 3 budgets" in text
    assert "over the 40 test documents" in verdict(summarize(rows(documents=40)))
    assert "Intervals are" not in verdict(summarize(rows(seeds=1)))


def test_what_is_not_significant_among_all_comparisons_is_not_claimed():
    summary = summarize(rows(arms=only(1.5)))
    entry = summary["arms"]["ngram"]["3e12"]
    assert training_decision(entry) == "better"
    entry["train_flops"]["p_holm"] = 0.06
    assert decide(entry["train_flops"], True) == "better"
    assert training_decision(entry) == "undecided"
    text = verdict(summary)
    assert "none of 1 arms" in text
    assert "corrected p 0.06" in text


def test_what_it_would_take_is_told_where_nothing_could_be_told_apart():
    summary = summarize(rows(arms=only(1.02), noise=0.01, rng=4))
    entry = summary["arms"]["ngram"]["3e12"]
    assert entry["seeds_needed"]["seeds"] > 3
    assert "To show a difference" in verdict(summary)
    entry["seeds_needed"] = {"seeds": 5, "text": 3.2, "power": 0.8}
    assert "3.2 times the test text and 5 seeds" in verdict(summary)
    assert summarize(rows(arms=only(2.5)))["arms"]["ngram"]["1e12"]["seeds_needed"] is None
