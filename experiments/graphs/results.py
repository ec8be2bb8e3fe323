"""What has finished: ``results.jsonl``, one line a run, as comparisons keep theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ResultsError
from experiments.results import FILE, Results

if TYPE_CHECKING:
    from experiments.graphs.runner import Run

__all__ = ["GraphResults"]

_COLUMNS = ("run", "set", "split", "model", "control", "seed", "measure", "rules", "train_flops")


class GraphResults(Results):
    """The results of a folder, open for adding to it, locked meanwhile; see :class:`~experiments.results.Results`.

    Args:
        folder: Where ``results.jsonl`` lies or will lie.
        fresh: Set the results that are there aside and begin with none.

    Raises:
        ResultsError: On entering, if the folder cannot be written, is in use, or holds results of something else.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        super().__init__(folder, "graphs", "graphs", fresh=fresh)

    def __enter__(self) -> GraphResults:
        super().__enter__()
        return self

    def by_run(self) -> dict[str, Mapping[str, Any]]:
        """Rows by the key of their run; of two, the last."""
        return {row["run"]: row for row in self.rows}

    def missing_of(self, runs: Sequence[Run]) -> list[Run]:
        """Those that have not finished.

        Raises:
            ResultsError: If other code has made one of them.
        """
        done = self.by_run()
        others = [one.label() for one in runs if one.key in done and done[one.key].get("code") != one.code]
        if others:
            raise ResultsError(
                f"{self.folder / FILE} holds {len(others)} of these runs by other code ({others[0]}): give another "
                "--out, or --fresh to set them aside and begin anew"
            )
        return [one for one in runs if one.key not in done]

    def _check(self) -> None:
        for row in self.rows:
            if lacking := [column for column in _COLUMNS if row.get(column) is None]:
                raise ResultsError(
                    f"{self.folder / FILE} holds a row that is none of graphs, without {', '.join(lacking)} "
                    f"({json.dumps(row)[:60]}...): give another --out"
                )
