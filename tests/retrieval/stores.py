"""Small stores in both regimes, and a readable longest-suffix search to hold sources against."""

from __future__ import annotations

import numpy as np
import torch

from retrieval import Passages, Source


def documents(seed: int, *, n: int = 8, longest: int = 40, vocab_size: int = 6) -> Passages:
    """Whole documents: one passage each, beginning with token 0; some empty, some of one token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, n)
    parts = [
        np.concatenate([[0], rng.integers(1, vocab_size, size - 1)]) if size else np.zeros(0)
        for size in lengths
    ]
    return Passages(
        np.concatenate([*parts, np.zeros(0)]).astype(np.uint16),
        np.concatenate([[0], np.cumsum(lengths)]),
        rng.permutation(n) + 3,
        vocab_size=vocab_size,
    )


def windows(seed: int, *, n: int = 12, length: int = 17, vocab_size: int = 6) -> Passages:
    """Training windows: several share a document, and those of one document are not side by side."""
    rng = np.random.default_rng(seed)
    return Passages(
        rng.integers(0, vocab_size, n * length).astype(np.uint16),
        np.arange(n + 1) * length,
        rng.integers(0, 4, n),
        vocab_size=vocab_size,
    )


def contexts(passages: Passages) -> list[tuple[int, list[int], int]]:
    """Every entry as (position, tokens of its passage up to itself, document)."""
    found = []
    for j, document in enumerate(passages.documents):
        start, stop = int(passages.offsets[j]), int(passages.offsets[j + 1])
        for p in range(start, stop - 1):
            found.append((p, [int(t) for t in passages.tokens[start : p + 1]], int(document)))
    return found


def match_length(one: list[int], other: list[int]) -> int:
    """How many tokens two contexts share, counted from their ends."""
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    return n


def seen(tokens: torch.Tensor, labels: torch.Tensor | None, b: int, t: int) -> list[int]:
    """What the query at (b, t) may look at."""
    start = t
    while start > 0 and (labels is None or labels[b, start - 1] == labels[b, t]):
        start -= 1
    return tokens[b, start : t + 1].tolist()


def queries(seed: int, passages: Passages, batch: int = 3, time: int = 14) -> dict[str, torch.Tensor]:
    """A batch that quotes the store, with changes of document inside it and documents to exclude."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, passages.vocab_size, (batch, time))
    for b in range(batch):
        if len(passages) > 9:
            at, to = rng.integers(0, len(passages) - 9), rng.integers(0, time - 9)
            tokens[b, to : to + 9] = passages.tokens[at : at + 9]
    labels = np.cumsum(rng.random((batch, time)) < 0.15, axis=1)
    exclude = rng.choice(np.concatenate([[-1], passages.documents]), (batch, time))
    return {
        "tokens": torch.from_numpy(tokens),
        "documents": torch.from_numpy(labels),
        "exclude": torch.from_numpy(exclude),
    }


def own_queries(source: Source, passages: Passages) -> list[tuple[int, torch.Tensor]]:
    """Each passage as one row of queries, with the position its first token has in the store."""
    return [
        (int(start), torch.from_numpy(passages.tokens[start:stop].astype(np.int64))[None])
        for start, stop in zip(passages.offsets[:-1], passages.offsets[1:], strict=True)
        if stop > start
    ]
