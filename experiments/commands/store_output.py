"""What ``mnemograph store`` shows: a bar while it works, tables, JSON and arrays afterwards."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.commands.store_text import StoredText
from experiments.progress import HEARTBEAT_SECONDS
from retrieval import Datastore, Neighbors

__all__ = ["Bar", "Found", "about", "amount", "count", "size", "table"]

# Tokens of text shown before an entry and after it.
BEFORE, AFTER = 16, 16
WIDEST = 60


class Bar(AbstractContextManager["Bar"]):
    """A bar on a terminal, a line now and then elsewhere, both on standard error.

    Args:
        what: What is being done.
        total: How many there are to do; ``None`` where nobody knows how far it is.
        unit: Of what.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "entries") -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[done]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=total, done="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, done: int) -> None:
        """So many are done; after the last entry the index is made, which takes its time."""
        said = f"{done:,} of {self.total:,} {self.unit}"
        self._bar.update(self._task, completed=done, done=said)
        if done == self.total and self.unit == "entries":
            self._bar.update(self._task, description="indexing", total=None)
        if self._bar.disable and time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            print(f"{self.what}: {said}", file=sys.stderr, flush=True)


class Found:
    """What a search found, with all that is known of each neighbour.

    Args:
        store: Where it was searched.
        neighbors: What was found, ``[n, k]``.
        seconds: How long it took.
        text: Of a store of text.
    """

    def __init__(
        self, store: Datastore, neighbors: Neighbors, seconds: float, text: StoredText | None
    ) -> None:
        self.neighbors = neighbors
        self.seconds = seconds
        self._store = store
        self._text = text
        columns = (store.values, store.documents, store.positions)
        self.values, self.documents, self.positions = (column(neighbors) for column in columns)

    @property
    def cost(self) -> dict[str, Any]:
        """What the search took, all queries together."""
        return {"queries": len(self.neighbors.ids), "seconds": self.seconds, **self.neighbors.work}

    def row(self, query: int, rank: int) -> dict[str, Any]:
        """One neighbour, as one would write it in JSON."""
        value, label = self.values[query, rank], int(self.documents[query, rank])
        id_ = int(self.neighbors.ids[query, rank])
        row = {
            "query": query,
            "rank": rank + 1,
            "score": float(self.neighbors.scores[query, rank]),
            "id": id_,
            "value": value.tolist(),
            "document": label if self._text is None else self._text.name(label),
            "position": int(self.positions[query, rank]),
        }
        if self._text is not None:
            row["before"], row["after"] = self._text.around(self._store, id_, BEFORE, AFTER)
        return row

    def rows(self, queries: int) -> list[dict[str, Any]]:
        """The neighbours of the first queries."""
        mask = self.neighbors.mask[:queries]
        return [self.row(int(query), int(rank)) for query, rank in mask.nonzero()]

    def print(self, queries: int) -> None:
        """A table for the first queries, and what the search took."""
        rows = self.rows(queries)
        text = self._text is not None
        names = ["rank", "score", "document", "position", "text"] if text else list(rows[0] if rows else ())
        print(
            table(names, [[_cell(row, name) for name in names] for row in rows]) if rows else "nothing found"
        )
        n, work = max(1, len(self.neighbors.ids)), self.neighbors
        if len(work.ids) > queries:
            print(
                f"({len(work.ids) - queries:,} more queries: --show {len(work.ids)} prints them, --out keeps them)"
            )
        print(
            f"\n{len(work.ids):,} queries, {self.seconds:.3g} s; a query took {amount(work.flops / n)}FLOPs and moved "
            f"{size(work.bytes / n)}, {size(work.bytes_random / n)} of it at random places"
        )

    def save(self, path: Path) -> None:
        """Everything found as arrays in an ``.npz`` file, in one step.

        Args:
            path: The file.
        """
        found, content = self.neighbors, io.BytesIO()
        arrays = {"scores": found.scores, "ids": found.ids, "mask": found.mask}
        arrays |= {"values": self.values, "documents": self.documents, "positions": self.positions}
        np.savez(content, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_bytes(content.getbuffer())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def about(store: Datastore) -> dict[str, Any]:
    """What the store is, its deleted share and its files included."""
    info = store.info()
    # What tells stores apart inside, and how its segments are cut, is of no use to a reader.
    hidden = ("identity", "rows", "next_id")
    share = info["deleted"] / max(1, info["entries"] + info["deleted"])
    return {name: value for name, value in info.items() if name not in hidden} | {"deleted_share": share}


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; the last one is to the left, the others where numbers belong."""
    widths = [max(len(row[at]) for row in [names, *rows]) for at in range(len(names))]
    lines = []
    for row in [names, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def size(n: float) -> str:
    """Bytes for people."""
    return f"{amount(n)}B"


def count(n: int, what: str) -> str:
    """``1 segment``, ``2 segments``."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def amount(n: float) -> str:
    """A number with a prefix for thousands."""
    for prefix in ("", "k", "M", "G"):
        if n < 1000:
            return f"{n:.3g} {prefix}"
        n /= 1000
    return f"{n:.4g} T"


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "score":
        return f"{row[name]:.4f}"
    if name == "text":
        # The entry's own place is marked: what is left of it was found, what is right follows.
        before, after = (json.dumps(row[side], ensure_ascii=False)[1:-1] for side in ("before", "after"))
        return f"{before[-WIDEST:]}|{after[:WIDEST]}"
    if name == "value" and isinstance(row[name], list):
        numbers = ", ".join(f"{number:.3g}" for number in row[name][:3])
        return f"[{numbers}{', ...' if len(row[name]) > 3 else ''}]"
    return str(row[name])
