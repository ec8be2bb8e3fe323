"""The largest of each row: where they stand, best first, several times as fast on a CPU as by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.ordering import ID, turned, words

__all__ = ["top_ids"]

# Numbers a row from which short words pay, and up to which two of the best, if few are wanted, rarely are equal in the
# bits that are left for them.
LEAST, SHORT, FEW = 1 << 6, 1 << 10, 64
# Numbers from which the calls that short words take more are earned back, and those that stay in a CPU's cache.
WORTH, CACHED = 1 << 15, 1 << 18
# Numbers a row that NumPy sorts as fast as it parts them.
SORTED = 1 << 8


def top_ids(scores: Float[Tensor, "*batch n"], k: int) -> Int[Tensor, "*batch k"]:
    """Where the ``k`` largest of each row stand, by (score descending, place ascending).

    On a CPU each score is packed with its place into one integer, of which NumPy finds the smallest by vector
    instructions; few of short rows are found by integers of 32 bits, in which a score loses its last bits to the place,
    and rows where that may matter are done again. Elsewhere, and where numbers are wider than 32 bits, it is
    ``torch.topk``, whose ties come in any order. Has no gradient: gather the scores themselves.

    Args:
        scores: What to choose from.
        k: How many.

    Shapes:
        scores: ``[*batch, n]``, result: ``[*batch, k]``

    Raises:
        ValueError: If ``k`` is not between 1 and ``n``.
    """
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"the {k} largest of {scores.shape[-1]}: give 1 <= k <= {scores.shape[-1]}")
    return torch.ops.mnemograph.top_ids(scores.detach(), k)


# One operator, so that the bill is the same on every device, and a compiler does not see NumPy.
@torch.library.custom_op("mnemograph::top_ids", mutates_args=(), schema="(Tensor scores, int k) -> Tensor")
def _top_ids(scores: Tensor, k: int) -> Tensor:
    if scores.device.type != "cpu" or scores.dtype == torch.float64:
        return scores.topk(k).indices
    n = scores.shape[-1]
    # Narrower types are full of ties, and each tie would be looked at twice.
    if scores.dtype == torch.float32 and LEAST <= n <= SHORT and k <= FEW and scores.numel() >= WORTH:
        rows = scores.reshape(-1, n)
        best = np.concatenate([_by_short_words(part.numpy(), k) for part in rows.split(CACHED // n)])
        return torch.from_numpy(best).view(*scores.shape[:-1], k)
    return torch.from_numpy(_by_words(scores.float().numpy(), k))


def _by_words(scores: Float[np.ndarray, "*batch n"], k: int) -> Int[np.ndarray, "*batch k"]:
    packed = words(scores, np.broadcast_to(np.arange(scores.shape[-1]), scores.shape))
    packed.partition(k - 1, axis=-1)
    best = packed[..., :k]
    best.sort(axis=-1)
    return best & ID


def _by_short_words(scores: Float[np.ndarray, "rows n"], k: int) -> Int[np.ndarray, "rows k"]:
    n = scores.shape[1]
    places = np.arange(n, dtype=np.int32)
    last = np.int32((1 << (n - 1).bit_length()) - 1)
    # As words() orders them, with places for the last bits.
    packed = turned((scores + np.float32(0)).view(np.int32))
    packed |= last
    packed ^= ~places
    if k == n or n <= SORTED:
        packed.sort(axis=1)
    else:
        packed.partition(k, axis=1)
        packed[:, : k + 1].sort(axis=1)
    # One more than is wanted: a score cut off behind the last may be equal to it, too.
    best = packed[:, : k + 1]
    cut = best & ~last
    found = (best[:, :k] & last).astype(np.int64)
    unclear = (cut[:, 1:] == cut[:, :-1]).any(axis=1).nonzero()[0]
    if len(unclear):
        found[unclear] = _by_words(scores[unclear], k)
    return found


@_top_ids.register_fake
def _(scores: Tensor, k: int) -> Tensor:
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int64)


@register_flop_formula(torch.ops.mnemograph.top_ids)
def _flops(*_: Any, **__: Any) -> int:
    """Comparisons are no operations."""
    return 0


def _bytes(scores: Tensor, k: int, **_: object) -> tuple[int, int, int]:
    """Scores are read, places written."""
    return scores.numel() * scores.element_size(), scores.numel() // scores.shape[-1] * k * 8, 0


_flops.bytes_formula = _bytes  # type: ignore[attr-defined]
