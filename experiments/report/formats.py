"""Every form a report can take: its name, its file, and what makes it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from experiments.report.figure import draw, to_bytes
from experiments.report.findings import Findings
from experiments.report.latex import latex
from experiments.report.long import long_csv
from experiments.report.markdown import markdown
from experiments.report.page import page
from experiments.report.profiles import draw_profiles
from experiments.report.table import print_table


@dataclass(frozen=True)
class Format:
    """One form.

    Args:
        file: what its file is called.
        what: what the file is, in words.
        make: its text, or its bytes where it is a picture.
        printed: whether it may go to the terminal.
    """

    file: str
    what: str
    make: Callable[[Findings], str | bytes]
    printed: bool = True

    def to_bytes(self, findings: Findings) -> bytes:
        """What the file holds."""
        made = self.make(findings)
        return made if isinstance(made, bytes) else made.encode()


def _table(findings: Findings) -> str:
    file = io.StringIO()
    print_table(findings.summary, file)
    return file.getvalue()


def _json(findings: Findings) -> str:
    return json.dumps(findings.summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


FORMATS = {
    "html": Format("report.html", "the page to read", page, printed=False),
    "png": Format(
        "frontier.png", "the figure", lambda found: to_bytes(draw(found.summary), "png"), printed=False
    ),
    "svg": Format(
        "frontier.svg",
        "the figure, to scale",
        lambda found: to_bytes(draw(found.summary), "svg"),
        printed=False,
    ),
    "profiles": Format(
        "profiles.svg",
        "sizes of dense at each budget",
        lambda found: to_bytes(draw_profiles(found.summary), "svg"),
        printed=False,
    ),
    "json": Format("summary.json", "the numbers", _json),
    "csv": Format("multipliers.csv", "the numbers in long form", lambda found: long_csv(found.summary)),
    "table": Format("tables.txt", "what the terminal shows", _table),
    "markdown": Format("report.md", "the tables in Markdown", markdown),
    "latex": Format("tables.tex", "the tables in LaTeX", latex),
}
# What a comparison leaves beside its results.
USUAL = ("html", "png", "json")
