"""Training an encoder of graphs with Lightning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch_geometric.data import Batch

from gnn.modules.task import PARTS, Target, TaskModule

__all__ = ["GraphModule"]


class GraphModule(TaskModule):
    r"""Classification or regression of graphs, batches of them a step.

    A batch is PyG's, with ``x``, ``edge_index`` and ``y``, one target a graph, as :class:`~gnn.GraphDataModule` gives
    it. Losses and measures are logged with the number of graphs they are means of.

    Args:
        encoder: A :class:`~gnn.GraphEncoder`, or anything called like one.
        target: ``"classes"``; ``"binary"``: one score a graph; ``"number"``: one number, by its absolute error.
        lr: Rate of Adam.
        weight_decay: L2 penalty.
        penalized: Of ``"all"`` weights, or of the ``"first"`` layer.

    Shapes:
        batch: ``y`` ``[graphs]``; result: ``[graphs, outputs]``

    Raises:
        ValueError: If an option is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        target: Target = "classes",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        penalized: Literal["first", "all"] = "all",
    ) -> None:
        super().__init__(encoder, target=target, lr=lr, weight_decay=weight_decay, penalized=penalized)

    def forward(self, batch: Batch) -> Tensor:
        """Scores ``[graphs, outputs]``."""
        return self.encoded(batch, n_graphs=batch.num_graphs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss on a batch."""
        return self.measure(self(batch), batch["y"], "train")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measures on the validation graphs and, in a second loader, the test graphs."""
        self.measure(self(batch), batch["y"], PARTS[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures on the test graphs."""
        self.measure(self(batch), batch["y"], "test")
