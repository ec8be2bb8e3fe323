import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mann import Context
from mann.mixer.delta import DeltaRule, delta_rule
from tests.contracts import assert_mixer, opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing

HEADS = 2


def layer(d_model=12, **settings):
    torch.manual_seed(0)
    return opened(DeltaRule(d_model, HEADS, **settings).double())


def naive_delta_rule(q, k, v, beta, alpha, fast, run):
    """One position after the other, one row and one head at a time."""
    rows, heads, time = beta.shape
    y, last = [], []
    for b in range(rows):
        for h in range(heads):
            state = fast[b, h]
            for t in range(time):
                if run[b, t] != (run[b, t - 1] if t else 0):
                    state = torch.zeros_like(state)
                key, strength = k[b, h, t], beta[b, h, t]
                erased = torch.eye(len(key), dtype=key.dtype) - strength * torch.outer(key, key)
                state = alpha[b, h, t] * state @ erased + strength * torch.outer(v[b, h, t], key)
                y.append(state @ q[b, h, t])
            last.append(state)
    return torch.stack(y).view(rows, heads, time, -1), torch.stack(last).view(rows, heads, *last[0].shape)


def naive_layer(module, x, run):
    """The whole layer, from its formula."""
    rows, time, width = x.shape
    q, k, v = (module.qkv(x)[..., width * i : width * (i + 1)].unflatten(-1, (HEADS, -1)) for i in range(3))
    shifted = []
    for t in range(time):
        earlier = torch.stack(
            [k[b, t - 1] if t and run[b, t] == run[b, t - 1] else k[b, t] for b in range(rows)]
        )
        shifted.append(k[:, t] + module.shift.sigmoid() * (earlier - k[:, t]))
    size = width // HEADS
    q, k = (
        part / (part.square().sum(-1, keepdim=True) + 1e-6 * size).sqrt()
        for part in (q, torch.stack(shifted, 1))
    )
    gates = module.gates(x).transpose(1, 2)
    alpha = torch.ones_like(gates[:, :HEADS])
    if module.gated:
        alpha = torch.exp(
            -module.rate.exp()[:, None] * torch.log1p(torch.exp(gates[:, HEADS:] + module.bias[:, None]))
        )
    fast = x.new_zeros(rows, HEADS, size, size)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    y, _ = naive_delta_rule(q, k, v, gates[:, :HEADS].sigmoid(), alpha, fast, run)
    y = y / y.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    return module.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("time", "chunk"), [(1, 4), (9, 4), (13, 5), (8, 32), (6, 1)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("decaying", [False, True], ids=["", "decaying"])
def test_chunks_equal_the_recurrence(time, chunk, packed, decaying):
    documents = labels(2, time) if packed else None
    run = runs(documents, 2, time)
    q, k = randn(2, HEADS, time, 3, seed=1), randn(2, HEADS, time, 3, seed=2)
    v, fast = randn(2, HEADS, time, 4, seed=3), randn(2, HEADS, 4, 3, seed=4)
    gates = [randn(2, HEADS, time, seed=5), *([randn(2, HEADS, time, seed=6)] if decaying else [])]

    def parts(k, gates):
        alpha = gates[1].sigmoid() if decaying else torch.ones_like(gates[0])
        return F.normalize(k, dim=-1), gates[0].sigmoid(), alpha

    def fast_form(q, k, v, fast, *gates):
        k, beta, alpha = parts(k, gates)
        return delta_rule(
            q,
            k,
            v,
            beta,
            alpha.log() if decaying else None,
            fast,
            context(2, time, documents).documents,
            chunk,
        )

    def naive(q, k, v, fast, *gates):
        k, beta, alpha = parts(k, gates)
        return naive_delta_rule(q, k, v, beta, alpha, fast, run)

    assert_same(fast_form, naive, q, k, v, fast, *gates)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_the_layer_equals_its_formula(gated, packed):
    module, documents = layer(gated=gated, chunk=4), labels(2, 11) if packed else None
    assert_same(
        lambda x, *_: module(x, context(2, 11, documents)),
        lambda x, *_: naive_layer(module, x, runs(documents, 2, 11)),
        randn(2, 11, 12),
        *module.parameters(),
        tolerance=1e-9,
    )


@pytest.mark.parametrize("chunk", [5, 32])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(chunk, gated, documents, tmp_path):
    module = layer(chunk=chunk, gated=gated)
    assert_segments(module, randn(3, TIME, 12), documents)
    assert_goes_on(module, randn(3, TIME, 12), documents, tmp_path)


def test_what_was_written_in_full_is_read_back():
    keys = F.normalize(torch.randn(1, 1, 20, 8, dtype=torch.float64), dim=-1)
    values = torch.randn(1, 1, 20, 5, dtype=torch.float64)
    y, _ = delta_rule(
        keys, keys, values, torch.ones(1, 1, 20).double(), None, torch.zeros(1, 1, 5, 8).double(), None, 8
    )
    torch.testing.assert_close(y, values)


def test_faint_writing_is_linear_attention():
    q, k, v = (torch.randn(2, 2, 30, 6, dtype=torch.float64) for _ in range(3))
    faint = torch.full((2, 2, 30), 1e-9, dtype=torch.float64)
    y, _ = delta_rule(q, k, v, faint, None, torch.zeros(2, 2, 6, 6).double(), None, 8)
    torch.testing.assert_close(y / 1e-9, (q @ k.mT).tril() @ v, rtol=1e-5, atol=1e-5)


def test_without_decay_gated_is_plain():
    plain, gated = layer(), layer(gated=True)
    with torch.no_grad():
        gated.rate.fill_(-1e9)
        gated.gates.weight[:HEADS] = plain.gates.weight
        gated.qkv.weight.copy_(plain.qkv.weight)
        gated.out.weight.copy_(plain.out.weight)
        gated.shift.copy_(plain.shift)
    x, where = randn(2, 40, 12), context(2, 40, labels(2, 40))
    torch.testing.assert_close(gated(x, where), plain(x, where))


def test_what_decays_at_once_leaves_finite_gradients():
    q, k, v = (randn(1, 1, 20, 4, seed=seed, dtype=torch.float32) for seed in range(3))
    decay = torch.full((1, 1, 20), -200.0).requires_grad_()
    y, _ = delta_rule(q, k, v, torch.full((1, 1, 20), 0.5), decay, torch.zeros(1, 1, 4, 4), None, 8)
    torch.testing.assert_close(y, 0.5 * (q * k).sum(-1, keepdim=True) * v)
    for grad in torch.autograd.grad(y.sum(), (q, k, v, decay)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("gated", [False, True])
def test_bfloat16_autocast_is_near(gated):
    module, x = layer(64, gated=gated).float(), randn(2, 100, 64, dtype=torch.float32)
    where = context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, where)
    exact = module(x, where)
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_it_works_without_numbers_and_pickles():
    module = layer(gated=True)
    x, where = randn(2, 9, 12), context(2, 9)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x, where), module(x, where))
    tokens = torch.zeros(2, 40, dtype=torch.long, device="meta")
    for documents in (None, tokens):
        y = module.to("meta")(torch.empty(2, 40, 12, device="meta").double(), Context(tokens, documents))
        assert y.shape == (2, 40, 12)


def test_it_keeps_the_contracts_when_gated():
    assert_mixer(partial(DeltaRule, chunk=7, gated=True))


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"choose among \[1, 2, 3, 4, 6, 12\]"):
        DeltaRule(12, 5)
    with pytest.raises(ValueError, match="at least 1 position"):
        DeltaRule(12, 2, chunk=0)
