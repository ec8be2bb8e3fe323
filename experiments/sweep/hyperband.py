"""Giving up trials early, by W&B's rule.

After Li et al., "Hyperband" (arXiv:1603.06560), as W&B's controller applies it (github.com/wandb/sweeps,
``hyperband_stopping.py``): trials are not run in brackets. Whenever a trial has logged the metric a certain number of
times, it goes on only if it is among the best ``1/eta`` of all that have come as far.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.sweep.config import EarlyTerminate

# With min_iter alone there is no last stop; this many are more than any trial reaches.
ENDLESS = 100


def stops(settings: EarlyTerminate) -> list[int]:
    """The numbers of logged values at which trials are judged, ascending."""
    if settings.max_iter is not None:
        bands = [settings.max_iter / settings.eta**number for number in range(1, settings.s + 1)]
        return sorted(int(band) for band in bands if band >= 1)
    assert settings.min_iter is not None
    return [int(settings.min_iter * settings.eta**number) for number in range(ENDLESS)]


def gives_up(settings: EarlyTerminate, costs: Sequence[float], others: Sequence[dict[int, float]]) -> bool:
    """Whether a trial is to be stopped.

    Args:
        settings: The rule.
        costs: What the trial has logged so far, as something to be made small.
        others: Of every other trial, finished or not, the cost at the stops it has reached.
    """
    reached = [stop for stop in stops(settings) if stop <= len(costs)]
    if not reached:
        return False
    stop = reached[-1]
    peers = sorted([costs[stop - 1], *(other[stop] for other in others if stop in other)])
    threshold = peers[int(len(peers) / settings.eta)]
    return (costs[stop - 1] if settings.strict else min(costs)) > threshold


def at_stops(settings: EarlyTerminate, costs: Sequence[float]) -> dict[int, float]:
    """The cost at each stop a trial has reached."""
    return {stop: costs[stop - 1] for stop in stops(settings) if stop <= len(costs)}
