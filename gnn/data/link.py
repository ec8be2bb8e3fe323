"""One whole graph, some of whose edges are to be told."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit

from gnn.negatives import sample_negatives

__all__ = ["LinkDataModule"]


class LinkDataModule(LightningDataModule):
    """A graph whose edges are split, for :class:`~gnn.LinkModule`. The split's name is logged as ``split``.

    Edges are split by PyG's ``RandomLinkSplit``: those of validation are not known in training, those of the test
    neither in training nor in validation. Pairs to tell them from, as many, are drawn here once, from pairs that are no
    edge of the whole graph; those of training each step, by the module. A validation has two loaders, of the validation
    pairs and of the test pairs.

    Args:
        data: An undirected graph, both directions of every edge; further attributes stay.
        seed: Of the split and the pairs.
        val: Share of the edges to choose by.
        test: Share of the edges to report on.
        matrix: Makes a sparse matrix of edges, for every step to use: an encoder's method ``matrix``.

    Shapes:
        data: ``x`` ``[nodes, features]``, ``edge_index`` ``[2, edges]``

    Raises:
        ValueError: If an edge is there in one direction only, or a part of the split is empty.
    """

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        val: float = 0.05,
        test: float = 0.1,
        matrix: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not data.is_undirected():
            raise ValueError(
                "edges are there in one direction only: torch_geometric.utils.to_undirected first"
            )
        self.split = f"random links seed {seed}, {100 * (1 - val - test):g}/{100 * val:g}/{100 * test:g}"
        if data.edge_index is None:
            raise ValueError("a graph without edge_index has no edges to split")
        n_nodes = int(data.num_nodes or 0)
        draw = RandomLinkSplit(
            val, test, is_undirected=True, add_negative_train_samples=False, neg_sampling_ratio=0.0
        )
        with torch.random.fork_rng(devices=[]):  # it draws from the global generator
            torch.manual_seed(seed)
            parts = draw(data)
        generator = torch.Generator().manual_seed(seed)
        self.parts: dict[str, Data] = {}
        for name, part in zip(("train", "val", "test"), parts, strict=True):
            count = part.edge_label_index.shape[1]
            if not count:
                raise ValueError(f"split {self.split!r} of {data.num_edges // 2} edges has none in {name}")
            if name != "train":
                drawn = sample_negatives(data["edge_index"], n_nodes, count, generator)
                part.edge_label_index = torch.cat([part.edge_label_index, drawn], dim=1)
                part.edge_label = torch.cat([part.edge_label, torch.zeros(count)])
            if matrix is not None:
                part.adj_t = matrix(part.edge_index, n_nodes)
            part["split"] = self.split
            self.parts[name] = part
        self.save_hyperparameters({"split": self.split})

    def train_dataloader(self) -> DataLoader[Data]:
        """The edges of training."""
        return self._loader("train")

    def val_dataloader(self) -> list[DataLoader[Data]]:
        """The validation pairs, and the test pairs."""
        return [self._loader("val"), self._loader("test")]

    def test_dataloader(self) -> DataLoader[Data]:
        """The test pairs."""
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader[Data]:
        return DataLoader([self.parts[part]], collate_fn=itemgetter(0))  # type: ignore[arg-type]
