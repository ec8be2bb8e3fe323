from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from retrieval import Datastore, Index, audit
from retrieval.audit import pair_scores, recall
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
    """By inner product a short key never wins against longer ones of its direction: nothing finds it."""
    keys = keys_of(200).repeat(2, 1)
    keys[:200] *= 0.1
    found = audit(Index("Flat").add(keys), k=1, keys=keys, sample=400)
    assert found.unreachable == pytest.approx(0.5)
    assert found.recall == 1


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
    assert recall(swapped, truth, pair_scores(queries, keys[swapped.ids], "ip")) == 1
    far = exact_search(-queries, keys, 2)
    assert recall(far, truth, pair_scores(queries, keys[far.ids], "ip")) == 0


def test_what_cannot_be_audited():
    with pytest.raises(ValueError, match="empty"):
        audit(Index("Flat"))
    with pytest.raises(ValueError, match="does not keep its vectors"):
        audit(Index("Flat").add(keys_of(10)))
