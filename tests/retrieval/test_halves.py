"""Shortlists in half the bits: the search finds to the last bit what it finds without them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import Index, halves
from retrieval.exact import Metric
from retrieval.flat import FlatSearch
from retrieval.halves import Halves
from retrieval.neighbors import Neighbors
from retrieval.runtime import threads

METRICS: list[Metric] = ["ip", "l2"]


@pytest.fixture(autouse=True)
def _small_stores_too(monkeypatch):
    """On every machine and at every size: products of bfloat16 are only slower where no instruction makes them."""
    monkeypatch.setattr(halves, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(halves, "_SCAN", 1)
    monkeypatch.setattr(halves, "_PRODUCT", 1)


def vectors(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def without(index: Index, queries: torch.Tensor, k: int) -> Neighbors:
    """The same search by FAISS alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Halves, "way", lambda *_: "none")
        return index.search(queries, k)


def same(index: Index, queries: torch.Tensor, k: int) -> None:
    found, expected = index.search(queries, k), without(index, queries, k)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.mask, expected.mask)


def used(index: Index, n: int, k: int) -> str:
    return Halves(index._index).way(n, k, len(index))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [8, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_finds_what_is_found_without(metric, d, scale, shift):
    index = Index("Flat", metric).add(scale * (vectors(5003, d) + shift))
    queries = scale * (vectors(300, d, 1) + shift)
    assert used(index, 1, 10) == "scan"
    assert used(index, 300, 10) == "products"
    for n in (1, 3, 5, 6, 300):
        for k in (1, 10):
            same(index, queries[:n], k)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(100, 400),
    copies=st.integers(1, 30),
    noise=st.sampled_from([0.0, 1e-6, 1e-3, 1e-2]),
    k=st.integers(1, 5),
    batch=st.integers(1, 9),
)
def test_crowds_of_near_ties(metric, seed, n, copies, noise, k, batch):
    crowd = vectors(n, 16, seed).repeat_interleave(copies, 0)
    keys = crowd + noise * vectors(len(crowd), 16, seed + 1)
    index = Index("Flat", metric).add(keys[torch.randperm(len(keys))])
    same(index, vectors(batch, 16, seed + 2), k)


@pytest.mark.parametrize("metric", METRICS)
def test_several_products(metric, monkeypatch):
    """The bound is raised from one product to the next; where it is not positive, too."""
    monkeypatch.setattr(halves, "_SCORES", 1 << 15)
    keys = vectors(4099, 24)
    queries = vectors(40, 24, 1)
    index = Index("Flat", metric).add(keys)
    assert used(index, 40, 20) == "products"
    same(index, queries, 20)
    # All inner products negative: the bits of negative numbers are in the opposite order.
    away = Index("Flat", metric).add(keys.abs())
    same(away, -queries.abs(), 20)


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_to_which_all_is_as_near_is_left_to_faiss(metric):
    keys = torch.nn.functional.normalize(vectors(9000, 16), dim=1)
    index = Index("Flat", metric).add(keys)
    queries = vectors(10, 16, 1)
    queries[3] = 0
    _, lost = _grown(index).products(queries.numpy(), 4)
    assert lost.tolist() == [i == 3 for i in range(10)]
    same(index, queries, 4)
    same(Index("Flat", metric).add(keys[:1].expand(9000, -1)), queries, 4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e18, 1e30])
def test_numbers_at_the_ends_of_the_range(metric, size):
    keys = vectors(3000, 16)
    keys[7] *= size
    queries = vectors(8, 16, 1)
    queries[2] *= size
    index = Index("Flat", metric).add(keys)
    for n in (1, 3, 8):
        same(index, queries[:n], 5)
        same(Index("Flat", metric).add(size * vectors(3000, 16)), queries[:n], 5)


def test_what_was_added_later_is_found():
    index = Index("Flat").add(vectors(3000, 16))
    for seed in (1, 2):
        same(index, vectors(8, 16, 5), 4)
        # The longest vector decides how far rounding goes.
        index.add(100 * seed * vectors(500, 16, seed))
    same(index, vectors(8, 16, 5), 4)
    same(index, vectors(2, 16, 5), 4)


def _grown(index: Index) -> Halves:
    found = Halves(index._index)
    found._grow()
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_behind_a_scan_is_nearer_than_it_says(metric):
    keys, queries = 3 * vectors(3000, 64), vectors(5, 64, 1)
    index = Index("Flat", metric).add(keys)
    most, ids = _grown(index).scan(queries.numpy(), 50)
    exact = queries.double() @ keys.double().T
    if metric == "l2":
        exact = -(torch.cdist(queries.double(), keys.double()) ** 2)
    exact.scatter_(1, torch.from_numpy(ids), -torch.inf)
    rest = exact.amax(1)
    assert (rest <= torch.tensor(most)).all()
    # And it says little more than that.
    assert (torch.tensor(most) - rest <= 0.02 * exact[exact.isfinite()].abs().max()).all()


def test_a_scan_allows_for_rounded_queries():
    """As FAISS rounds them where a processor multiplies bfloat16."""
    keys, queries = vectors(3000, 64), vectors(3, 64, 1)
    index = Index("Flat").add(keys)
    most, ids = _grown(index).scan(queries.numpy(), 20)
    last = (queries.bfloat16().double() @ keys.bfloat16().double().T).gather(1, torch.from_numpy(ids))[:, -1]
    lost = (queries - queries.bfloat16().float()).norm(dim=1) * keys.norm(dim=1).max()
    assert (torch.tensor(most) >= last - 1e-3 + 0.9 * lost).all()


def test_bills_are_those_of_whole_numbers():
    keys = vectors(3000, 16)
    index = Index("Flat").add(keys)
    length, size = 5 + 8, 4 * 16
    for n in (2, 9, 300):
        for found in (index.search(vectors(n, 16, 1), 5), index.search(vectors(n, 16, 2), 5)):
            assert found.flops == n * (3000 + length) * 32
            assert (found.bytes, found.bytes_random) == (size * (n + n * length + 3000), size * n * length)


def test_one_bill_with_and_without_instructions_for_it(monkeypatch):
    index = Index("Flat", "l2").add(vectors(3000, 16))
    bills = []
    for half in (True, False):
        monkeypatch.setattr(halves, "multiplies_bfloat16", lambda half=half: half)
        bills.append([index.search(vectors(n, 16, 1), 5).work for n in (1, 3, 9, 300)])
    assert bills[0] == bills[1]


def test_where_no_copy_is_made(tmp_path, monkeypatch):
    index = Index("Flat").add(vectors(3000, 16))
    assert Halves.fit(index._index)
    index.save(tmp_path / "store")
    mapped = Index.open(tmp_path / "store", mmap=True)
    assert FlatSearch(mapped._index)._halves is None
    same(mapped, vectors(9, 16, 1), 5)
    odd = Index("Flat").add(vectors(3000, 12))
    assert not Halves.fit(odd._index)
    same(odd, vectors(9, 12, 1), 5)
    # k so large that a product has no groups enough, and a machine without products of bfloat16.
    assert used(index, 9, 500) == "none"
    same(index, vectors(9, 16, 1), 500)
    monkeypatch.setattr(halves, "multiplies_bfloat16", lambda: False)
    assert used(index, 9, 5) == "none"
    assert used(index, 5, 5) == "scan"


def test_codes_are_those_torch_makes():
    """FAISS rounds halves up and torch to even; nothing else may differ."""
    keys = vectors(3000, 16)
    index = Index("Flat").add(keys)
    grown = _grown(index)
    copy = grown._matrix()
    assert (copy.float() - keys).abs().le((keys.bfloat16().float() - keys).abs()).all()
    assert copy.dtype == torch.bfloat16


@pytest.mark.parametrize("stored", [5000, 20000])
@pytest.mark.parametrize("small", [True, False])
def test_batch_and_threads_change_no_bit(stored, small, monkeypatch):
    """Fewer queries than threads too, whose scans FAISS shares out, adding up in another order."""
    if small:
        monkeypatch.setattr(halves, "_SCAN", 1 << 40)
    index = Index("Flat").add(vectors(stored, 64))
    queries = vectors(300, 64, 1)
    whole = index.search(queries, 10)
    for n in (1, 2, 4):
        with threads(n):
            for size in (1, 2, 7, 100):
                for part, at in zip(queries.split(size), torch.arange(300).split(size), strict=True):
                    found = index.search(part, 10)
                    assert torch.equal(found.ids, whole.ids[at])
                    assert torch.equal(found.scores, whole.scores[at])
                    assert found.flops == index.search(part, 10).flops


def test_one_query_has_one_bill_with_any_number_of_threads():
    index = Index("Flat").add(vectors(20000, 64))
    bills = []
    for n in (1, 2):
        with threads(n):
            bills.append(index.search(vectors(1, 64, 1), 10).work)
    assert bills[0] == bills[1]


def test_queries_of_which_none_is_a_number():
    index = Index("Flat").add(vectors(3000, 16))
    for n in (1, 9):
        assert not index.search(torch.full((n, 16), torch.nan), 5).mask.any()


def test_a_search_for_inference_leaves_nothing_behind():
    index = Index("Flat").add(vectors(3000, 16))
    with torch.inference_mode():
        index.search(vectors(9, 16, 1), 5)
    same(index, vectors(9, 16, 1), 5)


def test_a_copy_that_was_stopped_is_made_anew(monkeypatch):
    index = Index("Flat").add(vectors(3000, 16))
    same(index, vectors(9, 16, 1), 5)
    index.add(1000 * vectors(50, 16, 3))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(halves.Halves, "_matrix", stopped)
        with pytest.raises(KeyboardInterrupt):
            index.search(vectors(2, 16, 1), 5)
    for n in (2, 9):
        same(index, vectors(n, 16, 1), 5)


def test_where_lists_are_never_enough_no_more_are_made(monkeypatch):
    keys = vectors(3000, 16)
    keys[5] *= 1e30
    index = Index("Flat").add(keys)
    for _ in range(5):
        same(index, vectors(2, 16, 1), 5)
    flat = FlatSearch(index._index)
    for _ in range(5):
        flat(vectors(2, 16, 1).numpy(), 5)
    monkeypatch.setattr(Halves, "scan", lambda *_: pytest.fail("made one more"))
    flat(vectors(2, 16, 1).numpy(), 5)
    # New vectors are looked at anew.
    assert flat._halves.way(2, 5, 3001) == "scan"
