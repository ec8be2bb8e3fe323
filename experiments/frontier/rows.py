"""Rows of a study, checked and grouped into a table; what cannot be compared is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.errors import ResultsError
from experiments.frontier.cells import DENSE, METRIC, Cell, Row, Table, budget_key
from experiments.frontier.checks import check_row, diverged
from experiments.frontier.documents import FEWEST, Text


def tabulate(rows: Iterable[Row], *, allow_mixed: bool = False) -> Table:
    """Check rows and group them into cells; a run that appears twice counts once, as last written.

    Args:
        rows: one mapping a run.
        allow_mixed: accept rows of several code revisions; never rows of two corpora.

    Raises:
        ResultsError: no rows; two studies or corpora; two revisions or precisions without ``allow_mixed``; a row
            that lacks a column or holds what no run writes; two runs that claim the same place; no dense run.
    """
    unique: dict[tuple[str, str, str], Row] = {}
    for number, row in enumerate(rows, start=1):
        check_row(row, number)
        # Derived rows carry their parent's run; arm and regime tell them apart.
        unique[row["run"], row["arm"], row["regime"]] = row
    if not unique:
        raise ResultsError(
            "no results yet: run the study (`mnemograph compare`), then report on its results.jsonl"
        )
    runs = list(unique.values())
    studies = _distinct(runs, "study")
    if len(studies) > 1:
        raise ResultsError(
            f"rows of {len(studies)} studies ({', '.join(studies)}) in one file: "
            "give each study its own --out directory"
        )
    corpora = _distinct(runs, "corpus")
    if len(corpora) > 1:
        raise ResultsError(
            f"rows of {len(corpora)} corpora cannot be compared: {_counted(runs, 'corpus', corpora)}. "
            "Losses on different text are different quantities; move the rows of one corpus to another "
            "directory, or run the study again into a new --out directory"
        )
    revisions = _distinct(runs, "code")
    if len(revisions) > 1 and not allow_mixed:
        raise ResultsError(
            f"rows of {len(revisions)} code revisions: {_counted(runs, 'code', revisions)}. Run the older "
            "ones again, or pass allow_mixed=True (--allow-mixed) if you know that the change between them "
            "touches no number"
        )
    finite = [row for row in runs if _finite(row)]
    lost = tuple(_lost(row) for row in runs if not _finite(row))
    mixed = _mixed(finite)
    if mixed and not allow_mixed:
        raise ResultsError(
            f"rows of different {' and '.join(mixed)} are no fair comparison: give each its own --out directory, or "
            "pass allow_mixed=True (--allow-mixed) if you know that it makes no difference"
        )
    cells = _group(finite, {row["run"]: row for row in runs if row.get("parent") is None})
    if not any(cell.arm == DENSE for cell in cells):
        raise ResultsError(
            "no finished dense run among the rows: a multiplier is read off the dense frontier, "
            "so run the dense arm first"
        )
    return Table(studies[0], corpora[0], cells, lost, tuple(revisions), tuple(mixed), _text(finite))


def _text(rows: Sequence[Row]) -> Text | None:
    """The documents of all rows; none where a row does not tell them, or tells others."""
    told = [row["losses"]["test"].get("documents") for row in rows]
    if not told or any(each is None for each in told):
        return None
    sizes = told[0]["bytes"]
    if any(each["bytes"] != sizes for each in told):
        return None
    for row, each in zip(rows, told, strict=True):
        _check_documents(row, each)
    text = Text(np.array(sizes, dtype=float))
    return text if text.effective >= FEWEST else None


def _check_documents(row: Row, documents: Mapping[str, Sequence[float]]) -> None:
    nats, sizes = documents["nats"], documents["bytes"]
    found = sum(nats) / math.log(2) / max(1, sum(sizes))
    if len(nats) != len(sizes) or not math.isclose(found, row["losses"]["test"][METRIC], rel_tol=1e-3):
        raise ResultsError(
            f"the documents of {row['arm']}, budget {budget_key(row['budget'])}, width {row['width']}, seed "
            f"{row['seed']} do not add up to its bits per byte on test: delete that line and run it again"
        )


def _group(rows: Sequence[Row], by_run: Mapping[str, Row]) -> tuple[Cell, ...]:
    grouped: dict[tuple[str, float, int], dict[int, Row]] = {}
    for row in rows:
        key = (_name(row, by_run), float(row["budget"]), int(row["width"]))
        seeds = grouped.setdefault(key, {})
        if row["seed"] in seeds:
            raise ResultsError(
                f"two runs of {key[0]} at budget {budget_key(key[1])}, width {key[2]}, seed {row['seed']}: "
                f"{seeds[row['seed']]['run']} and {row['run']}; keep the one whose settings you mean"
            )
        seeds[row["seed"]] = row
    return tuple(
        Cell(name, budget, width, tuple(seeds[seed] for seed in sorted(seeds)))
        for (name, budget, width), seeds in grouped.items()
    )


def _name(row: Row, by_run: Mapping[str, Row]) -> str:
    """Regime and origin of a control are part of the name, so that two of them never share a row."""
    name = row["arm"]
    parent = by_run.get(row.get("parent") or "")
    if parent is not None and parent["arm"] != DENSE and parent["arm"] not in name:
        name = f"{name}, {parent['arm']}"
    return f"{name} (whole corpus)" if row["regime"] == "whole corpus" else name


def _lost(row: Row) -> str:
    why = f" ({row['diverged']})" if diverged(row) else ""
    return f"{row['arm']}, budget {budget_key(row['budget'])}, width {row['width']}, seed {row['seed']}{why}"


def _mixed(rows: Sequence[Row]) -> list[str]:
    """Settings that all trained runs of a comparison must share, where they do not."""
    trained = [row for row in rows if row.get("parent") is None]
    found: list[str] = []
    for name in ("precision", "evaluation_tokens"):
        values = [str((row.get("settings") or {}).get(name, "unknown")) for row in trained]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        if len(counts) > 1:
            found.append(f"{name} ({', '.join(f'{value}: {count} runs' for value, count in counts.items())})")
    return found


def _finite(row: Row) -> bool:
    if diverged(row):
        return False
    losses = (row["losses"][split].get(METRIC) for split in ("valid", "test"))
    return all(loss is not None and math.isfinite(loss) for loss in losses)


def _distinct(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(str(row.get(column, "unknown")) for row in rows))


def _counted(rows: Sequence[Row], column: str, values: Sequence[str]) -> str:
    counts = [sum(str(row.get(column, "unknown")) == value for row in rows) for value in values]
    return ", ".join(f"{value} ({count} rows)" for value, count in zip(values, counts, strict=True))
