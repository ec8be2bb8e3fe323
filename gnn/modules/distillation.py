"""Teaching a perceptron what a graph network knows."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch_geometric.data import Data

from gnn.evaluating import evaluating
from gnn.modules.node import NodeModule
from gnn.rows import subgraph_of

__all__ = ["Distillation", "observed", "soft_targets"]


def observed(data: Data, unseen: Bool[Tensor, " nodes"]) -> Data:
    """The graph without some nodes and their edges, as an inductive teacher is trained on it.

    Args:
        data: The graph, with ``edge_index``.
        unseen: Nodes that nobody has met before the test.

    Shapes:
        unseen: ``[nodes]``

    Raises:
        ValueError: If a training node is unseen.
    """
    if bool((unseen & data["train_mask"]).any()):
        raise ValueError("unseen nodes are among those to train on: choose them from the test nodes")
    return subgraph_of(data, (~unseen).nonzero().squeeze(1))


def soft_targets(teacher: nn.Module, data: Data, *, unseen: Bool[Tensor, " nodes"] | None = None) -> Data:
    """A copy of a graph with a teacher's scores, ``teacher``, and the nodes that have some, ``soft_mask``.

    The teacher runs once, in evaluation and without gradients; open a ledger around the call to bill it.

    Args:
        teacher: A trained encoder, or its :class:`~gnn.NodeModule`.
        data: The graph.
        unseen: Inductive: nodes that the teacher neither scores nor hears, whose scores are NaN. By default it scores
            all (transductive). Such a teacher is trained on :func:`observed`.

    Shapes:
        unseen: ``[nodes]``, result: ``teacher`` ``[nodes, classes]``, ``soft_mask`` ``[nodes]``

    Raises:
        ValueError: If a training node is unseen.
    """
    module = teacher if isinstance(teacher, NodeModule) else NodeModule(teacher)
    with evaluating(module), torch.no_grad():
        scores = module(data if unseen is None else observed(data, unseen))
    given = data.clone()
    given["soft_mask"] = torch.ones_like(data["train_mask"]) if unseen is None else ~unseen
    given["teacher"] = scores.new_full((len(given["soft_mask"]), scores.shape[1]), torch.nan)
    given["teacher"][given["soft_mask"]] = scores
    return given


class Distillation(NodeModule):
    r"""A student without a graph learns the scores of a graph network (GLNN).

    .. math::
        \mathcal{L} = \frac{\lambda}{|\mathcal{V}_L|} \sum_{v \in \mathcal{V}_L} \mathrm{CE}(\hat{\mathbf{y}}_v, y_v)
        + \frac{(1 - \lambda)\, T^2}{|\mathcal{V}_S|} \sum_{v \in \mathcal{V}_S}
        \mathrm{KL}\big(\mathrm{softmax}(\mathbf{z}_v / T) \,\Vert\, \mathrm{softmax}(\hat{\mathbf{s}}_v / T)\big)

    with the labelled nodes (``train_mask``), the nodes that have soft targets (``soft_mask``) and the teacher's scores
    :math:`\mathbf{z}`; the paper's :math:`T` is 1 and its :math:`\lambda` mostly 0. The factor :math:`T^2` keeps
    gradients of one size (`Distilling the knowledge in a neural network <https://arxiv.org/abs/1503.02531>`_, Hinton et
    al., 2015). Means are of a batch's nodes; one without labelled nodes has no first term.

    The student is cheap to run, not to come by: its arm pays for the teacher too. ``teacher_flops`` has no default so
    that nobody forgets; :meth:`arm_flops` adds them, and so does a ledger that is told:

    .. code-block:: python

        given = soft_targets(teacher, data)
        module = Distillation(MLP(...), teacher_flops=teacher_ledger.train_flops + scoring.flops)
        ledger.add("teacher", module.teacher_flops)
        Trainer(callbacks=[ledger]).fit(module, RowDataModule(given, train_on="soft_mask"))

    Args:
        student: Called as an encoder; an :class:`~gnn.MLP` looks at no graph.
        teacher_flops: FLOPs of training the teacher and of its scores.
        weight: Share :math:`\lambda` of the labels.
        temperature: :math:`T`.
        lr: Rate of Adam.
        weight_decay: L2 penalty.
        penalized: Of ``"all"`` weights, or of the ``"first"`` layer.

    Shapes:
        data: ``x`` ``[nodes, features]``, ``y`` ``[nodes]``, ``teacher`` ``[nodes, classes]``, masks ``[nodes]``;
        result: ``[nodes, classes]``

    Reference:
        Zhang et al., "Graph-less neural networks: teaching old MLPs new tricks via distillation", ICLR 2022.
        arXiv:2110.08727.

    Raises:
        ValueError: If an option is out of range, or a batch has no soft targets.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher_flops: int,
        weight: float = 0.0,
        temperature: float = 1.0,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        penalized: Literal["first", "all"] = "all",
    ) -> None:
        super().__init__(student, lr=lr, weight_decay=weight_decay, penalized=penalized)
        if not 0 <= weight <= 1:
            raise ValueError(f"{weight=} must be a share, from 0 to 1")
        if temperature <= 0:
            raise ValueError(f"{temperature=} must be above 0")
        if teacher_flops < 0:
            raise ValueError(f"{teacher_flops=}: give what the teacher has cost, 0 or more")
        self.teacher_flops, self.weight, self.temperature = teacher_flops, weight, temperature
        self.save_hyperparameters(
            {"teacher_flops": teacher_flops, "weight": weight, "temperature": temperature}
        )

    def arm_flops(self, train_flops: int) -> int:
        """What this arm has cost: the student's training, as a ledger counts it, and the teacher."""
        return train_flops + self.teacher_flops

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        """Loss on labels and soft targets."""
        if "teacher" not in data or "soft_mask" not in data:
            raise ValueError("a batch has no soft targets: train on soft_targets(teacher, data)")
        scores, soft, labelled = self(data), data["soft_mask"], data["train_mask"]
        told = self.soft_loss(scores[soft], data["teacher"][soft])
        loss = (1 - self.weight) * told
        if self.weight and bool(labelled.any()):
            loss = loss + self.weight * F.cross_entropy(scores[labelled], data["y"][labelled])
        self.log_dict(
            {"train_loss": loss, "train_soft_loss": told},
            batch_size=len(scores),
            on_step=False,
            on_epoch=True,
        )
        return loss

    def soft_loss(self, scores: Tensor, teacher: Tensor) -> Tensor:
        r"""The second term without its share, :math:`T^2\, \mathrm{KL}`.

        Shapes:
            scores, teacher: ``[nodes, classes]``, result: ``[]``
        """
        told = (teacher.detach() / self.temperature).log_softmax(-1)
        said = (scores / self.temperature).log_softmax(-1)
        return self.temperature**2 * F.kl_div(said, told, reduction="batchmean", log_target=True)
