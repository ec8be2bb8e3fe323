"""The parts of the page that say how sure its numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier import DENSE
from experiments.frontier.decisions import training_decision
from experiments.frontier.wording import (
    corrections_text,
    fit_text,
    interval_text,
    intervals_text,
    multiplier_text,
    needed_text,
)
from experiments.report.explain import PAIRS
from experiments.report.marks import KNOCKOUT
from experiments.report.markup import Markup, join, table, tag
from experiments.report.sections import TITLES, arm_label, entries, number

Summary = Mapping[str, Any]


def certainty(summary: Summary) -> Markup:
    """What intervals are over, what was corrected for, and what it would take to show more."""
    sentences = (
        intervals_text(summary["intervals"]),
        corrections_text(summary["corrections"]),
        fit_text(summary["frontier_fit"]),
    )
    parts = [tag("h2", "How sure is this?"), *(tag("p", sentence) for sentence in sentences if sentence)]
    body = [
        [
            arm_label(name, entry),
            budget,
            number(multiplier_text(entry["train_flops"])),
            _p(entry["train_flops"]["p"]),
            _p(entry["train_flops"]["p_holm"]),
            training_decision(entry),
            needed_text(entry["seeds_needed"]) if entry["seeds_needed"] else "",
        ]
        for name, budget, entry in entries(summary, tuple(TITLES))
        if entry["train_flops"]["p"] is not None and KNOCKOUT not in name and entry["arm"] != DENSE
    ]
    if body:
        head = ["arm", "budget", "training FLOPs", "p", "corrected p", "said", "to say more"]
        caption = (
            "Is the multiplier on training FLOPs another than 1? Controls, in italics, are not corrected."
        )
        parts.append(table(head, body, caption=caption, numeric=range(1, 5)))
    return join([*parts, _pairs(summary)])


def _pairs(summary: Summary) -> Markup:
    body = [
        [
            pair["arm"],
            number(interval_text(pair, sign="+")),
            pair["against"],
            pair["budget"],
            pair["regime"],
        ]
        for pair in summary["pairs"]
    ]
    if not body:
        return Markup("")
    head = ["arm", "is better by, bits per byte", "than", "budget", "regime"]
    return tag(
        "details",
        tag("summary", "Every two arms against each other"),
        tag("p", PAIRS),
        table(
            head,
            body,
            caption="Differences in bits per byte on test text, with 95 % intervals.",
            numeric=(1, 3),
        ),
    )


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
