from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from retrieval import Passages, SnapshotError, SuffixSource
from retrieval.snapshot import writing_snapshot
from tests.retrieval.stores import contexts, documents, match_length, queries, seen, windows


@pytest.mark.parametrize("make", [documents, windows])
@pytest.mark.parametrize("vocab_size", [6, 40_000])  # 40,000 packs four tokens in a key, 6 packs them all
@pytest.mark.parametrize("max_order", [1, 3, 7, 16])
def test_naive_longest_suffix(make, vocab_size, max_order):
    passages = make(1, vocab_size=6)
    passages = Passages(passages.tokens, passages.offsets, passages.documents, vocab_size=vocab_size)
    source = SuffixSource(passages, max_order=max_order)
    batch = queries(2, Passages(passages.tokens, passages.offsets, passages.documents, vocab_size=6))
    k = 5
    found = source.search(batch["tokens"], k, documents=batch["documents"], exclude=batch["exclude"])
    for b, t in np.ndindex(*batch["tokens"].shape):
        query = seen(batch["tokens"], batch["documents"], b, t)
        lengths = {
            p: min(match_length(query, context), max_order)
            for p, context, document in contexts(passages)
            if document != batch["exclude"][b, t]
        }
        best = sorted((length for length in lengths.values() if length), reverse=True)[:k]
        assert found.scores[b, t][found.mask[b, t]].tolist() == best
        ids = found.ids[b, t][found.mask[b, t]].tolist()
        assert len(set(ids)) == len(ids)
        assert [lengths[p] for p in ids] == best
        assert [(-lengths[p], p) for p in ids] == sorted((-lengths[p], p) for p in ids)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 40))
def test_exclusion_is_exact_and_complete(seed, whole, k):
    passages = documents(seed) if whole else windows(seed)
    source = SuffixSource(passages, max_order=4)
    batch = queries(seed, passages)
    found = source.search(**batch, k=k)
    assert (found.ids[~found.mask] == 0).all()
    assert (found.scores[~found.mask] == 0).all()
    if not len(passages):
        assert not found.mask.any()
        return
    labels = torch.from_numpy(passages.labels.astype(np.int64))
    assert not ((labels[found.ids] == batch["exclude"].unsqueeze(-1)) & found.mask).any()
    for b, t in np.ndindex(*batch["tokens"].shape):
        last = batch["tokens"][b, t]
        reachable = [p for p, c, d in contexts(passages) if c[-1] == last and d != batch["exclude"][b, t]]
        assert found.mask[b, t].sum() == min(k, len(reachable))


def test_a_store_dominated_by_the_excluded_document():
    own, other = np.tile([1, 2, 3], 4000), np.array([9, 2, 3, 4, 9, 9, 3, 5])
    passages = Passages(
        np.concatenate([own, other]).astype(np.uint16), np.array([0, 12000, 12008]), vocab_size=10
    )
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3]])
    found = SuffixSource(passages).search(tokens, 4, exclude=torch.zeros_like(tokens))
    assert found.ids[0, -1][found.mask[0, -1]].tolist() == [12002, 12006]
    assert found.scores[0, -1].tolist() == [2, 1, 0, 0]


def test_own_key_returns_own_value():
    passages = documents(5, vocab_size=50)
    source = SuffixSource(passages, max_order=64)
    stored = contexts(passages)
    for p, context, _ in stored:
        found = source.search(torch.tensor([context]), len(stored))
        twins = [q for q, other, _ in stored if other[-len(context) :] == context]
        assert found.ids[0, -1, : len(twins)].tolist() == twins
        assert p in twins
    alone = [(p, c) for p, c, _ in stored if sum(other[-len(c) :] == c for _, other, _ in stored) == 1]
    assert len(alone) > 50
    for p, context in alone:
        ids = source.search(torch.tensor([context]), 1).ids
        assert passages.window(ids, 0, 1)[0, -1, 0, 1] == passages.tokens[p + 1]


@pytest.mark.parametrize("make", [documents, windows])
def test_batch_size_chunks_and_order_do_not_matter(make):
    passages = make(3)
    source = SuffixSource(passages)
    batch = queries(4, passages, batch=6)
    whole = source.search(**batch, k=7)
    for b in range(6):
        row = source.search(**{name: value[b : b + 1] for name, value in batch.items()}, k=7)
        assert torch.equal(row.ids[0], whole.ids[b])
        assert torch.equal(row.scores[0], whole.scores[b])
    source.chunk = 5
    pieces = source.search(**batch, k=7)
    assert torch.equal(pieces.ids, whole.ids)
    fewer = source.search(**batch, k=3)
    assert torch.equal(fewer.scores, whole.scores[..., :3])


def test_the_future_and_other_documents_are_not_seen():
    passages = windows(6)
    source = SuffixSource(passages)
    batch = queries(7, passages)
    whole = source.search(**batch, k=5)
    for t in range(batch["tokens"].shape[1]):
        prefix = source.search(**{name: value[:, : t + 1] for name, value in batch.items()}, k=5)
        assert torch.equal(prefix.ids[:, t], whole.ids[:, t])
        assert torch.equal(prefix.scores[:, t], whole.scores[:, t])
    other = batch["documents"] != batch["documents"][:, -1:]
    changed = torch.where(other, (batch["tokens"] + 1) % 6, batch["tokens"])
    again = source.search(changed, 5, documents=batch["documents"], exclude=batch["exclude"])
    assert torch.equal(again.ids[:, -1], whole.ids[:, -1])


def test_a_range_is_sampled_evenly():
    tokens = np.stack([np.arange(1000) % 90 + 2, np.ones(1000, int), np.arange(1000) % 7 + 2], 1).ravel()
    passages = Passages(tokens.astype(np.uint16), np.array([0, 3000]), vocab_size=100)
    found = SuffixSource(passages, max_order=3).search(torch.tensor([[1]]), 16)
    before = torch.from_numpy(np.sort(tokens[found.ids[0, 0].numpy() - 1]))
    assert before.diff().max() <= 12  # out of 90, sixteen places in even steps would be 5.6 apart


def test_bill_and_fingerprint():
    one, other = SuffixSource(windows(1)), SuffixSource(windows(2))
    found = one.search(torch.tensor([[1, 2, 3]]), 4)
    assert found.flops == 0
    assert found.bytes > 0
    assert one.build_flops == {"sort": 0}
    assert one.build_bytes["sort"] > 0
    assert one.build_seconds > 0
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == SuffixSource(windows(1)).fingerprint


def test_errors_say_what_to_do():
    source = SuffixSource(windows(1))
    with pytest.raises(ValueError, match="vocabulary of 6"):
        source.search(torch.tensor([[6]]), 1)
    with pytest.raises(ValueError, match="k >= 1"):
        source.search(torch.tensor([[1]]), 0)
    with pytest.raises((ValueError, TypeCheckError), match="exclude"):
        source.search(torch.tensor([[1]]), 1, exclude=torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="max_order"):
        SuffixSource(windows(1), max_order=0)


def test_an_empty_store_and_an_empty_batch_return_nothing():
    empty = Passages(np.zeros(0, np.uint16), np.zeros(1, np.int64), vocab_size=4)
    assert not SuffixSource(empty).search(torch.tensor([[1, 2]]), 3).mask.any()
    assert SuffixSource(windows(1)).search(torch.zeros(0, 4, dtype=torch.long), 3).ids.shape == (0, 4, 3)


@pytest.mark.parametrize("make", [documents, windows])
@pytest.mark.parametrize("vocab_size", [6, 40_000])
def test_what_is_saved_is_opened_with_the_same_answers(tmp_path, make, vocab_size):
    passages = make(8)
    passages = Passages(passages.tokens, passages.offsets, passages.documents, vocab_size=vocab_size)
    source = SuffixSource(passages, max_order=9)
    source.save(tmp_path / "s")
    batch = queries(9, make(8))
    expected = source.search(**batch, k=6)
    for own in (None, passages):
        again = SuffixSource.open(tmp_path / "s", own)
        found = again.search(**batch, k=6)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.scores, expected.scores)
        assert found.work == expected.work
        assert again.fingerprint == source.fingerprint
        assert (again.depth, again.build_bytes) == (source.depth, source.build_bytes)
        assert torch.equal(again.passages.window(found.ids, 2, 2), source.passages.window(expected.ids, 2, 2))


def test_opening_sorts_and_reads_nothing(tmp_path):
    SuffixSource(windows(1, n=2000)).save(tmp_path / "s")
    source = SuffixSource.open(tmp_path / "s", verify=False)
    arrays = [source._sorted, source._labels, source.passages.tokens]
    arrays += [array for level in source._levels for array in (level.keys, level.first)]
    for array in arrays:
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)


def test_other_passages_are_refused(tmp_path):
    SuffixSource(windows(1)).save(tmp_path / "s")
    with pytest.raises(SnapshotError, match="other passages"):
        SuffixSource.open(tmp_path / "s", windows(2))


def test_damaged_foreign_and_newer_folders_are_refused(tmp_path):
    SuffixSource(windows(1)).save(tmp_path / "s")
    for file in sorted((tmp_path / "s").iterdir()):
        good = file.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(SnapshotError, match=r"damaged|foreign"):
                SuffixSource.open(tmp_path / "s")
        file.write_bytes(good[: len(good) // 2])
        with pytest.raises(SnapshotError, match=r"bytes, not|damaged or foreign"):
            SuffixSource.open(tmp_path / "s", verify=False)
        file.write_bytes(good)
    SuffixSource.open(tmp_path / "s")
    with writing_snapshot(tmp_path / "new", "suffix source", 99, {}):
        pass
    with pytest.raises(SnapshotError, match=r"format 99 .* update"):
        SuffixSource.open(tmp_path / "new")
    with writing_snapshot(tmp_path / "other", "box", 1, {}):
        pass
    with pytest.raises(SnapshotError, match="is a box, not a suffix source"):
        SuffixSource.open(tmp_path / "other")
    with pytest.raises(SnapshotError, match="there is no suffix source"):
        SuffixSource.open(tmp_path / "none")


def test_a_folder_that_lacks_something_is_refused(tmp_path):
    for about in ({}, {"depth": 3, "build_flops": {}, "build_bytes": {}, "build_seconds": 0.0, "fingerprint": "",
                       "passages": {"vocab_size": 6, "fingerprint": ""}, "widths": [9]}):  # fmt: skip
        with writing_snapshot(tmp_path / "s", "suffix source", 1, about):
            pass
        with pytest.raises(SnapshotError, match="build it again"):
            SuffixSource.open(tmp_path / "s")


def test_a_store_of_nothing_is_saved_too(tmp_path):
    empty = Passages(np.zeros(0, np.uint16), np.zeros(1, np.int64), vocab_size=4)
    SuffixSource(empty).save(tmp_path / "s")
    assert not SuffixSource.open(tmp_path / "s").search(torch.tensor([[1, 2]]), 3).mask.any()
