"""A FAISS index as a value: train, add, search, every operation counted."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrieval.building import add_work, train_work
from retrieval.exact import Metric
from retrieval.kinds import FLAT, core, refuse_unpriced, unwrap
from retrieval.neighbors import Neighbors
from retrieval.rounding import refuse_long
from retrieval.runtime import blas_threshold, counters_lock, faiss
from retrieval.search import Searchable, check_queries, run_search
from retrieval.searching import Search, SearchSettings, search_of
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.work import Work, counted_search

__all__ = ["Index", "checked_vectors"]

_KIND, _VERSION, _FILE = "index", 1, "index.faiss"


class Index(SearchSettings, Searchable):
    r"""Vectors in a FAISS index, named by a FAISS factory string.

    `The Faiss library <https://arxiv.org/abs/2401.08281>`_. Scores are larger for nearer entries: the inner product, or
    minus the squared distance. Ids are positions in the order of :meth:`add`. A search is the torch operator
    ``mnemograph::search``; what is counted, and how, is listed in :mod:`retrieval.work` for searching and in
    :mod:`retrieval.building` for training and adding. A large ``"Flat"`` index that is not mapped from a file keeps a
    copy of its vectors in bfloat16, half as much memory again, through which it is searched; what is found is the same
    to the last bit (:mod:`retrieval.halves`).

    Args:
        factory: For example ``"Flat"``, ``"IVF1024,Flat"``, ``"IVF4096,SQ8"``, ``"IMI2x7,SQ8"``, ``"HNSW16"``,
            ``"IVF1024,PQ16x4fsr,RFlat"``, ``"IVF4096_HNSW32,SQ8"``, ``"OPQ16,IVF1024,PQ16x8"``,
            ``"RR,IVF1024,RaBitQ,RFlat"``.
        metric: ``"ip"`` (inner product) or ``"l2"`` (squared distance).
        nprobe: Inverted lists to visit in a search, where there are any.
        ef: Candidates kept by a search in an HNSW graph, one that chooses inverted lists included.
        k_factor: Candidates for each neighbour wanted, where they are scored again (``RFlat``, ``Refine(SQ8)``).

    Attributes:
        work: What training and adding have cost, under ``"train"`` and ``"add"``.
        seconds: Time they took.

    Raises:
        ValueError: On first use, if FAISS does not know the factory string, or ignores the metric with it.
        NotImplementedError: On first use, if the work of that kind of index is not known.
    """

    def __init__(
        self, factory: str, metric: Metric = "ip", *, nprobe: int = 8, ef: int = 64, k_factor: int = 8
    ) -> None:
        if metric not in ("ip", "l2"):
            raise ValueError(f"metric must be 'ip' or 'l2', got {metric!r}")
        self.factory = factory
        self.metric: Metric = metric
        self.nprobe = nprobe
        self.ef = ef
        self.k_factor = k_factor
        self.work: dict[str, Work] = {}
        self.seconds = 0.0
        self._index: Any = None
        self._mapped = False
        self._search: Search | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("factory", "metric", "nprobe", "ef", "k_factor", "work", "seconds")
        with counters_lock:
            data = None if self._index is None else faiss.serialize_index(self._index)
        return {**{name: getattr(self, name) for name in kept}, "data": data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        data = state.pop("data")
        # A copy is a store of its own, which a search must not take for the one it was copied from.
        self.__init__(state["factory"], state["metric"])
        self.__dict__.update(state)
        if data is not None:
            self._index = faiss.deserialize_index(data)

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
            ValueError: If a value is not finite, a vector is too long to make clusters of, or ``n`` is too small to
                train on.
        """
        with counters_lock:
            self._train(checked_vectors(vectors))
        return self

    def _train(self, x: np.ndarray) -> Any:
        index = self._made(x.shape[1])
        if not isinstance(core(index), (*FLAT, faiss.IndexHNSW)):
            refuse_long(x, self.factory)
        if index.is_trained:
            return index
        begin = time.perf_counter()
        with counted_search() as visits, blas_threshold(4 * x.shape[1]):
            try:
                index.train(x)
            except RuntimeError as error:
                raise ValueError(f"{self.factory} cannot be trained on {len(x)} vectors: {error}") from error
        self.seconds += time.perf_counter() - begin
        self._bill("train", train_work(index, len(x), visits))
        return index

    def add(self, vectors: Float[Tensor, "n d"]) -> Index:
        """Store vectors under the next ids; an untrained index is trained on them first.

        Shapes:
            vectors: ``[n, d]``

        Raises:
            ValueError: If a value is not finite: FAISS would drop such a vector from some structures and count it.
                If the index is mapped from a file.
        """
        if self._mapped:
            raise ValueError("this index is mapped from its file: open it with mmap=False to add to it")
        x = checked_vectors(vectors)
        with counters_lock:
            index = self._train(x)
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
            ValueError: If queries are no floating-point vectors of the dimension that is stored, or ``k < 1``.
        """
        check_queries(queries, k)
        if self.nprobe < 1 or self.ef < 1 or self.k_factor < 1:
            names = [name for name in ("nprobe", "ef", "k_factor") if getattr(self, name) < 1]
            raise ValueError(f"{names[0]} must be 1 or more, got {getattr(self, names[0])}")
        if self._index is not None and queries.shape[-1] != self._index.d:
            raise ValueError(f"queries of {queries.shape[-1]} dimensions, the index stores {self._index.d}")
        return run_search(self, [queries], k)

    def save(self, path: str | Path) -> None:
        """Write the index into a folder, whole or not at all; what is there is replaced.

        Args:
            path: The folder.

        Raises:
            ValueError: If nothing was added yet.
            SnapshotError: If the disk did not take all of it.
        """
        if self._index is None:
            raise ValueError(f"there is nothing to save in {self!r}: train it or add vectors first")
        about = {
            "factory": self.factory,
            "metric": self.metric,
            "nprobe": self.nprobe,
            "ef": self.ef,
            "k_factor": self.k_factor,
            "dimensions": self._index.d,
            "vectors": len(self),
            "seconds": self.seconds,
            "work": {kind: asdict(work) for kind, work in self.work.items()},
            "faiss": faiss.__version__,
        }
        with counters_lock, writing_snapshot(path, _KIND, _VERSION, about) as folder:
            file = str(folder / _FILE)
            try:
                faiss.write_index(self._index, file)
                # FAISS does not look whether closing the file could still write its end.
                whole = faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC).ntotal == len(self)
            except RuntimeError as error:
                raise SnapshotError(f"{path} could not be written: {error}") from error
            if not whole:
                raise SnapshotError(f"{path} could not be written whole: is the disk full?")

    @classmethod
    def open(cls, path: str | Path, *, mmap: bool = False, verify: bool = True) -> Index:
        """Read an index that was saved.

        Args:
            path: Its folder.
            mmap: Map the file instead of reading it, where FAISS can: opens in no time, and is for searching only.
            verify: Whether to compare checksums, which reads the whole file once.

        Raises:
            SnapshotError: If it is missing, damaged, foreign or of a newer format.
        """
        about = open_snapshot(path, _KIND, _VERSION, verify=verify)
        flags = faiss.IO_FLAG_MMAP_IFC if mmap else 0
        try:
            settings = {name: about[name] for name in ("nprobe", "ef", "k_factor")}
            index = cls(about["factory"], about["metric"], **settings)
            index._index = faiss.read_index(str(Path(path) / _FILE), flags)
            refuse_unpriced(index._index)
            index.work = {kind: Work(**work) for kind, work in about["work"].items()}
            index.seconds = about["seconds"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SnapshotError(
                f"{path} cannot be read by FAISS {faiss.__version__}, it was written by {about.get('faiss')}: build "
                f"the index again ({error})"
            ) from error
        index._mapped = mmap
        return index

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        (queries,) = inputs
        batch, flat = queries.shape[:-1], queries.ndim == 2
        if queries.dtype != torch.float32:
            queries = queries.float()
        x = np.ascontiguousarray((queries if flat else queries.reshape(-1, queries.shape[-1])).numpy())
        stored = 0 if self._index is None else self._index.ntotal
        if not stored or not len(x):
            return Neighbors.none(*batch, k)
        # A product of all with themselves tells in one pass that all is well; if it does not, which rows it is.
        real = None if math.isfinite(np.vdot(x, x)) else np.isfinite(x).all(1)
        if real is not None and not real.any():
            return Neighbors.none(*batch, k)
        with counters_lock:
            asked = x if real is None else x[real]
            self._search = self._search or search_of(self._index)
            scores, ids, work = self._search(asked, min(k, stored), self)
        if real is not None or k > stored:
            rows = slice(None) if real is None else real
            few = scores, ids
            scores, ids = np.zeros((len(x), k), np.float32), np.full((len(x), k), -1, np.int64)
            scores[rows, : few[1].shape[1]], ids[rows, : few[1].shape[1]] = few
        mask = ids >= 0
        if np.count_nonzero(mask) < mask.size:
            scores[~mask], ids[~mask] = 0, 0
        found = Neighbors.known(torch.from_numpy(scores), torch.from_numpy(ids), torch.from_numpy(mask), work)
        return found if flat else found.view(*batch, k)

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
            coarse = unwrap(inner.quantizer)
            if isinstance(coarse, faiss.IndexHNSW):
                coarse.hnsw.efSearch = self.ef
        return self._index

    def _bill(self, kind: str, work: Work) -> None:
        self.work[kind] = self.work.get(kind, Work()) + work


def checked_vectors(vectors: Tensor) -> np.ndarray:
    """Vectors as FAISS takes them.

    Raises:
        ValueError: If they are not floating-point vectors, or a value is not finite.
    """
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"an index needs floating-point vectors [n, d], got {vectors.dtype} {tuple(vectors.shape)}"
        )
    x = np.ascontiguousarray(vectors.detach().cpu().float().numpy())
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise ValueError(f"vector {row} has a value that is not finite; nothing was stored")
    return x
