import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mann import Context
from mann.memory.neural import NeuralMemory
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing

HEADS, WIDTH = 2, 8


def memory(**settings):
    torch.manual_seed(0)
    module = NeuralMemory(WIDTH, HEADS, **settings).double()
    # Steps large enough that weights at the beginning and at the end of a chunk differ.
    module.step *= 4
    return opened(module)


def network(weights, k):
    """The network of one head at one key, from its formula."""
    if len(weights) == 1:
        return k + weights[0].T @ k
    hidden = F.silu(weights[0].T @ k) / weights[0].shape[1] ** 0.5
    return k + weights[1] @ hidden


def naive_head(start, q, k, v, theta, eta, alpha, chunk, run):
    """What one head reads: gradient steps one by one, by autograd."""
    read, place = [], 0
    for t in range(len(q)):
        if not t or run[t] != run[t - 1]:
            weights, momentum, place = list(start), [torch.zeros_like(part) for part in start], 0
        if place % chunk == 0:
            anchor = weights
        read.append(network(anchor, q[t]))
        gradients = torch.autograd.grad(
            (network(anchor, k[t]) - v[t]).square().sum(), anchor, create_graph=True
        )
        momentum = [eta[t] * s - theta[t] * g for s, g in zip(momentum, gradients, strict=True)]
        weights = [(1 - alpha[t]) * w + s for w, s in zip(weights, momentum, strict=True)]
        place += 1
    return torch.stack(read)


def naive_memory(module, x, run):
    rows, time, width = x.shape
    size = width // HEADS
    x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    q, k, v = (module.qkv(x)[..., width * i : width * (i + 1)].unflatten(-1, (HEADS, size)) for i in range(3))
    shifted = [k[:, 0]]
    for t in range(1, time):
        earlier = torch.stack([k[b, t - (run[b, t] == run[b, t - 1]).int()] for b in range(rows)])
        shifted.append(k[:, t] + module.shift.sigmoid() * (earlier - k[:, t]))
    q, k, v = (
        part / (part.square().sum(-1, keepdim=True) + 1e-6 * size).sqrt()
        for part in (q, torch.stack(shifted, 1), v)
    )
    theta, eta, alpha = (module.gates(x).unflatten(-1, (3, HEADS)) + module.bias).sigmoid().unbind(2)
    steps, rows_read = module.step * theta * (1 - eta), []
    for b in range(rows):
        heads = [
            naive_head(
                module.start[h].unbind(0),
                *(q[b, :, h], k[b, :, h], v[b, :, h]),
                *(steps[b, :, h], eta[b, :, h], alpha[b, :, h]),
                module.chunk,
                run[b],
            )
            for h in range(HEADS)
        ]
        rows_read.append(torch.stack(heads, 1))
    y = torch.stack(rows_read)
    y = y / y.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    return module.out(y.flatten(2))


@pytest.mark.parametrize(("time", "chunk"), [(1, 3), (13, 3), (12, 4), (11, 1), (5, 32)])
@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_chunks_equal_one_step_after_the_other(time, chunk, hidden, packed):
    module = memory(hidden=hidden, chunk=chunk)
    if hidden:
        # Layers shaped as the network has them; the module keeps the second one transposed.
        assert module.start.shape == (HEADS, 2, WIDTH // HEADS, hidden)
    documents = labels(2, time) if packed else None
    leaves = [p for p in module.parameters() if time > chunk or p is module.out.weight]
    assert_same(
        lambda x, *_: module(x, context(2, time, documents)),
        lambda x, *_: naive_memory(module, x, runs(documents, 2, time)),
        randn(2, time, WIDTH),
        *leaves,
        tolerance=1e-8,
    )


@pytest.mark.parametrize(("chunk", "hidden"), [(5, 0), (5, 6), (32, 6)])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(chunk, hidden, documents, tmp_path):
    module = memory(chunk=chunk, hidden=hidden)
    assert_segments(module, randn(3, TIME, WIDTH), documents)
    if chunk < 32:
        assert_goes_on(module, randn(3, TIME, WIDTH), documents, tmp_path)


def test_a_document_is_read_as_if_alone():
    module, x = memory(chunk=4, hidden=6), randn(1, 30, WIDTH)
    documents = torch.zeros(1, 30, dtype=torch.long)
    documents[:, 11:] = 1
    packed = module(x, context(1, 30, documents))
    for part in (slice(0, 11), slice(11, 30)):
        torch.testing.assert_close(packed[:, part], module(x[:, part], context(1, part.stop - part.start)))


@pytest.mark.parametrize("what", [lambda x: x, lambda x: x.square()], ids=["value", "curvature"])
def test_a_chunk_hears_nothing_of_itself(what):
    module, x = memory(chunk=8, hidden=6), randn(1, 24, WIDTH)
    for t in range(24):
        (grad,) = torch.autograd.grad(what(module(x, context(1, 24))[:, t]).sum(), x)
        own = slice(t // 8 * 8, t)
        assert not grad[:, own].any()
        assert not grad[:, t + 1 :].any()
        assert grad[:, : t // 8 * 8].any() == (t >= 8)


def test_without_momentum_and_decay_a_linear_memory_is_gradient_descent():
    module, x = memory(chunk=6, hidden=0), randn(1, 12, WIDTH)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([1e3, -1e3, -1e3])[:, None].expand_as(module.bias))
        module.start.zero_()
        module.shift.fill_(-1e9)
        module.out.weight.copy_(torch.eye(WIDTH))
    normal = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    q, k, v = F.normalize(module.qkv(normal).view(12, 3, HEADS, -1), dim=-1).unbind(1)
    weights = 2 * module.step * torch.einsum("thk,thv->hkv", k[:6], (v - k)[:6])
    read = q[6:] + torch.einsum("thk,hkv->thv", q[6:], weights)
    read = read / read.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(module(x, context(1, 12))[0, 6:], read.flatten(1), rtol=1e-5, atol=1e-5)


def test_it_learns_what_it_is_told_again_and_again():
    module = memory(chunk=4, hidden=0)
    module.step /= 4
    with torch.no_grad():
        module.bias.copy_(torch.tensor([1e3, -1e3, -1e3])[:, None].expand_as(module.bias))
        module.out.weight.copy_(torch.eye(WIDTH))
        module.qkv.weight[:WIDTH] = module.qkv.weight[WIDTH : 2 * WIDTH]
    x = randn(1, 1, WIDTH).expand(1, 200, WIDTH)
    y = module(x, context(1, 200))
    v = module.qkv(x)[0, -1, 2 * WIDTH :].view(HEADS, -1)
    torch.testing.assert_close(
        y[0, -1], (v / v.square().mean(-1, keepdim=True).sqrt()).flatten(), rtol=1e-3, atol=1e-3
    )


def test_steps_of_a_chunk_never_overshoot():
    # The same key all along is the worst case, and momentum makes it worse.
    module = NeuralMemory(WIDTH, HEADS, chunk=16, hidden=0)
    nn.init.eye_(module.out.weight)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([1e3, 5.0, -1e3])[:, None].expand_as(module.bias))
    x = torch.ones(1, 4000, WIDTH).requires_grad_()
    y = module(x, context(1, 4000))
    assert y.isfinite().all()
    assert torch.autograd.grad(y[:, -1].sum(), x)[0].isfinite().all()


def test_bfloat16_autocast_is_near():
    torch.manual_seed(0)
    module = opened(NeuralMemory(32, 2, chunk=16))
    x, where = randn(2, 100, 32, dtype=torch.float32), context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, where)
    exact = module(x, where)
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_it_works_without_numbers_and_pickles():
    module = memory(chunk=4)
    x = randn(2, 9, WIDTH)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x, context(2, 9)), module(x, context(2, 9)))
    tokens = torch.zeros(2, 40, dtype=torch.long, device="meta")
    for documents in (None, tokens):
        y = module.to("meta")(torch.empty(2, 40, WIDTH, device="meta").double(), Context(tokens, documents))
        assert y.shape == (2, 40, WIDTH)


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"choose among \[1, 2, 4, 8\]"):
        NeuralMemory(8, 3)
    with pytest.raises(ValueError, match="at least 1 position"):
        NeuralMemory(8, 2, chunk=0)
