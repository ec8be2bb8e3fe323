"""SGFormer: one kind of global attention in linear time, beside a graph convolutional network."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from gnn.encoders.base import Encoder, drop
from gnn.encoders.blocks import ConvBlock
from gnn.layers.simple_attention import SimpleAttention

__all__ = ["SGFormer"]


class SGFormer(Encoder):
    r"""A branch of global attention and a branch of GCN, weighed and added.

    .. math::
        \mathbf{Z} = \big(\beta\, \mathrm{GCN}(\mathbf{X}, \mathbf{A}) + (1 - \beta)\, \mathrm{Attn}(\mathbf{X})\big)
        \mathbf{W}

    Each branch begins with a linear map, norm, ReLU and dropout of its own. A layer of attention is
    :math:`\mathbf{h}' = \mathrm{Drop}(\mathrm{ReLU}(\mathrm{LN}((\mathbf{h} + \mathrm{Attn}(\mathbf{h})) / 2)))` with
    :class:`~gnn.layers.SimpleAttention`, which is not causal and makes each output depend on all nodes that a batch
    holds of its graph; a layer of GCN is a :class:`~gnn.encoders.blocks.ConvBlock` with batch norm.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the states.
        n_layers: Layers of attention; the paper finds that one is enough.
        conv_layers: Layers of GCN.
        heads: Heads of the attention, averaged.
        dropout: Share of the states that is dropped behind each activation.
        graph_weight: Share :math:`\beta` of the branch that knows the edges.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.normalized_adjacency`, batch: ``[nodes]``, sorted, result: ``[nodes, n_classes]``

    Reference:
        Wu et al., "SGFormer: simplifying and empowering transformers for large-graph representations", NeurIPS 2023.
        arXiv:2306.10759.

    Raises:
        ValueError: If ``graph_weight`` is no share.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        n_layers: int = 1,
        conv_layers: int = 2,
        heads: int = 1,
        dropout: float = 0.5,
        graph_weight: float = 0.8,
    ) -> None:
        super().__init__()
        if not 0 <= graph_weight <= 1:
            raise ValueError(f"{graph_weight=} must be a share, from 0 to 1")
        self.hears = "normalized"
        self.dropout, self.graph_weight = dropout, graph_weight
        self.graph_first, self.graph_norm = nn.Linear(n_features, hidden), nn.BatchNorm1d(hidden)
        self.blocks = nn.ModuleList(
            ConvBlock(GCNConv(hidden, hidden, normalize=False), hidden, norm="batch", dropout=dropout)
            for _ in range(conv_layers)
        )
        self.attention_first = nn.Linear(n_features, hidden)
        self.attention = nn.ModuleList(SimpleAttention(hidden, heads) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_layers + 1))
        self.head = nn.Linear(hidden, n_classes)

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """A vector of each node."""
        graph = self.graph(adjacency, x)
        near = self._active(self.graph_norm(self.graph_first(x)))
        for block in self.blocks:
            near = block(near, graph)
        everywhere = self._active(self.norms[0](self.attention_first(x)))
        for attention, norm in zip(self.attention, self.norms[1:], strict=True):
            everywhere = self._active(norm((everywhere + attention(everywhere, batch)) / 2))
        return self.head(self.graph_weight * near + (1 - self.graph_weight) * everywhere)

    def _active(self, x: Tensor) -> Tensor:
        return drop(x.relu(), self.dropout, self.training)
