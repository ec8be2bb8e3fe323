"""Some nodes of a graph: their rows alone, or the graph that is left of them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import subgraph

__all__ = ["node_rows", "rows_of", "subgraph_of"]

_EDGES = ("edge_index", "adj_t")


def rows_of(x: Tensor, nodes: Int[Tensor, " rows"]) -> Tensor:
    """Rows of a tensor, which may be a matrix in CSR: torch indexes no such rows itself.

    Shapes:
        x: ``[nodes, ...]``, nodes: ``[rows]``, result: ``[rows, ...]`` in the layout of ``x``
    """
    if x.layout is not torch.sparse_csr:
        return x[nodes]
    before = x.crow_indices()
    counts = before.diff()[nodes]
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    place = torch.arange(int(crow[-1]), device=crow.device)
    place = place + (before[nodes] - crow[:-1]).repeat_interleave(counts)
    return torch.sparse_csr_tensor(
        crow,
        x.col_indices()[place],
        x.values()[place],
        (len(nodes), x.shape[1]),
        check_invariants=False,
    )


def node_rows(data: Data, nodes: Int[Tensor, " rows"]) -> Data:
    """What a graph holds of some nodes, without any edge.

    Everything with a row for each node (``x``, ``y``, masks, targets) is cut to these; ``edge_index`` is empty, other
    edges are left out, and the rest, such as the split's name, is kept.

    Shapes:
        nodes: ``[rows]``
    """
    n_nodes = int(data.num_nodes or 0)
    given = {}
    for name, value in data.to_dict().items():
        if name in _EDGES:
            continue
        of_nodes = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == n_nodes
        given[name] = rows_of(value, nodes) if of_nodes else value
    return Data(edge_index=torch.empty(2, 0, dtype=torch.int64, device=nodes.device), **given)


def subgraph_of(data: Data, nodes: Int[Tensor, " rows"]) -> Data:
    """What a graph holds of some nodes, and the edges among them, the nodes counted anew.

    Shapes:
        nodes: ``[rows]``, ascending
    """
    given = node_rows(data, nodes)
    given.edge_index, _ = subgraph(
        nodes, data["edge_index"], relabel_nodes=True, num_nodes=int(data.num_nodes or 0)
    )
    return given
