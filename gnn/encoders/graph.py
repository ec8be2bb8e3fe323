"""A vector of each graph from vectors of its nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import global_add_pool, global_max_pool, global_mean_pool

from gnn.encoders.base import Encoder, Hears, known

__all__ = ["GraphEncoder"]

_POOLS: dict[str, Callable[..., Tensor]] = {
    "sum": global_add_pool,
    "mean": global_mean_pool,
    "max": global_max_pool,
}


class GraphEncoder(nn.Module):
    r"""An encoder of nodes, pooled, and a linear head.

    .. math::
        \mathbf{z}_g = \mathbf{W}\, \mathrm{Pool}_{i \in g}\, \mathrm{Encoder}(\mathbf{X}, \mathbf{A})_i + \mathbf{b}

    Args:
        encoder: Of nodes, built with ``width`` outputs.
        width: Outputs of the encoder.
        n_outputs: Classes, or numbers to be told.
        pool: ``"sum"``, ``"mean"`` or ``"max"``.

    Shapes:
        x: ``[nodes, n_features]``, batch: ``[nodes]``, sorted; ``None``: one graph, result: ``[graphs, n_outputs]``

    Reference:
        Xu et al., "How powerful are graph neural networks?", ICLR 2019, compares the three. arXiv:1810.00826.

    Raises:
        ValueError: If the pooling is unknown.
    """

    def __init__(self, encoder: Encoder, width: int, n_outputs: int, *, pool: str = "mean") -> None:
        super().__init__()
        known("pool", pool, _POOLS)
        self.encoder, self.pool = encoder, pool
        self.head = nn.Linear(width, n_outputs)

    @property
    def also(self) -> tuple[str, ...]:
        """Further attributes of a batch that the encoder takes."""
        return self.encoder.also

    @property
    def hears(self) -> Hears:
        """What becomes of the graph before operators get it."""
        return self.encoder.hears

    def matrix(
        self, edge_index: Int[Tensor, "2 edges"], n_nodes: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The sparse matrix to be given in place of these edges; see :meth:`Encoder.matrix`."""
        return self.encoder.matrix(edge_index, n_nodes, dtype)

    def forward(
        self,
        x: Float[Tensor, "nodes features"],
        adjacency: Tensor,
        batch: Int[Tensor, " nodes"] | None = None,
        n_graphs: int | None = None,
        **also: Tensor,
    ) -> Float[Tensor, "graphs outputs"]:
        """A vector of each graph; ``n_graphs`` where the last ones may have no nodes."""
        nodes = self.encoder(x, adjacency, batch, **also)
        if batch is None:
            batch, n_graphs = torch.zeros(len(nodes), dtype=torch.int64, device=nodes.device), 1
        return self.head(_POOLS[self.pool](nodes, batch, size=n_graphs))
