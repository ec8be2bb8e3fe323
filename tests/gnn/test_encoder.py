from __future__ import annotations

from functools import partial

import torch
from torch_geometric.nn import GCNConv

from gnn import NodeEncoder
from gnn.encoder import normalized_adjacency


def test_sparse_adjacency_equals_edges():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 9, (2, 20), generator=generator)
    edges = edges[:, edges[0] != edges[1]]
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    x = torch.randn(9, 4, generator=generator)
    torch.manual_seed(0)
    by_edges = GCNConv(4, 3)
    by_rows = GCNConv(4, 3, normalize=False)
    by_rows.load_state_dict(by_edges.state_dict())
    torch.testing.assert_close(by_rows(x, normalized_adjacency(edges, 9)), by_edges(x, edges))


def test_sparse_features_equal_dense_ones():
    x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    adjacency = normalized_adjacency(torch.tensor([[0, 1], [1, 0]]), 2)
    encoder = NodeEncoder(partial(GCNConv, normalize=False), 3, 2).eval()
    torch.testing.assert_close(encoder(x.to_sparse_csr(), adjacency), encoder(x, adjacency))
    encoder.train()
    assert encoder(x.to_sparse_csr(), adjacency).isfinite().all()
