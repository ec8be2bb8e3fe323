"""Many comparisons: one in twenty of equal arms would be called different by its interval alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.frontier.cells import DENSE
from experiments.frontier.noise import CONFIDENCE

ALPHA = 1 - CONFIDENCE


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected so that all claims together are wrong in at most 5 of 100 studies (Holm 1979).

    The smallest is multiplied by how many there are, the next by one less, and so on; none falls below the one before.
    It asks nothing of how the comparisons depend on each other (here they share the frontier and the text).

    Args:
        p_values: of one family.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def correct(arms: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Write ``p_holm`` beside each ``p`` on training FLOPs; the family is every arm at every budget of a regime.

    Controls are held against expectations, not claimed, and are not in it: theirs is ``None``.

    Args:
        arms: entries by name and budget, changed in place.

    Returns:
        For each regime, what was corrected: ``method`` and ``comparisons``.
    """
    entries = [entry for budgets in arms.values() for entry in budgets.values()]
    for entry in entries:
        entry["train_flops"]["p_holm"] = None
    told: dict[str, dict[str, Any]] = {}
    for regime in ("same tokens", "whole corpus"):
        family = [
            entry
            for entry in entries
            if entry["regime"] == regime
            and entry["arm"] != DENSE
            and not entry["control"]
            and entry["train_flops"]["p"] is not None
        ]
        for entry, p in zip(family, holm([entry["train_flops"]["p"] for entry in family]), strict=True):
            entry["train_flops"]["p_holm"] = p
        told[regime] = {"method": "Holm", "comparisons": len(family)}
    return told
