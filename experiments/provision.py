"""What a budget pays for: windows to train on, a store, and the neighbours of every window in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from experiments.arms import SAME_TOKENS, Arm
from experiments.data import Windows
from experiments.errors import RunError, UnaffordableError
from experiments.neighborhood import PIECE, Neighborhood
from experiments.workspace import Workspace
from retrieval import Source

if TYPE_CHECKING:
    from experiments.run import Run

# A store of the same tokens holds this share of the windows that dense would train on at the same budget: nothing but
# what its run trains on, and the same for all arms with one backbone, which share the search in it.
STORED = 0.75
# For arms that cost so much more than dense that they train on less than that.
LESS = 0.8


@dataclass
class Provision:
    """Decides how much a run trains on, everything counted.

    Args:
        run: What it is for.
        arm: Its arm.
        settings: All of them.
        workspace: Where stores and neighbours are kept.
        windows: Training text.
        order: Which window comes when.
        plain_flops: What training on one window takes the backbone alone.
        progress: Called with the stage and the share of it that is done.
        every: Neighbours are searched for at the ends of chunks of so many tokens alone.
    """

    run: Run
    arm: Arm
    settings: Mapping[str, Any]
    workspace: Workspace
    windows: Windows
    order: Int[np.ndarray, " n"]
    plain_flops: int
    progress: Callable[[str, float], None]
    every: int = 1

    def source(self) -> Source | None:
        """The store as it is planned; built when it is first searched."""
        return None if self.arm.source is None else self._source(self._planned())

    def provide(self, window_flops: int) -> tuple[Source | None, Neighborhood | None, int]:
        """About as many windows as the budget pays for, never more, and their neighbours.

        Args:
            window_flops: What training on one window takes; searching is not part of it.

        Raises:
            RunError: If the budget pays for no step, or for more than there is text.
        """
        most = self.run.budget / window_flops
        if self.arm.source is None:
            return None, None, self._affordable(most)
        sample = min(PIECE, self._affordable(min(most, len(self.windows))))
        stored = self._planned()
        while True:
            source = self._source(stored)
            neighbors = self._neighborhood(source)
            neighbors.prepare(sample)
            n_windows = self._affordable(self._fitting(neighbors, window_flops, sample))
            if stored <= n_windows:
                # The first windows may have been cheaper to search for than the rest: the bill stays within the budget.
                n_windows = self._within(neighbors, window_flops, n_windows)
            if stored <= n_windows:
                return source, neighbors, n_windows
            stored = int(LESS * stored)

    def _within(self, neighbors: Neighborhood, window_flops: int, n_windows: int) -> int:
        """That many windows or the most whose bill, with the search for every one of them, is within the budget."""
        while True:
            neighbors.prepare(n_windows, lambda share: self.progress("neighbours", share))
            fitting = self._fitting(neighbors, window_flops, n_windows)
            if fitting >= n_windows:
                return n_windows
            n_windows = self._affordable(fitting)

    def _fitting(self, neighbors: Neighborhood, window_flops: int, searched: int) -> float:
        """How many windows the budget pays for, going by the search for the first ``searched`` of them."""
        build = sum(neighbors.store_bill()["flops"].values())
        search = neighbors.work(searched)["flops"] / searched
        return (self.run.budget - build) / (window_flops + search)

    def _affordable(self, windows: float) -> int:
        batch = self.settings["batch"]
        if windows < batch:
            raise UnaffordableError(
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

    def _planned(self) -> int:
        """How many of the windows a run trains on make its store; none do where the store is the whole corpus."""
        return int(STORED * self.run.budget / self.plain_flops) if self.run.regime == SAME_TOKENS else 0

    def _source(self, stored: int) -> Source:
        return self.workspace.source(self.arm, self.run.regime, self.windows, self.run.seed, stored)

    def _neighborhood(self, source: Source) -> Neighborhood:
        label = f"train seed {self.run.seed}"
        return self.workspace.neighborhood(
            source, self.windows, self.order, label, self.settings["k"], exclude=True, every=self.every
        )
