from __future__ import annotations

from functools import partial

import pytest
import torch
from torch_geometric import transforms
from torch_geometric.data import Data

from experiments.ledger import Ledger
from gnn import MLP, SGC, SIGN, normalized_adjacency, smoothed
from gnn.rows import rows_of
from tests.gnn.encoders import naive
from tests.gnn.graphs import dense, random_graph, scattered

N, FEATURES, CLASSES = 11, 5, 3
BUILDS = [
    pytest.param(partial(SIGN, hidden=4, hops=3, n_layers=2), id="three hops"),
    pytest.param(partial(SIGN, hidden=4, hops=1), id="one hop"),
    pytest.param(partial(SIGN, hidden=4, hops=0), id="no hop"),
]


def gradients(encoder, y):
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return torch.autograd.grad((weights * y).sum(), list(encoder.parameters()))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("loops", [False, True])
def test_outputs_and_gradients_are_those_of_dense_matrices(build, loops):
    x, edges = random_graph(N, n_features=FEATURES, loops=loops)
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    expected = naive.sign(encoder, x, dense(edges, N))
    wanted = gradients(encoder, expected)
    matrix, nothing = normalized_adjacency(edges, N, torch.float64), torch.empty(2, 0, dtype=torch.int64)
    given = [(features, graph) for features in (x, x.to_sparse_csr()) for graph in (edges, matrix)]
    given += [(encoder.precompute(features, graph).joined(), nothing) for features, graph in given]
    for features, graph in given:
        y = encoder(features, graph)
        torch.testing.assert_close(y, expected)
        for got, right in zip(gradients(encoder, y), wanted, strict=True):
            torch.testing.assert_close(got, right)


def test_rows_of_a_batch_need_no_neighbours():
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(SIGN(FEATURES, CLASSES, hidden=4)).eval()
    features, nothing = encoder.precompute(x, edges).joined(), torch.empty(2, 0, dtype=torch.int64)
    rows = torch.tensor([7, 0, 3])
    for given in (features, features.to_sparse_csr()):
        torch.testing.assert_close(encoder(rows_of(given, rows), nothing), encoder(x, edges)[rows])
        assert encoder(rows_of(given, rows[:0]), nothing).shape == (0, CLASSES)


@pytest.mark.parametrize("hops", [0, 1, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_features_are_smoothed_once_for_what_a_ledger_bills(hops, sparse):
    x, edges = random_graph(N, n_features=FEATURES)
    matrix = normalized_adjacency(edges, N, torch.float64)
    with Ledger() as ledger:
        found = smoothed(x.to_sparse_csr() if sparse else x, matrix, hops)
    assert found.flops == sum(
        cost.flops for name, cost in ledger.costs("operator").items() if name == "aten.mm"
    )
    assert (found.flops > 0) == (hops > 0)
    a = naive.smoothing(dense(edges, N))
    for number, hop in enumerate(found.hops):
        assert (hop.layout is torch.sparse_csr) == sparse
        torch.testing.assert_close(hop.to_dense(), torch.matrix_power(a, number) @ x)
    joined = found.joined()
    assert (joined.layout is torch.sparse_csr) == sparse
    assert torch.equal(joined.to_dense(), torch.cat([hop.to_dense() for hop in found.hops], dim=1))


def test_dense_flops_are_two_for_each_entry_and_feature():
    x, edges = random_graph(N, n_features=FEATURES)
    stored = edges.shape[1] + N
    assert smoothed(x, edges, 2).flops == 2 * 2 * stored * FEATURES


def test_an_mlp_of_smoothed_features_is_sgc():
    x, edges = random_graph(N, n_features=FEATURES)
    encoder, linear = scattered(SGC(FEATURES, CLASSES, hops=3)), MLP(FEATURES, CLASSES, n_layers=1).double()
    linear.convs[0].weight.data, linear.convs[0].bias.data = encoder.convs[0].weight.data, encoder.bias.data
    for features in (x, x.to_sparse_csr()):
        said = linear.eval()(smoothed(features, edges, 3).last, edges)
        torch.testing.assert_close(said, encoder(x, edges))


def test_pyg_smooths_the_same_without_loops():
    # PyG's transform adds no loops; ours are those of the graph given.
    x, edges = random_graph(N, n_features=FEATURES)
    looped = torch.cat([edges, torch.arange(N).expand(2, -1)], dim=1)
    theirs = transforms.SIGN(2)(Data(x=x.float(), edge_index=looped))
    ours = smoothed(x.float(), edges, 2)
    torch.testing.assert_close(ours.hops[1], theirs.x1)
    torch.testing.assert_close(ours.hops[2], theirs.x2)


@pytest.mark.parametrize("sparse", [False, True])
def test_dropout_falls_on_features_and_on_joined_hops_and_changes_no_mean(sparse):
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(SIGN(FEATURES, CLASSES, hidden=2))
    encoder.joined.weight.data.fill_(1.0)  # nothing but linear maps
    features = encoder.precompute(x.to_sparse_csr() if sparse else x, edges).joined()
    expected = encoder.eval()(features, edges)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([encoder.train()(features, edges) for _ in range(4000)])
    assert drawn.std(0).min() > 0.05
    error = (drawn.mean(0) - expected).abs() / (drawn.std(0) / 4000**0.5)
    assert error.max() < 5
    (maps,) = encoder.convs
    for linear in maps:  # what is left is what is dropped behind these maps: their biases
        linear.weight.data.zero_()
    assert encoder(features, edges).unique(dim=0).shape[0] > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [({"hops": -1}, "hops"), ({"n_layers": 0}, "n_layers"), ({"dropout": 1.0}, "dropout")],
)
def test_refusals_name_what_is_wrong(options, says):
    with pytest.raises(ValueError, match=says):
        SIGN(3, 2, **options)


def test_features_of_another_number_of_hops_or_nodes_are_refused():
    x, edges = random_graph(N, n_features=FEATURES)
    with pytest.raises(ValueError, match="10 features: this network takes 5"):
        SIGN(FEATURES, CLASSES).double()(smoothed(x, edges, 1).joined(), edges)
    with pytest.raises(ValueError, match="matrix of 11 nodes"):
        smoothed(x[:5], normalized_adjacency(edges, N, torch.float64), 1)
    with pytest.raises(ValueError, match="hops=-1"):
        smoothed(x, edges, -1)
