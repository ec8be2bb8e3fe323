from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from retrieval import Passages, SnapshotError
from retrieval.bm25 import BM25Source
from tests.retrieval.stores import contexts, documents, match_length, queries, seen, windows

many = partial(documents, n=12, longest=60, vocab_size=30)
few = partial(windows, vocab_size=6)


def pieces_of(passages, length):
    """(document, entries, text) of every piece, as the docstring defines them."""
    found = []
    for j, document in enumerate(passages.documents.tolist()):
        start, stop = passages.offsets[j], passages.offsets[j + 1]
        entries = list(range(start, stop - 1))
        step = length or max(1, len(entries))
        for i in range(0, len(entries), step):
            own = entries[i : i + step]
            found.append((document, own, passages.tokens[own[0] : own[-1] + 2].tolist()))
    return found


def bm25(query, texts, k1, b):
    """The formula, one pair at a time."""
    n, mean = len(texts), sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score, counts = 0.0, Counter(text)
        for word in set(query) & set(text):
            having = sum(word in other for other in texts)
            rarity = math.log(1 + (n - having + 0.5) / (having + 0.5))
            score += rarity * counts[word] / (counts[word] + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("store", [many, few])
@pytest.mark.parametrize(
    ("depth", "length", "k1", "b"), [(64, 16, 1.2, 0.75), (4, None, 2.0, 0.0), (1, 1, 0.0, 1.0)]
)
def test_naive_bm25(store, depth, length, k1, b):
    passages = store(1)
    source = BM25Source(passages, depth=depth, length=length, k1=k1, b=b)
    batch = queries(2, passages)
    k = 5
    found = source.search(batch["tokens"], k, documents=batch["documents"], exclude=batch["exclude"])
    pieces, keys = pieces_of(passages, length), {p: context for p, context, _ in contexts(passages)}
    for row, t in np.ndindex(*batch["tokens"].shape):
        query = seen(batch["tokens"], batch["documents"], row, t)[-depth:]
        scores = bm25(query, [text for _, _, text in pieces], k1, b)
        best = {}
        for (document, entries, _), score in zip(pieces, scores, strict=True):
            if score and document != batch["exclude"][row, t]:
                best[max(entries, key=lambda p: (match_length(query, keys[p]), -p))] = score
        mask = found.mask[row, t]
        assert mask.sum() == min(k, len(best))
        ids = found.ids[row, t][mask].tolist()
        assert len(set(ids)) == len(ids)
        assert found.scores[row, t][mask].tolist() == pytest.approx([best[p] for p in ids], rel=1e-4)
        # Scores that differ by rounding alone may change places.
        assert found.scores[row, t][mask].tolist() == pytest.approx(
            sorted(best.values(), reverse=True)[:k], rel=1e-4
        )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 40), st.sampled_from([1, 5, 64, None]))
def test_order_and_exclusion_are_exact(seed, whole, k, length):
    passages = many(seed) if whole else few(seed)
    source = BM25Source(passages, depth=6, length=length)
    batch = queries(seed, passages)
    found = source.search(**batch, k=k)
    assert (found.ids[~found.mask] == 0).all()
    assert (found.scores[~found.mask] == 0).all()
    assert (found.scores[found.mask] > 0).all()
    assert (found.scores.diff(dim=-1)[found.mask[..., 1:]] <= 0).all()
    tied = (found.scores.diff(dim=-1) == 0) & found.mask[..., 1:]
    assert (found.ids.diff(dim=-1)[tied] > 0).all()
    if not passages.n_entries:
        assert not found.mask.any()
        return
    labels = torch.from_numpy(passages.labels.astype(np.int64))
    assert not ((labels[found.ids] == batch["exclude"].unsqueeze(-1)) & found.mask).any()
    assert torch.isin(found.ids[found.mask], torch.from_numpy(passages.entries())).all()
    # What is excluded leaves the others, their scores and their order as they were.
    everything = source.search(batch["tokens"], 10**4, documents=batch["documents"])
    for b, t in np.ndindex(*batch["tokens"].shape):
        ids = everything.ids[b, t][everything.mask[b, t]]
        others = ids[labels[ids] != batch["exclude"][b, t]][:k]
        assert torch.equal(found.ids[b, t][found.mask[b, t]], others)


def test_a_store_dominated_by_the_excluded_document():
    own, other = np.tile([1, 2, 3], 4000), np.array([9, 2, 3, 4, 9, 9, 3, 5])
    tokens = np.concatenate([own, other]).astype(np.uint16)
    passages = Passages(tokens, np.array([0, 12000, 12008]), vocab_size=10)
    query = torch.tensor([[1, 2, 3, 1, 2, 3]])
    found = BM25Source(passages, length=4).search(query, 4, exclude=torch.zeros_like(query))
    assert found.ids[0, -1][found.mask[0, -1]].tolist() == [12002, 12006]


@pytest.mark.parametrize("store", [many, few])
def test_batch_chunks_order_and_the_future_do_not_matter(store):
    passages = store(3)
    source = BM25Source(passages, depth=9, length=7)
    batch = queries(4, passages, batch=6)
    whole = source.search(**batch, k=7)
    for b in range(6):
        row = source.search(**{name: value[b : b + 1] for name, value in batch.items()}, k=7)
        assert torch.equal(row.ids[0], whole.ids[b])
        assert torch.equal(row.scores[0], whole.scores[b])
    source.chunk = 5
    assert torch.equal(source.search(**batch, k=7).ids, whole.ids)
    for t in range(14):
        prefix = source.search(**{name: value[:, : t + 1] for name, value in batch.items()}, k=7)
        assert torch.equal(prefix.ids[:, t], whole.ids[:, t])
        assert torch.equal(prefix.scores[:, t], whole.scores[:, t])
    fewer = source.search(**batch, k=3)
    assert torch.equal(fewer.ids, whole.ids[..., :3])
    foreign = batch["documents"] != batch["documents"][:, -1:]
    changed = torch.where(foreign, (batch["tokens"] + 1) % 6, batch["tokens"])
    again = source.search(changed, 7, documents=batch["documents"], exclude=batch["exclude"])
    assert torch.equal(again.ids[:, -1], whole.ids[:, -1])


def test_work_is_counted_posting_by_posting():
    tokens = np.array([0, 1, 2, 3, 0, 1, 1, 4, 0, 5, 6, 7], np.uint16)
    passages = Passages(tokens, np.array([0, 4, 8, 12]), vocab_size=8)
    source = BM25Source(passages)
    with FlopCounterMode(display=False) as counter:
        found = source.search(torch.tensor([[2]]), 3, exclude=torch.tensor([[2]]))
    # One posting of token 2; three pieces, one excluded; three entries scanned and one of them matched.
    assert found.work == {
        "flops": 1,
        "bytes": 16 + 24 + 4 + 2 * (3 + 1),
        "bytes_written": 4 + 12 + 4,
        "bytes_random": 8 + 4 + 2,
        "intops": 0,
    }
    assert counter.get_total_flops() == 1
    both = source.search(torch.tensor([[1, 2]]), 3)
    assert both.flops == 2 + 3
    assert source.build_flops["bm25"] == 3 * 11 + 5 * 3 + 6 * 8
    assert source.build_bytes["bm25"] > 0
    assert source.build_seconds > 0


def test_the_fingerprint_names_everything_that_decides():
    passages = few(1)
    made = [BM25Source(passages), BM25Source(passages, depth=3), BM25Source(passages, length=None),
            BM25Source(passages, k1=1.5), BM25Source(passages, b=0.5), BM25Source(few(2))]  # fmt: skip
    assert len({source.fingerprint for source in made}) == len(made)
    assert BM25Source(few(1)).fingerprint == made[0].fingerprint


def test_what_is_saved_is_opened_with_the_same_answers(tmp_path):
    for number, store in enumerate((many, few)):
        passages = store(4)
        source = BM25Source(passages, depth=5, length=9, k1=0.9, b=0.4)
        source.save(tmp_path / str(number))
        batch = queries(5, passages)
        expected = source.search(**batch, k=6)
        for own in (None, passages):
            again = BM25Source.open(tmp_path / str(number), own)
            found = again.search(**batch, k=6)
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.scores, expected.scores)
            assert found.work == expected.work
            assert (again.fingerprint, again.build_flops) == (source.fingerprint, source.build_flops)
    with pytest.raises(SnapshotError, match="other passages"):
        BM25Source.open(tmp_path / "0", few(4))


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    BM25Source(few(1)).save(tmp_path / "s")
    for file in sorted((tmp_path / "s").glob("*.npy")):
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(SnapshotError, match=f"{file.name} is damaged"):
            BM25Source.open(tmp_path / "s")
        file.write_bytes(good[:-1])
        with pytest.raises(SnapshotError, match=f"{file.name} has"):
            BM25Source.open(tmp_path / "s", verify=False)
        file.write_bytes(good)
    BM25Source.open(tmp_path / "s")
    with pytest.raises(SnapshotError, match="there is no bm25 source"):
        BM25Source.open(tmp_path / "none")


def test_errors_say_what_is_wrong():
    for wrong in ({"depth": 0}, {"length": 0}, {"k1": -1.0}, {"k1": float("inf")}, {"b": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            BM25Source(few(1), **wrong)
    source = BM25Source(few(1))
    with pytest.raises(ValueError, match="vocabulary of 6"):
        source.search(torch.tensor([[6]]), 1)


def test_an_empty_store_returns_nothing(tmp_path):
    empty = Passages(np.zeros(0, np.uint16), np.zeros(1, np.int64), vocab_size=4)
    lonely = Passages(np.zeros(3, np.uint16), np.arange(4), vocab_size=4)
    for passages in (empty, lonely):
        source = BM25Source(passages)
        source.save(tmp_path / "s")
        for asked in (source, BM25Source.open(tmp_path / "s")):
            assert not asked.search(torch.tensor([[1, 2]]), 3).mask.any()
