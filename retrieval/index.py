"""A FAISS index as a value: train, add, search, every operation counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrieval.exact import Metric
from retrieval.neighbors import Neighbors
from retrieval.runtime import blas_threshold, counters_lock, faiss
from retrieval.search import enroll, run_search
from retrieval.work import (
    Visits,
    Work,
    add_work,
    counted_search,
    search_work,
    train_work,
    transform_work,
    unwrap,
)

__all__ = ["Index"]


class Index:
    r"""Vectors in a FAISS index, named by a FAISS factory string.

    `The Faiss library <https://arxiv.org/abs/2401.08281>`_. Scores are larger for nearer entries: the inner product, or
    minus the squared distance. Ids are positions in the order of :meth:`add`. A search is the torch operator
    ``mnemograph::search``; what is counted, and how, is listed in :mod:`retrieval.work`.

    Args:
        factory: For example ``"Flat"``, ``"IVF1024,Flat"``, ``"IVF4096,SQ8"``, ``"IMI2x7,SQ8"``, ``"HNSW16"``,
            ``"IVF1024,PQ16x4fsr,RFlat"``.
        metric: ``"ip"`` (inner product) or ``"l2"`` (squared distance).
        nprobe: Inverted lists to visit in a search, where there are any.
        ef: Candidates kept by a search in an HNSW graph.

    Raises:
        ValueError: On first use, if FAISS does not know the factory string.
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
        self.flops: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.seconds = 0.0
        self._index: Any = None
        self._number = enroll(self)

    def __len__(self) -> int:
        return 0 if self._index is None else self._index.ntotal

    def __repr__(self) -> str:
        return f"Index({self.factory!r}, metric={self.metric!r}, {len(self):,} vectors)"

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
        with counters_lock, blas_threshold(4 * x.shape[1]):
            try:
                index.train(x)
            except RuntimeError as error:
                raise ValueError(f"{self.factory} cannot be trained on {len(x)} vectors: {error}") from error
        self.seconds += time.perf_counter() - begin
        self._bill("train", train_work(index, len(x)))
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
        with counters_lock, blas_threshold(4 * x.shape[1]):
            index.add(x)
        self.seconds += time.perf_counter() - begin
        work = add_work(index, len(x))
        core = self._core(self._index)
        if isinstance(core, faiss.IndexHNSW):
            work += self._graph_work(core, x)
        self._bill("add", work)
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
            *(part.view(*batch, k) for part in (hits.scores, hits.ids, hits.mask)),
            flops=work.flops,
            bytes=work.bytes,
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
        if isinstance(index, faiss.IndexRefineFlat):
            short = min(index.ntotal, int(k * index.k_factor))
            _, ids, work = self._search(index.base_index, x, n, short)
            scores = np.empty(ids.shape, np.float32)
            ids = np.ascontiguousarray(ids)
            unwrap(index.refine_index).compute_distance_subset(
                n, faiss.swig_ptr(x), short, faiss.swig_ptr(scores), faiss.swig_ptr(ids)
            )
            far = -np.inf if self.metric == "ip" else np.inf
            scores[ids < 0] = far
            best = np.argsort(-scores if self.metric == "ip" else scores, axis=1, kind="stable")[:, :k]
            work += search_work(index, n, k, Visits())
            return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1), work
        with counted_search() as visits:
            if isinstance(index, faiss.IndexIVF):
                index.nprobe = min(self.nprobe, index.nlist)
                distances, lists = index.quantizer.search(x, index.nprobe)
                hits = index.search_preassigned(x[:n], k, lists[:n], distances[:n])
            elif isinstance(index, faiss.IndexHNSW):
                hits = index.search(x[:n], k, params=faiss.SearchParametersHNSW(efSearch=self.ef))
            else:
                hits = index.search(x, k)
        return hits[0][:n], hits[1][:n], search_work(index, n, k, visits)

    @staticmethod
    def _core(index: Any) -> Any:
        index = unwrap(index)
        while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefineFlat):
            index = unwrap(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
        return index

    def _graph_work(self, graph: Any, x: np.ndarray) -> Work:
        """FAISS does not count inserting into a graph: searching a sample as an insert would, times a known ratio."""
        sample = x[:: max(1, len(x) // 256)]
        with counted_search() as visits:
            graph.search(sample, 1, params=faiss.SearchParametersHNSW(efSearch=graph.hnsw.efConstruction))
        work = search_work(graph, len(sample), 1, visits)
        # Inserting looks at more than searching the finished graph does: 1.10 times by L2, 1.45 by inner product.
        percent = 110 if self.metric == "l2" else 145
        return Work(*(part * percent * len(x) // (100 * len(sample)) for part in (work.flops, work.bytes)))

    def _made(self, d: int) -> Any:
        if self._index is None:
            metric = faiss.METRIC_INNER_PRODUCT if self.metric == "ip" else faiss.METRIC_L2
            try:
                made = faiss.index_factory(d, self.factory, metric)
            except RuntimeError as error:
                raise ValueError(
                    f"FAISS has no index {self.factory!r} for {d} dimensions: {error}"
                ) from error
            add_work(made, 0)  # refuses what it cannot count, before any work is done
            core = self._core(made)
            if hasattr(core, "do_polysemous_training"):
                core.do_polysemous_training = False  # minutes of annealing that no search here uses
            self._index = made
        if d != self._index.d:
            raise ValueError(f"vectors of {d} dimensions, the index stores {self._index.d}")
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
        self.flops[kind] = self.flops.get(kind, 0) + work.flops
        self.bytes[kind] = self.bytes.get(kind, 0) + work.bytes
