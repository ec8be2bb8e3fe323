"""The dense frontier as a curve: what dense needs to reach a loss, inside the measured range only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Method = Literal["log-linear", "power law"]

# Candidates for the irreducible loss of a power law, as a part of the best loss seen.
FLOORS = np.concatenate([np.linspace(0.0, 0.9, 46), 1 - np.geomspace(0.1, 0.002, 40)[1:]])


def amount_at(log_amounts: Floats, losses: Floats, targets: Floats) -> Floats:
    """Invert a frontier by interpolation, log-linear between its points.

    The points are a path, from the least to the most compute; the frontier at a point is the best loss up
    to there, so a point worse than an earlier one bends nothing upwards.

    Args:
        log_amounts: logarithm of the amounts along the path, ``[draws, points]``.
        losses: loss at each point, ``[draws, points]``.
        targets: the loss to reach, ``[draws]``.

    Returns:
        Logarithm of the amount, ``[draws]``; ``+inf`` where the target is below every loss and ``-inf``
        where it is above the loss of the first point: outside of the range there is no number.
    """
    best = np.minimum.accumulate(losses, axis=1)
    reached = best <= targets[:, None]
    first = np.argmax(reached, axis=1)
    draws = np.arange(len(targets))
    before = np.maximum(first - 1, 0)
    step = best[draws, before] - best[draws, first]
    part = np.where(step > 0, (best[draws, before] - targets) / np.where(step > 0, step, 1.0), 1.0)
    between = log_amounts[draws, before] + part * (log_amounts[draws, first] - log_amounts[draws, before])
    between = np.where(first == 0, np.where(targets == best[:, 0], log_amounts[:, 0], -np.inf), between)
    return np.where(reached.any(axis=1), between, np.inf)


def fit_power_law(log_amounts: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    r"""Least-squares fit of :math:`L = E + A\,C^{-a}` by variable projection over a grid of floors *E*.

    Args:
        log_amounts: logarithm of the amounts, ``[draws, points]``.
        losses: loss at each point, ``[draws, points]``.

    Returns:
        ``E``, ``log A`` and ``a``, each ``[draws]``.
    """
    floors = losses.min(axis=1)[:, None] * FLOORS
    logs = np.log(losses[:, None, :] - floors[..., None])
    centred = log_amounts - log_amounts.mean(axis=1, keepdims=True)
    slope = np.einsum("dfp,dp->df", logs, centred) / (centred**2).sum(-1)[:, None]
    start = np.einsum("dfp->df", logs) / logs.shape[-1] - slope * log_amounts.mean(1)[:, None]
    fitted = floors[..., None] + np.exp(start[..., None] + slope[..., None] * log_amounts[:, None])
    missed = fitted - losses[:, None]
    chosen = np.einsum("dfp,dfp->df", missed, missed).argmin(axis=1)
    draws = np.arange(len(losses))
    return floors[draws, chosen], start[draws, chosen], -slope[draws, chosen]


def power_law_amount_at(log_amounts: Floats, losses: Floats, targets: Floats) -> Floats:
    """As :func:`amount_at`, on a fitted power law; the range ends where the measured amounts end."""
    floor, log_scale, exponent = fit_power_law(log_amounts, losses)
    least, most = log_amounts.min(axis=1), log_amounts.max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (log_scale - np.log(targets - floor)) / exponent
    inside = np.where(np.isnan(inside) | (exponent <= 0), np.inf, inside)
    return np.where(inside > most, np.inf, np.where(inside < least, -np.inf, inside))


def choose_method(log_amounts: Floats, losses: Floats, errors: Floats) -> Method:
    """A power law where at least four points lie on one within two standard errors; else interpolation.

    Chords of a convex curve lie above it, so interpolation flatters an arm: by at most ``a * step**2 / 8`` of
    the amount between points ``step`` apart in log (about 5 % for a threefold step and an exponent of 0.3).

    Args:
        log_amounts: along the path, ``[points]``.
        losses: mean loss at each point, ``[points]``.
        errors: standard error of each mean, ``[points]``.
    """
    rising = (np.diff(log_amounts) > 1e-6).all() and (np.diff(losses) < 0).all()
    if len(losses) < 4 or not rising or not (errors > 0).all():
        return "log-linear"
    floor, log_scale, exponent = fit_power_law(log_amounts[None], losses[None])
    residuals = floor + np.exp(log_scale - exponent * log_amounts) - losses
    return "power law" if (np.abs(residuals) <= 2 * errors).all() else "log-linear"
