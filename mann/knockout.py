"""What a memory is worth to a trained model: the same weights with it off, or with its rows in another order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mann.optim import parameter_roles

__all__ = ["KnockoutCallback", "shuffled_rows", "without_memory"]


@contextmanager
def without_memory(network: nn.Module) -> Iterator[None]:
    """The same weights with every memory slot empty, within a block.

    Args:
        network: A :class:`~mann.Transformer`; others have no such slots and stay as they are.
    """
    kept = getattr(network, "memory", None)
    if not isinstance(kept, nn.ModuleDict):
        yield
        return
    network.memory = nn.ModuleDict()
    try:
        yield
    finally:
        network.memory = kept


@contextmanager
def shuffled_rows(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Every table with its rows in another order, within a block: what is read is as large as before, and wrong.

    A memory whose rows matter loses by it; one that is read as a bias does not.

    Args:
        model: Any module.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = parameter_roles(model)["table"]
    orders = [torch.randperm(len(table), generator=generator).to(table.device) for table in tables]
    with torch.no_grad():
        for table, order in zip(tables, orders, strict=True):
            table.copy_(table[order])
    try:
        yield
    finally:
        with torch.no_grad():
            for table, order in zip(tables, orders, strict=True):
                table.copy_(table[order.argsort()])


class KnockoutCallback(L.Callback):
    """Evaluates with memories off and with table rows shuffled, beside every validation.

    Logs ``knockout/memory_off`` and ``knockout/rows_shuffled``: the loss of validation batches then, less their loss as
    they are, in nats per token; above zero where the memory helps. Each costs as much as validation itself.

    Args:
        batches: Batches of each validation that are asked, from the first on; ``None``: all.

    Raises:
        ValueError: If ``batches`` is not at least 1.
    """

    def __init__(self, batches: int | None = None) -> None:
        if batches is not None and batches < 1:
            raise ValueError(f"batches={batches}: give at least 1, or None for all")
        self.batches = batches
        self._sums: dict[str, float] = {}
        self._seen = 0

    def on_validation_epoch_start(self, *_: Any) -> None:
        """Begin anew."""
        self._sums, self._seen = {}, 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask the same batch again."""
        if dataloader_idx or (self.batches is not None and batch_idx >= self.batches):
            return
        network: Any = module.network
        whole = _loss(module, batch)
        self._seen += 1
        if isinstance(getattr(network, "memory", None), nn.ModuleDict) and len(network.memory):
            with without_memory(network):
                self._add("memory_off", _loss(module, batch) - whole)
        if parameter_roles(network)["table"]:
            with shuffled_rows(network):
                self._add("rows_shuffled", _loss(module, batch) - whole)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the means."""
        for name, total in self._sums.items():
            module.log(f"knockout/{name}", total / self._seen, batch_size=self._seen, sync_dist=True)

    def _add(self, name: str, worse: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(worse)


def _loss(module: L.LightningModule, batch: Any) -> Tensor:
    with torch.no_grad():
        return module(batch)
