"""The axes that a summary compares on: their names, their order, and how their amounts are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier.wording import AXIS_NAMES, FURTHER_AXIS_NAMES
from experiments.report.units import amount, seconds

# Equal FLOPs, equal time, equal bytes: what training is judged by stands side by side.
FIRST = ("train_flops", "seconds", "bytes")
AMOUNT_NAMES = {
    "train_flops": "billed FLOPs",
    "read_flops": "FLOPs per token, inference",
    "seconds": "seconds",
    "bytes": "bytes",
    "read_bytes": "bytes per token, inference",
}


def axis_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """Every axis of a summary and its name in words, what training costs first."""
    axes = sorted(summary["axes"], key=lambda axis: FIRST.index(axis) if axis in FIRST else len(FIRST))
    return {axis: _name(axis) for axis in axes}


def amount_name(axis: str) -> str:
    """What an arm spent on an axis, as a column is headed."""
    return AMOUNT_NAMES.get(axis) or _name(axis)


def amount_text(axis: str, value: float | None) -> str:
    """An amount with the unit that the name of its axis ends in."""
    if axis.endswith("seconds"):
        return seconds(value)
    return amount(value, "B" if axis.endswith("bytes") else "FLOP" if axis.endswith("flops") else "").strip()


def _name(axis: str) -> str:
    return (AXIS_NAMES | FURTHER_AXIS_NAMES).get(axis) or axis.replace("_", " ")
