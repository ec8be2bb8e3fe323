"""A search of a FAISS index, part by part, so that its answers depend on nothing but the query and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from retrieval.exact import Metric
from retrieval.flat import FlatSearch, settle
from retrieval.invariant import alike, transformed
from retrieval.kinds import FLAT, fast_scan, product_quantizer, tables_by_product, unwrap
from retrieval.ordering import in_order
from retrieval.runtime import faiss
from retrieval.work import Visits, Work, counted_search, scan_work, search_work, transform_work

__all__ = ["Search", "SearchSettings", "search_of"]

# Equally near entries looked at in codes, where many are, before any are taken.
_TIES = 4096
# Entries more than wanted on a list: what FAISS finds in codes is exact, so these only have to hold the ties (two in a
# hundred contexts of source code have more). The few values that sums of a product quantizer have make many of them.
# Of centroids, it is for near ties.
_MORE, _MORE_OF_PRODUCTS, _MORE_LISTS = 4, 16, 4


class SearchSettings:
    """What a search follows: of :class:`retrieval.Index`, which is one."""

    metric: Metric
    nprobe: int
    ef: int
    k_factor: int


_Result = tuple[np.ndarray, np.ndarray, Work]
Search = Callable[[np.ndarray, int, SearchSettings], _Result]


def search_of(index: Any) -> Search:
    """How a FAISS index is searched: what is in front of it, its lists, its codes, what is behind it.

    Args:
        index: Trained, and no longer changed but by adding to it.

    Returns:
        Given queries, ``k`` and settings: scores, larger for nearer entries, and ids in order, -1 where one is missing;
        and what it took.
    """
    index = unwrap(index)
    if isinstance(index, FLAT):
        flat = FlatSearch(index)
        return lambda x, k, _: flat(x, k)
    if isinstance(index, faiss.IndexPreTransform):
        return _Transformed(index)
    if isinstance(index, faiss.IndexRefine):
        return _Refined(index)
    if isinstance(index, faiss.IndexHNSW):
        return _Graph(index)
    return _Lists(index) if isinstance(index, faiss.IndexIVF) else _Codes(index)


class _Transformed:
    """What is in front: rotations, projections, norms."""

    def __init__(self, index: Any) -> None:
        self._steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        self._work = transform_work(index)
        self._behind = search_of(index.index)

    def __call__(self, x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        for step in self._steps:
            x = transformed(step, x)
        scores, ids, work = self._behind(x, k, how)
        return scores, ids, work + self._work * len(x)


class _Graph:
    """Steps through a graph from entry to entry."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def __call__(self, x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        with counted_search() as visits:
            scores, ids = self._index.search(x, k, params=faiss.SearchParametersHNSW(efSearch=how.ef))
        scores, ids = in_order(_nearer(scores, how), ids)
        return scores, ids, search_work(self._index, len(x), k, visits)


class _Codes:
    """Every code of an index, one after the other."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._work = scan_work(index)
        self._one_by_one = tables_by_product(index)
        self._more = _MORE_OF_PRODUCTS if product_quantizer(index) else _MORE

    def __call__(self, x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        return self._settled(lambda rows, length: self._scan(x[rows], length), x, k, how)

    def _scan(self, x: np.ndarray, length: int) -> tuple[list[np.ndarray], Work]:
        found = alike(lambda q: self._index.search(q, length), self._one_by_one, x)
        return found, self._work.of(len(x), 0, len(x) * self._index.ntotal)

    def _settled(self, scan: Callable[..., Any], x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        """Of entries that are equally near FAISS keeps any, and the first ids are wanted."""
        most = min(self._index.ntotal, max(_TIES, 2 * k))
        length = min(most, k + self._more)
        (distances, ids), work = scan(slice(None), length)
        scores = _nearer(distances, how)
        first = scores, ids
        # Whatever is as near as the last that is wanted is on the list, if the list ends farther away or with nothing.
        whole = (scores[:, k - 1] > scores[:, -1]) | (ids[:, -1] < 0)
        if np.count_nonzero(whole) == len(x) and scores.max(initial=0) < np.inf:
            if np.count_nonzero(scores[:, 1:] >= scores[:, :-1]):
                scores, ids = in_order(scores, ids)
            return np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(ids[:, :k]), work

        def shortlist(rows: np.ndarray, longer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal work
            scores, ids = first
            if longer != length:
                (distances, ids), more = scan(rows, longer)
                scores, work = _nearer(distances, how), work + more
            return scores, ids, np.where(ids[:, -1] < 0, -np.inf, scores[:, -1])

        scores, ids, _ = settle(shortlist, len(x), most, k, lambda: np.zeros(len(x)), more=self._more)
        return scores, ids, work


class _Lists(_Codes):
    """Codes in inverted lists, of which each query visits a few."""

    def __init__(self, index: Any) -> None:
        super().__init__(index)
        self._coarse = unwrap(index.quantizer)
        self._flat = FlatSearch(self._coarse) if isinstance(self._coarse, FLAT) else None
        self._fast_scan = fast_scan(index)

    def __call__(self, x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        nprobe = min(how.nprobe, self._index.nlist)
        if self._index.nprobe != nprobe:  # how many of each query's lists FAISS takes
            self._index.nprobe = nprobe
        near, lists, work = self._choose(x, nprobe, how)

        def scan(rows: Any, length: int) -> tuple[list[np.ndarray], Work]:
            return self._visit(x[rows], lists[rows], near[rows], length)

        scores, ids, visited = self._settled(scan, x, k, how)
        return scores, ids, work + visited

    def _choose(self, x: np.ndarray, nprobe: int, how: SearchSettings) -> tuple[np.ndarray, np.ndarray, Work]:
        """FAISS's own distances to the centroids of the lists to visit, their numbers, and what choosing them took."""
        coarse = self._coarse
        if self._flat is not None:
            near, lists, work = self._flat(x, nprobe, _MORE_LISTS)
            return (near if coarse.metric_type == faiss.METRIC_INNER_PRODUCT else 0 - near), lists, work
        with counted_search() as visits:
            if isinstance(coarse, faiss.IndexHNSW):
                coarse.hnsw.efSearch = how.ef
                near, lists = coarse.search(x, nprobe)
            else:
                near, lists = alike(lambda q: coarse.search(q, nprobe), coarse.pq.dsub >= 16, x)
        return near, lists, search_work(coarse, len(x), nprobe, visits)

    def _visit(
        self, x: np.ndarray, lists: np.ndarray, near: np.ndarray, length: int
    ) -> tuple[list[np.ndarray], Work]:
        with counted_search() as visits:
            found = alike(partial(self._faiss, length), self._one_by_one, x, lists, near)
        if self._fast_scan:
            visits.lists = int((lists >= 0).sum())  # FAISS counts a list once for all who visit it
        return found, self._work.of(len(x), visits.lists, visits.entries)

    def _faiss(
        self, length: int, x: np.ndarray, lists: np.ndarray, near: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's own method, without its checks of what it is given."""
        distances, ids = np.empty((len(x), length), np.float32), np.empty((len(x), length), np.int64)
        query, lists, near, found, names = map(faiss.swig_ptr, (x, lists, near, distances, ids))
        self._index.search_preassigned_c(len(x), query, length, lists, near, found, names, False)
        return distances, ids


class _Refined:
    """What is behind: candidates scored again by finer codes, or by the vectors."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._base = search_of(index.base_index)
        self._store = unwrap(index.refine_index)

    def __call__(self, x: np.ndarray, k: int, how: SearchSettings) -> _Result:
        short = min(self._index.ntotal, k * how.k_factor)
        _, ids, work = self._base(x, short, how)
        scores, ids = in_order(_nearer(self._rescore(x, ids, how.metric), how), ids)
        work += search_work(self._index, len(x), k, Visits(entries=int((ids >= 0).sum())))
        return scores[:, :k], ids[:, :k], work

    def _rescore(self, x: np.ndarray, ids: np.ndarray, metric: Metric) -> np.ndarray:
        """Scores of each query's own candidates, one pair at a time; of those found."""
        scores, store = np.empty(ids.shape, np.float32), self._store
        n, short = ids.shape
        if isinstance(store, FLAT):
            store.compute_distance_subset(
                n, faiss.swig_ptr(x), short, faiss.swig_ptr(scores), faiss.swig_ptr(ids)
            )
            return scores
        real = ids >= 0
        decoded = store.reconstruct_batch(ids[real])
        places = np.where(real, real.ravel().cumsum().reshape(ids.shape) - 1, -1)
        compare = faiss.fvec_inner_products_by_idx if metric == "ip" else faiss.fvec_L2sqr_by_idx
        arrays = (scores, np.ascontiguousarray(x), decoded, places)
        compare(*map(faiss.swig_ptr, arrays), x.shape[1], n, short)
        return scores


def _nearer(distances: np.ndarray, how: SearchSettings) -> np.ndarray:
    """Scores that are larger for nearer entries."""
    return distances if how.metric == "ip" else 0 - distances
