import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from experiments.controls.counts import COUNT_BINS, CountModel, _sorted
from experiments.data.windows import IGNORED, Windows
from retrieval.passages import Passages
from tests.experiments.data.toy import split as toy_split


class Naive:
    """The same model with dictionaries, one n-gram at a time."""

    def __init__(self, passages: Passages, order: int) -> None:
        self.order, self.vocab_size = order, passages.vocab_size
        pieces = [
            tuple(passages.tokens[a:b].tolist())
            for a, b in zip(passages.offsets[:-1], passages.offsets[1:], strict=True)
        ]
        raw = {n: Counter() for n in range(1, order + 1)}
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        beginnings: Counter = Counter()
        for piece in pieces:
            for n in range(1, order + 1):
                for end in range(max(n, 2), len(piece) + 1):
                    gram = piece[end - n : end]
                    raw[n][gram] += 1
                    if end > n:
                        before[gram].add(piece[end - n - 1])
                    else:
                        beginnings[gram] += 1
        self.counts: dict[int, dict[tuple[int, ...], int]] = {}
        for n in range(1, order + 1):
            if n == order:
                self.counts[n] = dict(raw[n])
            else:
                self.counts[n] = {gram: len(before[gram]) + beginnings[gram] for gram in raw[n]}
        self.discounts = {n: self._discounts(self.counts[n]) for n in self.counts}
        self.after: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        for counted in self.counts.values():
            for gram, count in counted.items():
                self.after[gram[:-1]][gram[-1]] = count

    def _discounts(self, counts: dict[tuple[int, ...], int]) -> tuple[float, float, float, float]:
        n1, n2, n3, n4 = (sum(1 for count in counts.values() if count == k) for k in (1, 2, 3, 4))
        if not (n1 and n2):
            return 0.0, 0.5, 0.5, 0.5
        y = n1 / (n1 + 2 * n2)
        d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3 if n3 else 2.0
        return 0.0, min(max(d1, 0.1), 0.9), min(max(d2, 0.1), 1.9), min(max(d3, 0.1), 2.9)

    def probability(self, context: tuple[int, ...], word: int) -> float:
        """By the recursion as it is written down."""
        context = context[len(context) - self.order + 1 :] if len(context) >= self.order else context
        lower = self.probability(context[1:], word) if context else 1 / self.vocab_size
        followers = self.after.get(context)
        if not followers:
            return lower
        d = self.discounts[len(context) + 1]
        total = sum(followers.values())
        count = followers.get(word, 0)
        taken = sum(d[min(value, 3)] for value in followers.values())
        return (count - d[min(count, 3)]) / total + taken / total * lower

    def bucket(self, context: tuple[int, ...]) -> int:
        """Longest context seen, and how often."""
        for length in range(min(self.order - 1, len(context)), 0, -1):
            followers = self.after.get(context[len(context) - length :])
            if followers:
                return length * COUNT_BINS + min(int(math.log2(sum(followers.values()))), COUNT_BINS - 1)
        return 0


@pytest.mark.parametrize("order", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("regime", ["documents", "windows"])
def test_agrees_with_dictionaries(order: int, regime: str) -> None:
    for seed in range(3):
        train = toy_split(seed, n=20, vocab_size=6)
        passages = train.passages(6)
        if regime == "windows":
            windows = Windows(train, 10)
            passages = windows.passages(np.arange(len(windows))[::2], 6)
        model, naive = CountModel(passages, order), Naive(passages, order)
        windows = Windows(toy_split(seed + 50, n=6, vocab_size=6), 9)
        batch = {key: value.numpy() for key, value in windows.batch(np.arange(len(windows))).items()}
        scores = model.score(batch["tokens"], batch["targets"], batch["documents"])
        assert scores.probability.shape == scores.bucket.shape == batch["tokens"].shape
        assert scores.bucket.max() < model.n_buckets
        for row, column in np.ndindex(*batch["tokens"].shape):
            target = int(batch["targets"][row, column])
            if target == IGNORED:
                assert scores.probability[row, column] == 1.0
                continue
            begins = max(t for t in range(column + 1) if t == 0 or batch["tokens"][row, t] == 0)
            context = tuple(batch["tokens"][row, begins : column + 1].tolist())
            assert scores.probability[row, column] == pytest.approx(naive.probability(context, target))
            assert scores.bucket[row, column] == naive.bucket(context)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_probabilities_sum_to_one_and_none_is_zero(order: int) -> None:
    model = CountModel(toy_split(1, n=20, vocab_size=30).passages(30), order)
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 8):
        for _ in range(5):
            found = model.distribution(rng.integers(0, 30, length))
            assert found.shape == (30,)
            assert found.sum() == pytest.approx(1.0)
            assert (found > 0).all()


def test_the_bucket_does_not_look_at_the_target() -> None:
    model = CountModel(toy_split(1, n=20, vocab_size=6).passages(6), 4)
    tokens = np.array([[0, 1, 2, 3]])
    buckets = {int(model.score(tokens, np.array([[1, 2, 3, target]])).bucket[0, -1]) for target in range(6)}
    assert len(buckets) == 1


def test_nothing_is_seen_beyond_the_window_the_document_and_the_present() -> None:
    model = CountModel(toy_split(1, n=20, vocab_size=6).passages(6), 4)
    tokens = np.array([[1, 2, 3, 4, 5, 1]])
    targets = np.array([[2, 3, 4, 5, 1, 2]])
    here = model.score(tokens, targets)
    cut = model.score(tokens[:, 2:], targets[:, 2:])
    documents = np.array([[0, 0, 1, 1, 1, 1]])
    parted = model.score(tokens, targets, documents)
    np.testing.assert_array_equal(parted.probability[:, 2:], cut.probability)
    np.testing.assert_array_equal(parted.bucket[:, 2:], cut.bucket)
    assert (parted.probability[:, 2:] != here.probability[:, 2:]).any()
    other, changed = tokens.copy(), targets.copy()
    other[0, 4:], changed[0, 3:] = 2, 2
    later = model.score(other, changed)
    np.testing.assert_array_equal(later.probability[:, :3], here.probability[:, :3])


def test_more_of_the_same_text_predicts_it_better() -> None:
    rng = np.random.default_rng(0)
    phrase = np.append(0, rng.integers(1, 500, 200)).astype(np.uint16)
    passages = Passages(np.tile(phrase, 4), np.arange(5) * 201, vocab_size=500)
    model = CountModel(passages, 5)
    scores = model.score(phrase[None, :-1].astype(np.int64), phrase[None, 1:].astype(np.int64))
    assert scores.probability[0, 5:].min() > 0.3
    assert (scores.bucket[0, 5:] // COUNT_BINS == 4).all()


@pytest.mark.parametrize("largest", [50, 2**50, 2**62], ids=["narrow", "wide", "too wide to pack"])
def test_keys_are_sorted_with_their_places(largest: int) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 50, 400) * (largest // 50)
    places = np.sort(rng.choice(10_000, 400, replace=False))
    order = np.argsort(keys, kind="stable")
    wanted = keys[order].tolist(), places[order].tolist()
    found = _sorted(keys, places)
    assert (found[0].tolist(), found[1].tolist()) == wanted


def test_work_follows_the_formula() -> None:
    passages = toy_split(1, n=20, vocab_size=6).passages(6)
    model = CountModel(passages, 3)
    n = len(passages)
    pieces = [toy_split(1, n=20, vocab_size=6).document(j).tolist() for j in range(20)]
    pairs = {tuple(p[i : i + 2]) for p in pieces for i in range(len(p) - 1)}
    triples = {tuple(p[i : i + 3]) for p in pieces for i in range(len(p) - 2)}
    sort = n * math.ceil(math.log2(n))
    assert model.build_flops == n + 2 * (4 * n + sort) + 10 * (len(pairs) + len(triples))
    assert model.build_bytes == 8 * n + 2 * (32 * n + 16 * sort) + 40 * (len(pairs) + len(triples))
    probes = math.ceil(math.log2(len(pairs) + 1)) + math.ceil(math.log2(len(triples) + 1))
    # What follows a context, met once for each time the context is followed by anything.
    after = defaultdict(set)
    for gram in pairs | triples:
        after[gram[:-1]].add(gram[-1])
    met = sum(len(after[tuple(p[i : i + m])]) for m in (1, 2) for p in pieces for i in range(len(p) - m))
    assert model.read_flops == math.ceil(6 + probes + 2 * 3 + 5 * met / n)
    assert model.read_bytes == math.ceil(8 * 6 + 8 * probes + 2 * 36 + 20 * met / n)
    assert model.build_seconds > 0


def test_reading_is_the_whole_distribution() -> None:
    passages = toy_split(1, n=20, vocab_size=6).passages(6)
    wide = Passages(passages.tokens, passages.offsets, vocab_size=2048)
    narrow, model = CountModel(passages, 3), CountModel(wide, 3)
    assert model.read_flops - narrow.read_flops == 2048 - 6, "unigrams, the one order that is dense"
    assert model.read_bytes - narrow.read_bytes == 8 * (2048 - 6)
    unigrams = CountModel(wide, 1)
    assert (unigrams.read_flops, unigrams.read_bytes) == (2048, 8 * 2048)


def test_very_short_passages() -> None:
    pairs = Passages(np.array([0, 1, 0, 2], np.uint16), np.array([0, 2, 4]), vocab_size=3)
    model = CountModel(pairs, 5)
    assert model.distribution(np.array([0, 1, 2, 1, 2])).sum() == pytest.approx(1)


def test_clear_errors() -> None:
    passages = toy_split(1, vocab_size=6).passages(6)
    with pytest.raises(ValueError, match="give 1 to 8"):
        CountModel(passages, 9)
    with pytest.raises(ValueError, match="nothing to count"):
        CountModel(Passages(np.zeros(3, np.uint16), np.arange(4), vocab_size=2))
    model = CountModel(passages, 2)
    with pytest.raises(ValueError, match="tokens one further on"):
        model.score(np.array([[1, 2, 3]]), np.array([[1, 3, 4]]))
    with pytest.raises(ValueError, match="outside the counted vocabulary of 6"):
        model.score(np.array([[1, 2]]), np.array([[2, 6]]))
