"""Numbers as they are written."""

from __future__ import annotations

from experiments.frontier.multiplier import Multiplier
from experiments.frontier.wording import multiplier_text, multiplier_words, needed_text


def test_multiplier_text_shows_open_ends():
    assert multiplier_text(Multiplier(1.8, 1.6, 2.0).to_dict()) == "1.80x [1.60, 2.00]"
    open_end = Multiplier(1.8, 1.6, None, "at least", "interval")
    assert multiplier_text(open_end.to_dict()) == "1.80x [1.60, open]"
    assert (
        multiplier_text(Multiplier(3.3, 2.9, None, "at least", "point").to_dict())
        == "beyond 3.30x [2.90, open]"
    )
    assert multiplier_text(Multiplier(3.3, 3.3, None, "at least", "point").to_dict()) == "at least 3.30x"
    assert (
        multiplier_text(Multiplier(0.5, None, 0.6, "at most", "point").to_dict())
        == "below 0.50x [open, 0.60]"
    )
    assert multiplier_text(Multiplier(3.3, bound="at least", beyond="point").to_dict()) == (
        "beyond 3.30x (no interval)"
    )
    assert multiplier_text(Multiplier(1.8).to_dict()) == "1.80x (no interval)"
    assert multiplier_text(Multiplier(None).to_dict()) == "no number"


def test_in_a_sentence_at_least_is_said_of_the_end_of_the_interval_and_never_of_where_dense_ends():
    beyond = Multiplier(3.33, 2.68, None, "at least", "point", p=0.01).to_dict()
    assert multiplier_words(beyond) == "beyond every dense run measured (at least 2.68x)"
    below = Multiplier(0.5, None, 0.6, "at most", "point", p=0.01).to_dict()
    assert multiplier_words(below) == "short of every dense run measured (at most 0.60x)"
    assert multiplier_words(Multiplier(3.3, 3.3, None, "at least", "point").to_dict()) == "at least 3.30x"
    assert multiplier_words(Multiplier(1.8, 1.6, 2.0).to_dict()) == "1.80x [1.60, 2.00]"
    alone = Multiplier(3.3, bound="at least", beyond="point").to_dict()
    assert multiplier_words(alone) == "beyond every dense run measured (no interval)"


def test_a_number_of_seeds_that_nobody_would_run_is_not_told_as_a_plan():
    assert "more than 1000 seeds" in needed_text({"seeds": 40_000, "text": 1.0, "power": 0.8})
    assert "about 7 seeds" in needed_text({"seeds": 7, "text": 1.0, "power": 0.8})
