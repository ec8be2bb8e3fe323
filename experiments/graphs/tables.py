"""Rows of results as plain tables: beside what was published, and beside a perceptron of as many FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from experiments.graphs.recipes import PUBLISHED, Published
from experiments.report.content import Cell, Table
from experiments.report.markdown import rendered
from experiments.report.units import amount
from gnn.selection import RULES

__all__ = ["HEADINGS", "tables"]

Row = Mapping[str, Any]
HEADINGS = ("model", "ours", "published", "runs", "FLOPs a run", "before training", "choosing", "seconds")
CONTROL_HEADINGS = ("MLP, as many FLOPs", "ours over it")


def tables(rows: Sequence[Row], rule: str) -> str:
    """The tables of all sets that rows are of, as Markdown.

    Args:
        rows: Of :func:`~experiments.graphs.runner.execute`.
        rule: The rule of choosing an epoch that is reported, one of :data:`gnn.selection.RULES`.
    """
    sets = dict.fromkeys(row["set"] for row in rows)
    return "\n\n".join(_of_set(name, [row for row in rows if row["set"] == name], rule) for name in sets)


def _of_set(name: str, rows: Sequence[Row], rule: str) -> str:
    measure = rows[0]["measure"]
    own = _by_model([row for row in rows if not row["control"]])
    controls = _by_model([row for row in rows if row["control"]])
    splits = list(dict.fromkeys(row["split"] for row in rows))
    told = splits[0] if len(splits) == 1 else f"{splits[0]} and {len(splits) - 1} others"
    columns = HEADINGS + (CONTROL_HEADINGS if controls else ())
    body = tuple(_line(name, model, of, controls, rule) for model, of in own.items())
    head = f"{name}, split {told}: test {measure.replace('_', ' ')} in %, mean ± std over runs"
    compared = Table(f"{head}; epoch chosen by {rule}", columns, body, 1, starred=False)
    rules = Table(
        f"{name}: what the rule of choosing an epoch changes",
        ("model", *RULES, "most minus least"),
        tuple(_rules_line(model, of) for model, of in own.items()),
        1,
        starred=False,
    )
    return "\n\n".join(f"**{table.title}**\n\n{rendered(table)}" for table in (compared, rules))


def _line(
    name: str, model: str, rows: Sequence[Row], controls: Mapping[str, Sequence[Row]], rule: str
) -> tuple[Cell, ...]:
    cells = [
        model,
        _spread(_tests(rows, rule)),
        _published(PUBLISHED.get(name, {}).get(model, ())),
        str(len(rows)),
        amount(fmean(map(_flops, rows)), "FLOP"),
        amount(fmean(row["preprocessing_flops"] for row in rows), "FLOP"),
        amount(fmean(row["selection_flops"] for row in rows), "FLOP"),
        f"{fmean(row['seconds'] for row in rows):.1f}",
    ]
    if controls:
        cells += _beside(rows, controls.get(model, ()), rule)
    return tuple(map(Cell, cells))


def _beside(rows: Sequence[Row], controls: Sequence[Row], rule: str) -> list[str]:
    """The perceptron of the same seeds, and the difference between the two, seed by seed."""
    of_seed = {row["seed"]: row for row in controls}
    pairs = [(row, of_seed[row["seed"]]) for row in rows if row["seed"] in of_seed]
    if not pairs:
        return ["-", "-"]
    ours, theirs = (_tests(side, rule) for side in zip(*pairs, strict=True))
    gains = [our - their for our, their in zip(ours, theirs, strict=True)]
    cost = fmean(_flops(control) / _flops(row) for row, control in pairs)
    told = _spread(theirs) + ("" if abs(cost - 1) < 0.02 else f" at {cost:.2f} of them")
    return [told, _spread(gains, sign=True)]


def _rules_line(model: str, rows: Sequence[Row]) -> tuple[Cell, ...]:
    means = [fmean(_tests(rows, rule)) for rule in RULES]
    shown = [_spread(_tests(rows, rule)) for rule in RULES]
    return tuple(map(Cell, (model, *shown, f"{max(means) - min(means):.2f}")))


def _tests(rows: Sequence[Row], rule: str) -> list[float]:
    return [100 * row["rules"][rule][f"test_{row['measure']}"] for row in rows]


def _flops(row: Row) -> int:
    return row["train_flops"] + row["preprocessing_flops"]


def _spread(values: Sequence[float], *, sign: bool = False) -> str:
    mean = f"{fmean(values):{'+' if sign else ''}.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def _published(known: Sequence[Published]) -> str:
    return (
        "; ".join(
            f"{one.mean:.1f}{'' if one.std is None else f' ± {one.std:.1f}'} ({one.source})" for one in known
        )
        or "-"
    )


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["model"], []).append(row)
    return found
