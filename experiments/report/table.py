"""The summary in a terminal: a table a regime, and the answer; Markdown where the output is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.frontier import DENSE, answer
from experiments.frontier.decisions import Decision, decision_on
from experiments.frontier.wording import AXIS_NAMES, interval_text, multiplier_text

REGIMES = {
    "none": "Reference: tuned dense, trained on the same tokens as every arm",
    "same tokens": "Same tokens: a store holds only what the network trained on",
    "whole corpus": "Whole corpus: a store holds more text than was trained on (data access, not architecture)",
}
COLORS: dict[Decision, str] = {"better": "green", "worse": "red"}


# With more budgets than this, how a number moves with the budget comes first.
MANY_BUDGETS = 2
# Columns of characters that all columns of the table fit into.
WIDE = 120


def print_table(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the summary.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    console, plain = _console(file)
    if len(compared_budgets(summary)) > MANY_BUDGETS:
        print_by_budget(summary, file)
    for regime, title in REGIMES.items():
        rows = [
            (name, budget, entry)
            for name, budgets in summary["arms"].items()
            for budget, entry in budgets.items()
            if entry["regime"] == regime
        ]
        if rows:
            console.print(f"[bold]{title}[/bold]", soft_wrap=True)
            axes = [] if regime == "none" else [*AXIS_NAMES] if console.width >= WIDE else ["train_flops"]
            console.print(_table(rows, plain, axes))
            if any(entry["control"] for _, _, entry in rows):
                console.print("* control")
            console.print()
    if console.width < WIDE:
        others = [words for axis, words in AXIS_NAMES.items() if axis != "train_flops"]
        console.print(
            f"In a terminal of {WIDE} columns, and on the page: {', '.join(others)}.\n", soft_wrap=True
        )
    for gap in summary["missing"]:
        console.print(f"Not there: {escape(gap)}", soft_wrap=True)
    console.print(f"[bold]{escape(answer(summary))}[/bold]", soft_wrap=True)


def print_by_budget(summary: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print how loss, multiplier and gain over counts move with the budget: an arm a line, a budget a column.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
        file: where to; standard output by default.
    """
    console, plain = _console(file)
    budgets = compared_budgets(summary)
    for title, cell in _BY_BUDGET.items():
        table = _of_arms(plain)
        for budget in budgets:
            table.add_column(budget, justify="right", overflow="fold")
        starred = False
        for regime in REGIMES:
            for name, entries in summary["arms"].items():
                found = {budget: entry for budget, entry in entries.items() if entry["regime"] == regime}
                texts = [cell(found[budget]) if budget in found else "" for budget in budgets]
                if any(texts):
                    entry = next(iter(found.values()))
                    starred |= entry["control"]
                    table.add_row(_label(name, entry), *(_fold(text, plain) for text in texts))
        if table.row_count:
            console.print(f"[bold]{title}[/bold]", soft_wrap=True)
            console.print(table)
            console.print("* control\n" if starred else "")


def compared_budgets(summary: Mapping[str, Any]) -> list[str]:
    """The budgets at which something stands beside dense, ascending."""
    found = {
        budget
        for entries in summary["arms"].values()
        for budget, entry in entries.items()
        if entry["arm"] != DENSE
    }
    return sorted(found, key=float)


def _gain(entry: Mapping[str, Any]) -> str:
    gain = entry["gain_over_counts"]
    return "" if gain is None else interval_text(gain, sign="+")


_BY_BUDGET: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Bits per byte on test text, by training FLOPs": lambda entry: interval_text(entry["bits_per_byte"]),
    "Compute multiplier: how many times the arm's training FLOPs tuned dense needs for its loss": (
        lambda entry: "" if entry["arm"] == DENSE else multiplier_text(entry["train_flops"])
    ),
    'Gain over "dense + counts" of the same text, bits per byte': _gain,
}


def _console(file: IO[str] | None) -> tuple[Console, bool]:
    console = Console(file=file, highlight=False)
    if console.is_terminal:
        return console, False
    # A file has no width, and folded cells would break a pasted table.
    return Console(file=file, highlight=False, width=240, color_system=None), True


def _of_arms(plain: bool) -> Table:
    """A table with its first column."""
    table = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    return table


def _label(name: str, entry: Mapping[str, Any]) -> str:
    return escape(f"{name} *" if entry["control"] else name)


def _table(rows: list[tuple[str, str, Mapping[str, Any]]], plain: bool, axes: Sequence[str]) -> Table:
    """Losses, and multipliers on these axes beside the gain over counts; without axes, dense itself."""
    table = _of_arms(plain)
    compared = [*(AXIS_NAMES[axis] for axis in axes), "gain over counts"] if axes else []
    for words in ("budget", "bits per byte", *compared, "width", "seeds"):
        table.add_column(words, justify="right", overflow="fold")
    for name, budget, entry in rows:
        cells = [_label(name, entry), budget, _fold(interval_text(entry["bits_per_byte"]), plain)]
        if axes:
            cells += [_colored(entry, axis, plain) for axis in axes]
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
