"""Shortlists out of all scores of a query: whatever reaches a bound that the ``k`` best are sure to reach.

Scores may be a product of 32-bit floats, or of keys and queries rounded to bfloat16 (:mod:`retrieval.shortlist`).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrieval.shortlist import float_floor, half_floor, kth_largest, places_by_group, put_in_order, ragged

__all__ = ["group_width", "reaching"]

# Entries of a group, of which the largest score is found first.
_GROUP = 8
# Columns for each of the `k` best up to which everything is compared with the bound; with more, groups are first, most
# of which nothing is listed of.
_DIRECT = 64


def group_width(high: int, k: int) -> int:
    """Entries of a group: few, and groups enough that the ``k`` best are in nearly as many."""
    return min(_GROUP, max(1, high // (4 * k)))


def reaching(scores: Tensor, error: Float[np.ndarray, " n"], k: int, high: int) -> Int[np.ndarray, "n c"]:
    """Columns in which each row may have one of its ``k`` best, -1 behind them.

    The bound: of the largest scores of groups of columns, the ``k``-th largest. At least ``k`` columns reach it, and
    few more do, so nothing has to be sorted.

    Args:
        scores: What was multiplied, minus infinity where there is nothing; may be changed.
        error: The most by which a score may be off, before it was rounded to bfloat16; infinite if that is unknown,
            and all columns are listed then.
        k: How many are wanted.
        high: Columns that count; behind them are as many of minus infinity as fill the last group of
            :func:`group_width`.

    Shapes:
        scores: ``[n, wide]``
    """
    width = group_width(high, k)
    n, wide = scores.shape
    every = ~(error < np.inf)
    unknown = bool(every.any())
    half = scores.dtype == torch.bfloat16
    # As whole numbers, positive ones are in order; the bits of negative ones are turned only if they matter.
    order = scores.view(torch.int16) if half else scores
    for positive in (True, False) if half else (False,):
        if half and not positive:
            put_in_order(scores)
        # Groups take every so manyth column, which one pass over contiguous memory finds.
        largest = order.unflatten(1, (width, wide // width)).amax(1).numpy()
        kth = kth_largest(largest, k)
        floor = half_floor(kth, error) if half else float_floor(kth, error)
        if not positive or (floor[~every] > 0).all():
            break
    if wide <= _DIRECT * k:
        place = _places(order.numpy(), floor, every)
    else:
        place = places_by_group(order.numpy(), largest, floor, every if unknown else None)
    if unknown:
        place = place[place % wide < high]
    begins = np.arange(n) * wide
    counts = np.diff(np.searchsorted(place, begins), append=len(place))
    return ragged(counts, place - np.repeat(begins, counts))


def _places(order: np.ndarray, floor: np.ndarray, every: np.ndarray) -> Int[np.ndarray, " m"]:
    """Where the scores lie that reach their row's bound, and all of some rows."""
    reached = order >= floor[:, None]
    reached[every] = True
    # By eights, as most of these have none.
    packed = np.packbits(reached)
    eight = np.flatnonzero(packed != 0)
    hit = np.flatnonzero(np.unpackbits(packed[eight]).view(np.bool_))
    return 8 * eight[hit >> 3] + (hit & 7)
