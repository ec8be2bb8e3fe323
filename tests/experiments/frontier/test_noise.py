"""Spreads: what arms lend each other, and what a restless arm keeps for itself."""

from typing import Any

import numpy as np
import pytest

from experiments.frontier import tabulate
from experiments.frontier.noise import Noise, Runs, Spreads, pool, restless
from experiments.frontier.pairs import Pairs
from tests.experiments import synthetic


def _rows_with_a_restless_graph(seed: int, **others: float) -> list[dict[str, Any]]:
    rows = synthetic.rows(noise=0.002, **others)
    rng = np.random.default_rng(seed)
    for row in rows:
        if row["arm"] == "graph" and row["regime"] == "same tokens":
            row["losses"]["test"]["bits_per_byte"] += 0.03 * rng.standard_normal()
    return rows


def test_an_arm_more_restless_than_the_others_keeps_its_own_spread() -> None:
    table = tabulate(_rows_with_a_restless_graph(1, shared=0.0))
    spreads = Spreads(table)
    calm, graph = (
        next(cell for cell in table.cells if cell.name == name and cell.budget == 3e12)
        for name in ("ngram", "graph")
    )
    own = pool(spreads.runs(cell) for cell in table.cells if cell.name == "graph")
    assert spreads.noise(graph) == own
    assert own.sd > 0.01
    assert (spreads.noise(calm).half_width(3) or 0) < (spreads.noise(graph).half_width(3) or 0)


def test_the_gain_of_a_restless_arm_is_as_uncertain_as_its_own_pairs() -> None:
    table = tabulate(_rows_with_a_restless_graph(2))
    spreads = Spreads(table)
    pairs = Pairs(table, spreads)
    control = table.tuned["dense + counts", 3e12]
    halves = {name: pairs.of(table.tuned[name, 3e12], control).half for name in ("ngram", "graph")}
    own = pool(
        spreads.differences(table.tuned["graph", budget], table.tuned["dense + counts", budget])
        for budget in (1e12, 3e12)
    )
    assert halves["graph"] == own.half_width(3)
    assert (halves["ngram"] or 0) < (halves["graph"] or 0)


def test_a_spread_larger_by_chance_is_not_an_arms_own() -> None:
    common = Noise(0.010, 20)
    assert restless(common, Noise(0.011, 4)) == common
    assert restless(common, Noise(0.030, 2)) == common
    assert restless(common, Noise(0.030, 4)) == Noise(0.030, 4)


def test_seeds_that_move_together_are_seen() -> None:
    assert Spreads(tabulate(synthetic.rows(seeds=12, shared=0.9))).shared > 0.7
    assert Spreads(tabulate(synthetic.rows(seeds=12, shared=0.0))).shared < 0.2


def test_what_seeds_do_document_by_document_is_not_counted_twice() -> None:
    draw = np.random.default_rng(0)
    influence = draw.standard_normal((40, 25))
    by_document = pool([Runs(influence.sum(axis=1), influence)])
    assert by_document.within == pytest.approx(25, rel=0.1)
    # Variance 25 over seeds, all of it document by document: nothing is left besides.
    assert by_document.besides < by_document.sd / 2
    alike = pool([Runs(draw.standard_normal(40), np.zeros((40, 25)))])
    assert alike.besides == alike.sd
