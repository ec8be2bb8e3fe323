"""The tables of a report, once: the terminal, Markdown and LaTeX only write them down differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.frontier import DENSE
from experiments.frontier.decisions import Decision, decide, decision_on, has_interval
from experiments.frontier.verdict import reference
from experiments.frontier.wording import interval_text, loss_text, multiplier_text
from experiments.report.axes import FIRST, axis_names
from experiments.report.breakeven import tokens_text
from experiments.report.units import amount

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]

REGIMES = {
    "none": "Reference: dense at its best width, trained on the same tokens as every arm",
    "same tokens": "Same tokens: a store holds only what the network trained on",
    "whole corpus": "Whole corpus: a store holds more text than was trained on (data access, not architecture)",
}
PRODUCTS = "training FLOPs, matrix products alone"
SERVED = "Break-even: served tokens after which building the store has paid, against dense of equal loss"
# With more budgets than this, how a number moves with the budget comes first.
MANY_BUDGETS = 2


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, and what its interval allows to be claimed."""

    text: str
    decision: Decision | None = None


@dataclass(frozen=True)
class Table:
    """A table without a form.

    Args:
        title: what it shows, in a line.
        columns: headings.
        rows: as many cells as columns in each.
        keys: how many of the first columns say what a row is about; they stay where a table is cut.
        starred: whether a row is marked as a control.
        middle: the column at which a table that is too wide is cut first; 0 for none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    keys: int
    starred: bool
    middle: int = 0

    def only(self, places: Sequence[int]) -> Table:
        """The table with some of its columns, in that order."""
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        columns = tuple(self.columns[place] for place in places)
        return Table(self.title, columns, rows, self.keys, self.starred)

    def fitted(self, widths: Sequence[int], room: int) -> list[Table]:
        """Tables that fit beside one another's keys: the whole, or the parts before and after its middle, cut again.

        Args:
            widths: of the columns, margins included.
            room: what the widths of one table may add up to.
        """
        if sum(widths) <= room:
            return [self]
        parts = self._cut(widths, room)
        if not self.middle:  # columns of one kind: as many in each part as in the others
            parts = next(
                even for less in range(room + 1) if len(even := self._cut(widths, less)) == len(parts)
            )
        return [self.only([*range(self.keys), *places]) for places in parts]

    def _cut(self, widths: Sequence[int], room: int) -> list[list[int]]:
        parts: list[list[int]] = [[]]
        left = start = room - sum(widths[: self.keys])
        for place in range(self.keys, len(widths)):
            if parts[-1] and (widths[place] > left or place == self.middle):
                parts.append([])
                left = start
            parts[-1].append(place)
            left -= widths[place]
        return parts


def tables(summary: Summary) -> list[Table]:
    """Every table of a report, in the order of reading.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it; with ``break_even`` a table more.
    """
    many = len(compared_budgets(summary)) > MANY_BUDGETS
    found = by_budget(summary) if many else []
    found += [made for regime, title in REGIMES.items() if (made := _regime(summary, regime, title))]
    served = _break_even(summary)
    return [*found, served] if served else found


def by_budget(summary: Summary) -> list[Table]:
    """How loss, multiplier and gain over counts move with the budget: an arm a line, a budget a column."""
    budgets = compared_budgets(summary)
    found: list[Table] = []
    for title, cell in _BY_BUDGET.items():
        rows: list[tuple[Cell, ...]] = []
        starred = False
        for regime in REGIMES:
            for name, entries in summary["arms"].items():
                of_regime = {budget: entry for budget, entry in entries.items() if entry["regime"] == regime}
                texts = [cell(of_regime[budget]) if budget in of_regime else "" for budget in budgets]
                if any(texts):
                    entry = next(iter(of_regime.values()))
                    starred |= entry["control"]
                    rows.append((_label(name, entry), *map(Cell, texts)))
        if rows:
            title = title.format(reference=reference(summary))
            found.append(Table(title, ("arm", *budgets), tuple(rows), 1, starred))
    return found


def compared_budgets(summary: Summary) -> list[str]:
    """The budgets at which something stands beside dense, ascending."""
    found = {
        budget
        for entries in summary["arms"].values()
        for budget, entry in entries.items()
        if entry["arm"] != DENSE
    }
    return sorted(found, key=float)


def _regime(summary: Summary, regime: str, title: str) -> Table | None:
    """Losses, and multipliers on every axis beside the gain over counts; the reference has no multipliers."""
    entries = [
        (name, budget, entry)
        for name, budgets in summary["arms"].items()
        for budget, entry in budgets.items()
        if entry["regime"] == regime
    ]
    if not entries:
        return None
    stated: list[tuple[str, Callable[[Entry], Cell]]] = [
        ("bits per byte", lambda entry: Cell(loss_text(entry["bits_per_byte"]))),
        *([] if regime == "none" else [("gain over counts", lambda entry: Cell(_gain(entry) or "-"))]),
        ("width", lambda entry: Cell(str(entry["width"]))),
        ("seeds", lambda entry: Cell(str(len(entry["seeds"])))),
    ]
    compared = [] if regime == "none" else _comparisons(summary)
    rows = tuple(
        (_label(name, entry), Cell(budget), *(cell(entry) for _, cell in [*stated, *compared]))
        for name, budget, entry in entries
    )
    columns = ("arm", "budget", *(words for words, _ in [*stated, *compared]))
    starred = any(entry["control"] for _, _, entry in entries)
    return Table(title, columns, rows, 2, starred, 2 + len(stated) if compared else 0)


def _comparisons(summary: Summary) -> list[tuple[str, Callable[[Entry], Cell]]]:
    """Every axis, and training FLOPs by the second way of counting after what training costs."""
    found: list[tuple[str, Callable[[Entry], Cell]]] = [
        (words, partial(_multiplier_cell, axis)) for axis, words in axis_names(summary).items()
    ]
    trained = sum(axis in FIRST for axis in summary["axes"])
    return [*found[:trained], (PRODUCTS, _products_cell), *found[trained:]]


def _break_even(summary: Summary) -> Table | None:
    entries = [
        (name, budget, found)
        for name, budgets in summary.get("break_even", {}).items()
        for budget, found in budgets.items()
    ]
    if not entries:
        return None
    rows = tuple(
        (
            _label(name, summary["arms"][name][budget]),
            Cell(budget),
            Cell(amount(found["build_flops"], "FLOP")),
            Cell(amount(found["read_flops"], "FLOP")),
            Cell(tokens_text(found["build_flops"], found.get("tuned"))),
            Cell(tokens_text(found["build_flops"], found.get("any_budget"))),
        )
        for name, budget, found in entries
    )
    columns = (
        "arm",
        "budget",
        "building",
        "per token",
        "tokens to break even",
        "against dense of any budget",
    )
    starred = any(summary["arms"][name][budget]["control"] for name, budget, _ in entries)
    return Table(SERVED, columns, rows, 2, starred)


def _label(name: str, entry: Entry) -> Cell:
    return Cell(f"{name} *" if entry["control"] else name)


def _multiplier_cell(axis: str, entry: Entry) -> Cell:
    if axis not in entry:  # an axis that these rows were not measured on
        return Cell("-")
    return Cell(multiplier_text(entry[axis]), decision_on(entry, axis))


def _products_cell(entry: Entry) -> Cell:
    cell = entry["matmul_flops"]
    return Cell(multiplier_text(cell), decide(cell, has_interval(entry)))


def _gain(entry: Entry) -> str:
    gain = entry["gain_over_counts"]
    return "" if gain is None else interval_text(gain, sign="+")


_BY_BUDGET: dict[str, Callable[[Entry], str]] = {
    "Bits per byte on test text, by training FLOPs": lambda entry: loss_text(entry["bits_per_byte"]),
    "Compute multiplier: how many times the arm's training FLOPs {reference} needs for its loss": (
        lambda entry: "" if entry["arm"] == DENSE else multiplier_text(entry["train_flops"])
    ),
    'Gain over "dense + counts" of the same text, bits per byte': _gain,
}
