"""Attention along edges of several kinds."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

__all__ = ["SparseAttention"]


class SparseAttention(MessagePassing):
    r"""The attention of Exphormer: as a transformer's, over the edges there are, each kind with a vector of its own.

    .. math::
        s_{j \to i} = \frac{\sum_c q_{ic}\, k_{jc}\, e_{rc}}{\sqrt{d}}, \qquad
        \mathbf{h}'_i = \mathbf{W}_o \sum_j \mathrm{softmax}_j(s_{j \to i})\, \mathbf{v}_j

    for each head. The published code clamps scores to :math:`[-5, 5]`, takes exponentials and adds :math:`10^{-6}` to
    their sum; here the softmax subtracts the largest score first, so that no score is out of range and equal shifts of
    all scores change nothing. A node that hears nobody gets the output's bias.

    Reference:
        Shirzad et al., "Exphormer: sparse transformers for graphs", ICML 2023. arXiv:2303.06147.

    Args:
        width: Size of a node's state.
        heads: Heads; must divide ``width``.
        kinds: Kinds of edges.
        dropout: Share of the attention that is dropped.

    Shapes:
        x: ``[nodes, width]``, edge_index: ``[2, edges]``, kind: ``[edges]``, numbers below ``kinds``,
        result: ``[nodes, width]``

    Raises:
        ValueError: If ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int = 4, kinds: int = 1, dropout: float = 0.0) -> None:
        super().__init__(aggr="sum", node_dim=0)
        if heads < 1 or width % heads:
            raise ValueError(f"{heads=} does not divide {width=}")
        self.heads, self.d_head = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.kind = nn.Parameter(torch.empty(kinds, heads, self.d_head))
        self.drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every matrix as a linear layer's; all kinds of edges begin alike."""
        super().reset_parameters()
        for linear in (self.query, self.key, self.value, self.out):
            linear.reset_parameters()
        nn.init.ones_(self.kind)

    def forward(
        self,
        x: Float[Tensor, "nodes width"],
        edge_index: Int[Tensor, "2 edges"],
        kind: Int[Tensor, " edges"],
    ) -> Float[Tensor, "nodes width"]:
        """What each node hears."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, self.d_head))
            for linear in (self.query, self.key, self.value)
        )
        share = self.edge_updater(edge_index, query=q * self.d_head**-0.5, key=k, kind=kind)
        heard = self.propagate(edge_index, value=v, share=self.drop(share))
        return self.out(heard.flatten(1))

    def edge_update(
        self, query_i: Tensor, key_j: Tensor, kind: Tensor, index: Tensor, size_i: int | None
    ) -> Tensor:
        """Shares of attention, ``[edges, heads]``."""
        return softmax((query_i * key_j * self.kind[kind]).sum(-1), index, num_nodes=size_i)

    def message(self, value_j: Tensor, share: Tensor) -> Tensor:
        """Values by their shares."""
        return value_j * share.unsqueeze(-1)
