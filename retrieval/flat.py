"""Exact search that is exact: the same answers whatever the batch, the threads and the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from retrieval.exact import Metric
from retrieval.ordering import NOTHING, in_order, unpacked, words
from retrieval.rounding import largest_rounding, lengths, rounding
from retrieval.runtime import blas_threshold, faiss
from retrieval.work import Work, code_work

__all__ = ["FlatSearch", "margin", "settle"]

# Results of one call; what a wider one would return is asked for in pieces.
_RESULTS = 1 << 22
# A list is made longer so often, four times each time; keeping longer ones in order costs more than it saves.
_LONGER = 2

_Shortlist = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def margin(k: int) -> int:
    """How many entries more than wanted a shortlist has.

    In a million contexts of source code 4 % of 256 queries had ties that eight more did not settle, and sixteen settled
    all; asking again for a few costs a third of asking for all.
    """
    return max(16, k // 2)


def settle(
    shortlist: _Shortlist,
    n: int,
    stored: int,
    k: int,
    error: Callable[[], np.ndarray],
    every: Callable[[int], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    r"""The ``k`` best by an exact score, out of shortlists by an approximate one.

    A matrix product rounds differently in another shape, so which of two entries that are nearly as near comes first,
    and which of them is dropped behind the last place, would depend on what else is in the batch. So a few entries more
    than wanted are scored again, one pair at a time, always alike. With :math:`s` the approximate score of the last
    entry on the list and :math:`e` the most that rounding can do, whatever is not on it has an exact score of
    :math:`s + e` at most. If the ``k``-th exact score is larger, nothing is missing; if not, the list is made longer
    for that query, and in the end every entry is scored exactly. A score that is not finite is no neighbour's.

    Args:
        shortlist: Given rows of queries and a length, the exact scores, the ids (-1 for none), and the approximate
            score of the last; minus infinity if there are no more.
        n: Number of queries.
        stored: Number of entries there are.
        k: Entries wanted of each query, at most ``stored``.
        error: Gives, for each query, the most by which the two scores of a pair differ; called if it matters.
        every: Gives the exact scores of all entries for one query. Without it lists grow until they hold everything.

    Returns:
        Scores and ids in the order (score descending, id ascending), and entries that were scored exactly in all.
    """
    length = min(stored, k + margin(k))
    scores, ids, last = _best(shortlist, np.arange(n), length, k)
    listed = n * length
    if length == stored:
        # All are listed, but for what the approximate score lost.
        lost = np.flatnonzero(ids[:, -1] < 0)
    else:
        most = error()
        lost = np.flatnonzero(np.isinf(most)) if every is not None else np.zeros(0, np.int64)
        rows = np.flatnonzero(_unsure(scores, last, most) & np.isfinite(most))
        for _ in range(_LONGER if every is not None else stored):
            if not len(rows):
                break
            length = min(stored, 4 * length)
            listed += len(rows) * length
            scores[rows], ids[rows], last = _best(shortlist, rows, length, k)
            rows = rows[_unsure(scores[rows], last, most[rows])] if length < stored else rows[:0]
        lost = np.concatenate([lost, rows])
    if every is None:
        return scores, ids, listed
    for row in lost:
        found = every(int(row))
        packed = words(found, np.arange(stored))
        packed[~np.isfinite(found)] = NOTHING
        scores[row], ids[row] = unpacked(np.sort(np.partition(packed, k - 1)[:k]))
        listed += stored
    return scores, ids, listed


def _unsure(scores: np.ndarray, last: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Which queries may miss a neighbour that is not on their lists."""
    return (scores[:, -1] <= last + most) & (last > -np.inf)


def _best(
    shortlist: _Shortlist, rows: np.ndarray, length: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The beginnings of some queries' shortlists, in order, and the approximate scores with which these end."""
    size = max(1, _RESULTS // length)
    if len(rows) > size:
        parts = [_best(shortlist, rows[i : i + size], length, k) for i in range(0, len(rows), size)]
        scores, ids, last = map(np.concatenate, zip(*parts, strict=True))
        return scores, ids, last
    scores, ids, last = shortlist(rows, length)
    if not np.isfinite(scores).all():
        ids[~np.isfinite(scores)] = -1
    scores, ids = in_order(scores, ids)
    return np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(ids[:, :k]), last


class FlatSearch:
    """Searches of one flat FAISS index that :func:`settle` makes exact.

    Scores are larger for nearer entries.

    Args:
        index: Its vectors are what is stored.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self._metric: Metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
        self._pair = code_work(index)
        self._seen = 0
        self._longest = 0.0

    def __call__(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """Scores and ids of the ``k`` nearest, at most as many as are stored, in order; and what it took."""
        n, stored = len(x), self.index.ntotal
        k = min(k, stored)
        length = min(stored, k + margin(k))
        if n * length > _RESULTS:
            parts = [self(x[i : i + _RESULTS // length], k) for i in range(0, n, _RESULTS // length)]
            scores, ids, works = zip(*parts, strict=True)
            return np.concatenate(scores), np.concatenate(ids), sum(works, Work())
        first = scores, ids, last = self._shortlist(x, length)
        # These are in the order of their approximate scores; the k-th best is no worse than the worst of the first k.
        gap = (scores[:, :k].min(1) - last).min()
        if length == stored or not gap > largest_rounding(x, self._longest_key(), self._metric):
            return self._settled(x, k, length, first)
        # What nearly every search comes to, in few steps: they are what a small one costs.
        if (scores[:, 1:] >= scores[:, :-1]).any():
            scores, ids = in_order(scores, ids)
        scores, ids = np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(ids[:, :k])
        return scores, ids, self._work(n, n + stored, n * length)

    def _settled(
        self, x: np.ndarray, k: int, longest: int, first: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same, where the first shortlist is not enough for all."""
        n, stored = len(x), self.index.ntotal
        asked, reads = n, n + stored

        def shortlist(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal asked, reads
            if length == longest:
                return first
            asked, reads = asked + len(rows), reads + len(rows) + stored
            return self._shortlist(x[rows], length)

        def every(row: int) -> np.ndarray:
            scores, ids = np.empty(stored, np.float32), np.arange(stored)
            return self._exact(x[row : row + 1], scores, ids)

        def error() -> np.ndarray:
            return rounding(lengths(x), self._longest_key(), self.index.d, self._metric)

        found, ids, listed = settle(shortlist, n, stored, k, error, every)
        return found, ids, self._work(asked, reads, listed)

    def _work(self, asked: int, reads: int, listed: int) -> Work:
        """Of as many queries in products, vectors read for these, and pairs compared one by one."""
        pair = self._pair
        read = pair.bytes_read * listed
        return Work(
            pair.flops * (asked * self.index.ntotal + listed), pair.bytes_read * reads + read, 0, read
        )

    def _shortlist(self, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :func:`settle` wants it."""
        index, n = self.index, len(x)
        scores, ids = np.empty((n, length), np.float32), np.empty((n, length), np.int64)
        # On one core a product of matrices wins from four queries up.
        with blas_threshold(4 * index.d):
            index.search_c(n, faiss.swig_ptr(x), length, faiss.swig_ptr(scores), faiss.swig_ptr(ids))
        last = scores[:, -1].copy()
        if ids[:, -1].min() < 0:  # what FAISS has dropped because its own score was no number
            scores[ids < 0] = np.inf
        return self._exact(x, scores, ids), ids, last if self._metric == "ip" else 0 - last

    def _exact(self, x: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Scores of pairs one by one, into an array as large as that of the ids."""
        query, found, names = map(faiss.swig_ptr, (x, scores, ids))
        self.index.compute_distance_subset(len(x), query, ids.size // len(x), found, names)
        return scores if self._metric == "ip" else 0 - scores

    def _longest_key(self) -> float:
        index = self.index
        while self._seen < index.ntotal:
            begin, n = self._seen, min(index.ntotal - self._seen, 1 << 16)
            stored = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
            rows = stored[begin * index.d : (begin + n) * index.d].reshape(n, index.d)
            self._longest, self._seen = max(self._longest, float(lengths(rows).max())), begin + n
        return self._longest
