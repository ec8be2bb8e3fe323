import numpy as np
import pytest
import torch

from experiments.data import CorpusError, RecallCorpus, Windows
from experiments.data.module import RecallData
from experiments.data.recall import recall_examples
from experiments.data.tasks import task_corpus


def small(**settings) -> RecallCorpus:
    return RecallCorpus(**{"vocab_size": 64, "lengths": (15, 31), "pairs": (2, 3), "examples": 80} | settings)


def test_each_key_comes_back_once_and_is_asked_its_value():
    tokens, answers = recall_examples(300, 40, 5, 64, 0.01, np.random.default_rng(0))
    assert tokens.shape == answers.shape == (300, 40)
    assert tokens.min() >= 1
    assert tokens.max() < 64
    for text, asked in zip(tokens, answers, strict=True):
        keys, values = text[:10:2], text[1:10:2]
        assert len(set(keys)) == len(set(values)) == 5
        assert keys.max() < 32 <= values.min()
        at = np.flatnonzero(asked >= 0)
        assert len(at) == 5
        assert ((at >= 10) & (at % 2 == 0)).all()
        assert sorted(text[at]) == sorted(keys)
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[key] for key in text[at]] == list(asked[at])


def test_every_key_and_place_is_drawn():
    tokens, answers = recall_examples(4000, 12, 2, 16, 1.0, np.random.default_rng(1))
    assert np.bincount(tokens[:, 0], minlength=8)[1:].min() > 450  # 7 keys: 571 on average
    assert np.bincount(tokens[:, 1], minlength=16)[8:].min() > 400  # 8 values: 500
    places = np.bincount(np.nonzero(answers >= 0)[1], minlength=12)
    # By a power of 1 all four places are as likely: half of 4,000 each.
    assert (np.abs(places[4::2] - 2000) < 200).all()
    assert not places[5::2].any()
    assert not places[:4].any()
    _, near = recall_examples(4000, 12, 2, 16, 0.01, np.random.default_rng(1))
    places = np.bincount(np.nonzero(near >= 0)[1], minlength=12)[4::2]
    assert (np.diff(places) < 0).all()


def test_windows_hold_whole_examples():
    corpus = small().load()
    windows = Windows(corpus.train, 32)
    batch = windows.batch(np.arange(len(windows)))
    tokens, targets, documents = (batch[name].numpy() for name in ("tokens", "targets", "documents"))
    assert (tokens[:, 0] == 0).all()
    for text, asked, labels in zip(tokens, targets, documents, strict=True):
        for label in np.unique(labels):
            example, answers = text[labels == label], asked[labels == label]
            assert len(example) in (16, 32)
            at = np.flatnonzero(answers >= 0)
            assert len(at) in (2, 3)
            pairs = dict(zip(example[1 : 1 + 2 * len(at) : 2], example[2 : 2 + 2 * len(at) : 2], strict=True))
            assert [pairs[key] for key in example[at]] == list(answers[at])
    # A quarter of the examples is of each length and number of pairs.
    sizes = np.diff(corpus.train.offsets[:-1])
    assert (sizes == 16).sum() == (sizes == 32).sum() == 40


def test_the_same_corpus_each_time_and_another_for_another_seed():
    one, same, other = small().load(), small().load(), small(seed=1).load()
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert np.array_equal(one.train.tokens, same.train.tokens)
    assert not np.array_equal(one.train.tokens, other.train.tokens)
    assert not np.array_equal(one.valid.tokens[:64], one.test.tokens[:64])


def test_as_batches():
    data = RecallData(small(), batch_size=4)
    batch = next(iter(data.training()))
    assert batch["tokens"].shape == (4, 32)
    assert torch.equal(batch["targets"] >= 0, batch["targets"] != -100)
    assert data.corpus.bits_per_byte(np.log(2.0) * 5, 5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pairs": (40,)}, "give 1 to 31"),
        ({"pairs": (4,)}, "4 pairs need examples of 16 tokens, got 15"),
        ({"lengths": (15, 32)}, "must divide the longest"),
        ({"examples": 0}, "too few examples"),
        ({"vocab_size": 2**17}, "give 2 to 65536"),
    ],
)
def test_what_goes_wrong_is_said(settings, told):
    with pytest.raises(CorpusError, match=told):
        small(**settings).load()


def test_a_task_of_ones_own():
    def examples(split, generator):
        tokens = generator.integers(1, 5, (3, 7))
        return [(tokens, np.where(tokens == 4, 1, -100))]

    corpus = task_corpus("fours", 5, examples, 0, {})
    batch = Windows(corpus.test, 8).batch(np.arange(3))
    assert torch.equal(batch["targets"] == 1, batch["tokens"] == 4)
