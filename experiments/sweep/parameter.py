"""A parameter of a sweep file: how it is written, and the values it takes.

The distributions are those of W&B's own controller (github.com/wandb/sweeps, ``params.py`` and ``schema.json``): every
one is a map from a number between 0 and 1 to a value, its quantile function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

LARGEST_GRID = 1_000_000
# Unbounded distributions have no value at 0 and at 1.
EDGE = 1e-6
_RANGE = {"min": None, "max": None}
_BELL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_STEP = {"q": 1.0}
# The keys of each distribution and their defaults; None: must be given.
KEYS: dict[str, dict[str, Any]] = {
    "constant": {"value": None},
    "categorical": {"values": None},
    "categorical_w_probabilities": {"values": None, "probabilities": None},
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "q_uniform": _RANGE | _STEP,
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "q_log_uniform": _RANGE | _STEP,
    "q_log_uniform_values": _RANGE | _STEP,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _BELL,
    "q_normal": _BELL | _STEP,
    "log_normal": _BELL,
    "q_log_normal": _BELL | _STEP,
    "beta": _BETA,
    "q_beta": _BETA | _STEP,
}
CHOICES = ("categorical", "categorical_w_probabilities")
IN_A_GRID = ("constant", "categorical", "int_uniform", "q_uniform")


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Args:
        path: Its name; nested parameters have one part a level.
        distribution: One of :data:`KEYS`.
        options: The keys of that distribution.
    """

    path: tuple[str, ...]
    distribution: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name, with dots between levels."""
        return ".".join(self.path)

    @property
    def choices(self) -> list[Any] | None:
        """The values of a categorical parameter."""
        return list(self.options["values"]) if self.distribution in CHOICES else None

    def place(self, share: float) -> float | int:
        """Where a number drawn evenly from 0 to 1 falls: the number of a choice, or the number itself.

        Args:
            share: From 0 to 1.
        """
        choices = self.choices
        if choices is None:
            return share
        weights = self.options.get("probabilities", [1 / len(choices)] * len(choices))
        total = 0.0
        for number, weight in enumerate(weights):
            total += weight
            if share < total:
                return number
        return max(number for number, weight in enumerate(weights) if weight > 0)

    def value(self, place: float) -> Any:
        """The value at a place.

        Args:
            place: As :meth:`place` gives it.
        """
        if self.distribution == "constant":
            return self.options["value"]
        choices = self.choices
        if choices is not None:
            return choices[int(place)]
        if self.distribution == "int_uniform":
            low, high = self.options["min"], self.options["max"]
            return min(high, low + int(place * (high - low + 1)))
        found = _QUANTILES[self.distribution.removeprefix("q_")](place, self.options)
        return _rounded(found, self.options["q"]) if "q" in self.options else found

    def grid(self) -> Sequence[Any]:
        """The values a grid search visits, in order; ``q_uniform`` ends before its maximum, as in W&B."""
        match self.distribution:
            case "constant":
                found = [self.options["value"]]
            case "int_uniform":
                return range(self.options["min"], self.options["max"] + 1)
            case "q_uniform":
                low, high, step = (self.options[key] for key in ("min", "max", "q"))
                count = min(math.ceil((high - low) / step), LARGEST_GRID + 1)
                found = [_whole(low + number * step) for number in range(count)]
            case _:
                found = self.choices or []
        # As text, for true is another value than 1.
        return list({json.dumps(value, sort_keys=True, default=str): value for value in found}.values())


def _log_uniform(share: float, options: Mapping[str, Any]) -> float:
    """The bounds are those of the natural logarithm."""
    return math.exp(_uniform(share, options))


def _log_uniform_values(share: float, options: Mapping[str, Any]) -> float:
    low, high = options["min"], options["max"]
    return min(max(math.exp(_uniform(share, {"min": math.log(low), "max": math.log(high)})), low), high)


def _inv_log_uniform(share: float, options: Mapping[str, Any]) -> float:
    """The logarithm of 1/x is even between the bounds."""
    return math.exp(-_uniform(1 - share, options))


def _uniform(share: float, options: Mapping[str, Any]) -> float:
    return options["min"] + share * (options["max"] - options["min"])


def _normal(share: float, options: Mapping[str, Any]) -> float:
    if options["sigma"] == 0:
        return float(options["mu"])
    return NormalDist(options["mu"], options["sigma"]).inv_cdf(min(max(share, EDGE), 1 - EDGE))


def _log_normal(share: float, options: Mapping[str, Any]) -> float:
    return math.exp(_normal(share, options))


def _beta(share: float, options: Mapping[str, Any]) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(options["a"], options["b"], share))


_QUANTILES: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "inv_log_uniform": _inv_log_uniform,
    # 1/x is even in the logarithm exactly where x is.
    "inv_log_uniform_values": _log_uniform_values,
    "normal": _normal,
    "log_normal": _log_normal,
    "beta": _beta,
}


def _rounded(value: float, step: float) -> float | int:
    return _whole(round(value / step) * step)


def _whole(value: float) -> float | int:
    """Whole numbers without their point: on their way through W&B's server they lose it."""
    return int(value) if float(value).is_integer() else value
