"""How numbers of a summary are written, the same in the terminal, on the page and in the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.frontier.cells import CONTROL_TO_BEAT

AXIS_NAMES = {
    "train_flops": "training FLOPs",
    "read_flops": "inference FLOPs",
    "seconds": "training seconds",
    "bytes": "training bytes",
}
FURTHER_AXIS_NAMES = {
    "read_bytes": "inference bytes",
    "params": "parameters",
}
# A number of seeds above this is not a plan.
MANY_SEEDS = 1000


def multiplier_text(cell: Mapping[str, Any]) -> str:
    """``1.80x [1.62, 2.01]``; ``open`` where dense was never measured that far.

    ``beyond 3.33x [2.68, open]`` where the arm is better than every dense run measured: these end at 3.33 times what it
    used, and 2.68 is the lower end of its interval. ``at least 3.33x`` where the whole interval lies beyond them.
    """
    value = cell["multiplier"]
    if value is None:
        return "no number"
    text = f"{value:.2f}x"
    low, high = cell["low"], cell["high"]
    if cell["beyond"] == "point":
        if _sure(cell):
            return f"{cell['bound']} {text}"
        text = f"{'beyond' if cell['bound'] == 'at least' else 'below'} {text}"
    if low is None and high is None and cell.get("p") is None:
        return f"{text} (no interval)"
    return f"{text} [{_end(low)}, {_end(high)}]"


def multiplier_words(cell: Mapping[str, Any]) -> str:
    """The same in a sentence: ``beyond every dense run measured (at least 2.68x)``."""
    if cell["multiplier"] is None or cell["beyond"] != "point" or _sure(cell):
        return multiplier_text(cell)
    above = cell["bound"] == "at least"
    where = f"{'beyond' if above else 'short of'} every dense run measured"
    end = cell["low"] if above else cell["high"]
    return f"{where} (no interval)" if end is None else f"{where} ({cell['bound']} {end:.2f}x)"


def least(cell: Mapping[str, Any]) -> float:
    """The number that "at least" or "at most" may be said of where the point leaves the dense range."""
    end = cell["low"] if cell["bound"] == "at least" else cell["high"]
    return cell["multiplier"] if end is None else end


def _sure(cell: Mapping[str, Any]) -> bool:
    """Whether the whole interval lies where the point is: outside of what dense was measured at."""
    end = cell["low"] if cell["bound"] == "at least" else cell["high"]
    return end is not None and abs(end / cell["multiplier"] - 1) < 0.005


def interval_text(value: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """``1.532 [1.520, 1.544]``, or the mean alone where there is no interval."""
    number = f"{sign}.{digits}f"
    if value["low"] is None:
        return f"{value['mean']:{number}} (no interval)"
    return f"{value['mean']:{number}} [{value['low']:{number}}, {value['high']:{number}}]"


def loss_text(value: Mapping[str, Any]) -> str:
    """A loss with its interval over seeds: other documents would move all arms together."""
    return interval_text({"mean": value["mean"], **value["over_seeds"]})


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def seeds_text(seeds: Sequence[int]) -> str:
    """``1 seed`` or ``3 seeds``."""
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"


def needed_text(needed: Mapping[str, Any]) -> str:
    """What it would take to show a difference of the size seen, in a sentence."""
    power = f"(power {needed['power']:g}, after correction)"
    seeds = f"{needed['seeds']} seeds"
    if needed["seeds"] > MANY_SEEDS:
        return (
            f"To show a difference as small as the one seen would take more than {MANY_SEEDS} seeds {power}."
        )
    if needed["text"] == 1:
        return f"To show a difference of the size seen would take about {seeds} {power}."
    return (
        "No number of seeds would show a difference of the size seen, for documents differ too much: it would take "
        f"about {needed['text']:.1f} times the test text and {seeds} {power}."
    )


def intervals_text(intervals: Mapping[str, Any]) -> str:
    """What the intervals of a summary are over, in a sentence."""
    if "documents" not in intervals["over"]:
        return "Intervals are over seeds only, not over documents: the rows do not tell the losses of single documents."
    return (
        f"Intervals are over seeds and over the {intervals['documents']} test documents, which tell as much as "
        f"{intervals['effective_documents']:.0f} of equal size; those of bits per byte are over seeds alone, for other "
        "documents would move all arms together."
    )


def over_text(intervals: Mapping[str, Any], confidence: float) -> str:
    """The same in short, for a caption."""
    percent = f"{100 * confidence:.0f} %"
    if "documents" not in intervals["over"]:
        return f"Intervals are {percent}, over seeds."
    return f"Intervals are {percent}: of bits per byte over seeds, of all else over seeds and documents."


def corrections_text(corrections: Mapping[str, Mapping[str, Any]]) -> str:
    """How many comparisons were corrected for, in a sentence; empty where there was none."""

    def counted(kind: str) -> list[str]:
        return [f"{told[kind]} on the {regime}" for regime, told in corrections.items() if told[kind]]

    if not counted("comparisons"):
        return ""
    text = (
        "“Better” and “worse” per training FLOP are said after correction for the number of comparisons, every arm at "
        f"every budget: {listed(counted('comparisons'))} (Holm)"
    )
    if counts := counted("comparisons_with_counts"):
        text += f'; so is what is said of gains over "{CONTROL_TO_BEAT}", {listed(counts)}'
    return f"{text}."


def fit_text(fit: Mapping[str, Any]) -> str:
    """How the dense frontier is read between its points, in a sentence."""
    if fit["method"] == "power law":
        return (
            f"Between its {fit['points']} budgets the dense frontier is read as a power law (floor "
            f"{fit['floor']:.2f} bits per byte, exponent {fit['exponent']:.2f}): {fit['why']}."
        )
    return f"Between its budgets the dense frontier is interpolated, not fitted: {fit['why']}."


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:.2f}"
