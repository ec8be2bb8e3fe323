"""Attention of every node to every node of its graph, in linear time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

__all__ = ["SimpleAttention"]


class SimpleAttention(nn.Module):
    r"""The global attention of SGFormer: no softmax, so keys and values are summed once for all queries.

    With :math:`\tilde{\mathbf{Q}} = \mathbf{Q} / \lVert \mathbf{Q} \rVert_F`,
    :math:`\tilde{\mathbf{K}} = \mathbf{K} / \lVert \mathbf{K} \rVert_F` over the :math:`N` nodes of a graph:

    .. math::
        \mathbf{y}_i = \frac{N \mathbf{v}_i + \tilde{\mathbf{q}}_i^\top \sum_j \tilde{\mathbf{k}}_j \mathbf{v}_j^\top}
        {N + \tilde{\mathbf{q}}_i^\top \sum_j \tilde{\mathbf{k}}_j}

    and the mean over heads. Not causal: every node hears every other, and by the Frobenius norms each output depends on
    all nodes there are. A graph of which a batch holds a part has other outputs in another batch; whole graphs do not
    mix, whatever their sizes. (PyG's ``SGFormerAttention`` divides each query and key by its own length, not by the
    norm over nodes, and sums keys and counts nodes over the padding too, so that a small graph depends on the largest
    one of its batch.)

    Reference:
        Wu et al., "SGFormer: simplifying and empowering transformers for large-graph representations", NeurIPS 2023.
        arXiv:2306.10759.

    Args:
        width: Size of a node's state, and of a head.
        heads: Heads, averaged.

    Shapes:
        x: ``[nodes, width]``, batch: ``[nodes]``, the graph of each node, sorted; ``None``: one graph,
        result: ``[nodes, width]``
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, heads * width) for _ in range(3))

    def forward(
        self, x: Float[Tensor, "nodes width"], batch: Int[Tensor, " nodes"] | None = None
    ) -> Float[Tensor, "nodes width"]:
        """What each node hears."""
        parts = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.query, self.key, self.value))
        # Padded behind the linear maps, where a missing node is zero and adds nothing to any sum.
        (q, mask), (k, _), (v, _) = (to_dense_batch(part, batch) for part in parts)
        q, k = (_unit(part) for part in (q, k))
        size = mask.sum(1).to(x.dtype).view(-1, 1, 1, 1)
        said = torch.einsum("gnhc,gnhd->ghcd", k, v)
        numerator = torch.einsum("gnhc,ghcd->gnhd", q, said) + size * v
        denominator = torch.einsum("gnhc,ghc->gnh", q, k.sum(1)).unsqueeze(-1) + size
        return (numerator / denominator).mean(2)[mask]


def _unit(x: Float[Tensor, "graphs nodes heads width"]) -> Float[Tensor, "graphs nodes heads width"]:
    """Each head of each graph divided by its Frobenius norm."""
    norm = torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
    return x / norm.clamp(min=torch.finfo(x.dtype).tiny)
