"""PEER: every expert computed for every token, weighted by zero where it was not among the best."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mann.feedforward.peer import PEER
from mann.norm import rms_norm
from mann.optim import parameter_roles
from tests.contracts import assert_feedforward, opened
from tests.mann.inputs import randn

SMALL: dict[str, Any] = {"n_keys": 9, "k": 7, "n_heads": 3, "d_query": 8}


def layer(**options: Any) -> PEER:
    torch.manual_seed(0)
    return opened(PEER(6, **{**SMALL, **options}).double())


def naive(peer: PEER, x: Tensor) -> Tensor:
    query = rms_norm(peer.keys.query(x).unflatten(-1, (3, -1)))
    left, right = peer.keys.keys.unbind(1)
    whole = torch.cat([left.repeat_interleave(9, 1), right.repeat(1, 9, 1)], -1)
    scores = torch.einsum("bthd,hrd->bthr", query, whole)
    top = scores.topk(peer.keys.k, -1)
    given = top.values.softmax(-1) if peer.scores == "softmax" else top.values.relu()
    weights = torch.zeros_like(scores).scatter(-1, top.indices, given)
    return (weights.sum(2) * peer.activation(x @ peer.up.weight.T)) @ peer.down.weight


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("scores", ["softmax", "relu"])
@pytest.mark.parametrize("activation", [F.gelu, F.silu])
def test_outputs_and_gradients_are_those_of_all_experts(sparse, scores, activation):
    peer, x = layer(sparse=sparse, scores=scores, activation=activation), randn(2, 4, 6)
    given = [x, *peer.parameters()]
    out, expected = peer(x), naive(peer, x)
    torch.testing.assert_close(out, expected)
    weight = randn(2, 4, 6, seed=3).detach()
    found, due = (torch.autograd.grad((y * weight).sum(), given) for y in (out, expected))
    assert sum(part.is_sparse for part in found) == 2 * sparse
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


def test_reading_every_expert_is_a_wide_perceptron():
    """One head, all pairs of one key a half: weights are one, and the experts a layer of one neuron."""
    peer, x = layer(n_keys=1, k=1, n_heads=1), randn(2, 4, 6)
    torch.testing.assert_close(peer(x), F.gelu(x @ peer.up.weight.T) @ peer.down.weight)


def test_tables_have_the_role_of_tables():
    roles = parameter_roles(layer())
    assert [p.shape for p in roles["table"]] == [(81, 6)] * 2
    assert len(roles["embedding"]) == 1


def test_scores_it_does_not_know_are_refused():
    # Where types are checked, that check comes first.
    with pytest.raises((ValueError, TypeError), match="scores"):
        layer(scores="sigmoid")


@pytest.mark.parametrize("options", [{"scores": "relu"}, {"sparse": False}, {"norm": "layer"}], ids=str)
def test_it_keeps_the_contracts(options):
    assert_feedforward(partial(PEER, n_keys=8, k=4, n_heads=2, **options))
