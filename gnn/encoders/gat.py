"""Graph attention network."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GATConv

from gnn.encoders.base import StackedEncoder

__all__ = ["GAT"]


class GAT(StackedEncoder):
    r"""Neighbours weighed by attention, PyG's ``GATConv``.

    .. math::
        e_{ij} = \mathrm{LeakyReLU}(\mathbf{a}_t^\top \mathbf{W} \mathbf{h}_i
        + \mathbf{a}_s^\top \mathbf{W} \mathbf{h}_j), \qquad
        \mathbf{h}'_i = \mathrm{ELU}\Big(\sum_{j \in \mathcal{N}_i \cup \{i\}} \mathrm{softmax}_j(e_{ij})\,
        \mathbf{W} \mathbf{h}_j\Big)

    Loops are added once for all layers. A matrix saves the sorting into rows, no arithmetic.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of a head in the layers between.
        heads: Heads of these, side by side.
        out_heads: Heads of the last layer, averaged.
        n_layers: Number of layers.
        dropout: Share of the inputs of each layer that is dropped.
        attention_dropout: Share of the attention that is dropped; ``None``: as ``dropout``.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.adjacency_matrix` with loops, result: ``[nodes, n_classes]``

    Reference:
        Veličković et al., "Graph attention networks", ICLR 2018. arXiv:1710.10903.

    Raises:
        ValueError: If there is no layer.
    """

    conv: ClassVar[type[nn.Module]] = GATConv

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 8,
        heads: int = 8,
        out_heads: int = 1,
        n_layers: int = 2,
        dropout: float = 0.6,
        attention_dropout: float | None = None,
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"{n_layers=}: an encoder has at least one layer")
        options = {
            "add_self_loops": False,
            "dropout": dropout if attention_dropout is None else attention_dropout,
        }
        sizes = [n_features, *[hidden * heads] * (n_layers - 1)]
        convs = [self.conv(size, hidden, heads=heads, **options) for size in sizes[:-1]]
        last = self.conv(sizes[-1], n_classes, heads=out_heads, concat=False, **options)
        super().__init__([*convs, last], dropout=dropout, activation=F.elu)
        self.hears = "loops"
