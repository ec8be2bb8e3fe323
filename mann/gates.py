"""How far the gates of memories are open: whether a model has learned to look away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.watching import WatchingCallback

__all__ = ["Gate", "GateCallback", "GateHistogram", "watch_gates"]


class Gate(nn.Module):
    """A sigmoid that can be watched: every gate between a memory and what it is added to is one.

    Shapes:
        scores and output: ``[...]``, of 0 (shut) to 1 (open).
    """

    def forward(self, scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How far it is open."""
        return torch.sigmoid(scores)


class GateHistogram:
    """Counts how far a gate was open.

    Args:
        bins: Equal parts of 0 to 1 that are told apart.
        device: Where to count; by default the CPU.

    Raises:
        ValueError: If there are no bins.
    """

    counts: Int[Tensor, "bins"]

    def __init__(self, bins: int = 20, device: torch.device | str | None = None) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins}: give at least 1")
        self.counts = torch.zeros(bins, dtype=torch.int64, device=device)
        self._sum = 0.0

    def update(self, opened: Float[Tensor, "..."]) -> None:
        """Count these values too.

        Args:
            opened: Values of the gate, of any shape; those that are no numbers do not count.
        """
        opened = opened.detach().flatten().to(self.counts.device, torch.float32)
        opened = opened[opened.isfinite()]
        bins = len(self.counts)
        place = (opened * bins).long().clamp(0, bins - 1)
        self.counts += torch.bincount(place, minlength=bins)
        self._sum += float(opened.sum(dtype=torch.float64))

    def result(self) -> dict[str, Any]:
        """What was counted so far.

        Returns:
            ``values``, how many; their ``mean``; ``shut`` and ``open``, the shares in the lowest and the highest tenth
            of 0 to 1 (to the nearest bin); ``histogram``, the share in each bin. NaN and empty before anything is seen.
        """
        values = int(self.counts.sum())
        if not values:
            return {"values": 0, "mean": math.nan, "shut": math.nan, "open": math.nan, "histogram": []}
        share = (self.counts / values).tolist()
        tenth = max(1, round(len(share) / 10))
        return {
            "values": values,
            "mean": self._sum / values,
            "shut": sum(share[:tenth]),
            "open": sum(share[-tenth:]),
            "histogram": share,
        }

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts.zero_()
        self._sum = 0.0


@contextmanager
def watch_gates(model: nn.Module, bins: int = 20) -> Iterator[dict[str, GateHistogram]]:
    """Count, within a block, how far the gates of a model are open.

    Args:
        model: Any module.
        bins: As :class:`GateHistogram` takes them.

    Returns:
        A histogram of each :class:`Gate`, by the name of what holds it; one that is never asked is not among them.
    """
    found: dict[str, GateHistogram] = {}
    handles = [
        module.register_forward_hook(partial(_count, found, name.rpartition(".")[0], bins))
        for name, module in model.named_modules()
        if isinstance(module, Gate)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _count(
    found: dict[str, GateHistogram], name: str, bins: int, module: nn.Module, given: Any, opened: Tensor
) -> None:
    found.setdefault(name, GateHistogram(bins)).update(opened)


class GateCallback(WatchingCallback):
    """Logs how far a model's gates are open in training: ``gates/NAME/mean``, ``shut`` and ``open``.

    ``gates`` has the histograms since the last log.

    Args:
        every: Steps between two logs; each tells of the steps since the one before.

    Raises:
        ValueError: If ``every`` is not at least 1.
    """

    prefix, told = "gates", ("mean", "shut", "open")

    @property
    def gates(self) -> dict[str, GateHistogram]:
        """What was counted since the last log."""
        return cast("dict[str, GateHistogram]", self.counted)

    def watch(self, model: nn.Module) -> AbstractContextManager[dict[str, GateHistogram]]:
        """As :func:`watch_gates` counts."""
        return watch_gates(model)
