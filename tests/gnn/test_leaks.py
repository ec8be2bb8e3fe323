from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

from gnn import (
    GraphReader,
    LeakError,
    assert_blind,
    assert_causal,
    assert_incremental,
    assert_prefix_invariant,
)
from tests.gnn.inputs import opened, random_inputs

WIDTH, TIME = 8, 7


def states(time: int = TIME) -> torch.Tensor:
    return torch.randn(time, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def causal_edges(time: int) -> torch.Tensor:
    """From every token to itself and to all later ones."""
    target, source = torch.ones(time, time).tril().nonzero().T
    return torch.stack([source, target])


class Stack(nn.Module):
    """A causal convolution, then a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = pyg.GCNConv(WIDTH, WIDTH, add_self_loops=False), norm
        self.double().train()

    def forward(self, x):
        return self.norm(self.conv(x, causal_edges(len(x))))


class Through(nn.Module):
    """A PyG layer over causal edges."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.double().train()

    def forward(self, x):
        return self.layer(x, causal_edges(len(x)))


def gps(**options):
    torch.manual_seed(0)
    return pyg.GPSConv(WIDTH, pyg.GCNConv(WIDTH, WIDTH), heads=2, **options)


class SharedMemory(nn.Module):
    """Tokens write into memory nodes and read from them, each once a layer."""

    def __init__(self, n_layers: int, writes: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = nn.ModuleList(pyg.SAGEConv(WIDTH, WIDTH) for _ in range(n_layers))
        self.read = nn.ModuleList(pyg.SAGEConv(WIDTH, WIDTH) for _ in range(n_layers))
        self.writes = writes
        self.double()

    def forward(self, x):
        memory = torch.ones(2, WIDTH, dtype=x.dtype)
        into = torch.cartesian_prod(torch.arange(len(x)), torch.arange(2)).T
        for write, read in zip(self.write, self.read, strict=True):
            heard = read((memory, x), into.flip(0))
            if self.writes:
                memory = write((x, memory), into)
            x = heard
        return x


class LinearAttention(nn.Module):
    """What SGFormer puts beside its convolution: queries and keys over their norm in all nodes together."""

    def forward(self, x):
        q = k = x / x.norm()
        return (q @ (k.T @ x) + len(x) * x) / ((q @ k.sum(0))[:, None] + len(x))


SOUND = {
    "GCN": Stack(nn.Identity()),
    "RMSNorm": Stack(nn.RMSNorm(WIDTH)),
    "LayerNorm": Stack(nn.LayerNorm(WIDTH)),
    "PyG LayerNorm of a node": Stack(pyg.LayerNorm(WIDTH, mode="node")),
    "BatchNorm in evaluation": Stack(pyg.BatchNorm(WIDTH)).eval(),
    "GAT": Through(pyg.GATConv(WIDTH, WIDTH, add_self_loops=False)),
    "GATv2": Through(pyg.GATv2Conv(WIDTH, WIDTH, add_self_loops=False)),
    "Transformer": Through(pyg.TransformerConv(WIDTH, WIDTH)),
    "SAGE": Through(pyg.SAGEConv(WIDTH, WIDTH)),
    "memory that nobody writes": SharedMemory(2, writes=False),
    "shared memory, one layer": SharedMemory(1),
}
LEAKY = {
    "BatchNorm": Stack(pyg.BatchNorm(WIDTH)),
    "PyG LayerNorm": Stack(pyg.LayerNorm(WIDTH)),
    "GraphNorm": Stack(pyg.GraphNorm(WIDTH)),
    "InstanceNorm": Stack(pyg.InstanceNorm(WIDTH)),
    "PairNorm": Stack(pyg.PairNorm()),
    "GPS": Through(gps()),
    "GPS without a norm": Through(gps(norm=None)),
    "GPS with a norm of each node": Through(gps(norm="layer_norm", norm_kwargs={"mode": "node"})),
    "shared memory, two layers": SharedMemory(2),
    "linear attention": LinearAttention(),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes(name):
    assert_causal(SOUND[name], states())
    assert_prefix_invariant(lambda n: SOUND[name](states()[:n]), TIME, cuts=range(1, TIME), tolerance=1e-12)
    assert_incremental(lambda n: SOUND[name](states()[:n]), TIME, tolerance=1e-12)


@pytest.mark.parametrize("name", LEAKY)
def test_what_leaks_is_caught(name):
    with pytest.raises(LeakError, match=r"position \d+ hears the input at \d+"):
        assert_causal(LEAKY[name], states())
    with pytest.raises(LeakError, match="when the text grows from 3 tokens to 7"):
        assert_prefix_invariant(lambda n: LEAKY[name](states()[:n]), TIME, tolerance=1e-6)


def degrees(n: int, side: int) -> torch.Tensor:
    """A sum over causal edges of a text, over the root of the degree of either end."""
    edges, x = causal_edges(n)[:, :], states()[:n]
    scale = torch.bincount(edges[side], minlength=n).double().rsqrt()
    source, target = edges
    return torch.zeros_like(x).index_add_(0, target, x[source] * (scale[source] * scale[target])[:, None])


def test_degrees_of_those_who_send_grow_with_the_text_though_no_gradient_shows_it():
    for side in (0, 1):
        assert_causal(lambda x, side=side: degrees(len(x), side) + 0 * x, states())
    assert_prefix_invariant(partial(degrees, side=1), TIME, cuts=range(1, TIME), tolerance=1e-12)
    with pytest.raises(LeakError, match="changes by"):
        assert_prefix_invariant(partial(degrees, side=0), TIME)


def nearest(n: int, causal: bool) -> torch.Tensor:
    """The mean of the two nearest states, of all or of those before."""
    x = states()[:n]
    distance = torch.cdist(x, x)
    if causal:
        distance = distance.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), torch.inf)
    near = distance.topk(min(2, n), largest=False)
    alive = near.values.isfinite()[..., None]
    return (x[near.indices] * alive).sum(1) / alive.sum(1)


def test_a_graph_of_nearest_states_must_be_built_of_the_past():
    assert_incremental(partial(nearest, causal=True), TIME, tolerance=1e-12)
    with pytest.raises(LeakError, match="are read too"):
        assert_incremental(partial(nearest, causal=False), TIME, tolerance=1e-12)


def test_dropout_is_repeated():
    stack = Stack(nn.Dropout(0.5))
    assert_prefix_invariant(lambda n: stack(states()[:TIME])[:n], TIME)


def test_a_batch_of_rows_is_asked_row_by_row():
    def later(x):
        return x + torch.cat([x[:, 1:], 0 * x[:, :1]], 1) * torch.tensor([0.0, 1.0]).view(2, 1, 1)

    x = torch.stack([states(), states()])
    assert_causal(lambda x: x.cumsum(1), x)
    with pytest.raises(LeakError, match="position 0 hears the input at 1 "):
        assert_causal(later, x)
    assert_causal(later, x, positions=[TIME - 1])


def test_outputs_of_other_positions_are_refused():
    with pytest.raises(ValueError, match="a position must stay one"):
        assert_causal(lambda x: x[:-1], states())
    with pytest.raises(ValueError, match="outputs of shape"):
        assert_incremental(lambda n: states()[None, :n] if n < TIME else states(), TIME)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("edges", ["window", "none", "shuffled"])
def test_the_reader_is_blind_to_what_it_must_not_see(fused, edges):
    x, neighbors, window = random_inputs()
    torch.manual_seed(0)
    reader = opened(GraphReader(8, 11, before=1, width=6, n_heads=2, fused=fused, edges=edges)).double()
    stamps = torch.randint(0, 6, neighbors.ids.shape, generator=torch.Generator().manual_seed(2))
    assert_blind(reader, x, neighbors, window, stamps)
    assert_causal(lambda x: reader(x, neighbors, window, stamps), x)
    with pytest.raises(LeakError, match="when hidden entries say otherwise"):
        assert_blind(lambda x, found, words, _: reader(x, found, words), x, neighbors, window, stamps)
    with pytest.raises(ValueError, match="give stamps of which some lie ahead"):
        assert_blind(reader, x, neighbors, window, torch.zeros_like(stamps))
