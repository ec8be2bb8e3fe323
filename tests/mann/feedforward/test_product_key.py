"""Product keys: what is found is the best of all rows, and what is computed is what the formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mann import ProductKeyMemory, Transformer
from mann.norm import rms_norm
from mann.optim import parameter_roles
from tests.contracts import opened

SMALL: dict[str, Any] = {"n_keys": 9, "k": 7, "n_heads": 3, "d_query": 8, "d_value": 5}


def layer(seed: int = 0, **options: Any) -> ProductKeyMemory:
    torch.manual_seed(seed)
    return opened(ProductKeyMemory(6, **{**SMALL, **options}).double(), seed)


def states(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every_score(memory: ProductKeyMemory, x: Tensor) -> Tensor:
    """Of each head's query with the whole key of every row, ``[batch, time, heads, rows]``."""
    query = rms_norm(memory.keys.query(x).unflatten(-1, (SMALL["n_heads"], -1)))
    left, right = memory.keys.keys.unbind(1)
    n = SMALL["n_keys"]
    whole = torch.cat([left.repeat_interleave(n, 1), right.repeat(1, n, 1)], -1)
    return torch.einsum("bthd,hrd->bthr", query, whole)


def naive(memory: ProductKeyMemory, x: Tensor) -> Tensor:
    """All rows compared, and a dense sum over the table with most weights zero."""
    scores = every_score(memory, x)
    top = scores.topk(memory.keys.k, -1)
    weights = torch.zeros_like(scores).scatter(-1, top.indices, top.values.softmax(-1))
    read = (weights @ memory.table.weight).sum(2)
    read = read if memory.gate is None else read * F.silu(memory.gate(x))
    return read if memory.out is None else memory.out(read)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_the_best_of_all_rows_are_found(k):
    memory, x = layer(k=k), states()
    weights, rows = memory.look_up(x)
    top = every_score(memory, x).topk(k, -1)
    assert torch.equal(rows, top.indices)
    torch.testing.assert_close(weights, top.values.softmax(-1))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("width", [{"d_value": 5}, {"d_value": 6, "projected": False}], ids=str)
def test_outputs_and_gradients_are_those_of_the_naive_layer(gated, sparse, width):
    memory, x = layer(gated=gated, sparse=sparse, **width), states().requires_grad_()
    given = [x, *memory.parameters()]
    weight = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    out, expected = memory(x), naive(memory, x)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad((out * weight).sum(), given)
    due = torch.autograd.grad((expected * weight).sum(), given)
    assert found[[id(part) for part in given].index(id(memory.table.weight))].is_sparse == sparse
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


@pytest.mark.parametrize("projected", [True, False])
def test_it_starts_as_nothing_and_opens(projected):
    memory = ProductKeyMemory(6, **{**SMALL, "d_value": 6}, projected=projected)
    out = memory(states().float())
    assert not out.any()
    out.sum().backward()
    closed = memory.table.weight if memory.out is None else memory.out.weight
    assert closed.grad is not None
    assert closed.grad.to_dense().any()


def test_layers_share_a_table():
    table = nn.Embedding(81, 5, sparse=True)

    def build(d_model: int) -> ProductKeyMemory:
        return ProductKeyMemory(d_model, **SMALL, table=table)

    model = Transformer(11, 6, 2, 1, feedforward=build)
    assert model.blocks[0].feedforward.table is model.blocks[1].feedforward.table
    assert sum(p.numel() == 81 * 5 for p in model.parameters()) == 1
    roles = parameter_roles(model)
    assert [p.shape for p in roles["table"]] == [(81, 5)]
    assert sum(p.ndim == 4 for p in roles["embedding"]) == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 10}, "k=10 rows of 9 keys a half: give 1 <= k <= n_keys"),
        ({"k": 0}, "k=0 rows"),
        ({"d_query": 7}, "d_query=7 has no two halves"),
        ({"projected": False}, "rows of 5 numbers do not fit a stream of 6: give projected=True"),
        ({"table": nn.Embedding(80, 5)}, r"the table has \(80, 5\) numbers, .* need \(81, 5\)"),
    ],
)
def test_what_makes_no_layer_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ProductKeyMemory(6, **{**SMALL, **wrong})
