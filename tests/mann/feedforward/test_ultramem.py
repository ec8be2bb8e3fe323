"""UltraMem against every pair of keys, one virtual row after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mann.feedforward.ultramem import UltraMem
from mann.optim import parameter_roles
from tests.contracts import assert_feedforward, opened
from tests.mann.inputs import randn

SMALL: dict[str, Any] = {
    "n_keys": 6,
    "k": 6,
    "rank": 2,
    "n_cores": 2,
    "expansion": 4,
    "d_query": 8,
    "d_value": 4,
}


def layer(**options: Any) -> UltraMem:
    torch.manual_seed(0)
    return opened(UltraMem(6, **{**SMALL, **options}).double())


def halves(memory: UltraMem, x: Tensor) -> list[Tensor]:
    """Scores of the keys of both halves, ``[tokens, keys, rank]``."""
    found = []
    for half, query in enumerate(memory.query(x).chunk(2, -1)):
        width = query.shape[-1]
        query = F.layer_norm(query, (width,), memory.query_norm.weight, memory.query_norm.bias)
        keys = F.layer_norm(memory.keys[half], (width,), memory.key_norm.weight, memory.key_norm.bias)
        found.append(torch.einsum("td,nrd->tnr", query, keys) / width**0.5)
    return found


def naive(memory: UltraMem, x: Tensor) -> Tensor:
    """All pairs scored; the best are read part by part, through their projection."""
    left, right = halves(memory, x.flatten(0, 1))
    n, parts = memory.n_keys, memory.n_cores
    grids = torch.einsum("tir,crs,tjs->tcij", left, memory.cores, right).flatten(2)
    best = grids.sum(1).topk(memory.k, -1).indices
    table = memory.table.weight.view(-1, parts, memory.table.embedding_dim)
    projections = memory.out.weight.chunk(memory.expansion, 1)
    result = []
    for token in range(len(best)):
        total = torch.zeros_like(x[0, 0])
        for row in best[token]:
            stored, seen = memory.place(row)
            value = torch.cat([grids[token, c, row] * table[stored, c] for c in range(parts)])
            total = total + projections[int(seen)] @ value
        result.append(total)
    assert n**2 == grids.shape[-1]
    return torch.stack(result).view_as(x)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 1, "n_cores": 1}, {"rank": 3, "expansion": 1}, {"n_cores": 4, "expansion": 9}],
    ids=str,
)
def test_with_all_keys_kept_it_is_exact(options, sparse):
    memory, x = layer(sparse=sparse, **options), randn(2, 3, 6)
    given = [x, *memory.parameters()]
    out, expected = memory(x), naive(memory, x)
    torch.testing.assert_close(out, expected)
    weight = randn(2, 3, 6, seed=3).detach()
    found, due = (torch.autograd.grad((y * weight).sum(), given) for y in (out, expected))
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_core_of_rank_one_looks_for_keys_that_are_good_by_themselves(sign):
    """Whatever the signs of its singular vectors come out as."""
    memory, x = layer(k=2), randn(1, 5, 6)
    with torch.no_grad():
        u, t = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 0.5]).double()
        memory.cores.copy_(sign * u[:, None] * (sign * t) / 2)
    left, right = halves(memory, x.flatten(0, 1))
    good = [half.topk(2, -1).indices for half in (left @ u, right @ t)]
    rows = memory.look_up(x.flatten(0, 1))[1]
    for token in range(5):
        among = {int(i) * 6 + int(j) for i in good[0][token] for j in good[1][token]}
        assert set(rows[token].tolist()) <= among


@pytest.mark.parametrize("expansion", [1, 4, 9])
def test_every_stored_row_is_seen_once_through_every_projection(expansion):
    stored, seen = layer(expansion=expansion).place(torch.arange(36))
    pairs = set(zip(stored.tolist(), seen.tolist(), strict=True))
    assert pairs == {(row, block) for row in range(36 // expansion) for block in range(expansion)}


def test_the_loss_of_a_core_is_zero_at_rank_one_and_counts_what_is_beyond():
    memory = layer()
    with torch.no_grad():
        memory.cores.copy_(torch.diag(torch.tensor([2.0, 0.65])).expand(2, 2, 2) / 2)
    assert float(memory.core_loss().detach()) == pytest.approx(0.25)
    memory.core_loss().backward()
    assert memory.cores.grad is not None
    assert memory.cores.grad[:, 1, 1].all()
    with torch.no_grad():
        memory.cores.fill_(1.0)
    assert float(memory.core_loss().detach()) == 0
    assert float(layer(rank=1).core_loss().detach()) == 0


def test_the_table_is_a_table_and_a_fraction_of_its_virtual_rows():
    memory = layer()
    (table,) = parameter_roles(memory)["table"]
    assert table.numel() == 36 // 4 * 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 7}, "k=7 rows of 6 keys a half: give 1 <= k <= n_keys"),
        ({"d_query": 5}, "d_query=5 has no two halves"),
        ({"n_cores": 3}, "rows of 4 numbers have no 3 equal parts"),
        ({"expansion": 5}, r"6\*\*2 virtual rows are no multiple of expansion=5"),
    ],
)
def test_what_makes_no_layer_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        UltraMem(6, **{**SMALL, **wrong})


@pytest.mark.parametrize("options", [{}, {"sparse": False, "expansion": 1, "n_cores": 1}], ids=str)
def test_it_keeps_the_contracts(options):
    assert_feedforward(partial(UltraMem, **{"n_keys": 16, "k": 4, **options}))
