"""One row of a study, checked: what is missing or cannot be is refused by the row's number and the column's name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from experiments.errors import ResultsError
from experiments.frontier.cells import AXES, DENSE, METRIC, Row

MATMUL = "matmul_flops"
_WORDS = ("study", "run", "arm", "regime", "corpus")
_PLACE = ("seed", "width", "budget")
_MAPPINGS = (
    "settings",
    "params",
    "flops",
    "bytes",
    "seconds",
    "by_operator",
    "by_module",
    "search",
    "probes",
)
_COUNTED = (AXES["train_flops"], MATMUL)


def diverged(row: Row) -> bool:
    """Whether a row tells of a run that came to nothing: it has a place, but neither a bill nor losses."""
    return bool(row.get("diverged"))


def check_row(row: Row, number: int) -> None:
    """Refuse a row that cannot be compared.

    Args:
        row: One run.
        number: Which of the rows, for the message.

    Raises:
        ResultsError: It lacks a column, or one holds what it cannot.
    """
    costs = () if diverged(row) else (*AXES.values(), MATMUL, "control", "losses")
    lacking = [column for column in (*_WORDS, *_PLACE, *costs) if column not in row]
    losses = row.get("losses")
    if not diverged(row) and isinstance(losses, Mapping):
        lacking += [f"losses.{split}" for split in ("valid", "test") if split not in losses]
    if lacking:
        raise ResultsError(
            f"row {number} lacks {', '.join(lacking)}: it was written by another version; "
            "delete that line and run it again"
        )
    for column, value in _wrong(row):
        shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
        raise ResultsError(
            f"row {number}, {row['arm']}: {column} is {shown}, which no run writes: delete that line and run it again"
        )


def _wrong(row: Row) -> Iterator[tuple[str, Any]]:
    yield from ((column, row[column]) for column in _WORDS if not isinstance(row[column], str))
    for column in _PLACE:
        whole = isinstance(row[column], Integral) and not isinstance(row[column], bool)
        right = whole or (column == "budget" and isinstance(row[column], float))
        if not right or (column != "seed" and not 0 < row[column] < math.inf):
            yield column, row[column]
    yield from ((name, row[name]) for name in _MAPPINGS if not isinstance(row.get(name) or {}, Mapping))
    if diverged(row):
        return
    for column in (*AXES.values(), MATMUL):
        value = row[column]
        # A frontier that lacks an amount would leave every arm without a number on that axis.
        needed = column in _COUNTED if row["arm"] == DENSE else column == _COUNTED[0]
        if not _is_number(value) or not 0 <= value < math.inf or (value == 0 and needed):
            yield column, value
    yield from _wrong_losses(row["losses"])


def _wrong_losses(losses: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(losses, Mapping):
        yield "losses", losses
        return
    for split, found in losses.items():
        if not isinstance(found, Mapping):
            yield f"losses.{split}", found
            continue
        loss = found.get(METRIC)
        # No text is predicted for nothing; not a number is what a run diverges to.
        if loss is not None and (not _is_number(loss) or loss <= 0):
            yield f"losses.{split}.{METRIC}", loss


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
