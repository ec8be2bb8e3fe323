"""Many comparisons: one in twenty of equal arms would be called different by its interval alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """Write ``p_holm`` beside each ``p`` on training FLOPs, and of each gain over counts.

    The two questions, whether an arm beats dense and whether it beats dense with counts, make a family each: every arm
    at every budget of a regime. Controls are held against expectations, not claimed, and are in neither: theirs
    is ``None``.

    Args:
        arms: entries by name and budget, changed in place.

    Returns:
        For each regime, what was corrected: ``method``, and how many ``comparisons`` with dense and with counts
        (``comparisons_with_counts``).
    """
    entries = [entry for budgets in arms.values() for entry in budgets.values()]
    told: dict[str, dict[str, Any]] = {}
    for regime in ("same tokens", "whole corpus"):
        claimed = [
            entry
            for entry in entries
            if entry["regime"] == regime and entry["arm"] != DENSE and not entry["control"]
        ]
        told[regime] = {
            "method": "Holm",
            "comparisons": _correct(entry["train_flops"] for entry in claimed),
            "comparisons_with_counts": _correct(
                entry["gain_over_counts"] for entry in claimed if entry["gain_over_counts"]
            ),
        }
    for entry in entries:
        for found in (entry["train_flops"], entry["gain_over_counts"] or {}):
            found.setdefault("p_holm", None)
    return told


def _correct(found: Iterable[dict[str, Any]]) -> int:
    family = [one for one in found if one["p"] is not None]
    for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
        one["p_holm"] = p
    return len(family)
