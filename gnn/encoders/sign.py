"""Scalable inception graph networks: several hops of features, computed before training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv

from gnn.encoders.base import Encoder, drop
from gnn.smoothing import Smoothed, smoothed

__all__ = ["SIGN"]


class SIGN(Encoder):
    r"""A linear map of each hop's features, and a perceptron of all of them joined.

    .. math::
        \mathbf{Z} = \sigma\big([\mathbf{X} \mathbf{\Theta}_0 \,\Vert\, \hat{\mathbf{A}} \mathbf{X} \mathbf{\Theta}_1
        \,\Vert \dots \Vert\, \hat{\mathbf{A}}^K \mathbf{X} \mathbf{\Theta}_K]\big), \qquad
        \mathbf{Y} = \mathrm{MLP}(\mathbf{Z})

    with PReLU for :math:`\sigma`; of the paper's operators only powers of :math:`\hat{\mathbf{A}}`. No weight stands in
    front of the graph, so :meth:`precompute` smooths the features once; from then on a node is a row of its own, and
    batches are any rows, without neighbours (:class:`~gnn.RowDataModule`). Given a graph, as other encoders are, it
    smooths :math:`\mathbf{X} \mathbf{\Theta}_r`, narrower than features and dense where those may be sparse: the same
    numbers, each step anew, but for dropout: of the features given, before or after they are smoothed.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size that each hop is mapped to, and of hidden layers.
        hops: Rounds of smoothing :math:`K`.
        n_layers: Linear layers behind the activation.
        dropout: Share of the features, and of the inputs of each of these layers, that is dropped.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, with adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.normalized_adjacency`; or precomputed ``[nodes, (hops + 1) * n_features]``, dense or in
        CSR, with any adjacency; result: ``[nodes, n_classes]``

    Reference:
        Frasca et al., "SIGN: scalable inception graph neural networks", 2020. arXiv:2004.11198.

    Raises:
        ValueError: If ``hops`` is negative, there is no layer, ``dropout`` is no share, or features of another
            size are given.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        hops: int = 2,
        n_layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if hops < 0:
            raise ValueError(f"{hops=} rounds of smoothing: give 0 or more")
        if n_layers < 1:
            raise ValueError(f"{n_layers=}: the perceptron has at least one layer")
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be at least 0 and below 1")
        self.n_features, self.hops, self.dropout, self.hears = n_features, hops, dropout, "normalized"
        self.convs = nn.ModuleList([nn.ModuleList(nn.Linear(n_features, hidden) for _ in range(hops + 1))])
        self.joined = nn.PReLU()
        sizes = [(hops + 1) * hidden, *[hidden] * (n_layers - 1), n_classes]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.smooth = SimpleConv(aggr="sum")

    def precompute(self, x: Float[Tensor, "nodes features"], adjacency: Tensor) -> Smoothed:
        """The features of all hops and the FLOPs they took, once; ``.joined()`` is what a step takes."""
        return smoothed(x, adjacency, self.hops)

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class."""
        n_features = self.n_features
        if x.shape[1] not in (n_features, (self.hops + 1) * n_features):
            raise ValueError(
                f"{x.shape[1]} features: this network takes {n_features} of each node, or with {self.hops} "
                "hops all of them joined, as its precompute(...).joined() gives them"
            )
        of_graph = x.shape[1] == n_features
        x = drop(x, self.dropout, self.training)
        mapped = self._of_graph(x, adjacency) if of_graph else self._of_rows(x)
        y = self.joined(torch.cat(mapped, dim=1))
        for number, layer in enumerate(self.layers):
            y = layer(F.dropout(F.relu(y) if number else y, self.dropout, self.training))
        return y

    def _of_rows(self, x: Tensor) -> list[Tensor]:
        size = x.shape[1] // (self.hops + 1)
        return [linear(_columns(x, hop * size, size)) for hop, linear in enumerate(self._maps())]

    def _of_graph(self, x: Tensor, adjacency: Tensor) -> list[Tensor]:
        graph, mapped = self.graph(adjacency, x), []
        for hop, linear in enumerate(self._maps()):
            y = x @ linear.weight.T
            for _ in range(hop):
                y = self.smooth(y, *graph)
            mapped.append(y + linear.bias)
        return mapped

    def _maps(self) -> list[nn.Linear]:
        return list(cast("Iterable[nn.Linear]", self.convs[0]))


def _columns(x: Tensor, first: int, size: int) -> Tensor:
    if x.layout is not torch.sparse_csr:
        return x[:, first : first + size]
    column = x.col_indices()
    kept = (column >= first) & (column < first + size)
    crow = F.pad(kept.cumsum(0), (1, 0))[x.crow_indices()]
    return torch.sparse_csr_tensor(
        crow, column[kept] - first, x.values()[kept], (x.shape[0], size), check_invariants=False
    )
