"""The control that has no network and no store: what the text itself has said so far, counted."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from experiments.controls.counts import COUNT_BINS, CountScores
from experiments.data.windows import IGNORED

ORDERS = 5
N_BUCKETS = 1 + ORDERS * COUNT_BINS


def recency(
    tokens: Int[np.ndarray, "n time"],
    targets: Int[np.ndarray, "n time"],
    documents: Int[np.ndarray, "n time"],
    vocab_size: int,
) -> CountScores:
    r"""A count n-gram over the earlier part of the same document in the same window.

    What a cache in a network does at least, without one: `A cache-based natural language model for speech recognition
    <https://doi.org/10.1109/34.56193>`_ (Kuhn and De Mori, 1990), with contexts. For a context of the last :math:`m`
    tokens that was seen :math:`n_m` times, followed by :math:`w` in :math:`a_m(w)` of them,

    .. math:: p_m(w) = \frac{a_m(w) + p_{m-1}(w)}{n_m + 1}, \qquad p_{-1} = \frac{1}{V},

    up to four tokens of context. Probabilities of all tokens sum to one.

    Args:
        tokens: Evaluation windows.
        targets: The same one further on; -100 where nothing is to be predicted.
        documents: Labels; nothing is counted beyond a change of label.
        vocab_size: Number of tokens.

    Returns:
        The probability of each target; and the bucket: longest context seen, and how often.
    """
    n, time = tokens.shape
    probability, bucket = np.full((n, time), 1 / vocab_size), np.zeros((n, time), np.int64)
    earlier = np.tri(time, k=-1, dtype=bool)
    for row, (text, asked, labels) in enumerate(zip(tokens, targets, documents, strict=True)):
        alike = labels[:, None] == labels
        # What stood at s was followed by the token at s + 1, which t > s knows.
        right = np.append(text[1:], IGNORED) == asked[:, None]
        seen, agree = earlier & alike, alike & (text[:, None] == text)
        for order in range(ORDERS):
            if order:
                back = order - 1
                inside = np.append(np.full(back, -1), labels[: time - back]) == labels
                seen = seen & np.pad(agree[: time - back, : time - back], ((back, 0), (back, 0))) & inside
            times, hits = seen.sum(1), (seen & right).sum(1)
            probability[row] = np.where(times, (hits + probability[row]) / (times + 1), probability[row])
            often = np.minimum(np.log2(np.maximum(times, 1)).astype(np.int64), COUNT_BINS - 1)
            bucket[row] = np.where(times, 1 + order * COUNT_BINS + often, bucket[row])
    probability[targets == IGNORED] = 1.0
    return CountScores(probability, bucket)


def recency_price(time: int) -> tuple[int, int]:
    """FLOPs and bytes a position of :func:`recency`: every earlier position is compared, and counted at each order.

    Args:
        time: Positions in a window; half of them are earlier, on average.
    """
    return time // 2 * (2 + 3 * ORDERS), time // 2 * 8 * (1 + ORDERS)
