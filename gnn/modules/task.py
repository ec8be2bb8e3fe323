"""What the tasks on graphs share: losses, measures, the optimizer, and how they are logged."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torchmetrics.classification import BinaryAUROC

__all__ = ["PARTS", "Target", "TaskModule"]

Target = Literal["classes", "binary", "number"]
# What the loaders of a validation hold, in this order: the test split is measured along, and chooses nothing.
PARTS = ("val", "test")


class TaskModule(LightningModule):
    """A network on graphs with its loss, its measures and Adam.

    Measures are means over nodes, graphs or pairs, logged with how many these were, which Lightning would guess
    wrongly; the area under the ROC curve is that of an epoch, not a mean of batches. Losses and measures are called
    ``train_loss``, ``val_accuracy``, ``test_roc_auc`` and so on. The test split is measured at each validation too, so
    that :class:`~gnn.selection.Selection` can say what each rule would have reported.

    Args:
        encoder: The network.
        target: ``"classes"`` (cross-entropy; accuracy), ``"binary"`` (one score, above 0 for true; accuracy and
            ROC-AUC) or ``"number"`` (the mean absolute error, which is the loss too).
        lr: Rate of Adam.
        weight_decay: L2 penalty.
        penalized: Whose weights: of the ``"first"`` layer (the first of ``encoder.convs``), as in Kipf and Welling
            (2017), or of ``"all"``, as where there is no such layer.

    Raises:
        ValueError: If an option is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        target: Target,
        lr: float,
        weight_decay: float,
        penalized: Literal["first", "all"],
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("target", target, get_args(Target)),
            ("penalized", penalized, ("first", "all")),
        ):
            if given not in known:
                raise ValueError(f"{name}={given!r}: use one of {', '.join(map(repr, known))}")
        self.encoder, self.target = encoder, target
        self.lr, self.weight_decay, self.penalized = lr, weight_decay, penalized
        self.roc_auc = nn.ModuleDict({part: BinaryAUROC() for part in PARTS} if target == "binary" else {})

    def encoded(self, data: Data | Batch, **more: int) -> Tensor:
        """What the encoder makes of a graph or a batch of them."""
        given = {name: data[name] for name in getattr(self.encoder, "also", ()) if name in data}
        if "batch" in data and data["batch"] is not None:
            given["batch"] = data["batch"]
        return self.encoder(data["x"], data["adj_t" if "adj_t" in data else "edge_index"], **given, **more)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, the penalty where it belongs."""
        convs = getattr(self.encoder, "convs", None) if self.penalized == "first" else None
        first = set((convs[0] if convs else self.encoder).parameters())
        rest = [parameter for parameter in self.encoder.parameters() if parameter not in first]
        groups = [
            {
                "params": [p for p in self.encoder.parameters() if p in first],
                "weight_decay": self.weight_decay,
            },
            {"params": rest, "weight_decay": 0.0},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.lr)

    def measure(self, scores: Tensor, targets: Tensor, part: str) -> Tensor:
        """Logs the measures of one part and returns its loss.

        Args:
            scores: ``[items, classes]``, or ``[items, 1]`` or ``[items]`` of one score each.
            targets: ``[items]``.
            part: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ValueError: If the scores do not fit the target.
        """
        if self.target == "classes":
            loss = F.cross_entropy(scores, targets)
            measures = {"accuracy": (scores.argmax(-1) == targets).float().mean()}
        else:
            if scores.numel() != targets.numel():
                raise ValueError(
                    f"target={self.target!r} needs one score an item, got {tuple(scores.shape)} for "
                    f"{tuple(targets.shape)}: build the encoder with one output"
                )
            scores = scores.reshape(targets.shape)
            if self.target == "binary":
                loss = F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype))
                measures = {"accuracy": ((scores > 0) == (targets > 0)).float().mean()}
                self._roc_auc(scores, targets, part)
            else:
                loss = F.l1_loss(scores, targets.to(scores.dtype))
                measures = {"absolute_error": loss}
        measures = {f"{part}_{name}": value for name, value in {"loss": loss, **measures}.items()}
        self.log_dict(
            measures, batch_size=len(targets), on_step=False, on_epoch=True, add_dataloader_idx=False
        )
        return loss

    def _roc_auc(self, scores: Tensor, targets: Tensor, part: str) -> None:
        if part not in self.roc_auc:
            return
        metric = cast("BinaryAUROC", self.roc_auc[part])
        # Probabilities in double precision: torchmetrics would decide from each batch whether scores are, and in single
        # precision large ones would tie.
        metric.update(scores.detach().double().sigmoid(), targets.long())
        self.log(
            f"{part}_roc_auc",
            metric,
            batch_size=len(targets),
            on_step=False,
            on_epoch=True,
            add_dataloader_idx=False,
        )
