"""Prices of searches, against counts by hand of what a search looks at. 1000 vectors of 16 dimensions, 30 queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from experiments.ledger import Ledger
from retrieval import ContextSource, Index, Passages
from retrieval.enrollment import enroll
from retrieval.exact import Metric
from retrieval.kinds import core
from retrieval.runtime import blas_threshold, faiss
from retrieval.work import Work

D, N, Q, K, LISTS, NPROBE = 16, 1000, 30, 5, 8, 3
PAIR = {"ip": 2 * D, "l2": 3 * D}
# Of vectors that are stored as they are eight more than wanted are compared a second time, pair by pair; of centroids
# four more.
TWICE, LISTS_TWICE = K + 8, NPROBE + 4


def vectors(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def built(factory: str, metric: Metric, ef: int = 64, k_factor: int = 1) -> Index:
    return Index(factory, metric, nprobe=NPROBE, ef=ef, k_factor=k_factor).add(vectors(N))


QUERIES = vectors(Q, seed=1)


def looked_into(index: Index, nprobe: int = NPROBE) -> int:
    """Entries in the lists that FAISS's coarse quantizer names for all queries."""
    lists = core(index._index)
    _, chosen = lists.quantizer.search(QUERIES.numpy(), nprobe)
    return sum(lists.invlists.list_size(int(at)) for at in chosen.ravel())


def table(parts: int, codes: int, per_dimension: int) -> int:
    return parts * codes * (D // parts) * per_dimension


# Operations a list, a query and an entry, integers among them, and bytes of a code.
CODES = [
    ("Flat", "ip", 0, 0, 32, 0, 64),
    ("Flat", "l2", 0, 0, 48, 0, 64),
    ("SQ8", "ip", 0, 0, 32 + 4 * D, 0, 16),
    ("SQ6", "l2", 0, 0, 48 + 4 * D, 0, 12),
    ("SQ4", "l2", 0, 0, 48 + 4 * D, 0, 8),
    ("SQfp16", "ip", 0, 0, 32, 0, 32),
    ("SQbf16", "l2", 0, 0, 48, 0, 32),
    ("PQ4x8np", "ip", 0, table(4, 256, 2), 4, 0, 4),
    ("PQ4x4np", "ip", 0, table(4, 16, 2), 4, 0, 2),
    # By L2 a query's inner products are made once and joined with a list's own table: a product and a sum each.
    ("PQ4x4np", "l2", 2 * 4 * 16, table(4, 16, 2), 4, 0, 2),
    ("PQ4x4fs", "ip", 0, table(4, 16, 2), 4, 4, 2),
    ("PQ4x4fs", "l2", 0, table(4, 16, 3), 4, 4, 2),
    ("PQ4x4fsr", "ip", 0, table(4, 16, 2), 4, 4, 2),
    ("PQ4x4fsr", "l2", 2 * 4 * 16, table(4, 16, 2), 4, 4, 2),
    # A query minus a centre, its length, its rounding (2) and the sum; by IP also two products.
    ("RaBitQ", "l2", (1 + 3 + 2 + 1) * D, 0, D + 8, D, 2 + 8),
    ("RaBitQ", "ip", (1 + 3 + 2 + 1 + 2 + 2) * D, 0, D + 10, D, 2 + 8),
]


@pytest.mark.parametrize(("codes", "metric", "a_list", "a_query", "an_entry", "integers", "size"), CODES)
def test_inverted_lists(codes, metric, a_list, a_query, an_entry, integers, size):
    index = built(f"IVF{LISTS},{codes}", metric)
    found, entries = index.search(QUERIES, K), looked_into(index)
    assert Q < entries < Q * N
    centroids = Q * (LISTS + LISTS_TWICE) * PAIR[metric]
    assert found.flops == centroids + Q * a_query + Q * NPROBE * a_list + entries * an_entry
    by_list = D if codes == "RaBitQ" else 0
    assert found.intops == entries * integers + Q * NPROBE * by_list
    # Queries and centroids once, then codes with ids of 8 bytes, one after the other.
    scanned = 4 * D * (Q + LISTS + Q * LISTS_TWICE) + entries * (size + 8)
    assert found.bytes_random == Q * LISTS_TWICE * 4 * D
    if a_list == a_query == 0:
        assert (found.bytes, found.bytes_written) == (scanned, 0)
    elif codes == "RaBitQ":
        assert (found.bytes, found.bytes_written) == (scanned + Q * NPROBE * 4 * D, 0)
    else:
        one = 4 * 4 * (256 if "x8" in codes else 16)
        more = NPROBE if a_list else 0
        assert found.bytes_written == Q * (1 + more) * one
        assert found.bytes == scanned + Q * (1 + 2 * more) * one


@pytest.mark.parametrize(
    ("codes", "metric", "_", "a_query", "an_entry", "integers", "size"),
    [row for row in CODES if row[0] != "PQ4x4fsr"],  # residuals need lists
)
def test_everything_stored(codes, metric, _, a_query, an_entry, integers, size):
    if codes == "RaBitQ":
        a_query = (7 if metric == "l2" else 11) * D
    elif codes == "PQ4x4np":  # nothing is subtracted from vectors, so a table of distances itself
        a_query = table(4, 16, PAIR[metric] // D)
    index = built(codes, metric)
    found = index.search(QUERIES, K)
    twice = TWICE if codes == "Flat" else 0
    assert found.flops == Q * (a_query + (N + twice) * an_entry)
    assert found.intops == Q * (N * integers + (D if codes == "RaBitQ" else 0))
    assert found.bytes_random == Q * twice * size
    if "SQ" in codes:
        assert found.bytes == Q * N * size


def test_a_table_a_list_where_faiss_keeps_none():
    index = built("IVF8,PQ4x4np", "l2")
    lists = core(index._index)
    lists.use_precomputed_table = -1
    lists.precompute_table()
    found, entries = index.search(QUERIES, K), looked_into(index)
    assert found.flops == Q * (LISTS + LISTS_TWICE) * 48 + Q * NPROBE * (D + table(4, 16, 3)) + entries * 4


def visited(index: Index, ef: int) -> int:
    """Vectors that FAISS's graph counts, and the one where each query enters."""
    faiss.cvar.hnsw_stats.reset()
    core(index._index).search(QUERIES.numpy(), K, params=faiss.SearchParametersHNSW(efSearch=ef))
    return faiss.cvar.hnsw_stats.ndis + Q


@pytest.mark.parametrize(
    ("factory", "metric", "a_query", "a_vector", "size"),
    [
        ("HNSW8", "ip", 0, 32, 64),
        ("HNSW8,Flat", "l2", 0, 48, 64),
        ("HNSW8_SQ8", "ip", 0, 32 + 4 * D, 16),
        ("HNSW8,SQ8", "l2", 0, 48 + 4 * D, 16),
        ("HNSW8,SQfp16", "l2", 0, 48, 32),
        ("HNSW8_PQ4x4np", "l2", table(4, 16, 3), 4, 2),
    ],
)
def test_graphs(factory, metric, a_query, a_vector, size):
    index = built(factory, metric, ef=20)
    found, vertices = index.search(QUERIES, K), visited(index, 20)
    assert Q * 20 < vertices < Q * N
    assert found.flops == Q * a_query + vertices * a_vector
    # A vertex is found by a link of 4 bytes and lies anywhere.
    assert found.bytes_random == vertices * (size + 4)
    assert found.bytes_written == (Q * 4 * 4 * 16 if a_query else 0)
    assert found.bytes == found.bytes_random + found.bytes_written


def test_lists_chosen_through_a_graph():
    index = Index("IVF32_HNSW4,Flat", "l2", nprobe=NPROBE, ef=10).add(vectors(N))
    found = index.search(QUERIES, K)
    graph = faiss.downcast_index(core(index._index).quantizer)
    assert graph.hnsw.efSearch == 10
    faiss.cvar.hnsw_stats.reset()
    entries = looked_into(index)
    vertices = faiss.cvar.hnsw_stats.ndis + Q
    assert found.flops == (vertices + entries) * 48
    assert found.bytes_random == vertices * (64 + 4)
    assert found.bytes == found.bytes_random + entries * (64 + 8)
    more = Index("IVF32_HNSW4,Flat", "l2", nprobe=NPROBE, ef=30).add(vectors(N)).search(QUERIES, K)
    assert more.bytes_random > found.bytes_random


def test_two_books_of_centroids():
    index = built("IMI2x3,SQ8", "l2")
    found, entries = index.search(QUERIES, K), looked_into(index)
    assert found.flops == Q * 2 * 8 * (D // 2) * 3 + entries * (48 + 4 * D)


@pytest.mark.parametrize(
    ("front", "left", "operations"),
    [
        ("PCA8", 8, 2 * 16 * 8 + 8),
        ("PCAR8", 8, 2 * 16 * 8 + 8),
        ("RR12", 12, 2 * 16 * 12),
        ("OPQ2_8", 8, 2 * 16 * 8),
        ("ITQ8", 8, 16 + 3 * 16 + 2 * 16 * 8),
        ("L2norm", 16, 3 * 16),
        ("Pad20", 20, 0),
    ],
)
def test_what_comes_in_front(front, left, operations):
    found = built(f"{front},Flat", "l2").search(QUERIES, K)
    assert found.flops == Q * operations + Q * (N + TWICE) * 3 * left
    assert found.bytes_written == Q * 4 * left
    assert found.bytes == Q * 4 * (16 + left) + 4 * left * (Q + N + Q * TWICE)


@pytest.mark.parametrize(
    ("behind", "a_pair", "size"),
    [
        ("RFlat", 32, 64),
        ("Refine(Flat)", 32, 64),
        ("Refine(SQ8)", 32 + 4 * D, 16),
        ("Refine(SQfp16)", 32, 32),
    ],
)
def test_what_comes_behind(behind, a_pair, size):
    index = built(f"IVF8,PQ4x4fs,{behind}", "ip", k_factor=3)
    found, entries = index.search(QUERIES, K), looked_into(index)
    assert (
        found.flops == Q * ((LISTS + LISTS_TWICE) * 32 + table(4, 16, 2)) + entries * 4 + Q * K * 3 * a_pair
    )
    assert found.bytes_random == Q * (LISTS_TWICE * 64 + K * 3 * size)


@pytest.mark.parametrize(("behind", "a_pair", "size"), [("RFlat", 32, 64), ("Refine(SQ8)", 32 + 4 * D, 16)])
def test_only_what_was_found_is_looked_at_again(behind, a_pair, size):
    """Where lists are short there are fewer candidates than are asked for."""
    index = Index(f"IVF200,Flat,{behind}", "ip", nprobe=1, k_factor=1).add(vectors(N))
    found = index.search(QUERIES, K)
    lists = core(index._index)
    lists.nprobe = 1
    short = lists.search(QUERIES.numpy(), K)[1]
    candidates, entries = int((short >= 0).sum()), looked_into(index, 1)
    assert Q < candidates < Q * K
    assert found.flops == Q * (200 + 5) * 32 + entries * 32 + candidates * a_pair
    assert found.bytes_random == Q * 5 * 64 + candidates * size
    assert torch.equal(found.mask.sum(), torch.tensor(candidates))
    exact = (QUERIES[:, None] * vectors(N)[found.ids.clamp(min=0)]).sum(-1)
    assert torch.allclose(found.scores[found.mask], exact[found.mask], atol=0.1)


KINDS = [
    *("Flat", "SQ8", "SQ4", "SQfp16", "PQ4x8np", "PQ4x4np", "PQ4x4fs", "RaBitQ"),
    *("IVF8,Flat", "IVF8,SQ8", "IVF8,SQ6", "IVF8,SQbf16", "IVF8,PQ4x4np", "IVF8,PQ4x4fs", "IVF8,PQ4x4fsr"),
    *("IVF8,RaBitQ", "IVF32_HNSW4,Flat", "IVF32_HNSW4,PQ4x4fsr", "IMI2x3,Flat", "RR,IVF8,RaBitQ,RFlat"),
    *("HNSW8", "HNSW8_SQ8", "HNSW8_PQ4x4np", "PCA8,HNSW8", "OPQ2_8,IVF8,PQ2x4fs", "ITQ8,Flat", "Pad20,Flat"),
    *("L2norm,Flat", "IVF8,PQ4x4fs,RFlat", "IVF8,SQ4,Refine(SQ8)", "PQ4x4fs,Refine(SQfp16)"),
]


@pytest.mark.parametrize("factory", KINDS)
def test_results_are_plain_faiss_results(factory):
    index = built(factory, "l2", ef=20)
    plain = faiss.index_factory(D, factory, faiss.METRIC_L2)
    inner = core(plain)
    if isinstance(inner, faiss.IndexIVF):
        inner.nprobe = NPROBE
        inner = faiss.downcast_index(inner.quantizer)
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = 20
    with blas_threshold(4 * D):
        plain.train(vectors(N).numpy())
        plain.add(vectors(N).numpy())
    distances, ids = plain.search(QUERIES.numpy(), K)
    found = index.search(QUERIES, K)
    np.testing.assert_allclose(-found.scores.numpy(), distances, rtol=1e-4, atol=1e-4)
    # Equal distances, of which quantized ones have many, come in another order.
    assert (found.ids.unsqueeze(-1) == torch.from_numpy(ids).unsqueeze(-2)).any(-1).float().mean() > 0.93


@pytest.mark.parametrize("factory", KINDS)
def test_a_ledger_bills_the_index_and_nothing_else(factory):
    index = built(factory, "l2", ef=20)
    with Ledger() as ledger:
        found = index.search(QUERIES, K)
    with FlopCounterMode(display=False) as counter:
        index.search(QUERIES, K)
    assert ledger.by_operator == {"mnemograph.search": found.flops}
    assert ledger.bytes == found.bytes > 0
    assert counter.get_total_flops() == found.flops
    price = flop_registry[torch.ops.mnemograph.search]
    read, written, scattered = price.bytes_formula([QUERIES], enroll(index), K)  # type: ignore[attr-defined]
    assert (read, written) == (found.bytes - found.bytes_written, found.bytes_written)
    assert scattered == found.bytes_random <= found.bytes


def test_a_batch_costs_what_its_queries_cost():
    """Blocks of queries are padded for matrix products; who pads them is not billed. Of three queries or fewer
    centroids are not compared twice."""
    queries = vectors(300, seed=2)
    for factory in ("IVF8,PQ4x4fsr", "IVF32_HNSW4,Flat", "HNSW8", "IVF8,RaBitQ", "IVF8,SQ4,Refine(SQ8)"):
        index = built(factory, "l2")
        parts = (index.search(some, K).flops for some in queries.split([4, 17, 200, 79]))
        assert index.search(queries, K).flops == sum(parts), factory


def test_a_source_seeks_what_it_scores():
    rng = np.random.default_rng(0)
    passages = Passages(
        (rng.zipf(1.3, 20000) % 97).astype(np.uint16), np.arange(0, 20001, 1000), vocab_size=97
    )
    source = ContextSource(passages, shortlist=16)
    found = source.search(torch.from_numpy(rng.integers(0, 97, (4, 50))), 4)
    # A query's shortlist of 16 contexts: a row of the text and one of the table of similarities for each token.
    assert found.bytes_random == 200 * 16 * source.depth * 8
    codes = source.encoder.n_codes
    assert found.intops % codes == 0
    assert 200 * codes < found.intops < found.flops
    assert found.bytes_written == 200 * (4 * source.encoder.dimensions + 4 * 16 * codes)


def test_work_adds_up():
    one, other = Work(10, 1, 2, 3, 4), Work(1, 1, 1, 1, 1)
    assert one + other == Work(11, 2, 3, 4, 5)
    assert one * 3 == Work(30, 3, 6, 9, 12)
    assert (one + other).bytes == 5
