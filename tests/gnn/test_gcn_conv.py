from __future__ import annotations

import gc

import pytest
import torch
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import GCNConv as PyGConv

from experiments.ledger import Ledger
from gnn.adjacency import adjacency_matrix, normalized_adjacency
from gnn.layers import GCNConv
from gnn.layers import gcn_conv as module

BOTH_WAYS = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
ONE_WAY = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])


def pair():
    torch.manual_seed(0)
    ours, theirs = GCNConv(3, 2, normalize=False).double(), PyGConv(3, 2, normalize=False).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(conv, graph):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    out = conv(x, graph)
    (out * torch.arange(1.0, 11).view(5, 2)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]


@pytest.mark.parametrize("edges", [BOTH_WAYS, ONE_WAY], ids=["both ways", "one way"])
@pytest.mark.parametrize("make", [normalized_adjacency, adjacency_matrix])
def test_it_computes_what_pyg_does(edges, make):
    matrix = make(edges, 5, torch.float64)
    for found, wanted in zip(*(results(conv, matrix) for conv in pair()), strict=True):
        torch.testing.assert_close(found, wanted)


def test_lists_of_edges_and_dense_gradients_of_weights_are_left_to_pyg():
    for found, wanted in zip(*(results(conv, BOTH_WAYS) for conv in pair()), strict=True):
        torch.testing.assert_close(found, wanted)
    (ours, _), matrix = pair(), normalized_adjacency(BOTH_WAYS, 5, torch.float64).requires_grad_()
    ours(torch.ones(5, 3, dtype=torch.float64), matrix).sum().backward()
    assert matrix.grad is not None


def test_a_transpose_is_made_once_kept_while_its_matrix_lives_and_not_made_of_symmetric_ones(monkeypatch):
    (ours, _), made = pair(), []
    turn = torch.Tensor.to_sparse_csr
    directed, undirected = (normalized_adjacency(edges, 5, torch.float64) for edges in (ONE_WAY, BOTH_WAYS))
    monkeypatch.setattr(torch.Tensor, "to_sparse_csr", lambda self: made.append(0) or turn(self))
    # Entries of matrices of other tests may be waiting to be collected, so this test has a table of its own.
    monkeypatch.setattr(module, "_transposed", WeakTensorKeyDictionary())
    for _ in range(3):
        results(ours, directed)
        results(ours, undirected)
    assert len(made) == 2
    assert module._transposed[undirected] is None
    assert module._transposed[directed] is not None
    del directed, undirected
    gc.collect()
    assert len(module._transposed) == 0


def test_the_bill_is_that_of_pygs():
    bills = []
    for conv in pair():
        matrix = normalized_adjacency(ONE_WAY, 5, torch.float64)
        results(conv, matrix)  # what is made once is made
        with Ledger() as ledger:
            results(conv, matrix)
        bills.append(ledger.flops)
    assert bills[0] == bills[1] > 0
