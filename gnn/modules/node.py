"""Training an encoder of nodes with Lightning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch_geometric.data import Data

from gnn.modules.task import TaskModule

__all__ = ["NodeModule"]


class NodeModule(TaskModule):
    r"""Node classification on one whole graph, a full batch a step.

    A batch is a PyG ``Data`` with ``x``, ``y``, ``train_mask``, ``val_mask``, ``test_mask``, and ``adj_t`` (a sparse
    matrix) or ``edge_index``, as :class:`~gnn.NodeDataModule` gives it. A validation measures the test nodes in the
    same pass. Losses and measures are logged with the number of nodes they are means of.

    Args:
        encoder: Called with features and adjacency, returns scores for each class.
        target: ``"classes"``, or ``"binary"``: one score a node, accuracy and ROC-AUC.
        lr: Rate of Adam.
        weight_decay: L2 penalty.
        penalized: Of the ``"first"`` layer only, as in Kipf and Welling (2017): the parameters of the first child of
            ``encoder.convs``, or of everything where there is none; or of ``"all"``.

    Shapes:
        data: ``x`` ``[nodes, features]``, ``y`` ``[nodes]``, masks ``[nodes]``; result: ``[nodes, classes]``

    Raises:
        ValueError: If an option is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        target: Literal["classes", "binary"] = "classes",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        penalized: Literal["first", "all"] = "first",
    ) -> None:
        super().__init__(encoder, target=target, lr=lr, weight_decay=weight_decay, penalized=penalized)

    def forward(self, data: Data) -> Tensor:
        """Scores ``[nodes, classes]``."""
        return self.encoded(data)

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        """Loss on the training nodes."""
        return self._measured(self(data), data, "train")

    def validation_step(self, data: Data, batch_idx: int) -> None:
        """Measures on the validation nodes and, from the same scores, the test nodes."""
        scores = self(data)
        for part in ("val", "test"):
            self._measured(scores, data, part)

    def test_step(self, data: Data, batch_idx: int) -> None:
        """Measures on the test nodes."""
        self._measured(self(data), data, "test")

    def _measured(self, scores: Tensor, data: Data, part: str) -> Tensor:
        mask = data[f"{part}_mask"]
        if mask.ndim != 1:
            raise ValueError(
                f"{part}_mask has shape {tuple(mask.shape)}: choose one of its splits, "
                'such as Split.of_masks("fold 3 of 10", ...).onto(data)'
            )
        return self.measure(scores[mask], data["y"][mask], part)
