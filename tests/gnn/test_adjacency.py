from __future__ import annotations

import pytest
import torch

from gnn import adjacency_matrix, normalized_adjacency
from gnn.adjacency import edges_of, is_matrix, with_loops
from gnn.encoders import GCN
from tests.gnn.encoders.naive import smoothing
from tests.gnn.graphs import dense, random_graph

DIRECTED = torch.tensor([[0, 0, 2, 3], [1, 2, 1, 3]])  # one loop


def test_rows_hold_what_nodes_hear():
    matrix = adjacency_matrix(DIRECTED, 5)
    torch.testing.assert_close(matrix.to_dense(), dense(DIRECTED, 5).float())
    assert matrix.to_dense()[1].tolist() == [1, 0, 1, 0, 0]
    looped = adjacency_matrix(DIRECTED, 5, torch.float64, loops=True).to_dense()
    torch.testing.assert_close(looped, torch.maximum(dense(DIRECTED, 5), torch.eye(5, dtype=torch.float64)))


@pytest.mark.parametrize("loops", [False, True])
def test_the_normalised_matrix_is_that_of_the_formula(loops):
    _, edges = random_graph(loops=loops)
    matrix = normalized_adjacency(edges, 11, torch.float64)
    torch.testing.assert_close(matrix.to_dense(), smoothing(dense(edges, 11)))


def test_edges_and_back():
    assert edges_of(DIRECTED) is DIRECTED
    again = edges_of(adjacency_matrix(DIRECTED, 5))
    assert sorted(again.t().tolist()) == sorted(DIRECTED.t().tolist())
    assert again[1].tolist() == sorted(again[1].tolist())
    assert edges_of(adjacency_matrix(DIRECTED[:, :0], 3)).shape == (2, 0)


def test_every_node_hears_itself_once():
    looped = with_loops(DIRECTED, 5)
    assert sorted(looped.t().tolist()) == sorted([[0, 1], [0, 2], [2, 1], *([i, i] for i in range(5))])


def test_what_is_no_graph_is_refused():
    with pytest.raises(ValueError, match="nodes 0 to 3 of a graph of 3"):
        adjacency_matrix(DIRECTED, 3)
    with pytest.raises(ValueError, match="1 edges are there twice"):
        normalized_adjacency(torch.cat([DIRECTED, DIRECTED[:, :1]], dim=1), 5)
    with pytest.raises(ValueError, match="sparse_coo"):
        is_matrix(torch.eye(3).to_sparse_coo())
    with pytest.raises(ValueError, match=r"A\.nonzero"):
        is_matrix(torch.eye(2))
    with pytest.raises(ValueError, match="a matrix of 5 nodes does not belong to 4 rows"):
        GCN(2, 2)(torch.ones(4, 2), adjacency_matrix(DIRECTED, 5))
