"""The summary in a terminal, cut to its width; Markdown of a width that can be read where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from experiments.frontier import answer
from experiments.frontier.decisions import Decision, has_interval
from experiments.frontier.wording import over_text
from experiments.report.content import Cell, Table, by_budget, tables
from experiments.report.explain import BEYOND
from experiments.report.markdown import CONTROL, rendered
from experiments.report.tradeoff import trade_offs

COLORS: dict[Decision, str] = {"better": "green", "worse": "red"}
# Longer names of arms are folded before columns are put into another table.
NAME = 16
# Characters of a line of a log or a pipe: as much as a table by budget of four budgets takes.
PLAIN = 140
OUTSIDE = ("beyond ", "below ", "at least ", "at most ")


def print_table(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the summary.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    console = Console(file=file, highlight=False)
    found = tables(summary)
    single = not any(
        has_interval(entry) for budgets in summary["arms"].values() for entry in budgets.values()
    )
    if single:  # before the numbers that it is about
        _say(console, f"{answer(summary)}\n", bold=True)
    _print(console, found, PLAIN)
    if not single:
        _say(console, over_text(summary["intervals"], summary["confidence"]))
    if any(cell.text.startswith(OUTSIDE) for table in found for row in table.rows for cell in row):
        _say(console, BEYOND)
    for sentence in [*trade_offs(summary), *summary["cautions"].values()]:
        _say(console, sentence)
    for gap in summary["missing"]:
        _say(console, f"Not there: {gap}")
    if not single:
        _say(console, answer(summary), bold=True)


def print_by_budget(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print how loss, multiplier and gain over counts move with the budget: an arm a line, a budget a column.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    _print(Console(file=file, highlight=False), by_budget(summary))


def _print(console: Console, found: Iterable[Table], room: int | None = None) -> None:
    for table in found:
        _say(console, table.title, bold=True)
        if not console.is_terminal:
            widths = [_plain_width(table, place) for place in range(len(table.columns))]
            for part in table.fitted(widths, room or sum(widths)):
                _say(console, f"\n{rendered(part)}\n")
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


def _plain_width(table: Table, place: int) -> int:
    return 3 + max(map(len, [table.columns[place], *(row[place].text for row in table.rows)]))


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
