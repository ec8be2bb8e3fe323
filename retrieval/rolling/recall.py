"""Reading stored keys and values by name, as a torch operator with its price beside it."""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.rolling.ring import Ring
from retrieval.runtime import counters_lock

__all__ = ["Recalled", "enroll_ring", "run_recall"]


class Recalled(NamedTuple):
    """Keys and values of neighbours, as attention over them needs them.

    Shapes:
        keys: ``[batch, heads, time, k, d_key]``, values: ``[batch, heads, time, k, d_value]``, mask:
        ``[batch, heads, time, k]``
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


# As in :mod:`retrieval.search`: an operator is told a number, and the table keeps nothing alive.
_enrolled: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def enroll_ring(ring: Ring) -> int:
    """Number by which the operator finds a ring for as long as the ring lives."""
    number = next(_numbers)
    _enrolled[number] = ring
    return number


def run_recall(number: int, ids: Tensor, mask: Tensor, rows: Tensor | None) -> Recalled:
    """Read from the ring of that number through the operator, so that a counter sees it."""
    return Recalled(*torch.ops.mnemograph.recall(ids, mask, rows, number))


@torch.library.custom_op(
    "mnemograph::recall",
    mutates_args=(),
    schema="(Tensor ids, Tensor mask, Tensor? rows, int store) -> (Tensor, Tensor, Tensor)",
)
def _recall(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int) -> tuple[Tensor, Tensor, Tensor]:
    ring = _ring_of(store)
    with counters_lock:
        found = ring.gather(ids, mask, ring.chosen(rows, len(ids)))
    keys, values, there = (x.to(ids.device) for x in found)
    return keys, values, there.clone() if there is mask else there


@_recall.register_fake
def _(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int) -> tuple[Tensor, Tensor, Tensor]:
    ring = _ring_of(store)
    keys, values = (ids.new_empty((*ids.shape, d), dtype=ring.keys.dtype) for d in (ring.d_key, ring.d_value))
    return keys, values, torch.empty_like(mask)


def _ring_of(store: int) -> Ring:
    ring = _enrolled.get(store)
    if ring is None:
        raise RuntimeError(f"memory {store} no longer exists; keep a reference to it")
    return ring


@register_flop_formula(torch.ops.mnemograph.recall, get_raw=True)
def _price(*_: object, **__: object) -> int:
    return 0


def _bytes(ids: Tensor, mask: Tensor, rows: Tensor | None, store: int, **_: object) -> tuple[int, int, int]:
    """Bytes read, written, and at random: keys and values lie where the ids say, and so do the indices beside them."""
    ring = _ring_of(store)
    entries = ids.numel() * (ring.d_key + ring.d_value) * ring.keys.element_size()
    return entries + 8 * ids.numel() * 2, entries, entries + 8 * ids.numel()


_price.bytes_formula = _bytes  # type: ignore[attr-defined]
