"""What a budget pays for: windows to train on, a store, and the neighbours of every window in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from experiments.arms import SAME_TOKENS, Arm
from experiments.data import Windows
from experiments.errors import RunError
from experiments.neighborhood import PIECE, Neighborhood
from experiments.workspace import Workspace
from retrieval import Source

if TYPE_CHECKING:
    from experiments.run import Run

# What building and searching a store takes of a budget, about: where looking for the right number of windows begins.
STORE_SHARE = 0.08
# Stores of the same tokens come in four sizes per octave, the largest of no more than a run trains on. So arms of
# similar cost share a store and the search in it, and all of them spend their whole budget.
GRID = 4


class Provision:
    """Decides how much a run trains on, everything counted.

    Args:
        run: What it is for.
        arm: Its arm.
        settings: All of them.
        workspace: Where stores and neighbours are kept.
        windows: Training text.
        order: Which window comes when.
        progress: Called with the stage and the share of it that is done.
    """

    def __init__(
        self,
        run: Run,
        arm: Arm,
        settings: Mapping[str, Any],
        workspace: Workspace,
        windows: Windows,
        order: Int[np.ndarray, " n"],
        progress: Callable[[str, float], None],
    ) -> None:
        self.run = run
        self.arm = arm
        self.settings = settings
        self.workspace = workspace
        self.windows = windows
        self.order = order
        self.progress = progress

    def source(self, n_windows: int) -> Source | None:
        """The store of a run over that many windows, built when it is first searched."""
        if self.arm.source is None:
            return None
        stored = self._stored(n_windows)
        return self.workspace.source(self.arm, self.run.regime, self.windows, self.run.seed, stored)

    def provide(self, window_flops: int) -> tuple[Source | None, Neighborhood | None, int]:
        """About as many windows as the budget pays for, never more, and their neighbours.

        Args:
            window_flops: What training on one window takes; searching is not part of it.

        Raises:
            RunError: If the budget pays for no step, or for more than there is text.
        """
        budget = self.run.budget
        if self.arm.source is None:
            return None, None, self._affordable(budget / window_flops)
        n_windows = self._promising(window_flops)
        while True:
            source, neighbors = self._neighborhood(n_windows)
            neighbors.prepare(n_windows, lambda share: self.progress("neighbours", share))
            # Neighbours of the sample may have been cheaper to find than the rest: the bill stays within the budget.
            build, search = _store_flops(neighbors, n_windows)
            if build + n_windows * (window_flops + search) <= budget:
                return source, neighbors, n_windows
            fitting = (budget - build) / (window_flops + search)
            n_windows = self._affordable(min(fitting, n_windows - self.settings["batch"]))

    def _promising(self, window_flops: int) -> int:
        """How many windows the budget pays for, going by the search for the first of them."""
        n_windows = self._affordable(self.run.budget * (1 - STORE_SHARE) / window_flops)
        tried: list[int] = []
        while True:
            tried.append(self._stored(n_windows))
            _, neighbors = self._neighborhood(n_windows)
            sample = min(n_windows, PIECE)
            neighbors.prepare(sample)
            build, search = _store_flops(neighbors, sample)
            fitting = self._affordable((self.run.budget - build) / (window_flops + search))
            # A store of other size takes other work, so what fits by this one may not fit by itself.
            if self._stored(fitting) == tried[-1]:
                return fitting
            if self._stored(fitting) in tried:
                return min(fitting, n_windows)
            n_windows = fitting

    def _affordable(self, windows: float) -> int:
        batch = self.settings["batch"]
        if windows < batch:
            raise RunError(
                f"a budget of {self.run.budget:.3g} FLOPs is less than one step of {self.run.label()} and what "
                "comes before it: raise the budget, or lower the width or the batch"
            )
        n_windows = int(windows) // batch * batch
        if n_windows > len(self.windows):
            raise RunError(
                f"{self.run.label()} would train on {n_windows * self.windows.length:,} tokens, but the text has "
                f"{len(self.windows) * self.windows.length:,}: lower the budget, or bring more text"
            )
        return n_windows

    def _stored(self, n_windows: int) -> int:
        """How many windows the store of a run over that many holds."""
        return _on_grid(n_windows, GRID) if self.run.regime == SAME_TOKENS else len(self.windows)

    def _neighborhood(self, n_windows: int) -> tuple[Source, Neighborhood]:
        source = self.source(n_windows)
        assert source is not None
        label = f"train seed {self.run.seed}"
        return source, self.workspace.neighborhood(
            source, self.windows, self.order, label, self.settings["k"], exclude=True
        )


def _store_flops(neighbors: Neighborhood, n_rows: int) -> tuple[int, float]:
    """What building the store took, and the search for one of the first ``n_rows`` windows."""
    return sum(neighbors.store_bill()["flops"].values()), neighbors.work(n_rows)[0] / n_rows


def _on_grid(count: int, per_octave: int) -> int:
    """The largest number of the geometric grid that is not above ``count``."""
    return math.floor(2 ** (math.floor(math.log2(count) * per_octave) / per_octave))
