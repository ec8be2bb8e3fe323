from functools import partial

import pytest
import torch
from torch import nn

from mann import CausalAttention, Context, NGramMemory, ValueEmbeddingAttention
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn
from tests.mann.mixer.naive import attention, prepared, visible


class Tanh(nn.Module):
    """A memory that tests can follow."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_model, dtype=torch.float64))

    def forward(self, x, context):
        return self.weight * torch.tanh(x)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_the_layer_equals_its_formula(packed):
    torch.manual_seed(0)
    layer = opened(ValueEmbeddingAttention(12, 3, values=Tanh, block=8).double())
    documents, x = labels(2, 19) if packed else None, randn(2, 19, 12)
    mask = visible(documents, 2, 19, 19)

    def naive(x, *_):
        q, k, v = prepared(layer, x, documents)
        added = (layer.values.weight * torch.tanh(x)).unflatten(-1, (3, 4))
        gates = 2 / (1 + torch.exp(-(x @ layer.gate.weight.T)))
        v = torch.stack([v[:, :, head] + gates[..., head, None] * added[:, :, head] for head in range(3)], 2)
        return layer.out(attention(q, k, v, mask).flatten(2))

    def fast(x, *_):
        return layer(x, context(2, 19, documents))

    assert_same(fast, naive, x, *layer.parameters(), tolerance=2e-5)


def test_with_an_empty_memory_it_is_causal_attention_bit_for_bit():
    torch.manual_seed(0)
    dense = opened(CausalAttention(16, 2))
    layer = ValueEmbeddingAttention(16, 2, values=partial(NGramMemory, n_rows=64))
    layer.load_state_dict(dense.state_dict(), strict=False)
    x, where = torch.randn(2, 50, 16), context(2, 50, labels(2, 50))
    assert torch.equal(layer(x, where), dense(x, where))


def test_a_later_position_reads_what_was_looked_up_for_an_earlier_one():
    torch.manual_seed(0)
    layer = opened(ValueEmbeddingAttention(16, 2, values=partial(NGramMemory, orders=(1,), n_rows=64)))
    x, where = torch.randn(1, 9, 16), Context(torch.arange(1, 10)[None])
    before = layer(x, where)
    with torch.no_grad():
        layer.values.table.weight[layer.values.rows(where)[0, 4]] += 1
    changed = (layer(x, where) - before).abs().amax(-1)[0] > 0
    assert changed.tolist()[:4] == [False] * 4
    assert changed[4:].all()
