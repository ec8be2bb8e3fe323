"""What an interval allows to be said: every claim in words, colour or print passes through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from experiments.frontier.corrections import ALPHA
from experiments.frontier.multiplier import ROUNDING

Entry = Mapping[str, Any]
Decision = Literal["better", "worse", "undecided", "no interval", "no number", "not asked"]

# Loss a second copy must lie below the first, in nats per token, before a model is said to copy:
# models that do not copy differ by a few hundredths, those that do by whole nats.
COPIES = 0.5


def decide(cell: Mapping[str, Any], has_interval: bool) -> Decision:
    """``better`` or ``worse`` only where the whole interval lies on one side of 1.

    An arm that stands at the end of the dense range and leaves it in all but 2.5 % of the draws is strictly beyond
    it, so a bound of exactly 1 decides.
    """
    if cell["multiplier"] is None:
        return "no number"
    if not has_interval:
        return "no interval"
    low, high, bound = cell["low"], cell["high"], cell["multiplier"]
    strictly = cell["beyond"] == "point"
    if low is not None and (low > 1 or (strictly and low >= bound >= 1 - ROUNDING)):
        return "better"
    if high is not None and (high < 1 or (strictly and high <= bound <= 1 + ROUNDING)):
        return "worse"
    return "undecided"


def has_interval(entry: Mapping[str, Any]) -> bool:
    """Whether any spread between seeds is known for an arm at a budget."""
    return entry["bits_per_byte"]["low"] is not None


def training_decision(entry: Entry) -> Decision:
    """The decision on training FLOPs that holds by both ways of counting and after correction."""
    every = decide(entry["train_flops"], has_interval(entry))
    if every in ("better", "worse") and (conventions_differ(entry) or not survives_correction(entry)):
        return "undecided"
    return _claimed(every, entry)


def _claimed(decision: Decision, entry: Entry) -> Decision:
    """Not that an arm is better which may have read what it was to predict."""
    return "not asked" if decision == "better" and entry.get("unasked") else decision


def conventions_differ(entry: Entry) -> bool:
    """Whether counting matrix products alone, where there are any, decides otherwise."""
    every = decide(entry["train_flops"], has_interval(entry))
    return decide(entry["matmul_flops"], has_interval(entry)) not in (every, "no number")


def survives_correction(entry: Entry) -> bool:
    """Whether a difference in training FLOPs is significant among all comparisons made; controls make none."""
    return survives(entry["train_flops"])


def survives(found: Mapping[str, Any]) -> bool:
    """Whether a comparison is significant after correction, where it was corrected."""
    p = found.get("p_holm")
    return p is None or p < ALPHA


# A second dense frontier that a claim has to hold against as well, by axis.
STRICTER = {"read_flops": "any_budget", "seconds": "any_width", "bytes": "any_width"}


def strict_decision(entry: Entry, axis: str) -> Decision:
    """The decision that holds against tuned dense and against the dense models that suit the axis best."""
    tuned = decide(entry[axis], has_interval(entry))
    other = entry[axis].get(STRICTER[axis])
    return tuned if other is None or decide(other, has_interval(entry)) == tuned else "undecided"


def decision_on(entry: Entry, axis: str) -> Decision:
    """The decision on any axis, as strict as that axis asks for."""
    if axis == "train_flops":
        return training_decision(entry)
    decision = strict_decision(entry, axis) if axis in STRICTER else decide(entry[axis], has_interval(entry))
    return _claimed(decision, entry)


def counts_decision(entry: Entry) -> Decision:
    """Whether an arm is shown to be better or worse than dense with counts, among all such comparisons made."""
    gain = entry["gain_over_counts"]
    if gain is None:
        return "no number"
    if gain["low"] is None:
        return "no interval"
    if gain["low"] <= 0 <= gain["high"] or not survives(gain):
        return "undecided"
    return _claimed("better" if gain["mean"] > 0 else "worse", entry)


def copies(probe: Mapping[str, float]) -> bool:
    """Whether the second copy of a random string is predicted clearly better than the first."""
    return probe["first"] - probe["second"] > COPIES
