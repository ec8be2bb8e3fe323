"""How numbers of a summary are written, the same in the terminal, on the page and in the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

AXIS_NAMES = {
    "train_flops": "training FLOPs",
    "read_flops": "inference FLOPs",
    "seconds": "training seconds",
    "bytes": "training bytes",
}


def multiplier_text(cell: Mapping[str, Any]) -> str:
    """``1.80x [1.62, 2.01]``; ``at least 2.31x`` or ``open`` where dense was never measured that far."""
    value = cell["multiplier"]
    if value is None:
        return "no number"
    text = f"{value:.2f}x"
    if cell["beyond"] == "point":
        text = f"{cell['bound']} {text}"
    low, high = cell["low"], cell["high"]
    if low is None and high is None:
        return text if cell["bound"] else f"{text} (no interval)"
    if cell["beyond"] == "point":
        # The bound is one end already; the other end says how far the seeds let it move.
        end = low if cell["bound"] == "at least" else high
        return text if end is None or abs(end / value - 1) < 0.005 else f"{text} [{_end(low)}, {_end(high)}]"
    return f"{text} [{_end(low)}, {_end(high)}]"


def interval_text(value: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """``1.532 [1.520, 1.544]``, or the mean alone where there is no interval."""
    number = f"{sign}.{digits}f"
    if value["low"] is None:
        return f"{value['mean']:{number}} (no interval)"
    return f"{value['mean']:{number}} [{value['low']:{number}}, {value['high']:{number}}]"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def seeds_text(seeds: Sequence[int]) -> str:
    """``1 seed`` or ``3 seeds``."""
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:.2f}"
