"""Rows of a table, named by number: matched with a query, and summed with weights.

What indexing and a product would give. Their own gradients are taken here because autograd's would gather in the
type of autocast, and add up in it, row after sorted row: slower, and less exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

__all__ = ["gradient_rows", "match_rows", "row_reader", "row_writer", "sum_rows"]

# Bytes of rows that stay in a CPU's cache until they are multiplied.
PIECE = 1 << 20
# Bytes of a row up to which a copy of it costs less than what sorting saves.
NARROW = 1 << 10

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


def row_reader(
    table: Float[Tensor, "vocab width"], most: int
) -> Callable[[Int[Tensor, " rows"]], Float[Tensor, "rows width"]]:
    """What copies rows of a table, piece by piece; in float32 on CPUs memory is asked for them ahead of time.

    Args:
        table: What they are copied out of; not recorded by autograd.
        most: Rows of a piece, at most.

    Shapes:
        table: ``[vocab, width]``
    """
    table = table.detach()
    if table.device.type != "cpu" or table.dtype != torch.float32:
        return lambda rows: table.index_select(0, rows)
    # Sums of bags of one, whose kernel does so. What F.embedding_bag checks in Python takes a tenth of the time.
    bags = torch.arange(most)
    return lambda rows: torch.embedding_bag(table, rows, bags[: len(rows)])[0]


def row_writer(
    table: Float[Tensor, "vocab width"],
) -> Callable[[Int[Tensor, " rows"], Float[Tensor, "rows width"]], object]:
    """What puts values into rows of a table, each but once.

    Args:
        table: What is written; not recorded by autograd.

    Shapes:
        table: ``[vocab, width]``
    """
    table = table.detach()
    # NumPy has no bfloat16.
    if table.device.type != "cpu" or table.dtype == torch.bfloat16 or not table.is_contiguous():
        return lambda rows, values: table.index_copy_(0, rows, values)
    # A row is one item to NumPy, copied as a whole; torch copies number after number, in twice the time.
    item = f"V{table.shape[1] * table.element_size()}"
    items = table.numpy().view(item)
    return lambda rows, values: items.__setitem__(rows.numpy(), values.numpy().view(item))


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
        ctx.sparse = sparse
        return torch.ops.mnemograph.dot_rows(table, rows, query)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, query = ctx.saved_tensors
        wanted, _, asked, _ = ctx.needs_input_grad
        spread, given = (_spread_named, _by_row(table, rows)) if wanted and ctx.sparse else (_spread, ())
        return (
            spread(table, rows, grad, query, *given) if wanted else None,
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
        ctx.sparse = sparse
        return _sums(table, rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        table, rows, weight = ctx.saved_tensors
        wanted, _, weighted, _ = ctx.needs_input_grad
        # Sorted once for both.
        spread, given = (_spread_named, _by_row(table, rows)) if wanted and ctx.sparse else (_spread, ())
        return (
            spread(table, rows, weight, grad, *given) if wanted else None,
            None,
            torch.ops.mnemograph.dot_rows(table, rows, grad, *given) if weighted else None,
            None,
        )


def _flat(x: Tensor) -> Tensor:
    """One batch dimension, however many there are."""
    return x.flatten(0, -2) if x.ndim > 1 else x[None]


def _sums(table: Tensor, rows: Tensor, weight: Tensor | None) -> Tensor:
    if not rows.numel():
        # Bags that all are empty it cannot tell apart.
        return table.new_zeros(len(rows), table.shape[1])
    # Detached, it takes the kernel that prepares no gradient, which is ours anyway.
    return F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=weight)


def _spread(table: Tensor, rows: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    """Adds to each row of a table the vectors of those who named it, weighted."""
    return torch.ops.mnemograph.add_to_rows(x, rows, weight, len(table))


def _by_row(table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All names in order, where each stood, and who named it."""
    named, order = torch.sort(rows.flatten().to(_narrowest(len(table))))
    return named, order, order.div(rows.shape[1], rounding_mode="floor")


def _spread_named(
    table: Tensor, rows: Tensor, weight: Tensor | None, x: Tensor, named: Tensor, order: Tensor, who: Tensor
) -> Tensor:
    """The same, of the rows that were named alone: sums of sorted bags, which need no sorting afterwards."""
    names, counts = torch.unique_consecutive(named, return_counts=True)
    weight = None if weight is None else weight.flatten().index_select(0, order)
    first = counts.cumsum(0) - counts
    sums = F.embedding_bag(who, x, first, mode="sum", per_sample_weights=weight)
    return torch.sparse_coo_tensor(
        names[None].long(), sums, table.shape, check_invariants=False, is_coalesced=True
    )


# Both are one operator, so that the bill is the same on every device, however the work is put in order.
torch.library.define(
    "mnemograph::dot_rows",
    "(Tensor table, Tensor rows, Tensor query, Tensor? named=None, Tensor? order=None, Tensor? who=None) -> Tensor",
)


@torch.library.impl("mnemograph::dot_rows", "CompositeExplicitAutograd")
def _dot_rows(
    table: Tensor,
    rows: Tensor,
    query: Tensor,
    named: Tensor | None = None,
    order: Tensor | None = None,
    who: Tensor | None = None,
) -> Tensor:
    result = query.new_empty(rows.shape)
    if rows.is_meta or not rows.numel():
        return result
    if rows.is_cuda or table.dtype not in (torch.float32, torch.float64) or _hardly_named(table, rows):
        row = rows.shape[1] * table.shape[1] * table.element_size()
        size = len(rows) if rows.is_cuda else max(1, PIECE // row)
        read = row_reader(table, size * rows.shape[1])
        for asked, names, out in zip(
            query[:, None].split(size), rows.split(size), result[:, None].split(size), strict=True
        ):
            # Autocast leaves products into a given result alone; for it the rows would have to be cast first.
            torch.bmm(asked, read(names.flatten()).view(*names.shape, -1).mT, out=out)
        return result
    # Row after row: then the table is read from end to end, and what is read at random are queries, which a cache
    # holds: a sixth to a half of the time.
    if named is None or order is None or who is None:
        named, order, who = _by_row(table, rows)
    asked = torch.sparse_csr_tensor(
        F.pad(torch.bincount(named, minlength=len(table)).cumsum(0), (1, 0)),
        who,
        query.new_zeros(len(who)),
        (len(table), len(query)),
        check_invariants=False,
    )
    dots = torch.sparse.sampled_addmm(asked, table.detach(), query.t(), beta=0.0).values()
    result.view(-1).index_copy_(0, order, dots)
    return result


def _hardly_named(table: Tensor, rows: Tensor) -> bool:
    """Whether so few rows are named, or so few of them twice, that nothing is gained by their order."""
    narrow = table.shape[1] * table.element_size() <= NARROW
    return len(table) >= rows.numel() * (1 if narrow else 4)


@register_flop_formula(torch.ops.mnemograph.dot_rows)
def _dot_flops(table: torch.Size, rows: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * table[1]


def _dot_bytes(table: Tensor, rows: Tensor, query: Tensor, *_: Any, **__: Any) -> tuple[int, int, int]:
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
