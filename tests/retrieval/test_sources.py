"""What holds for every source."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.utils.flop_counter import FlopCounterMode

from retrieval import BM25Source, ContextEncoder, ContextSource, Passages, RandomSource, SuffixSource
from tests.retrieval.stores import documents, queries, windows


class IndexedContextSource(ContextSource):
    """A context source that uses its index for stores of every size FAISS can train on."""

    small = 200


def indexed(passages: Passages) -> ContextSource:
    return IndexedContextSource(passages, clusters=(4, 2, 1), scan=16, shortlist=8)


SOURCES = {
    "suffix": SuffixSource,
    "context": ContextSource,
    "indexed": indexed,
    "random": RandomSource,
    "bm25": BM25Source,
}
large_documents = partial(documents, n=30, longest=60)
large_windows = partial(windows, n=60)
each_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
each_regime = pytest.mark.parametrize("store", [large_documents, large_windows], ids=["documents", "windows"])


@each_source
@each_regime
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 40))
def test_the_excluded_document_is_never_returned(make, store, seed, k):
    passages = store(seed)
    batch = queries(seed, passages)
    found = make(passages).search(**batch, k=k)
    labels = torch.from_numpy(passages.labels.astype(np.int64))
    assert not ((labels[found.ids] == batch["exclude"].unsqueeze(-1)) & found.mask).any()
    entries = torch.from_numpy(passages.entries())
    assert torch.isin(found.ids[found.mask], entries).all()
    assert (found.ids[~found.mask] == 0).all()
    assert (found.scores[~found.mask] == 0).all()
    assert (found.scores.diff(dim=-1)[found.mask[..., 1:]] <= 0).all()
    tied = (found.scores.diff(dim=-1) == 0) & found.mask[..., 1:]
    assert (found.ids.diff(dim=-1)[tied] > 0).all()
    assert (found.mask[..., :-1] | ~found.mask[..., 1:]).all()


@pytest.mark.parametrize("make", [ContextSource, indexed, RandomSource], ids=["context", "indexed", "random"])
@each_regime
def test_search_goes_on_until_k_or_the_store_is_exhausted(make, store):
    passages = store(1)
    batch = queries(2, passages)
    n_allowed = torch.tensor(
        [
            [(passages.labels[passages.entries()] != label).sum() for label in row]
            for row in batch["exclude"].tolist()
        ]
    )
    for k in (3, passages.n_entries - 3, passages.n_entries + 5):
        found = make(passages).search(**batch, k=k)
        assert torch.equal(found.mask.sum(-1), n_allowed.clamp(max=k))


@each_source
@each_regime
def test_only_positions_that_are_wanted_are_searched_for(make, store):
    passages = store(3)
    source, batch = make(passages), queries(4, passages)
    source.chunk = 5
    whole = source.search(**batch, k=3)
    at = torch.rand(batch["tokens"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    found = source.search(**batch, k=3, at=at)
    for part, all_ in ((found.scores, whole.scores), (found.ids, whole.ids), (found.mask, whole.mask)):
        assert torch.equal(part[at], all_[at])
        assert not part[~at].any()
    assert 0 < found.work["bytes"] < 0.6 * whole.work["bytes"]
    nothing = source.search(**batch, k=3, at=torch.zeros_like(at))
    assert not nothing.mask.any()
    assert not any(nothing.work.values())
    with pytest.raises((ValueError, TypeCheckError)):
        source.search(**batch, k=3, at=at[:, 1:])


@each_source
@each_regime
def test_other_rows_and_chunks_do_not_matter(make, store):
    passages = store(3)
    source = make(passages)
    batch = queries(4, passages, batch=5)
    whole = source.search(**batch, k=6)
    source.chunk = 7
    pieces = source.search(**batch, k=6)
    assert torch.equal(pieces.ids, whole.ids)
    assert torch.equal(pieces.scores, whole.scores)
    for b in range(5):
        row = source.search(**{name: value[b : b + 1] for name, value in batch.items()}, k=6)
        assert torch.equal(row.ids[0], whole.ids[b])
        assert torch.equal(row.scores[0], whole.scores[b])


@each_source
def test_neither_the_future_nor_another_document_is_seen(make):
    passages = large_windows(5)
    source = make(passages)
    batch = queries(6, passages)
    whole = source.search(**batch, k=5)
    for t in range(batch["tokens"].shape[1]):
        prefix = source.search(**{name: value[:, : t + 1] for name, value in batch.items()}, k=5)
        assert torch.equal(prefix.ids[:, t], whole.ids[:, t])
        assert torch.equal(prefix.scores[:, t], whole.scores[:, t])
    foreign = batch["documents"] != batch["documents"][:, -1:]
    assert foreign.any()
    changed = torch.where(foreign, (batch["tokens"] + 1) % 6, batch["tokens"])
    again = source.search(changed, 5, documents=batch["documents"], exclude=batch["exclude"])
    assert torch.equal(again.ids[:, -1], whole.ids[:, -1])


@pytest.mark.parametrize("kind", [SuffixSource, ContextSource])
def test_a_key_does_not_see_the_passage_before_its_own(kind):
    passages = Passages(
        large_windows(7).tokens, large_windows(7).offsets, np.arange(60), vocab_size=6
    )  # each window a document
    changed = passages.tokens.copy()
    changed[:17] = (changed[:17] + 1) % 6
    other = Passages(changed, passages.offsets, passages.documents, vocab_size=6)
    query = torch.from_numpy(passages.tokens[17:34].astype(np.int64))[None]
    shared = {"encoder": ContextEncoder(passages)} if kind is ContextSource else {}
    found = [
        kind(store, **shared).search(query, 4, exclude=torch.zeros_like(query)) for store in (passages, other)
    ]
    assert torch.equal(found[0].scores, found[1].scores)
    # Of equally long matches a suffix source takes an even spread, in which the excluded ones have places.
    if kind is ContextSource:
        assert torch.equal(found[0].ids, found[1].ids)


@each_source
def test_an_empty_store_and_an_empty_batch_return_nothing(make):
    empty = Passages(np.zeros(0, np.uint16), np.zeros(1, np.int64), vocab_size=4)
    lonely = Passages(np.zeros(3, np.uint16), np.array([0, 1, 2, 3]), vocab_size=4)  # tokens, but no entry
    for passages in (empty, lonely):
        found = make(passages).search(torch.tensor([[1, 2]]), 3)
        assert not found.mask.any()
        assert found.ids.shape == (1, 2, 3)
    assert make(large_windows(1)).search(torch.zeros(0, 4, dtype=torch.long), 3).ids.shape == (0, 4, 3)


@each_source
def test_the_bill_is_seen_by_a_flop_counter(make):
    source = make(large_documents(2))
    with FlopCounterMode(display=False) as counter:
        found = source.search(torch.tensor([[1, 2, 3]]), 4)
    assert counter.get_total_flops() == found.flops
    assert found.bytes > 0
    assert source.build_seconds > 0


@each_source
def test_the_same_store_gives_the_same_answers_and_fingerprint(make):
    one, again, other = make(large_windows(1)), make(large_windows(1)), make(large_windows(2))
    batch = queries(1, one.passages)
    assert torch.equal(one.search(**batch, k=5).ids, again.search(**batch, k=5).ids)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.build_flops == again.build_flops


@each_source
def test_errors_say_what_is_wrong(make):
    source = make(large_windows(1))
    with pytest.raises(ValueError, match="vocabulary of 6"):
        source.search(torch.tensor([[6]]), 1)
    with pytest.raises(ValueError, match="k >= 1"):
        source.search(torch.tensor([[1]]), 0)
    with pytest.raises((ValueError, TypeCheckError), match="exclude"):
        source.search(torch.tensor([[1]]), 1, exclude=torch.tensor([[1, 2]]))
    with pytest.raises((ValueError, TypeCheckError), match="tokens"):
        source.search(torch.tensor([[1.0]]), 1)
