"""A step of Adam on some rows of a table and of its moments, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from retrieval.rows import row_reader, row_writer

__all__ = ["CACHED", "adam_rows"]

# Bytes of rows that stay in a CPU's cache while they are changed.
CACHED = 1 << 19
# The part of a table's rows from which a CPU moves all of them, and puts the others back: memory is read in order.
MOST = 0.7
# Rows of a run, on average, from which runs are changed where they stand.
RUN = 128


def adam_rows(
    table: Float[Tensor, "vocab width"],
    mean: Float[Tensor, "vocab width"],
    square: Float[Tensor, "vocab width"],
    rows: Int[Tensor, " rows"],
    grad: Float[Tensor, "rows width"],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    r"""What :class:`~mann.optim.RowAdam` does to the rows it is given; all in one type.

    Args:
        table: What is trained.
        mean: The first moments.
        square: The second moments.
        rows: Which rows, each once and in order.
        grad: The gradient of each.
        lr: Step size.
        betas: :math:`\beta_1` and :math:`\beta_2`.
        eps: :math:`\epsilon`.
        step: The number of the step, from 1 on.

    Shapes:
        table, mean, square: ``[vocab, width]``; rows: ``[rows]``; grad: ``[rows, width]``.
    """
    torch.ops.mnemograph.adam_rows(table, mean, square, rows, grad, lr, *betas, eps, step)


# One operator, so that the bill is the same on every device, however rows are fetched.
torch.library.define(
    "mnemograph::adam_rows",
    "(Tensor(a!) table, Tensor(b!) mean, Tensor(c!) square, Tensor rows, Tensor grad, "
    "float lr, float beta1, float beta2, float eps, int step) -> ()",
)


@torch.library.impl("mnemograph::adam_rows", "CompositeExplicitAutograd")
def _adam_rows(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
) -> None:
    if rows.is_meta or not rows.numel():
        return
    # Fused Adam corrects the second moment before it adds epsilon, this one after.
    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps / (1 - beta2**step) ** 0.5}
    settings |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
    number = torch.tensor(float(step), device=table.device)
    parts, grad = (table, mean, square), grad.contiguous()
    on_cpu = table.device.type == "cpu"
    size = max(1, CACHED // (grad.element_size() * table.shape[1])) if on_cpu else len(table)

    def move(new: Sequence[Tensor], changed: Sequence[Sequence[Tensor]]) -> None:
        torch._fused_adam_(changed[0], new, changed[1], changed[2], [], [number] * len(new), **settings)  # type: ignore[arg-type]

    if on_cpu and len(rows) > MOST * len(table) and all(part.is_contiguous() for part in parts):
        lengths, sizes = _runs(rows, len(table))
        if len(rows) >= RUN * len(lengths):
            move(grad.split(lengths), [part.split(sizes)[1::2] for part in parts])
            return
        rest = torch.ones(len(table), dtype=torch.bool).index_fill_(0, rows, False).nonzero()[:, 0]
        kept = [row_reader(part, len(rest))(rest) for part in parts]
        # What stands in place of the rows without a gradient does not matter.
        new = grad.new_zeros(size, table.shape[1])
        ends = torch.searchsorted(rows, torch.arange(0, len(table) + size, size)).diff().tolist()
        pieces = [part.split(size) for part in parts]
        put = row_writer(new)
        for n, (here, given) in enumerate(zip(rows.split(ends), grad.split(ends), strict=True)):
            put(here - n * size, given)
            changed = [[piece[n]] for piece in pieces]
            move([new[: len(changed[0][0])]], changed)
        for part, old in zip(parts, kept, strict=True):
            row_writer(part)(rest, old)
        return
    readers, writers = [row_reader(part, size) for part in parts], [row_writer(part) for part in parts]
    for here, given in zip(rows.split(size), grad.split(size), strict=True):
        changed = [[read(here)] for read in readers]
        move([given], changed)
        for put, (values,) in zip(writers, changed, strict=True):
            put(here, values)


def _runs(rows: Tensor, n_rows: int) -> tuple[list[int], list[int]]:
    """The lengths of runs of neighbours; and those of gaps and runs in turn, from the first row to the last."""
    last = F.pad(rows.diff() != 1, (0, 1), value=True).nonzero()[:, 0]
    lengths = last.diff(prepend=last.new_tensor([-1]))
    ends = rows[last] + 1
    gaps = ends - lengths - F.pad(ends[:-1], (1, 0))
    sizes = torch.stack([gaps, lengths], 1).flatten().tolist()
    return lengths.tolist(), [*sizes, n_rows - sum(sizes)]


@torch.library.register_fake("mnemograph::adam_rows")
def _(*_: Any) -> None:
    return None


@register_flop_formula(torch.ops.mnemograph.adam_rows)
def _flops(*shapes: Any, **_: Any) -> int:
    """As torch's fused Adam: 13 operations a number."""
    return 13 * shapes[4].numel()


def _bytes(
    table: Tensor, mean: Tensor, square: Tensor, rows: Tensor, grad: Tensor, *_: Any, **__: Any
) -> tuple[int, int, int]:
    """Read: rows of the table, the moments and the gradient, and which; written: all of them but the gradient."""
    found = grad.numel() * sum(part.element_size() for part in (table, mean, square))
    read = found + grad.numel() * grad.element_size() + rows.numel() * rows.element_size()
    return read, found, 2 * found


_flops.bytes_formula = _bytes  # type: ignore[attr-defined]
