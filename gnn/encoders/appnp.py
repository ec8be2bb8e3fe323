"""Predict, then propagate by personalised PageRank."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv

from gnn.adjacency import is_matrix
from gnn.encoders.base import StackedEncoder, drop

__all__ = ["APPNP"]


class APPNP(StackedEncoder):
    r"""A perceptron of each node, whose scores then walk over the graph and return to where they started.

    .. math::
        \mathbf{Z}^{(0)} = \mathrm{MLP}(\mathbf{X}), \qquad
        \mathbf{Z}^{(k+1)} = (1 - \alpha)\, \hat{\mathbf{A}} \mathbf{Z}^{(k)} + \alpha \mathbf{Z}^{(0)}

    In training entries of :math:`\hat{\mathbf{A}}` are dropped, others in each round, as the paper has it. PyG's
    ``APPNP`` drops in each round from what the last one has left, so that of ten rounds the last hears a thousandth.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the perceptron's hidden layers.
        n_layers: Number of its linear layers.
        hops: Rounds of propagation :math:`K`.
        alpha: Share of its own score that a node keeps returning to.
        dropout: Share of the inputs of each layer, and of the graph in each round, that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.normalized_adjacency`, result: ``[nodes, n_classes]``

    Reference:
        Gasteiger et al., "Predict then propagate: graph neural networks meet personalized PageRank", ICLR 2019.
        arXiv:1810.05997.

    Raises:
        ValueError: If ``alpha`` is no share, or ``hops`` is negative.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        n_layers: int = 2,
        hops: int = 10,
        alpha: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"{alpha=} must be a share, from 0 to 1")
        if hops < 0:
            raise ValueError(f"{hops=} rounds of propagation: give 0 or more")
        sizes = [n_features, *[hidden] * (n_layers - 1), n_classes]
        super().__init__(
            (nn.Linear(before, after) for before, after in pairwise(sizes)),
            dropout=dropout,
            activation=F.relu,
        )
        self.propagate = SimpleConv(aggr="sum")
        self.hops, self.alpha = hops, alpha
        self.hears = "normalized"

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class."""
        graph = self.graph(adjacency, x)
        for number, linear in enumerate(self.convs):
            x = self.activation(x) if number else x
            x = linear(drop(x, self.dropout, self.training))
        returned = self.alpha * x
        for _ in range(self.hops):
            x = (1 - self.alpha) * self.propagate(x, *self._dropped(graph)) + returned
        return x

    def _dropped(self, graph: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if is_matrix(graph[0]):
            return (drop(graph[0], self.dropout, self.training),)
        edges, weights = graph
        return edges, F.dropout(weights, self.dropout, self.training)
