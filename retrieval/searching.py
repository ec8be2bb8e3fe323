"""A search of a FAISS index, part by part, so that its answers depend on nothing but the query and what is stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from retrieval.exact import Metric
from retrieval.flat import FlatSearch, settle
from retrieval.invariant import alike, transformed
from retrieval.kinds import FLAT, fast_scan, tables_by_product, unwrap
from retrieval.ordering import in_order
from retrieval.runtime import faiss
from retrieval.work import Visits, Work, counted_search, search_work, transform_work

__all__ = ["IndexSearch", "SearchSettings"]

# Equally near entries looked at in codes, where many are, before any are taken.
_TIES = 4096


class SearchSettings(NamedTuple):
    """What a search follows; see :class:`retrieval.Index`."""

    metric: Metric
    nprobe: int
    ef: int
    k_factor: int


class IndexSearch:
    """Searches of a FAISS index: what is in front of it, its lists, its codes, what is behind it."""

    def __init__(self) -> None:
        self._flat: dict[int, FlatSearch] = {}

    def __call__(
        self, index: Any, x: np.ndarray, k: int, how: SearchSettings
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """Scores, larger for nearer entries, and ids in order, -1 where one is missing; and what it took."""
        if (flat := self._flat.get(int(index.this))) is not None:
            return flat(x, k)
        index = unwrap(index)
        if isinstance(index, FLAT):
            return self._flat.setdefault(int(index.this), FlatSearch(index))(x, k)
        if isinstance(index, faiss.IndexPreTransform):
            for i in range(index.chain.size()):
                x = transformed(faiss.downcast_VectorTransform(index.chain.at(i)), x)
            scores, ids, work = self(index.index, x, k, how)
            return scores, ids, work + transform_work(index) * len(x)
        if isinstance(index, faiss.IndexRefine):
            return self._refined(index, x, k, how)
        if isinstance(index, faiss.IndexHNSW):
            with counted_search() as visits:
                scores, ids = index.search(x, k, params=faiss.SearchParametersHNSW(efSearch=how.ef))
            scores, ids = in_order(_nearer(scores, how), ids)
            return scores, ids, search_work(index, len(x), k, visits)
        work, lists, near = Work(), x, x
        if isinstance(index, faiss.IndexIVF):
            near, lists, work = self._lists(index, x, how)

        def shortlist(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            nonlocal work
            with counted_search() as visits:
                if isinstance(index, faiss.IndexIVF):
                    found = alike(
                        lambda q, at, to: index.search_preassigned(q, length, at, to),
                        tables_by_product(index),
                        *(x[rows], lists[rows], near[rows]),
                    )
                else:
                    found = alike(lambda q: index.search(q, length), tables_by_product(index), x[rows])
            if fast_scan(index) and isinstance(index, faiss.IndexIVF):
                visits.lists = int((lists[rows] >= 0).sum())  # FAISS counts a list once for all who visit it
            work += search_work(index, len(rows), length, visits, coarse=False)
            scores, ids = _nearer(found[0], how), found[1]
            return scores, ids, np.where(ids[:, -1] < 0, -np.inf, scores[:, -1])

        # Of entries that are equally near FAISS keeps any, and the first ids are wanted.
        scores, ids, _ = settle(
            shortlist, len(x), min(index.ntotal, max(_TIES, 2 * k)), k, lambda: np.zeros(len(x))
        )
        return scores, ids, work

    def _lists(self, index: Any, x: np.ndarray, how: SearchSettings) -> tuple[np.ndarray, np.ndarray, Work]:
        """FAISS's own distances to the centroids of the lists to visit, their numbers, and what choosing them took."""
        # What it says is how many lists of each query FAISS takes.
        nprobe = index.nprobe = min(how.nprobe, index.nlist)
        coarse = unwrap(index.quantizer)
        if isinstance(coarse, FLAT):
            near, lists, work = self(coarse, x, nprobe, how)
            return (near if coarse.metric_type == faiss.METRIC_INNER_PRODUCT else 0 - near), lists, work
        with counted_search() as visits:
            if isinstance(coarse, faiss.IndexHNSW):
                coarse.hnsw.efSearch = how.ef
                near, lists = coarse.search(x, nprobe)
            else:
                by_product = coarse.pq.dsub >= 16
                near, lists = alike(lambda q: coarse.search(q, nprobe), by_product, x)
        return near, lists, search_work(coarse, len(x), nprobe, visits)

    def _refined(
        self, index: Any, x: np.ndarray, k: int, how: SearchSettings
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        short = min(index.ntotal, k * how.k_factor)
        _, ids, work = self(index.base_index, x, short, how)
        scores = self._rescore(unwrap(index.refine_index), x, ids, how.metric)
        scores, ids = in_order(_nearer(scores, how), ids)
        work += search_work(index, len(x), k, Visits(entries=int((ids >= 0).sum())))
        return scores[:, :k], ids[:, :k], work

    def _rescore(self, store: Any, x: np.ndarray, ids: np.ndarray, metric: Metric) -> np.ndarray:
        """Scores of each query's own candidates in the store behind an index, one pair at a time; of those found."""
        scores = np.empty(ids.shape, np.float32)
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
