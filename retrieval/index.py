"""A FAISS index as a value: train, add, search, every operation counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrieval.building import add_work, train_work
from retrieval.exact import Metric
from retrieval.kinds import FLAT, core, fast_scan, refuse_unpriced, unwrap
from retrieval.neighbors import Neighbors
from retrieval.runtime import blas_threshold, faiss
from retrieval.search import enroll, run_search
from retrieval.work import Visits, Work, counted_search, search_work, transform_work

__all__ = ["Index"]


class Index:
    r"""Vectors in a FAISS index, named by a FAISS factory string.

    `The Faiss library <https://arxiv.org/abs/2401.08281>`_. Scores are larger for nearer entries: the inner product, or
    minus the squared distance. Ids are positions in the order of :meth:`add`. A search is the torch operator
    ``mnemograph::search``; what is counted, and how, is listed in :mod:`retrieval.work` for searching and in
    :mod:`retrieval.building` for training and adding.

    Args:
        factory: For example ``"Flat"``, ``"IVF1024,Flat"``, ``"IVF4096,SQ8"``, ``"IMI2x7,SQ8"``, ``"HNSW16"``,
            ``"IVF1024,PQ16x4fsr,RFlat"``, ``"IVF4096_HNSW32,SQ8"``, ``"OPQ16,IVF1024,PQ16x8"``,
            ``"RR,IVF1024,RaBitQ,RFlat"``.
        metric: ``"ip"`` (inner product) or ``"l2"`` (squared distance).
        nprobe: Inverted lists to visit in a search, where there are any.
        ef: Candidates kept by a search in an HNSW graph, one that chooses inverted lists included.

    Attributes:
        work: What training and adding have cost, under ``"train"`` and ``"add"``.
        seconds: Time they took.

    Raises:
        ValueError: On first use, if FAISS does not know the factory string, or ignores the metric with it.
        NotImplementedError: On first use, if the work of that kind of index is not known.
    """

    # Queries go to the coarse quantizer in blocks of one shape: matrix products round differently in others,
    # and a result must not depend on what else is in the batch.
    block = 256

    def __init__(self, factory: str, metric: Metric = "ip", *, nprobe: int = 8, ef: int = 64) -> None:
        if metric not in ("ip", "l2"):
            raise ValueError(f"metric must be 'ip' or 'l2', got {metric!r}")
        self.factory = factory
        self.metric = metric
        self.nprobe = nprobe
        self.ef = ef
        self.work: dict[str, Work] = {}
        self.seconds = 0.0
        self._index: Any = None
        self._number = enroll(self)

    def __len__(self) -> int:
        return 0 if self._index is None else self._index.ntotal

    def __repr__(self) -> str:
        return f"Index({self.factory!r}, metric={self.metric!r}, {len(self):,} vectors)"

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs of training and adding."""
        return {kind: work.flops for kind, work in self.work.items()}

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes read and written by training and adding."""
        return {kind: work.bytes for kind, work in self.work.items()}

    def train(self, vectors: Float[Tensor, "n d"]) -> Index:
        """Fit centroids and codes to a sample; does nothing for an index that needs none.

        Shapes:
            vectors: ``[n, d]``

        Raises:
            ValueError: If a value is not finite, or ``n`` is too small to train on.
        """
        x = self._checked(vectors)
        index = self._made(x.shape[1])
        if index.is_trained:
            return self
        begin = time.perf_counter()
        with counted_search() as visits, blas_threshold(4 * x.shape[1]):
            try:
                index.train(x)
            except RuntimeError as error:
                raise ValueError(f"{self.factory} cannot be trained on {len(x)} vectors: {error}") from error
        self.seconds += time.perf_counter() - begin
        self._bill("train", train_work(index, len(x), visits))
        return self

    def add(self, vectors: Float[Tensor, "n d"]) -> Index:
        """Store vectors under the next ids; an untrained index is trained on them first.

        Shapes:
            vectors: ``[n, d]``

        Raises:
            ValueError: If a value is not finite: FAISS would drop such a vector from some structures and count it.
        """
        x = self._checked(vectors)
        index = self.train(vectors)._made(x.shape[1])
        if not len(x):
            return self
        begin = time.perf_counter()
        with counted_search() as visits, blas_threshold(4 * x.shape[1]):
            index.add(x)
        self.seconds += time.perf_counter() - begin
        self._bill("add", add_work(index, len(x), x[:: max(1, len(x) // 256)], visits))
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
        if self._index is not None and queries.shape[-1] != self._index.d:
            raise ValueError(f"queries of {queries.shape[-1]} dimensions, the index stores {self._index.d}")
        return run_search(self._number, [queries], k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        batch = inputs[0].shape[:-1]
        x = np.ascontiguousarray(inputs[0].reshape(-1, inputs[0].shape[-1]).float().numpy())
        if not len(self) or not len(x):
            return Neighbors.none(*batch, k)
        real = np.isfinite(x).all(1)
        scores, ids, work = self._raw(x[real], min(k, len(self)))
        order = np.lexsort((ids, -scores))
        found = np.full((len(x), k), -1, np.int64)
        best = np.zeros((len(x), k), np.float32)
        found[real, : ids.shape[1]] = np.take_along_axis(ids, order, 1)
        best[real, : ids.shape[1]] = np.take_along_axis(scores, order, 1)
        hits = Neighbors.of(torch.from_numpy(best), torch.from_numpy(found))
        return Neighbors(
            hits.scores.view(*batch, k),
            hits.ids.view(*batch, k),
            hits.mask.view(*batch, k),
            **work.counts,
        )

    def _raw(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """Unsorted scores and ids, missing ones at -inf and -1."""
        n = len(x)
        pad = -n % self.block
        padded = np.concatenate([x, np.zeros((pad, x.shape[1]), np.float32)]) if pad else x
        scores, ids = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
        work = Work()
        with blas_threshold(1):
            for i in range(0, n, self.block):
                at = slice(i, min(i + self.block, n))
                scores[at], ids[at], cost = self._search(
                    self._index, padded[i : i + self.block], at.stop - i, k
                )
                work += cost
        if self.metric == "l2":
            scores = -scores
        scores[ids < 0] = -np.inf
        return scores, ids, work

    def _search(self, index: Any, x: np.ndarray, n: int, k: int) -> tuple[np.ndarray, np.ndarray, Work]:
        """One block, of which the first ``n`` rows are queries; the others take part in matrix products only."""
        index = unwrap(index)
        if isinstance(index, faiss.IndexPreTransform):
            for i in range(index.chain.size()):
                x = faiss.downcast_VectorTransform(index.chain.at(i)).apply(x)
            scores, ids, work = self._search(index.index, x, n, k)
            return scores, ids, work + transform_work(index) * n
        if isinstance(index, faiss.IndexRefine):
            short = min(index.ntotal, int(k * index.k_factor))
            _, ids, work = self._search(index.base_index, x, n, short)
            scores = self._rescore(unwrap(index.refine_index), x[:n], np.ascontiguousarray(ids))
            far = -np.inf if self.metric == "ip" else np.inf
            scores[ids < 0] = far
            best = np.argsort(-scores if self.metric == "ip" else scores, axis=1, kind="stable")[:, :k]
            work += search_work(index, n, k, Visits(entries=int((ids >= 0).sum())))
            return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1), work
        with counted_search() as visits:
            if isinstance(index, faiss.IndexIVF):
                index.nprobe = min(self.nprobe, index.nlist)
                # A graph is walked query by query: no other takes part.
                asked = x[:n] if self._tune(index) else x
                distances, lists = index.quantizer.search(asked, index.nprobe)
                hits = index.search_preassigned(x[:n], k, lists[:n], distances[:n])
            elif isinstance(index, faiss.IndexHNSW):
                hits = index.search(x[:n], k, params=faiss.SearchParametersHNSW(efSearch=self.ef))
            else:
                hits = index.search(x, k)
        if fast_scan(index) and isinstance(index, faiss.IndexIVF):
            visits.lists = int((lists[:n] >= 0).sum())  # FAISS counts each list once for all who visit it
        return hits[0][:n], hits[1][:n], search_work(index, n, k, visits)

    def _rescore(self, store: Any, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
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
        compare = faiss.fvec_inner_products_by_idx if self.metric == "ip" else faiss.fvec_L2sqr_by_idx
        arrays = (scores, np.ascontiguousarray(x), decoded, places)
        compare(*map(faiss.swig_ptr, arrays), x.shape[1], n, short)
        return scores

    def _tune(self, index: Any) -> bool:
        """Whether lists are chosen through a graph; if so, with our number of candidates."""
        graph = faiss.downcast_index(index.quantizer)
        if not isinstance(graph, faiss.IndexHNSW):
            return False
        graph.hnsw.efSearch = self.ef
        return True

    def _made(self, d: int) -> Any:
        if self._index is None:
            metric = faiss.METRIC_INNER_PRODUCT if self.metric == "ip" else faiss.METRIC_L2
            try:
                made = faiss.index_factory(d, self.factory, metric)
            except RuntimeError as error:
                raise ValueError(
                    f"FAISS has no index {self.factory!r} for {d} dimensions: {error}"
                ) from error
            refuse_unpriced(made)
            inner = core(made)
            if inner.metric_type != metric:
                raise ValueError(f"FAISS makes {self.factory!r} by squared distance only; use metric='l2'")
            for part in (inner, faiss.downcast_index(getattr(inner, "storage", inner))):
                if hasattr(part, "do_polysemous_training"):
                    part.do_polysemous_training = False  # minutes of annealing that no search here uses
            self._index = made
        if d != self._index.d:
            raise ValueError(f"vectors of {d} dimensions, the index stores {self._index.d}")
        inner = core(self._index)
        if isinstance(inner, faiss.IndexIVF):
            self._tune(inner)
        return self._index

    @staticmethod
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

    def _bill(self, kind: str, work: Work) -> None:
        self.work[kind] = self.work.get(kind, Work()) + work
