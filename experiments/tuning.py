"""Equal tuning: the same number of quasi-random trials, in the same ranges, for every arm and size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import qmc

from experiments.run import DEFAULTS, Run
from mann.module import RATES

if TYPE_CHECKING:
    from experiments.study import Study

# Step sizes by parameter role, searched on a log scale. Roles an arm lacks are ignored by its optimiser.
RANGES: dict[str, tuple[float, float]] = {
    "matrix": (0.004, 0.02),
    "head": (0.01, 0.08),
    "embedding": (0.05, 0.4),
    "scalar": (0.01, 0.1),
    "table": (0.01, 0.2),
}
LAYERS = (1, 2, 3, 4)
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


def plan(study: Study, count: int) -> list[Run]:
    """The runs of a tuning: every trial at every place, trial by trial, so that a stop leaves all equally tuned.

    Args:
        study: What is tuned: dense at each width of its frontier, every arm at the best width, at each budget.
        count: Trials per place, beside the defaults.
    """
    return [
        Run("tuning", arm, regime, SEED, width, float(budget), study.untuned(arm, width) | trial)
        for budget in sorted(study.budgets)
        for trial in trials(count)
        for arm, regime, width in study.tuning_places(budget)
    ]


def best(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tuning found, by arm, regime, width and budget: the trial with the lowest validation loss.

    Args:
        rows: Finished trials; derived rows are passed over.

    Returns:
        Per place its winner, its loss, the number of trials and what lies at an edge of its range.
    """
    places: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["parent"] is None:
            place = (row["arm"], row["regime"], row["width"], row["budget"])
            places.setdefault(place, []).append(row)
    found = []
    for (arm, regime, width, budget), tried in sorted(places.items()):
        winner = min(tried, key=lambda row: row["losses"]["valid"]["bits_per_byte"])
        chosen = {name: winner["settings"][name] for name in ("rates", "layers")}
        found.append(
            {
                "arm": arm,
                "regime": regime,
                "width": width,
                "budget": budget,
                "trials": len(tried),
                "bits_per_byte": winner["losses"]["valid"]["bits_per_byte"],
                "settings": chosen,
                "at_edge": _edges(winner) if len(tried) > 1 else [],
            }
        )
    return found


def tuned(path: Path | None = None) -> dict[tuple[str, str, int, float], dict[str, Any]]:
    """Winners by arm, regime, width and budget, as :class:`~experiments.study.Study` takes them.

    Args:
        path: The ``tuned.json`` of a tuning; by default those that come with the library.
    """
    shipped = resources.files("experiments.studies").joinpath("tuned.json")
    text = shipped.read_text() if path is None else path.read_text()
    return {
        (entry["arm"], entry["regime"], entry["width"], entry["budget"]): entry["settings"]
        | {"trials": entry["trials"]}
        for entry in json.loads(text)
    }


def _edges(winner: Mapping[str, Any]) -> list[str]:
    """What of a winner lies at the edge of what was tried: a better value may lie beyond."""
    rates, layers = winner["settings"]["rates"], winner["settings"]["layers"]
    found = [role for role in RANGES if _at_edge(role, rates[role])]
    if not winner["params"]["table"]:
        found = [role for role in found if role != "table"]
    return found + (["layers"] if layers in (LAYERS[0], LAYERS[-1]) else [])


def _at_edge(role: str, rate: float) -> bool:
    """Whether a rate lies within a tenth of its range's logarithmic width of an end."""
    low, high = RANGES[role]
    margin = 0.1 * math.log(high / low)
    return min(math.log(rate / low), math.log(high / rate)) < margin
