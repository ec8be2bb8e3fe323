"""STEM against its formula, and as the gated layer that it is where each token's row is what a matrix would give."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mann import Context, SwiGLU, Transformer
from mann.feedforward.stem import STEM
from mann.optim import parameter_roles
from tests.contracts import VOCAB, assert_feedforward, batch, opened
from tests.mann.inputs import assert_same, randn


def layer(**options) -> STEM:
    torch.manual_seed(0)
    return opened(STEM(6, vocab_size=11, hidden=4, **options).double())


@pytest.mark.parametrize("sparse", [True, False])
def test_it_is_its_formula(sparse):
    stem, tokens = layer(sparse=sparse), torch.tensor([[3, 0, 3, 10], [1, 1, 2, 9]])

    def naive(x, gate, table, down):
        rows = [
            torch.stack([down @ (F.silu(gate @ x[b, t]) * table[tokens[b, t]]) for t in range(4)])
            for b in range(2)
        ]
        return torch.stack(rows)

    leaves = (randn(2, 4, 6), stem.gate.weight, stem.table.weight, stem.down.weight)
    context = Context(tokens)
    if not sparse:
        assert_same(lambda *_: stem(leaves[0], context), naive, *leaves)
        return
    torch.testing.assert_close(stem(leaves[0], context), naive(*leaves))
    stem(leaves[0], context).sum().backward()
    assert stem.table.weight.grad is not None
    assert stem.table.weight.grad.is_sparse
    assert stem.table.weight.grad.coalesce().indices()[0].tolist() == [0, 1, 2, 3, 9, 10]


def test_rows_that_a_matrix_would_give_make_it_the_gated_layer():
    """Where states depend on tokens alone, the table can hold what the up-projection says."""
    stem, gated = layer(), opened(SwiGLU(6, hidden=4).double())
    states = randn(11, 6)
    gate, up = gated.up.weight.chunk(2)
    with torch.no_grad():
        stem.gate.weight.copy_(gate)
        stem.table.weight.copy_(states @ up.T)
        stem.down.weight.copy_(gated.down.weight)
    tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stem(states[tokens], Context(tokens)), gated(states[tokens]))


def test_each_layer_has_its_own_table_and_hears_the_tokens_through_the_model():
    model = opened(Transformer(VOCAB, 16, 2, 2, feedforward=partial(STEM, vocab_size=VOCAB)))
    assert len(parameter_roles(model)["table"]) == 2
    tokens = batch()["tokens"]
    before = model(tokens)
    with torch.no_grad():
        model.blocks[1].feedforward.table.weight[tokens[0, 5]] += 1
    moved = (model(tokens) != before).any(-1)
    assert torch.equal(moved, tokens == tokens[0, 5])


def test_a_third_of_the_matrices_is_gone():
    stem, gated = STEM(96, vocab_size=11), SwiGLU(96)
    matrices = [sum(p.numel() for p in parameter_roles(m)["matrix"]) for m in (stem, gated)]
    assert 3 * matrices[0] == 2 * matrices[1]


@pytest.mark.parametrize("sparse", [True, False])
def test_it_keeps_the_contracts(sparse):
    assert_feedforward(partial(STEM, vocab_size=VOCAB, sparse=sparse))
