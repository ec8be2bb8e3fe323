from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch_geometric.nn import GCNConv

from gnn import NodeEncoder, normalized_adjacency


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


def test_an_encoder_does_not_load_lightning():
    code = "import sys; from gnn import GCN; print('lightning' in sys.modules, 'mann' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_a_stack_of_any_operator():
    encoder = NodeEncoder(GCNConv, 4, 2, n_layers=3, hidden=5)
    assert [tuple(conv.lin.weight.shape) for conv in encoder.convs] == [(5, 4), (5, 5), (2, 5)]
    with pytest.raises(ValueError, match="n_layers=0"):
        NodeEncoder(GCNConv, 4, 2, n_layers=0)
    with pytest.raises((ValueError, TypeCheckError), match="hears"):
        NodeEncoder(GCNConv, 4, 2, hears="everything")


def test_dropout_drops_stored_features_alone():
    x = torch.ones(50, 40).triu().to_sparse_csr()
    encoder = NodeEncoder(torch.nn.Linear, 40, 1, n_layers=1, dropout=0.5, hears="nothing").train()
    torch.nn.init.ones_(encoder.convs[0].weight)
    torch.nn.init.zeros_(encoder.convs[0].bias)
    torch.manual_seed(0)
    y = encoder(x, torch.empty(2, 0, dtype=torch.int64))[:, 0]
    stored = x.to_dense().sum(1)
    assert (y <= 2 * stored).all()
    assert ((y / 2).round() == y / 2).all()  # each kept feature counts twice
    assert 0.9 < y.sum() / stored.sum() < 1.1
