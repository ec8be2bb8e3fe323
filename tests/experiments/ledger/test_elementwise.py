import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.ledger import Ledger

N, D = 6, 8


def flops(function):
    with Ledger() as ledger:
        function()
    return ledger.flops


x = torch.rand(N, D)
ids = torch.zeros(N, D, dtype=torch.long)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: x + 1, N * D),
        (lambda: torch.add(x, x, alpha=2), 2 * N * D),
        (lambda: torch.add(x, x, alpha=-1), N * D),
        (lambda: torch.addcmul(x, x, x, value=-1), 2 * N * D),
        (lambda: x.clone().mul_(2), N * D),
        (lambda: torch.exp(x), N * D),
        (lambda: x * torch.sigmoid(x), 2 * N * D),
        (lambda: F.silu(x), 2 * N * D),
        (lambda: x > 0.5, 0),
        (lambda: ~(x > 0.5) & (x < 1), 0),
        (lambda: ids ^ ids, N * D),
        (lambda: ids.max(), 0),
        (lambda: torch.fft.rfft(x), 5 * N * D * 3 // 2),
        (lambda: torch.where(x > 0.5, x, 0.0), 0),
        (lambda: x.to(torch.bfloat16), 0),
        (lambda: x.t().reshape(-1), 0),
        (lambda: x.sum(), N * D),
        (lambda: x.amax(0), N * D),
        (lambda: x.mean(-1, keepdim=True), N * D),
        (lambda: torch.softmax(x, -1), 5 * N * D),
        (lambda: torch.logsumexp(x, -1), 4 * N * D),
        (lambda: F.layer_norm(x, (D,), x[0], x[1]), 8 * N * D),
        (lambda: F.rms_norm(x, (D,), x[0]), 4 * N * D + 2 * N),
        (lambda: x.norm(), 2 * N * D + 1),
        (lambda: x.topk(2), N * D),
        (lambda: x.sort(-1), 3 * N * D),
        (lambda: torch.searchsorted(torch.arange(7.0), x), 3 * N * D),
        (lambda: torch.randn(N, D), 0),
        (lambda: torch.cdist(x, x), 3 * N * N * D),
    ],
)
def test_closed_forms(function, expected):
    assert flops(function) == expected


def test_cross_entropy_forward_and_backward():
    logits, targets = torch.randn(N, D, requires_grad=True), torch.zeros(N, dtype=torch.long)
    with Ledger() as ledger:
        F.cross_entropy(logits, targets).backward()
    assert ledger.by_phase == {"forward": 5 * N * D + N, "backward": 4 * N * D + N}


def test_layer_norm_backward_by_gradients_asked_for():
    layer, gradient = nn.LayerNorm(D), torch.ones(N, D)
    for wants_input, expected in ((True, 13), (False, 3)):
        layer.zero_grad()
        y = layer(x.clone().requires_grad_(wants_input))
        assert flops(lambda y=y: y.backward(gradient)) == expected * N * D


def test_broadcast_operand_is_read_once():
    with Ledger() as ledger:
        torch.add(x, x[0].expand(N, D))
    assert ledger.bytes == 4 * (2 * N * D + D)


def test_weighted_read_costs_the_same_in_every_spelling():
    batch, k = 5, 3
    table, weights = torch.randn(50, D), torch.rand(batch, k)
    ids = torch.randint(0, 50, (batch, k))
    read = 2 * batch * k * D
    assert flops(lambda: torch.einsum("bk,bkd->bd", weights, table[ids])) == read
    assert flops(lambda: (weights[..., None] * table[ids]).sum(1)) == read
    assert flops(lambda: F.embedding_bag(ids, table, per_sample_weights=weights, mode="sum")) == read
