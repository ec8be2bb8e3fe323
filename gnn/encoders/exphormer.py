"""Exphormer: attention along the edges, over a random graph laid on top, and to and from virtual nodes."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gnn.adjacency import edges_of
from gnn.encoders.base import Encoder, drop
from gnn.layers.sparse_attention import SparseAttention

__all__ = ["Exphormer"]

GRAPH, EXPANDER, TO_VIRTUAL, FROM_VIRTUAL = range(4)


class _Block(nn.Module):
    """A transformer's layer over edges, norms of each node alone."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SparseAttention(width, heads, kinds=4)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edges: Tensor, kind: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.before(x), edges, kind))
        return x + self.dropout(self.feedforward(self.between(x)))


class Exphormer(Encoder):
    r"""A transformer whose attention is as large as a graph, not as its square.

    Nodes hear their neighbours, those of a random regular graph (``expander_index``, from
    :class:`~gnn.expander.AddExpander`; without it there are none), and a few learned virtual nodes, which hear all
    nodes of their graph. Each of the four kinds of edges has a vector of its own in
    :class:`~gnn.layers.SparseAttention`. The expander makes any two nodes a logarithm of steps apart, a virtual node
    two; through the latter every node learns of every other, so nothing here is causal.

    .. math::
        \mathbf{u} = \mathbf{h} + \mathrm{Attn}(\mathrm{LN}(\mathbf{h})), \qquad
        \mathbf{h}' = \mathbf{u} + \mathrm{FFN}(\mathrm{LN}(\mathbf{u}))

    Args:
        n_features: Features of a node, encodings of its place (:mod:`gnn.encodings`) included.
        n_classes: Outputs of a node.
        hidden: Width of the blocks.
        n_layers: Number of blocks.
        heads: Heads of the attention; must divide ``hidden``.
        virtual: Virtual nodes of each graph.
        dropout: Share of the states that is dropped behind each part.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.adjacency_matrix`, batch: ``[nodes]``, expander_index: ``[2, expander]``,
        result: ``[nodes, n_classes]``

    Reference:
        Shirzad et al., "Exphormer: sparse transformers for graphs", ICML 2023. arXiv:2303.06147.

    Raises:
        ValueError: If ``heads`` does not divide ``hidden``, or ``virtual`` is negative.
    """

    also: ClassVar[tuple[str, ...]] = ("expander_index",)

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        n_layers: int = 3,
        heads: int = 4,
        virtual: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if virtual < 0:
            raise ValueError(f"{virtual=} nodes: give 0 or more")
        self.first, self.head = nn.Linear(n_features, hidden), nn.Linear(hidden, n_classes)
        self.virtual = nn.Parameter(0.02 * torch.randn(virtual, hidden))
        self.blocks = nn.ModuleList(_Block(hidden, heads, dropout) for _ in range(n_layers))
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "nodes features"],
        adjacency: Tensor,
        batch: Int[Tensor, " nodes"] | None = None,
        *,
        expander_index: Int[Tensor, "2 expander"] | None = None,
    ) -> Float[Tensor, "nodes classes"]:
        """A vector of each node."""
        n_nodes = x.shape[0]
        if batch is None:
            batch, n_graphs = torch.zeros(n_nodes, dtype=torch.int64, device=x.device), 1
        else:
            n_graphs = int(batch.max()) + 1 if n_nodes else 0
        (adjacency,) = self.graph(adjacency, x)
        edges, kind = self._edges(adjacency, expander_index, batch)
        x = self.first(drop(x, self.dropout, self.training))
        x = torch.cat([x, self.virtual.repeat(n_graphs, 1).to(x.dtype)])
        for block in self.blocks:
            x = block(x, edges, kind)
        return self.head(x[:n_nodes])

    def _edges(self, adjacency: Tensor, expander: Tensor | None, batch: Tensor) -> tuple[Tensor, Tensor]:
        """All edges, virtual nodes numbered behind the others, and the kind of each."""
        node = torch.arange(len(batch), device=batch.device)
        own = len(batch) + batch * len(self.virtual)
        families = [edges_of(adjacency), node.new_empty(2, 0) if expander is None else expander]
        to_virtual = [torch.stack([node, own + number]) for number in range(len(self.virtual))]
        families.append(torch.cat([node.new_empty(2, 0), *to_virtual], dim=1))
        families.append(families[TO_VIRTUAL].flip(0))
        kinds = [node.new_full((family.shape[1],), kind) for kind, family in enumerate(families)]
        return torch.cat(families, dim=1), torch.cat(kinds)
