"""Message passing scales with edges: the closed forms of the operators PyG offers."""

import pytest
import torch
from torch_geometric.nn import GATv2Conv, GCNConv, MessagePassing, TransformerConv

from experiments.ledger import Ledger

N, F_IN, C, H = 20, 8, 4, 2
OUT = C * H


def edges(count):
    index = torch.arange(count)
    return torch.stack([index % N, (index * 7 + 1) % N])


def bill(layer, count):
    x, edge_index = torch.randn(N, F_IN), edges(count)
    with Ledger(layer) as ledger:
        layer(x, edge_index)
    return ledger


@pytest.mark.parametrize("count", [20, 60])
def test_gatv2(count):
    layer = GATv2Conv(F_IN, C, heads=H, add_self_loops=False)
    projections = 2 * N * F_IN * OUT * 2 + 2 * N * OUT
    # sum of both ends, leaky relu, dot with the attention vector (2): four an edge and channel
    scores = 4 * count * OUT
    # softmax: max, subtract, exp, sum, add epsilon, divide
    softmax = 5 * count * H + N * H
    messages = 2 * count * OUT
    assert bill(layer, count).flops == projections + scores + softmax + messages + N * OUT


@pytest.mark.parametrize("count", [20, 60])
def test_transformer_conv(count):
    layer = TransformerConv(F_IN, C, heads=H)
    projections = 4 * (2 * N * F_IN * OUT + N * OUT)
    scores = 2 * count * OUT + count * H
    softmax = 5 * count * H + N * H
    assert bill(layer, count).flops == projections + scores + softmax + 2 * count * OUT + N * OUT


def test_gcn():
    count = 60
    layer = GCNConv(F_IN, OUT, add_self_loops=False)
    # degree (1 an edge), its power (1 a node), two products an edge
    norm = count + N + 2 * count
    assert bill(layer, count).flops == 2 * N * F_IN * OUT + norm + 2 * count * OUT + N * OUT


def test_own_message_passing_and_its_backward():
    class Sum(MessagePassing):
        def __init__(self):
            super().__init__(aggr="add")

        def forward(self, x, edge_index):
            return self.propagate(edge_index, x=x)

        def message(self, x_j):
            return x_j * 2

    x = torch.randn(N, F_IN, requires_grad=True)
    gradient, edge_index = torch.ones(N, F_IN), edges(60)
    with Ledger() as ledger:
        Sum()(x, edge_index).backward(gradient)
    assert ledger.by_phase == {"forward": 2 * 60 * F_IN, "backward": 2 * 60 * F_IN}


def test_bill_grows_with_edges_by_the_edges():
    layer = GATv2Conv(F_IN, C, heads=H, add_self_loops=False)
    bills = [bill(layer, count).flops for count in (20, 40, 60)]
    assert bills[2] - bills[1] == bills[1] - bills[0] == 20 * (6 * OUT + 5 * H)
