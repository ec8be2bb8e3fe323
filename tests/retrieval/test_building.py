"""Prices of training and adding, against counts by hand. 1000 vectors of 16 dimensions."""

from __future__ import annotations

import pytest
import torch

from retrieval import Index
from retrieval.exact import Metric
from retrieval.kinds import core
from retrieval.runtime import faiss

D, N = 16, 1000
# k-means of FAISS: ten passes over all vectors with 8 centroids, 25 over the parts of a product quantizer.
EIGHT = {"ip": 10 * N * 8 * 32, "l2": 10 * N * 8 * 48}
PQ16 = 25 * N * 16 * 3 * D
NEAREST = {"ip": N * 8 * 32, "l2": N * 8 * 48}
RESIDUAL = N * D


def vectors(n: int = N, d: int = D, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


HAND = [
    ("Flat", "ip", None, 0),
    ("SQ8", "l2", 0, N * 4 * D),
    ("SQfp16", "l2", None, 0),
    ("PQ4x4np", "ip", PQ16, N * 16 * 3 * D),
    ("PQ4x4fs", "l2", PQ16, N * 16 * 3 * D),
    # 256 codes: all of the 1000 vectors, as up to 65536 would be.
    ("PQ2x8np", "l2", 25 * N * 256 * 3 * D, N * 256 * 3 * D),
    ("IVF8,Flat", "ip", EIGHT["ip"], NEAREST["ip"]),
    ("IVF8,Flat", "l2", EIGHT["l2"], NEAREST["l2"]),
    ("IVF8,SQ8", "l2", EIGHT["l2"] + NEAREST["l2"] + RESIDUAL, NEAREST["l2"] + RESIDUAL + N * 4 * D),
    ("IVF8,PQ4x4np", "ip", EIGHT["ip"] + NEAREST["ip"] + RESIDUAL + PQ16, NEAREST["ip"] + RESIDUAL + N * 16 * 3 * D),
    # By L2 a table of each of 8 centroids with the code book, joined with the code book's lengths.
    ("IVF8,PQ4x4np", "l2", EIGHT["l2"] + NEAREST["l2"] + RESIDUAL + PQ16 + 8 * (16 * 2 * D + 2 * 4 * 16), None),
    ("IVF8,PQ4x4fsr", "l2", EIGHT["l2"] + NEAREST["l2"] + RESIDUAL + PQ16 + 8 * (16 * 2 * D + 2 * 4 * 16), None),
    ("IVF8,PQ4x4fs", "l2", EIGHT["l2"] + PQ16, NEAREST["l2"] + N * 16 * 3 * D),
    ("RaBitQ", "l2", N * D, N * 6 * D),
    ("IVF8,RaBitQ", "ip", EIGHT["ip"] + NEAREST["ip"] + RESIDUAL, NEAREST["ip"] + N * 6 * D),
    ("IMI2x3,Flat", "l2", 25 * N * 8 * 3 * D, N * 2 * 8 * 3 * 8),
    ("RR12,Flat", "l2", 4 * 144 * 12, N * 2 * 16 * 12),
    ("PCA8,Flat", "l2", 2 * N * D**2 + 10 * D**3, N * (2 * D * 8 + 8)),
    # What is behind is trained on what comes out in front.
    ("PCA8,IVF8,Flat", "l2", 2 * N * D**2 + 10 * D**3 + N * (2 * D * 8 + 8) + 10 * N * 8 * 24, None),
    ("L2norm,Flat", "ip", None, N * 3 * D),
    ("Pad20,SQ8", "ip", 0, N * 4 * 20),
    ("IVF8,SQ4,Refine(SQ8)", "ip", EIGHT["ip"] + NEAREST["ip"] + RESIDUAL, NEAREST["ip"] + RESIDUAL + 2 * N * 4 * D),
    ("IVF8,Flat,RFlat", "ip", EIGHT["ip"], NEAREST["ip"]),
]  # fmt: skip


@pytest.mark.parametrize(("factory", "metric", "train", "add"), HAND)
def test_flops_by_hand(factory, metric, train, add):
    index = Index(factory, metric).add(vectors())
    assert index.flops.get("train") == train
    if add is not None:
        assert index.flops["add"] == add
    assert all(work.intops == 0 for work in index.work.values())


@pytest.mark.parametrize(
    ("factory", "read", "written", "scattered"),
    [
        ("Flat", 64, 64, 0),
        ("SQ8", 64, 16, 0),
        ("PQ4x4np", 64, 2, 0),
        ("RaBitQ", 64, 2 + 8, 0),
        ("Flat,RFlat", 128, 128, 0),
        ("SQ8,Refine(SQfp16)", 128, 16 + 32, 0),
        ("PCA8,Flat", 64 + 32, 32 + 32, 0),
        # A code and its id go to the end of the list that is nearest. Centroids are read once.
        ("IVF8,SQ8", 64 + 64, 16 + 8, 16 + 8),
        ("IVF8,PQ4x4fs", 64 + 64, 2 + 8, 2 + 8),
    ],
)
def test_bytes_of_adding_by_hand(factory, read, written, scattered):
    index = Index(factory, "l2").add(vectors())
    work = index.work["add"]
    centroids = 8 * 64 if "IVF" in factory else 0
    assert (work.bytes_read, work.bytes_written, work.bytes_random) == (
        N * read + centroids,
        N * written,
        N * scattered,
    )
    assert index.bytes["add"] == work.bytes


def test_training_samples_are_limited():
    """256 vectors a centroid, 256 a code word; of each list the residual of as many as the codes are trained on."""
    n = 5000
    few = Index("IVF8,PQ4x4np", "ip").train(vectors(n))
    coarse, codes = 10 * (256 * 8) * 8 * 32, 25 * (256 * 16) * 16 * 3 * D
    assert few.flops["train"] == coarse + (256 * 16) * (8 * 32 + D) + codes


@pytest.mark.parametrize(
    ("factory", "centroids", "d", "parts"),
    [("IVF64,Flat", 64, 16, 1), ("PQ4x4np", 16, 4, 4), ("IMI2x4,Flat", 16, 8, 2)],
)
def test_as_many_vectors_as_centroids_are_copied(factory, centroids, d, parts):
    clustering = faiss.Clustering(d, centroids)
    clustering.train(vectors(centroids, d).numpy(), faiss.IndexFlatL2(d))
    assert clustering.iteration_stats.size() == 1
    assert clustering.iteration_stats.at(0).obj == 0
    index = Index(factory, "l2").train(vectors(centroids))
    assert index.flops["train"] == 0
    assert index.work["train"].bytes_read == index.work["train"].bytes_written == 4 * d * centroids * parts
    more = Index(factory, "l2").train(vectors(centroids + 1))
    times = 25 if parts > 1 else 10
    assert more.flops["train"] == times * (centroids + 1) * centroids * 3 * d * parts


def test_building_is_billed_as_often_as_it_is_done():
    index = Index("IVF8,SQ8", "ip").train(vectors())
    train = index.flops["train"]
    index.add(vectors(400)).add(vectors(600, seed=1))
    assert index.flops == {"train": train, "add": NEAREST["ip"] + RESIDUAL + N * 4 * D}


def quantizer(index):
    index = faiss.downcast_index(index)
    return index if hasattr(index, "pq") else faiss.downcast_index(index.storage)


def test_polysemous_training_is_left_out():
    for factory in ("PQ4x4", "IVF8,PQ4x4", "HNSW8_PQ4x4"):
        index, plain = (Index(name, "l2").train(vectors()) for name in (factory, factory + "np"))
        assert quantizer(faiss.index_factory(D, factory)).do_polysemous_training is True
        assert quantizer(index._index).do_polysemous_training is False
        assert index.flops == plain.flops
        found, same = (each.add(vectors()).search(vectors(20, seed=1), 5) for each in (index, plain))
        assert torch.equal(found.scores, same.scores)


def compared(factory: str, metric: Metric) -> float:
    """Distances an insertion is billed for."""
    index = Index(factory, metric).add(vectors(2000, 32))
    each = (2 if metric == "ip" else 3) * 32
    return index.flops["add"] / (2000 * each)


# Distances an insertion of 2000 random vectors executed, counted instruction by instruction.
@pytest.mark.parametrize(
    ("factory", "metric", "executed"),
    [("HNSW16", "l2", 611), ("HNSW32", "l2", 1047), ("HNSW16", "ip", 746), ("HNSW32", "ip", 980)],
)
def test_inserting_into_a_graph(factory, metric, executed):
    assert executed < compared(factory, metric) < 1.5 * executed


def test_bytes_of_a_graph_are_random():
    index = Index("HNSW8", "l2").add(vectors())
    work = index.work["add"]
    insertions = work.flops // 48
    links = 4 * 2 * 8
    assert work.bytes_read == N * 64 + insertions * (64 + 4)
    assert work.bytes_written == N * (64 + links)
    assert work.bytes_random == insertions * (64 + 4) + N * links


def test_a_graph_of_codes():
    """Its code book is compared with itself once; each insertion makes a table and adds up four entries a vertex."""
    index = Index("HNSW8_PQ4x4np", "l2").add(vectors())
    assert index.flops["train"] == PQ16 + 4 * 16 * 16 * 3 * (D // 4)
    # A code of 2 bytes behind a link of 4, and the links of a vertex: the comparisons can be told from the bytes.
    compared, rest = divmod(index.work["add"].bytes_random - N * 4 * 2 * 8, 2 + 4)
    assert rest == 0
    assert N * 40 < compared < N * N
    encoded = tables = N * 16 * 3 * D
    assert index.flops["add"] == encoded + tables + compared * 4


def test_a_graph_in_front_of_lists():
    """k-means by squared distance, a graph of the centroids, and its searches, which FAISS counts."""
    index = Index("IVF32_HNSW4,Flat", "l2", ef=10).train(vectors(2000))
    graph = faiss.downcast_index(core(index._index).quantizer)
    centroids = torch.from_numpy(graph.reconstruct_n(0, 32))
    built = Index("HNSW4", "l2").add(centroids)
    assert index.flops["train"] == 10 * 2000 * 32 * 48 + built.flops["add"]
    index.add(vectors())
    faiss.cvar.hnsw_stats.reset()
    graph.search(vectors().numpy(), 1)
    assert index.flops["add"] == (faiss.cvar.hnsw_stats.ndis + N) * 48


def test_graphs_behind_a_projection():
    index = Index("PCA8,HNSW8", "l2").add(vectors())
    graph, rest = divmod(index.flops["add"] - N * (2 * D * 8 + 8), 3 * 8)
    assert rest == 0
    assert N * 40 < graph < N * N


def test_few_vectors_and_many_dimensions():
    """Axes are taken from the products of 50 vectors with each other."""
    index = Index("PCA4,Flat", "l2").train(vectors(50, 64))
    assert index.flops["train"] == 2 * 50 * 64 * 50 + 10 * 50**3 + 2 * 50 * 50 * 64


def test_a_rotation_for_codes():
    """FAISS's defaults: 50 turns, k-means of 40 iterations in the first of them and of 4 in the others."""
    n, d, codes = 300, 8, 256
    index = Index("OPQ2,Flat", "l2").train(vectors(n, d))
    rotate = product = 2 * d * d
    turn = n * (rotate + 3 * d * codes + 3 * d + product) + 21 * d**3 + 2 * d**3
    kmeans = (40 + 49 * 4) * n * codes * 3 * d
    assert index.flops["train"] == n * 2 * d + 4 * d * d * (3 * d - d) // 3 + kmeans + 50 * turn


def test_a_rotation_for_signs():
    n, out = 300, 8
    index = Index("ITQ8,Flat", "l2").train(vectors(n))
    centred = n * 5 * D
    axes = 2 * n * D**2 + 10 * D**3 + n * 2 * D * out + 2 * D * out * out
    turn = n * 2 * 2 * out * out + 21 * out**3 + 2 * out**3
    assert index.flops["train"] == centred + axes + 4 * out * out * (2 * out) // 3 + 50 * turn
