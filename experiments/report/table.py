"""The summary in a terminal, cut to its width; Markdown where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from experiments.frontier import answer
from experiments.frontier.decisions import Decision
from experiments.report.content import Cell, Table, by_budget, tables
from experiments.report.markdown import CONTROL, rendered
from experiments.report.tradeoff import trade_offs

COLORS: dict[Decision, str] = {"better": "green", "worse": "red"}
# Longer names of arms are folded before columns are put into another table.
NAME = 16


def print_table(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the summary.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    console = Console(file=file, highlight=False)
    _print(console, tables(summary))
    for sentence in trade_offs(summary):
        _say(console, sentence)
    for gap in summary["missing"]:
        _say(console, f"Not there: {gap}")
    _say(console, answer(summary), bold=True)


def print_by_budget(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print how loss, multiplier and gain over counts move with the budget: an arm a line, a budget a column.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    _print(Console(file=file, highlight=False), by_budget(summary))


def _print(console: Console, found: Iterable[Table]) -> None:
    for table in found:
        _say(console, table.title, bold=True)
        if not console.is_terminal:
            _say(console, f"\n{rendered(table)}\n")
        else:
            widths = [_width(table, place) for place in range(len(table.columns))]
            for part in table.fitted(widths, console.width + 1):
                console.print(_grid(part))
        _say(console, f"{CONTROL}\n" if table.starred else "")


def _say(console: Console, text: str, *, bold: bool = False) -> None:
    """As it is, never folded: a pasted table or sentence stays whole."""
    if console.is_terminal:
        console.print(f"[bold]{escape(text)}[/bold]" if bold else escape(text), soft_wrap=True)
    else:
        console.file.write(f"{text}\n")


def _width(table: Table, place: int) -> int:
    lines = [line for row in table.rows for line in _folded(row[place].text).split("\n")]
    widest = max(map(len, [*table.columns[place].split(), *lines]))
    # A margin on both sides and the gap of the box; the outermost two are not there.
    return 3 + (min(widest, NAME) if place == 0 else widest)


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, words in enumerate(table.columns):
        grid.add_column(words, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(_colored, row))
    return grid


def _colored(cell: Cell) -> str:
    text = escape(_folded(cell.text))
    color = COLORS.get(cell.decision) if cell.decision else None
    return f"[{color}]{text}[/{color}]" if color else text


def _folded(text: str) -> str:
    """An interval goes below its number, so that more columns fit."""
    return text.replace(" [", "\n[").replace(" (", "\n(")
