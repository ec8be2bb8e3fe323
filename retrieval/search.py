"""The search as a torch operator, its price registered beside it.

A FLOP counter watches torch operators; a search hidden in a Python call would be free. So every search passes through
``mnemograph::search``, and :func:`torch.utils.flop_counter.register_flop_formula` tells whoever counts what the call
has cost: a number known only afterwards, because it depends on how many stored entries were visited.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.enrollment import Enrolled, enroll, enrolled
from retrieval.neighbors import Neighbors
from retrieval.runtime import ProcessLock

__all__ = ["Searchable", "check_queries", "run_search"]


class Searchable(Enrolled):
    """Anything that finds ``k`` neighbours for tensors that share a batch shape."""

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search itself, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} needs a method neighbors(inputs, k)")


class _LastCall(threading.local):
    """The store and the work of a thread's last call of the operator: who counts asks in that thread, after it."""

    store = -1
    work: dict[str, int] | None = None


_last = _LastCall()
# Of every search: FLOPs, and bytes read, written and random.
_all_work = [0, 0, 0, 0]
_adding = ProcessLock()


def check_queries(queries: Tensor, k: int) -> None:
    """Refuse what is no batch of vectors.

    Args:
        queries: What a store of vectors is asked.
        k: Neighbours per query.

    Raises:
        ValueError: If they are no floating-point numbers or have no axis of dimensions, or ``k < 1``.
    """
    if not queries.ndim or not queries.is_floating_point():
        raise ValueError(
            f"search needs floating-point queries [*batch, d], got {queries.dtype} {tuple(queries.shape)}"
        )
    if k < 1:
        raise ValueError(f"search needs k >= 1, got {k}")


def run_search(store: Searchable, inputs: Sequence[Tensor], k: int) -> Neighbors:
    """Search a store through the operator, so that a FLOP counter sees it.

    Where nobody looks on and tensors are plain ones on the CPU, the operator would change nothing, and dispatching it
    takes longer than a search of a small store: then it is not called.
    """
    if torch.compiler.is_compiling():  # what a search has cost is known to no compiler
        return Neighbors(*torch.ops.mnemograph.search([x.detach() for x in inputs], enroll(store), k))
    if not _watched() and all(type(x) is Tensor and x.is_cpu for x in inputs):
        found = store.neighbors([x.detach() if x.requires_grad else x for x in inputs], k)
        _count(found)
        return found
    _last.work = None
    scores, ids, mask = torch.ops.mnemograph.search([x.detach() for x in inputs], enroll(store), k)
    # Without data nothing was searched, and there is no work.
    return Neighbors(scores, ids, mask, **(_last.work or {}))


def _watched() -> bool:
    """Whether anything wants to see operators: a counter, a tracer, a profiler, a transform."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
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
    found = enrolled(store).neighbors([x.cpu() for x in inputs], k)
    _last.store, _last.work = store, found.work
    _count(found)
    device = inputs[0].device
    return found.scores.to(device), found.ids.to(device), found.mask.to(device)


def _count(found: Neighbors) -> None:
    written = found.bytes_written
    with _adding:
        _all_work[0] += found.flops
        _all_work[1] += found.bytes - written
        _all_work[2] += written
        _all_work[3] += found.bytes_random


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
    if inputs[0].is_meta or isinstance(inputs[0], FakeTensor):
        raise NotImplementedError(
            "the price of a search depends on the stored data: count a real call, not one of meta or fake tensors"
        )
    return _work(store)["flops"]


def _work(store: int) -> dict[str, int]:
    if _last.work is None or _last.store != store:
        raise NotImplementedError(
            f"no search of store {store} was the last of this thread: ask right after one"
        )
    return _last.work


def _bytes(inputs: Sequence[Tensor], store: int, k: int, *_: object, **__: object) -> tuple[int, int, int]:
    return _access(_work(store))


def _access(work: dict[str, int]) -> tuple[int, int, int]:
    """Bytes read, bytes written, and the part of both that is at addresses which the data decides."""
    return work["bytes"] - work["bytes_written"], work["bytes_written"], work["bytes_random"]


def _so_far() -> tuple[int, int, int, int]:
    return _all_work[0], _all_work[1], _all_work[2], _all_work[3]


# What torch's counter has no place for; our ledger asks for them.
_price.bytes_formula = _bytes  # type: ignore[attr-defined]
_price.so_far = _so_far  # type: ignore[attr-defined]
