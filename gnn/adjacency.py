"""A graph as a sparse matrix, whose row ``i`` holds what node ``i`` hears: made once, faster than lists of edges."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops

__all__ = ["adjacency_matrix", "edges_of", "is_matrix", "normalized_adjacency", "with_loops"]


def is_matrix(adjacency: Tensor) -> bool:
    """Whether an adjacency is a sparse matrix, in CSR, and no list of edges.

    Raises:
        ValueError: If it is neither.
    """
    if adjacency.layout is torch.sparse_csr:
        return True
    if adjacency.layout is not torch.strided:
        raise ValueError(
            f"an adjacency in {adjacency.layout} would be converted again and again: give it in CSR, "
            "as adjacency_matrix(edge_index, n_nodes) makes it"
        )
    if adjacency.ndim != 2 or adjacency.shape[0] != 2 or adjacency.is_floating_point():
        raise ValueError(
            f"an adjacency of shape {tuple(adjacency.shape)} and type {adjacency.dtype} is no list of edges [2, edges] "
            "of integers: a dense matrix A becomes one by A.nonzero().t()"
        )
    return False


def edges_of(adjacency: Tensor) -> Int[Tensor, "2 edges"]:
    """Sources and targets of an adjacency that may be a matrix; of one, row by row."""
    if not is_matrix(adjacency):
        return adjacency
    heard = adjacency.crow_indices().diff()
    target = torch.arange(len(heard), device=heard.device).repeat_interleave(
        heard, output_size=adjacency.col_indices().numel()
    )
    return torch.stack([adjacency.col_indices(), target])


def with_loops(edge_index: Int[Tensor, "2 edges"], n_nodes: int) -> Int[Tensor, "2 looped"]:
    """The edges, and each node to itself once."""
    looped, _ = add_remaining_self_loops(edge_index, num_nodes=n_nodes)
    return looped


def adjacency_matrix(
    edge_index: Int[Tensor, "2 edges"],
    n_nodes: int,
    dtype: torch.dtype = torch.float32,
    *,
    loops: bool = False,
) -> Tensor:
    """A matrix of ones in CSR.

    Args:
        edge_index: Each edge once, an undirected one in both directions.
        n_nodes: Number of nodes.
        dtype: Of its values.
        loops: Whether every node hears itself too.

    Shapes:
        edge_index: ``[2, edges]``, result: ``[n_nodes, n_nodes]``; row ``i`` holds what node ``i`` hears

    Raises:
        ValueError: If an edge leads to a node that is not there, or is there twice: a list would count it twice.
    """
    edges = with_loops(edge_index, n_nodes) if loops else edge_index
    return _matrix(edges, torch.ones(edges.shape[1], dtype=dtype, device=edges.device), n_nodes)


def normalized_adjacency(
    edge_index: Int[Tensor, "2 edges"], n_nodes: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""The propagation matrix of `Semi-Supervised Classification with Graph Convolutional Networks
    <https://arxiv.org/abs/1609.02907>`_ (Kipf and Welling, 2017), made once, as a sparse matrix in CSR.

    .. math::
        \hat{\mathbf{A}} = \tilde{\mathbf{D}}^{-1/2} (\mathbf{A} + \mathbf{I}) \tilde{\mathbf{D}}^{-1/2}

    Use with ``GCNConv(..., normalize=False)``: where states are wide, several times faster on a CPU than gathering and
    scattering edges.

    Args:
        edge_index: Each edge once, in both directions.
        n_nodes: Number of nodes.
        dtype: Of its values.

    Shapes:
        edge_index: ``[2, edges]``, result: ``[n_nodes, n_nodes]``; row ``i`` holds what node ``i`` hears

    Raises:
        ValueError: If an edge leads to a node that is not there, or is there twice.
    """
    edges = with_loops(edge_index, n_nodes)
    scale = torch.bincount(edges[1], minlength=n_nodes).to(dtype).rsqrt()
    return _matrix(edges, scale[edges[0]] * scale[edges[1]], n_nodes)


def _matrix(edges: Tensor, values: Tensor, n_nodes: int) -> Tensor:
    if edges.numel() and (int(edges.max()) >= n_nodes or int(edges.min()) < 0):
        raise ValueError(
            f"edges name nodes {int(edges.min())} to {int(edges.max())} of a graph of {n_nodes} nodes"
        )
    matrix = torch.sparse_coo_tensor(edges.flip(0), values, (n_nodes, n_nodes), check_invariants=False)
    matrix = matrix.coalesce()
    if matrix._nnz() != edges.shape[1]:
        raise ValueError(
            f"{edges.shape[1] - matrix._nnz()} edges are there twice: torch_geometric.utils.coalesce leaves each once"
        )
    return matrix.to_sparse_csr()
