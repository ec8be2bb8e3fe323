from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE
from torch_geometric.utils import get_laplacian, to_dense_adj

from experiments.data.csl import SKIPS, circular_skip_link
from experiments.ledger import Ledger
from gnn import GIN, GraphEncoder, LaplacianEigenvectors
from gnn.encodings import laplacian_eigenvectors
from tests.gnn.graphs import dense, random_graph


def laplacian(edges, n):
    index, weight = get_laplacian(edges, normalization="sym", num_nodes=n)
    return to_dense_adj(index, edge_attr=weight, max_num_nodes=n)[0]


def path(n):
    here = torch.arange(n - 1)
    edges = torch.stack([here, here + 1])
    return torch.cat([edges, edges.flip(0)], dim=1)


@pytest.mark.parametrize("dense_up_to", [1000, 1])
def test_eigenvectors_of_the_smallest_eigenvalues(dense_up_to):
    # A path's eigenvalues are all different, so its vectors are what they are but for their signs.
    edges, n, k = path(40), 40, 4
    vectors = laplacian_eigenvectors(edges, n, k, dense_up_to)
    values, expected = torch.linalg.eigh(laplacian(edges, n).double())
    signs = (vectors.double() * expected[:, 1 : k + 1]).sum(0).sign()
    torch.testing.assert_close(vectors.double() * signs, expected[:, 1 : k + 1], atol=2e-3, rtol=0)
    assert (values[1:] > 1e-6).all()
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_pyg_has_the_same_but_for_signs():
    graph = Data(edge_index=path(30), num_nodes=30)
    ours = LaplacianEigenvectors(3)(graph.clone()).laplacian_eigenvector_pe
    theirs = AddLaplacianEigenvectorPE(3, is_undirected=True)(graph).laplacian_eigenvector_pe
    torch.testing.assert_close(ours.abs(), theirs.abs().float(), atol=1e-4, rtol=0)


def test_signs_come_from_a_generator_of_their_own():
    graph, plain = Data(edge_index=path(12), num_nodes=12), LaplacianEigenvectors(5, None)
    expected = plain(graph.clone()).x
    torch.manual_seed(1)
    flipping = LaplacianEigenvectors(5, None, seed=3)
    seen = [flipping(graph.clone()).x / expected for _ in range(6)]
    assert all((signs.round() == signs.round()[0]).all() for signs in seen)
    assert len({tuple(signs[0].round().tolist()) for signs in seen}) > 1
    torch.manual_seed(2)
    again = LaplacianEigenvectors(5, None, seed=3)(graph.clone()).x
    torch.testing.assert_close(again / expected, seen[0])


@pytest.mark.parametrize("n", [0, 1, 3])
def test_small_graphs_have_as_many_columns(n):
    edges = path(n) if n > 1 else torch.empty(2, 0, dtype=torch.int64)
    vectors = laplacian_eigenvectors(edges, n, 4)
    assert vectors.shape == (n, 4)
    assert vectors.isfinite().all()
    assert not vectors[:, max(n - 1, 0) :].any()
    with pytest.raises(ValueError, match="k=0"):
        laplacian_eigenvectors(edges, n, 0)


def test_random_walks_are_the_chances_of_being_back():
    x, edges = random_graph(9)
    steps = AddRandomWalkPE(4, attr_name=None)(Data(x=x, edge_index=edges)).x[:, x.shape[1] :]
    walk = dense(edges, 9)
    walk = walk / walk.sum(1, keepdim=True).clamp(min=1)
    expected = torch.stack([torch.matrix_power(walk, k).diag() for k in range(1, 5)], dim=1)
    torch.testing.assert_close(steps, expected, atol=1e-6, rtol=0)


def test_preprocessing_is_billed():
    n, graph = 41, circular_skip_link(2)
    with Ledger() as ledger:
        AddRandomWalkPE(8)(graph.clone())
    assert ledger.matmul_flops == 7 * 2 * n**3
    edges = graph.num_edges
    # Degrees (1 an edge), at least 1 (1 a node), divided into 1 (reciprocal and product, an edge)
    assert ledger.flops == ledger.matmul_flops + edges + n + 2 * edges
    with Ledger() as ledger:
        LaplacianEigenvectors(4)(graph.clone())
    assert ledger.by_operator["aten._linalg_eigh"] == 9 * n**3
    with Ledger() as ledger:
        laplacian_eigenvectors(path(40), 40, 4, dense_up_to=1)
    # One product with the sparse matrix, each time, for five vectors.
    assert ledger.matmul_flops >= 2 * 5 * 78


def means(k):
    return torch.stack(
        [AddRandomWalkPE(k)(circular_skip_link(skip)).random_walk_pe.mean(0) for skip in SKIPS]
    )


def test_messages_cannot_tell_circular_skip_links_apart():
    torch.manual_seed(0)
    network = GraphEncoder(GIN(1, 16, hidden=32, n_layers=4), 16, 10, pool="sum").eval()
    graphs = [circular_skip_link(skip) for skip in SKIPS]
    vectors = torch.cat([network(graph.x, graph.edge_index) for graph in graphs])
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))


def test_eight_steps_of_a_walk_can_and_four_cannot():
    four, eight = means(4), means(8)
    assert torch.cdist(four, four).fill_diagonal_(1).min() < 1e-6
    assert 5e-4 < torch.cdist(eight, eight).fill_diagonal_(1).min() < 2e-3
    torch.manual_seed(0)
    network = GraphEncoder(GIN(8, 16, hidden=32, n_layers=2), 16, 10).eval()
    encoded = [AddRandomWalkPE(8)(circular_skip_link(skip)) for skip in SKIPS]
    vectors = torch.cat([network(graph.random_walk_pe, graph.edge_index) for graph in encoded])
    assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 1e-5
