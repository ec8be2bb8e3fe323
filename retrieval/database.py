"""Vectors in a database that the user runs already, searched through its own client.

Of the two that run inside a process and keep their data in a folder, LanceDB is the one supported. With 100,000 vectors
of 64 dimensions and 32 neighbours it takes, in CPU time of one core, 0.3 s to add them and 23 ms to answer a query
alone, 7 ms one in a batch of 64. Qdrant's local mode takes 85 s, 21 ms and 21 ms, advises against more than 20,000
points, and reads its file with pickle. FAISS needs 0.5 ms and 0.15 ms: a database is for who has one, not for speed.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from retrieval.exact import Metric
from retrieval.flat import settle
from retrieval.index import checked_vectors
from retrieval.neighbors import Neighbors
from retrieval.rounding import lengths, rounding
from retrieval.runtime import faiss
from retrieval.search import Searchable, check_queries, run_search
from retrieval.work import Work

__all__ = ["LanceIndex"]

# Queries the database is asked at once, which bounds the memory of what it returns; rows read at once.
_QUERIES, _ROWS = 256, 1 << 16


class LanceIndex(Searchable):
    r"""Vectors in a table of `LanceDB <https://lancedb.github.io/lancedb/>`_, with the interface of an ``Index``.

    The database compares a query with every row: an index that the table has is passed over, because how much an
    approximate search of its has looked at the database does not tell, and what cannot be counted would be free. Its
    shortlist is scored again in 32 bits, one pair at a time (:func:`retrieval.flat.settle`), so the answers are those
    of ``Index("Flat")`` bit for bit, in the order (score descending, id ascending), whatever else is in the batch.

    Ids are a column of the table. :meth:`add` counts them up from 0, or from the largest one that is there; who adds
    through a ``LanceIndex``, in whatever process, waits for the others. On first use a table is read through once: its
    ids must be distinct and its numbers finite. What other processes add later is seen by the next :meth:`add`, or by a
    new ``LanceIndex``.

    Work, by formula, since the database counts none: a search compares each query with all :math:`n` rows (``2 d``
    operations by inner product, ``3 d`` by squared distance, ``4 d`` bytes read) and once more with each of its
    shortlist, whose vectors, ids and distances (``4 d + 12`` bytes) are read at random and written. Adding writes ``4 d
    + 8`` bytes a row. The database's own files are not checksummed: :class:`retrieval.NeighborTable` and the sources'
    own snapshots are, while a flipped byte in a table's data can change answers unseen. It starts threads, so a process
    forked from the one that made this object is refused: LanceDB hung in some of ours. A spawned one is fine.

    Args:
        path: The database's folder.
        table: Name of a table in it; made by the first :meth:`add` if it is not there.
        metric: ``"ip"`` (inner product) or ``"l2"`` (minus the squared distance).
        vector: Name of the column of vectors, fixed-size lists of 16 or 32-bit floats.
        id: Name of the column of ids, whole numbers from 0.

    Attributes:
        work: What adding has cost, under ``"add"``.
        seconds: Time it took.

    Raises:
        ImportError: If LanceDB is not installed.
        RuntimeError: On use in a forked process.
        ValueError: On first use, if the table has no such columns.
    """

    def __init__(
        self,
        path: str | Path,
        table: str = "vectors",
        metric: Metric = "ip",
        *,
        vector: str = "vector",
        id: str = "id",  # noqa: A002 - the name of the column
    ) -> None:
        if metric not in ("ip", "l2"):
            raise ValueError(f"metric must be 'ip' or 'l2', got {metric!r}")
        self._lance, self._arrow = _client("lancedb"), _client("pyarrow")
        self.path, self.table = Path(path), table
        self.metric: Metric = metric
        self.work: dict[str, Work] = {}
        self.seconds = 0.0
        self._vector, self._id = vector, id
        self._open: Any = None
        self._process = os.getpid()
        self._d, self._longest = 0, 0.0
        # Ascending: where one is in here is its place in results, which may be ordered by 32 bits only.
        self._ids = np.zeros(0, np.int64)

    def __len__(self) -> int:
        self._ready()
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"LanceIndex({str(self.path)!r}, {self.table!r}, metric={self.metric!r}, {len(self):,} vectors)"
        )

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        # A spawned process opens the table for itself.
        names = {"vector": self._vector, "id": self._id}
        return partial(LanceIndex, self.path, self.table, self.metric, **names), ()

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs of adding."""
        return {kind: work.flops for kind, work in self.work.items()}

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes read and written by adding."""
        return {kind: work.bytes for kind, work in self.work.items()}

    def add(self, vectors: Float[Tensor, "n d"]) -> LanceIndex:
        """Store vectors under the next ids, all or, if that fails, none.

        Shapes:
            vectors: ``[n, d]``

        Raises:
            ValueError: If a value is not finite, the table stores vectors of another dimension, or another program
                has written the same ids meanwhile.
        """
        x = checked_vectors(vectors)
        begin = time.perf_counter()
        self.path.mkdir(parents=True, exist_ok=True)
        # Two that add at once would both give out the ids behind the largest one.
        with FileLock(self.path / f"{self.table}.lock"):
            table = self._ready(latest=True)
            if table is not None and x.shape[1] != self._d:
                raise ValueError(f"vectors of {x.shape[1]} dimensions, the table stores {self._d}")
            if len(x):
                self._append(table, x)
        self.seconds += time.perf_counter() - begin
        return self

    def _append(self, table: Any, x: np.ndarray) -> None:
        first = int(self._ids.max(initial=-1)) + 1
        ids = np.arange(first, first + len(x))
        lists = self._arrow.FixedSizeListArray.from_arrays(self._arrow.array(x.ravel()), x.shape[1])
        rows = self._arrow.table({self._id: self._arrow.array(ids), self._vector: lists})
        if table is None:
            self._open = self._lance.connect(self.path).create_table(self.table, rows)
            self._d, alone = x.shape[1], True
        else:
            before = table.version
            table.add(rows)
            alone = table.version == before + 1
        if alone:
            self._ids = np.concatenate([self._ids, ids])
            self._longest = max(self._longest, float(lengths(x).max()))
        else:  # a program that knows no lock of ours has written in between
            self._read()
        size = len(x) * (4 * x.shape[1] + 8)
        self.work["add"] = self.work.get("add", Work()) + Work(bytes_read=size, bytes_written=size)

    def search(self, queries: Float[Tensor, "*batch d"], k: int) -> Neighbors:
        """The ``k`` nearest stored vectors of each query, by (score descending, id ascending).

        A query with a value that is no number has no neighbours.

        Shapes:
            queries: ``[*batch, d]``, result: ``[*batch, k]``

        Raises:
            ValueError: If queries are no floating-point vectors of the dimension that is stored, or ``k < 1``.
        """
        check_queries(queries, k)
        if len(self) and queries.shape[-1] != self._d:
            raise ValueError(f"queries of {queries.shape[-1]} dimensions, the table stores {self._d}")
        return run_search(self, [queries], k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        batch = inputs[0].shape[:-1]
        x = np.ascontiguousarray(inputs[0].reshape(-1, inputs[0].shape[-1]).float().numpy())
        if not len(self) or not len(x):
            return Neighbors.none(*batch, k)
        real = np.isfinite(x).all(1)
        asked, stored, compared = x[real], len(self), 0
        most = min(k, stored)

        def shortlist(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal compared
            compared += len(rows)
            parts = [
                self._shortlist(asked[rows[i : i + _QUERIES]], length) for i in range(0, len(rows), _QUERIES)
            ]
            scores, ids, last = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            return scores, ids, last

        found = np.full((len(x), k), -1, np.int64)
        best = np.zeros((len(x), k), np.float32)
        best[real, :most], places, listed = settle(
            shortlist, len(asked), stored, most, lambda: self._error(asked)
        )
        found[real, :most] = np.where(places < 0, -1, self._ids[places])
        pair, row = (2 if self.metric == "ip" else 3) * self._d, 4 * self._d
        work = Work(pair * (compared * stored + listed), bytes_read=row * compared * stored)
        work += Work(0, row + 12, row + 12, row + 12) * listed
        hits = Neighbors.of(torch.from_numpy(best), torch.from_numpy(found), **work.counts)
        shape = (*batch, k)
        return Neighbors(hits.scores.view(shape), hits.ids.view(shape), hits.mask.view(shape), **hits.work)

    def _shortlist(self, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exact scores of what the database finds nearest, its places among all ids, and its own score of the last."""
        inner = self.metric == "ip"
        rows = (
            self._ready()
            .search(list(x), vector_column_name=self._vector)
            .distance_type("dot" if inner else "l2")
            .bypass_vector_index()
            .limit(length)
            .select([self._id, self._vector, "_distance"])
            .to_arrow()
        )
        # Of one query alone it does not say which one it was.
        which = rows["query_index"].to_numpy() if len(x) > 1 else np.zeros(len(rows), np.int64)
        order = np.argsort(which, kind="stable")
        row = which[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        places, at = np.full((len(x), length), -1), np.full((len(x), length), -1)
        ids = rows[self._id].to_numpy().astype(np.int64)[order]
        places[row, place], at[row, place] = np.searchsorted(self._ids, ids), order
        last = np.full(len(x), -np.inf)
        distances = rows["_distance"].to_numpy()
        full = np.flatnonzero(at[:, -1] >= 0)
        last[full] = (1 - distances if inner else -distances)[at[full, -1]]
        scores = np.empty(at.shape, np.float32)
        compare = faiss.fvec_inner_products_by_idx if inner else faiss.fvec_L2sqr_by_idx
        arrays = (scores, np.ascontiguousarray(x), _vectors(rows[self._vector], self._d), at)
        compare(*map(faiss.swig_ptr, arrays), self._d, *at.shape)
        scores[at < 0] = -np.inf if inner else np.inf
        return (scores if inner else 0 - scores), places, last

    def _error(self, x: np.ndarray) -> np.ndarray:
        # The database gives one minus an inner product, which is rounded to the size of the one.
        own = 2.0**-22 if self.metric == "ip" else 0.0
        # Where a sum may overflow, no list is long enough but the whole.
        return own + np.nan_to_num(rounding(lengths(x), self._longest, self._d + 2, self.metric))

    def _ready(self, *, latest: bool = False) -> Any:
        """The table, open and read through; None where there is none yet."""
        if self._process != os.getpid():
            raise RuntimeError(
                "LanceDB may hang in a forked process: start workers with multiprocessing_context='spawn'"
            )
        if self._open is None:
            if not (self.path / f"{self.table}.lance").exists():
                return None
            self._open = self._lance.connect(self.path).open_table(self.table)
            self._read()
        elif latest:
            before = self._open.version
            self._open.checkout_latest()
            if self._open.version != before:
                self._read()
        return self._open

    def _read(self) -> None:
        """Check the table's columns and every row of it."""
        # Until all is well it is not open: whoever goes on after an error is told of it again.
        opened, self._open = self._open, None
        schema, types = opened.schema, self._arrow.types
        place = f"table {self.table!r} of {self.path}"
        if not {self._id, self._vector} <= set(schema.names):
            raise ValueError(f"{place} has columns {schema.names}: name two of them with vector= and id=")
        kind = schema.field(self._vector).type
        if not types.is_fixed_size_list(kind) or str(kind.value_type) not in ("float", "halffloat"):
            raise ValueError(f"column {self._vector!r} of {place} is {kind}, not a list of d floats")
        if not types.is_integer(schema.field(self._id).type):
            raise ValueError(f"column {self._id!r} of {place} is no column of whole numbers")
        self._d = kind.list_size
        seen, longest = [np.zeros(0, np.int64)], 0.0
        for ids, vectors in self._rows(opened):
            if len(vectors) != len(ids) or not np.isfinite(vectors).all() or ids.min(initial=0) < 0:
                raise ValueError(
                    f"{place} has rows whose vector is missing or not finite or whose id is negative: delete them"
                )
            seen.append(ids)
            longest = max(longest, float(lengths(vectors).max(initial=0)))
        every = np.sort(np.concatenate(seen))
        if not np.diff(every).all():
            raise ValueError(f"{place} has the same id more than once: make column {self._id!r} distinct")
        self._open, self._ids, self._longest = opened, every, longest

    def _rows(self, opened: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in opened.search().select([self._id, self._vector]).to_batches(_ROWS):
            ids = batch.column(self._id).to_numpy(zero_copy_only=False).astype(np.int64)
            yield ids, _vectors(batch.column(self._vector), self._d)


def _client(name: str) -> Any:
    try:
        # An extra: who does not use a database does not install one.
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError('LanceIndex needs LanceDB: pip install "mnemograph[lancedb]"') from error


def _vectors(column: Any, d: int) -> np.ndarray:
    """A column of lists as rows of floats; a missing list is left out."""
    chunks = getattr(column, "chunks", [column])
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    flat = np.concatenate([np.zeros(0, np.float32), *parts])
    return np.ascontiguousarray(flat.astype(np.float32).reshape(-1, d))
