"""Reading stored keys and values by name, as a torch operator with its price beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.enrollment import enroll, enrolled
from retrieval.rolling.ring import Ring
from retrieval.runtime import counters_lock

__all__ = ["Recalled", "run_recall"]


class Recalled(NamedTuple):
    """Keys and values of neighbours, as attention over them needs them.

    Shapes:
        keys: ``[batch, heads, time, k, d_key]``, values: ``[batch, heads, time, k, d_value]``, mask:
        ``[batch, heads, time, k]``
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


def run_recall(ring: Ring, ids: Tensor, mask: Tensor, rows: Tensor | None) -> Recalled:
    """Read from a ring through the operator, so that a counter sees it."""
    return Recalled(*torch.ops.mnemograph.recall(ids, mask, rows, enroll(ring)))


@torch.library.custom_op(
    "mnemograph::recall",
    mutates_args=(),
    schema="(Tensor ids, Tensor mask, Tensor? rows, int store) -> (Tensor, Tensor, Tensor)",
)
def _recall(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int) -> tuple[Tensor, Tensor, Tensor]:
    ring: Ring = enrolled(store)
    with counters_lock:
        ring.reading()
        found = ring.gather(ids, mask, ring.chosen(rows, len(ids)))
    keys, values, there = (x.to(ids.device) for x in found)
    return keys, values, there.clone() if there is mask else there


@_recall.register_fake
def _(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int) -> tuple[Tensor, Tensor, Tensor]:
    ring: Ring = enrolled(store)
    keys, values = (ids.new_empty((*ids.shape, d), dtype=ring.keys.dtype) for d in (ring.d_key, ring.d_value))
    return keys, values, torch.empty_like(mask)


@register_flop_formula(torch.ops.mnemograph.recall, get_raw=True)
def _price(*_: object, **__: object) -> int:
    return 0


def _bytes(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int, **_: object) -> tuple[int, int, int]:
    """Bytes read, written, and at random: keys and values lie where the ids say, and so do the indices beside them."""
    ring: Ring = enrolled(store)
    entries = ids.numel() * (ring.d_key + ring.d_value) * ring.keys.element_size()
    return entries + 8 * ids.numel() * 2, entries, entries + 8 * ids.numel()


_price.bytes_formula = _bytes  # type: ignore[attr-defined]
