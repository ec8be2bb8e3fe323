from __future__ import annotations

from math import cos, pi

import pytest
import torch
from torch_geometric.data import Batch, Data

from gnn import AddExpander, Exphormer
from gnn.expander import random_expander, spectral_gap
from gnn.layers import SparseAttention
from tests.gnn.encoders import naive
from tests.gnn.graphs import dense, random_graph, scattered


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [11, 40, 300])
def test_every_node_has_as_many_neighbours_and_the_gap_is_there(n):
    edges = random_expander(n, 3, generator())
    counts = torch.zeros(n, n).index_put((edges[0], edges[1]), torch.tensor(1.0), accumulate=True)
    assert counts.sum(0).unique().tolist() == counts.sum(1).unique().tolist() == [6.0]
    assert torch.equal(counts, counts.t())
    eigenvalues = torch.linalg.eigvalsh(counts.double())
    assert spectral_gap(edges, n) == pytest.approx(float(6 - eigenvalues[-2]), abs=1e-3)
    assert float(6 - eigenvalues[-2]) >= 6 - 2 * 5**0.5 - 0.1 - 1e-3


def test_a_circle_spreads_slowly_and_a_complete_graph_at_once():
    here = torch.arange(100)
    circle = torch.stack([here, (here + 1) % 100])
    circle = torch.cat([circle, circle.flip(0)], dim=1)
    assert spectral_gap(circle, 100) == pytest.approx(2 - 2 * cos(2 * pi / 100), abs=1e-3)
    small = random_expander(7, 3, generator())
    assert small.shape == (2, 42)
    assert spectral_gap(small, 7) == pytest.approx(7)
    assert random_expander(1, 3, generator()).shape == random_expander(0, 3, generator()).shape == (2, 0)


def test_what_cannot_be_had_is_refused():
    with pytest.raises(ValueError, match="half_degree=1"):
        random_expander(20, 1, generator())
    with pytest.raises(RuntimeError, match="none of 0 random graphs"):
        random_expander(20, 2, generator(), tries=0)
    with pytest.raises(ValueError, match="not regular"):
        spectral_gap(torch.tensor([[0, 1], [1, 2]]), 3)


def test_its_own_generator_and_batches():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    graphs = [Data(x=x, edge_index=edges) for x, edges in (random_graph(n, seed=n) for n in (12, 20))]
    laid = [AddExpander(2, seed=5)(graph.clone()) for graph in graphs]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(AddExpander(2, seed=5)(graphs[0].clone()).expander_index, laid[0].expander_index)
    batch = Batch.from_data_list(laid)
    encoder = scattered(Exphormer(5, 3, hidden=6, heads=2, n_layers=2)).eval()
    together = encoder(batch.x, batch.edge_index, batch.batch, expander_index=batch.expander_index)
    alone = [encoder(g.x, g.edge_index, expander_index=g.expander_index) for g in laid]
    torch.testing.assert_close(together, torch.cat(alone))


def test_expander_edges_are_a_kind_of_their_own():
    x, edges = random_graph(11)
    expander = random_expander(11, 2, generator(1))
    encoder = scattered(Exphormer(5, 3, hidden=6, heads=2, n_layers=2)).eval()
    counts = torch.zeros(11, 11, dtype=torch.float64)
    counts.index_put_((expander[1], expander[0]), torch.ones(1, dtype=torch.float64), accumulate=True)
    y = encoder(x, edges, expander_index=expander)
    torch.testing.assert_close(y, naive.exphormer(encoder, x, dense(edges, 11), counts))
    assert not torch.allclose(y, encoder(x, edges))


def test_large_scores_are_no_trouble():
    layer = SparseAttention(2, heads=1, kinds=1)
    with torch.no_grad():
        for linear in (layer.query, layer.key, layer.value, layer.out):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    x = torch.tensor([[1000.0, 0.0], [999.0, 1.0], [0.0, 5.0]])
    edges = torch.tensor([[0, 1, 2], [0, 0, 0]])
    # The published clamp at 5 would make the first two equal; the exponential of either is infinite.
    y = layer(x, edges, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(y[0], x[0])
    torch.testing.assert_close(y[1:], torch.zeros(2, 2))  # nobody is heard
