"""How the rows of a table are used: whether a memory is read all over, or has collapsed to a few rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mann.host_table import HostTable
from mann.optim import parameter_roles
from mann.product_keys import ProductKeys
from mann.watching import WatchingCallback

__all__ = ["TableHealth", "TableHealthCallback", "watch_tables"]


class TableHealth:
    r"""Counts who reads which row, and says how evenly.

    With :math:`p_i` the share of all reads that row :math:`i` of :math:`n` has,

    .. math:: \mathrm{KL}(p \,\|\, \text{uniform}) = \ln n + \sum_i p_i \ln p_i

    in nats: 0 where all rows are read alike, :math:`\ln n` where one has all reads. Rows may be those of an n-gram
    table, product keys, or the experts of a mixture. Early figures say little: use of a product-key table has been seen
    to fall to a tenth and to come back within the first percent of training.

    Reference:
        Lample et al., "Large Memory Layers with Product Keys", 2019. arXiv:1907.05242.

    Args:
        n_rows: Rows of the table.
        device: Where to count; by default the CPU.

    Raises:
        ValueError: If there are no rows.
    """

    counts: Int[Tensor, "rows"]

    def __init__(self, n_rows: int, device: torch.device | str | None = None) -> None:
        if n_rows < 1:
            raise ValueError(f"a table of {n_rows} rows cannot be read: give n_rows >= 1")
        self.counts = torch.zeros(n_rows, dtype=torch.int64, device=device)

    def update(self, rows: Int[Tensor, "*shape"]) -> None:
        """Count these reads too.

        Args:
            rows: Numbers of rows, of any shape.

        Raises:
            ValueError: If a number is none of a row.
        """
        rows = rows.detach().flatten().to(self.counts.device)
        if not len(rows):
            return
        least, most = (int(edge) for edge in rows.aminmax())
        if least < 0 or most >= len(self.counts):
            raise ValueError(
                f"rows {least} to {most} of a table of {len(self.counts)}: give TableHealth the table's number of rows"
            )
        self.counts += torch.bincount(rows, minlength=len(self.counts))

    def result(self) -> dict[str, float]:
        """What was counted so far.

        Returns:
            ``reads``; ``used``, the share of rows read at least once; ``dead``, the number of the others;
            ``kl_to_uniform`` in nats; ``top_percent``, the share of reads that the most read hundredth of rows has
            (one row at least). The last two are NaN before anything is read.
        """
        n, reads = len(self.counts), int(self.counts.sum())
        read = self.counts[self.counts > 0].double()
        found = {"reads": float(reads), "used": len(read) / n, "dead": float(n - len(read))}
        if not reads:
            return found | {"kl_to_uniform": math.nan, "top_percent": math.nan}
        share = read / reads
        # Rounding can make an even use a little better than even.
        uneven = max(0.0, math.log(n) + float((share * share.log()).sum()))
        most = self.counts.topk(max(1, n // 100)).values
        return found | {"kl_to_uniform": uneven, "top_percent": int(most.sum()) / reads}

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts.zero_()


@contextmanager
def watch_tables(model: nn.Module) -> Iterator[dict[str, TableHealth]]:
    """Count, within a block, which rows of a model's tables its forward passes read.

    Tables are embeddings of the role ``"table"`` (n-grams, STEM), host tables, and whatever product keys choose from;
    a table that several layers share is counted by each.

    Args:
        model: Any module.

    Returns:
        The counts of each table, by the name of what reads it; one that is never called is not among them.
    """
    found: dict[str, TableHealth] = {}
    handles = []
    tables = {id(parameter) for parameter in parameter_roles(model)["table"]}
    for name, module in model.named_modules():
        if isinstance(module, ProductKeys):
            n_rows = module.n_keys**2
        elif isinstance(module, HostTable) or (
            isinstance(module, nn.Embedding) and id(module.weight) in tables
        ):
            n_rows = len(module.weight)
        else:
            continue
        handles.append(module.register_forward_hook(partial(_count, found, name, n_rows)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _count(
    found: dict[str, TableHealth],
    name: str,
    n_rows: int,
    module: nn.Module,
    given: tuple[Any, ...],
    output: Any,
) -> None:
    rows = output[1] if isinstance(module, ProductKeys) else given[0]
    found.setdefault(name, TableHealth(n_rows)).update(rows)


class TableHealthCallback(WatchingCallback):
    """Logs how a model's tables are used in training: ``tables/NAME/used``, ``kl_to_uniform``, ``top_percent``.

    Counting takes a pass over the row numbers of a step, which is little beside reading the rows.

    Args:
        every: Steps between two logs; each tells of the steps since the one before.

    Raises:
        ValueError: If ``every`` is not at least 1.
    """

    prefix, told = "tables", ("used", "kl_to_uniform", "top_percent")

    @property
    def tables(self) -> dict[str, TableHealth]:
        """What was counted since the last log."""
        return cast("dict[str, TableHealth]", self.counted)

    def watch(self, model: nn.Module) -> AbstractContextManager[dict[str, TableHealth]]:
        """As :func:`watch_tables` counts."""
        return watch_tables(model)
