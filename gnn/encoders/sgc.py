"""Simple graph convolution: logistic regression on smoothed features."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv

from gnn.encoders.base import StackedEncoder, drop

__all__ = ["SGC"]


class SGC(StackedEncoder):
    r"""A linear layer, and rounds of smoothing without anything between them.

    .. math::
        \mathbf{Z} = \hat{\mathbf{A}}^K \mathbf{X} \mathbf{W} + \mathbf{b}

    computed from the right: classes are fewer than features, so smoothing scores costs less a step than smoothing
    features does (PyG's ``SGConv``), and sparse features stay sparse. Where many steps share one graph, features
    smoothed beforehand, ``adjacency @ x``, and an :class:`~gnn.encoders.MLP` of one layer are the same model; that work
    then belongs to the bill of the preprocessing.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hops: Rounds of smoothing :math:`K`.
        dropout: Share of the features that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.normalized_adjacency`, result: ``[nodes, n_classes]``

    Reference:
        Wu et al., "Simplifying graph convolutional networks", ICML 2019. arXiv:1902.07153.

    Raises:
        ValueError: If ``hops`` is negative.
    """

    def __init__(self, n_features: int, n_classes: int, *, hops: int = 2, dropout: float = 0.0) -> None:
        if hops < 0:
            raise ValueError(f"{hops=} rounds of smoothing: give 0 or more")
        linear = nn.Linear(n_features, n_classes, bias=False)
        super().__init__([linear], dropout=dropout, activation=F.relu)
        self.smooth = SimpleConv(aggr="sum")
        self.bias = nn.Parameter(linear.weight.new_zeros(n_classes))
        self.hops = hops
        self.hears = "normalized"

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class."""
        graph = self.graph(adjacency, x)
        scores = self.convs[0](drop(x, self.dropout, self.training))
        for _ in range(self.hops):
            scores = self.smooth(scores, *graph)
        return scores + self.bias
