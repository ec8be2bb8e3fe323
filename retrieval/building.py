r"""What FAISS does when it trains and adds, in floating-point operations and bytes.

It counts none of this itself but the searches of a graph that chooses lists; the rest is written down here.

Units and rules are those of :mod:`retrieval.work`; ``n`` is the number of vectors given.

==========================  =======================================================================================
structure                   training
==========================  =======================================================================================
Flat, HNSW, fp16, bf16      nothing
SQ8, SQ6, SQ4               no operation, only comparisons for the range of each dimension
IVF{n}                      k-means: ``niter`` (10) times pairs of ``min(n, 256 lists)`` vectors with all centroids
IVF{n}_HNSW{M}              the same by squared distance, and a graph of the centroids
k-means of ``k`` vectors    for ``k`` centroids, wherever it is done: no operation, the vectors are copied
PQ{M}x{b}                   k-means in each part, ``niter`` (25): ``3 d 2^b`` for each of ``min(n, 256 2^b)`` vectors
IVF{n},PQ, SQ and RaBitQ    where codes are of residuals, also the list and the residual of each vector of a sample:
                            ``256 2^b`` for PQ, 100,000 for SQ, all for RaBitQ. By L2 PQ also makes tables of all
                            centroids, ``2 d 2^b + 2 M 2^b`` each
IMI                         PQ of the centroids
HNSW{M}_PQ                  PQ, and a table of all pairs in its code book
RaBitQ                      the mean of all vectors (alone; in IVF there is one a list already)
PCA                         a covariance, ``2 n d^2``, and an eigendecomposition, ``10 d^3``
RR                          a random matrix made orthogonal, ``4 d_out^2 (d - d_out / 3)``, ``d`` the larger dimension
OPQ{M}                      ``niter`` (50) times: rotate, train PQ{M}x8 (40 iterations first, then 4), encode, compare,
                            multiply with the vectors, decompose (``21 d^3``), multiply; 65,536 vectors at most
ITQ                         centre and normalise, PCA, and ``max_iter`` (50) times: two products with the vectors, one
                            decomposition, one product of matrices
what is behind these        is trained on vectors that have been transformed, which is a search's price of doing so
==========================  =======================================================================================

Polysemous training, which FAISS switches on for PQ{M}x8 and PQ{M}x4 unless the factory string says ``np``, is switched
off by :class:`retrieval.Index`: it renumbers codes, for nine times what finding them has cost, and serves a filter that
no search here uses; no distance depends on it.

==========================  =======================================================================================
structure                   adding a vector
==========================  =======================================================================================
Flat, RFlat                 nothing but bytes
SQ8, SQ6, SQ4               ``4d`` to encode; none for fp16, bf16 and direct 8-bit codes
PQ{M}x{b} and fast-scan     ``3 d 2^b``
RaBitQ                      ``6d`` for a code's factors
IVF, IMI                    a search of the coarse quantizer for one list, ``d`` for a residual, encoding
HNSW{M}                     as many pairs as a search for it with ``efConstruction`` candidates visits in the finished
                            graph, times 1.12 (L2) or 1.45 (IP); PQ: ``3 d 2^b`` for a table
PCA, RR, OPQ, ITQ, L2norm   as in a search
==========================  =======================================================================================

The two factors are upper ends: counted instruction by instruction, inserting took 1.02 to 1.12 times such a search by
L2 and 1.03 to 1.45 times by inner product (256 to 5,000 random vectors of 16 to 64 dimensions, ``M`` of 16 and 32).

Bytes written are codes, ids, links and transformed vectors. An entry goes to the end of whichever list is its own and
links go to whichever vectors are near: both are random. Each comparison with a centroid reads that centroid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval.kinds import product_quantizer, scaled, unwrap
from retrieval.runtime import faiss
from retrieval.work import (
    Visits,
    Work,
    code_work,
    counted_search,
    pair,
    search_work,
    step_work,
    table,
    transform_work,
)

__all__ = ["add_work", "train_work"]

_SAMPLE = 256


def train_work(index: Any, n: int, visits: Visits) -> Work:
    """Work of training on ``n`` vectors, read off the trained index.

    Args:
        index: The FAISS index.
        n: Number of vectors.
        visits: FAISS's own counts of that call: of choosing lists through a graph.
    """
    index = unwrap(index)
    if isinstance(index, faiss.IndexPreTransform):
        steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        inner = train_work(index.index, n, visits)
        # Vectors are transformed for what is trained on them.
        passed = steps if inner.bytes else steps[:-1]
        work = sum((_train_step(step, n) for step in steps), inner)
        return sum((step_work(step) * n for step in passed), work)
    if isinstance(index, faiss.IndexRefine):
        return train_work(index.base_index, n, visits) + train_work(index.refine_index, n, visits)
    if isinstance(index, faiss.IndexHNSW):
        return _train_graph(index, n)
    if isinstance(index, faiss.IndexIVF):
        return _train_lists(index, n, visits)
    if hasattr(index, "pq"):
        return _train_pq(index.pq, n)
    if isinstance(index, faiss.IndexRaBitQ):
        return Work(index.d, 4 * index.d) * n
    return _read(index, n) if hasattr(index, "sq") and scaled(index) else Work()


def _read(index: Any, n: int) -> Work:
    return Work(0, 4 * n * index.d)


def _train_lists(index: Any, n: int, visits: Visits) -> Work:
    coarse = unwrap(index.quantizer)
    graph = isinstance(coarse, faiss.IndexHNSW)
    if isinstance(coarse, faiss.MultiIndexQuantizer):
        work = _train_pq(coarse.pq, n)
    else:
        # FAISS looks for centroids to be put into a graph by squared distance.
        work = _cluster(n, index.nlist, index.d, 3 * index.d if graph else pair(index), index.cp)
    if graph:
        centroids = coarse.reconstruct_n(0, index.nlist)
        work += add_work(coarse, index.nlist, centroids, Visits())
    limit = index.train_encoder_num_vectors()
    sample = min(n, limit) if limit > 0 else n
    if index.by_residual:
        work += search_work(coarse, sample, 1, visits) + Work(index.d, 4 * index.d, 4 * index.d) * sample
    if product_quantizer(index):
        work += _train_pq(index.pq, sample)
        if index.by_residual and index.use_precomputed_table > 0:
            rows = coarse.pq.ksub if isinstance(coarse, faiss.MultiIndexQuantizer) else index.nlist
            work += (table(index, 2) + Work(2 * index.pq.M * index.pq.ksub)) * rows
    elif hasattr(index, "sq") and scaled(index):
        work += _read(index, sample)
    return work


def _train_graph(index: Any, n: int) -> Work:
    storage = unwrap(index.storage)
    work = train_work(storage, n, Visits())
    if product_quantizer(storage):
        work += table(storage, 3) * storage.pq.ksub
    return work


def _train_pq(pq: Any, n: int, niter: int | None = None) -> Work:
    return _cluster(n, pq.ksub, pq.dsub, 3 * pq.dsub, pq.cp, niter) * pq.M


def _cluster(n: int, k: int, d: int, compare: int, options: Any, niter: int | None = None) -> Work:
    """k-means; as many vectors as centroids are not compared but are the centroids."""
    used = min(n, options.max_points_per_centroid * k)
    if used == k:
        return Work(0, 4 * d, 4 * d) * k
    return Work(compare, 4 * d) * ((options.niter if niter is None else niter) * used * k)


def _train_step(step: Any, n: int) -> Work:
    d, out = step.d_in, step.d_out
    if isinstance(step, faiss.PCAMatrix):
        return _train_pca(step, n)
    if isinstance(step, faiss.RandomRotationMatrix):
        return _orthogonal(max(d, out), out)
    if isinstance(step, faiss.OPQMatrix):
        return _train_opq(step, n)
    if isinstance(step, faiss.ITQTransform):
        n = min(n, max(d * step.max_train_per_dim, 32768))
        work = Work(5 * d, 8 * d, 4 * d) * n
        if step.do_pca:
            work += _train_pca(faiss.PCAMatrix(d, out), n) + Work(2 * d * out, 4 * d, 4 * out) * n
            work += Work(2 * d * out * out)
        turn = Work(4 * out * out, 16 * out, 16 * out) * n + Work(21 * out**3 + 2 * out**3)
        return work + _orthogonal(out, out) + turn * step.itq.max_iter
    return Work()


def _train_pca(step: Any, n: int) -> Work:
    d, out = step.d_in, step.d_out
    n = min(n, step.max_points_per_d * d)
    # Of fewer vectors than dimensions, their products with each other instead, from which axes are made.
    size = min(n, d)
    work = Work(2 * n * d * size + 10 * size**3, 4 * n * d)
    if n < d:
        work += Work(2 * n * n * d)
    if step.random_rotation:
        work += _orthogonal(out, out) + Work(2 * d * out * out)
    return work


def _train_opq(step: Any, n: int) -> Work:
    """Ge, He, Ke and Sun, Optimized Product Quantization, 2013, as FAISS does it."""
    n = min(n, step.max_train_points)
    d, out = max(step.d_in, step.d_out), step.d_out
    pq = step.pq if step.pq is not None else faiss.ProductQuantizer(out, step.M, 8)
    pq.cp.max_points_per_centroid = 1000
    work = Work(2 * step.d_in, 4 * step.d_in, 4 * d) * n + _orthogonal(d, d)
    for turn in range(step.niter):
        work += _train_pq(pq, n, step.niter_pq if turn else step.niter_pq_0)
        rotate = Work(2 * d * out, 4 * d, 4 * out)
        encode = Work(3 * out * pq.ksub + 3 * out, 4 * out, pq.code_size + 4 * out)
        correlate = Work(2 * d * out, 4 * (d + out))
        work += (rotate + encode + correlate) * n
        work += Work(_singular_values(d, out) + 2 * d * out * out)
    return work


def _orthogonal(rows: int, columns: int) -> Work:
    """Householder's QR of a random matrix and the product of its reflections (Golub and Van Loan, 5.2)."""
    return Work(4 * columns * columns * (3 * rows - columns) // 3, 0, 4 * rows * columns)


def _singular_values(rows: int, columns: int) -> int:
    """A singular value decomposition with both bases (Golub and Van Loan, 8.6: Golub-Reinsch)."""
    return 4 * rows * rows * columns + 8 * rows * columns * columns + 9 * columns**3


def add_work(index: Any, n: int, sample: np.ndarray, visits: Visits) -> Work:
    """Work of adding ``n`` vectors, read off the index they are in.

    Args:
        index: The FAISS index.
        n: Number of vectors.
        sample: Some of them, as they were given; a graph is searched for these.
        visits: FAISS's own counts of that call: of choosing lists through a graph.
    """
    index = unwrap(index)
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            sample = faiss.downcast_VectorTransform(index.chain.at(i)).apply(sample)
        return transform_work(index) * n + add_work(index.index, n, sample, visits)
    if isinstance(index, faiss.IndexRefine):
        return add_work(index.base_index, n, sample, visits) + add_work(index.refine_index, n, sample, visits)
    if isinstance(index, faiss.IndexHNSW):
        return add_work(index.storage, n, sample, visits) + _insert(index, n, sample)
    if not isinstance(index, faiss.IndexIVF):
        return _encode(index) * n
    code = _encode(index) + Work(bytes_written=8)
    code.bytes_random = code.bytes_written
    if getattr(index, "by_residual", False) and not hasattr(index, "rabitq"):
        code += Work(index.d)
    return search_work(index.quantizer, n, 1, visits) + code * n


def _encode(index: Any) -> Work:
    moved = Work(0, 4 * index.d, index.code_size)
    if hasattr(index, "rabitq"):
        return Work(6 * index.d) + moved
    if product_quantizer(index):
        return Work(3 * index.pq.ksub * index.d) + moved
    return Work(4 * index.d if hasattr(index, "sq") and scaled(index) else 0) + moved


def _insert(graph: Any, n: int, sample: np.ndarray) -> Work:
    """FAISS does not count insertions into a graph: searching for a sample as they do, times a known ratio."""
    sample = sample[:: max(1, len(sample) // _SAMPLE)]
    storage = unwrap(graph.storage)
    with counted_search() as visits:
        graph.search(sample, 1, params=faiss.SearchParametersHNSW(efSearch=graph.hnsw.efConstruction))
    percent = 112 if graph.metric_type == faiss.METRIC_L2 else 145
    compared = (visits.hops + len(sample)) * percent * n // (100 * len(sample))
    each = code_work(storage)
    work = Work(each.flops, each.bytes_read + 4, 0, each.bytes_read + 4) * compared
    if product_quantizer(storage):
        work += table(storage, 3) * n
    links = 4 * graph.hnsw.nb_neighbors(0)
    return work + Work(0, 0, links, links) * n
