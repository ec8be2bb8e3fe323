"""GraphSAGE with the mean of neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import SAGEConv

from gnn.encoders.base import NodeEncoder

__all__ = ["SAGE"]


class _MeanConv(SAGEConv):
    """PyG's operator in the cheaper order: the mean of a product is the product of a mean."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, aggr="mean")
        self.narrows = after < before

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """What neighbours say on average, and what the node says itself."""
        if x.layout is torch.strided and not self.narrows:
            return super().forward(x, edge_index)
        said = F.linear(x, self.lin_l.weight)
        heard = self.propagate(edge_index, x=(said, said), size=None)
        return heard + self.lin_l.bias + self.lin_r(x)


class SAGE(NodeEncoder):
    r"""The mean of neighbours and the node itself, each with a matrix of its own; PyG's ``SAGEConv``.

    .. math::
        \mathbf{h}'_i = \mathrm{ReLU}\Big(\mathbf{W}_1 \mathbf{h}_i
        + \mathbf{W}_2 \operatorname*{mean}_{j \in \mathcal{N}_i} \mathbf{h}_j + \mathbf{b}\Big)

    Where outputs are fewer than inputs, or features sparse, the mean is taken of :math:`\mathbf{W}_2 \mathbf{h}_j`:
    the same function, at a share of the work.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the layers between.
        n_layers: Number of layers.
        dropout: Share of the inputs of each layer that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.adjacency_matrix`, result: ``[nodes, n_classes]``

    Reference:
        Hamilton et al., "Inductive representation learning on large graphs", NeurIPS 2017. arXiv:1706.02216.
    """

    def __init__(
        self, n_features: int, n_classes: int, *, hidden: int = 16, n_layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__(_MeanConv, n_features, n_classes, hidden=hidden, n_layers=n_layers, dropout=dropout)
