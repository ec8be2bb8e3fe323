"""A perceptron of each node alone: the control that says what the graph is worth."""

from __future__ import annotations

from torch import nn

from gnn.encoders.base import NodeEncoder

__all__ = ["MLP"]


class MLP(NodeEncoder):
    r"""Linear layers of each node's own features; the graph is taken and not looked at.

    .. math::
        \mathbf{H}' = \mathrm{ReLU}(\mathbf{H} \mathbf{W} + \mathbf{b})

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the layers between.
        n_layers: Number of linear layers.
        dropout: Share of the inputs of each layer that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: anything, result: ``[nodes, n_classes]``

    Reference:
        Kipf and Welling, "Semi-supervised classification with graph convolutional networks", 2017, has it as its
        baseline. arXiv:1609.02907.
    """

    def __init__(
        self, n_features: int, n_classes: int, *, hidden: int = 16, n_layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__(
            nn.Linear,
            n_features,
            n_classes,
            hidden=hidden,
            n_layers=n_layers,
            dropout=dropout,
            hears="nothing",
        )
