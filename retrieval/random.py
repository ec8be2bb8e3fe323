"""The control: entries of the same store that have nothing to do with the query."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import torch
from jaxtyping import Int

from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.source import Source

__all__ = ["RandomSource"]


class RandomSource(Source):
    r"""Random entries of the store, the same ones whenever the same context asks.

    The context and the seed are hashed to two numbers, a start :math:`s` and a step :math:`g` coprime to the number
    of entries :math:`N`; the neighbours are the entries :math:`s + i\,g \bmod N`, those of the excluded document left
    out. All scores are 0. What an arm gains with it, it owes to reading *something*, not to reading what is similar.

    Args:
        passages: What is stored.
        seed: Which random choice.
        depth: How many recent tokens make up the context that is hashed.
    """

    def __init__(self, passages: Passages, *, seed: int = 0, depth: int = 16) -> None:
        begin = time.perf_counter()
        self.passages = passages
        self.depth = depth
        self.seed = seed
        self._entries = passages.entries()
        self.build_flops = {}
        self.build_bytes = {}
        self.build_seconds = time.perf_counter() - begin
        self.fingerprint = hashlib.sha256(
            f"random-1 {seed} {depth} {passages.fingerprint}".encode()
        ).hexdigest()

    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """See :meth:`Source.search`."""
        n, size = len(context), len(self._entries)
        start, step = _hash(context, self.seed), _hash(context, self.seed + 1)
        first = (start % np.uint64(size)).astype(np.int64)
        stride = 1 + (step % np.uint64(size)).astype(np.int64)
        while len(clash := np.flatnonzero(np.gcd(stride, size) != 1)):
            stride[clash] += 1
        found = np.full((n, k), -1, np.int64)
        rows, drawn, looked = np.arange(n), min(k + 8, size), 0
        while True:
            steps = np.arange(drawn, dtype=np.int64)
            ids = self._entries[(first[rows, None] + stride[rows, None] * steps) % size]
            allowed = self.passages.labels[ids] != exclude[rows, None]
            order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            found[rows, :width] = np.where(
                np.take_along_axis(allowed, order, 1), np.take_along_axis(ids, order, 1), -1
            )
            looked += ids.size
            rows = rows[allowed.sum(1) < k]
            if not len(rows) or drawn == size:
                break
            drawn = min(4 * drawn, size)
        found = np.where(found < 0, np.iinfo(np.int64).max, found)
        found.sort(axis=1)
        ids = torch.from_numpy(np.where(found == np.iinfo(np.int64).max, -1, found))
        return Neighbors.of(torch.zeros(n, k), ids, bytes=12 * looked)


def _hash(context: np.ndarray, seed: int) -> np.ndarray:
    """One 64-bit number a row, every bit of which depends on every token (splitmix64's finalizer)."""
    state = np.full(len(context), seed, np.uint64)
    for column in context.T.astype(np.uint64):
        state = (state + column + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(2**64 - 1)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
