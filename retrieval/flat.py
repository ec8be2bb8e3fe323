"""Exact search that is exact: the same answers whatever the batch, the threads and the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from retrieval.exact import Metric
from retrieval.halves import Halves
from retrieval.ordering import NOTHING, in_order, unpacked, words
from retrieval.rounding import LARGEST, largest_rounding, lengths, rounding
from retrieval.runtime import faiss, faiss_settings, faiss_threads
from retrieval.work import Work, code_work

__all__ = ["FlatSearch", "margin", "settle"]

# Results of one call; what a wider one would return is asked for in pieces.
_RESULTS = 1 << 22
# From so many queries up FAISS multiplies matrices: on one core that wins. Fewer are compared one pair at a time.
_PRODUCT = 4
_FEW = np.arange(8)[:, None]
# A smaller store is never shared out among threads.
_SHARED = 1 << 10
# Of few queries each list is a heap. One more entry shows a tie, where another search is cheaper than a longer list.
_SMALL, _TIED = 1 << 14, 16
# In a store of so many entries ties are many, and lists of so many are faster sorted now and then than kept as a heap.
_LARGE = 1 << 16
_SORTED = 20
# A list is made longer so often, four times each time; keeping longer ones in order costs more than it saves.
_LONGER = 2

_Shortlist = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def margin(k: int, stored: int) -> int:
    """How many entries more than wanted a shortlist has.

    Of 256 queries to a million contexts of source code one to four have near ties that 16 more do not settle, and each
    costs a scan; 48 more settle all, and in a large store cost nothing. In a small one a long list is dear.

    Args:
        k: Entries wanted.
        stored: Entries there are.
    """
    return max(8 if stored < _LARGE else 48, k // 2)


def settle(
    shortlist: _Shortlist,
    n: int,
    stored: int,
    k: int,
    error: Callable[[], np.ndarray],
    every: Callable[[int], np.ndarray] | None = None,
    more: int | None = None,
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
        more: Entries more than wanted of the first shortlists; by default :func:`margin`.

    Returns:
        Scores and ids in the order (score descending, id ascending), and entries that were scored exactly in all.
    """
    length = min(stored, k + (margin(k, stored) if more is None else more))
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

    Scores are larger for nearer entries. A large store is searched through a copy in bfloat16
    (:mod:`retrieval.halves`), which takes half as much memory again.

    Args:
        index: Its vectors are what is stored.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self._metric: Metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
        self._pair = code_work(index)
        self._d = index.d
        self._seen = 0
        self._longest = 0.0
        self._asked: tuple[tuple[int, int, int], Work] | None = None
        self._halves = Halves(index) if Halves.fit(index) else None

    def __call__(self, x: np.ndarray, k: int, more: int | None = None) -> tuple[np.ndarray, np.ndarray, Work]:
        """Scores and ids of the ``k`` nearest, at most as many as are stored, in order; and what it took.

        Args:
            x: Queries.
            k: Entries wanted of each.
            more: Entries more than that of their shortlists; by default :func:`margin`.
        """
        n, stored = len(x), self.index.ntotal
        k = min(k, stored)
        halves = self._halves
        if halves is None or (way := halves.way(n, k, stored)) == "none":
            return self._few(x, k, stored) if n < _PRODUCT else self._plain(x, k, more)
        if way == "scan":
            # Where there are more threads than queries FAISS shares out scans of the vectors, and none of halves.
            shared = n < faiss.omp_get_max_threads()
            return self._plain(x, k) if shared else self._scanned(halves, x, k, stored)
        length = min(stored, k + (margin(k, stored) if more is None else more))
        work = sum((self._work(size, length, stored) for size in _pieces(n, length)), Work())
        scores, ids, again = _joined([self._multiplied(halves, part, k) for part in halves.blocks(x)])
        return scores, ids, work + again

    def _plain(self, x: np.ndarray, k: int, more: int | None = None) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same by FAISS alone."""
        n, stored = len(x), self.index.ntotal
        if _one_by_one(n, stored):
            return self._few(x, k, stored)
        length = min(stored, k + (margin(k, stored) if more is None else more))
        if len(pieces := _pieces(n, length)) > 1:
            parts = np.split(x, np.cumsum(pieces)[:-1])
            return _joined([self._plain(part, k, more) for part in parts])
        first = scores, ids, last = self._shortlist(x, length)
        # These are in the order of their approximate scores; the k-th best is no worse than the worst of the first k.
        gap = (scores[:, :k].min(1) - last).min()
        if length == stored or not gap > largest_rounding(x, self._longest_key(stored), self._metric):
            return self._settled(x, k, first)
        # What nearly every search comes to, in few steps: they are what a small one costs.
        if (scores[:, 1:] >= scores[:, :-1]).any():
            scores, ids = in_order(scores, ids)
        return (
            np.ascontiguousarray(scores[:, :k]),
            np.ascontiguousarray(ids[:, :k]),
            self._work(n, length, stored),
        )

    def _scanned(
        self, halves: Halves, x: np.ndarray, k: int, stored: int
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same for few queries by entries in half the bits, of which a shortlist is compared again."""
        n, length = len(x), k + margin(k, stored)
        most, ids = halves.scan(x, length)
        scores = self._exact(x, np.empty((n, length), np.float32), ids)
        work = self._work(n, length, stored)
        best = _FEW[:n], np.lexsort((ids, -scores))[:, :k]
        scores, ids = scores[best], ids[best]
        # So it is a number, too: nothing is less than what is none.
        enough = all(last > bound for last, bound in zip(scores[:, -1].tolist(), most, strict=True))
        halves.note(enough)
        if enough:
            return scores, ids, work
        scores, ids, again = self._plain(x, k)
        return scores, ids, work + again

    def _multiplied(self, halves: Halves, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same for many queries by a product of halves, of which whatever may be wanted is compared again.

        The work is what comes on top where that was not enough.
        """
        ids, lost = halves.products(x, k)
        halves.note(not lost.all())
        if lost.all():
            return self._plain(x, k)
        scores = self._exact(x, np.empty(ids.shape, np.float32), ids)
        packed = words(scores, ids)
        packed[ids < 0] = NOTHING
        if ids.shape[1] > 8 * k:
            packed = np.partition(packed, k - 1)[:, :k]
        packed.sort(axis=1)
        scores, best = unpacked(packed[:, :k])
        work = Work()
        if lost.any():
            scores[lost], best[lost], work = self._plain(x[lost], k)
        return scores, best, work

    def _few(self, x: np.ndarray, k: int, stored: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same for queries that FAISS compares one pair at a time: its scores are exact."""
        if not _one_by_one(len(x), stored):
            # What one thread does in less than a millisecond.
            with faiss_threads(1):
                return self._few(x, k, stored)
        length = min(stored, k + (1 if stored < _SMALL else _TIED))
        scores, ids = self._faiss(x, length)
        # The lengths of all together bound every score: if that is finite, FAISS has dropped nothing.
        query, key = math.sqrt(np.vdot(x, x)), self._longest_key(stored)
        whole = (query * key if self._metric == "ip" else (query + key) ** 2) < LARGEST
        # Of so few rows Python's own numbers tell in half the time of arrays.
        tied = False
        for row in scores.tolist():
            whole = whole and (length == stored or row[k - 1] > row[-1])
            tied = tied or len(set(row)) < length
        if not whole:
            return self._settled(x, k, self._listed(x, scores, ids))
        if tied:
            best = _FEW[: len(x)], np.lexsort((ids, -scores))[:, :k]
            scores, ids = scores[best], ids[best]
        elif length > k:
            scores, ids = np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(ids[:, :k])
        return scores, ids, self._work(len(x), length, stored)

    def _settled(
        self, x: np.ndarray, k: int, first: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The same, where the first shortlist is not enough for all."""
        (n, longest), stored = first[0].shape, self.index.ntotal
        work = self._work(n, longest, stored)

        def shortlist(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal work
            if length == longest:
                return first
            work += self._work(len(rows), length, stored)
            return self._shortlist(x[rows], length)

        def every(row: int) -> np.ndarray:
            nonlocal work
            scores, ids = np.empty(stored, np.float32), np.arange(stored)
            work += Work(self._pair.flops * stored, (read := self._pair.bytes_read * stored), 0, read)
            return self._exact(x[row : row + 1], scores, ids)

        def error() -> np.ndarray:
            most = rounding(lengths(x), self._longest_key(stored), self.index.d, self._metric)
            return np.where(np.isinf(most), most, 0) if _one_by_one(n, stored) else most

        found, ids = settle(shortlist, n, stored, k, error, every, longest - k)[:2]
        return found, ids, work

    def _work(self, n: int, length: int, stored: int) -> Work:
        """Of so many queries for shortlists of that length: vectors read once, and pairs that are compared again."""
        pair, asked = self._pair, (n, length, stored)
        if self._asked is not None and self._asked[0] == asked:
            return self._asked[1]
        if n < _PRODUCT and (self._halves is None or not self._halves.large(stored)):
            work = Work(pair.flops * n * stored, pair.bytes_read * (n + stored))
        else:
            again = pair.bytes_read * n * length
            work = Work(pair.flops * n * (stored + length), pair.bytes_read * (n + stored) + again, 0, again)
        self._asked = asked, work
        return work

    def _shortlist(self, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :func:`settle` wants it."""
        return self._listed(x, *self._faiss(x, length))

    def _faiss(self, x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """What FAISS finds, with its own scores, larger for nearer entries."""
        index, n = self.index, len(x)
        scores, ids = np.empty((n, length), np.float32), np.empty((n, length), np.int64)
        arguments = n, faiss.swig_ptr(x), length, faiss.swig_ptr(scores), faiss.swig_ptr(ids)
        if n < _PRODUCT and n * self._d < faiss.cvar.distance_compute_blas_threshold:
            index.search_c(*arguments)
        else:
            settings = {"distance_compute_blas_threshold": _PRODUCT * self._d}
            if index.ntotal >= _LARGE:
                settings["distance_compute_min_k_reservoir"] = _SORTED
            with faiss_settings(**settings):
                index.search_c(*arguments)
        return (scores if self._metric == "ip" else 0 - scores), ids

    def _listed(
        self, x: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What FAISS found with exact scores, and its own of the last; may change the given arrays."""
        last = scores[:, -1].copy()
        if ids[:, -1].min() < 0:  # what FAISS has dropped because its own score was no number
            scores[ids < 0] = np.inf
        return (scores if _one_by_one(len(x), self.index.ntotal) else self._exact(x, scores, ids)), ids, last

    def _exact(self, x: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Scores of pairs one by one, into an array as large as that of the ids."""
        query, found, names = map(faiss.swig_ptr, (x, scores, ids))
        self.index.compute_distance_subset(len(x), query, ids.size // len(x), found, names)
        return scores if self._metric == "ip" else 0 - scores

    def _longest_key(self, stored: int) -> float:
        index = self.index
        while self._seen < stored:
            begin, n = self._seen, min(stored - self._seen, 1 << 16)
            keys = faiss.rev_swig_ptr(index.get_xb(), stored * index.d)
            rows = keys[begin * index.d : (begin + n) * index.d].reshape(n, index.d)
            self._longest, self._seen = max(self._longest, float(lengths(rows).max())), begin + n
        return self._longest


def _one_by_one(n: int, stored: int) -> bool:
    """Whether FAISS compares so many queries pair by pair, always alike: not where threads share one query."""
    return n < _PRODUCT and (stored < _SHARED or n >= faiss.omp_get_max_threads())


def _pieces(n: int, length: int) -> list[int]:
    """How many queries at a time, so that no call has too many results."""
    size = max(1, _RESULTS // length)
    return [min(size, n - begin) for begin in range(0, n, size)]


def _joined(parts: list[tuple[np.ndarray, np.ndarray, Work]]) -> tuple[np.ndarray, np.ndarray, Work]:
    """Results for queries in several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    scores, ids, works = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(ids), sum(works, Work())
