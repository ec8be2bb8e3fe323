"""Graph convolutional network."""

from __future__ import annotations

from functools import partial

from gnn.encoders.base import NodeEncoder
from gnn.layers.gcn_conv import GCNConv

__all__ = ["GCN"]


class GCN(NodeEncoder):
    r"""Neighbours weighed by degrees, PyG's ``GCNConv``, the weights computed once for all layers.

    .. math::
        \mathbf{H}' = \mathrm{ReLU}\big(\hat{\mathbf{A}} \mathbf{H} \mathbf{W} + \mathbf{b}\big), \qquad
        \hat{\mathbf{A}} = \tilde{\mathbf{D}}^{-1/2} (\mathbf{A} + \mathbf{I}) \tilde{\mathbf{D}}^{-1/2}

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the layers between.
        n_layers: Number of convolutions.
        dropout: Share of the inputs of each layer that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.normalized_adjacency`, result: ``[nodes, n_classes]``

    Reference:
        Kipf and Welling, "Semi-supervised classification with graph convolutional networks", 2017. arXiv:1609.02907.
    """

    def __init__(
        self, n_features: int, n_classes: int, *, hidden: int = 16, n_layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__(
            partial(GCNConv, normalize=False),
            n_features,
            n_classes,
            hidden=hidden,
            n_layers=n_layers,
            dropout=dropout,
            hears="normalized",
        )
