"""The summary in a terminal: one table a regime, and the answer; Markdown where the output is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.frontier import answer
from experiments.frontier.decisions import Decision, decision_on
from experiments.frontier.wording import AXIS_NAMES, interval_text, multiplier_text

REGIMES = {
    "none": "Reference: tuned dense, trained on the same tokens as every arm",
    "same tokens": "Same tokens: a store holds only what the network trained on",
    "whole corpus": "Whole corpus: a store holds more text than was trained on (data access, not architecture)",
}
COLORS: dict[Decision, str] = {"better": "green", "worse": "red"}


def print_table(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the summary.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    console = Console(file=file, highlight=False)
    plain = not console.is_terminal
    if plain:  # a file has no width, and folded cells would break a pasted table
        console = Console(file=file, highlight=False, width=240, color_system=None)
    for regime, title in REGIMES.items():
        rows = [
            (name, budget, entry)
            for name, budgets in summary["arms"].items()
            for budget, entry in budgets.items()
            if entry["regime"] == regime
        ]
        if rows:
            console.print(f"[bold]{title}[/bold]", soft_wrap=True)
            console.print(_table(rows, plain, reference=regime == "none"))
            if any(entry["control"] for _, _, entry in rows):
                console.print("* control")
            console.print()
    for gap in summary["missing"]:
        console.print(f"Not there: {escape(gap)}", soft_wrap=True)
    console.print(f"[bold]{escape(answer(summary))}[/bold]", soft_wrap=True)


def _table(rows: list[tuple[str, str, Mapping[str, Any]]], plain: bool, reference: bool) -> Table:
    table = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    table.add_column("budget", justify="right")
    table.add_column("bits per byte", justify="right")
    if not reference:
        for words in AXIS_NAMES.values():
            table.add_column(words, justify="right")
        table.add_column("gain over counts", justify="right")
    table.add_column("width", justify="right")
    table.add_column("seeds", justify="right")
    for name, budget, entry in rows:
        label = f"{name} *" if entry["control"] else name
        cells = [escape(label), budget, _fold(interval_text(entry["bits_per_byte"]), plain)]
        if not reference:
            cells += [_colored(entry, axis, plain) for axis in AXIS_NAMES]
            gain = entry["gain_over_counts"]
            cells.append("-" if gain is None else _fold(interval_text(gain, sign="+"), plain))
        table.add_row(*cells, str(entry["width"]), str(len(entry["seeds"])))
    return table


def _colored(entry: Mapping[str, Any], axis: str, plain: bool) -> str:
    text = _fold(multiplier_text(entry[axis]), plain)
    color = COLORS.get(decision_on(entry, axis))
    return f"[{color}]{text}[/{color}]" if color and not plain else text


def _fold(text: str, plain: bool) -> str:
    """An interval goes below its number in a terminal, so that seven columns fit."""
    return escape(text if plain else text.replace(" [", "\n[").replace(" (", "\n("))
