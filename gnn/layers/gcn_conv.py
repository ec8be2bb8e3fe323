"""PyG's GCNConv, whose backward pass does not transpose the matrix anew in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import GCNConv as PyGConv

__all__ = ["GCNConv"]

# Of each matrix that is alive; a graph's is the same in every step.
_transposed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class GCNConv(PyGConv):
    r"""``torch_geometric.nn.GCNConv``, faster in training over a sparse matrix.

    .. math:: \mathbf{H}' = \mathbf{A} \mathbf{H} \mathbf{W} + \mathbf{b}

    The gradient of a product with a matrix in CSR needs its transpose, which torch makes in every backward pass: eight
    times what the product takes on a graph the size of Cora. Here it is made once. A matrix must not be changed in
    place after its first step. On lists of edges it is PyG's.

    Reference:
        Kipf and Welling, "Semi-supervised classification with graph convolutional networks", 2017. arXiv:1609.02907.

    Shapes:
        x: ``[nodes, in_channels]``, edge_index: ``[2, edges]`` or ``[nodes, nodes]`` in CSR, result:
        ``[nodes, out_channels]``
    """

    # PyG reads from the source of a class what its messages are made of.
    # propagate_type: (x: Tensor, edge_weight: OptTensor)

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        """The product, where the matrix asks for no gradient itself."""
        if isinstance(adj_t, Tensor) and adj_t.layout is torch.sparse_csr and not adj_t.requires_grad:
            return _Product.apply(adj_t, x)
        return super().message_and_aggregate(adj_t, x)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, x):  # type: ignore[override]
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        return None, _transpose(ctx.matrix) @ grad


def _transpose(matrix: Tensor) -> Tensor:
    if matrix not in _transposed:
        turned = matrix.t().to_sparse_csr()
        parts = ("crow_indices", "col_indices", "values")
        # Where edges lead both ways one matrix serves for both.
        same = all(torch.equal(getattr(matrix, part)(), getattr(turned, part)()) for part in parts)
        _transposed[matrix] = None if same else turned
    turned = _transposed[matrix]
    return matrix if turned is None else turned
