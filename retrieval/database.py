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
from jaxtyping import Float
from torch import Tensor

from retrieval.exact import Metric
from retrieval.flat import settle
from retrieval.neighbors import Neighbors
from retrieval.runtime import faiss
from retrieval.search import enroll, run_search
from retrieval.work import Work

__all__ = ["LanceIndex"]

# Queries the database is asked at once, which bounds the memory of what it returns; rows read at once.
_QUERIES, _ROWS = 256, 1 << 16


class LanceIndex:
    r"""Vectors in a table of `LanceDB <https://lancedb.github.io/lancedb/>`_, with the interface of an ``Index``.

    The database compares a query with every row: an index that the table has is passed over, because how much an
    approximate search of its has looked at the database does not tell, and what cannot be counted would be free. Its
    shortlist is scored again in 32 bits, one pair at a time (:func:`retrieval.flat.settle`), so the answers are those
    of ``Index("Flat")`` bit for bit, in the order (score descending, id ascending), whatever else is in the batch.

    Ids are a column of the table. :meth:`add` counts them up from 0, or from the largest one that is there. On first
    use a table is read through once: its ids must be distinct and its numbers finite. What other processes add
    later is seen by the next :meth:`add`, or by a new ``LanceIndex``.

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
        self.path, self.table, self.metric = Path(path), table, metric
        self.work: dict[str, Work] = {}
        self.seconds = 0.0
        self._vector, self._id = vector, id
        self._open: Any = None
        self._process = os.getpid()
        self._d = self._n = self._next = 0
        self._longest = 0.0
        self._number = enroll(self)

    def __len__(self) -> int:
        self._ready()
        return self._n

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
            ValueError: If a value is not finite, or the table stores vectors of another dimension.
        """
        x = _checked(vectors)
        begin = time.perf_counter()
        table = self._ready(latest=True)
        if table is not None and x.shape[1] != self._d:
            raise ValueError(f"vectors of {x.shape[1]} dimensions, the table stores {self._d}")
        if not len(x):
            return self
        ids = np.arange(self._next, self._next + len(x))
        lists = self._arrow.FixedSizeListArray.from_arrays(self._arrow.array(x.ravel()), x.shape[1])
        rows = self._arrow.table({self._id: self._arrow.array(ids), self._vector: lists})
        if table is None:
            self._open = self._lance.connect(self.path).create_table(self.table, rows)
            self._d = x.shape[1]
        else:
            table.add(rows)
        self._took_in(ids, x)
        self.seconds += time.perf_counter() - begin
        size = len(x) * (4 * x.shape[1] + 8)
        self.work["add"] = self.work.get("add", Work()) + Work(bytes_read=size, bytes_written=size)
        return self

    def search(self, queries: Float[Tensor, "*batch d"], k: int) -> Neighbors:
        """The ``k`` nearest stored vectors of each query, by (score descending, id ascending).

        A query with a value that is no number has no neighbours.

        Shapes:
            queries: ``[*batch, d]``, result: ``[*batch, k]``

        Raises:
            ValueError: If ``k < 1`` or the dimension is another than what is stored.
        """
        if k < 1:
            raise ValueError(f"search needs k >= 1, got {k}")
        if len(self) and queries.shape[-1] != self._d:
            raise ValueError(f"queries of {queries.shape[-1]} dimensions, the table stores {self._d}")
        return run_search(self._number, [queries], k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        batch = inputs[0].shape[:-1]
        x = np.ascontiguousarray(inputs[0].reshape(-1, inputs[0].shape[-1]).float().numpy())
        if not len(self) or not len(x):
            return Neighbors.none(*batch, k)
        real = np.isfinite(x).all(1)
        asked, most, compared = x[real], min(k, self._n), 0

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
        best[real, :most], found[real, :most], listed = settle(
            shortlist, len(asked), self._n, most, lambda: self._error(asked)
        )
        pair, row = (2 if self.metric == "ip" else 3) * self._d, 4 * self._d
        work = Work(pair * (compared * self._n + listed), bytes_read=row * compared * self._n)
        work += Work(0, row + 12, row + 12, row + 12) * listed
        hits = Neighbors.of(torch.from_numpy(best), torch.from_numpy(found), **work.counts)
        shape = (*batch, k)
        return Neighbors(hits.scores.view(shape), hits.ids.view(shape), hits.mask.view(shape), **hits.work)

    def _shortlist(self, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exact scores and ids of what the database finds nearest, and its own score of the last."""
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
        ids, at = np.full((len(x), length), -1), np.full((len(x), length), -1)
        ids[row, place], at[row, place] = rows[self._id].to_numpy()[order], order
        last = np.full(len(x), -np.inf)
        distances = rows["_distance"].to_numpy()
        full = np.flatnonzero(at[:, -1] >= 0)
        last[full] = (1 - distances if inner else -distances)[at[full, -1]]
        scores = np.empty(ids.shape, np.float32)
        compare = faiss.fvec_inner_products_by_idx if inner else faiss.fvec_L2sqr_by_idx
        arrays = (scores, np.ascontiguousarray(x), _vectors(rows[self._vector], self._d), at)
        compare(*map(faiss.swig_ptr, arrays), self._d, *ids.shape)
        scores[at < 0] = -np.inf if inner else np.inf
        return (scores if inner else 0 - scores), ids, last

    def _error(self, x: np.ndarray) -> np.ndarray:
        """Twice the bound on what rounding does to a sum of ``d`` products and to a distance made of it."""
        lengths = np.sqrt(np.einsum("nd,nd->n", x, x))
        size = 1 + lengths * self._longest if self.metric == "ip" else (lengths + self._longest) ** 2
        return 2 * (self._d + 6) * 2.0**-24 * size

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
        schema, types = self._open.schema, self._arrow.types
        place = f"table {self.table!r} of {self.path}"
        if not {self._id, self._vector} <= set(schema.names):
            raise ValueError(f"{place} has columns {schema.names}: name two of them with vector= and id=")
        kind = schema.field(self._vector).type
        if not types.is_fixed_size_list(kind) or str(kind.value_type) not in ("float", "halffloat"):
            raise ValueError(f"column {self._vector!r} of {place} is {kind}, not a list of d floats")
        if not types.is_integer(schema.field(self._id).type):
            raise ValueError(f"column {self._id!r} of {place} is no column of whole numbers")
        self._d, self._n, self._next, self._longest = kind.list_size, 0, 0, 0.0
        seen = [np.zeros(0, np.int64)]
        for ids, vectors in self._rows():
            if len(vectors) != len(ids) or not np.isfinite(vectors).all() or ids.min(initial=0) < 0:
                raise ValueError(
                    f"{place} has rows whose vector is missing or not finite or whose id is negative: delete them"
                )
            seen.append(ids)
            self._took_in(ids, vectors)
        if len(np.unique(np.concatenate(seen))) != self._n:
            raise ValueError(f"{place} has the same id more than once: make column {self._id!r} distinct")

    def _rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in self._open.search().select([self._id, self._vector]).to_batches(_ROWS):
            ids = batch.column(self._id).to_numpy(zero_copy_only=False).astype(np.int64)
            yield ids, _vectors(batch.column(self._vector), self._d)

    def _took_in(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        longest = float(np.einsum("nd,nd->n", vectors, vectors).max(initial=0)) ** 0.5
        self._n, self._longest = self._n + len(ids), max(self._longest, longest)
        self._next = max(self._next, int(ids.max(initial=-1)) + 1)


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


def _checked(vectors: Tensor) -> np.ndarray:
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"an index needs floating-point vectors [n, d], got {vectors.dtype} {tuple(vectors.shape)}"
        )
    x = np.ascontiguousarray(vectors.detach().cpu().float().numpy())
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise ValueError(f"vector {row} has a value that is not finite; nothing was stored")
    return x
