r"""What FAISS does when it trains, adds and searches, in floating-point operations and bytes.

FAISS reports the work of a search for some structures and of building for none, so the rest is written down here. A
multiplication and an addition are two operations; a pair of ``d``-dimensional vectors costs :math:`2d` by inner product
and :math:`3d` by squared distance. The additions of 4-bit fast-scan codes are made on integers and count all the same;
comparisons do not: they show in the bytes.

==========================  =======================================================================================
structure                   one search of a vector, ``ndis`` stored entries visited
==========================  =======================================================================================
Flat                        ``n`` pairs
IVF + Flat                  pairs with all centroids of the coarse quantizer + ``ndis`` pairs
IVF + SQ8 (SQ4, SQ6)        the same, and ``4d`` to decode each entry; none for fp16, bf16 and direct 8-bit codes
IVF + PQ                    a table of ``M`` x ``2^b`` sub-vector pairs (once a list if residuals by L2) + ``M ndis``
IVF + PQ fast-scan          the same
IMI (coarse)                ``M`` x ``2^b`` pairs of sub-vectors
HNSW                        ``ndis + 1`` pairs
==========================  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retrieval.runtime import counters_lock, faiss

__all__ = [
    "Visits",
    "Work",
    "add_work",
    "counted_search",
    "search_work",
    "train_work",
    "transform_work",
    "unwrap",
]


@dataclass
class Work:
    """Floating-point operations and bytes."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times)


def unwrap(index: Any) -> Any:
    """The concrete class behind a FAISS pointer, or an error that names it.

    Raises:
        NotImplementedError: If the work of that class is not written down here.
    """
    concrete = faiss.downcast_index(index)
    name = type(concrete).__name__
    if isinstance(concrete, faiss.IndexIVF):
        coarse = faiss.downcast_index(concrete.quantizer)
        if not isinstance(coarse, faiss.IndexFlat | faiss.MultiIndexQuantizer):
            name = f"{name} with a {type(coarse).__name__} to choose lists"
        elif isinstance(concrete, _KNOWN):
            return concrete
    elif isinstance(concrete, _KNOWN):
        return concrete
    raise NotImplementedError(
        f"the work of a FAISS {name} is not known; use a factory of Flat, SQ, PQ, PQ fast-scan, IVF or IMI with any "
        "of these as codes, HNSW, with PCA or RR (rotation) in front and RFlat behind"
    )


_KNOWN = (
    faiss.IndexFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexPQFastScan,
    faiss.IndexHNSWFlat,
    faiss.IndexHNSWSQ,
    faiss.IndexIVFFlat,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexIVFPQ,
    faiss.IndexIVFPQFastScan,
    faiss.MultiIndexQuantizer,
    faiss.IndexPreTransform,
    faiss.IndexRefineFlat,
)
_IVF = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan)
_FLOAT_CODES = (
    faiss.ScalarQuantizer.QT_fp16,
    faiss.ScalarQuantizer.QT_bf16,
    faiss.ScalarQuantizer.QT_8bit_direct,
    faiss.ScalarQuantizer.QT_8bit_direct_signed,
)


def _pair(index: Any, d: int | None = None) -> int:
    return (2 if index.metric_type == faiss.METRIC_INNER_PRODUCT else 3) * (index.d if d is None else d)


def _decode(index: Any) -> int:
    return 0 if index.sq.qtype in _FLOAT_CODES else 4 * index.d


def _table(index: Any) -> int:
    pq = index.pq
    return pq.M * pq.ksub * _pair(index, pq.dsub)


@dataclass
class Visits:
    """What FAISS's own counters say about one search."""

    entries: int = 0
    lists: int = 0
    hops: int = 0


@contextmanager
def counted_search() -> Iterator[Visits]:
    """Hold the counters for one call into FAISS and read them afterwards."""
    with counters_lock:
        ivf, hnsw = faiss.cvar.indexIVF_stats, faiss.cvar.hnsw_stats
        ivf.reset()
        hnsw.reset()
        visits = Visits()
        yield visits
        visits.entries, visits.lists, visits.hops = int(ivf.ndis), int(ivf.nlist), int(hnsw.ndis)


def search_work(index: Any, n: int, k: int, visits: Visits, *, coarse: bool = True) -> Work:
    """Work of a search of ``n`` vectors for ``k`` neighbours, in front of and behind an inner index left out.

    Args:
        index: The FAISS index.
        n: Number of queries.
        k: Neighbours per query.
        visits: FAISS's own counts of that call.
        coarse: Whether the call chose the lists itself.
    """
    index = unwrap(index)
    if isinstance(index, faiss.IndexRefineFlat):  # what comes behind its base index
        return Work(_pair(index), 4 * index.d) * (n * min(index.ntotal, int(k * index.k_factor)))
    if isinstance(index, faiss.MultiIndexQuantizer):
        return Work(_table(index) * n, 4 * index.pq.ksub * index.d * n)
    if isinstance(index, faiss.IndexFlat):
        return Work(_pair(index) * n * index.ntotal, 4 * index.d * (n + index.ntotal))
    if isinstance(index, faiss.IndexScalarQuantizer):
        each = Work(_pair(index) + _decode(index), index.code_size)
        return each * (n * index.ntotal)
    if isinstance(index, faiss.IndexPQ | faiss.IndexPQFastScan):
        return Work(_table(index), 4 * index.pq.M * index.pq.ksub) * n + Work(index.pq.M, index.code_size) * (
            n * index.ntotal
        )
    if isinstance(index, faiss.IndexHNSWFlat | faiss.IndexHNSWSQ):
        storage = unwrap(index.storage)
        each = _pair(storage) + (0 if isinstance(storage, faiss.IndexFlat) else _decode(storage))
        return Work(each, storage.code_size + 4) * (visits.hops + n)
    work = Work()
    if coarse:
        # With a graph for a quantizer all its visits are coarse ones.
        work += search_work(index.quantizer, n, int(index.nprobe), visits)
    # An entry's id is read with its code.
    entry_bytes = index.code_size + 8
    if isinstance(index, faiss.IndexIVFPQFastScan | faiss.IndexIVFPQ):
        tables = visits.lists if index.by_residual and index.metric_type == faiss.METRIC_L2 else n
        work += Work(_table(index), 4 * index.pq.M * index.pq.ksub) * tables
        return work + Work(index.pq.M, entry_bytes) * visits.entries
    each = _pair(index) + (_decode(index) if isinstance(index, faiss.IndexIVFScalarQuantizer) else 0)
    return work + Work(each, entry_bytes) * visits.entries


def train_work(index: Any, n: int) -> Work:
    """Work of training on ``n`` vectors, read off the trained index: k-means, code books, transforms."""
    index = unwrap(index)
    if isinstance(index, faiss.IndexPreTransform):
        # Principal components: one covariance and one eigendecomposition. Random rotations cost less than this.
        transform_work(index)
        return Work(2 * n * index.d**2 + 10 * index.d**3, 4 * n * index.d) + train_work(index.index, n)
    if isinstance(index, faiss.IndexRefineFlat):
        return train_work(index.base_index, n)
    if isinstance(index, faiss.MultiIndexQuantizer):
        return _train_pq(index, n)
    if isinstance(index, faiss.IndexPQ | faiss.IndexPQFastScan):
        return _train_pq(index, n)
    if isinstance(index, _IVF):
        coarse = unwrap(index.quantizer)
        if isinstance(coarse, faiss.MultiIndexQuantizer):
            work = train_work(coarse, n)
        else:
            used = min(n, index.cp.max_points_per_centroid * index.nlist)
            work = Work(_pair(index), 4 * index.d) * (index.cp.niter * used * index.nlist)
        if isinstance(index, faiss.IndexIVFPQFastScan | faiss.IndexIVFPQ):
            sample = min(n, index.pq.cp.max_points_per_centroid * index.pq.ksub)
            if index.by_residual:
                work += add_work(coarse, sample) + Work(index.d, 8 * index.d) * sample
            work += _train_pq(index, sample)
        return work
    if isinstance(index, faiss.IndexHNSWSQ):
        return Work(0, 4 * n * index.d)
    return Work()


def _train_pq(index: Any, n: int) -> Work:
    pq = index.pq
    used = min(n, pq.cp.max_points_per_centroid * pq.ksub)
    return Work(3 * pq.dsub, 4 * pq.dsub) * (pq.cp.niter * used * pq.ksub * pq.M)


def add_work(index: Any, n: int, *, coarse: bool = True) -> Work:
    """Work of adding ``n`` vectors: choosing a list, subtracting its centroid, encoding; an HNSW graph apart."""
    index = unwrap(index)
    if isinstance(index, faiss.IndexPreTransform):
        return transform_work(index) * n + add_work(index.index, n, coarse=coarse)
    if isinstance(index, faiss.IndexRefineFlat):
        return add_work(index.base_index, n, coarse=coarse) + Work(0, 4 * index.d) * n
    if isinstance(index, faiss.MultiIndexQuantizer):
        return search_work(index, n, 1, Visits())
    if isinstance(index, faiss.IndexFlat):
        return Work(0, 4 * index.d) * n
    if isinstance(index, faiss.IndexPQ | faiss.IndexPQFastScan):
        return Work(3 * index.pq.ksub * index.d, index.code_size + 4 * index.d) * n
    if isinstance(index, _IVF):
        work = Work(0, 4 * index.d + index.code_size + 8) * n
        if coarse:
            work += search_work(index.quantizer, n, 1, Visits())
        if getattr(index, "by_residual", False):
            work += Work(index.d) * n
        if isinstance(index, faiss.IndexIVFPQFastScan | faiss.IndexIVFPQ):
            return work + Work(3 * index.pq.ksub * index.d) * n
        if isinstance(index, faiss.IndexIVFScalarQuantizer):
            return work + Work(_decode(index)) * n
        return work
    if isinstance(index, faiss.IndexScalarQuantizer):
        return Work(_decode(index), index.code_size + 4 * index.d) * n
    return Work(0, 4 * index.d) * n


def transform_work(index: Any) -> Work:
    """Work of what an index does to one vector before it looks at it."""
    work = Work()
    for i in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(i))
        if isinstance(step, faiss.PCAMatrix | faiss.RandomRotationMatrix):
            work += Work(
                2 * step.d_in * step.d_out + step.d_out * step.have_bias, 4 * (step.d_in + step.d_out)
            )
        elif isinstance(step, faiss.NormalizationTransform):
            work += Work(3 * step.d_in, 8 * step.d_in)
        else:
            raise NotImplementedError(f"the work of a FAISS {type(step).__name__} is not known; leave it out")
    return work
