from __future__ import annotations

import torch
from torch import Tensor


def random_graph(n_nodes=11, n_edges=24, n_features=5, *, loops=False, seed=0) -> tuple[Tensor, Tensor]:
    """Features, some of them zero, and undirected edges, each direction once; the last node has none."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, n_nodes - 1, (2, n_edges), generator=generator)
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    if not loops:
        edges = edges[:, edges[0] != edges[1]]
    x = torch.randn(n_nodes, n_features, generator=generator, dtype=torch.float64).relu()
    return x, edges


def dense(edges: Tensor, n_nodes: int) -> Tensor:
    """Row ``i`` has a one for each node that node ``i`` hears."""
    matrix = torch.zeros(n_nodes, n_nodes, dtype=torch.float64)
    matrix[edges[1], edges[0]] = 1.0
    return matrix


def scattered(module, seed=1):
    """A module whose parameters are all random, in double precision: none is still at its start."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            if name.endswith("running_var"):
                buffer.copy_(1 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return module
