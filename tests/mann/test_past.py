from functools import partial

import pytest
import torch

from mann import CacheReadout, Context, TRIMEReadout
from mann.past import Past, past_mass, past_masses, token_masses
from tests.mann.inputs import assert_same, labels, randn, runs

VOCAB = 7


def batch(time, *, documents, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, VOCAB, (2, 2, time), generator=generator)
    targets[:, ::5] = -100
    return Context(tokens, labels(2, time) if documents else None), targets


def past_of(keys, context, window=None):
    return Past(keys, context.tokens, context.documents, window)


def naive(q, k, context, wanted, window=None):
    """Sums over earlier positions of the same document, one by one; ``wanted(b, t)`` says what answers count."""
    batch, time, _ = q.shape
    document = runs(context.documents, batch, time)
    rows = []
    for b, t in [(b, t) for b in range(batch) for t in range(time)]:
        parts = [q.new_zeros(())]
        for s in range(max(0, t - (window or t)), t):
            if document[b, s] == document[b, t] and wanted(b, t, int(context.tokens[b, s + 1])):
                parts.append(torch.exp(q[b, t] @ k[b, s]))
        rows.append(torch.stack(parts).sum())
    return torch.stack(rows).view(batch, time)


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("time", [1, 2, 8, 9, 10, 20])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 15])
def test_sums_are_those_of_the_loop(time, window, documents, monkeypatch):
    monkeypatch.setattr("mann.past.BLOCK", 8)
    context, targets = batch(time, documents=documents)
    q, k = randn(2, time, 3), randn(2, time, 3, seed=1)

    def fast(q, k):
        total, hit = past_mass(q, past_of(k, context, window), context, targets)
        past, masses = past_masses(q, past_of(k, context, window), context, VOCAB)
        return total.exp(), hit.exp(), past.exp(), masses.exp()

    def slow(q, k):
        total = naive(q, k, context, lambda b, t, answer: True, window)
        hit = naive(q, k, context, lambda b, t, answer: answer == targets[b, t], window)
        tokens = [naive(q, k, context, lambda b, t, answer, v=v: answer == v, window) for v in range(VOCAB)]
        return total, hit, total, torch.stack(tokens, -1)

    if time == 1:
        assert not any(mass.any() for mass in fast(q, k))
    else:
        assert_same(fast, slow, q, k)


def test_gradients_are_those_of_differences():
    context, targets = batch(9, documents=True)

    def function(q, k):
        total, hit = past_mass(q, past_of(k, context), context, targets)
        return total.exp(), hit.exp()

    assert torch.autograd.gradcheck(function, (randn(2, 9, 3), randn(2, 9, 3, seed=1)))


def test_the_loss_of_small_weights_is_exact():
    """The right answer weighs exp(-200) of what the others do, and is its own logarithm all the same."""
    context = Context(torch.tensor([[0, 1, 2, 0]]))
    k = torch.tensor([[[-100.0], [100.0], [0.0], [0.0]]])
    q = torch.ones(1, 4, 1)
    _, hit = past_mass(q, past_of(k, context), context, torch.ones(1, 4, dtype=torch.int64))
    _, masses = past_masses(q, past_of(k, context), context, 3)
    assert hit[0].tolist() == pytest.approx([float("-inf"), -100, -100, -100])
    torch.testing.assert_close(masses[..., 1], hit)


def test_sums_by_token():
    logs, tokens = randn(3, 9), torch.randint(0, 5, (3, 9), generator=torch.Generator().manual_seed(4))

    def slow(logs):
        weights = torch.exp(logs)
        return torch.stack([(weights * (tokens == v)).sum(-1) for v in range(6)], -1)

    assert_same(lambda logs: token_masses(logs, tokens, 6).exp(), slow, logs)
    nothing = logs.detach().masked_fill(tokens == 2, float("-inf")).requires_grad_()
    found = token_masses(nothing, tokens, 6)
    assert (found[:, 2] == float("-inf")).all()
    (grad,) = torch.autograd.grad(torch.logaddexp(found, torch.zeros_like(found)).sum(), nothing)
    assert torch.equal(grad == 0, tokens == 2)


@pytest.mark.parametrize("build", [partial(TRIMEReadout, temperature=0.3), CacheReadout])
def test_the_loss_is_that_of_the_probabilities_in_half_precision_too(build):
    torch.manual_seed(0)
    readout = build(32, VOCAB).eval()
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, tokens = 2 * torch.randn(2, 90, 32), torch.randint(0, VOCAB, (2, 90))
    context, targets = Context(tokens), tokens.roll(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, log_p = readout(x, context, targets), readout(x, context)
    told = -log_p.gather(-1, targets[..., None]).squeeze(-1)
    assert (loss - told).abs().max() < 0.02
