"""What a budget pays for, with searches of chosen cost."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from experiments.arms import NO_STORE, SAME_TOKENS, WHOLE_CORPUS, arm_named
from experiments.data import Windows
from experiments.errors import RunError
from experiments.neighborhood import PIECE
from experiments.provision import LESS, STORED, Provision
from experiments.run import Run
from experiments.workspace import Workspace
from retrieval import Source
from tests.experiments.data import toy

STEP, BATCH = 1000, 4


@dataclass
class Priced:
    """Neighbours of which nobody needs more than the bill: the first piece at one price, the rest at another."""

    first: float
    rest: float
    build: int
    prepared: int = 0

    def prepare(self, n_rows: int, progress: object = None) -> None:
        self.prepared = max(self.prepared, n_rows)

    def store_bill(self) -> dict[str, dict[str, int]]:
        return {"flops": {"add": self.build}}

    def work(self, n_rows: int) -> dict[str, float]:
        assert n_rows <= self.prepared
        return {"flops": self.first * min(n_rows, PIECE) + self.rest * max(0, n_rows - PIECE)}


class Provided(Provision):
    """With stores that are numbers and neighbours that are prices."""

    first, rest, build = 0.0, 0.0, 0

    def _source(self, stored: int) -> Source:
        self.stored = stored
        return super()._source(stored)

    def _neighborhood(self, source: Source) -> Priced:  # type: ignore[override]
        return Priced(self.first, self.rest, self.build)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(toy, tmp_path, tmp_path)  # type: ignore[arg-type]
    workspace.corpus = toy.corpus(n=600)
    return workspace


def provision(workspace: Workspace, arm: str, regime: str, windows: float, plain: int = STEP) -> Provided:
    split = Windows(workspace.corpus.train, 8)
    run = Run("test", arm, regime, 0, 16, windows * STEP)
    settings = {"batch": BATCH, "k": 4}
    order = np.arange(len(split))
    return Provided(run, arm_named(arm), settings, workspace, split, order, plain, lambda stage, share: None)


def test_without_a_store_the_budget_is_steps(workspace: Workspace) -> None:
    assert provision(workspace, "dense", NO_STORE, 43).provide(STEP) == (None, None, 40)
    assert provision(workspace, "dense", NO_STORE, 43).source() is None


@pytest.mark.parametrize("regime", [SAME_TOKENS, WHOLE_CORPUS])
def test_search_and_building_are_paid_from_the_budget(regime: str, workspace: Workspace) -> None:
    place = provision(workspace, "knn", regime, 700)
    place.first, place.rest, place.build = 50, 50, 20 * STEP
    _, neighbors, n_windows = place.provide(STEP)
    assert n_windows == int(680 / 1.05) // BATCH * BATCH
    assert neighbors.prepared == n_windows  # type: ignore[union-attr]
    assert place.stored == (int(STORED * 700) if regime == SAME_TOKENS else 0)


def test_the_bill_stays_within_the_budget_where_later_windows_are_dearer(workspace: Workspace) -> None:
    place = provision(workspace, "knn", WHOLE_CORPUS, 1000)
    place.first, place.rest = 10, 400
    *_, n_windows = place.provide(STEP)
    bill = n_windows * STEP + 10 * PIECE + 400 * (n_windows - PIECE)
    assert 0.9 * 1000 * STEP < bill <= 1000 * STEP


@pytest.mark.parametrize("dear", [1.2, 1.5, 3.0])
def test_a_store_never_holds_what_its_run_does_not_train_on(dear: float, workspace: Workspace) -> None:
    place = provision(workspace, "knn", SAME_TOKENS, 1000)
    *_, n_windows = place.provide(int(dear * STEP))
    assert n_windows == int(1000 / dear) // BATCH * BATCH
    assert LESS * n_windows < place.stored <= n_windows or place.stored == STORED * 1000


def test_arms_with_one_backbone_share_a_store(workspace: Workspace) -> None:
    stores = [
        provision(workspace, arm, SAME_TOKENS, 500).source() for arm in ("knn", "graph", "shuffled edges")
    ]
    assert stores[0] is stores[1] is stores[2]
    assert provision(workspace, "knn", SAME_TOKENS, 600).source() is not stores[0]
    whole = provision(workspace, "knn", WHOLE_CORPUS, 500).source()
    assert whole is not None
    assert whole.passages.n_entries == workspace.corpus.train.passages(workspace.corpus.vocab_size).n_entries


def test_too_small_and_too_large_budgets_are_refused(workspace: Workspace) -> None:
    for arm, regime in (("dense", NO_STORE), ("knn", SAME_TOKENS)):
        with pytest.raises(RunError, match="less than one step"):
            provision(workspace, arm, regime, BATCH - 1).provide(STEP)
        with pytest.raises(RunError, match="bring more text"):
            provision(workspace, arm, regime, 1e6).provide(STEP)
