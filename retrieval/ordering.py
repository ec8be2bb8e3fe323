"""The one order of results: score descending, and of equal scores the smaller id first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

__all__ = ["ID", "NOTHING", "in_order", "turned", "unpacked", "words"]

# The bits of a word that hold the id.
ID = 2**32 - 1
# Sorts behind every neighbour.
NOTHING = np.iinfo(np.int64).max


def turned(bits: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Bits of floats from and to whole numbers in the same order, of any width."""
    return bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)


def words(scores: Float[np.ndarray, "*shape"], ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Integers in the order (score descending, id ascending): the bits of a float, made monotone, before the id.

    Ids have to fit into 32 bits.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # no zero is smaller than another
    return (~turned(bits).astype(np.int64) << 32) | ids


def unpacked(
    found: Int[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, "*shape"], Int[np.ndarray, "*shape"]]:
    """Scores and ids of :func:`words`; minus infinity and -1 of :data:`NOTHING`."""
    bits = ~(found >> 32).astype(np.int32)
    scores = turned(bits).view(np.float32)
    nothing = found == NOTHING
    if not nothing.any():
        return scores, found & ID
    return np.where(nothing, -np.inf, scores), np.where(nothing, -1, found & ID)


def in_order(
    scores: Float[np.ndarray, "n k"], ids: Int[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The same results in the one order, those with an id of -1 last; may change the given arrays.

    Rows that are in order already, as most are that come out of a search, cost next to nothing.
    """
    loose = (scores[:, 1:] >= scores[:, :-1]) | (ids[:, :-1] < 0)
    if loose.any():
        rows = np.flatnonzero(loose.any(1))
        found = words(scores[rows], ids[rows])
        found[ids[rows] < 0] = NOTHING
        found.sort(axis=1)
        scores[rows], ids[rows] = unpacked(found)
    return scores, ids
