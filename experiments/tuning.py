"""Equal tuning: the same number of quasi-random trials, in the same ranges, for every arm and size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from scipy.stats import qmc

from experiments.run import DEFAULTS, Run
from mann.module import RATES

# Step sizes by parameter role, searched on a log scale. Roles an arm lacks are ignored by its optimiser.
RANGES: dict[str, tuple[float, float]] = {
    "matrix": (0.005, 0.04),
    "head": (0.01, 0.08),
    "embedding": (0.05, 0.4),
    "scalar": (0.01, 0.2),
    "table": (0.01, 0.2),
}
LAYERS = (2, 3)
# Trials use a seed of their own: what they select must not have been selected on the seeds that are reported.
SEED = 1000


def trials(count: int) -> list[dict[str, Any]]:
    """Settings to try: the defaults, then the first points of one Sobol sequence; the same for everybody.

    Args:
        count: How many points; powers of two cover the ranges best.
    """
    found: list[dict[str, Any]] = [{"rates": dict(RATES), "layers": DEFAULTS["layers"]}]
    if not count:
        return found
    points = qmc.Sobol(len(RANGES) + 1, scramble=True, rng=0).random(count)
    for point in points:
        rates = {
            role: float(f"{low * (high / low) ** share:.3g}")
            for share, (role, (low, high)) in zip(point, RANGES.items(), strict=False)
        }
        found.append({"rates": rates, "layers": LAYERS[min(int(point[-1] * len(LAYERS)), len(LAYERS) - 1)]})
    return found


def plan(
    places: Iterable[tuple[str, str, int]], budget: float, count: int, sized: Mapping[int, Mapping[str, Any]]
) -> list[Run]:
    """The runs of a tuning: every trial at every place, trial by trial, so that a stop leaves all equally tuned.

    Args:
        places: Arm, regime, width.
        budget: Training FLOPs of a trial.
        count: Trials per place.
        sized: Settings that go with a width.
    """
    listed = list(places)
    return [
        Run("tuning", arm, regime, SEED, width, budget, {**sized.get(width, {}), **trial})
        for trial in trials(count)
        for arm, regime, width in listed
    ]


def best(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tuning found, by arm, regime, width and budget: the trial with the lowest validation loss.

    Args:
        rows: Finished trials; derived rows are passed over.

    Returns:
        Per place its winner, its loss, the number of trials and the rates that lie at an edge of their range.
    """
    places: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["parent"] is None:
            place = (row["arm"], row["regime"], row["width"], row["budget"])
            places.setdefault(place, []).append(row)
    found = []
    for (arm, regime, width, budget), tried in sorted(places.items()):
        winner = min(tried, key=lambda row: row["losses"]["valid"]["bits_per_byte"])
        rates = winner["settings"]["rates"]
        edge = [role for role, rate in rates.items() if len(tried) > 1 and _at_edge(role, rate)]
        found.append(
            {
                "arm": arm,
                "regime": regime,
                "width": width,
                "budget": budget,
                "trials": len(tried),
                "bits_per_byte": winner["losses"]["valid"]["bits_per_byte"],
                "settings": {"rates": rates, "layers": winner["settings"]["layers"]},
                "at_edge": edge,
            }
        )
    return found


def tuned() -> dict[tuple[str, str, int, float], dict[str, Any]]:
    """The winners that come with the library, by arm, regime, width and budget."""
    text = resources.files("experiments.studies").joinpath("tuned.json").read_text()
    return {
        (entry["arm"], entry["regime"], entry["width"], entry["budget"]): entry["settings"]
        | {"trials": entry["trials"]}
        for entry in json.loads(text)
    }


def _at_edge(role: str, rate: float) -> bool:
    """Whether a rate lies within a tenth of its range's logarithmic width of an end."""
    low, high = RANGES[role]
    margin = 0.1 * math.log(high / low)
    return min(math.log(rate / low), math.log(high / rate)) < margin
