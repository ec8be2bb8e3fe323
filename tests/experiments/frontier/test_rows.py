"""Rows that cannot be compared are refused by name; what is left is grouped without mixing."""

from __future__ import annotations

import json
import math

import pytest

from experiments.frontier import ResultsError, budget_key, summarize, tabulate, verdict
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
