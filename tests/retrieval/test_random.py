from __future__ import annotations

import numpy as np
import torch

from retrieval import Passages, RandomSource
from tests.retrieval.stores import windows


def test_neighbours_are_spread_over_the_store_and_do_not_depend_on_similarity():
    rng = np.random.default_rng(0)
    passages = Passages(rng.integers(1, 200, 5000).astype(np.uint16), np.arange(51) * 100, vocab_size=200)
    found = RandomSource(passages).search(torch.from_numpy(rng.integers(1, 200, (20, 50))), 16)
    assert found.mask.all()
    counts = np.bincount(found.ids.numpy().ravel() // 500, minlength=10)
    assert counts.min() > 0.8 * counts.mean()
    assert len(torch.unique(found.ids)) > 4000
    assert all(len(torch.unique(row)) == 16 for row in found.ids.reshape(-1, 16))
    own = passages.window(found.ids, 0, 0)[..., 0]
    assert (found.scores == 0).all()
    assert own.float().mean() > 80


def test_the_seed_and_the_context_decide():
    passages = windows(1, n=40)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 2, 3, 4]])
    one, other = RandomSource(passages), RandomSource(passages, seed=5)
    assert torch.equal(one.search(tokens, 4).ids, RandomSource(passages).search(tokens, 4).ids)
    assert not torch.equal(one.search(tokens, 4).ids, other.search(tokens, 4).ids)
    assert not torch.equal(one.search(tokens, 4).ids[0, -1], one.search(tokens, 4).ids[1, -1])
    assert one.fingerprint != other.fingerprint
    short = RandomSource(passages, depth=2).search(tokens, 4).ids
    assert torch.equal(short[0, -1], short[1, -1])
