"""Rows that cannot be compared are refused by name; what is left is grouped without mixing."""

from __future__ import annotations

import json
import math

import pytest

from experiments.frontier import ResultsError, budget_key, summarize, tabulate, verdict
from experiments.frontier.decisions import conventions_differ
from tests.experiments.synthetic import changed, rows


def test_rows_of_two_corpora_are_refused_by_name():
    table = rows()
    table[3]["corpus"] = "cd" * 32
    with pytest.raises(ResultsError, match=r"ab(ab)+ \(\d+ rows\), cd(cd)+ \(1 rows\).*another directory"):
        summarize(table, allow_mixed=True)


def test_rows_of_two_revisions_need_a_word():
    table = rows()
    table[3]["code"] = "fedcba9"
    with pytest.raises(ResultsError, match=r"0123abc .*fedcba9.*allow_mixed"):
        summarize(table)
    assert "2 code revisions" in verdict(summarize(table, allow_mixed=True))


def test_other_unusable_rows_are_named():
    table = rows()
    with pytest.raises(ResultsError, match="no results yet"):
        summarize([])
    with pytest.raises(ResultsError, match="run the dense arm first"):
        summarize([row for row in table if row["arm"] != "dense"])
    with pytest.raises(ResultsError, match="row 1 lacks train_bytes"):
        summarize([{key: value for key, value in table[0].items() if key != "train_bytes"}])
    with pytest.raises(ResultsError, match=r"seed 0: .*keep the one"):
        summarize([*table, changed(table[0], run="other")])
    assert summarize([*table, table[0]]) == summarize(table)


def test_a_diverged_run_is_left_out_and_said():
    table = rows()
    place = next(place for place, row in enumerate(table) if row["arm"] == "knn" and row["budget"] == 3e12)
    table[place]["losses"]["test"]["bits_per_byte"] = math.nan
    summary = summarize(table)
    assert summary["diverged"] == ["knn, budget 3e12, width 64, seed 0"]
    assert "Left out because they diverged: knn" in verdict(summary)
    json.dumps(summary, allow_nan=False)


def test_regimes_and_origins_of_controls_never_share_a_row():
    table = rows()
    names = summarize(table)["arms"]
    assert {"knn", "knn (whole corpus)", "memory off, ngram", "dense + counts (whole corpus)"} <= set(names)
    assert len({entry["regime"] for entry in names["knn"].values()}) == 1


def test_budget_keys_read_back():
    for budget in (1e12, 3e12, 1.5e13, 2.5e9):
        assert float(budget_key(budget)) == budget
    assert budget_key(3e12) == "3e12"


def test_documents_are_used_only_where_every_row_tells_the_same_ones():
    table = rows(documents=20)
    text = tabulate(table).text
    assert text is not None
    assert text.reached == 20
    del table[7]["losses"]["test"]["documents"]
    assert tabulate(table).text is None
    table = rows(documents=20)
    table[7]["losses"]["test"]["documents"] = rows(documents=20, rng=3)[7]["losses"]["test"]["documents"]
    assert tabulate(table).text is None


def test_documents_that_do_not_add_up_are_refused():
    table = rows(documents=20)
    table[7]["losses"]["test"]["documents"]["nats"][3] += 1e5
    with pytest.raises(ResultsError, match=r"dense, budget 1e12, width 96, seed 1 do not add up"):
        tabulate(table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_flops": None}, "row 3, .*: train_flops is None"),
        ({"train_flops": 0}, "train_flops is 0"),
        ({"train_flops": "z"}, "train_flops is 'z'"),
        ({"train_seconds": math.nan}, "train_seconds is nan"),
        ({"matmul_flops": -1}, "matmul_flops is -1"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": "1e12"}, "budget is '1e12'"),
        ({"width": None}, "width is None"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"arm": None}, "arm is None"),
        ({"settings": 3}, "settings is 3"),
        ({"losses": None}, "losses is None"),
        ({"losses": {"valid": 5, "test": {"bits_per_byte": 1.0}}}, "losses.valid is 5"),
        (
            {"losses": {"valid": {"bits_per_byte": 1.0}, "test": {"bits_per_byte": -1.0}}},
            "bits_per_byte is -1.0",
        ),
        (
            {"losses": {"valid": {"bits_per_byte": 1.0}, "test": {"bits_per_byte": "low"}}},
            "bits_per_byte is 'low'",
        ),
    ],
)
def test_what_no_run_writes_is_refused_by_row_and_column(change: dict, says: str):
    table = rows()
    table[2] = changed(table[2], **change)
    with pytest.raises(ResultsError, match=says):
        summarize(table)


def test_a_bill_without_the_second_convention_makes_no_claim():
    table = rows()
    del table[2]["matmul_flops"]
    with pytest.raises(ResultsError, match="row 3 lacks matmul_flops"):
        summarize(table)


def test_a_run_that_came_to_nothing_is_named_with_its_reason():
    table = rows()
    lost = next(row for row in table if row["arm"] == "knn" and row["parent"] is None)
    place = (
        "study",
        "run",
        "arm",
        "regime",
        "seed",
        "width",
        "budget",
        "settings",
        "corpus",
        "code",
        "parent",
    )
    kept = [row for row in table if row is not lost]
    summary = summarize([*kept, {name: lost[name] for name in place} | {"diverged": "the loss became nan"}])
    assert summary["diverged"][0].startswith("knn, budget")
    assert "(the loss became nan)" in verdict(summary)


def test_runs_of_different_precision_need_a_word():
    table = rows()
    for number, row in enumerate(table):
        row["settings"]["precision"] = "bf16-mixed" if number % 2 else "32-true"
    with pytest.raises(ResultsError, match=r"different precision .*--allow-mixed"):
        summarize(table)
    assert "Runs of different precision" in verdict(summarize(table, allow_mixed=True))


def test_no_number_of_seeds_is_asked_for_where_the_conventions_disagree():
    table = rows()
    for row in table:
        if row["arm"] == "graph":
            row["matmul_flops"] *= 40
    entries = [
        entry
        for name, cells in summarize(table)["arms"].items()
        if name == "graph"
        for entry in cells.values()
    ]
    assert any(conventions_differ(entry) for entry in entries)
    assert all(entry["seeds_needed"] is None for entry in entries if conventions_differ(entry))


def test_seconds_are_held_against_the_width_that_is_quickest():
    table = rows()
    summary = summarize(table)
    wide = next(
        row for row in table if row["arm"] == "dense" and row["parent"] is None and row["budget"] == 3e12
    )
    # A wider model, as good as the tuned one in half of the time.
    quick = [
        changed(row, run=f"quick {row['run']}", width=999, train_seconds=row["train_seconds"] / 2)
        for row in table
        if row["arm"] == "dense" and row["parent"] is None and row["width"] == wide["width"]
    ]
    for row in quick:
        for split in ("valid", "test"):
            row["losses"][split]["bits_per_byte"] += 1e-9
    found = summarize([*table, *quick])
    for budget, entry in found["arms"]["ngram"].items():
        before = summary["arms"]["ngram"][budget]["seconds"]
        assert entry["seconds"]["multiplier"] == pytest.approx(before["multiplier"], rel=1e-3)
        if entry["seconds"]["any_width"]["beyond"] is None:
            assert entry["seconds"]["any_width"]["multiplier"] < 0.7 * before["multiplier"]
