"""Bills of graph encoders are those a hand arrives at; what torch's own counter sees of message passing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    RGCNConv,
    SAGEConv,
    TransformerConv,
)
from torch_geometric.nn.conv import appnp

from experiments.ledger import Ledger
from gnn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    GPS,
    MLP,
    SAGE,
    SGC,
    Exphormer,
    GATv2,
    SGFormer,
    TunedGNN,
    adjacency_matrix,
)
from gnn.expander import random_expander
from tests.experiments import closed_form_graph as by_hand
from tests.experiments.closed_form_graph import Sizes
from tests.gnn.graphs import random_graph

FEATURES, OUT = 7, 3
EXPANDER = random_expander(30, 2, torch.Generator().manual_seed(0))
CASES = {
    "MLP": (lambda: MLP(FEATURES, OUT, hidden=5), lambda s: by_hand.mlp(s, 5, OUT)),
    "GCN": (lambda: GCN(FEATURES, OUT, hidden=5), lambda s: by_hand.gcn(s, 5, OUT)),
    "SGC": (lambda: SGC(FEATURES, OUT, hops=3), lambda s: by_hand.sgc(s, OUT, 3)),
    "APPNP": (lambda: APPNP(FEATURES, OUT, hidden=5, hops=4), lambda s: by_hand.appnp(s, 5, OUT, 4)),
    "GAT": (lambda: GAT(FEATURES, OUT, hidden=4, heads=2), lambda s: by_hand.gat(s, 4, 2, OUT)),
    "GATv2": (lambda: GATv2(FEATURES, OUT, hidden=4, heads=2), lambda s: by_hand.gatv2(s, 4, 2, OUT)),
    "SAGE": (lambda: SAGE(FEATURES, OUT, hidden=9), lambda s: by_hand.sage(s, 9, OUT)),
    "GIN": (
        lambda: GIN(FEATURES, OUT, hidden=6, n_layers=3, norm="none"),
        lambda s: by_hand.gin(s, 6, OUT, 3),
    ),
    "tuned GCN": (
        lambda: TunedGNN(FEATURES, OUT, hidden=6, n_layers=2, feedforward=True),
        lambda s: by_hand.tuned(s, 6, OUT, 2),
    ),
    "GPS": (
        lambda: GPS(FEATURES, OUT, hidden=6, n_layers=2, heads=2, norm="none"),
        lambda s: by_hand.gps(s, 6, 2, OUT, 2),
    ),
    "Exphormer": (
        lambda: Exphormer(FEATURES, OUT, hidden=6, n_layers=2, heads=3, virtual=2),
        lambda s: by_hand.exphormer(s, 6, 3, OUT, 2, 2, EXPANDER.shape[1]),
    ),
    "SGFormer": (
        lambda: SGFormer(FEATURES, OUT, hidden=6, n_layers=2, conv_layers=3),
        lambda s: by_hand.sgformer(s, 6, OUT, 2, 3),
    ),
}


@pytest.mark.parametrize(
    ("build", "expected"), [pytest.param(*case, id=name) for name, case in CASES.items()]
)
@pytest.mark.parametrize("matrix", [False, True], ids=["edges", "matrix"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_pass_costs_what_a_hand_arrives_at(build, expected, matrix, sparse, training):
    n = 30
    x, edges = random_graph(n, 50, FEATURES)
    x = x.float()
    encoder = build().train(training)
    more = {"expander_index": EXPANDER} if isinstance(encoder, Exphormer) else {}
    sizes = Sizes(n, edges.shape[1], FEATURES, matrix, int((x != 0).sum()) if sparse else None)
    graph = encoder.matrix(edges, n) if matrix else edges
    with Ledger(encoder) as ledger:
        encoder(x.to_sparse_csr() if sparse else x, graph, **more)
    assert ledger.flops == expected(sizes)


@pytest.mark.parametrize(
    ("build", "expected"), [pytest.param(*case, id=name) for name, case in CASES.items()]
)
def test_and_as_much_without_values(build, expected):
    x, edges = random_graph(30, 50, FEATURES)
    encoder = build().to("meta")
    more = {"expander_index": EXPANDER.to("meta")} if isinstance(encoder, Exphormer) else {}
    with Ledger(encoder) as ledger:
        encoder(x.float().to("meta"), edges.to("meta"), **more)
    assert ledger.flops == expected(Sizes(30, edges.shape[1], FEATURES, matrix=False))


# N, E and F = H = 128 of Cora; what FlopCounterMode says is the matrix products alone, whatever goes along the edges.
N, E, F = 2708, 10556, 128
SEEN = {
    "GCN": (lambda: GCNConv(F, F), 88_735_744),
    "SAGE": (lambda: SAGEConv(F, F), 177_471_488),
    "GAT": (lambda: GATConv(F, F // 8, heads=8), 88_735_744),
    "GATv2": (lambda: GATv2Conv(F, F // 8, heads=8), 177_471_488),
    "TransformerConv": (lambda: TransformerConv(F, F // 8, heads=8), 354_942_976),
    "RGCN": (lambda: RGCNConv(F, F, num_relations=3), 354_942_976),
    "APPNP": (lambda: appnp.APPNP(K=10, alpha=0.1), 0),
}


def cora_sized():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, N, (2, E), generator=generator)
    edges[1] = torch.where(edges[0] == edges[1], (edges[1] + 1) % N, edges[1])  # no loops
    return torch.randn(N, F, generator=generator), edges


@pytest.mark.parametrize(("build", "seen"), [pytest.param(*case, id=name) for name, case in SEEN.items()])
def test_torch_sees_matrix_products_alone(build, seen):
    x, edges = cora_sized()
    conv = build()
    given = (torch.arange(E) % 3,) if isinstance(conv, RGCNConv) else ()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conv(x, edges, *given)
    with Ledger(conv) as ledger, torch.no_grad():
        conv(x, edges, *given)
    assert counter.get_total_flops() == seen
    # PyG chooses RGCN's kernel by a product of two vectors of four numbers, which that counter does not see either.
    assert ledger.matmul_flops == seen + (8 if isinstance(conv, RGCNConv) else 0)
    assert ledger.flops > seen


def test_what_a_gcn_adds_up_along_edges():
    x, edges = cora_sized()
    with Ledger() as ledger, torch.no_grad():
        GCNConv(F, F)(x, edges)
    # A product and a sum for each of E + N edges, loops among them, and each feature.
    messages = 2 * (E + N) * F
    assert messages == 3_395_584
    assert ledger.flops == 88_735_744 + messages + by_hand.weights(Sizes(N, E, F, matrix=False)) + N * F


def test_ten_rounds_of_appnp_are_not_free():
    x, edges = cora_sized()
    with Ledger() as ledger, torch.no_grad():
        appnp.APPNP(K=10, alpha=0.1)(x, edges)
    # Messages, their share, the share returned, the sum of both.
    assert ledger.flops == 10 * (2 * (E + N) * F + 3 * N * F) + by_hand.weights(Sizes(N, E, F, matrix=False))


def test_a_sparse_matrix_costs_its_entries():
    x, edges = cora_sized()
    matrix = adjacency_matrix(edges.unique(dim=1), N)
    with FlopCounterMode(display=False) as counter:
        _ = matrix @ x
    with Ledger() as ledger:
        _ = matrix @ x
    assert counter.get_total_flops() == 2 * N * N * F == 1_877_315_584
    assert ledger.flops == ledger.matmul_flops == 2 * matrix.values().numel() * F


def test_backward_of_a_gcn_on_sparse_input():
    x, edges = random_graph(30, 50, FEATURES)
    entries, encoder = int((x != 0).sum()), GCN(FEATURES, OUT, hidden=5)
    matrix = encoder.matrix(edges, 30)
    n, looped, hidden = 30, edges.shape[1] + 30, 5
    with Ledger(encoder) as ledger:
        encoder(x.float().to_sparse_csr(), matrix).backward(torch.ones(n, OUT))
    # Second layer: the bias, the matrix transposed, both products; ReLU; first layer: no gradient of its input.
    expected = n * OUT + 2 * looped * OUT + 2 * (2 * n * hidden * OUT)
    expected += n * hidden
    expected += n * hidden + 2 * looped * hidden + 2 * entries * hidden
    assert ledger.by_phase["backward"] == expected
