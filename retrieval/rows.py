"""Rows of a table, named by number: matched with a query, and summed with weights.

What indexing and a product would give. Their own gradients are taken here because autograd's would gather in the
type of autocast, and add up in it, row after sorted row: slower, and less exact.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

__all__ = ["gradient_rows", "match_rows", "sum_rows"]

# Bytes of rows that stay in a CPU's cache until they are multiplied.
PIECE = 1 << 19

# Torch says once in a process that compressed sparse matrices are new. What is made of one here has a test.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def match_rows(
    table: Float[Tensor, "vocab width"],
    rows: Int[Tensor, "*batch k"],
    query: Float[Tensor, "*batch width"],
    *,
    sparse: bool = False,
) -> Float[Tensor, "*batch k"]:
    r"""How each query matches the rows it names, :math:`\langle q_t, E[r_{t,i}] \rangle`, in the table's type.

    First derivatives only.

    Args:
        table: Its rows are compared with.
        rows: Which ones, for each query.
        query: What to compare.
        sparse: Whether the table's gradient holds the rows that were named and no others, each once and in order.

    Shapes:
        table: ``[vocab, width]``; rows and output: ``[*batch, k]``; query: ``[*batch, width]``.
    """
    return _MatchRows.apply(table, _flat(rows), _flat(query.to(table.dtype)), sparse).view(rows.shape)


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


def gradient_rows(
    grad: Float[Tensor, "vocab width"],
) -> tuple[Int[Tensor, "named"], Float[Tensor, "named width"]]:
    """The rows that a sparse gradient holds, each once and in order, and what it holds of them.

    As ``coalesce()``, but without sorting what is in order: those of :func:`match_rows` and :func:`sum_rows` are,
    though autograd forgets to say so where it puts them into ``.grad``.

    Args:
        grad: A gradient, sparse by rows.

    Shapes:
        grad: ``[vocab, width]``; rows: ``[named]``; values: ``[named, width]``.
    """
    rows, values = grad._indices()[0], grad._values()
    if grad.is_coalesced() or bool((rows[1:] > rows[:-1]).all()):
        return rows, values
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


class _MatchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, query: Tensor, sparse: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table, rows, query)
        ctx.spread = _spread_named if sparse else _spread
        return _dots(table, rows, query)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, query = ctx.saved_tensors
        wanted, _, asked, _ = ctx.needs_input_grad
        return (
            ctx.spread(table, rows, grad, query) if wanted else None,
            None,
            _sums(table, rows, grad) if asked else None,
            None,
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
    return torch.ops.mnemograph.dot_rows(table, rows, query)


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
    named, order = torch.sort(rows.flatten().to(_narrowest(len(table))))
    names, counts = torch.unique_consecutive(named, return_counts=True)
    weight = None if weight is None else weight.flatten().index_select(0, order)
    who = order.div_(rows.shape[1], rounding_mode="floor")
    first = counts.cumsum(0) - counts
    sums = F.embedding_bag(who, x, first, mode="sum", per_sample_weights=weight)
    return torch.sparse_coo_tensor(
        names[None].long(), sums, table.shape, check_invariants=False, is_coalesced=True
    )


# Both are one operator, so that the bill is the same on every device, however the work is put in order.
torch.library.define("mnemograph::dot_rows", "(Tensor table, Tensor rows, Tensor query) -> Tensor")


@torch.library.impl("mnemograph::dot_rows", "CompositeExplicitAutograd")
def _dot_rows(table: Tensor, rows: Tensor, query: Tensor) -> Tensor:
    result = query.new_empty(rows.shape)
    if rows.is_meta or not rows.numel():
        return result
    if rows.is_cuda or table.dtype not in (torch.float32, torch.float64):
        row = rows.shape[1] * table.shape[1] * table.element_size()
        size = len(rows) if rows.is_cuda else max(1, PIECE // row)
        for asked, named, out in zip(
            query[:, None].split(size), rows.split(size), result[:, None].split(size), strict=True
        ):
            # Autocast leaves products into a given result alone; for it the rows would have to be cast first.
            torch.bmm(asked, F.embedding(named, table).mT, out=out)
        return result
    # Row after row: then the table is read from end to end, and what is read at random are queries, which a cache
    # holds: a sixth to a half of the time.
    named, order = torch.sort(rows.flatten().to(_narrowest(len(table))))
    who = order.div(rows.shape[1], rounding_mode="floor")
    if len(table) <= 4 * len(named):
        asked = torch.sparse_csr_tensor(
            F.pad(torch.bincount(named, minlength=len(table)).cumsum(0), (1, 0)),
            who,
            query.new_zeros(len(who)),
            (len(table), len(query)),
            check_invariants=False,
        )
        dots = torch.sparse.sampled_addmm(asked, table.detach(), query.t(), beta=0.0).values()
    else:
        # Twice the time for a product, but none for rows that nobody named.
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            table.detach(), query, who, who, named.long(), 0
        )
    result.view(-1).index_copy_(0, order, dots)
    return result


@register_flop_formula(torch.ops.mnemograph.dot_rows)
def _dot_flops(table: torch.Size, rows: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * table[1]


def _dot_bytes(table: Tensor, rows: Tensor, query: Tensor, **_: Any) -> tuple[int, int, int]:
    """Read: a row for every name, at random, the names and the queries; written: a number for every name."""
    vectors, names = (n * table.element_size() for n in (rows.numel() * table.shape[1], rows.numel()))
    asked = query.numel() * query.element_size()
    return vectors + rows.numel() * rows.element_size() + asked, names, vectors


_dot_flops.bytes_formula = _dot_bytes  # type: ignore[attr-defined]
_dot_flops.billed_as = "aten.bmm"  # type: ignore[attr-defined]


def _narrowest(n_rows: int) -> torch.dtype:
    """For numbers of rows and their number itself: few bits sort fast."""
    return next(kind for kind in (torch.int16, torch.int32, torch.int64) if n_rows <= torch.iinfo(kind).max)


torch.library.define(
    "mnemograph::add_to_rows", "(Tensor x, Tensor rows, Tensor? weight, int n_rows) -> Tensor"
)


@torch.library.impl("mnemograph::add_to_rows", "CompositeExplicitAutograd")
def _add_to_rows(x: Tensor, rows: Tensor, weight: Tensor | None, n_rows: int) -> Tensor:
    n, k = rows.shape
    if rows.is_meta:
        return x.new_empty(n_rows, x.shape[1])
    if rows.is_cuda or not rows.numel():
        parts = x[:, None].expand(n, k, -1) if weight is None else weight[..., None] * x[:, None]
        return x.new_zeros(n_rows, x.shape[1]).index_add_(0, rows.flatten(), parts.flatten(0, 1))
    # Who named each row, row after row: then sums of bags, which make no vector for every name as index_add_ needs,
    # a third of its time on a CPU. A GPU adds in any order, and waits for its longest bag.
    named, order = torch.sort(rows.flatten().to(_narrowest(n_rows)))
    counts = torch.bincount(named, minlength=n_rows)
    first = counts.cumsum(0) - counts
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
