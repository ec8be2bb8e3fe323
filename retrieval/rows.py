"""Rows of a table, named by number: matched with a query, and summed with weights.

What indexing and a product would give. Their own gradients are taken here because autograd's would gather in the
type of autocast, and add up in it, row after sorted row: slower, and less exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["match_rows", "sum_rows"]


def match_rows(
    table: Float[Tensor, "vocab width"], rows: Int[Tensor, "*batch k"], query: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch k"]:
    r"""How each query matches the rows it names, :math:`\langle q_t, E[r_{t,i}] \rangle`, in the table's type.

    First derivatives only.

    Args:
        table: Its rows are compared with.
        rows: Which ones, for each query.
        query: What to compare.

    Shapes:
        table: ``[vocab, width]``; rows and output: ``[*batch, k]``; query: ``[*batch, width]``.
    """
    return _MatchRows.apply(table, _flat(rows), _flat(query.to(table.dtype))).view(rows.shape)


def sum_rows(
    table: Float[Tensor, "vocab width"],
    rows: Int[Tensor, "*batch k"],
    weight: Float[Tensor, "*batch k"] | None = None,
) -> Float[Tensor, "*batch width"]:
    r"""Weighted sums of rows, :math:`\sum_i w_{t,i} E[r_{t,i}]`, in the table's type.

    First derivatives only.

    Args:
        table: Its rows are added up.
        rows: Which ones, for each sum.
        weight: How much of each row; ``None``: one of each.

    Shapes:
        table: ``[vocab, width]``; rows and weight: ``[*batch, k]``; output: ``[*batch, width]``.
    """
    weight = None if weight is None else _flat(weight.to(table.dtype))
    return _SumRows.apply(table, _flat(rows), weight).view(*rows.shape[:-1], table.shape[1])


class _MatchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table, rows, query)
        return _dots(table, rows, query)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, query = ctx.saved_tensors
        return _spread(table, rows, grad, query), None, _sums(table, rows, grad)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weight: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table, rows, weight)
        return _sums(table, rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, weight = ctx.saved_tensors
        return _spread(table, rows, weight, grad), None, None if weight is None else _dots(table, rows, grad)


def _flat(x: Tensor) -> Tensor:
    """One batch dimension, however many there are."""
    return x.flatten(0, -2) if x.ndim > 1 else x[None]


def _dots(table: Tensor, rows: Tensor, query: Tensor) -> Tensor:
    result = query.new_empty(len(rows), 1, rows.shape[1])
    # Autocast leaves products into a given result alone; for it the rows would have to be cast first.
    torch.bmm(query[:, None], F.embedding(rows, table).mT, out=result)
    return result.squeeze(1)


def _sums(table: Tensor, rows: Tensor, weight: Tensor | None) -> Tensor:
    if not rows.numel():
        # Bags that all are empty it cannot tell apart.
        return table.new_zeros(len(rows), table.shape[1])
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weight)


def _spread(table: Tensor, rows: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    """Adds to each row of a table the vectors of those who named it, weighted."""
    n, k = rows.shape
    if rows.is_cuda or not rows.numel():
        parts = x[:, None].expand(n, k, -1) if weight is None else weight[..., None] * x[:, None]
        return torch.zeros_like(table).index_add_(0, rows.flatten(), parts.flatten(0, 1))
    # Who named each row, row after row: then sums of bags, which make no vector for every name as index_add_ needs,
    # a third of its time on a CPU. A GPU adds in any order, and waits for its longest bag. Few bits sort fast.
    small = torch.int16 if len(table) <= 1 << 15 else torch.int32
    named, order = torch.sort(rows.flatten().to(small))
    first = torch.searchsorted(named, torch.arange(len(table), dtype=small, device=rows.device))
    weight = None if weight is None else weight.flatten().index_select(0, order)
    who = order.div_(k, rounding_mode="floor")
    return F.embedding_bag(who, x, first, mode="sum", per_sample_weights=weight)
