"""Graph isomorphism network."""

from __future__ import annotations

from torch import nn
from torch_geometric.nn import GINConv

from gnn.encoders.blocks import BlockEncoder, ConvBlock, Norm, normalizer

__all__ = ["GIN", "sum_conv"]


def sum_conv(width: int, norm: str = "none", train_eps: bool = False) -> GINConv:
    """A sum over neighbours and its perceptron, of one width.

    Args:
        width: Size of the states.
        norm: After the hidden layer of the perceptron.
        train_eps: Whether the weight of the node itself is learned.
    """
    perceptron = nn.Sequential(
        nn.Linear(width, width), normalizer(norm, width), nn.ReLU(), nn.Linear(width, width)
    )
    return GINConv(perceptron, train_eps=train_eps)


class GIN(BlockEncoder):
    r"""Sums over neighbours, each followed by a perceptron; PyG's ``GINConv``.

    .. math::
        \mathbf{h}'_i = \mathrm{ReLU}\bigg(\mathrm{MLP}\Big((1 + \epsilon)\, \mathbf{h}_i
        + \sum_{j \in \mathcal{N}_i} \mathbf{h}_j\Big)\bigg)

    Sums tell multisets of neighbours apart that means and maxima do not, and no network of messages between neighbours
    tells more graphs apart than this one. Circular skip links are all the same to it, unless nodes are told where they
    are (:mod:`gnn.encodings`). A linear map stands before the first sum.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the states.
        n_layers: Number of sums.
        dropout: Share of the features, and of the states behind each layer, that is dropped.
        norm: ``"batch"`` (the paper's), ``"layer"`` or ``"none"``, in each perceptron and behind it.
        train_eps: Whether :math:`\epsilon` is learned; else it is 0.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.adjacency_matrix`, result: ``[nodes, n_classes]``

    Reference:
        Xu et al., "How powerful are graph neural networks?", ICLR 2019. arXiv:1810.00826.

    Raises:
        ValueError: If the norm is unknown.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        n_layers: int = 4,
        dropout: float = 0.0,
        norm: Norm = "batch",
        train_eps: bool = False,
    ) -> None:
        blocks = (
            ConvBlock(sum_conv(hidden, norm, train_eps), hidden, norm=norm, dropout=dropout, residual=False)
            for _ in range(n_layers)
        )
        super().__init__(n_features, n_classes, hidden, blocks, dropout)
