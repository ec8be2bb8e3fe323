import math

import pytest
import torch

from mann import Context
from mann.readout.trime import TRIMEReadout
from tests.contracts import VOCAB, batch, opened
from tests.mann.inputs import assert_same, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing


def readout(**settings) -> TRIMEReadout:
    torch.manual_seed(0)
    return opened(TRIMEReadout(6, VOCAB, **settings)).double()


def naive_log_probabilities(model, x, context, temperature):
    """Every candidate by itself: tokens of the vocabulary, then what followed earlier states."""
    document = runs(context.documents, *context.tokens.shape)
    g = model.project(x)
    scale = math.sqrt(g.shape[-1]) * temperature
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        weights = torch.exp(model.softmax.head.weight @ x[b, t])
        for s in range(t):
            if document[b, s] == document[b, t]:
                one = torch.eye(VOCAB, dtype=x.dtype)[context.tokens[b, s + 1]]
                weights = weights + one * torch.exp(g[b, t] @ g[b, s] / scale)
        rows.append((weights / weights.sum()).log())
    return torch.stack(rows).view(*x.shape[:2], VOCAB)


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
@pytest.mark.parametrize("settings", [{}, {"d_key": 4, "temperature": 2.0}], ids=["published", "projected"])
def test_it_equals_its_formula(with_targets, settings):
    model, data = readout(**settings), {name: tensor[:, 5:30] for name, tensor in batch().items()}
    here, targets = Context(data["tokens"], data["documents"]), data["targets"]

    def fast(x, *_):
        return model(x, here, targets if with_targets else None)

    def naive(x, *_):
        log_p = naive_log_probabilities(model, x, here, settings.get("temperature", 1.0))
        nll = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return nll.masked_fill(targets < 0, 0) if with_targets else log_p

    assert_same(fast, naive, randn(2, 25, 6), *model.parameters(), tolerance=1e-9)


def test_gradients_are_those_of_differences():
    model, data = readout(), {name: tensor[:, 15:25] for name, tensor in batch().items()}
    here = Context(data["tokens"], data["documents"])
    assert torch.autograd.gradcheck(lambda x: model(x, here, data["targets"]), (randn(2, 10, 6),))


def test_without_a_past_it_is_the_softmax():
    model, tokens = readout(), batch()["tokens"]
    alone = Context(tokens, torch.arange(tokens.shape[1]).expand_as(tokens))
    x = randn(*tokens.shape, 6)
    torch.testing.assert_close(model(x, alone), model.softmax(x, alone))
    torch.testing.assert_close(model(x, alone, tokens), model.softmax(x, alone, tokens))


def test_training_makes_states_before_one_token_alike():
    """The gradient moves the later state towards the earlier one that the same token followed, and the reverse."""
    model = TRIMEReadout(6, VOCAB)
    x = torch.zeros(1, 3, 6)
    x[0, 0, 0], x[0, 1, 1], x[0, 2, 2] = 1.0, 1.0, 1.0
    x.requires_grad_()
    tokens, targets = torch.tensor([[1, 5, 7]]), torch.tensor([[-100, -100, 5]])
    (grad,) = torch.autograd.grad(model(x, Context(tokens), targets).sum(), x)
    assert grad[0, 2, 0] < 0 < grad[0, 2, 1]
    assert grad[0, 0, 2] < 0 < grad[0, 1, 2]


def test_the_loss_holds_no_distribution(monkeypatch):
    model, data = readout(), batch()
    monkeypatch.setattr("mann.readout.trime.past_masses", None)
    model(randn(*data["tokens"].shape, 6), Context(data["tokens"]), data["targets"]).sum().backward()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="positive"):
        TRIMEReadout(6, VOCAB, temperature)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize("settings", [{"cache": TIME}, {"cache": 64, "window": 9, "d_key": 4}], ids=str)
def test_segments_are_one_text(settings, documents, tmp_path):
    model = readout(**settings)
    assert_segments(model, randn(3, TIME, 6), documents)
    assert_goes_on(model, randn(3, TIME, 6), documents, tmp_path)
