from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from retrieval import Datastore, Index, audit
from retrieval.audit import recall
from retrieval.exact import exact_search


def keys_of(n: int = 600, d: int = 16, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def stored(path, keys: torch.Tensor, **settings) -> Datastore:
    return Datastore.build(path, [(keys, torch.arange(len(keys)).int())], dtype="float32", **settings)


def test_an_exact_store_has_nothing_to_hide(tmp_path):
    keys, queries = keys_of(), keys_of(50, seed=1)
    for store in (Index("Flat").add(keys), stored(tmp_path / "store", keys)):
        found = audit(store, queries, k=8, keys=keys)
        assert (found.recall, found.unreachable, found.drift, found.stale) == (1, 0, None, None)
        given = len(exact_search(queries, keys, 8).ids.unique())
        assert found.unused == pytest.approx(1 - given / 600)
        assert "100.00%" in str(found)


def test_a_poor_index_is_found_out(tmp_path):
    keys, queries = keys_of(3000), keys_of(100, seed=1)
    index = Index("IVF64,Flat", nprobe=1).add(keys)
    truth, found = exact_search(queries, keys, 8), index.search(queries, 8)
    by_hand = (found.ids[:, :, None] == truth.ids[:, None]).any(1).float().mean()
    assert audit(index, queries, k=8, keys=keys).recall == pytest.approx(float(by_hand), abs=0.01)
    assert by_hand < 0.7
    store = stored(tmp_path / "store", keys, factory="IVF64,Flat")
    store.nprobe = 1
    assert audit(store, queries, k=8).recall == pytest.approx(float(by_hand), abs=0.06)
    store.delete(store.ids()[:1000])
    assert audit(store, queries, k=8, sample=10).queries == 100


def test_dead_keys_are_found():
    """Codes of a few bits make other keys look nearer than a key to itself."""
    keys = keys_of(600)
    index = Index("PQ2x4", "l2").add(keys)
    found = index.search(keys, 1)
    by_hand = 1 - float((found.ids == torch.arange(600)[:, None]).any(1).float().mean())
    assert 0.1 < by_hand < 0.9
    assert audit(index, k=1, keys=keys, sample=600).unreachable == pytest.approx(by_hand)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_what_no_search_could_find_is_not_the_stores_fault(k):
    """By inner product a short key never wins against longer ones; and of many copies of a key any one will do."""
    short = keys_of(200).repeat(2, 1)
    short[:200] *= 0.1
    lengths = torch.rand(600, 1, generator=torch.Generator().manual_seed(2))
    for keys in (short, keys_of(20).repeat(100, 1), keys_of() * lengths):
        found = audit(Index("Flat").add(keys), k=k, keys=keys, encode=keys.__getitem__)
        assert (found.unreachable, found.recall, found.stale) == (0, 1, 0)


def test_an_exact_search_has_found_everything_where_scores_are_nearly_zero(tmp_path):
    keys = keys_of(300, 64)
    for k in (100, 150, 300):
        for queries in (keys, keys - keys.mean(0), 1e4 * keys_of(20, 64, seed=3)):
            assert audit(Index("Flat").add(keys), queries, keys=keys, k=k).recall == 1
    assert audit(stored(tmp_path / "store", keys), k=150).recall == 1


def test_an_encoder_that_moved_on_is_found_out(tmp_path):
    keys = keys_of(500)
    store = stored(tmp_path / "store", keys)
    same = audit(store, k=3, encode=lambda ids: keys[ids])
    assert same.drift == pytest.approx(0, abs=0.05)
    assert same.stale == 0
    turned = torch.stack([keys[:, 1], -keys[:, 0], *keys.T[2:]], 1)
    moved = audit(store, k=3, encode=lambda ids: turned[ids])
    angle = torch.nn.functional.cosine_similarity(keys, turned).acos().rad2deg().mean()
    assert moved.drift == pytest.approx(float(angle), rel=1e-3)
    assert audit(store, k=3, encode=lambda ids: keys.flip(0)[ids]).stale > 0.9
    assert "drift" in str(moved)
    assert "drift" not in str(audit(store))


def test_recall_counts_what_is_as_near():
    keys = keys_of(5).repeat_interleave(4, 0)
    queries = keys[:1]
    truth = exact_search(queries, keys, 2)
    other = exact_search(queries, keys, 4)
    swapped = type(other)(other.scores[:, 2:], other.ids[:, 2:], other.mask[:, 2:])
    assert not set(truth.ids[0].tolist()) & set(swapped.ids[0].tolist())
    assert recall(swapped, truth, queries, keys.__getitem__, "ip") == 1
    far = exact_search(-queries, keys, 2)
    assert recall(far, truth, queries, keys.__getitem__, "ip") == 0


def test_what_cannot_be_audited():
    with pytest.raises(ValueError, match="empty"):
        audit(Index("Flat"))
    with pytest.raises(ValueError, match="does not keep its vectors"):
        audit(Index("Flat").add(keys_of(10)))
    keys = keys_of(10)
    index = Index("Flat").add(keys)
    for name in ("k", "sample"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            audit(index, keys=keys, **{name: 0})
    with pytest.raises(ValueError, match="no queries"):
        audit(index, keys[:0], keys=keys)
    with pytest.raises(ValueError, match="query 1 has a value that is not finite"):
        audit(index, torch.stack([keys[0], keys[1] * torch.nan]), keys=keys)
