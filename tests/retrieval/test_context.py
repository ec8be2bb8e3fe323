from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import ContextEncoder, ContextSource, Passages
from retrieval.cells import Cells
from retrieval.source import query_context
from tests.retrieval.stores import contexts, queries, seen, windows


def text(n: int, vocab_size: int = 40, seed: int = 0) -> Passages:
    """A Markov chain: what follows is mostly told by the last two tokens."""
    rng = np.random.default_rng(seed)
    follows = rng.integers(1, vocab_size, (vocab_size, vocab_size, 2))
    tokens = np.ones(n, np.int64)
    for i in range(2, n):
        tokens[i] = follows[tokens[i - 2], tokens[i - 1], int(rng.random() < 0.3)]
    tokens[:: n // 20] = 0
    offsets = np.append(np.arange(0, n, n // 20), n)
    return Passages(tokens.astype(np.uint16), np.unique(offsets), vocab_size=vocab_size)


def padded(context: list[int], depth: int) -> np.ndarray:
    return np.array((context[::-1] + [-1] * depth)[:depth])


def naive(encoder: ContextEncoder, query: np.ndarray, stored: np.ndarray) -> float:
    """The kernel as its formula says it."""
    total = 0.0
    for weight, x, y in zip(encoder.weights, query, stored, strict=True):
        if x >= 0 and y >= 0:
            total += weight * (
                encoder.blend * float(encoder.vectors[x] @ encoder.vectors[y])
                + (1 - encoder.blend) * (x == y)
            )
    return total


def test_kernel_is_its_formula():
    passages = text(2000)
    encoder = ContextEncoder(passages)
    rng = np.random.default_rng(1)
    query, stored = rng.integers(-1, 40, (6, 12)), rng.integers(-1, 40, (6, 9, 12))
    score = encoder.kernel(encoder.rows(query), encoder.rows(stored[:, :, ::-1]))
    for i, m in np.ndindex(6, 9):
        assert score[i, m] == pytest.approx(naive(encoder, query[i], stored[i, m]), abs=1e-6)
    same = encoder.kernel(encoder.rows(query[:, None][:, 0]), encoder.rows(query[:, None, ::-1]))[:, 0]
    whole = (query >= 0).all(1)
    assert np.allclose(same[whole], 1, atol=1e-5)


def test_sketches_approximate_the_kernel():
    passages = text(4000)
    encoder = ContextEncoder(passages, width=32)
    entries = passages.entries()[100:600]
    context = np.stack([passages.tokens[entries - j].astype(np.int64) for j in range(12)], 1)
    sketch = encoder.sketch(context)
    stored = np.broadcast_to(context[None, :, ::-1], (500, 500, 12))
    truth = encoder.kernel(encoder.rows(context), encoder.rows(stored))
    assert sketch.shape == (500, encoder.dimensions)
    assert np.corrcoef((sketch @ sketch.T).ravel(), truth.ravel())[0, 1] > 0.7


def test_tokens_that_are_followed_alike_are_alike():
    rng = np.random.default_rng(0)
    tokens = np.zeros(6000, np.int64)
    tokens[::2] = rng.integers(1, 9, 3000)
    tokens[1::2] = (
        10 + (tokens[::2] > 4) * 5 + rng.integers(0, 5, 3000)
    )  # 1-4 are followed by 10-14, 5-8 by 15-19
    encoder = ContextEncoder(Passages(tokens.astype(np.uint16), np.array([0, 6000]), vocab_size=20))
    similar = encoder.vectors[1:9] @ encoder.vectors[1:9].T
    assert similar[:4, :4].min() > 0.8
    assert similar[:4, 4:].max() < 0.3


def test_without_an_index_search_is_exact():
    passages = windows(1, n=40)
    source = ContextSource(passages)
    batch = queries(2, passages)
    found = source.search(**batch, k=6)
    for b, t in np.ndindex(*batch["tokens"].shape):
        query = padded(seen(batch["tokens"], batch["documents"], b, t), 12)
        scored = [
            (-naive(source.encoder, query, padded(context, 12)), p)
            for p, context, document in contexts(passages)
            if document != batch["exclude"][b, t]
        ]
        scores = [-score for score, _ in sorted(scored)[:6]]
        assert found.scores[b, t].tolist() == pytest.approx(scores, abs=1e-5)


def test_the_index_finds_most_of_the_exact_neighbours():
    passages = text(20_000)
    source = ContextSource(passages)
    assert source._index is not None
    tokens = torch.from_numpy(text(600, seed=0).tokens.astype(np.int64)).reshape(12, 50)
    exclude = torch.full_like(tokens, 3)
    found = source.search(tokens, 8, exclude=exclude)
    assert found.mask.all()
    source._index = None
    exact = source.search(tokens, 8, exclude=exclude)
    assert (found.scores <= exact.scores + 1e-6).all()
    assert (found.scores >= exact.scores - 1e-6).float().mean() > 0.9
    assert found.flops < exact.flops / 4


def test_search_flops_by_hand():
    passages = text(20_000)
    source = ContextSource(passages, scan=500, shortlist=40)
    found = source.search(torch.tensor([[5, 6, 7]]), 8)
    reach = 8 * 6 * min(4, source._cells.shape[2])
    sketch, table, kernel = 24 * 9, 48 * 16 * 2 * 2, 40 * 12 * 2
    # The rest is one addition per sub-quantizer and entry: about `scan` entries a query, in whole lists.
    scanned, left = divmod(found.flops - 3 * (sketch + 2 * reach + table + kernel), 48)
    assert left == 0
    assert 3 * 500 <= scanned <= 3 * (500 + source._sizes.max())
    one = source.search(torch.tensor([[5]]), 8)
    assert 500 * 48 <= one.flops - (sketch + 2 * reach + table + kernel) < found.flops


def test_build_flops_by_hand():
    passages = text(20_000)
    source = ContextSource(passages)
    n = passages.n_entries
    assert source.build_flops["encode"] == n * 24 * 9
    assert source.build_flops["add"] == n * 24 * 16 * 3
    assert source.build_flops["train"] == 25 * 4096 * 16 * 96 * 3 + 3 * 41 * 16 * 96 * 3
    assert set(source.build_flops) == set(source.build_bytes) == {"tokens", "cells", "encode", "train", "add"}


def test_every_entry_is_in_its_cell():
    passages = text(20_000)
    source = ContextSource(passages)
    tokens = torch.from_numpy(passages.tokens[:1000].astype(np.int64))[None]
    found = source.search(tokens, 64)
    at = torch.arange(999)
    mine = ((found.ids[0, :999] == at[:, None]) & found.mask[0, :999]).any(-1)
    twin = found.scores[0, :999, -1] > 0.999  # more equal contexts than neighbours asked for
    assert (mine | twin)[100:].all()


def test_cells_put_the_own_cell_first():
    passages = text(20_000)
    encoder = ContextEncoder(passages)
    cells = Cells(encoder, (16, 8, 2))
    tokens = passages.tokens[None, 100:300].astype(np.int64)
    context = query_context(tokens, np.zeros_like(tokens), 12)[0]
    nearest, own = cells.nearest(context), cells.of(context)
    assert (own < cells.n).all()
    assert (nearest[:, :24] == own[:, None]).any(1).mean() > 0.95
    assert all(len(np.unique(row)) == len(row) for row in nearest)
    assert (cells.alike(context) == own[:, None]).any(1).all()


def test_large_vocabularies_have_a_table_all_the_same():
    passages = text(3000)
    large = Passages(passages.tokens, passages.offsets, vocab_size=60_000)
    found = ContextSource(large).search(torch.tensor([[5, 6, 59_999]]), 4)
    assert found.mask.all()


def test_an_encoder_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="40 tokens"):
        ContextSource(windows(1), ContextEncoder(text(2000)))
    with pytest.raises(ValueError, match="depth=2"):
        ContextEncoder(windows(1), depth=2)
