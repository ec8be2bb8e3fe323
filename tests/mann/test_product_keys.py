"""Product keys: what they name is the best of all pairs, whatever normalises queries."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mann.product_keys import ProductKeys, largest
from tests.contracts import opened
from tests.mann.inputs import randn

NORMS = ("rms", "layer", "batch", "none")


def keys_of(norm: Any, **sizes: Any) -> ProductKeys:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keys = ProductKeys(6, **{"n_keys": 9, "k": 5, "n_heads": 3, "d_query": 8, **sizes}, norm=norm)
    return opened(keys.double())


def every_score(keys: ProductKeys, x: Tensor, norm: str) -> Tensor:
    """Of each head's query with the whole key of every row, ``[batch, time, heads, rows]``."""
    query = keys.query(x).unflatten(-1, (keys.n_heads, -1))
    if norm == "rms":
        query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    elif norm == "layer":
        query = F.layer_norm(query, query.shape[-1:], keys.norm.weight, keys.norm.bias)
    elif norm == "batch":
        spread, mean = torch.var_mean(query, (0, 1), correction=0)
        query = (query - mean) / (spread + 1e-5).sqrt()
        query = query * keys.norm.weight.view(query.shape[-2:]) + keys.norm.bias.view(query.shape[-2:])
    left, right = keys.keys.unbind(1)
    n = keys.n_keys
    whole = torch.cat([left.repeat_interleave(n, 1), right.repeat(1, n, 1)], -1)
    return torch.einsum("bthd,hrd->bthr", query, whole)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "sizes", [{"k": 1}, {"k": 9}, {"n_keys": 64, "k": 3}, {"n_heads": 1, "d_query": 2}], ids=str
)
def test_the_best_of_all_rows_are_named_and_scored(norm, sizes):
    keys, x = keys_of(norm, **sizes), randn(2, 7, 6)
    scores, rows = keys(x)
    top = every_score(keys, x, norm).topk(keys.k, -1)
    torch.testing.assert_close(scores, top.values)
    assert torch.equal(rows, top.indices)
    given, weight = [x, *keys.parameters()], randn(*scores.shape, seed=4).detach()
    found, due = (torch.autograd.grad((s * weight).sum(), given) for s in (scores, top.values))
    torch.testing.assert_close(found, due)


@pytest.mark.parametrize(("n", "k"), [(16, 1), (64, 2), (512, 32), (96, 5), (100, 3), (12, 12)])
def test_the_largest_are_found_in_groups(n, k):
    scores = randn(3, 5, n).detach()
    assert torch.equal(largest(scores, k), scores.topk(k).indices)


def test_the_largest_of_many_equal_numbers_are_the_largest():
    scores = torch.randint(0, 4, (50, 256), generator=torch.Generator().manual_seed(0)).double()
    at = largest(scores, 9)
    assert torch.equal(scores.gather(-1, at), scores.topk(9).values)
    assert all(len(set(row)) == 9 for row in at.tolist())


def test_sizes_are_known_without_values():
    with torch.device("meta"):
        keys = ProductKeys(6, n_keys=9, k=5, n_heads=3)
        scores, rows = keys(torch.zeros(2, 7, 6))
    assert scores.shape == rows.shape == (2, 7, 3, 5)


def test_only_the_batch_lets_a_token_hear_later_ones_and_says_so():
    for norm in NORMS:
        keys, x = keys_of(norm), randn(1, 7, 6)
        (grad,) = torch.autograd.grad(keys(x)[0][:, 2].sum(), x)
        assert grad[:, 2].any()
        assert bool(grad[:, 3:].any()) == (norm == "batch")
    with pytest.warns(UserWarning, match="hears later ones"):
        ProductKeys(6, norm="batch")


def test_the_batch_is_heard_in_train_mode_alone():
    keys, x = keys_of("batch").eval(), randn(1, 7, 6)
    torch.testing.assert_close(keys(x)[0][:, :3], keys(x[:, :3])[0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 10}, "k=10 rows of 9 keys a half: give 1 <= k <= n_keys"),
        ({"d_query": 0}, "d_query=0 has no two halves: give an even number"),
        ({"norm": "cosine"}, "norm"),
    ],
)
def test_what_names_no_rows_is_refused(wrong, says):
    # Where types are checked, that check comes first.
    with pytest.raises((ValueError, TypeError), match=says):
        ProductKeys(6, **{"n_keys": 9, "k": 5, **wrong})
