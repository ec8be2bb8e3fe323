r"""Tables for a paper: booktabs, with everything a reader must know in the caption."""

from __future__ import annotations

import re

from experiments.frontier.verdict import reference
from experiments.report.content import SERVED, Cell, Table, tables
from experiments.report.explain import BEYOND, BREAK_EVEN, CAUSAL, CONVENTIONS
from experiments.report.findings import Findings

PREAMBLE = r"""% Tables of `mnemograph report`. In the preamble: \usepackage{booktabs}
% Made for a text width of 6.5 in, as \usepackage[margin=1in]{geometry} gives."""
# Characters of a line of \footnotesize in 6.5 in.
ROOM = 104
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
SIGN = re.compile(r"(?<![\w.])([+-])(?=\d)")


def latex(findings: Findings) -> str:
    """Every table of the report, those too wide for a page in parts.

    Args:
        findings: what the tables are made from.
    """
    parts = [
        _float(part, findings, number)
        for number, table in enumerate(tables(findings.summary))
        for part in table.fitted([_width(table, place) for place in range(len(table.columns))], ROOM)
    ]
    return "\n\n".join([PREAMBLE, *parts]) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands, quotation marks turned the right way."""
    plain = "".join(SPECIAL.get(character, character) for character in text)
    return re.sub(r'"([^"]*)"', r"``\1''", plain)


def cell_text(cell: Cell) -> str:
    r"""``2.74\,[2.34, open]``: a multiplier without its x, an interval kept on the line of its number."""
    text = re.sub(r"(?<=\d)x\b", "", cell.text)
    text = SIGN.sub(r"$\1$", escaped(text).replace(r" [", r"\,["))
    return rf"\textbf{{{text}}}" if cell.decision == "better" else text


def _float(table: Table, findings: Findings, number: int) -> str:
    body = [" & ".join(map(cell_text, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(escaped, table.columns)) + r" \\"
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(_caption(table, findings))}}}",
        rf"\label{{tab:mnemograph-{number}-{len(table.columns)}-{_slug(table.columns[-1])}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(table.columns) - 1)}@{{}}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _caption(table: Table, findings: Findings) -> str:
    said = [f"{table.title}.", findings.described()]
    if any(cell.decision for row in table.rows for cell in row):
        axes = ", ".join(
            words
            for place, words in enumerate(table.columns)
            if any(row[place].decision for row in table.rows)
        )
        said.append(
            f"On {axes}: how many times the arm's own amount {reference(findings.summary)} needs for its loss; "
            f"bold: better than dense, shown by the interval. {BEYOND}"
        )
        said += findings.summary["cautions"].values()
    said += [BREAK_EVEN] if table.title == SERVED else [CONVENTIONS, CAUSAL]
    said += ["*: control."] if table.starred else []
    return " ".join(said)


def _width(table: Table, place: int) -> int:
    return 2 + max(len(text) for text in (table.columns[place], *(row[place].text for row in table.rows)))


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")
