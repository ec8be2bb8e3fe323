r"""Scores in bfloat16, and which of them may belong to the ``k`` best of exact ones.

Keys and queries rounded to bfloat16 are multiplied several times as fast where a processor has instructions for it.
With :math:`q' = q + \delta`, :math:`x' = x + \epsilon` the rounded vectors,

.. math:: |\langle q, x \rangle - \langle q', x' \rangle| \le \lVert \delta \rVert (\lVert x \rVert +
   \lVert \epsilon \rVert) + \lVert q \rVert \lVert \epsilon \rVert,

and the lengths of what rounding took away are known. So a shortlist by rounded scores is a little longer than what is
wanted, and misses nothing.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrieval.ordering import turned

__all__ = [
    "HIGHEST",
    "LOWEST",
    "float_floor",
    "half_floor",
    "kth_largest",
    "multiplies_bfloat16",
    "places_by_group",
    "put_in_order",
    "ragged",
    "rounded",
]

# The ends of the order of bfloat16's bits as whole numbers.
LOWEST, HIGHEST = (np.int16(end) for end in (np.iinfo(np.int16).min, np.iinfo(np.int16).max))
_LOWEST_FLOAT = float(np.finfo(np.float32).min)
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


def kth_largest(values: np.ndarray, k: int) -> np.ndarray:
    """The ``k``-th largest of each row; the least there is where a row has fewer.

    Shapes:
        values: ``[n, m]``, result: ``[n]``
    """
    m = values.shape[1]
    if m < k:
        lowest = -np.inf if values.dtype == np.float32 else np.iinfo(np.int16).min
        return np.full(len(values), lowest, values.dtype)
    return np.partition(values, m - k, axis=1)[:, m - k]


def float_floor(kth: Float[np.ndarray, " n"], error: np.ndarray) -> Float[np.ndarray, " n"]:
    """The least score of an entry that may be one of the ``k`` best, of which one has that score."""
    with np.errstate(invalid="ignore"):
        bound = kth - 2 * error.astype(np.float64)
    # No score is minus infinity: such a slot is empty. What is no number is less than everything.
    return np.fmin(np.fmax(bound, _LOWEST_FLOAT), -_LOWEST_FLOAT).astype(np.float32)


def half_floor(kth: Int[np.ndarray, " n"], error: np.ndarray) -> Int[np.ndarray, " n"]:
    """The same for the bits of numbers that were rounded to bfloat16, made monotone."""
    score = (turned(kth).astype(np.int32) << 16).view(np.float32).astype(np.float64)
    # What the k best are at least, less what one of them may have lost.
    bits = float_floor(score - _HALF_UNIT * np.abs(score), error).view(np.int32)
    # The upper half, in the order of whole numbers: what is cut off only lowers it.
    floor = (turned(bits) >> 16).astype(np.int16)
    # One less, for a zero that is negative, or a number that was cut instead of rounded.
    return np.maximum(floor, _LEAST) - np.int16(1)


# One above minus infinity, so that one less is not below.
_LEAST = turned(np.array([-0x80], np.int16))[0] + np.int16(2)


def put_in_order(scores: Tensor) -> None:
    """Turn the bits of scores in bfloat16, in place, into whole numbers in the same order."""
    bits = scores.view(torch.int16)
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x7FFF))


def places_by_group(
    order: np.ndarray, largest: np.ndarray, floor: np.ndarray, every: np.ndarray | None = None
) -> Int[np.ndarray, " m"]:
    """Where scores lie that reach their row's bound, looked for in the groups of which one does.

    Args:
        order: The scores.
        largest: The largest of each group; a group takes every so manyth column.
        floor: The bound of each row.
        every: Rows of which all are wanted.

    Shapes:
        order: ``[n, wide]``, largest: ``[n, groups]``, floor, every: ``[n]``
    """
    wide, groups = order.shape[1], largest.shape[1]
    reached = largest >= floor[:, None]
    if every is not None:
        reached[every] = True
    hit = np.flatnonzero(reached)
    row = hit // groups
    # Nearly all of these groups have one entry on the list: little may be done for each of their entries.
    place = (hit - row * groups + row * wide)[:, None] + np.arange(0, wide, groups)
    hits = order.ravel().take(place) >= floor[row][:, None]
    if every is not None:
        hits |= every[row][:, None]
    return place[hits]


def ragged(counts: Int[np.ndarray, " n"], values: np.ndarray, fill: int = -1) -> np.ndarray:
    """Values of rows, row after row, side by side, and ``fill`` behind them.

    Args:
        counts: How many each row has.
        values: All of them.
        fill: What stands where a row has no more.

    Shapes:
        values: ``[m]``, result: ``[n, c]``, of as many columns as the longest row needs, at least one
    """
    found = np.full((len(counts), max(1, int(counts.max(initial=0)))), fill, values.dtype)
    found[np.arange(found.shape[1]) < counts[:, None]] = values
    return found
