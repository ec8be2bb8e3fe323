"""The search as a torch operator, its price registered beside it.

A FLOP counter watches torch operators; a search hidden in a Python call would be free. So every search passes through
``mnemograph::search``, and :func:`torch.utils.flop_counter.register_flop_formula` tells whoever counts what the call
has cost: a number known only afterwards, because it depends on how many stored entries were visited.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.neighbors import Neighbors

__all__ = ["Searchable", "enroll", "run_search"]


@runtime_checkable
class Searchable(Protocol):
    """Anything that finds ``k`` neighbours for tensors that share a batch shape."""

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search itself, on the CPU."""
        ...


# An operator's arguments are tensors and numbers, so a store is named by a number; the table keeps none alive.
_enrolled: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_last_work: dict[int, dict[str, int]] = {}
# Of every search: FLOPs, and bytes read, written and random.
_all_work = [0, 0, 0, 0]
_adding = threading.Lock()


def enroll(searchable: Searchable) -> int:
    """Number by which the operator finds a store for as long as the store lives."""
    number = next(_numbers)
    _enrolled[number] = searchable
    weakref.finalize(searchable, _last_work.pop, number, None)
    return number


def run_search(number: int, inputs: Sequence[Tensor], k: int) -> Neighbors:
    """Search the store of that number through the operator, so that a FLOP counter sees it.

    Where nobody looks on and tensors are plain ones on the CPU, the operator would change nothing, and dispatching it
    takes longer than a search of a small store: then it is not called.
    """
    if not _watched() and all(type(x) is Tensor and x.is_cpu for x in inputs):
        searchable = _living(number)
        found = searchable.neighbors([x.detach() if x.requires_grad else x for x in inputs], k)
        _count(number, found)
        return found
    scores, ids, mask = torch.ops.mnemograph.search([x.detach() for x in inputs], number, k)
    return Neighbors(scores, ids, mask, **_last_work.get(number, {}))


def _watched() -> bool:
    """Whether anything wants to see operators: a counter, a compiler, a tracer, a profiler, a transform."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    )


@torch.library.custom_op(
    "mnemograph::search",
    mutates_args=(),
    schema="(Tensor[] inputs, int store, int k) -> (Tensor, Tensor, Tensor)",
)
def _search(inputs: Sequence[Tensor], store: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    found = _living(store).neighbors([x.cpu() for x in inputs], k)
    _count(store, found)
    device = inputs[0].device
    return found.scores.to(device), found.ids.to(device), found.mask.to(device)


def _living(store: int) -> Searchable:
    searchable = _enrolled.get(store)
    if searchable is None:
        raise RuntimeError(f"store {store} of this search no longer exists; keep a reference to it")
    return searchable


def _count(store: int, found: Neighbors) -> None:
    work = _last_work[store] = found.work
    with _adding:
        for place, amount in enumerate((found.flops, *_access(work))):
            _all_work[place] += amount


@_search.register_fake
def _(inputs: Sequence[Tensor], store: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*_batch_shape(inputs), k)
    like = inputs[0]
    return (
        like.new_empty(shape, dtype=torch.float32),
        like.new_empty(shape, dtype=torch.int64),
        like.new_empty(shape, dtype=torch.bool),
    )


def _batch_shape(inputs: Sequence[Tensor]) -> tuple[int, ...]:
    # Vectors bring their dimension as a last axis; tokens are the batch.
    shape = inputs[0].shape
    return tuple(shape[:-1] if inputs[0].is_floating_point() else shape)


@register_flop_formula(torch.ops.mnemograph.search, get_raw=True)
def _price(
    inputs: Sequence[Tensor], store: int, k: int, *_: object, out_val: Any = None, **__: object
) -> int:
    if inputs[0].is_meta or store not in _last_work:
        raise NotImplementedError(
            "the price of a search depends on the stored data: count a real call, not a meta one"
        )
    return _last_work[store]["flops"]


def _bytes(inputs: Sequence[Tensor], store: int, k: int, *_: object, **__: object) -> tuple[int, int, int]:
    return _access(_last_work[store])


def _access(work: dict[str, int]) -> tuple[int, int, int]:
    """Bytes read, bytes written, and the part of both that is at addresses which the data decides."""
    return work["bytes"] - work["bytes_written"], work["bytes_written"], work["bytes_random"]


def _so_far() -> tuple[int, int, int, int]:
    return _all_work[0], _all_work[1], _all_work[2], _all_work[3]


# What torch's counter has no place for; our ledger asks for them.
_price.bytes_formula = _bytes  # type: ignore[attr-defined]
_price.so_far = _so_far  # type: ignore[attr-defined]
