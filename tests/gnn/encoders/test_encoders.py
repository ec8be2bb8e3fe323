"""Every encoder: the dense one that can be read, either form of graph and features, batches, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch_geometric.nn import SGConv
from torch_geometric.nn.conv import appnp

from gnn.encoders import APPNP, GAT, GCN, GIN, GPS, MLP, SAGE, SGC, SIGN, Exphormer, GATv2, SGFormer, TunedGNN
from tests.gnn.encoders import naive
from tests.gnn.graphs import dense, random_graph, scattered

N, FEATURES, CLASSES = 11, 5, 3
CASES = {
    "MLP": (MLP, naive.mlp),
    "SGC": (SGC, naive.sgc),
    "SGC without hops": (partial(SGC, hops=0), naive.sgc),
    "SIGN": (partial(SIGN, hidden=4, n_layers=2), naive.sign),
    "GCN": (partial(GCN, n_layers=3), naive.gcn),
    "GCN of one layer": (partial(GCN, n_layers=1), naive.gcn),
    "GAT": (partial(GAT, hidden=2, heads=3, out_heads=2, n_layers=3), naive.gat),
    "GATv2": (partial(GATv2, hidden=2, heads=3, out_heads=2), naive.gat),
    "SAGE": (SAGE, naive.sage),
    "SAGE narrowing": (partial(SAGE, hidden=4), naive.sage),
    "GIN": (partial(GIN, hidden=6, n_layers=2, train_eps=True), naive.gin),
    "GIN without norm": (partial(GIN, hidden=6, n_layers=2, norm="none"), naive.gin),
    "APPNP": (partial(APPNP, hidden=6, hops=3), naive.appnp),
    "tuned GCN": (partial(TunedGNN, hidden=6, n_layers=2, norm="batch", residual=False), naive.tuned),
    "tuned SAGE": (partial(TunedGNN, conv="sage", hidden=6, n_layers=2, feedforward=True), naive.tuned),
    "tuned GAT": (partial(TunedGNN, conv="gat", hidden=6, n_layers=2), naive.tuned),
    "tuned GIN": (partial(TunedGNN, conv="gin", hidden=6, n_layers=2, feedforward=True), naive.tuned),
    "GPS": (partial(GPS, hidden=6, n_layers=2, heads=2), naive.gps),
    "GPS without norm": (partial(GPS, hidden=6, n_layers=1, heads=3, norm="none"), naive.gps),
    "Exphormer": (partial(Exphormer, hidden=6, n_layers=2, heads=2, virtual=2), naive.exphormer),
    "Exphormer without virtual nodes": (partial(Exphormer, hidden=6, heads=3, virtual=0), naive.exphormer),
    "SGFormer": (partial(SGFormer, hidden=6, n_layers=2, heads=2), naive.sgformer),
}
BUILDS = [pytest.param(build, id=name) for name, (build, _) in CASES.items()]


def gradients(encoder, y):
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return torch.autograd.grad((weights * y).sum(), list(encoder.parameters()))


@pytest.mark.parametrize(("build", "plain"), [pytest.param(*case, id=name) for name, case in CASES.items()])
@pytest.mark.parametrize("loops", [False, True])
def test_outputs_and_gradients_are_those_of_dense_matrices(build, plain, loops):
    x, edges = random_graph(N, n_features=FEATURES, loops=loops)
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    y, expected = encoder(x, edges), plain(encoder, x, dense(edges, N))
    torch.testing.assert_close(y, expected)
    assert y.shape == (N, CLASSES)
    for got, wanted in zip(gradients(encoder, y), gradients(encoder, expected), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("build", BUILDS)
def test_a_matrix_and_sparse_features_change_nothing(build):
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    y, matrix = encoder(x, edges), encoder.matrix(edges, N, torch.float64)
    expected = gradients(encoder, y)
    for features in (x, x.to_sparse_csr()):
        for graph in (edges, matrix):
            again = encoder(features, graph)
            torch.testing.assert_close(again, y)
            for got, wanted in zip(gradients(encoder, again), expected, strict=True):
                torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("build", BUILDS)
def test_the_order_of_nodes_and_edges_says_nothing(build):
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    torch.testing.assert_close(encoder(x[order], place[edges].flip(1)), encoder(x, edges)[order])


@pytest.mark.parametrize("build", BUILDS)
def test_graphs_of_a_batch_do_not_mix(build):
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    graphs = [random_graph(n, n_features=FEATURES, seed=n) for n in (4, 11, 2)]
    starts = [0, 4, 15]
    x = torch.cat([features for features, _ in graphs])
    edges = torch.cat([index + start for (_, index), start in zip(graphs, starts, strict=True)], dim=1)
    batch = torch.tensor([4, 11, 2]).cumsum(0)
    batch = torch.bucketize(torch.arange(17), batch, right=True)
    together = encoder(x, edges, batch)
    torch.testing.assert_close(together, torch.cat([encoder(*graph) for graph in graphs]))


@pytest.mark.parametrize("build", BUILDS)
def test_training_reaches_every_parameter(build):
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(build(FEATURES, CLASSES)).train()
    for features, graph in ((x, edges), (x.to_sparse_csr(), encoder.matrix(edges, N, torch.float64))):
        grads = gradients(encoder, encoder(features, graph))
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("build", BUILDS)
def test_a_graph_without_edges_or_of_one_node(build):
    encoder = scattered(build(FEATURES, CLASSES)).eval()
    nothing = torch.empty(2, 0, dtype=torch.int64)
    for n in (1, 3):
        x = random_graph(n + 1, n_features=FEATURES)[0][:n]
        y = encoder(x, nothing)
        assert y.isfinite().all()
        torch.testing.assert_close(encoder(x, encoder.matrix(nothing, n, torch.float64)), y)


def test_pyg_agrees():
    x, edges = random_graph(N, n_features=FEATURES)
    encoder = scattered(SGC(FEATURES, CLASSES, hops=3))
    conv = SGConv(FEATURES, CLASSES, K=3).double()
    conv.lin.weight.data, conv.lin.bias.data = encoder.convs[0].weight.data, encoder.bias.data
    torch.testing.assert_close(encoder(x, edges), conv(x, edges))
    encoder = scattered(APPNP(FEATURES, CLASSES, hops=4, alpha=0.2)).eval()
    scores = naive.mlp(encoder, x, dense(edges, N))
    torch.testing.assert_close(encoder(x, edges), appnp.APPNP(4, 0.2)(scores, edges))


def test_appnp_drops_other_edges_in_each_round():
    # A node that hears only itself says 1, and then what it said, unless that is dropped, plus a half: after the last
    # round 1/2 for half of all nodes. Dropping from what earlier rounds have left, seven of eight would say 1/2.
    n = 20000
    edges = torch.arange(n).expand(2, -1)
    encoder = APPNP(1, 1, n_layers=1, hops=3, alpha=0.5, dropout=0.5)
    torch.nn.init.zeros_(encoder.convs[0].weight)
    torch.nn.init.ones_(encoder.convs[0].bias)
    torch.manual_seed(0)
    for graph in (edges, encoder.matrix(edges, n)):
        y = encoder(torch.ones(n, 1), graph).detach()
        said, times = y.round(decimals=3).unique(return_counts=True)
        assert said.tolist() == [0.5, 1.0, 1.5, 2.5]
        torch.testing.assert_close(times / n, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GCN(3, 2, n_layers=0), "n_layers"),
        (lambda: GCN(3, 2, dropout=1.0), "dropout"),
        (lambda: SGC(3, 2, hops=-1), "hops"),
        (lambda: SIGN(3, 2, hops=-1), "hops"),
        (lambda: APPNP(3, 2, alpha=1.5), "alpha"),
        (lambda: GAT(3, 2, n_layers=0), "n_layers"),
        (lambda: GIN(3, 2, norm="graph"), "norm"),
        (lambda: TunedGNN(3, 2, conv="cheb"), "conv"),
        (lambda: GPS(3, 2, hidden=6, heads=4), "heads"),
        (lambda: GPS(3, 2, norm="layer"), "norm"),
        (lambda: Exphormer(3, 2, hidden=6, heads=4), "heads"),
        (lambda: Exphormer(3, 2, virtual=-1), "virtual"),
        (lambda: SGFormer(3, 2, graph_weight=2.0), "graph_weight"),
    ],
)
def test_refusals_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeCheckError), match=says):
        make()
