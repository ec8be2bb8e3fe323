"""Rows of a table, named by number: matched with a query, and summed with weights.

What indexing and a product would give. Their own gradients are taken here because autograd's would gather in the
type of autocast, and add up in it, row after sorted row: slower, and less exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

__all__ = ["match_rows", "sum_rows"]

PIECE = 256


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
    *,
    sparse: bool = False,
) -> Float[Tensor, "*batch width"]:
    r"""Weighted sums of rows, :math:`\sum_i w_{t,i} E[r_{t,i}]`, in the table's type.

    First derivatives only.

    Args:
        table: Its rows are added up.
        rows: Which ones, for each sum.
        weight: How much of each row; ``None``: one of each.
        sparse: Whether the table's gradient holds the rows that were named and no others, each once and in order.

    Shapes:
        table: ``[vocab, width]``; rows and weight: ``[*batch, k]``; output: ``[*batch, width]``.
    """
    weight = None if weight is None else _flat(weight.to(table.dtype))
    return _SumRows.apply(table, _flat(rows), weight, sparse).view(*rows.shape[:-1], table.shape[1])


class _MatchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table, rows, query)
        return _dots(table, rows, query)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, query = ctx.saved_tensors
        wanted, _, asked = ctx.needs_input_grad
        return (
            _spread(table, rows, grad, query) if wanted else None,
            None,
            _sums(table, rows, grad) if asked else None,
        )


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, table: Tensor, rows: Tensor, weight: Tensor | None, sparse: bool
    ) -> Tensor:
        ctx.save_for_backward(table, rows, weight)
        ctx.spread = _spread_named if sparse else _spread
        return _sums(table, rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, weight = ctx.saved_tensors
        wanted, _, weighted, _ = ctx.needs_input_grad
        return (
            ctx.spread(table, rows, weight, grad) if wanted else None,
            None,
            _dots(table, rows, grad) if weighted else None,
            None,
        )


def _flat(x: Tensor) -> Tensor:
    """One batch dimension, however many there are."""
    return x.flatten(0, -2) if x.ndim > 1 else x[None]


def _dots(table: Tensor, rows: Tensor, query: Tensor) -> Tensor:
    result = query.new_empty(len(rows), 1, rows.shape[1])
    # In pieces, whose rows stay in a CPU's cache until they are multiplied.
    size = len(rows) if rows.is_cuda else PIECE
    for asked, named, out in zip(
        query[:, None].split(size), rows.split(size), result.split(size), strict=True
    ):
        # Autocast leaves products into a given result alone; for it the rows would have to be cast first.
        torch.bmm(asked, F.embedding(named, table).mT, out=out)
    return result.squeeze(1)


def _sums(table: Tensor, rows: Tensor, weight: Tensor | None) -> Tensor:
    if not rows.numel():
        # Bags that all are empty it cannot tell apart.
        return table.new_zeros(len(rows), table.shape[1])
    # Detached, it takes the kernel that prepares no gradient, which is ours anyway.
    return F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=weight)


def _spread(table: Tensor, rows: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    """Adds to each row of a table the vectors of those who named it, weighted."""
    return torch.ops.mnemograph.add_to_rows(x, rows, weight, len(table))


def _spread_named(table: Tensor, rows: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    """The same, of the rows that were named alone: sums of sorted bags, which need no sorting afterwards."""
    named, order = torch.sort(rows.flatten().to(torch.int32 if len(table) < 1 << 31 else torch.int64))
    names, counts = torch.unique_consecutive(named, return_counts=True)
    weight = None if weight is None else weight.flatten().index_select(0, order)
    who = order.div_(rows.shape[1], rounding_mode="floor")
    first = counts.cumsum(0) - counts
    sums = F.embedding_bag(who, x, first, mode="sum", per_sample_weights=weight)
    return torch.sparse_coo_tensor(
        names[None].long(), sums, table.shape, check_invariants=False, is_coalesced=True
    )


# One operator, so that the bill is the same on every device, however its additions are put in order.
torch.library.define(
    "mnemograph::add_to_rows", "(Tensor x, Tensor rows, Tensor? weight, int n_rows) -> Tensor"
)


@torch.library.impl("mnemograph::add_to_rows", "CompositeExplicitAutograd")
def _add_to_rows(x: Tensor, rows: Tensor, weight: Tensor | None, n_rows: int) -> Tensor:
    n, k = rows.shape
    if rows.is_cuda or not rows.numel():
        parts = x[:, None].expand(n, k, -1) if weight is None else weight[..., None] * x[:, None]
        return x.new_zeros(n_rows, x.shape[1]).index_add_(0, rows.flatten(), parts.flatten(0, 1))
    # Who named each row, row after row: then sums of bags, which make no vector for every name as index_add_ needs,
    # a third of its time on a CPU. A GPU adds in any order, and waits for its longest bag. Few bits sort fast.
    small = torch.int16 if n_rows <= 1 << 15 else torch.int32
    named, order = torch.sort(rows.flatten().to(small))
    first = torch.searchsorted(named, torch.arange(n_rows, dtype=small, device=rows.device))
    weight = None if weight is None else weight.flatten().index_select(0, order)
    who = order.div_(k, rounding_mode="floor")
    return F.embedding_bag(who, x, first, mode="sum", per_sample_weights=weight)


@register_flop_formula(torch.ops.mnemograph.add_to_rows)
def _flops(
    x: torch.Size, rows: torch.Size, weight: torch.Size | None, n_rows: int, *_: Any, **__: Any
) -> int:
    """An addition an element put in, and a product where it is weighted."""
    return rows.numel() * x[1] * (1 if weight is None else 2)


def _bytes(x: Tensor, rows: Tensor, weight: Tensor | None, n_rows: int, **_: Any) -> tuple[int, int, int]:
    """Read: a vector for every name, at random, the names and their weights; written: the table that comes out."""
    vectors, table = (n * x.shape[1] * x.element_size() for n in (rows.numel(), n_rows))
    names = sum(part.numel() * part.element_size() for part in (rows, weight) if part is not None)
    return vectors + names, table, vectors


_flops.bytes_formula = _bytes  # type: ignore[attr-defined]
