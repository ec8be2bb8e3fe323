"""Early termination: W&B's rule, by hand."""

from __future__ import annotations

from experiments.sweep.config import EarlyTerminate
from experiments.sweep.hyperband import at_stops, gives_up, stops


def test_stops_grow_from_the_first_or_shrink_from_the_last() -> None:
    assert stops(EarlyTerminate(min_iter=3))[:4] == [3, 9, 27, 81]
    assert stops(EarlyTerminate(max_iter=27, s=2)) == [3, 9]
    assert stops(EarlyTerminate(max_iter=5, s=9, eta=2)) == [1, 2]


def test_only_the_best_share_goes_on() -> None:
    rule = EarlyTerminate(min_iter=2, eta=2)
    others = [{2: cost} for cost in (1.0, 2.0, 3.0)]
    # Of four at the stop, the third best is the threshold: sorted[4 / 2].
    assert not gives_up(rule, [9.0], others)
    assert not gives_up(rule, [9.0, 2.0], others)
    assert not gives_up(rule, [9.0, 2.5], others)
    assert gives_up(rule, [9.0, 3.5, 0.0], others)
    assert not gives_up(rule, [9.0, 2.5], [])


def test_a_trial_is_judged_at_the_last_stop_it_reached() -> None:
    rule = EarlyTerminate(min_iter=1, eta=3)
    others = [{1: 5.0, 3: 1.0}, {1: 5.0, 3: 1.0}, {1: 5.0}]
    assert not gives_up(rule, [5.0, 4.0], others)
    assert gives_up(rule, [5.0, 4.0, 4.0], others)


def test_judged_kindly_the_best_value_so_far_counts() -> None:
    costs, others = [1.0, 9.0], [{2: 2.0}, {2: 2.0}]
    assert gives_up(EarlyTerminate(min_iter=2, strict=True), costs, others)
    assert not gives_up(EarlyTerminate(min_iter=2, strict=False), costs, others)


def test_what_is_kept_of_a_trial_is_its_cost_at_the_stops() -> None:
    assert at_stops(EarlyTerminate(min_iter=1, eta=2), [5, 4, 3, 2, 1]) == {1: 5, 2: 4, 4: 2}
