"""The frontier is interpolated only, its intervals cover, and the verdict says no more than they do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from experiments.frontier import ResultsError, answer, budget_key, summarize, tabulate, verdict
from experiments.frontier.curve import amount_at, choose_method, fit_power_law, power_law_amount_at
from experiments.frontier.decisions import decide, training_decision
from experiments.frontier.multiplier import Multiplier, Point, multiplier
from experiments.frontier.noise import Noise, pool, shared_part
from experiments.frontier.wording import multiplier_text
from tests.experiments.synthetic import ARMS, changed, frontier_loss, rows

ONE_ARM = {("ngram", "same tokens"): {"worth": 2.0, "read": 1.0}}


def only(worth: float) -> dict[tuple[str, str], dict[str, float]]:
    return {("ngram", "same tokens"): {"worth": worth, "read": 1.0}}


def naive_amount(amounts: list[float], losses: list[float], target: float) -> float:
    """Walk along the path; between two points the loss is straight in log amount."""
    best: list[float] = []
    for loss in losses:
        best.append(min([loss, *best]))
    if target > best[0]:
        return -math.inf
    for place, loss in enumerate(best):
        if loss <= target:
            if place == 0:
                return math.log(amounts[0])
            high, low = math.log(amounts[place]), math.log(amounts[place - 1])
            return low + (best[place - 1] - target) / (best[place - 1] - loss) * (high - low)
    return math.inf


def test_interpolation_agrees_with_a_readable_loop():
    draw = np.random.default_rng(0)
    for _ in range(300):
        count = int(draw.integers(1, 6))
        amounts = np.sort(draw.uniform(1, 100, count))
        losses, target = draw.uniform(1, 3, count), draw.uniform(0.8, 3.2)
        got = amount_at(np.log(amounts)[None], losses[None], np.array([target]))[0]
        assert got == pytest.approx(naive_amount(list(amounts), list(losses), target))


def test_interpolation_meets_its_points_and_never_leaves_their_range():
    logs, losses = np.log([[1e12, 3e12, 1e13]]), np.array([[2.0, 1.8, 1.6]])
    for place in range(3):
        assert amount_at(logs, losses, losses[:, place])[0] == pytest.approx(logs[0, place])
    assert amount_at(logs, losses, np.array([1.5999]))[0] == math.inf
    assert amount_at(logs, losses, np.array([2.0001]))[0] == -math.inf


def test_a_point_worse_than_an_earlier_one_bends_nothing():
    logs = np.log([[1.0, 10.0, 100.0]])
    bumped = amount_at(logs, np.array([[2.0, 2.4, 1.0]]), np.array([1.5]))[0]
    assert bumped == pytest.approx(math.log(10) + math.log(10) / 2)


def test_power_law_is_recovered_and_refused_where_it_does_not_fit():
    logs = np.log(np.array([1e12, 2e12, 4e12, 8e12, 1.6e13]))
    law = 1.0 + 3000.0 * np.exp(-0.3 * logs)
    floor, _, exponent = fit_power_law(logs[None], law[None])
    assert floor[0] == pytest.approx(1.0, abs=0.02)
    assert exponent[0] == pytest.approx(0.3, abs=0.02)
    target = np.array([1.0 + 3000.0 * math.exp(-0.3 * math.log(5e12))])
    assert math.exp(power_law_amount_at(logs[None], law[None], target)[0]) == pytest.approx(5e12, rel=0.01)
    errors = np.full(5, 0.002)
    assert choose_method(logs, law, errors) == "power law"
    stairs = law - np.array([0, 0.03, 0, 0.03, 0])
    assert choose_method(logs, stairs, errors) == "log-linear"
    assert choose_method(logs[:3], law[:3], errors[:3]) == "log-linear"


def test_power_law_keeps_to_the_measured_range():
    logs = np.log(np.array([[1e12, 2e12, 4e12, 8e12]]))
    law = 1.0 + 3000.0 * np.exp(-0.3 * logs)
    assert power_law_amount_at(logs, law, np.array([law.min() - 0.01]))[0] == math.inf
    assert power_law_amount_at(logs, law, np.array([0.5]))[0] == math.inf
    assert power_law_amount_at(logs, law, np.array([law.max() + 0.01]))[0] == -math.inf


@pytest.mark.parametrize("worth", [1.2, 2.0])
def test_interval_covers_the_known_multiplier(worth: float):
    budgets, seeds, repeats = (1e12, 3e12, 1e13), 3, 200
    sd, hit = 0.012, 0
    draw = np.random.default_rng(int(worth * 10))
    for _ in range(repeats):
        order = draw.standard_normal(seeds) * sd * math.sqrt(0.3)
        own = sd * math.sqrt(0.7)
        dense = [frontier_loss(budget) + draw.standard_normal(seeds) * own for budget in budgets]
        dense[1] = dense[1] + order
        arm = frontier_loss(worth * 3e12) + draw.standard_normal(seeds) * own + order
        noise = pool([*dense, arm])
        points = [
            Point(np.full(seeds, budget), float(losses.mean()), noise, seeds)
            for budget, losses in zip(budgets, dense, strict=True)
        ]
        found = multiplier(
            points, Point(np.full(seeds, 3e12), float(arm.mean()), noise, seeds), amount_noise=Noise(0.0, 0)
        )
        hit += (found.low is None or found.low <= worth) and (found.high is None or found.high >= worth)
    assert 0.88 <= hit / repeats <= 1.0


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


def test_outside_of_the_dense_range_there_is_a_bound_and_no_number():
    arms = {
        ("a", "same tokens"): {"worth": 10.0, "read": 1.0},
        ("b", "same tokens"): {"worth": 0.3, "read": 1.0},
    }
    summary = summarize(rows(arms=arms))
    above = summary["arms"]["a"]["3e12"]["train_flops"]
    assert (above["bound"], above["beyond"], above["high"]) == ("at least", "point", None)
    assert above["multiplier"] == pytest.approx(1e13 / 3e12)
    assert above["low"] == pytest.approx(above["multiplier"])
    below = summary["arms"]["b"]["1e12"]["train_flops"]
    assert (below["bound"], below["beyond"], below["low"]) == ("at most", "point", None)
    assert below["multiplier"] == pytest.approx(1.0)
    assert multiplier_text(above) == "at least 3.33x"


def test_an_interval_that_leaves_the_range_is_marked():
    summary = summarize(rows(arms=only(3.25), budgets=(3e12,), noise=0.02, rng=5))
    cell = summary["arms"]["ngram"]["3e12"]["train_flops"]
    assert (cell["bound"], cell["high"]) == ("at least", None)
    assert cell["low"] is not None
    assert cell["multiplier"] <= 1e13 / 3e12 * (1 + 1e-9)


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


def test_seeds_that_move_together_are_seen():
    assert shared_part(tabulate(rows(seeds=12, shared=0.9))) > 0.4
    assert shared_part(tabulate(rows(seeds=12, shared=0.0))) < 0.2


def test_gain_over_counts_is_paired_within_a_regime():
    summary = summarize(rows(noise=0.0))
    gain = summary["arms"]["graph (whole corpus)"]["1e12"]["gain_over_counts"]
    assert gain["control"] == "dense + counts (whole corpus)"
    assert gain["mean"] == pytest.approx(0.16 * math.log(8.0 / 6.0))
    assert summary["arms"]["ngram"]["1e12"]["gain_over_counts"]["control"] == "dense + counts"
    assert summary["arms"]["dense"]["1e12"]["gain_over_counts"] is None


def test_regimes_and_origins_of_controls_never_share_a_row():
    table = rows()
    names = summarize(table)["arms"]
    assert {"knn", "knn (whole corpus)", "memory off, ngram", "dense + counts (whole corpus)"} <= set(names)
    assert len({entry["regime"] for entry in names["knn"].values()}) == 1


def test_summary_has_the_agreed_shape_and_is_json_safe():
    summary = summarize(rows())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["axes"] == ["train_flops", "read_flops", "seconds", "bytes"]
    assert summary["budgets"] == [1e12, 3e12, 1e13]
    for per_budget in summary["arms"].values():
        for budget, entry in per_budget.items():
            assert float(budget) in summary["budgets"]
            for axis in summary["axes"]:
                assert {"multiplier", "low", "high", "bound"} <= set(entry[axis])
                assert entry[axis]["bound"] in (None, "at least", "at most")
            assert {"mean", "low", "high"} == set(entry["bits_per_byte"])
            assert isinstance(entry["control"], bool)


def test_an_arm_that_costs_nothing_on_an_axis_has_no_number_there():
    table = [changed(row, matmul_flops=0) if row["arm"] == "ngram" else row for row in rows()]
    summary = summarize(table)
    assert summary["arms"]["ngram"]["3e12"]["matmul_flops"]["multiplier"] is None
    assert "ngram, knn and graph are better" in answer(summary)


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
    assert "not a number: knn" in verdict(summary)
    json.dumps(summary, allow_nan=False)


def test_budget_keys_read_back():
    for budget in (1e12, 3e12, 1.5e13, 2.5e9):
        assert float(budget_key(budget)) == budget
    assert budget_key(3e12) == "3e12"


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


def test_controls_may_have_fewer_seeds_and_budgets_but_no_gaps_among_themselves():
    trained = ("unigram table", "random neighbours", "shuffled edges")
    few = [row for row in rows() if row["arm"] not in trained or (row["seed"], row["budget"]) == (0, 3e12)]
    assert not summarize(few)["missing"]
    more = [row for row in rows() if row["arm"] not in trained[1:] or row["seed"] == 0]
    gaps = summarize(more)["missing"]
    assert "random neighbours at 3e12: 1 of 3 seeds (without 1, 2)" in gaps
    assert not any("ngram" in gap or "unigram" in gap for gap in gaps)


def test_multiplier_text_shows_open_ends():
    assert multiplier_text(Multiplier(1.8, 1.6, 2.0).to_dict()) == "1.80x [1.60, 2.00]"
    open_end = Multiplier(1.8, 1.6, None, "at least", "interval")
    assert multiplier_text(open_end.to_dict()) == "1.80x [1.60, open]"
    assert (
        multiplier_text(Multiplier(3.3, 2.9, None, "at least", "point").to_dict())
        == "at least 3.30x [2.90, open]"
    )
    assert multiplier_text(Multiplier(1.8).to_dict()) == "1.80x (no interval)"
    assert multiplier_text(Multiplier(None).to_dict()) == "no number"


def test_a_bound_of_exactly_one_decides_where_every_draw_is_beyond():
    arms = {
        ("a", "same tokens"): {"worth": 3.0, "read": 1.0},
        ("b", "same tokens"): {"worth": 0.3, "read": 1.0},
    }
    summary = summarize(rows(arms=arms, budgets=(1e12, 1e13)))
    above, below = summary["arms"]["a"]["1e13"], summary["arms"]["b"]["1e12"]
    assert (above["train_flops"]["bound"], above["train_flops"]["multiplier"]) == (
        "at least",
        pytest.approx(1.0),
    )
    assert training_decision(above) == "better"
    assert training_decision(below) == "worse"
    assert decide(Multiplier(0.98, 0.98, None, "at least", "point").to_dict(), True) == "undecided"
    assert decide(Multiplier(1.0, 0.9, None, "at least", "point").to_dict(), True) == "undecided"
    assert decide(Multiplier(1.3, 0.99, 1.6).to_dict(), True) == "undecided"
