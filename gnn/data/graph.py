"""Batches of graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from gnn.splits import Split

__all__ = ["GraphDataModule"]


class GraphDataModule(LightningDataModule):
    """Graphs, split, for :class:`~gnn.GraphModule`. The split's name is logged as ``split``.

    A validation has two loaders, of the validation graphs and of the test graphs. The order of training comes from a
    generator of its own.

    Args:
        graphs: The graphs, each with one target ``y``; a PyG data set is one such sequence.
        split: What to train, choose and report on.
        batch_size: Graphs of a batch.
        seed: Of the order of training.

    Raises:
        ValueError: If the split names graphs that are not there.
    """

    def __init__(self, graphs: Sequence[Data], split: Split, *, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        if (last := max(int(items.max()) for items in split.parts.values())) >= len(graphs):
            raise ValueError(f"split {split.name!r} names graph {last} of {len(graphs)}")
        self.graphs, self.parts, self.split = graphs, split.parts, split.name
        self.batch_size, self.seed = batch_size, seed
        self.save_hyperparameters({"split": split.name, "batch_size": batch_size})

    def train_dataloader(self) -> DataLoader:
        """The training graphs in an order of their own each epoch."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self._of(self.parts["train"]), batch_size=self.batch_size, shuffle=True, generator=order
        )

    def val_dataloader(self) -> list[DataLoader]:
        """The validation graphs, and the test graphs."""
        return [
            DataLoader(self._of(self.parts[part]), batch_size=self.batch_size) for part in ("val", "test")
        ]

    def test_dataloader(self) -> DataLoader:
        """The test graphs."""
        return DataLoader(self._of(self.parts["test"]), batch_size=self.batch_size)

    def _of(self, items: Tensor) -> list[Data]:
        return [self.graphs[item] for item in items.tolist()]
