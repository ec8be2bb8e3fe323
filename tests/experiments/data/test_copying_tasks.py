import numpy as np
import pytest
import torch

from experiments.data import CorpusError, Windows
from experiments.data.copying_tasks import BLANK, DELIMITER, END, SPECIAL, CopyCorpus, copy_examples
from experiments.data.module import CopyData


def written(length, repeats, drawn):
    """An example as the task is told, one token after the other."""
    tokens, answers = [*drawn], [-100] * length
    for _ in range(repeats or 1):
        tokens.append(DELIMITER)
        answers.append(-100)
    for _ in range(repeats or 1):
        for symbol in drawn:
            tokens.append(BLANK)
            answers.append(symbol)
    if repeats is not None:
        tokens.append(BLANK)
        answers.append(END)
    return tokens, answers


@pytest.mark.parametrize("repeating", [False, True])
@pytest.mark.parametrize("size", [None, 80])
def test_examples_are_as_told(repeating, size):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 50)
    repeats = generator.integers(1, 5, 50) if repeating else None
    tokens, answers = copy_examples(lengths, 6, generator, repeats, size)
    ends = []
    for row in range(50):
        length, times = int(lengths[row]), int(repeats[row]) if repeating else None
        expected = written(length, times, tokens[row, :length])
        end = len(expected[0])
        assert tokens[row, :end].tolist() == expected[0]
        assert answers[row, :end].tolist() == expected[1]
        assert (tokens[row, end:] == BLANK).all()
        assert (answers[row, end:] == -100).all()
        ends.append(end)
    assert tokens.shape == answers.shape == (50, size or max(ends))
    symbols = answers[(answers >= 0) & (answers != END)]
    assert symbols.min() == SPECIAL
    assert symbols.max() == SPECIAL + 5


def test_symbols_and_lengths_are_as_likely():
    corpus = CopyCorpus(4, (2, 5), examples=4000).load()
    windows = Windows(corpus.train, 12)
    batch = windows.batch(np.arange(len(windows)))
    asked = (batch["targets"] >= 0).sum(1)
    assert (np.abs(np.bincount(asked, minlength=6)[2:] - 1000) < 120).all()
    counts = np.bincount(batch["targets"][batch["targets"] >= 0])[SPECIAL:]
    assert (np.abs(counts / counts.sum() - 0.25) < 0.02).all()


@pytest.mark.parametrize("repeats", [None, (1, 3)])
def test_windows_hold_whole_examples(repeats):
    source = CopyCorpus(5, (1, 4), repeats, examples=60, test_examples=20)
    corpus = source.load()
    assert source.longest == (9 if repeats is None else 20)
    windows = Windows(corpus.train, source.longest + 1)
    assert len(windows) == 60
    batch = windows.batch(np.arange(60))
    assert (batch["tokens"][:, 0] == 0).all()
    assert (batch["documents"] == batch["documents"][:, :1]).all()
    assert int(batch["tokens"].max()) < corpus.vocab_size
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        length = tokens.index(DELIMITER) - 1
        times = None if repeats is None else tokens.count(DELIMITER)
        expected = written(length, times, tokens[1 : length + 1])
        assert tokens[1 : 1 + len(expected[0])] == expected[0]
        assert targets[1 : 1 + len(expected[1])] == expected[1]


def test_the_same_corpus_each_time_and_another_for_another_seed():
    one, same, other = CopyCorpus().load(), CopyCorpus().load(), CopyCorpus(seed=1).load()
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert not np.array_equal(one.train.tokens, other.train.tokens)


def test_longer_ones_have_the_same_vocabulary():
    short, longer = CopyCorpus(repeats=(1, 3)), CopyCorpus(lengths=(9, 9), repeats=(6, 6))
    assert short.vocab_size == longer.vocab_size == CopyCorpus().vocab_size == SPECIAL + 16


def test_as_batches():
    data = CopyData(CopyCorpus(examples=32, test_examples=4), batch_size=4)
    batch = next(iter(data.training()))
    assert batch["tokens"].shape == (4, 42)
    assert torch.equal(batch["targets"] == -100, batch["targets"] < 0)
    assert CopyData(CopyCorpus(lengths=(1, 2), examples=16)).length == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"symbols": 0}, "0 symbols"),
        ({"lengths": (0, 3)}, "lengths from 0 to 3"),
        ({"lengths": (4, 3)}, "lengths from 4 to 3"),
        ({"repeats": (2, 1)}, "repeats from 2 to 1"),
    ],
)
def test_what_goes_wrong_is_said(settings, told):
    with pytest.raises(CorpusError, match=told):
        CopyCorpus(**settings)
