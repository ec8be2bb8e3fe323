"""Exact search: the same answer from every kernel, every shape of a batch and every number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import Index
from retrieval.exact import Metric
from retrieval.flat import FlatSearch, settle
from retrieval.runtime import faiss, threads


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def pairs(queries: np.ndarray, keys: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores by FAISS's own function for one pair, one pair at a time."""
    compare = faiss.fvec_inner_product if metric == "ip" else faiss.fvec_L2sqr
    sign = 1 if metric == "ip" else -1
    return np.array(
        [
            [sign * compare(faiss.swig_ptr(q), faiss.swig_ptr(x), len(q)) for x in keys]
            for q in map(np.ascontiguousarray, queries)
        ],
        np.float32,
    )


def by_hand(queries: np.ndarray, keys: np.ndarray, k: int, metric: Metric) -> list[list[tuple[float, int]]]:
    scores = pairs(queries, keys, metric)
    return [sorted((-float(s), i) for i, s in enumerate(row))[:k] for row in scores]


@pytest.mark.parametrize("metric", ["ip", "l2"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 120),
    copies=st.integers(1, 30),
    noise=st.sampled_from([0.0, 1e-8, 1e-6]),
    k=st.integers(1, 40),
    batch=st.integers(1, 9),
)
def test_near_ties_are_told_apart_bit_by_bit(metric, seed, n, copies, noise, k, batch):
    """Crowds of entries that are equal, or differ by less than a matrix product rounds."""
    crowd = np.repeat(vectors(n, 24, seed), copies, axis=0)
    keys = np.random.default_rng(seed).permutation(crowd + noise * vectors(len(crowd), 24, seed + 1))
    queries = vectors(batch, 24, seed + 2)
    found = Index("Flat", metric).add(torch.from_numpy(keys)).search(torch.from_numpy(queries), k)
    expected = by_hand(queries, keys, k, metric)
    for row, scores, ids, mask in zip(expected, found.scores, found.ids, found.mask, strict=True):
        there = list(zip((-scores[mask]).tolist(), ids[mask].tolist(), strict=True))
        assert there == row


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_batch_and_threads_change_no_bit(metric):
    keys, queries = torch.from_numpy(vectors(5000, 64)), torch.from_numpy(vectors(600, 64, 1))
    index = Index("Flat", metric).add(keys)
    whole = index.search(queries, 10)
    for size in (1, 2, 3, 4, 5, 100):
        for part, at in zip(queries[:200].split(size), torch.arange(200).split(size), strict=True):
            found = index.search(part, 10)
            assert torch.equal(found.ids, whole.ids[at])
            assert torch.equal(found.scores, whole.scores[at])
    with threads(2):
        again = index.search(queries, 10)
    assert torch.equal(again.ids, whole.ids)
    assert torch.equal(again.scores, whole.scores)


def test_far_from_the_origin_squared_distances_cancel():
    keys = vectors(3000, 16) * 1e-2 + 1000
    queries = keys[:50] + 1e-3
    found = Index("Flat", "l2").add(torch.from_numpy(keys)).search(torch.from_numpy(queries), 5)
    for row, ids in zip(by_hand(queries, keys, 5, "l2"), found.ids, strict=True):
        assert [i for _, i in row] == ids.tolist()


def test_a_store_that_grows_is_bounded_anew():
    raw = faiss.IndexFlatIP(8)
    search = FlatSearch(raw)
    for scale in (1.0, 100.0):
        raw.add(vectors(500, 8) * np.float32(scale))
        expected = by_hand(
            vectors(3, 8, 5), faiss.rev_swig_ptr(raw.get_xb(), raw.ntotal * 8).reshape(-1, 8), 4, "ip"
        )
        _, ids, _ = search(vectors(3, 8, 5), 4)
        assert [[i for _, i in row] for row in expected] == ids.tolist()


def test_a_list_that_does_not_settle_is_made_longer():
    """All entries are equal, so nothing short of everything can tell which ids come first."""
    lengths = []

    def shortlist(rows: np.ndarray, length: int):
        lengths.append((len(rows), length))
        backwards = np.arange(1000)[::-1][:length]
        return (
            np.ones((len(rows), length), np.float32),
            np.tile(backwards, (len(rows), 1)),
            np.ones(len(rows)),
        )

    scores, ids, listed = settle(shortlist, 2, 1000, 4, lambda: np.zeros(2))
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert lengths == [(2, 12), (2, 48), (2, 192), (2, 768), (2, 1000)]
    assert listed == 2 * sum(length for _, length in lengths)
    assert (scores == 1).all()


def test_what_is_looked_up_again_is_billed():
    keys = torch.from_numpy(vectors(1000, 16))
    apart = Index("Flat").add(keys).search(keys[:4], 5)
    assert apart.flops == 4 * (1000 + 13) * 32
    assert apart.bytes_random == 4 * 13 * 64
    crowd = Index("Flat").add(keys[:1].expand(1000, -1))
    close = crowd.search(keys[:4], 5)
    assert close.ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    # Lists of 13, 52 and 208, each out of a search of everything; then all 1000, one by one.
    assert close.flops == 4 * (3 * 1000 + 13 + 52 + 208 + 1000) * 32


def test_few_queries_are_compared_once():
    """FAISS takes them one pair at a time, so its scores are exact; ties alone make it look again."""
    keys = torch.from_numpy(vectors(1000, 16))
    apart = Index("Flat").add(keys).search(keys[:3], 5)
    assert apart.flops == 3 * 1000 * 32
    assert (apart.bytes, apart.bytes_random) == (1003 * 64, 0)
    crowd = Index("Flat").add(keys[:1].expand(1000, -1))
    close = crowd.search(keys[:3], 5)
    assert close.ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert close.flops == 3 * (3 * 1000 + 1000) * 32


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("scale", [1e-22, 2.0**-72, 1.0, 1e18, 1e19, 3e19])
def test_too_small_and_too_large_numbers(metric, scale):
    """Products that are no normal numbers, and squares that are no finite ones though differences are."""
    keys = vectors(300, 8) * np.float32(scale * (1 if scale < 1 or metric == "ip" else 1e-3)) + np.float32(
        scale if metric == "l2" and scale > 1 else 0
    )
    queries = np.concatenate([keys[:10], vectors(10, 8, 1) * np.float32(scale)])
    index = Index("Flat", metric).add(torch.from_numpy(keys))
    found = index.search(torch.from_numpy(queries), 6)
    scores = pairs(queries, keys, metric)
    for i, row in enumerate(scores):
        expected = sorted((-float(s), j) for j, s in enumerate(row) if np.isfinite(s))[:6]
        assert found.ids[i][found.mask[i]].tolist() == [j for _, j in expected]
        alone = index.search(torch.from_numpy(queries[i : i + 1]), 6)
        assert torch.equal(alone.ids[0], found.ids[i])
        assert torch.equal(alone.scores[0], found.scores[i])


def test_queries_that_tell_nothing_apart_cost_a_scan_not_a_sort():
    """A batch padded with zeros: each of them is as near to everything."""
    index = Index("Flat").add(torch.from_numpy(vectors(5000, 16)))
    found = index.search(torch.zeros(3, 16), 4)
    assert found.ids.tolist() == [[0, 1, 2, 3]] * 3
    assert found.flops == 3 * (3 * 5000 + 5000) * 32
