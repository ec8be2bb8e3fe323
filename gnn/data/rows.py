"""Batches of nodes without their neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from gnn.rows import node_rows
from gnn.splits import Split, split_name

__all__ = ["RowDataModule"]


class RowDataModule(LightningDataModule):
    """Rows of a graph's nodes, for encoders that look at no neighbour: :class:`~gnn.MLP`, a precomputed
    :class:`~gnn.SIGN`. The split's name is logged as ``split``.

    A batch is a PyG ``Data`` of some nodes, with everything the graph holds of them and no edge, as
    :class:`~gnn.NodeModule` and :class:`~gnn.Distillation` take it. A validation is one batch of the validation and
    test nodes. The order of training comes from a generator of its own.

    Args:
        data: The graph, with masks and their name in ``data["split"]`` unless a split is given.
        split: What to train, choose and report on.
        batch_size: Nodes of a training batch; ``None``: all.
        train_on: The mask of the nodes that a training batch is of: ``"soft_mask"`` of a graph that
            :func:`~gnn.soft_targets` made.
        seed: Of the order of training.

    Shapes:
        data: ``x`` ``[nodes, ...]``, ``y`` ``[nodes]``, masks ``[nodes]``

    Raises:
        ValueError: If the split has no name, or no node is to be trained on.
    """

    def __init__(
        self,
        data: Data,
        split: Split | None = None,
        *,
        batch_size: int | None = None,
        train_on: str = "train_mask",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data = data if split is None else split.onto(data)
        self.split = split_name(self.data)
        if train_on not in self.data:
            raise ValueError(f"the graph has no {train_on!r}: it has {', '.join(self.data.keys())}")
        self.train_nodes = self._nodes(train_on)
        if not len(self.train_nodes):
            raise ValueError(f"{train_on} names no node to train on")
        self.batch_size, self.seed = batch_size or len(self.train_nodes), seed
        self.save_hyperparameters({"split": self.split, "batch_size": self.batch_size})

    def train_dataloader(self) -> DataLoader[Data]:
        """Nodes to train on, in an order of their own each epoch."""
        order = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train_nodes, self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Data]:
        """The validation and the test nodes."""
        return self._whole(self._nodes("val_mask", "test_mask"))

    def test_dataloader(self) -> DataLoader[Data]:
        """The test nodes."""
        return self._whole(self._nodes("test_mask"))

    def _nodes(self, *masks: str) -> Int[Tensor, " rows"]:
        return torch.stack([self.data[name] for name in masks]).any(0).nonzero().squeeze(1)

    def _whole(self, nodes: Tensor) -> DataLoader[Data]:
        return self._loader(nodes, len(nodes), shuffle=False, generator=None)

    def _loader(
        self, nodes: Tensor, size: int, *, shuffle: bool, generator: torch.Generator | None
    ) -> DataLoader[Data]:
        return DataLoader(
            nodes.tolist(),  # type: ignore[arg-type]
            batch_size=size,
            shuffle=shuffle,
            generator=generator,
            collate_fn=lambda rows: node_rows(self.data, torch.tensor(rows)),
        )
