"""Encoders of equal blocks between a linear map in and one out, and the block that most of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gnn.encoders.base import Encoder, drop, known

__all__ = ["BlockEncoder", "ConvBlock", "Norm", "normalizer"]

Norm = Literal["batch", "layer", "none"]
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "none": lambda _: nn.Identity(),
}


def normalizer(norm: str, width: int) -> nn.Module:
    """A norm by name: over all nodes of a batch, of each node alone, or none.

    Raises:
        ValueError: If it is unknown.
    """
    known("norm", norm, _NORMS)
    return _NORMS[norm](width)


class BlockEncoder(Encoder):
    """A linear map, blocks of one width, a linear map.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Width of the blocks.
        blocks: Each called with states, what :meth:`Encoder.graph` returns, and the graph each node belongs to.
        dropout: Share of the features that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, batch: ``[nodes]``, sorted, result: ``[nodes, n_classes]``
    """

    def __init__(
        self, n_features: int, n_classes: int, hidden: int, blocks: Iterable[nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, hidden)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(hidden, n_classes)
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """A vector of each node."""
        graph = self.graph(adjacency, x)
        x = self.first(drop(x, self.dropout, self.training))
        for block in self.blocks:
            x = block(x, graph, batch)
        return self.head(x)


class ConvBlock(nn.Module):
    r"""An operator with what makes it deep: norm, activation, dropout, a residual, a feed-forward layer.

    .. math::
        \mathbf{u} = [\mathbf{h}\, +]\ \mathrm{Drop}(\mathrm{ReLU}(\mathrm{Norm}(\mathrm{Conv}(\mathbf{h})))), \qquad
        \mathbf{h}' = \mathrm{Norm}\big(\mathbf{u} + \mathrm{FFN}(\mathbf{u})\big)

    the second step only with a feed-forward layer.

    Args:
        conv: The operator, called with states and a graph.
        width: Size of the states.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: Share dropped behind the activations.
        residual: Whether what came in is added.
        feedforward: Whether two linear maps follow, the inner width twice the outer.

    Shapes:
        x: ``[nodes, width]``, result: the same

    Raises:
        ValueError: If the norm is unknown.
    """

    def __init__(
        self,
        conv: nn.Module,
        width: int,
        *,
        norm: str,
        dropout: float = 0.0,
        residual: bool = True,
        feedforward: bool = False,
    ) -> None:
        super().__init__()
        self.conv, self.norm = conv, normalizer(norm, width)
        self.dropout, self.residual = dropout, residual
        self.feedforward: nn.Module | None = None
        if feedforward:
            self.feedforward = nn.Sequential(
                nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
            )
            self.after = normalizer(norm, width)

    def forward(
        self, x: Float[Tensor, "nodes width"], graph: tuple[Tensor, ...], batch: Tensor | None = None
    ) -> Float[Tensor, "nodes width"]:
        """One block."""
        heard = F.dropout(F.relu(self.norm(self.conv(x, *graph))), self.dropout, self.training)
        x = x + heard if self.residual else heard
        if self.feedforward is None:
            return x
        return self.after(x + F.dropout(self.feedforward(x), self.dropout, self.training))
