"""The dense frontier as a curve: what dense needs to reach a loss, inside the measured range only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Method = Literal["log-linear", "power law"]

# Candidates for the irreducible loss of a power law, as a part of the best loss seen.
FLOORS = np.concatenate([np.linspace(0.0, 0.9, 46), 1 - np.geomspace(0.1, 0.002, 40)[1:]])

# Points it takes to see whether a curve of three parameters describes them.
FEWEST = 4
# In standard errors.
LARGEST_RESIDUAL = 2.0


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
    lowest = losses.min(axis=1)[:, None]
    # A draw may fall below 0 where a few documents are all the text; its floor is still below its losses.
    floors = lowest - np.abs(lowest) * (1 - FLOORS)
    logs = np.log(losses[:, None, :] - floors[..., None])
    centred = log_amounts - log_amounts.mean(axis=1, keepdims=True)
    slope = np.einsum("dfp,dp->df", logs, centred) / (centred**2).sum(-1)[:, None]
    start = np.einsum("dfp->df", logs) / logs.shape[-1] - slope * log_amounts.mean(1)[:, None]
    fitted = floors[..., None] + np.exp(start[..., None] + slope[..., None] * log_amounts[:, None])
    missed = fitted - losses[:, None]
    chosen = np.einsum("dfp,dfp->df", missed, missed).argmin(axis=1)
    draws = np.arange(len(losses))
    return floors[draws, chosen], start[draws, chosen], -slope[draws, chosen]


def power_law_amount_at(log_amounts: Floats, law: tuple[Floats, Floats, Floats], targets: Floats) -> Floats:
    """As :func:`amount_at`, on a fitted power law; the range ends where the measured amounts end."""
    floor, log_scale, exponent = law
    least, most = log_amounts.min(axis=1), log_amounts.max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (log_scale - np.log(targets - floor)) / exponent
    inside = np.where(np.isnan(inside) | (exponent <= 0), np.inf, inside)
    return np.where(inside > most, np.inf, np.where(inside < least, -np.inf, inside))


@dataclass(frozen=True)
class Fit:
    """How a frontier is read between its points, and how well that describes them.

    Args:
        method: a power law, or straight lines between neighbours in log amount.
        points: how many budgets.
        why: the reason for the method, in words.
        residual: the largest distance of a point from the power law, in standard errors over seeds.
        floor: irreducible loss of the power law.
        exponent: its exponent.
    """

    method: Method
    points: int
    why: str
    residual: float | None = None
    floor: float | None = None
    exponent: float | None = None

    def to_dict(self) -> dict[str, float | str | None]:
        """As plain values."""
        return {
            "method": self.method,
            "points": self.points,
            "why": self.why,
            "largest_residual_in_standard_errors": self.residual,
            "floor": self.floor,
            "exponent": self.exponent,
        }


def choose(log_amounts: Floats, losses: Floats, errors: Floats) -> Fit:
    """A power law where at least four points lie on it within two standard errors; else interpolation.

    Chords of a convex curve lie above it, so interpolation flatters an arm: by at most ``a * step**2 / 8`` of
    the amount between points ``step`` apart in log (about 5 % for a threefold step and an exponent of 0.3).
    Errors are those over seeds: other documents move all points together, a curve with them.

    Args:
        log_amounts: along the path, ``[points]``.
        losses: mean loss at each point, ``[points]``.
        errors: standard error of each mean over seeds, ``[points]``.
    """
    count = len(losses)
    if count < FEWEST:
        why = f"dense has {count} budget{'' if count == 1 else 's'}, and a power law has three parameters"
        return Fit("log-linear", count, f"{why}: it takes {FEWEST}")
    if not (np.diff(log_amounts) > 1e-6).all() or not (np.diff(losses) < 0).all():
        return Fit("log-linear", count, "losses do not fall from point to point")
    if not (errors > 0).all():
        return Fit("log-linear", count, "no spread over seeds is known to hold a power law against")
    floor, log_scale, exponent = (float(each[0]) for each in fit_power_law(log_amounts[None], losses[None]))
    missed = np.abs(floor + np.exp(log_scale - exponent * log_amounts) - losses) / errors
    residual = float(missed.max())
    fits = residual <= LARGEST_RESIDUAL
    why = f"the farthest point is {residual:.1f} standard errors from the best power law"
    return Fit("power law" if fits else "log-linear", count, why, residual, floor, exponent)


class Frontier:
    """Dense losses along an axis, with draws of them, to be inverted for one arm after another.

    Args:
        log_amounts: logarithm of the amounts, from the least to the most training compute, ``[points]``.
        losses: mean loss at each point, ``[points]``.
        errors: standard error of each over seeds, ``[points]``.
        drawn_log_amounts: draws of the amounts, ``[draws, points]``.
        drawn_losses: draws of the losses, ``[draws, points]``.

    Attributes:
        end: logarithm of what the best of them used: nothing is known beyond. A point that used more and did no better,
            such as a wide network trained too little, says nothing of what a lower loss takes.
    """

    def __init__(
        self,
        log_amounts: Floats,
        losses: Floats,
        errors: Floats,
        drawn_log_amounts: Floats,
        drawn_losses: Floats,
    ) -> None:
        self.log_amounts = log_amounts
        self.losses = losses
        self.end = float(log_amounts[losses.argmin()])
        self.fit = choose(log_amounts, losses, errors)
        self._measured = _Curve(self.fit.method, log_amounts[None], losses[None])
        self._drawn = _Curve(self.fit.method, drawn_log_amounts, drawn_losses)

    def amount_at(self, target: float) -> float:
        """Logarithm of what dense needs for a loss; infinite outside of the measured range."""
        return float(self._measured.amount_at(np.array([target]))[0])

    def drawn_amounts_at(self, targets: Floats) -> Floats:
        """The same for each draw, ``[draws]``."""
        return self._drawn.amount_at(targets)


class _Curve:
    """One curve a draw, fitted once."""

    def __init__(self, method: Method, log_amounts: Floats, losses: Floats) -> None:
        self.log_amounts, self.losses = log_amounts, losses
        self.law = fit_power_law(log_amounts, losses) if method == "power law" else None

    def amount_at(self, targets: Floats) -> Floats:
        if self.law is None:
            return amount_at(self.log_amounts, self.losses, targets)
        return power_law_amount_at(self.log_amounts, self.law, targets)
