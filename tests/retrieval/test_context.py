from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import ContextEncoder, ContextSource, Passages
from retrieval.cells import Cells
from retrieval.runtime import faiss, threads
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


def test_what_is_built_follows_from_the_inputs_alone(monkeypatch: pytest.MonkeyPatch):
    seen_threads = set()

    def watch(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def watched(*arguments: object) -> object:
            seen_threads.add(torch.get_num_threads())
            return method(*arguments)

        monkeypatch.setattr(kind, name, watched)

    for name in ("_decompose", "_similarities", "_meaning"):
        watch(ContextEncoder, name)
    watch(Cells, "_divide")
    passages, built = text(2000), []
    for n in (1, 2):
        with threads(n):
            encoder = ContextEncoder(passages)
            built.append(
                [encoder.vectors, encoder._table, encoder.codebook, *Cells(encoder, (16, 4, 1))._score]
            )
            assert torch.get_num_threads() == n
    assert seen_threads == {1}
    assert all(np.array_equal(one, two) for one, two in zip(*built, strict=True))


def halves(codes: np.ndarray) -> np.ndarray:
    """Codes one by one: the low half of a byte comes first."""
    return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)


def test_sketches_approximate_the_kernel():
    passages = text(4000)
    encoder = ContextEncoder(passages)
    entries = passages.entries()[100:600]
    context = np.stack([passages.tokens[entries - j].astype(np.int64) for j in range(12)], 1)
    sketch, codes = encoder.sketch(context), halves(encoder.codes(context))
    decoded = encoder.codebook[np.arange(encoder.n_codes), codes].reshape(500, -1)
    stored = np.broadcast_to(context[None, :, ::-1], (500, 500, 12))
    truth = encoder.kernel(encoder.rows(context), encoder.rows(stored))
    assert sketch.shape == (500, encoder.dimensions)
    assert np.corrcoef((sketch @ decoded.T).ravel(), truth.ravel())[0, 1] > 0.7


def test_no_token_is_like_no_other():
    encoder = ContextEncoder(text(4000))
    nothing = np.full((1, 12), -1)
    assert not encoder.sketch(nothing).any()
    assert not encoder.codes(nothing).any()
    assert not encoder.codebook[:, 0].any()
    tokens = np.repeat(np.arange(40)[:, None], 12, axis=1)
    assert (encoder.codes(tokens) != 0).all(0).sum() >= 8  # names, of which no token goes without


def test_the_index_holds_what_the_encoders_codes_stand_for():
    passages = text(20_000)
    source = ContextSource(passages)
    encoder, lists = source.encoder, source._index.invlists
    for number in np.flatnonzero(source._cells.sizes)[::20].tolist():
        position = faiss.rev_swig_ptr(lists.get_ids(number), 1)
        codes = halves(encoder.codes(source._context(position, 12)))[0]
        wanted = encoder.codebook[np.arange(encoder.n_codes), codes].ravel()
        held = np.empty(encoder.dimensions, np.float32)
        source._index.reconstruct_from_offset(number, 0, faiss.swig_ptr(held))
        assert held.tolist() == wanted.tolist()


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
    codes = source.encoder.n_codes
    assert codes == 3 * (3 + 2) + 3 * (2 + 1) + 6
    table, kernel = codes * 16 * 8 * 2, 40 * 12 * 2
    # The rest is one addition per sub-quantizer and entry: about `scan` entries a query, in whole lists.
    scanned, left = divmod(found.flops - 3 * (2 * reach + table + kernel), codes)
    assert left == 0
    assert 3 * 500 <= scanned <= 3 * (500 + source._cells.sizes.max())
    one = source.search(torch.tensor([[5]]), 8)
    assert 500 * codes <= one.flops - (2 * reach + table + kernel) < found.flops
    # Queries with the same last three tokens look into the same lists, which are chosen once.
    twice = source.search(torch.tensor([[5], [5]]), 8)
    assert twice.flops == 2 * one.flops - 2 * reach


def test_build_flops_by_hand():
    passages = text(20_000)
    source = ContextSource(passages)
    encoder, n = source.encoder, passages.n_entries
    rank = 34  # of the decomposition: 24 and 10 to spare
    assert source.build_flops["add"] == 0  # codes are looked up
    decompose = 2 * 40 * 40 * rank * 6 + 12 * 40 * rank**2 + 8 * 40 * 40
    similar = (2 * 24 + 1) * 40 * 40
    meanings = 3 * (16 * 2 * 16 + 15 * 2) * 41 * 8
    scale = 2 * encoder.dimensions * 41
    assert source.build_flops["tokens"] == decompose + similar + meanings + scale
    assert source.build_bytes["add"] > n * encoder.n_codes // 2
    assert set(source.build_flops) == set(source.build_bytes) == {"tokens", "cells", "add"}


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


def naive_lists(cells: Cells, given: np.ndarray, token: int, scan: int) -> list[int]:
    """Cell after cell, and in a split one part after part, until enough has been seen."""
    found, seen = [], 0
    for cell in given[given >= 0]:
        split = cells._width[cell] > 1
        for part in cells._nearest[3][token] if split else [0]:
            number = int(cells._start[cell] + part)
            if seen < scan and cells.sizes[number]:
                found.append(number)
                seen += cells.sizes[number]
    return found


@pytest.mark.parametrize("most", [30, 300, 10**9])
def test_lists_are_visited_cell_by_cell_and_split_ones_part_by_part(most: int):
    passages = text(20_000)
    source = ContextSource(passages)
    cells, entries = Cells(source.encoder, (16, 8, 2)), source._entries.astype(np.int64)
    context = source._context(entries, 12)
    cell, fourth = cells.of(context), cells.fourth(context)
    number = cells.split(cell, fourth, most)
    assert (cells.sizes == np.bincount(number, minlength=len(cells.sizes))).all()
    crowded = np.bincount(cell, minlength=cells.n) > most
    assert crowded.any() == (most < 1000)
    # Entries share a list if they share a cell and, where it is split, the cluster of the fourth token.
    pairs = np.unique(np.stack([cell, np.where(crowded[cell], fourth, 0), number], 1), axis=0)
    assert len(pairs) == len(np.unique(number)) == len(np.unique(pairs[:, :2], axis=0))
    query = np.concatenate([context[::997], np.full((1, 12), -1)])
    for scan in (1, 200, 10**9):
        given = cells.occupied(cells.nearest(query), scan)
        for row, found in enumerate(cells.lists(given, query, scan)):
            wanted = naive_lists(cells, cells.nearest(query)[row], query[row, 3], scan)
            assert found[found >= 0].tolist() == wanted
            assert (found[len(wanted) :] == -1).all()


def test_splitting_crowded_cells_spares_queries_most_of_them():
    source = ContextSource(text(20_000))
    cells, context = Cells(source.encoder, (16, 8, 2)), source._context(source._entries.astype(np.int64), 12)
    seen = []
    for most in (30, 10**9):
        cells.split(cells.of(context), cells.fourth(context), most)
        lists = cells.lists(cells.occupied(cells.nearest(context), 30), context, 30)
        seen.append(np.where(lists < 0, 0, cells.sizes[lists]).sum(1).mean())
    assert 30 <= seen[0] < seen[1] / 2


def test_the_list_of_an_entry_is_the_first_one_its_own_context_looks_into():
    source = ContextSource(text(20_000), scan=50)
    cells, context = source._cells, source._context(source._entries[300:400].astype(np.int64), 12)
    assert (cells._width > 1).any()
    own = cells._start[cells.of(context)] + (cells._width[cells.of(context)] > 1) * cells.fourth(context)
    visited = cells.lists(cells.occupied(cells.nearest(context), 50), context, 50)
    assert (visited[:, 0] == own).mean() > 0.95


def test_cells_come_by_score_then_by_number():
    encoder = ContextEncoder(text(20_000))
    cells = Cells(encoder, (16, 8, 2))
    context = np.array([[5, 6, 7, *[1] * 9], [-1] * 12])
    for query, found in zip(context, cells.nearest(context), strict=True):
        scored = {}
        for i, j, m in np.ndindex(*(cells._score[place].shape[1] for place in range(3))):
            at = [cells._nearest[place][query[place], step] for place, step in enumerate((i, j, m))]
            number = (at[0] * cells.shape[1] + at[1]) * cells.shape[2] + at[2]
            parts = [cells._score[place][query[place], step] for place, step in enumerate((i, j, m))]
            scored[int(number)] = parts[0] + parts[1] + parts[2]
        assert found.tolist() == sorted(scored, key=lambda number: (-scored[number], number))


def test_queries_with_the_same_last_tokens_do_not_disturb_one_another():
    passages = text(20_000)
    source = ContextSource(passages)
    tokens = torch.from_numpy(passages.tokens[:900].astype(np.int64)).reshape(30, 30)
    tokens[:, -3:] = tokens[0, -3:]
    found = source.search(tokens, 8)
    for b in (0, 11, 29):
        alone = source.search(tokens[b : b + 1], 8)
        assert torch.equal(alone.ids[0], found.ids[b])
        assert torch.equal(alone.scores[0], found.scores[b])


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
