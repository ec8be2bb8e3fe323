import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from experiments.data.corpus import CorpusError, Split
from experiments.data.windows import IGNORED, Windows, evaluation_rows, training_order
from tests.experiments.data.toy import split as toy_split


def naive(split: Split, length: int, index: int) -> list[tuple[int, int, int, int]]:
    """Token, target, document and position, one at a time."""
    rows = []
    for position in range(index * length, (index + 1) * length):
        after = int(split.tokens[position + 1])
        document = sum(1 for start in split.offsets[:-1] if start <= position) - 1
        rows.append((int(split.tokens[position]), IGNORED if after == 0 else after, document, position))
    return rows


@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_batches_agree_with_one_position_at_a_time(length: int) -> None:
    for seed in range(5):
        split = toy_split(seed)
        windows = Windows(split, length)
        index = np.random.default_rng(seed).permutation(len(windows))
        batch = windows.batch(index)
        for row, window in enumerate(index):
            got = torch.stack([batch[k][row] for k in ("tokens", "targets", "documents", "positions")], dim=1)
            assert [tuple(values) for values in got.tolist()] == naive(split, length, int(window))
        assert {value.dtype for value in batch.values()} == {torch.int64}
        assert all(value.is_contiguous() for value in batch.values())


def test_windows_cover_the_stream_exactly_once() -> None:
    split = toy_split(3, n=30)
    windows = Windows(split, 16)
    positions = windows.batch(np.arange(len(windows)))["positions"].flatten()
    assert positions.tolist() == list(range(16 * len(windows)))
    assert len(split) - 1 - 16 < len(positions) <= len(split) - 1


def test_batches_are_copies() -> None:
    split = toy_split(0)
    windows = Windows(split, 8)
    first = windows.batch(np.array([0]))
    first["tokens"].fill_(5)
    first["targets"].fill_(5)
    assert not torch.equal(windows.batch(np.array([0]))["tokens"], first["tokens"])


@pytest.mark.parametrize("length", [1, 5, 32])
def test_passages_hold_just_these_windows_cut_at_documents(length: int) -> None:
    for seed in range(5):
        split = toy_split(seed)
        windows = Windows(split, length)
        index = np.random.default_rng(seed).permutation(len(windows))[: len(windows) // 2 + 1]
        passages = windows.passages(index, vocab_size=9)
        pairs = []
        for j, (start, end) in enumerate(zip(passages.offsets[:-1], passages.offsets[1:], strict=True)):
            piece = passages.tokens[start:end].tolist()
            assert piece
            assert 0 not in piece[1:], "a marker begins a passage"
            pairs += [(a, b, int(passages.documents[j])) for a, b in pairwise(piece)]
        batch = windows.batch(index)
        scored = batch["targets"] != IGNORED
        wanted = [batch[key][scored].tolist() for key in ("tokens", "targets", "documents")]
        assert pairs == list(zip(*wanted, strict=True)), "an entry for every target, in order"
        assert passages.n_entries == int(scored.sum())
        assert set(passages.documents.tolist()) == set(batch["documents"].flatten().tolist())


def test_a_smaller_budget_is_a_prefix() -> None:
    split = toy_split(1, n=40)
    windows = Windows(split, 8)
    order = training_order(len(windows), 5)
    small, large = windows.passages(order[:10], 9), windows.passages(order[:30], 9)
    np.testing.assert_array_equal(large.tokens[: len(small.tokens)], small.tokens)
    np.testing.assert_array_equal(large.offsets[: len(small.offsets)], small.offsets)


def test_training_order_is_a_permutation_of_its_own() -> None:
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = training_order(1000, 7)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    np.testing.assert_array_equal(training_order(1000, 7), first)
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    for other in (training_order(1000, 8), training_order(1000, 7, epoch=1), np.arange(1000)):
        assert (first != other).mean() > 0.9


def mix(value: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (1, 3), (2**40, 1)])
def test_training_order_agrees_with_plain_integers(seed: int, epoch: int) -> None:
    stream = mix(mix(seed) ^ epoch)
    wanted = sorted(range(200), key=lambda window: mix(window ^ stream))
    assert training_order(200, seed, epoch).tolist() == wanted


def test_training_order_is_the_same_for_ever() -> None:
    assert training_order(10, 0).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]


def test_evaluation_takes_turns_among_documents() -> None:
    split = toy_split(2, n=60)
    windows = Windows(split, 8)
    count = len(windows)
    np.testing.assert_array_equal(evaluation_rows(split, 8), np.arange(count))
    np.testing.assert_array_equal(evaluation_rows(split, 8, 10**9), np.arange(count))
    has = np.bincount(windows.first_document)
    for wanted in (1, 20, 70, count - 1):
        rows = evaluation_rows(split, 8, 8 * wanted)
        assert len(set(rows.tolist())) == len(rows) == wanted
        assert (np.diff(rows) > 0).all()
        takes = np.bincount(windows.first_document[rows], minlength=len(has))
        # Nobody gets another turn while somebody who has more waits for it.
        assert takes.max() - takes[has > takes].min(initial=takes.max()) <= 1
        assert set(rows) <= set(evaluation_rows(split, 8, 8 * (wanted + 5)))
        if wanted == 70:
            assert takes.max() > 1


def test_clear_errors() -> None:
    split = toy_split(0, n=1)
    with pytest.raises(CorpusError, match=r"fewer than one window .* shorter windows or more text"):
        Windows(split, len(split))
    with pytest.raises(CorpusError, match="give 1 or more"):
        Windows(split, 0)
    windows = Windows(split, 2)
    for wrong in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"which has {len(windows)}"):
            windows.batch(np.array([0, wrong]))
