"""What the numbers show, in plain English, whichever way they come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier.cells import CONTROL_TO_BEAT, DENSE, budget_key
from experiments.frontier.decisions import (
    STRICTER,
    conventions_differ,
    copies,
    counts_decision,
    decide,
    decision_on,
    has_interval,
    strict_decision,
    survives,
    training_decision,
)
from experiments.frontier.wording import (
    AXIS_NAMES,
    FURTHER_AXIS_NAMES,
    corrections_text,
    fit_text,
    interval_text,
    intervals_text,
    listed,
    loss_text,
    multiplier_words,
    needed_text,
    seeds_text,
)

_STRICTER = {
    "read_flops": "Against dense trained for any budget of the table the inference figure",
    "seconds": "Against dense of whatever width is best in that time the figure for seconds",
    "bytes": "Against dense of whatever width is best with those bytes the figure for bytes",
}
Summary = Mapping[str, Any]
Entry = Mapping[str, Any]


def answer(summary: Summary) -> str:
    """The answer in one or two sentences: largest budget at which arms ran, same tokens, training FLOPs."""
    budget = _last_compared(summary)
    if budget is None:
        return "Only dense has run so far: there is nothing to compare with it yet."
    arms = _arms(summary, budget, "same tokens")
    if not arms:
        return (
            f"At {budget} training FLOPs no arm has run on the same tokens as dense; "
            "what follows is about access to more text, not about architecture."
        )
    where = f"At {budget} training FLOPs, on the same tokens"
    if not any(has_interval(entry) for entry in arms.values()):
        return (
            f"{where}, there is one seed for each arm and so no interval: the numbers here are single "
            "measurements and show nothing yet, in either direction."
        )
    winners = [name for name, entry in arms.items() if training_decision(entry) == "better"]
    if not winners:
        losers = [name for name, entry in arms.items() if training_decision(entry) == "worse"]
        tail = f" {listed(losers)} {_is(losers)} shown to be worse." if losers else ""
        return (
            f"{where}, none of {len(arms)} arms ({listed(list(arms))}) is shown to be better than "
            f"{reference(summary)} per training FLOP.{tail}"
        )
    text = f"{where}, {listed(winners)} {_is(winners)} better than {reference(summary)} per training FLOP"
    told = [f"{name} {multiplier_words(arms[name]['train_flops'])}{_alone(arms[name])}" for name in winners]
    text += f" ({'; '.join(told)})"
    judged = [name for name in winners if arms[name]["gain_over_counts"] is not None]
    if not judged:
        return f'{text}. Whether that beats "{CONTROL_TO_BEAT}" is not known: the control has not run.'
    beating = [name for name in judged if counts_decision(arms[name]) == "better"]
    if not beating:
        return f'{text}, but not shown to beat "{CONTROL_TO_BEAT}", a table of counts that needs no training.'
    verb = "beats" if len(beating) == 1 else "beat"
    if len(beating) == len(winners):
        return f'{text}, and {verb} "{CONTROL_TO_BEAT}" as well.'
    return f'{text}. Of these, only {listed(beating)} {verb} "{CONTROL_TO_BEAT}" as well.'


def verdict(summary: Summary) -> str:
    """Every arm at every budget in sentences, one paragraph a line.

    "Better" and "worse" are said only where the 95 % interval lies on one side of 1; for training FLOPs by
    both conventions (every operation; matrix products alone) and after correction for the number of comparisons, for
    inference FLOPs against both frontiers.
    """
    lines = [answer(summary), *_gaps(summary), *_method(summary)]
    for regime in ("same tokens", "whole corpus"):
        paragraphs = [
            _paragraph(name, budget, entry, reference(summary))
            for name, budgets in summary["arms"].items()
            for budget, entry in budgets.items()
            if entry["regime"] == regime and (not entry["control"] or entry["arm"] == CONTROL_TO_BEAT)
        ]
        if paragraphs and regime == "whole corpus":
            lines.append(
                "Whole corpus: here a store holds text that the networks did not train on. What these arms "
                "gain over dense is data access, not architecture; only the comparison with the counts of "
                "the same text is fair."
            )
        lines += paragraphs
    lines += [line for budget in map(budget_key, summary["budgets"]) for line in _copying(summary, budget)]
    return "\n".join(lines)


def reference(summary: Summary) -> str:
    """What arms are held against: dense, and whether it was tuned."""
    return "tuned dense" if summary.get("tuned", True) else "untuned dense"


def _alone(entry: Entry) -> str:
    return ", one seed with the spread of other arms" if len(entry["seeds"]) == 1 else ""


def _paragraph(name: str, budget: str, entry: Entry, against: str) -> str:
    regime = "" if entry["regime"] in name else f", {entry['regime']}"
    text = (
        f"{name}{regime}, {seeds_text(entry['seeds'])}, budget {budget}: "
        f"{loss_text(entry['bits_per_byte'])} bits per byte. "
    )
    parts = [
        f"{words} {multiplier_words(entry[axis])}, {_said(decision_on(entry, axis))}"
        for axis, words in (AXIS_NAMES | FURTHER_AXIS_NAMES).items()
    ]
    text += f"Against {against}, {'; '.join(parts)}. "
    if decide(entry["train_flops"], has_interval(entry)) != training_decision(entry):
        text += _withheld(entry)
    if entry["seeds_needed"] is not None:
        text += f"{needed_text(entry['seeds_needed'])} "
    for axis, against in _STRICTER.items():
        if decide(entry[axis], has_interval(entry)) != strict_decision(entry, axis):
            text += f"{against} is {multiplier_words(entry[axis][STRICTER[axis]])}. "
    return (text + _counts(name, entry)).strip()


def _withheld(entry: Entry) -> str:
    """Why an interval on one side of 1 is not a claim."""
    if training_decision(entry) == "not asked":
        return ""
    if conventions_differ(entry):
        return (
            f"Counting matrix products alone the training figure is {multiplier_words(entry['matmul_flops'])}: "
            "the two conventions disagree, so nothing is claimed. "
        )
    return (
        f"The training figure differs from 1 by itself, but not among all comparisons made (corrected p "
        f"{entry['train_flops']['p_holm']:.2g}), so nothing is claimed. "
    )


def _counts(name: str, entry: Entry) -> str:
    if entry["arm"] == CONTROL_TO_BEAT:
        return "This is the control to beat: counts of the same text, mixed in after training."
    gain = entry["gain_over_counts"]
    if gain is None:
        return (
            f'"{CONTROL_TO_BEAT}" has not run here, so there is no answer yet to the comparison that counts.'
        )
    control = gain["control"]
    size = f"difference {interval_text(gain, sign='+')} bits per byte, positive where {name} is better"
    decision = counts_decision(entry)
    if decision == "not asked":
        return f'Against "{control}": {size}; no claim.'
    if decision == "no interval":
        return f'Against "{control}": {size}; without an interval, no claim.'
    if decision == "better":
        return f'It beats "{control}" ({size}).'
    if decision == "worse":
        return f'It does not beat "{control}" and is shown to be worse ({size}).'
    if not survives(gain):
        size += f"; not among all comparisons made, corrected p {gain['p_holm']:.2g}"
    return f'It is not shown to beat "{control}" ({size}).'


def _said(decision: str) -> str:
    return {
        "better": "better",
        "worse": "worse",
        "undecided": "no difference shown",
        "no interval": "no claim from one seed",
        "no number": "not comparable",
        "not asked": "no claim from an arm not asked whether it reads the future",
    }[decision]


def _method(summary: Summary) -> list[str]:
    """What the intervals are over, how many comparisons were corrected for, how the frontier was read."""
    if not any(has_interval(entry) for budgets in summary["arms"].values() for entry in budgets.values()):
        return [fit_text(summary["frontier_fit"])]
    sentences = (
        intervals_text(summary["intervals"]),
        corrections_text(summary["corrections"]),
        fit_text(summary["frontier_fit"]),
    )
    return [" ".join(sentence for sentence in sentences if sentence)]


def _gaps(summary: Summary) -> list[str]:
    lines: list[str] = []
    if summary["missing"]:
        lines.append(f"Partial results. Not there: {'; '.join(summary['missing'])}.")
    lines += summary["cautions"].values()
    if summary["diverged"]:
        lines.append(f"Left out because they diverged: {'; '.join(summary['diverged'])}.")
    if len(summary["revisions"]) > 1:
        lines.append(f"Rows of {len(summary['revisions'])} code revisions are mixed, as asked.")
    if summary.get("mixed"):
        lines.append(f"Runs of different {' and '.join(summary['mixed'])} are mixed, as asked.")
    return lines


def _copying(summary: Summary, budget: str) -> list[str]:
    probes = {
        name: entry["copying"]
        for name, budgets in summary["arms"].items()
        if (entry := budgets.get(budget)) is not None
        and entry["copying"] is not None
        and not entry["control"]
    }
    if not probes or DENSE not in probes:
        return []
    copying = [name for name, probe in probes.items() if copies(probe)]
    told = "; ".join(
        f"{name} {probe['first']:.2f} then {probe['second']:.2f}" for name, probe in probes.items()
    )
    text = (
        f"Copying probe at {budget} (nats per token on the first and second copy of random strings): {told}. "
    )
    if DENSE in copying:
        others = [name for name in probes if name not in copying]
        text += (
            "Dense has learned to copy from its context, so gains here are gains over a model that copies."
        )
        if others:
            text += f" {listed(others)} {'has' if len(others) == 1 else 'have'} not."
    else:
        text += (
            "Dense has not learned to copy from its context yet. A gain measured before that transition is "
            "another fact than one measured after it; do not carry it over to larger budgets."
        )
        if copying:
            text += f" {listed(copying)} {'has' if len(copying) == 1 else 'have'} learned it already."
    return [text]


def _last_compared(summary: Summary) -> str | None:
    budgets = {
        budget
        for per_budget in summary["arms"].values()
        for budget, entry in per_budget.items()
        if entry["arm"] != DENSE and not entry["control"]
    }
    return max(budgets, key=float) if budgets else None


def _arms(summary: Summary, budget: str, regime: str) -> dict[str, Entry]:
    return {
        name: budgets[budget]
        for name, budgets in summary["arms"].items()
        if budget in budgets
        and budgets[budget]["regime"] == regime
        and not budgets[budget]["control"]
        and budgets[budget]["arm"] != DENSE
    }


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
