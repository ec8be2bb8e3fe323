"""The control that has no network: a count n-gram over the very text an arm was trained on."""

import math
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from experiments.data.windows import IGNORED
from retrieval.passages import Passages

COUNT_BINS = 8
FEWEST_DISCOUNTED = 0.1  # a discount of 0 would leave no probability for what was never seen


@dataclass(frozen=True)
class CountScores:
    """What the counts say at each position of evaluation windows.

    Args:
        probability: of the target given the tokens before it; 1 where the target is ignored.
        bucket: how much the counts know there: longest context seen × how often. It depends on the context
            alone, so weights by bucket keep a mixture of distributions a distribution.
    """

    probability: Float[np.ndarray, "n time"]
    bucket: Int[np.ndarray, "n time"]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order.

    ``keys`` are (rank of the first n - 1 tokens) · vocabulary + last token, ascending: an n-gram's place in
    them is its rank. ``counts`` are theirs; ``totals`` and ``backoff`` belong to contexts, by rank.
    ``successors`` is how many different tokens follow the context of a position, on average over the text.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    backoff: np.ndarray
    discounts: np.ndarray
    successors: float


class CountModel:
    r"""Interpolated count n-gram with modified Kneser-Ney smoothing.

    `An Empirical Study of Smoothing Techniques for Language Modeling
    <https://dash.harvard.edu/handle/1/25104739>`_ (Chen and Goodman, 1998):

    .. math::
        p_n(w \mid c) = \frac{\max(a(cw) - D(a(cw)), 0)}{\sum_v a(cv)} + \gamma(c)\, p_{n-1}(w \mid c'),

    where :math:`c'` is the context without its first token, :math:`\gamma` hands on exactly what the
    discounts :math:`D` (three an order, estimated from counts of counts) took, and :math:`p_0` is uniform. At
    the highest order :math:`a` counts occurrences; below it, the different tokens seen before :math:`cw`, and
    each occurrence at the beginning of a passage. An unseen context leaves :math:`p_{n-1}` as it is, so the
    probabilities of all tokens sum to one.

    Work is counted by formula, one FLOP a comparison, addition, multiplication or division, for `n` tokens
    and :math:`u_m` different m-grams, :math:`m = 2 \ldots` order:

    * build: packing keys 2n, sorting :math:`n \lceil\log_2 n\rceil`, grouping 2n, statistics :math:`10 u_m`;
      bytes: 16 a key and pass of a sort (one read, one write of 8 each), 32n for packing and grouping,
      :math:`40 u_m` for statistics;
    * read, a position, the whole distribution over `V` tokens. Only the unigrams are dense over `V`: all
      backoffs multiplied together scale them once, V; bytes: 8V, read and written at 4 each. An order above
      is sparse: a binary search of :math:`\lceil\log_2 (u_m + 1)\rceil` comparisons for where the successors
      of its context begin, 2 for the key, 1 for the product of backoffs, then for each of the
      :math:`s_m` successors 5: is it still one, subtract, divide, scale, add; bytes: 8 a probe, 36 for the
      context's total, backoff and the discounts, 20 a successor (key 8, count 4, its entry read and written).
      :math:`s_m` is the mean over the counted text, where no context is unseen; other text tends to have fewer.

    Args:
        passages: the text; no n-gram crosses the edge of a passage.
        order: length of the longest n-gram, the target included (5: four tokens of context).

    Raises:
        ValueError: `order` is not 1 to 8, or the passages have no token with one before it.
    """

    def __init__(self, passages: Passages, order: int = 5) -> None:
        if not 1 <= order <= 8:
            raise ValueError(f"order is {order}; give 1 to 8")
        if passages.n_entries < 1:
            raise ValueError("no token of these passages has one before it, so there is nothing to count")
        began = time.perf_counter()
        self.order = order
        self.vocab_size = passages.vocab_size
        self.n_buckets = order * COUNT_BINS
        self.n_tokens = len(passages)
        self._unigram: np.ndarray
        self._levels: list[_Level] = []  # of orders 2, 3, ...
        self._count(passages)
        self.build_flops, self.build_bytes = self._price_of_building()
        self.read_flops, self.read_bytes = self._price_of_reading()
        self.build_seconds = time.perf_counter() - began

    def __repr__(self) -> str:
        grams = ", ".join(f"{len(level.keys):,}" for level in self._levels)
        return f"CountModel(order={self.order}, {self.n_tokens:,} tokens, n-grams: {grams})"

    def score(
        self,
        tokens: Int[np.ndarray, "n time"],
        targets: Int[np.ndarray, "n time"],
        documents: Int[np.ndarray, "n time"] | None = None,
    ) -> CountScores:
        """The probability of every target given the tokens before it in its window and document.

        Args:
            tokens: evaluation windows.
            targets: the same one further on; -100 where nothing is to be predicted.
            documents: labels; a context never reaches over a change of label.

        Raises:
            ValueError: the targets are not the tokens that follow.
        """
        tokens, targets = np.asarray(tokens, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        ignored = targets == IGNORED
        if not (ignored[:, :-1] | (targets[:, :-1] == tokens[:, 1:])).all():
            raise ValueError("targets must be the tokens one further on (or -100)")
        if tokens.size and max(tokens.max(), targets.max()) >= self.vocab_size:
            raise ValueError(f"a token is outside the counted vocabulary of {self.vocab_size}")
        n, length = tokens.shape
        # One column more, so that every n-gram that ends in a target is looked up once, as an n-gram.
        text = np.concatenate([tokens, np.where(ignored, 0, targets)[:, -1:]], axis=1)
        depth = _depth(documents, n, length)
        probability = self._unigram[np.where(ignored, 0, targets)]
        bucket = np.zeros((n, length), dtype=np.int64)
        ranks = text
        for order, level in enumerate(self._levels, start=2):
            if not len(level.keys):
                break
            found = np.full(text.shape, -1, dtype=np.int64)
            possible = (ranks[:, :-1] >= 0) & (depth[:, 1:] >= order - 1)
            keys = ranks[:, :-1] * self.vocab_size + text[:, 1:]
            found[:, 1:][possible] = _find(level.keys, keys[possible])
            context = ranks[:, :-1]
            totals = np.where(context >= 0, level.totals[context], 0)
            seen = totals > 0
            ends = found[:, 1:]
            counts = np.where(ends >= 0, level.counts[ends], 0)
            kept = counts - level.discounts[np.minimum(counts, 3)]
            mixed = kept / np.maximum(totals, 1) + level.backoff[context] * probability
            probability = np.where(seen, mixed, probability)
            bins = np.minimum(np.log2(np.maximum(totals, 1)).astype(np.int64), COUNT_BINS - 1)
            bucket = np.where(seen, (order - 1) * COUNT_BINS + bins, bucket)
            ranks = found
        return CountScores(np.where(ignored, 1.0, probability), bucket)

    def distribution(self, context: Int[np.ndarray, " time"]) -> Float[np.ndarray, " vocab"]:
        """The probability of every token after one context."""
        tokens = np.repeat(np.asarray(context, dtype=np.int64)[None], self.vocab_size, axis=0)
        targets = np.concatenate([tokens[:, 1:], np.arange(self.vocab_size)[:, None]], axis=1)
        return self.score(tokens, targets).probability[:, -1]

    def _count(self, passages: Passages) -> None:
        tokens = passages.tokens
        starts = np.repeat(passages.offsets[:-1], np.diff(passages.offsets))
        depth = np.minimum(np.arange(len(tokens)) - starts, self.order).astype(np.int8)
        del starts
        ranks = tokens.astype(
            np.int32
        )  # rank of the m-gram ending at each position; a single token's is itself
        size = self.vocab_size
        # The order before, whose counts take this one: keys, contexts, successors.
        below: tuple[np.ndarray, int, float] | None = None
        occurrences = np.bincount(tokens[depth > 0], minlength=size)
        for order in range(2, self.order + 1):
            ends = np.flatnonzero(depth >= order - 1)
            keys = ranks[ends - 1].astype(np.int64) * self.vocab_size + tokens[ends]
            keys, ends = _sorted(keys, ends)
            fresh = np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]])
            begins = np.flatnonzero(fresh)
            counts = np.diff(np.append(begins, len(keys)))
            # Each different n-gram gives the (n-1)-gram at its end one more token seen before it.
            preceded = np.bincount(ranks[ends[begins]], minlength=size)
            if below is None:
                self._unigram = _unigram(preceded, self.vocab_size)
            else:
                first = depth == order - 2
                preceded += np.bincount(ranks[first], minlength=size)
                self._levels.append(self._level(*below, preceded))
            size_below, size = size, len(begins)
            if order < self.order:
                ranks = np.full(len(tokens), -1, dtype=np.int32)
                ranks[ends] = np.cumsum(fresh, dtype=np.int32) - 1
            grams = keys[begins]
            context = grams // self.vocab_size
            below = grams, size_below, float(np.bincount(context)[context] @ counts) / len(tokens)
            occurrences = counts
        if below is None:
            self._unigram = _unigram(occurrences, self.vocab_size)
        else:
            self._levels.append(self._level(*below, occurrences))

    def _level(self, keys: np.ndarray, size: int, successors: float, counts: np.ndarray) -> _Level:
        context = keys // self.vocab_size
        totals = np.bincount(context, weights=counts, minlength=size)
        discounts = _discounts(counts)
        taken = np.bincount(context, weights=discounts[np.minimum(counts, 3)], minlength=size)
        backoff = taken / np.maximum(totals, 1)
        return _Level(keys, counts.astype(np.int32), totals.astype(np.int32), backoff, discounts, successors)

    def _price_of_building(self) -> tuple[int, int]:
        n = self.n_tokens
        passes = (n - 1).bit_length()
        flops = sum(4 * n + n * passes + 10 * len(level.keys) for level in self._levels)
        moved = sum(16 * n * passes + 32 * n + 40 * len(level.keys) for level in self._levels)
        return flops + n, moved + 8 * n

    def _price_of_reading(self) -> tuple[int, int]:
        probes = [len(level.keys).bit_length() for level in self._levels]
        successors = sum(level.successors for level in self._levels)
        flops = self.vocab_size + sum(probes) + 3 * len(probes) + 5 * successors
        moved = 8 * self.vocab_size + 8 * sum(probes) + 36 * len(probes) + 20 * successors
        return math.ceil(flops), math.ceil(moved)


def _depth(documents: np.ndarray | None, n: int, length: int) -> np.ndarray:
    """How many tokens of window and document stand before each position, and before the last target."""
    place = np.broadcast_to(np.arange(length), (n, length))
    if documents is None:
        depth = place
    else:
        change = np.zeros((n, length), dtype=bool)
        change[:, 1:] = documents[:, 1:] != documents[:, :-1]
        depth = place - np.maximum.accumulate(np.where(change, place, 0), axis=1)
    return np.concatenate([depth, depth[:, -1:] + 1], axis=1)


def _sorted(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys in ascending order with their places, which ascend among equal keys."""
    bits = int(places.max(initial=0)).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits <= 63:
        # Both in one word: sorting words is twice as fast as sorting an index, and gathers nothing afterwards.
        keys <<= bits
        keys |= places
        keys.sort()
        return keys >> bits, keys & ((1 << bits) - 1)
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The places of wanted keys in ascending keys; -1 where there is none."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(wanted)  # neighbouring searches then touch neighbouring memory
    place = np.minimum(np.searchsorted(keys, wanted[order]), len(keys) - 1)
    result = np.empty(len(wanted), dtype=np.int64)
    result[order] = np.where(keys[place] == wanted[order], place, -1)
    return result


def _unigram(counts: np.ndarray, vocab_size: int) -> np.ndarray:
    discounts = _discounts(counts)
    kept = counts - discounts[np.minimum(counts, 3)]
    return (kept + discounts[np.minimum(counts, 3)].sum() / vocab_size) / counts.sum()


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and of 3 and more."""
    n1, n2, n3, n4 = (float((counts == value).sum()) for value in (1, 2, 3, 4))
    if not (n1 and n2):
        return np.array([0.0, 0.5, 0.5, 0.5])  # too little text to estimate them from
    y = n1 / (n1 + 2 * n2)
    estimates = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3 if n3 else 2.0)
    bounded = [
        min(max(d, FEWEST_DISCOUNTED), k - FEWEST_DISCOUNTED) for k, d in enumerate(estimates, start=1)
    ]
    return np.array([0.0, *bounded])
