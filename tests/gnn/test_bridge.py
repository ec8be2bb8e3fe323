"""Attention is message passing: on a complete causal graph, a band, chosen blocks, or all pairs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GATConv, MessagePassing, TransformerConv
from torch_geometric.utils import softmax

from gnn.layers import SparseAttention
from mann import Context, SlidingWindowAttention
from mann.mixer.sparse import attend_blocks
from mann.projection import fold

TIME, WIDTH, HEADS = 23, 8, 2
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 14, [0] * 23])


class Attend(MessagePassing):
    """Softmax attention with scores that are products, unscaled, each head a graph's signal of its own."""

    def __init__(self):
        super().__init__(aggr="sum", node_dim=0)

    def forward(self, q, k, v, edge_index):
        share = self.edge_updater(edge_index, q=q, k=k)
        return self.propagate(edge_index, v=v, share=share)

    def edge_update(self, q_i, k_j, index, size_i):
        return softmax((q_i * k_j).sum(-1), index, num_nodes=size_i)

    def message(self, v_j, share):
        return v_j * share.unsqueeze(-1)


def edges_where(heard):
    """Edges from each position that a position hears, by ``heard[target, source]``."""
    return heard.nonzero().t().flip(0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(function, other, *inputs):
    inputs = [x.requires_grad_() for x in inputs]
    y, z = function(*inputs), other(*inputs)
    torch.testing.assert_close(y, z)
    weights = random(*y.shape, seed=9)
    for got, wanted in zip(
        torch.autograd.grad((y * weights).sum(), inputs),
        torch.autograd.grad((z * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_transformer_conv_on_a_complete_causal_graph_is_causal_attention():
    conv = TransformerConv(WIDTH, WIDTH // HEADS, HEADS, root_weight=False, bias=False).double()
    edges = edges_where(torch.ones(TIME, TIME).tril().bool())

    def attention(x):
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for linear in (conv.lin_query, conv.lin_key, conv.lin_value)
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)

    assert_same(lambda x: conv(x, edges), attention, random(TIME, WIDTH))


def test_sparse_attention_on_all_pairs_is_full_attention():
    layer = SparseAttention(WIDTH, HEADS).double()
    edges = edges_where(torch.ones(TIME, TIME).bool())
    kind = torch.zeros(edges.shape[1], dtype=torch.int64)

    def attention(x):
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for linear in (layer.query, layer.key, layer.value)
        )
        return layer.out(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))

    assert_same(lambda x: layer(x, edges, kind), attention, random(TIME, WIDTH))


def test_gat_on_a_complete_graph_is_masked_additive_attention():
    conv = GATConv(WIDTH, 4, heads=HEADS, add_self_loops=False, bias=False, negative_slope=1.0).double()
    edges = edges_where(torch.ones(TIME, TIME).tril().bool())

    def attention(x):
        # Without the kink of LeakyReLU the target's part is the same for all it hears, and falls out of the softmax.
        h = conv.lin(x).unflatten(1, (HEADS, -1))
        scores = (h * conv.att_src).sum(-1).t()[:, None].expand(HEADS, TIME, TIME)
        scores = scores.masked_fill(torch.ones(TIME, TIME).triu(1).bool(), float("-inf"))
        return torch.einsum("hts,shc->thc", scores.softmax(-1), h).flatten(1)

    assert_same(lambda x: conv(x, edges), attention, random(TIME, WIDTH))


def by_messages(q, k, v, heard):
    """Attention of ``[sequences, time, d]`` where ``heard`` is ``[sequences, time, time]``, as one graph."""
    sequences, time, _ = q.shape
    edges = torch.cat([edges_where(one) + number * time for number, one in enumerate(heard)], dim=1)
    flat = (part.reshape(sequences * time, 1, -1) for part in (q, k, v))
    return Attend()(*flat, edges).view_as(v)


@pytest.mark.parametrize("window", [1, 5, 40])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_sliding_window_attention_is_messages_along_a_band(window, documents):
    torch.manual_seed(0)
    mixer = SlidingWindowAttention(WIDTH, HEADS, window=window, block=7).double()
    torch.nn.init.normal_(mixer.out.weight)
    context = Context(torch.ones(2, TIME, dtype=torch.int64), documents)
    place = torch.arange(TIME)
    heard = (place[:, None] >= place) & (place[:, None] - place < window)
    heard = heard.expand(2, -1, -1)
    if documents is not None:
        heard = heard & (documents[:, :, None] == documents[:, None])
    heard = heard.repeat_interleave(HEADS, 0)

    def messages(x):
        q, k, v = (fold(part) for part in mixer.heads(x, context))
        return mixer.merge(by_messages(q, k, v, heard))

    assert_same(lambda x: mixer(x, context), messages, random(2, TIME, WIDTH))


@pytest.mark.parametrize("block", [4, 5])
def test_block_sparse_attention_is_messages_from_the_chosen_blocks(block):
    sequences, blocks = 2 * HEADS, -(-TIME // block)
    place = torch.arange(TIME)
    own = place // block
    # Each query hears its own block, and up to two earlier ones of its own choice.
    chance = torch.rand(sequences, TIME, blocks, generator=torch.Generator().manual_seed(2))
    chance = chance.masked_fill(torch.arange(blocks) >= own[:, None], -1.0)
    best = chance.topk(2, dim=-1)
    ids = torch.cat(
        [
            own.expand(sequences, TIME).unsqueeze(-1),
            best.indices.masked_fill(best.values < 0, -1),
        ],
        dim=-1,
    )
    first = torch.searchsorted(DOCUMENTS, DOCUMENTS)
    heard = (ids[..., None] == own).any(2) & (place[:, None] >= place)
    heard = heard & (place >= first.repeat_interleave(HEADS, 0)[..., None])
    parts = [random(sequences, TIME, 4, seed=number) for number in range(3)]
    assert_same(
        lambda q, k, v: attend_blocks(q, k, v, ids, first, block),
        lambda q, k, v: by_messages(q, k, v, heard),
        *parts,
    )
