"""Training a node encoder with Lightning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch_geometric.data import Data

__all__ = ["NodeModule"]


class NodeModule(LightningModule):
    r"""Node classification on one whole graph, a full batch a step.

    A batch is a PyG ``Data`` with ``x``, ``y``, ``train_mask``, ``val_mask``, ``test_mask``, and ``adj_t`` (a sparse
    matrix) or ``edge_index``; feed it with ``DataLoader([data], collate_fn=itemgetter(0))``. Losses and accuracies
    are logged with the number of nodes they are means of, which Lightning would guess wrongly.

    Args:
        encoder: Called with features and adjacency, returns scores for each class.
        lr: Rate of Adam.
        weight_decay: L2 penalty on the first layer only, as in Kipf and Welling (2017): the parameters of the first
            child of ``encoder.convs``, or of everything where there is none.

    Shapes:
        data: ``x`` ``[nodes, features]``, ``y`` ``[nodes]``, masks ``[nodes]``; result: ``[nodes, classes]``
    """

    def __init__(self, encoder: nn.Module, *, lr: float = 0.01, weight_decay: float = 5e-4) -> None:
        super().__init__()
        self.encoder = encoder
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, data: Data) -> Tensor:
        """Scores ``[nodes, classes]``."""
        return self.encoder(data.x, data.adj_t if "adj_t" in data else data.edge_index)

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        """Loss on the training nodes."""
        return self._measure(data, "train")

    def validation_step(self, data: Data, batch_idx: int) -> None:
        """Loss and accuracy on the validation nodes."""
        self._measure(data, "val")

    def test_step(self, data: Data, batch_idx: int) -> None:
        """Loss and accuracy on the test nodes."""
        self._measure(data, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, the penalty on the first layer."""
        convs = getattr(self.encoder, "convs", None)
        first = set((convs[0] if convs else self.encoder).parameters())
        rest = [parameter for parameter in self.encoder.parameters() if parameter not in first]
        groups = [
            {"params": list(first), "weight_decay": self.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.lr)

    def _measure(self, data: Data, part: str) -> Tensor:
        mask = data[f"{part}_mask"]
        scores, labels = self(data)[mask], data["y"][mask]
        loss = F.cross_entropy(scores, labels)
        accuracy = (scores.argmax(-1) == labels).float().mean()
        self.log_dict({f"{part}_loss": loss, f"{part}_accuracy": accuracy}, batch_size=int(mask.sum()))
        return loss
