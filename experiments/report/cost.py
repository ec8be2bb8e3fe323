"""The parts of the page that set one kind of cost beside another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier.decisions import decide, has_interval, training_decision
from experiments.frontier.wording import multiplier_text
from experiments.report.breakeven import tokens_text
from experiments.report.explain import BREAK_EVEN, CONVENTIONS
from experiments.report.marks import KNOCKOUT
from experiments.report.markup import Markup, join, table, tag
from experiments.report.sections import TITLES, arm_label, entries, multiplier_cell, number
from experiments.report.units import amount

Summary = Mapping[str, Any]


def trade_offs(summary: Summary) -> Markup:
    """Arms that are cheaper in training FLOPs and dearer in something else."""
    sentences = summary["trade_offs"]
    if not sentences:
        return Markup("")
    return join(
        [
            tag("h2", "Fewer FLOPs, more of something else"),
            tag("ul", *(tag("li", sentence) for sentence in sentences)),
        ]
    )


def conventions(summary: Summary) -> Markup:
    """Training FLOPs by both ways of counting."""
    body = [
        [
            arm_label(name, entry),
            budget,
            multiplier_cell(entry, "train_flops"),
            tag(
                "span",
                number(multiplier_text(entry["matmul_flops"])),
                class_=decide(entry["matmul_flops"], has_interval(entry)).replace(" ", "-"),
            ),
            training_decision(entry),
        ]
        for name, budget, entry in entries(summary, tuple(TITLES))
        if "train_flops" in entry and KNOCKOUT not in name
    ]
    if not body:
        return Markup("")
    head = ["arm", "budget", "every operation", "matrix products alone", "by both"]
    return join(
        [
            tag("h2", "Two ways of counting"),
            tag("p", CONVENTIONS),
            table(
                head, body, caption="Multipliers on training FLOPs, with 95 % intervals.", numeric=range(1, 4)
            ),
        ]
    )


def serving(summary: Summary) -> Markup:
    """After how many served tokens building has paid."""
    body = []
    for name, budgets in summary["break_even"].items():
        for budget, found in budgets.items():
            build = found["build_flops"]
            parts = ", ".join(f"{part} {amount(value, 'FLOP')}" for part, value in found["parts"].items())
            body.append(
                [
                    arm_label(name, summary["arms"][name][budget]),
                    budget,
                    join([amount(build, "FLOP"), " ", tag("small", f"({parts})") if parts else ""]),
                    amount(found["read_flops"], "FLOP"),
                    number(tokens_text(build, found.get("tuned"))),
                    number(tokens_text(build, found.get("any_budget"))),
                ]
            )
    if not body:
        return Markup("")
    head = [
        "arm",
        "budget",
        "building the store",
        "per token, search included",
        "served tokens to break even",
        "against dense of any budget",
    ]
    return join(
        [
            tag("h2", "When a store has paid for itself"),
            tag("p", BREAK_EVEN),
            table(head, body, caption="Controls in italics.", numeric=range(1, 6)),
        ]
    )
