"""One multiplier with its interval: what dense would need for an arm's loss, over what the arm used."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.frontier.curve import Frontier
from experiments.frontier.noise import CONFIDENCE

Floats = NDArray[np.float64]

# Two equal amounts, each through a logarithm and back.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Multiplier:
    """A multiplier on one axis, JSON-safe.

    Args:
        multiplier: the number, or the bound where the arm's loss lies outside of the dense range.
        low: lower end of the 95 % interval; ``None`` when it leaves the range below, or without spread.
        high: upper end; ``None`` when it leaves the range above, or without spread.
        bound: ``at least`` or ``at most`` where the point or an end of the interval leaves the range.
        beyond: which of them leaves it: ``point``, ``interval``, or ``None``.
        p: two-sided p-value of a multiplier of 1; ``None`` without spread.
    """

    multiplier: float | None
    low: float | None = None
    high: float | None = None
    bound: Literal["at least", "at most"] | None = None
    beyond: Literal["point", "interval"] | None = None
    p: float | None = None

    def to_dict(self) -> dict[str, float | str | None]:
        """As plain values."""
        return {
            "multiplier": self.multiplier,
            "low": self.low,
            "high": self.high,
            "bound": self.bound,
            "beyond": self.beyond,
            "p": self.p,
        }


def multiplier(
    frontier: Frontier, loss: float, log_amount: float, drawn_losses: Floats, drawn_log_amounts: Floats
) -> Multiplier:
    """Compare an arm with the dense frontier on one axis.

    The interval is a percentile interval over joint draws of all losses (:class:`experiments.frontier.draws.Draws`),
    the frontier inverted for each. It says: another set of seeds and of documents from the same sources would
    give an interval that covers the multiplier in 95 of 100 cases. Draws outside of the dense range stay there as
    open ends.

    Args:
        frontier: dense on this axis.
        loss: the arm's mean loss.
        log_amount: logarithm of the geometric mean of what the arm used.
        drawn_losses: draws of its loss, ``[draws]``; without any the result has no interval.
        drawn_log_amounts: draws of what it used, ``[draws]``.
    """
    value = frontier.amount_at(loss)
    if not len(drawn_losses):
        return _result(value, (math.nan, math.nan), frontier, log_amount)
    reached = frontier.drawn_amounts_at(drawn_losses) + log_amount - drawn_log_amounts
    tail = (1 - CONFIDENCE) / 2
    low = float(np.quantile(reached, tail, method="lower"))
    high = float(np.quantile(reached, 1 - tail, method="higher"))
    found = _result(value, (low, high), frontier, log_amount)
    return replace(found, p=_p_value(reached, frontier, log_amount))


def _p_value(reached: Floats, frontier: Frontier, own: float) -> float:
    """Twice the part of the draws on the lesser side of 1, never less than the number of draws can tell.

    A draw beyond the dense range is on the side where it left, unless the arm itself stands outside of the range on
    that side: then it is on neither, and speaks against both claims.
    """
    most, least = frontier.end + ROUNDING, frontier.log_amounts[0] - ROUNDING
    above = np.where(reached == np.inf, own <= most, reached > own)
    below = np.where(reached == -np.inf, own >= least, reached < own)
    count = len(reached)
    rarer = count - max(int(above.sum()), int(below.sum()))
    return min(1.0, 2 * (rarer + 1) / (count + 1))


def _result(value: float, ends: tuple[float, float], frontier: Frontier, own: float) -> Multiplier:
    least, most = math.exp(frontier.log_amounts[0] - own), math.exp(frontier.end - own)
    # An end beyond the far side of the range is known to be at least (at most) that side; an end beyond the
    # near side is open and has no number.
    low = math.exp(ends[0] - own) if math.isfinite(ends[0]) else most if ends[0] == math.inf else None
    high = math.exp(ends[1] - own) if math.isfinite(ends[1]) else least if ends[1] == -math.inf else None
    if value == math.inf:
        return Multiplier(most, None if low is None else min(low, most), None, "at least", "point")
    if value == -math.inf:
        return Multiplier(least, None, None if high is None else max(high, least), "at most", "point")
    if ends[1] == math.inf:
        return Multiplier(math.exp(value - own), low, None, "at least", "interval")
    if ends[0] == -math.inf:
        return Multiplier(math.exp(value - own), None, high, "at most", "interval")
    return Multiplier(math.exp(value - own), low, high)
