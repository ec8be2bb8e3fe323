from collections import Counter

import numpy as np
import pytest

from experiments.controls import recency
from experiments.controls.counts import COUNT_BINS
from experiments.controls.recency import N_BUCKETS, ORDERS

V = 5


def naive(text, labels, t, word):
    """The probability of a word after position t, and the bucket, with dictionaries."""
    begin = next(place for place in range(t + 1) if labels[place] == labels[t])
    past, probability, bucket = list(text[begin : t + 1]), 1 / V, 0
    for order in range(ORDERS):
        context = past[len(past) - order :] if order else []
        followers = Counter(
            past[end]
            for end in range(max(order, 1), len(past))
            if order == 0 or past[end - order : end] == context
        )
        if len(past) < order or not followers:
            break
        times = sum(followers.values())
        probability = (followers[word] + probability) / (times + 1)
        bucket = 1 + order * COUNT_BINS + min(int(np.log2(times)), COUNT_BINS - 1)
    return probability, bucket


def windows(seed=0, n=3, time=40):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, V, (n, time + 1))
    text[:, 20:28] = text[:, 3:11]
    labels = np.zeros((n, time), np.int64)
    labels[1, 15:], labels[2, 1:], labels[2, 30:] = 1, 1, 2
    targets = text[:, 1:].copy()
    targets[:, ::9] = -100
    return text[:, :-1], targets, labels


def test_it_says_what_counting_with_dictionaries_says():
    tokens, targets, labels = windows()
    scores = recency(tokens, targets, labels, V)
    for row in range(len(tokens)):
        for t in range(tokens.shape[1]):
            expected, bucket = naive(tokens[row], labels[row], t, targets[row, t])
            assert scores.bucket[row, t] == bucket
            told = 1.0 if targets[row, t] < 0 else expected
            assert scores.probability[row, t] == pytest.approx(told)
    assert scores.bucket.max() < N_BUCKETS


def test_probabilities_sum_to_one_and_know_no_later_token():
    tokens, targets, labels = windows(1)
    words = [recency(tokens, np.full_like(targets, word), labels, V).probability for word in range(V)]
    np.testing.assert_allclose(np.sum(words, 0), 1.0)
    changed = tokens.copy()
    changed[:, 25:] = (changed[:, 25:] + 1) % V
    one = recency(tokens, np.ones_like(targets), labels, V)
    other = recency(changed, np.ones_like(targets), labels, V)
    np.testing.assert_array_equal(one.probability[:, :25], other.probability[:, :25])
    np.testing.assert_array_equal(one.bucket[:, :25], other.bucket[:, :25])
