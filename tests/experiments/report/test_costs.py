"""Break-even and trade-offs follow from the numbers, and claim no more than those show."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.report import Findings, find
from experiments.report.bill import bill
from experiments.report.breakeven import tokens_text
from experiments.report.tradeoff import trade_offs
from tests.experiments.synthetic import ARMS, rows


def one_arm(read: float, build: int = 5_000_000_000, **options: Any) -> dict[str, Any]:
    """Summary of an arm worth twice its compute that reads at a part of what dense of its loss needs."""
    given = rows(arms={("graph", "same tokens"): {"worth": 1.6, "read": read}}, noise=0.002, **options)
    for row in given:
        if row["arm"] == "graph":
            row["flops"]["build"] = build
            row["build"] = {"tokens": build // 2, "cells": build - build // 2}
    return find(given).summary


def test_break_even_is_where_building_and_reading_cost_what_dense_costs():
    # The dense frontier is 64 wide up to 3e12 and 96 at 1e13: between them its reading grows.
    summary = one_arm(read=0.9)
    found = summary["break_even"]["graph"]["3e12"]
    entry = summary["arms"]["graph"]["3e12"]["read_flops"]
    read_dense = entry["multiplier"] * found["read_flops"]
    tokens = found["build_flops"] / found["tuned"]["saved_flops"]
    assert found["build_flops"] + tokens * found["read_flops"] == pytest.approx(tokens * read_dense)
    assert found["parts"] == {"tokens": 2.5e9, "cells": 2.5e9}
    # The more is saved, the sooner.
    assert found["tuned"]["low"] < found["tuned"]["saved_flops"] < found["tuned"]["high"]


def test_an_arm_that_reads_more_than_dense_of_equal_loss_never_breaks_even():
    summary = one_arm(read=3.0)
    found = summary["break_even"]["graph"]["1e12"]
    assert summary["arms"]["graph"]["1e12"]["read_flops"]["high"] < 1
    assert tokens_text(found["build_flops"], found["tuned"]) == "none"


def test_what_builds_nothing_and_what_is_knocked_out_has_no_break_even(
    invented: Findings, measured: Findings
):
    assert set(invented.summary["break_even"]) == {
        name
        for name, budgets in invented.summary["arms"].items()
        if next(iter(budgets.values()))["arm"] in ("knn", "graph", "random neighbours", "shuffled edges")
    }
    names = set(measured.summary["break_even"])
    assert "graph" in names
    assert not names & {"dense", "ngram"}
    assert not any("memory off" in name for name in names)


SAVED = {"saved_flops": 10.0, "low": 5.0, "high": 20.0, "bound": None, "beyond": None}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "100 [50, 200]"),
        ({"low": -5.0}, "100 [50, none]"),
        ({"high": None, "bound": "at least", "beyond": "interval"}, "100 [open, 200]"),
        ({"high": None, "bound": "at least", "beyond": "point"}, "at most 200"),
        ({"low": None, "high": None, "bound": "at least", "beyond": "point"}, "at most 100"),
        ({"low": None, "bound": "at most", "beyond": "point"}, "at least 50"),
        ({"saved_flops": -10.0, "low": -20.0, "high": -5.0}, "none"),
        ({"saved_flops": -10.0, "low": -20.0}, "none [50, none]"),
        ({"saved_flops": -10.0, "low": None, "bound": "at most", "beyond": "interval", "high": -1.0}, "none"),
        ({"saved_flops": -10.0, "low": None, "high": -5.0, "bound": "at most", "beyond": "point"}, "none"),
        ({"saved_flops": -10.0, "bound": "at least", "beyond": "point"}, "not known"),
        ({"low": None, "high": None}, "100 (no interval)"),
        ({"saved_flops": None}, "no number"),
    ],
)
def test_a_break_even_in_words(changes: dict[str, Any], text: str):
    assert tokens_text(1000.0, {**SAVED, **changes}) == text


def slower(times: float, arm: str = "ngram", **options: Any) -> dict[str, Any]:
    given = rows(arms={("ngram", "same tokens"): ARMS["ngram", "same tokens"]}, **options)
    for row in given:
        if row["arm"] == arm:
            row["train_seconds"] *= times
    return find(given).summary


def test_fewer_flops_and_more_seconds_is_said_in_words():
    summary = slower(5.0)
    entry = summary["arms"]["ngram"]["1e12"]
    said = next(sentence for sentence in summary["trade_offs"] if sentence.startswith("At 1e12, ngram"))
    assert f"needs {entry['train_flops']['multiplier']:.2f} times fewer training FLOPs than dense" in said
    assert f"{1 / entry['seconds']['multiplier']:.2f} times the training seconds" in said
    assert "not shown" not in said
    assert "training bytes" not in said


def test_the_dense_frontier_that_needs_less_is_what_an_arm_is_held_against():
    summary = slower(5.0)
    seconds = summary["arms"]["ngram"]["1e12"]["seconds"]
    seconds["any_width"] = {**seconds, "multiplier": 0.2, "low": 0.1, "high": 0.3}
    assert any("5.00 times the training seconds" in sentence for sentence in trade_offs(summary))
    seconds["any_width"] |= {"multiplier": 9.0, "low": 8.0, "high": 10.0}
    told = f"{1 / seconds['multiplier']:.2f} times the training seconds"
    assert any(told in sentence for sentence in trade_offs(summary))


def test_what_is_cheaper_on_every_axis_is_no_trade_off_and_what_is_dearer_in_flops_neither():
    assert not any("seconds" in sentence for sentence in slower(1.0)["trade_offs"])
    given = rows(arms={("ngram", "same tokens"): {"worth": 0.5, "read": 3.0}})
    assert find(given).summary["trade_offs"] == []


def test_a_dearer_axis_that_the_interval_does_not_show_is_said_to_be_so():
    summary = slower(5.0)
    seconds = summary["arms"]["ngram"]["1e12"]["seconds"]
    assert seconds["multiplier"] < 0.9
    seconds["any_width"]["high"] = 1.2
    seconds["high"] = 1.2
    assert any(
        "times the training seconds" in sentence and "not shown at 95 %" in sentence
        for sentence in trade_offs(summary)
        if sentence.startswith("At 1e12")
    )


def test_a_small_difference_that_the_interval_does_not_show_is_not_worth_a_sentence():
    summary = slower(5.0)
    bytes_moved = summary["arms"]["ngram"]["1e12"]["bytes"]
    bytes_moved |= {"multiplier": 0.97, "low": 0.9, "high": 1.05, "any_width": None}
    assert not any("training bytes" in sentence for sentence in trade_offs(summary))
    bytes_moved |= {"high": 0.99}
    assert any("1.03 times the training bytes" in sentence for sentence in trade_offs(summary))


def test_one_seed_claims_no_trade_off():
    assert slower(5.0, seeds=1)["trade_offs"] == []


def test_the_share_of_a_search_on_integers_is_told(invented: Findings):
    told = bill(invented.results)
    assert "graph at 3e12 75 %" in told
    assert "dense at" not in told
