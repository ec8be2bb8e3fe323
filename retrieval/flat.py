"""Exact search that is exact: the same answers whatever the batch, the threads and the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from retrieval.ordering import in_order
from retrieval.runtime import blas_threshold, faiss
from retrieval.work import Work, code_work

__all__ = ["FlatSearch", "settle"]

# Unit roundoff of float32.
_ROUNDOFF = 2.0**-24
# Results of one call; what a wider one would return is asked for in pieces.
_RESULTS = 1 << 22

_Shortlist = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def margin(k: int) -> int:
    """How many entries more than wanted a shortlist has."""
    return max(8, k // 4)


def settle(
    shortlist: _Shortlist, n: int, stored: int, k: int, error: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, int]:
    r"""The ``k`` best by an exact score, out of shortlists by an approximate one.

    A matrix product rounds differently in another shape, so which of two entries that are nearly as near comes first,
    and which of them is dropped behind the last place, would depend on what else is in the batch. So a few entries more
    than wanted are scored again, one pair at a time, always alike. With :math:`s` the approximate score of the last
    entry on the list and :math:`e` the most that rounding can do, whatever is not on it has an exact score of
    :math:`s + e` at most. If the ``k``-th exact score is larger, nothing is missing; if not, the list is made
    longer for that query, up to everything there is.

    Args:
        shortlist: Given rows of queries and a length, the exact scores, the ids, and the approximate score of the last.
        n: Number of queries.
        stored: Number of entries there are.
        k: Entries wanted of each query, at most ``stored``.
        error: Gives, for each query, the most by which the two scores of a pair differ; called if it matters.

    Returns:
        Scores and ids in the order (score descending, id ascending), and entries that were on all lists together.
    """
    length = min(stored, k + margin(k))
    scores, ids, last = _best(shortlist, np.arange(n), length, k)
    listed = n * length
    if length < stored:
        most = error()
        rows = np.flatnonzero(scores[:, -1] <= last + most)
        while len(rows):
            length = min(stored, 4 * length)
            listed += len(rows) * length
            scores[rows], ids[rows], last = _best(shortlist, rows, length, k)
            rows = rows[scores[rows, -1] <= last + most[rows]] if length < stored else rows[:0]
    return scores, ids, listed


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
        self._inner = index.metric_type == faiss.METRIC_INNER_PRODUCT
        self._pair = code_work(index)
        self._seen = 0
        self._longest = 0.0

    def __call__(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """Scores and ids of the ``k`` nearest, at most as many as are stored, in order; and what it took."""
        index, n, stored = self.index, len(x), self.index.ntotal
        asked = reads = 0

        def shortlist(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal asked, reads
            queries = x if len(rows) == n else x[rows]
            asked, reads = asked + len(rows), reads + len(rows) + stored
            scores = np.empty((len(rows), length), np.float32)
            ids = np.empty((len(rows), length), np.int64)
            pointers = [faiss.swig_ptr(array) for array in (queries, scores, ids)]
            # On one core a product of matrices wins from four queries up.
            with blas_threshold(4 * index.d):
                index.search_c(len(rows), pointers[0], length, *pointers[1:])
            last = scores[:, -1].copy()
            index.compute_distance_subset(len(rows), pointers[0], length, *pointers[1:])
            return (scores, ids, last) if self._inner else (0 - scores, ids, 0 - last)

        found, ids, listed = settle(shortlist, n, stored, min(k, stored), lambda: self._error(x))
        pair = self._pair
        work = Work(
            pair.flops * (asked * stored + listed),
            # Where queries are multiplied with what is stored, each matrix is read once.
            pair.bytes_read * (reads + listed),
            bytes_random=pair.bytes_read * listed,
        )
        return found, ids, work

    def _error(self, x: np.ndarray) -> np.ndarray:
        """Twice the bound on what rounding does to a sum of ``d`` products (Higham 2002, section 3.1)."""
        index = self.index
        while self._seen < index.ntotal:
            begin, n = self._seen, min(index.ntotal - self._seen, 1 << 16)
            stored = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
            rows = stored[begin * index.d : (begin + n) * index.d].reshape(n, index.d)
            longest = float(np.einsum("nd,nd->n", rows, rows).max())
            self._longest, self._seen = max(self._longest, longest**0.5), begin + n
        lengths = np.sqrt(np.einsum("nd,nd->n", x, x))
        # A squared distance is a sum of both squared lengths and twice a product, which may cancel.
        size = lengths * self._longest if self._inner else (lengths + self._longest) ** 2
        return 2 * (index.d + 4) * _ROUNDOFF * size
