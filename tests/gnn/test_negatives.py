from __future__ import annotations

import pytest
import torch

from gnn.negatives import sample_negatives
from tests.gnn.graphs import random_graph


def test_neither_edges_nor_loops():
    _, edges = random_graph(11)
    forward = edges[:, edges[0] < edges[1]]
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    drawn = sample_negatives(forward, 11, 500, torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(2), expected)
    assert drawn.shape == (2, 500)
    assert not set(map(tuple, drawn.t().tolist())) & set(map(tuple, edges.t().tolist()))
    assert (drawn[0] != drawn[1]).all()
    assert len(set(map(tuple, drawn.t().tolist()))) == 11 * 10 - edges.shape[1]  # all there are
    again = sample_negatives(forward, 11, 500, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_the_opposite_of_a_directed_edge_is_none():
    edges = torch.tensor([[0], [1]])
    drawn = sample_negatives(edges, 2, 5, torch.Generator().manual_seed(0), undirected=False)
    assert drawn.t().tolist() == [[1, 0]] * 5
    with pytest.raises(ValueError, match="hardly a pair"):
        sample_negatives(edges, 2, 5, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="hardly a pair"):
        sample_negatives(edges[:, :0], 0, 1, torch.Generator().manual_seed(0))
    assert sample_negatives(edges, 2, 0, torch.Generator()).shape == (2, 0)
