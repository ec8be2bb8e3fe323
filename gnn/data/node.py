"""One whole graph, a full batch a step."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from gnn.splits import Split, split_name

__all__ = ["NodeDataModule"]


class NodeDataModule(LightningDataModule):
    """A graph whose nodes are split, for :class:`~gnn.NodeModule`. The split's name is logged as ``split``.

    Args:
        data: The graph, with masks and their name in ``data["split"]`` unless a split is given.
        split: What to train, choose and report on.
        matrix: Makes a sparse matrix of edges, for every step to use: an encoder's method ``matrix``.

    Shapes:
        data: ``x`` ``[nodes, features]``, ``edge_index`` ``[2, edges]``, ``y`` ``[nodes]``

    Raises:
        ValueError: If the split has no name.
    """

    def __init__(
        self,
        data: Data,
        split: Split | None = None,
        *,
        matrix: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.data = data.clone() if split is None else split.onto(data)
        self.split = split_name(self.data)
        if matrix is not None:
            self.data.adj_t = matrix(self.data["edge_index"], int(self.data.num_nodes or 0))
        self.save_hyperparameters({"split": self.split})

    def train_dataloader(self) -> DataLoader[Data]:
        """The graph."""
        return self._loader()

    def val_dataloader(self) -> DataLoader[Data]:
        """The graph."""
        return self._loader()

    def test_dataloader(self) -> DataLoader[Data]:
        """The graph."""
        return self._loader()

    def _loader(self) -> DataLoader[Data]:
        return DataLoader([self.data], collate_fn=itemgetter(0))  # type: ignore[arg-type]
