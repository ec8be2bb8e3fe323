"""From rows to numbers: every axis, its intervals and what they are over."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from benchmarks.coverage import World
from experiments.frontier import answer, summarize, verdict
from tests.experiments.synthetic import ARMS, changed, rows

ONE_ARM = {("ngram", "same tokens"): {"worth": 2.0, "read": 1.0}}


def only(worth: float) -> dict[tuple[str, str], dict[str, float]]:
    return {("ngram", "same tokens"): {"worth": worth, "read": 1.0}}


def test_interval_covers_through_the_whole_path_from_rows():
    hit, repeats = 0, 40
    for repeat in range(repeats):
        table = rows(arms=only(1.5), budgets=(3e12,), noise=0.012, rng=repeat)
        cell = summarize(table)["arms"]["ngram"]["3e12"]["train_flops"]
        hit += cell["low"] <= 1.5 <= cell["high"]
    assert hit / repeats >= 0.85


def test_more_seeds_narrow_the_interval_and_one_seed_has_none():
    def width(seeds: int) -> float:
        cell = summarize(rows(seeds=seeds, arms=ONE_ARM, noise=0.01))["arms"]["ngram"]["3e12"]["train_flops"]
        return cell["high"] - cell["low"]

    assert width(12) < width(3)
    summary = summarize(rows(seeds=1, arms=ONE_ARM))
    cell = summary["arms"]["ngram"]["3e12"]
    assert cell["train_flops"]["multiplier"] == pytest.approx(2.0, rel=0.1)
    assert cell["train_flops"]["low"] is None
    assert cell["train_flops"]["high"] is None
    assert cell["bits_per_byte"]["low"] is None
    assert "no interval" in verdict(summary)
    assert "show nothing yet" in answer(summary)


def test_one_seed_in_a_dense_cell_borrows_the_pooled_spread():
    table = [
        row
        for row in rows(arms=ONE_ARM)
        if not (row["arm"] == "dense" and row["budget"] == 1e13 and row["seed"])
    ]
    cell = summarize(table)["arms"]["ngram"]["3e12"]["train_flops"]
    assert cell["low"] < cell["multiplier"] < cell["high"]


def test_without_noise_every_axis_gives_the_ratio_that_was_put_in():
    summary = summarize(rows(arms=ARMS, noise=0.0))
    cell = summary["arms"]["ngram"]["1e12"]
    assert cell["train_flops"]["multiplier"] == pytest.approx(2.2)
    assert cell["matmul_flops"]["multiplier"] == pytest.approx(2.2)
    # Width 64 is best at 1e12 and at 3e12, so the dense model of equal loss reads with 64 as well.
    assert cell["read_flops"]["multiplier"] == pytest.approx(1 / 1.05)
    knn = summary["arms"]["knn"]["3e12"]
    assert knn["seconds"]["multiplier"] == pytest.approx(1.15 * 60 / 73)
    assert knn["bytes"]["multiplier"] == pytest.approx(1.15 / 3, rel=1e-3)
    assert summary["arms"]["dense"]["3e12"]["train_flops"]["multiplier"] == 1


def test_training_bill_is_put_aside_on_the_strict_reading_axis():
    # Noise-free: dense of width 48 at 1e13 is at 1.482 + 0.08 ln(1/2)^2 = 1.520, better than ngram at 3e12.
    cell = summarize(rows(noise=0.0))["arms"]["ngram"]["3e12"]["read_flops"]
    assert cell["multiplier"] > 1
    assert cell["any_budget"]["bound"] == "at most"
    assert cell["any_budget"]["multiplier"] == pytest.approx(48 / (64 * 1.05), rel=1e-3)


def test_a_wide_dense_trained_too_little_proves_nothing():
    """Better than every dense, "at least" goes as far as the best of them, not as the widest."""
    arms = {("ngram", "same tokens"): {"worth": 30.0, "read": 1.0}}
    table = rows(arms=arms, budgets=(3e12,), noise=0.0)
    best = min(
        (row for row in table if row["arm"] == "dense"),
        key=lambda row: row["losses"]["test"]["bits_per_byte"],
    )
    wide = [
        changed(
            row,
            width=512,
            run=f"wide{row['seed']}",
            read_flops=10 * best["read_flops"],
            losses={
                split: {name: loss + 0.3 for name, loss in losses.items()}
                for split, losses in row["losses"].items()
            },
        )
        for row in table
        if row["arm"] == "dense" and (row["width"], row["budget"]) == (best["width"], 3e12)
    ]
    for more in ([], wide):
        cell = summarize([*table, *more])["arms"]["ngram"]["3e12"]["read_flops"]
        for found in (cell, cell["any_budget"]):
            assert (found["bound"], found["beyond"]) == ("at least", "point")
            assert found["multiplier"] == pytest.approx(best["read_flops"] / (2e4 * 64 * 3))


def test_draws_are_deterministic_and_do_not_touch_the_global_generator():
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the very state that must stay untouched
    assert json.dumps(summarize(rows())) == json.dumps(summarize(rows()))
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_order_of_rows_does_not_matter():
    table = rows()
    shuffled = [table[place] for place in np.random.default_rng(1).permutation(len(table))]
    one, other = summarize(table)["arms"], summarize(shuffled)["arms"]
    assert one["ngram"]["3e12"]["train_flops"] == pytest.approx(other["ngram"]["3e12"]["train_flops"])


def test_the_width_is_chosen_on_validation_and_reported_on_test():
    table = rows(arms=ONE_ARM, noise=0.0)
    for row in table:
        if row["arm"] == "dense" and row["width"] == 128 and row["budget"] == 3e12:
            row["losses"]["test"]["bits_per_byte"] = 0.5  # lucky on test, not on validation
    summary = summarize(table)
    assert summary["arms"]["dense"]["3e12"]["width"] == 64
    assert summary["arms"]["ngram"]["3e12"]["train_flops"]["multiplier"] == pytest.approx(2.0)


def test_gain_over_counts_is_paired_within_a_regime():
    summary = summarize(rows(noise=0.0))
    gain = summary["arms"]["graph (whole corpus)"]["1e12"]["gain_over_counts"]
    assert gain["control"] == "dense + counts (whole corpus)"
    assert gain["mean"] == pytest.approx(0.16 * math.log(8.0 / 6.0))
    assert summary["arms"]["ngram"]["1e12"]["gain_over_counts"]["control"] == "dense + counts"
    assert summary["arms"]["dense"]["1e12"]["gain_over_counts"] is None


def test_summary_has_the_agreed_shape_and_is_json_safe():
    summary = summarize(rows())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["axes"] == ["train_flops", "read_flops", "seconds", "bytes", "read_bytes", "params"]
    assert summary["budgets"] == [1e12, 3e12, 1e13]
    for per_budget in summary["arms"].values():
        for budget, entry in per_budget.items():
            assert float(budget) in summary["budgets"]
            for axis in summary["axes"]:
                assert {"multiplier", "low", "high", "bound", "p"} <= set(entry[axis])
                assert entry[axis]["bound"] in (None, "at least", "at most")
            assert {"mean", "low", "high", "over_seeds"} == set(entry["bits_per_byte"])
            assert isinstance(entry["control"], bool)


def test_an_arm_that_costs_nothing_on_an_axis_has_no_number_there():
    table = [changed(row, matmul_flops=0) if row["arm"] == "ngram" else row for row in rows()]
    summary = summarize(table)
    assert summary["arms"]["ngram"]["3e12"]["matmul_flops"]["multiplier"] is None
    assert "ngram, knn and graph are better" in answer(summary)


def test_bytes_read_and_parameters_are_compared_like_the_rest():
    summary = summarize(rows(noise=0.0))
    cell = summary["arms"]["ngram"]["1e12"]
    # Dense of equal loss has width 64 too: 64 * 12,000 parameters for both.
    assert cell["params"]["multiplier"] == pytest.approx(1.0)
    assert cell["read_bytes"]["multiplier"] == pytest.approx(cell["read_flops"]["multiplier"], rel=1e-6)
    assert cell["amounts"]["params"] == 64 * 12_000
    bare = [
        {key: value for key, value in row.items() if key not in ("params", "read_bytes")} for row in rows()
    ]
    assert summarize(bare)["arms"]["ngram"]["1e12"]["params"]["multiplier"] is None


def test_adding_an_arm_moves_no_draw_of_another():
    def low(table: list[dict[str, Any]]) -> float:
        return summarize(table)["arms"]["dense + counts"]["1e12"]["seconds"]["low"]

    # Without any other trained arm the pooled spread is another; noise-free there is only that of seconds.
    table = rows(noise=0.0)
    assert low(table) == pytest.approx(low([row for row in table if row["arm"] != "memory off"]), rel=1e-12)


def test_documents_widen_what_they_move_and_say_so():
    seeds, both = summarize(rows()), summarize(rows(documents=60))
    assert seeds["intervals"] == {"over": ["seeds"], "documents": None, "effective_documents": None}
    assert both["intervals"]["over"] == ["seeds", "documents"]
    assert both["intervals"]["documents"] == 60
    assert 10 < both["intervals"]["effective_documents"] < 60
    narrow, wide = (each["arms"]["ngram"]["3e12"] for each in (seeds, both))
    assert narrow["bits_per_byte"]["mean"] == wide["bits_per_byte"]["mean"]

    def width(cell: dict[str, Any]) -> float:
        return cell["high"] - cell["low"]

    # Documents differ by 0.4, an arm from another by 0.07 on a document: the loss moves far, its difference little.
    assert width(wide["bits_per_byte"]) > 4 * width(narrow["bits_per_byte"])
    assert width(wide["bits_per_byte"]["over_seeds"]) == pytest.approx(
        width(narrow["bits_per_byte"]), rel=0.01
    )
    assert (
        width(narrow["gain_over_counts"]) < width(wide["gain_over_counts"]) < width(wide["bits_per_byte"]) / 2
    )
    assert width(wide["train_flops"]) > width(narrow["train_flops"])


def test_how_the_frontier_is_read_is_told():
    assert "3 budgets" in summarize(rows())["frontier_fit"]["why"]
    fit = summarize(World(documents=0).rows(np.random.default_rng(0)))["frontier_fit"]
    assert fit["method"] == "power law"
    assert fit["points"] == 4
    assert 0 <= fit["largest_residual_in_standard_errors"] <= 2
    assert fit["exponent"] == pytest.approx(0.35, abs=0.15)
