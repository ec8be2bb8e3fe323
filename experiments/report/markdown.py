"""Tables as Markdown, aligned so that they read as plain text too."""

from __future__ import annotations

from rich.cells import cell_len

from experiments.report.content import Table, tables
from experiments.report.explain import BEYOND, BREAK_EVEN, CAUSAL, CONVENTIONS
from experiments.report.findings import Findings

CONTROL = "* control"


def markdown(findings: Findings) -> str:
    """The whole report for a paper or an issue: question, answer, tables, and how to read them."""
    summary = findings.summary
    parts = [f"# {findings.question}", f"**{summary['answer']}**", findings.described()]
    parts += [f"> {caution}" for caution in summary["cautions"].values()]
    for table in tables(summary):
        parts += [f"## {table.title}", rendered(table)]
        if table.starred:
            parts.append(f"\\{CONTROL}")
    if summary["trade_offs"]:
        listed = "\n".join(f"- {sentence}" for sentence in summary["trade_offs"])
        parts += ["## Fewer FLOPs, more of something else", listed]
    gaps = [f"- Not there: {gap}" for gap in summary["missing"]]
    if gaps:
        parts.append("\n".join(gaps))
    notes = [CONVENTIONS, BEYOND, CAUSAL, *([BREAK_EVEN] if summary["break_even"] else [])]
    return "\n\n".join([*parts, "## How to read", *notes]) + "\n"


def rendered(table: Table) -> str:
    """One table, its first column flush left."""
    lines = [list(table.columns), *([cell.text for cell in row] for row in table.rows)]
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    head, *body = [_line(line, widths) for line in lines]
    rule = "|".join("-" * (width + 1 + (0 < place < len(widths) - 1)) for place, width in enumerate(widths))
    return "\n".join([head, f"|{rule}|", *body])


def _line(texts: list[str], widths: list[int]) -> str:
    first, *rest = [(text, " " * (width - cell_len(text))) for text, width in zip(texts, widths, strict=True)]
    return f"|{first[0]}{first[1]} | {' | '.join(blank + text for text, blank in rest)}|"
