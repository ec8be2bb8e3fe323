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


def match_rows(
    query: Float[Tensor, "*batch width"], table: Float[Tensor, "vocab width"], rows: Int[Tensor, "*batch k"]
) -> Float[Tensor, "*batch k"]:
    r"""How each query matches the rows it names, :math:`\langle q_t, E[r_{t,i}] \rangle`, in the table's type.

    First derivatives only.

    Args:
        query: What to compare.
        table: Its rows are compared with.
        rows: Which ones, for each query.

    Shapes:
        query: ``[*batch, width]``; table: ``[vocab, width]``; rows and output: ``[*batch, k]``.
    """
    return _MatchRows.apply(_flat(query.to(table.dtype)), table, _flat(rows)).view(rows.shape)


def sum_rows(
    weight: Float[Tensor, "*batch k"], table: Float[Tensor, "vocab width"], rows: Int[Tensor, "*batch k"]
) -> Float[Tensor, "*batch width"]:
    r"""Weighted sums of rows, :math:`\sum_i w_{t,i} E[r_{t,i}]`, in the table's type.

    First derivatives only.

    Args:
        weight: How much of each row.
        table: Its rows are added up.
        rows: Which ones, for each sum.

    Shapes:
        weight and rows: ``[*batch, k]``; table: ``[vocab, width]``; output: ``[*batch, width]``.
    """
    total = _SumRows.apply(_flat(weight.to(table.dtype)), table, _flat(rows))
    return total.view(*rows.shape[:-1], table.shape[1])


class _MatchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, table: Tensor, rows: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(query, table, rows)
        return _dots(query, table, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        query, table, rows = ctx.saved_tensors
        return _sums(grad, table, rows), _spread(grad, query, table, rows), None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, table: Tensor, rows: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight, table, rows)
        return _sums(weight, table, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        weight, table, rows = ctx.saved_tensors
        return _dots(grad, table, rows), _spread(weight, grad, table, rows), None


def _flat(x: Tensor) -> Tensor:
    """One batch dimension, however many there are."""
    return x.flatten(0, -2) if x.ndim > 1 else x[None]


def _dots(query: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    result = query.new_empty(len(rows), 1, rows.shape[1])
    # Autocast leaves products into a given result alone; for it the rows would have to be cast first.
    torch.bmm(query[:, None], F.embedding(rows, table).mT, out=result)
    return result.squeeze(1)


def _sums(weight: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    if not rows.numel():
        # Bags that all are empty it cannot tell apart.
        return table.new_zeros(len(rows), table.shape[1])
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weight)


def _spread(weight: Tensor, x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Adds to each row of a table the vectors of those who read it, weighted."""
    parts = (weight[..., None] * x[:, None]).flatten(0, 1)
    return torch.zeros_like(table).index_add_(0, rows.flatten(), parts)
