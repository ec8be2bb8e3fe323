"""Training an encoder of nodes to say which edges are missing."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnn.modules.task import PARTS, TaskModule
from gnn.negatives import sample_negatives

__all__ = ["LinkModule"]


class LinkModule(TaskModule):
    r"""Link prediction on one whole graph: nodes whose vectors agree are joined.

    .. math::
        p(i \leftrightarrow j) = \sigma(\langle \mathbf{z}_i, \mathbf{z}_j \rangle)

    A batch is a PyG ``Data`` with ``x``, the edges known (``edge_index`` or ``adj_t``) and the pairs asked for,
    ``edge_label_index`` and ``edge_label``, as :class:`~gnn.LinkDataModule` gives it. In training every step draws as
    many pairs that are not known to be edges, from this module's own generator, whose state is saved with checkpoints.

    Reference:
        Kipf and Welling, "Variational graph auto-encoders", 2016, has the inner product. arXiv:1611.07308.

    Args:
        encoder: Called with features and adjacency, returns a vector of each node.
        seed: Of the generator of negative pairs.
        lr: Rate of Adam.
        weight_decay: L2 penalty.
        penalized: Of ``"all"`` weights, or of the ``"first"`` layer.

    Shapes:
        data: ``edge_label_index`` ``[2, pairs]``, ``edge_label`` ``[pairs]``; result: ``[pairs]``

    Raises:
        ValueError: If an option is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        seed: int = 0,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        penalized: Literal["first", "all"] = "all",
    ) -> None:
        super().__init__(encoder, target="binary", lr=lr, weight_decay=weight_decay, penalized=penalized)
        self._negatives = torch.Generator().manual_seed(seed)

    def forward(self, data: Data, pairs: Tensor) -> Tensor:
        """Scores of pairs ``[2, pairs]``, above 0 for an edge."""
        z = self.encoded(data)
        return (z[pairs[0]] * z[pairs[1]]).sum(-1)

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        """Loss on the edges asked for and as many pairs that are none."""
        edges = data["edge_label_index"]
        drawn = sample_negatives(
            data["edge_index"], int(data.num_nodes or 0), edges.shape[1], self._negatives
        )
        labels = torch.cat([data["edge_label"], data["edge_label"].new_zeros(drawn.shape[1])])
        return self.measure(self(data, torch.cat([edges, drawn], dim=1)), labels, "train")

    def validation_step(self, data: Data, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measures on the validation pairs and, in a second loader, the test pairs."""
        self.measure(self(data, data["edge_label_index"]), data["edge_label"], PARTS[dataloader_idx])

    def test_step(self, data: Data, batch_idx: int) -> None:
        """Measures on the test pairs."""
        self.measure(self(data, data["edge_label_index"]), data["edge_label"], "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps where the generator of negative pairs stands."""
        checkpoint["negatives"] = self._negatives.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from there."""
        self._negatives.set_state(checkpoint["negatives"])
