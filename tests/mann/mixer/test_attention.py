import pytest
import torch
import torch.nn.functional as F

from mann import CausalAttention, Context
from mann.mixer.attention import causal_attention
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.test_rotary import naive_queries_keys


def visible(documents, batch, time):
    """[batch, query, key]: not later, and no change of document between them."""
    run = runs(documents, batch, time)
    return (run[:, :, None] == run[:, None, :]) & torch.ones(time, time, dtype=torch.bool).tril()


def naive_attention(q, k, v, mask):
    scores = (q @ k.mT).masked_fill(~mask.repeat_interleave(len(q) // len(mask), 0), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("time", [1, 5, 16, 33])
@pytest.mark.parametrize("block", [1, 4, 7, 16, 64])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_it_equals_softmax_over_the_visible_past(time, block, packed):
    documents = labels(2, time) if packed else None
    q, k, v = (randn(6, time, width, seed=seed) for seed, width in enumerate((4, 4, 3)))
    mask = visible(documents, 2, time)
    assert_same(
        lambda q, k, v: causal_attention(q, k, v, context(2, time, documents), block),
        lambda q, k, v: naive_attention(q, k, v, mask),
        q,
        k,
        v,
    )


@pytest.mark.parametrize(("time", "block"), [(1, 4), (19, 8), (33, 64)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_the_layer_equals_its_formula(time, block, packed):
    torch.manual_seed(0)
    layer = opened(CausalAttention(12, 2, block=block).double())
    documents = labels(2, time) if packed else None
    where, x = context(2, time, documents), randn(2, time, 12)
    mask = visible(documents, 2, time)
    inside = (
        torch.stack([torch.zeros(2, dtype=torch.bool), *(mask[:, t, t - 1] for t in range(1, time))], 1)
        if packed
        else None
    )

    def naive(x, *_):
        q, k, v = (layer.qkv(x)[..., 12 * i : 12 * (i + 1)].unflatten(-1, (2, 6)) for i in range(3))
        q, k = naive_queries_keys(q, k, layer.shift.sigmoid(), layer.scale, layer.base, inside)
        y = [naive_attention(q[:, :, h], k[:, :, h], v[:, :, h], mask) for h in range(2)]
        return layer.out(torch.cat(y, -1))

    assert_same(lambda x, *_: layer(x, where), naive, x, *layer.parameters(), tolerance=2e-5)


def test_without_shift_it_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    layer, x = opened(CausalAttention(32, 4)), torch.randn(2, 70, 32)
    with torch.no_grad():
        layer.shift.fill_(-1e9)
        layer.scale.fill_(1.0)
        q, k, v = layer.qkv(x).view(2, 70, 3, 4, 8).unbind(2)
        zero, one = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
        q, k = (y.float() for y in naive_queries_keys(q.double(), k.double(), zero, one, layer.base, None))
        y = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True, scale=1.0
        )
        expected = layer.out(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, context(2, 70)), expected, rtol=1e-4, atol=1e-4)


def test_packed_documents_are_attended_as_if_alone():
    torch.manual_seed(0)
    layer, x = opened(CausalAttention(16, 2, block=8)), torch.randn(1, 30, 16)
    documents = torch.zeros(1, 30, dtype=torch.int64)
    documents[:, 11:] = 1
    packed = layer(x, context(1, 30, documents))
    for part in (slice(0, 11), slice(11, 30)):
        alone = layer(x[:, part], context(1, part.stop - part.start))
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_is_near():
    torch.manual_seed(0)
    layer = opened(CausalAttention(64, 2))
    x = randn(2, 100, 64, dtype=torch.float32)
    where = context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, where)
    exact = layer(x, where)
    assert (y.float() - exact).norm() < 0.03 * exact.norm()
    leaves, weight = [x, *layer.parameters()], torch.randn(2, 100, 64)
    near = torch.autograd.grad((y.float() * weight).sum(), leaves)
    right = torch.autograd.grad((exact * weight).sum(), leaves)
    for one, other in zip(near, right, strict=True):
        assert one.dtype == other.dtype
        # The two numbers a head has are sums of thousands of terms that cancel: nothing to measure rounding by.
        assert one.numel() == layer.n_heads or (one - other).norm() < 0.05 * other.norm()


def test_large_scores_do_not_overflow():
    q, k, v = (1e3 * randn(2, 40, 8, seed=seed, dtype=torch.float32).detach() for seed in range(3))
    leaves = [part.requires_grad_() for part in (q, k, v)]
    y = causal_attention(*leaves, Context(torch.zeros(2, 40, dtype=torch.int64)), 16)
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.sum(), leaves))


@pytest.mark.parametrize(("d_model", "n_heads"), [(12, 5), (12, 4), (12, 0), (12, 12)])
def test_heads_that_do_not_fit_are_named(d_model, n_heads):
    with pytest.raises(ValueError, match=r"choose n_heads among \[1, 2, 3, 6\]"):
        CausalAttention(d_model, n_heads)


def test_second_derivatives_are_refused():
    q, k, v = (randn(2, 5, 4, seed=seed) for seed in range(3))
    y = causal_attention(q, k, v, context(2, 5), 4)
    (first,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
