"""``mnemograph report``: draw the answer from finished runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.errors import ResultsError

SUMMARY = "print and draw the answer from the runs that have finished, without running any"
EXAMPLES = """\
  mnemograph report runs/memory_per_flop
  mnemograph report runs/memory_per_flop-quick --allow-mixed"""
ABOUT = "about.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that `mnemograph compare` wrote")
    parser.add_argument(
        "--allow-mixed", action="store_true", help="accept results of several revisions of the code"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.results import read_rows

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise ResultsError(
            f"there is no folder {folder}: give the --out of `mnemograph compare`, such as runs/..."
        )
    rows, notes = read_rows(folder)
    if not rows:
        raise ResultsError(f"no run has finished in {folder} yet: mnemograph compare --out {folder}")
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    conclude(rows, folder, _about(folder), allow_mixed=arguments.allow_mixed)
    return 0


def conclude(
    rows: list[dict[str, Any]], folder: Path, about: dict[str, Any], *, allow_mixed: bool = False
) -> None:
    """Write the report and print what it says.

    Args:
        rows: The finished runs.
        folder: Where the report goes.
        about: What the rows do not say: ``corpus`` (its description), ``audit``, ``command``, ``question``.
        allow_mixed: Accept rows of several revisions of the code.

    Raises:
        ResultsError: If the rows cannot be compared.
    """
    from experiments.report import print_table, write_report

    summary = write_report(
        rows,
        folder,
        corpus=about.get("corpus"),
        audit=about.get("audit"),
        command=about.get("command") or f"mnemograph report {folder}",
        question=about.get("question"),
        allow_mixed=allow_mixed,
    )
    print_table(summary)
    print()
    for name, what in (
        ("report.html", "the page to read"),
        ("frontier.png", "the figure"),
        ("summary.json", "the numbers"),
        ("results.jsonl", "every run"),
    ):
        print(f"{folder / name}  {what}")


def remember(folder: Path, about: dict[str, Any]) -> None:
    """Keep what a later report needs and rows do not say."""
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def _about(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
