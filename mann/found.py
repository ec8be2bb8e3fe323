"""Attention to rows that a search found, in one table or in several, which are not joined for it.

Neighbouring queries name many rows alike, which a cache holds. So on a CPU they are read query by query, as products
with the sparse matrix of who named what: nothing is sorted, and no row is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mann.norm import sum_dtype

__all__ = ["attend_found"]


def attend_found(
    q: Float[Tensor, "queries d_key"],
    scores: Float[Tensor, "queries k"],
    rows: Int[Tensor, "queries k"],
    mask: Bool[Tensor, "queries k"],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
) -> tuple[Float[Tensor, "queries d_value"], Float[Tensor, "queries"]]:
    r"""Softmax attention of each query to the rows it names, whose scores the search has made already.

    .. math:: y_t = \sum_i p_{t,i} V[r_{t,i}], \qquad p_t = \mathrm{softmax}(\langle q_t, K[r_{t,i}] \rangle)

    A query without rows reads zeros. Gradients are those of the formula, the scores' included, for the tables that
    want them. First derivatives only.

    Args:
        q: Queries.
        scores: :math:`\langle q_t, K[r_{t,i}] \rangle`, in the type to compute the softmax in.
        rows: The rows of each query, numbered through all tables.
        mask: Which of them there are; the others may be any rows.
        keys: Tables of keys.
        values: Tables of values, each as long as that of its keys.

    Shapes:
        q: ``[queries, d_key]``; scores, rows and mask: ``[queries, k]``; keys: ``[rows, d_key]`` each; values:
        ``[rows, d_value]`` each; results: ``[queries, d_value]``, and ``[queries]``, the logarithm of the sum of the
        exponentials of the scores, which is hugely negative where a query has no rows.
    """
    return _Attend.apply(q, scores, rows, mask, *keys, *values)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, scores, rows, mask, *tables):  # type: ignore[override]
        # Finite, as a query may have nothing to read.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        shares = scores.softmax(-1)
        # The largest share is that of the largest score, one over the sum.
        total = scores.amax(-1) - shares.amax(-1).log()
        weights = shares.masked_fill(~mask, 0.0)
        ctx.save_for_backward(q, rows, mask, shares, *tables)
        return torch.ops.mnemograph.sum_found(tables[len(tables) // 2 :], rows, weights), total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_total):  # type: ignore[override]
        q, rows, mask, shares, *tables = ctx.saved_tensors
        half = len(tables) // 2
        keys, values = tables[:half], tables[half:]
        hidden = ~mask
        each = torch.ops.mnemograph.dot_found(values, rows, grad).masked_fill_(hidden, 0.0)
        back = torch._softmax_backward_data(each, shares, -1, shares.dtype)
        back = back.addcmul_(shares, grad_total[:, None]).masked_fill_(hidden, 0.0)
        grad_q = torch.ops.mnemograph.sum_found(keys, rows, back).to(q.dtype)
        grads: list[Tensor | None] = [None] * len(tables)
        weights, begin = shares.masked_fill(hidden, 0.0), 0
        for n, (key, value) in enumerate(zip(keys, values, strict=True)):
            if any(ctx.needs_input_grad[place] for place in (4 + n, 4 + half + n)):
                x = [q.to(key.dtype), grad.to(value.dtype)]
                found = torch.ops.mnemograph.add_found(x, rows, [back, weights], begin, len(key))
                grads[n], grads[half + n] = found
            begin += len(key)
        return grad_q, None, None, None, *grads


# Each is one operator, so that the bill is the same on every device, and a compiler sees no size that depends on what
# was found.
torch.library.define("mnemograph::sum_found", "(Tensor[] tables, Tensor rows, Tensor weight) -> Tensor")
torch.library.define("mnemograph::dot_found", "(Tensor[] tables, Tensor rows, Tensor query) -> Tensor")
torch.library.define(
    "mnemograph::add_found", "(Tensor[] x, Tensor rows, Tensor[] weight, int begin, int n_rows) -> Tensor[]"
)


def _own(rows: Tensor, begin: int, n_rows: int) -> Tensor:
    """Which rows are those of one table."""
    return (rows >= begin) & (rows < begin + n_rows)


def _apart(rows: Tensor, begin: int, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one table: at which places its rows are named, which, and where each query's begin, with the end."""
    own = _own(rows, begin, n_rows)
    # A tenth of the time that torch needs to find them, or to select by a mask.
    places = torch.from_numpy(np.flatnonzero(own.numpy()))
    names = rows.flatten().index_select(0, places).sub_(begin)
    return places, names, F.pad(own.sum(1).cumsum(0), (1, 0))


def _masked(rows: Tensor, begin: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Of one table, without waiting for a GPU: its rows, and where other tables' are named, for which it has others."""
    others = ~_own(rows, begin, n_rows)
    return (rows - begin).masked_fill_(others, 0), others


@torch.library.impl("mnemograph::sum_found", "CompositeExplicitAutograd")
def _sum_found(tables: list[Tensor], rows: Tensor, weight: Tensor) -> Tensor:
    result, begin = weight.new_zeros(len(rows), tables[0].shape[1]), 0
    if rows.is_meta:
        return result
    for table in tables:
        if rows.is_cpu:
            places, names, first = _apart(rows, begin, len(table))
            weights = weight.flatten().index_select(0, places)
        else:
            names, others = _masked(rows, begin, len(table))
            weights, first = weight.masked_fill(others, 0.0), None
        # Bags that all are empty it cannot tell apart.
        if names.numel():
            result += F.embedding_bag(
                names,
                table.detach(),
                first,
                mode="sum",
                per_sample_weights=weights.to(table.dtype),
                include_last_offset=first is not None,
            )
        begin += len(table)
    return result


@torch.library.impl("mnemograph::dot_found", "CompositeExplicitAutograd")
def _dot_found(tables: list[Tensor], rows: Tensor, query: Tensor) -> Tensor:
    result, begin = query.new_zeros(rows.shape, dtype=sum_dtype(query)), 0
    if rows.is_meta:
        return result
    for table in tables:
        if rows.is_cpu:
            places, names, first = _apart(rows, begin, len(table))
            # Of narrower types there are no such products.
            wide = table.detach().to(sum_dtype(table))
            size, none = (len(rows), len(wide)), wide.new_zeros(len(names))
            asked = torch.sparse_csr_tensor(first, names, none, size, check_invariants=False)
            dots = torch.sparse.sampled_addmm(asked, query.to(wide.dtype), wide.t(), beta=0.0).values()
            result.view(-1).index_copy_(0, places, dots.to(result.dtype))
        else:
            names, others = _masked(rows, begin, len(table))
            dots = torch.ops.mnemograph.dot_rows(table, names, query.to(table.dtype))
            result += dots.masked_fill_(others, 0.0)
        begin += len(table)
    return result


@torch.library.impl("mnemograph::add_found", "CompositeExplicitAutograd")
def _add_found(x: list[Tensor], rows: Tensor, weight: list[Tensor], begin: int, n_rows: int) -> list[Tensor]:
    if rows.is_meta:
        return [part.new_empty(n_rows, part.shape[1]) for part in x]
    pairs = list(zip(x, weight, strict=True))
    if not rows.is_cpu:
        names, others = _masked(rows, begin, n_rows)
        return [
            torch.ops.mnemograph.add_to_rows(
                part, names, each.masked_fill(others, 0.0).to(part.dtype), n_rows
            )
            for part, each in pairs
        ]
    places, names, _ = _apart(rows, begin, n_rows)
    if not len(names):
        return [part.new_zeros(n_rows, part.shape[1]) for part in x]
    # Who named each row, row after row: sorted once for all that is added.
    named, order = torch.sort(names.to(torch.int32))
    first = F.pad(torch.bincount(named, minlength=n_rows).cumsum(0), (1, 0))
    places = places.index_select(0, order)
    who = places.div(rows.shape[1], rounding_mode="floor")
    found = []
    for part, each in pairs:
        weights = each.flatten().index_select(0, places).to(part.dtype)
        bags = {"mode": "sum", "per_sample_weights": weights, "include_last_offset": True}
        found.append(F.embedding_bag(who, part, first, **bags))
    return found


@register_flop_formula(torch.ops.mnemograph.sum_found)
def _sum_flops(tables: Sequence[torch.Size], rows: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * tables[0][1]


@register_flop_formula(torch.ops.mnemograph.dot_found)
def _dot_flops(tables: Sequence[torch.Size], rows: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * tables[0][1]


@register_flop_formula(torch.ops.mnemograph.add_found)
def _add_flops(x: Sequence[torch.Size], rows: torch.Size, *_: Any, **__: Any) -> int:
    """As if all rows were of the one table: of how many that is true, only numbers tell."""
    return sum(2 * rows.numel() * part[1] for part in x)


def _size(*parts: Tensor) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def _read(tables: Sequence[Tensor], rows: Tensor) -> int:
    """Bytes of a row for every name; where types differ, of the widest."""
    return rows.numel() * tables[0].shape[1] * max(table.element_size() for table in tables)


def _sum_bytes(tables: Sequence[Tensor], rows: Tensor, weight: Tensor, **_: Any) -> tuple[int, int, int]:
    """Read: a row for every name, at random, the names and their weights; written: the sums."""
    vectors = _read(tables, rows)
    return vectors + _size(rows, weight), len(rows) * tables[0].shape[1] * weight.element_size(), vectors


def _dot_bytes(tables: Sequence[Tensor], rows: Tensor, query: Tensor, **_: Any) -> tuple[int, int, int]:
    """Read: a row for every name, at random, the names and the queries; written: a number for every name."""
    vectors = _read(tables, rows)
    return vectors + _size(rows, query), rows.numel() * sum_dtype(query).itemsize, vectors


def _add_bytes(
    x: Sequence[Tensor], rows: Tensor, weight: Sequence[Tensor], begin: int, n_rows: int, **_: Any
) -> tuple[int, int, int]:
    """Read: a vector for every name, at random, the names and their weights; written: the tables that come out."""
    vectors = sum(_read([part], rows) for part in x)
    written = sum(n_rows * part.shape[1] * part.element_size() for part in x)
    return vectors + _size(rows, *weight), written, vectors


_sum_flops.bytes_formula = _sum_bytes  # type: ignore[attr-defined]
_dot_flops.bytes_formula = _dot_bytes  # type: ignore[attr-defined]
_dot_flops.billed_as = "aten.bmm"  # type: ignore[attr-defined]
_add_flops.bytes_formula = _add_bytes  # type: ignore[attr-defined]
