"""What a set of runs shows, with what the rows do not say: the one thing that every format is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.frontier import answer, summarize, tabulate, verdict
from experiments.frontier.cells import Row, Table, budget_key
from experiments.frontier.wording import over_text, seeds_text
from experiments.report.breakeven import break_even
from experiments.report.explain import QUESTION
from experiments.report.tradeoff import trade_offs


@dataclass(frozen=True)
class Findings:
    """A summary and where it comes from.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it, with ``answer``, ``verdict``, ``break_even`` and
            ``trade_offs``.
        results: the rows, grouped.
        corpus: the corpus's description of itself.
        audit: how much of the held-out text occurs in the training text.
        command: what reproduces the results.
        question: the study's question.
    """

    summary: dict[str, Any]
    results: Table
    corpus: Mapping[str, Any] | None
    audit: Mapping[str, Any] | None
    command: str
    question: str

    def described(self) -> str:
        """Study, data, budgets, seeds and intervals in two sentences."""
        summary, described = self.summary, self.corpus or {}
        source = described.get("name") or described.get("source")
        data = f"{source}, " if source else ""
        budgets = ", ".join(map(budget_key, summary["budgets"]))
        interval = (
            over_text(summary["intervals"], summary["confidence"])
            if len(summary["seeds"]) > 1
            else "One seed, so no intervals and no claims."
        )
        return (
            f"Study {summary['study']}; data {data}fingerprint {summary['fingerprint'][:12]}; budgets in training "
            f"FLOPs ({budgets}); {seeds_text(summary['seeds'])}. {interval}"
        )


def find(
    rows: Iterable[Row],
    *,
    corpus: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
    command: str = "mnemograph report",
    question: str | None = None,
    allow_mixed: bool = False,
) -> Findings:
    """Compare rows.

    Args:
        rows: one mapping a run.
        corpus: the corpus's description of itself.
        audit: how much of the held-out text occurs in the training text.
        command: what reproduces the results.
        question: the study's question; a general one by default.
        allow_mixed: accept rows of several code revisions.

    Raises:
        ResultsError: when the rows cannot be compared.
    """
    given = list(rows)
    results = tabulate(given, allow_mixed=allow_mixed)
    summary = summarize(given, allow_mixed=allow_mixed)
    summary |= {
        "answer": answer(summary),
        "verdict": verdict(summary),
        "trade_offs": trade_offs(summary),
        "break_even": break_even(results, summary),
    }
    return Findings(summary, results, corpus, audit, command, question or QUESTION)
