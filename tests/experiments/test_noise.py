"""Spreads: what arms lend each other, and what a restless arm keeps for itself."""

from typing import Any

import numpy as np

from experiments.frontier.cells import tabulate
from experiments.frontier.noise import noise_of, paired_gain, pool
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
    calm, restless = (
        next(cell for cell in table.cells if cell.name == name and cell.budget == 3e12)
        for name in ("ngram", "graph")
    )
    own = pool(cell.losses("test") for cell in table.cells if cell.name == "graph")
    assert noise_of(restless, table) == own
    assert own.sd > 0.01
    assert noise_of(calm, table).half_width(3) < noise_of(restless, table).half_width(3)


def test_the_gain_of_a_restless_arm_is_as_uncertain_as_its_own_pairs() -> None:
    table = tabulate(_rows_with_a_restless_graph(2))
    cells = {(cell.name, cell.budget): cell for cell in table.cells if len(cell.seeds) == 3}
    pairs = [
        (cells[name, budget], cells["dense + counts", budget])
        for name in ("ngram", "knn", "graph")
        for budget in (1e12, 3e12)
    ]
    halves = {arm.name: paired_gain(arm, control, pairs)[1] for arm, control in pairs}
    alone = paired_gain(*pairs[-1], pairs[-2:])[1]
    assert halves["graph"] == alone
    assert (halves["ngram"] or 0) < (alone or 0)
