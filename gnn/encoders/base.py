"""What all encoders share: how they take a graph, sparse features, and the stack that most of them are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnn.adjacency import adjacency_matrix, is_matrix, normalized_adjacency, with_loops

__all__ = ["Encoder", "Hears", "NodeEncoder", "StackedEncoder", "drop"]

Hears = Literal["edges", "loops", "normalized", "nothing"]


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, of the stored values where a matrix is sparse: a zero dropped is a zero still."""
    if x.layout is not torch.sparse_csr:
        return F.dropout(x, p, training)
    if not training or not p:
        return x
    values = F.dropout(x.values(), p, training)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


class Encoder(nn.Module, ABC):
    r"""A network from the features of nodes and a graph to a vector of each node.

    A graph comes as a list of edges, each once, or as the sparse matrix that :meth:`matrix` makes of one; results are
    equal, and the matrix is faster, the more so the wider the states.

    Attributes:
        hears: What becomes of the graph before operators get it: its edges as they are, with loops added, normalised as
            by :func:`~gnn.adjacency.normalized_adjacency`, or nothing. A matrix must be so already.
        also: Further attributes of a PyG ``Data`` that :meth:`forward` takes by name, if they are there.
    """

    hears: Hears = "edges"
    also: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, x: Tensor, adjacency: Tensor, batch: Tensor | None = None) -> Tensor:
        """Vectors ``[nodes, outputs]``."""

    def matrix(
        self, edge_index: Int[Tensor, "2 edges"], n_nodes: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The sparse matrix to be given in place of these edges, made once.

        Args:
            edge_index: Each edge once, an undirected one in both directions.
            n_nodes: Number of nodes.
            dtype: Of its values: that of the features.
        """
        if self.hears == "normalized":
            return normalized_adjacency(edge_index, n_nodes, dtype)
        return adjacency_matrix(edge_index, n_nodes, dtype, loops=self.hears == "loops")

    def graph(self, adjacency: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """What operators of PyG take after the states: edges, edges and weights, or a matrix."""
        if self.hears == "nothing":
            return ()
        n_nodes = x.shape[0]
        if is_matrix(adjacency):
            if adjacency.shape[0] != n_nodes:
                raise ValueError(f"a matrix of {adjacency.shape[0]} nodes does not belong to {n_nodes} rows")
            return (adjacency,)
        if self.hears == "normalized":
            return cast("tuple[Tensor, Tensor]", gcn_norm(adjacency, num_nodes=n_nodes, dtype=x.dtype))
        return (with_loops(adjacency, n_nodes) if self.hears == "loops" else adjacency,)


class StackedEncoder(Encoder):
    """Operators one after the other, dropout before each, an activation between them.

    Args:
        convs: The operators, each called with states and a graph.
        dropout: Share of the inputs of each operator that is dropped.
        activation: Applied after every operator but the last.

    Shapes:
        x: ``[nodes, n_features]``, dense or (bags of words are nearly empty) in CSR where the first operator begins
        with a linear layer, adjacency: edges ``[2, edges]`` or a matrix, result: ``[nodes, n_classes]``

    Raises:
        ValueError: If ``dropout`` is no share.
    """

    def __init__(
        self, convs: Iterable[nn.Module], *, dropout: float, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be at least 0 and below 1")
        self.convs = nn.ModuleList(convs)
        self.dropout, self.activation = dropout, activation

    def forward(
        self, x: Float[Tensor, "nodes features"], adjacency: Tensor, batch: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class."""
        graph = self.graph(adjacency, x)
        for number, conv in enumerate(self.convs):
            x = self.activation(x) if number else x
            x = conv(drop(x, self.dropout, self.training), *graph)
        return x


class NodeEncoder(StackedEncoder):
    r"""A stack of any operator of PyG.

    Args:
        conv: Builds one layer: a PyG operator's class, or a ``functools.partial`` of it, called with sizes in and out.
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of the layers between.
        n_layers: Number of operators.
        dropout: Share of the inputs of each operator that is dropped.
        activation: Applied after every operator but the last.
        hears: What the operator gets of the graph: its ``"edges"``, with ``"loops"``, ``"normalized"`` (for one built
            with ``normalize=False``), or ``"nothing"``.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR where the operator begins with a linear layer,
        adjacency: edges ``[2, edges]`` or a matrix, result: ``[nodes, n_classes]``

    Raises:
        ValueError: If there is no layer, or an option is unknown.
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
        hears: Hears = "edges",
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"{n_layers=}: an encoder has at least one layer")
        if hears not in get_args(Hears):
            raise ValueError(f"{hears=}: use one of {', '.join(map(repr, get_args(Hears)))}")
        sizes = [n_features, *[hidden] * (n_layers - 1), n_classes]
        super().__init__(
            (conv(before, after) for before, after in pairwise(sizes)), dropout=dropout, activation=activation
        )
        self.hears = hears


def known(name: str, given: str, allowed: Mapping[str, object]) -> None:
    """Refuses an option that is not among those allowed.

    Raises:
        ValueError: Naming them.
    """
    if given not in allowed:
        raise ValueError(f"{name}={given!r}: use one of {', '.join(map(repr, allowed))}")
