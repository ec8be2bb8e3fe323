r"""What FAISS does when it searches, in floating-point operations and bytes; training and adding: `building`.

FAISS reports the work of a search for some structures, so the rest is written down here. A multiplication and an
addition are two operations; a pair of ``d``-dimensional vectors costs :math:`2d` by inner product and :math:`3d` by
squared distance. Comparisons are no operations: they show in the bytes.

==========================  =======================================================================================
structure                   one search of a vector, ``ndis`` stored entries visited
==========================  =======================================================================================
Flat                        ``n`` pairs; from four queries up, and in a large store, a shortlist of each, somewhat
                            longer than ``k``, once more one by one (:func:`retrieval.flat.margin`; longer where near
                            ties ask for it)
SQ8, SQ6, SQ4               ``n`` pairs, and ``4d`` to decode each entry; none for fp16, bf16 and direct 8-bit codes
PQ{M}x{b}                   a table of ``M`` x ``2^b`` pairs of parts + ``M`` additions for each of ``n`` entries
PQ{M}x4fs (fast-scan)       the same, the additions on integers
RaBitQ                      ``7d`` (L2) or ``11d`` (IP) for a query's factors, ``d`` of them on integers; for each of
                            ``n`` entries ``d`` additions on integers, and 8 (L2) or 10 (IP) operations on floats
IVF,<any of these>          the coarse quantizer's search (Flat, with ``nprobe`` for ``k``), and what ``ndis`` entries
                            in place of ``n`` cost above
IVF,RaBitQ                  the same, but the factors are made for each list visited
IVF,PQ and PQ fsr, by L2    codes are of residuals: a query's table, here of inner products (``2 d 2^b``), is joined
                            with each list's own, ``2 M 2^b``; where FAISS keeps none of these because they would take
                            over 2 GiB, a residual (``d``) and a table for each list instead
IVF{n}_HNSW{M} (coarse)     as HNSW, with :attr:`retrieval.Index.ef` candidates
IMI (coarse)                ``M`` x ``2^b`` pairs of sub-vectors
HNSW                        ``ndis + 1`` pairs (SQ: and ``4d`` each; PQ: a table, and ``M`` each)
PCA, RR, OPQ (in front)     ``2 d_in d_out``, and ``d_out`` for a bias
ITQ (in front)              ``4 d_in`` to centre and normalise + ``2 d_in d_out``
L2norm, Pad (in front)      ``3 d_in``; nothing
RFlat, Refine(SQ8) (behind) a pair (SQ: and ``4d``) for each candidate found, of which there are up to ``k k_factor``
==========================  =======================================================================================

``ndis`` is FAISS's own count for IVF and HNSW. For Flat, SQ, PQ and RaBitQ alone it is all that is stored; for what is
in front and behind it follows from the call. NSG, RaBitQ of several bits or with fast-scan, LSH and binary indexes are
refused: what a search of theirs visits is counted nowhere.

Integers. An addition of integers is one operation like an addition of floats, so that no structure looks free; how
many of the operations are of that kind is said in ``intops``. A processor makes 32 to 512 of them at once: there the
FLOPs are an upper bound and the bytes are the cost.

Bytes. *Read*: each code that is compared, with the id (8 bytes) or the link (4) by which it is found; where a block of
256 queries is one product of matrices (Flat, centroids), each matrix once. *Written*: tables made for a query, vectors
transformed. *Random*: the part of the bytes read and written that lies where the data says: vectors visited in a graph,
those of a shortlist, and rows that a refinement looks up. A scan is sequential, and so is an inverted list from its
first entry to its last. One bill on every machine: what a copy in half the bits takes (:mod:`retrieval.halves`) and
what it saves are not on it.
Results are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from retrieval.kinds import FLAT, fast_scan, product_quantizer, scaled, unwrap
from retrieval.runtime import counters_lock, faiss

__all__ = [
    "ScanWork",
    "Visits",
    "Work",
    "code_work",
    "counted_search",
    "pair",
    "scan_work",
    "search_work",
    "step_work",
    "table",
    "transform_work",
]


@dataclass(slots=True)
class Work:
    """Operations and bytes, as exact integers.

    Args:
        flops: Arithmetic operations, those on integers included.
        bytes_read: Bytes read.
        bytes_written: Bytes written.
        bytes_random: The part of both that is at addresses which the data decides.
        intops: The part of ``flops`` made on integers.
    """

    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_random: int = 0
    intops: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def counts(self) -> dict[str, int]:
        """As :class:`retrieval.Neighbors` takes them."""
        names = ("flops", "bytes", "bytes_written", "bytes_random", "intops")
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.bytes_random + other.bytes_random,
            self.intops + other.intops,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.flops * times,
            self.bytes_read * times,
            self.bytes_written * times,
            self.bytes_random * times,
            self.intops * times,
        )


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


def pair(index: Any, d: int | None = None) -> int:
    """Operations of comparing two vectors by an index's metric."""
    return (2 if index.metric_type == faiss.METRIC_INNER_PRODUCT else 3) * (index.d if d is None else d)


def table(index: Any, per_dimension: int) -> Work:
    """Comparing one vector's parts with the whole code book of a product quantizer."""
    pq = index.pq
    return Work(pq.M * pq.ksub * pq.dsub * per_dimension, bytes_written=4 * pq.M * pq.ksub)


def code_work(index: Any) -> Work:
    """Comparing a query with one stored code, tables and factors made before."""
    size = index.code_size
    if product_quantizer(index):
        return Work(index.pq.M, size, intops=index.pq.M if fast_scan(index) else 0)
    if hasattr(index, "rabitq"):
        inner = index.metric_type == faiss.METRIC_INNER_PRODUCT
        return Work(index.d + (10 if inner else 8), size, intops=index.d)
    return Work(pair(index) + (4 * index.d if hasattr(index, "sq") and scaled(index) else 0), size)


def search_work(index: Any, n: int, k: int, visits: Visits, *, coarse: bool = True) -> Work:
    """Work of a search of ``n`` vectors for ``k`` neighbours, in front of and behind an inner index left out.

    Args:
        index: The FAISS index.
        n: Number of queries.
        k: Neighbours per query.
        visits: FAISS's own counts of that call; of what comes behind, the candidates it was given.
        coarse: Whether the call chose the lists itself.
    """
    index = unwrap(index)
    if isinstance(index, faiss.IndexRefine):  # what comes behind its base index
        return _scattered(code_work(unwrap(index.refine_index))) * visits.entries
    if isinstance(index, faiss.MultiIndexQuantizer):
        parts = table(index, pair(index, 1))
        return Work(parts.flops, 4 * index.pq.ksub * index.d) * n
    if isinstance(index, FLAT):
        return Work(pair(index) * n * index.ntotal, 4 * index.d * (n + index.ntotal))
    if isinstance(index, faiss.IndexHNSW):
        storage = unwrap(index.storage)
        each = code_work(storage) + Work(bytes_read=4)
        return _queries(storage)[0] * n + _scattered(each) * (visits.hops + n)
    scan = scan_work(index)
    if not isinstance(index, faiss.IndexIVF):
        return scan.of(n, 0, n * index.ntotal)
    work = Work()
    if coarse:
        # With a graph for a quantizer all its visits are coarse ones.
        work += search_work(index.quantizer, n, int(index.nprobe), visits)
    return work + scan.of(n, visits.lists, visits.entries)


class ScanWork(NamedTuple):
    """What comparing with codes takes: of each query, of each list it visits, and of each entry there."""

    query: Work
    visit: Work
    entry: Work

    def of(self, queries: int, lists: int, entries: int) -> Work:
        """Of as many."""
        a, b, c = self
        return Work(
            a.flops * queries + b.flops * lists + c.flops * entries,
            a.bytes_read * queries + b.bytes_read * lists + c.bytes_read * entries,
            a.bytes_written * queries + b.bytes_written * lists + c.bytes_written * entries,
            a.bytes_random * queries + b.bytes_random * lists + c.bytes_random * entries,
            a.intops * queries + b.intops * lists + c.intops * entries,
        )


def scan_work(index: Any) -> ScanWork:
    """Of codes, alone or in inverted lists.

    Args:
        index: The FAISS index, trained.
    """
    # An entry's id is read with its code.
    lists = isinstance(index, faiss.IndexIVF)
    return ScanWork(*_queries(index), code_work(index) + Work(bytes_read=8 if lists else 0))


def _scattered(work: Work) -> Work:
    """The same work, all of whose bytes lie where the data says."""
    return Work(work.flops, work.bytes_read, work.bytes_written, work.bytes, work.intops)


def _queries(index: Any) -> tuple[Work, Work]:
    """What is made of a query before codes are compared: once, and again in each list."""
    inner = index.metric_type == faiss.METRIC_INNER_PRODUCT
    if hasattr(index, "rabitq"):
        # Distance to the centre, the difference, its rounding and the sum of that; by IP also both inner products.
        factors = Work((11 if inner else 7) * index.d, 4 * index.d, intops=index.d)
        return (Work(), factors) if isinstance(index, faiss.IndexIVF) else (factors, Work())
    if not product_quantizer(index):
        return Work(), Work()
    if inner or not getattr(index, "by_residual", False):
        return table(index, pair(index, 1)), Work()
    if index.use_precomputed_table > 0:
        size = index.pq.M * index.pq.ksub
        return table(index, 2), Work(2 * size, 4 * size, 4 * size)
    return Work(), Work(index.d) + table(index, 3)


def transform_work(index: Any) -> Work:
    """Work of what an index does to one vector before it looks at it."""
    steps = (faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size()))
    return sum(map(step_work, steps), Work())


def step_work(step: Any) -> Work:
    """Work of one transformation of one vector."""
    moved = Work(0, 4 * step.d_in, 4 * step.d_out)
    if isinstance(step, faiss.NormalizationTransform):
        return Work(3 * step.d_in) + moved
    if isinstance(step, faiss.RemapDimensionsTransform):
        return moved
    product = 2 * step.d_in * step.d_out
    if isinstance(step, faiss.ITQTransform):
        return Work(4 * step.d_in + product) + moved
    return Work(product + step.d_out * step.have_bias) + moved
