"""One page that needs nothing else: no script, no request, no second file."""

from __future__ import annotations

from experiments.report import bill, certainty, cost, health, sections
from experiments.report.findings import Findings
from experiments.report.markup import Markup, join, tag
from experiments.report.style import CSS

# The browser itself is told that nothing may be fetched.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(findings: Findings) -> str:
    """Build the page.

    Args:
        findings: what it says.
    """
    summary, results = findings.summary, findings.results
    runs = sum(len(cell.runs) for cell in results.cells)
    body = [
        sections.top(summary, findings.question, runs),
        sections.figure(summary),
        sections.arms(summary),
        sections.multipliers(summary),
        cost.trade_offs(summary),
        cost.conventions(summary),
        cost.serving(summary),
        certainty.certainty(summary),
        sections.controls(summary),
        sections.generalisation(summary),
        sections.copying(summary),
        health.health(results),
        bill.bill(results),
        bill.settings(results),
        sections.dense(summary),
        bill.corpus_and_audit(findings.corpus, findings.audit),
        bill.counting(summary),
        bill.origin(results, findings.command),
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
