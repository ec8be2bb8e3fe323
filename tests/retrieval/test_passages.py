from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import Passages
from tests.retrieval.stores import contexts, documents, windows


@pytest.mark.parametrize("make", [documents, windows])
def test_entries_are_the_positions_that_have_an_answer(make):
    passages = make(0)
    stored = contexts(passages)
    assert passages.entries().tolist() == [p for p, _, _ in stored]
    assert passages.n_entries == len(stored)
    assert [passages.labels[p] for p, _, _ in stored] == [document for _, _, document in stored]


@pytest.mark.parametrize("make", [documents, windows])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 2), (50, 1)])
def test_window_stops_at_the_edges_of_the_passage(make, before, after):
    passages = make(1)
    positions = torch.arange(len(passages)).reshape(1, -1)
    window = passages.window(positions, before, after)
    assert window.shape == (1, len(passages), before + 1 + after)
    for p in range(len(passages)):
        start = int(passages.starts(np.array([p]))[0])
        stop = int(passages.offsets[passages.offsets > p][0])
        expected = [
            int(passages.tokens[q]) if start <= q < stop else 0 for q in range(p - before, p + after + 1)
        ]
        assert window[0, p].tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_large_tokens_survive(dtype):
    top = np.iinfo(dtype).max
    passages = Passages(np.array([0, top, 1], dtype), np.array([0, 3]), vocab_size=int(top) + 1)
    assert passages.window(torch.tensor([1]), 1, 1).tolist() == [[0, int(top), 1]]


def test_memory_mapped_tokens(tmp_path):
    passages = windows(2)
    np.save(tmp_path / "tokens.npy", passages.tokens)
    mapped = Passages(
        np.load(tmp_path / "tokens.npy", mmap_mode="r"), passages.offsets, passages.documents, vocab_size=6
    )
    ids = torch.arange(len(passages))
    assert torch.equal(mapped.window(ids, 4, 4), passages.window(ids, 4, 4))
    assert mapped.fingerprint == passages.fingerprint


def test_fingerprint_tells_stores_apart():
    passages = windows(3)
    cut = Passages(passages.tokens, np.array([0, len(passages)]), vocab_size=6)
    larger = Passages(passages.tokens, passages.offsets, passages.documents, vocab_size=7)
    relabelled = Passages(passages.tokens, passages.offsets, passages.documents + 1, vocab_size=6)
    assert len({p.fingerprint for p in (passages, cut, larger, relabelled)}) == 4


def test_window_of_a_position_outside_is_an_error():
    passages = windows(4)
    for position in (-1, len(passages)):
        with pytest.raises(IndexError, match=str(position)):
            passages.window(torch.tensor([position]), 0, 1)


def test_an_empty_store_has_windows_of_nothing():
    empty = Passages(np.zeros(0, np.uint16), np.zeros(1, np.int64), vocab_size=6)
    window = empty.window(torch.zeros(2, 3, dtype=torch.int64), 1, 2)
    assert window.shape == (2, 3, 4)
    assert not window.any()
    with pytest.raises(IndexError, match="store of 0"):
        empty.window(torch.tensor([1]), 0, 1)


@pytest.mark.parametrize(
    ("tokens", "offsets", "labels", "error", "match"),
    [
        (np.array([1, 2]), [0, 2], None, TypeError, "astype"),
        (np.array([1, 2], np.uint8), [0, 1], None, ValueError, "number of tokens, 2"),
        (np.array([1, 2], np.uint8), [0, 2, 1, 2], None, ValueError, "not decrease"),
        (np.array([1, 2], np.uint8), [0, 2], [1, 2], ValueError, "document labels"),
        (np.array([1, 2], np.uint8), [0, 2], [-1], ValueError, "exclude nothing"),
        (np.array([1, 5], np.uint8), [0, 2], None, ValueError, "token 5"),
    ],
)
def test_malformed_passages_are_refused(tokens, offsets, labels, error, match):
    with pytest.raises(error, match=match):
        Passages(tokens, np.array(offsets), None if labels is None else np.array(labels), vocab_size=5)
