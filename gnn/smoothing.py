"""Features smoothed over a graph before anything is trained, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gnn.adjacency import is_matrix, normalized_adjacency

__all__ = ["Smoothed", "smoothed"]


@dataclass(frozen=True)
class Smoothed:
    r"""Features after each round of smoothing, :math:`\mathbf{X}, \hat{\mathbf{A}} \mathbf{X}, ...`

    Args:
        hops: The features, those given first.
        flops: Floating-point operations of the products.

    Shapes:
        hops: each ``[nodes, features]``
    """

    hops: tuple[Tensor, ...]
    flops: int

    @property
    def last(self) -> Float[Tensor, "nodes features"]:
        """Of the last round: with them an :class:`~gnn.MLP` of one layer is :class:`~gnn.SGC`."""
        return self.hops[-1]

    def joined(self) -> Float[Tensor, "nodes joined"]:
        """All of them side by side, one row a node, in CSR where they are: what :class:`~gnn.SIGN` takes."""
        if self.last.layout is not torch.sparse_csr:
            return torch.cat(self.hops, dim=1)
        return torch.cat([hop.to_sparse_coo() for hop in self.hops], dim=1).coalesce().to_sparse_csr()


def smoothed(x: Float[Tensor, "nodes features"], adjacency: Tensor, hops: int) -> Smoothed:
    r"""Rounds of smoothing, :math:`\mathbf{X}_{r} = \hat{\mathbf{A}} \mathbf{X}_{r - 1}`.

    Once for all steps that are trained on a graph, so it belongs to a bill once: ``flops`` are two for each product of
    two entries that meet, of stored ones alone where features are sparse. They are what a ledger opened around the call
    bills; a list of edges becomes a matrix first, which a ledger sees and ``flops`` leave out.

    Args:
        x: Features; in CSR they stay so, fuller in each round.
        adjacency: Edges, or what :func:`~gnn.adjacency.normalized_adjacency` makes of them.
        hops: Rounds.

    Shapes:
        x: ``[nodes, features]``, adjacency: ``[2, edges]`` or ``[nodes, nodes]``, result: ``hops + 1`` of
        ``[nodes, features]``

    Raises:
        ValueError: If ``hops`` is negative, or the matrix has other nodes than the features.
    """
    if hops < 0:
        raise ValueError(f"{hops=} rounds of smoothing: give 0 or more")
    matrix = adjacency if is_matrix(adjacency) else normalized_adjacency(adjacency, x.shape[0], x.dtype)
    if matrix.shape[1] != x.shape[0]:
        raise ValueError(f"a matrix of {matrix.shape[1]} nodes does not belong to {x.shape[0]} rows")
    found, flops = [x], 0
    for _ in range(hops):
        flops += _product_flops(matrix, found[-1])
        found.append(matrix @ found[-1])
    return Smoothed(tuple(found), flops)


def _product_flops(matrix: Tensor, x: Tensor) -> int:
    if x.layout is not torch.sparse_csr:
        return 2 * matrix.col_indices().numel() * x.shape[1]
    # Each stored entry of the matrix meets the stored entries of the row that it names.
    return 2 * int(x.crow_indices().diff()[matrix.col_indices()].sum())
