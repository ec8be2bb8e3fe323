r"""Shortlists out of all scores of a query: whatever reaches a bound that the ``k`` best are sure to reach.

Scores may be a product of 32-bit floats, or of keys and queries rounded to bfloat16, which processors with instructions
for it multiply several times as fast. With :math:`q' = q + \delta`, :math:`x' = x + \epsilon` the rounded vectors,

.. math:: |\langle q, x \rangle - \langle q', x' \rangle| \le \lVert \delta \rVert (\lVert x \rVert +
   \lVert \epsilon \rVert) + \lVert q \rVert \lVert \epsilon \rVert,

and the lengths of what rounding took away are known. So the shortlist grows by a few entries, and misses none.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["group_width", "multiplies_bfloat16", "reaching", "rounded"]

# Entries of a group, of which the largest score is found first.
_GROUP = 8
# Groups that are so small are not looked at first: comparing everything is faster.
_DIRECT = 4
_LOWEST = float(np.finfo(np.float32).min)
# Half a unit in the last place of a bfloat16, relative to the number.
_HALF_UNIT = 2.0**-8
# Where products of bfloat16 are made, numbers below are zero.
_SMALLEST = 2.0**-126


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16; without, they are slower than of float32."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.backends.mkldnn.is_available() and any(
        found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16")
    )


def rounded(x: Float[Tensor, "*batch d"]) -> tuple[Tensor, Float[Tensor, "*batch"]]:
    """Vectors in bfloat16, and the lengths of what they lost, rounded up.

    Shapes:
        x and first result: ``[*batch, d]``; second: ``[*batch]``
    """
    short = x.to(torch.bfloat16)
    # In 64 bits no square of a 32-bit float is lost; the factor is far above what rounding back can do.
    lost = torch.linalg.vector_norm(x.float() - short.float(), dim=-1, dtype=torch.float64) * (1 + 1e-6)
    return short, (lost + x.shape[-1] ** 0.5 * _SMALLEST).float()


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
    groups = scores.shape[1] // width
    every = ~(error < np.inf)
    half = scores.dtype == torch.bfloat16
    # As whole numbers, positive ones are in order; the bits of negative ones are turned only if they matter.
    order = scores.view(torch.int16) if half else scores
    for positive in (True, False) if half else (False,):
        if half and not positive:
            order.bitwise_xor_((order >> 15).bitwise_and_(0x7FFF))
        # Groups take every so manyth column, which one pass over contiguous memory finds.
        largest = order.unflatten(1, (width, groups)).amax(1).numpy()
        kth = _kth(largest, k)
        floor = _half_floor(kth, error) if half else _floor(kth, error)
        if not positive or (floor[~every] > 0).all():
            break
    return _listed(order.numpy(), largest, floor, every, width, high)


def _kth(largest: np.ndarray, k: int) -> np.ndarray:
    groups = largest.shape[1]
    if groups < k:
        lowest = -np.inf if largest.dtype == np.float32 else np.iinfo(np.int16).min
        return np.full(len(largest), lowest, largest.dtype)
    return np.partition(largest, groups - k, axis=1)[:, groups - k]


def _floor(kth: Float[np.ndarray, " n"], error: np.ndarray) -> Float[np.ndarray, " n"]:
    with np.errstate(invalid="ignore"):
        bound = np.nan_to_num(kth - 2 * error.astype(np.float64), nan=_LOWEST)
    # No score is minus infinity: such a slot is empty.
    return np.clip(bound, _LOWEST, -_LOWEST).astype(np.float32)


def _half_floor(kth: Int[np.ndarray, " n"], error: np.ndarray) -> Int[np.ndarray, " n"]:
    """The same for the bits of numbers that were rounded to bfloat16, made monotone."""
    score = torch.from_numpy(_turned(kth)).view(torch.bfloat16).float().numpy().astype(np.float64)
    # What the k best are at least, less what one of them may have lost. Rounding keeps the order.
    floor = torch.from_numpy(_floor(score - _HALF_UNIT * np.abs(score), error)).to(torch.bfloat16)
    # One less, for a zero that is negative, or a number that was cut instead of rounded.
    return np.maximum(_turned(floor.view(torch.int16).numpy()), _LEAST) - np.int16(1)


def _turned(bits: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Bits of floats from and to whole numbers in the same order."""
    return bits ^ ((bits >> 15) & np.int16(0x7FFF))


# One above minus infinity, so that one less is not below.
_LEAST = _turned(np.array([-0x80], np.int16))[0] + np.int16(2)


def _listed(
    order: np.ndarray, largest: np.ndarray, floor: np.ndarray, every: np.ndarray, width: int, high: int
) -> Int[np.ndarray, "n c"]:
    n, wide = order.shape
    groups = wide // width
    reached = (order if width <= _DIRECT else largest) >= floor[:, None]
    reached[every] = True
    hit = np.flatnonzero(reached)
    row = hit // reached.shape[1]
    column = hit - row * reached.shape[1]
    if width > _DIRECT:
        # Nearly all of these groups have one entry on the list: little may be done for each of their entries.
        place = (column + row * wide)[:, None] + np.arange(0, wide, groups)
        hits = order.ravel().take(place) >= floor[row][:, None]
        if every.any():
            hits |= every[row][:, None]
        hit = np.flatnonzero(hits)
        group = hit // width
        row, column = row[group], column[group] + (hit - group * width) * groups
    if every.any():
        row, column = row[column < high], column[column < high]
    counts = np.bincount(row, minlength=n)
    slots = np.full((n, max(1, int(counts.max(initial=0)))), -1, np.int64)
    # Where the j-th entry of row i is in one long row, less where its row begins among all entries.
    shift = np.arange(n) * slots.shape[1] - (counts.cumsum() - counts)
    slots.ravel()[np.arange(len(column)) + shift[row]] = column
    return slots
