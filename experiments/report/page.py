"""One page that needs nothing else: no script, no request, no second file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier.cells import Table
from experiments.report import bill, sections
from experiments.report.markup import Markup, join, tag
from experiments.report.style import CSS

# The browser itself is told that nothing may be fetched.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    summary: Mapping[str, Any],
    results: Table,
    *,
    corpus: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    command: str,
    question: str | None = None,
) -> str:
    """Build the page.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        results: the rows it was built from, grouped.
        corpus: the corpus's description of itself.
        audit: how much of the held-out text occurs in the training text.
        command: what reproduces the results.
        question: the study's question; a general one by default.
    """
    runs = sum(len(cell.runs) for cell in results.cells)
    body = [
        sections.top(summary, question, runs),
        sections.figure(summary),
        sections.arms(summary),
        sections.multipliers(summary),
        sections.controls(summary),
        sections.generalisation(summary),
        sections.copying(summary),
        bill.bill(results),
        bill.settings(results),
        sections.dense(summary),
        bill.corpus_and_audit(corpus, audit),
        bill.counting(),
        bill.origin(results, command),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{summary['study']}: quality per compute"),
        tag("style", Markup(CSS)),
    ]
    document = tag("html", tag("head", *head), tag("body", tag("main", join(body))), lang="en")
    return f"<!doctype html>\n{document}\n"
