"""Node encoders: stacks of PyG operators, and the adjacency they run fastest on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["NodeEncoder", "normalized_adjacency"]


def normalized_adjacency(edge_index: Int[Tensor, "2 edges"], n_nodes: int) -> Tensor:
    r"""The propagation matrix of `Semi-Supervised Classification with Graph Convolutional Networks
    <https://arxiv.org/abs/1609.02907>`_ (Kipf and Welling, 2017), made once, as a sparse matrix in CSR.

    .. math::
        \hat{\mathbf{A}} = \tilde{\mathbf{D}}^{-1/2} (\mathbf{A} + \mathbf{I}) \tilde{\mathbf{D}}^{-1/2}

    Use with ``GCNConv(..., normalize=False)``: several times faster on a CPU than gathering and scattering edges.

    Args:
        edge_index: Both directions of every edge.
        n_nodes: Number of nodes.

    Shapes:
        edge_index: ``[2, edges]``, result: ``[n_nodes, n_nodes]``; row ``i`` holds what node ``i`` hears
    """
    loop = torch.arange(n_nodes, device=edge_index.device).expand(2, -1)
    source, target = torch.cat([edge_index[:, edge_index[0] != edge_index[1]], loop], dim=1)
    scale = torch.bincount(target, minlength=n_nodes).float().rsqrt()
    weight = scale[source] * scale[target]
    matrix = torch.sparse_coo_tensor(
        torch.stack([target, source]), weight, (n_nodes, n_nodes), check_invariants=False
    )
    return matrix.coalesce().to_sparse_csr()


class NodeEncoder(nn.Module):
    r"""A stack of graph convolutions, dropout before each, an activation between them.

    Args:
        conv: Builds one layer: a PyG operator's class, or a ``functools.partial`` of it, called with sizes in and out.
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the layers between.
        n_layers: Number of operators.
        dropout: Share of the inputs of each operator that is dropped.
        activation: Applied after every operator but the last.

    Shapes:
        x: ``[nodes, n_features]``, dense or (bags of words are nearly empty) in CSR where the first operator begins
        with a linear layer, adjacency: edges ``[2, edges]`` or a sparse matrix, whatever the operator takes,
        result: ``[nodes, n_classes]``
    """

    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 16,
        n_layers: int = 2,
        dropout: float = 0.5,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        sizes = [n_features, *[hidden] * (n_layers - 1), n_classes]
        self.convs = nn.ModuleList(conv(before, after) for before, after in pairwise(sizes))
        self.dropout, self.activation = dropout, activation

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class."""
        for number, conv in enumerate(self.convs):
            x = self.activation(x) if number else x
            x = conv(self._drop(x), adjacency)
        return x

    def _drop(self, x: Tensor) -> Tensor:
        if x.layout is not torch.sparse_csr:
            return F.dropout(x, self.dropout, self.training)
        values = F.dropout(x.values(), self.dropout, self.training)  # a zero dropped is a zero still
        return torch.sparse_csr_tensor(
            x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False
        )
