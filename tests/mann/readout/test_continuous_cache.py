import pytest
import torch

from mann import Context, State
from mann.readout.continuous_cache import CacheReadout
from tests.contracts import VOCAB, batch, opened
from tests.mann.inputs import assert_same, randn, runs
from tests.mann.segments import (
    LENGTHS,
    TIME,
    assert_goes_on,
    assert_segments,
    changing,
    in_segments,
    numbered,
)


def readout(**settings) -> CacheReadout:
    torch.manual_seed(0)
    return opened(CacheReadout(6, VOCAB, **settings)).double()


def naive_log_probabilities(model, x, context, weight, first=lambda t: 0):
    """Position by position, earlier state by earlier state; ``first(t)`` is the earliest that is still there."""
    document = runs(context.documents, *context.tokens.shape)
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        p = model.softmax.head(x[b, t]).softmax(0)
        cache = torch.zeros_like(p)
        for s in range(first(t), t):
            if document[b, s] == document[b, t]:
                one = torch.eye(VOCAB, dtype=x.dtype)[context.tokens[b, s + 1]]
                cache = cache + one * torch.exp(model.theta * (x[b, t] @ x[b, s]))
        z = cache.sum()
        if z > 0:
            share = z / (z + torch.exp(model.sink(x[b, t])[0])) if weight is None else weight
            p = (1 - share) * p + share * cache / z
        rows.append(p.log())
    return torch.stack(rows).view(*x.shape[:2], VOCAB)


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
@pytest.mark.parametrize("weight", [None, 0.3])
def test_it_equals_its_formula(with_targets, weight):
    model = readout(weight=weight)
    data = {name: tensor[:, 5:30] for name, tensor in batch().items()}
    here, targets = Context(data["tokens"], data["documents"]), data["targets"]

    def fast(x, *_):
        return model(x, here, targets if with_targets else None)

    def naive(x, *_):
        log_p = naive_log_probabilities(model, x, here, weight)
        nll = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return nll.masked_fill(targets < 0, 0) if with_targets else log_p

    assert_same(fast, naive, randn(2, 25, 6), *model.parameters(), tolerance=1e-9)


def test_gradients_are_those_of_differences():
    model, data = readout(), {name: tensor[:, 15:25] for name, tensor in batch().items()}
    here = Context(data["tokens"], data["documents"])
    assert torch.autograd.gradcheck(lambda x: model(x, here, data["targets"]), (randn(2, 10, 6),))


def test_at_theta_zero_a_fixed_cache_counts_what_came_before():
    model, tokens = readout(weight=0.5), torch.tensor([[3, 1, 2, 1]])
    with torch.no_grad():
        model.theta.zero_()
        model.softmax.head.weight.zero_()
    p = model(randn(1, 4, 6), Context(tokens)).exp()
    assert p[0, 0].tolist() == pytest.approx([1 / VOCAB] * VOCAB)
    expected = torch.full((VOCAB,), 0.5 / VOCAB, dtype=p.dtype)
    expected[1] += 0.5 * 2 / 3
    expected[2] += 0.5 * 1 / 3
    torch.testing.assert_close(p[0, 3], expected)


@pytest.mark.parametrize("settings", [{}, {"weight": 0.3}], ids=["learned", "fixed"])
def test_without_a_past_it_is_the_softmax(settings):
    model, tokens = readout(**settings), batch()["tokens"]
    alone = Context(tokens, torch.arange(tokens.shape[1]).expand_as(tokens))
    x = randn(*tokens.shape, 6)
    torch.testing.assert_close(model(x, alone), model.softmax(x, alone))
    nll = model(x, alone, tokens)
    torch.testing.assert_close(nll, model.softmax(x, alone, tokens))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(nll.sum(), [x, model.theta]))


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1])
def test_a_fixed_weight_is_a_share(weight):
    with pytest.raises(ValueError, match="between 0 and 1"):
        CacheReadout(6, VOCAB, weight=weight)


@pytest.mark.parametrize("settings", [{"cache": 0}, {"window": 0}], ids=str)
def test_sizes_below_one_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        CacheReadout(6, VOCAB, **settings)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize("settings", [{"cache": TIME}, {"window": 1}, {"window": 9, "weight": 0.3}], ids=str)
def test_segments_are_one_text(settings, documents, tmp_path):
    model = readout(**settings)
    assert_segments(model, randn(3, TIME, 6), documents)
    assert_goes_on(model, randn(3, TIME, 6), documents, tmp_path)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize("settings", [{"cache": 5}, {"cache": 5, "window": 7}, {"window": 7}], ids=str)
def test_a_cache_and_a_window_hold_what_they_say(settings, documents):
    model, x = readout(**settings), randn(3, TIME, 6)
    begin = torch.repeat_interleave(
        torch.tensor([0, *LENGTHS[:-1]]).cumsum(0), torch.tensor(LENGTHS)
    ).tolist()
    window, cache = settings.get("window", TIME), settings.get("cache", TIME)

    def naive(x, *_):
        here = Context(numbered(x), documents)
        return naive_log_probabilities(model, x, here, None, lambda t: max(0, t - window, begin[t] - cache))

    assert_same(
        lambda x, *_: in_segments(model, x, documents, State()), naive, x, *model.parameters(), tolerance=1e-9
    )
    if "cache" not in settings:  # without a state, too
        assert_same(lambda x, *_: model(x, Context(numbered(x), documents)), naive, x, tolerance=1e-9)


@pytest.mark.parametrize("settings", [{"cache": 5}, {"window": 7}], ids=str)
def test_the_loss_over_a_state_is_that_of_its_probabilities(settings):
    model, x, targets = readout(**settings), randn(3, TIME, 6), numbered(torch.empty(3, TIME)).roll(-1, 1)
    first, second = State(), State()
    for begin, end in ((0, 9), (9, 10), (10, TIME)):
        tokens, labels = (part[:, begin:end] for part in (numbered(x), changing()))
        log_p = model(x[:, begin:end], Context(tokens, labels, state=first))
        loss = model(x[:, begin:end], Context(tokens, labels, state=second), targets[:, begin:end])
        torch.testing.assert_close(loss, -log_p.gather(-1, targets[:, begin:end, None]).squeeze(-1))
