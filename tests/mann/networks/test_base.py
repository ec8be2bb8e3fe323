import copy
import pickle
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from experiments.ledger import Ledger
from mann import State
from mann.module import RATES
from mann.networks import DNC, NTM, SparseAccessMemory
from mann.optim import RoleOptimizer

VOCAB, BATCH, TIME = 11, 3, 14
KINDS = [
    partial(NTM, n_rows=8, d_row=5, n_read=2, n_write=2),
    partial(DNC, n_rows=8, d_row=5, n_read=2),
    partial(SparseAccessMemory, n_rows=16, d_row=5, n_heads=2, k=3),
    partial(NTM, n_rows=8, d_row=5, controller="feedforward"),
]
every = pytest.mark.parametrize("kind", KINDS, ids=["ntm", "dnc", "sam", "feedforward"])


def network(kind, dtype=torch.float64):
    torch.manual_seed(0)
    made = kind(VOCAB, d_model=8, d_hidden=12).to(dtype)
    nn.init.normal_(made.readout.head.weight)
    # Memories that are used: with small weights all heads do nearly nothing.
    for name, parameter in made.named_parameters():
        if "heads" in name or "interface" in name:
            nn.init.normal_(parameter)
    return made


def tokens(seed=0, time=TIME):
    return torch.randint(0, VOCAB, (BATCH, time), generator=torch.Generator().manual_seed(seed))


def labels():
    """Changes in the middle, twice, and nowhere; a label that returns is another document."""
    found = torch.zeros(BATCH, TIME, dtype=torch.long)
    found[0, 5:] = 1
    found[1, 3:9] = 4
    return found


@every
def test_documents_begin_anew(kind):
    model, ids = network(kind), tokens()
    whole = model(ids, labels())
    for row, cuts in enumerate([(0, 5, TIME), (0, 3, 9, TIME), (0, TIME)]):
        parts = [model(ids[row : row + 1, a:b]) for a, b in pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, 1)[0], whole[row])
    assert not torch.allclose(model(ids)[0, 5:], whole[0, 5:])


@every
def test_no_gradient_crosses_documents(kind):
    model, ids = network(kind), tokens()
    seen = []
    model.embedding.register_forward_hook(lambda *args: seen.append(args[2]))
    late = model(ids, labels())[0, 5:].square().sum()
    (grad,) = torch.autograd.grad(late, seen[0])
    assert not grad[0, :5].any()
    assert grad[0, 5:].abs().sum(-1).min() > 0
    assert not grad[1:].any()


@every
@pytest.mark.parametrize("documents", [None, labels()], ids=["one document", "several"])
def test_segments_are_one_text(kind, documents):
    model, ids = network(kind), tokens()
    results = [model(ids, documents)]
    state, parts = State(), []
    for here in (slice(0, 5), slice(5, 6), slice(6, TIME)):
        parts.append(model(ids[:, here], None if documents is None else documents[:, here], state=state))
    results.append(torch.cat(parts, 1))
    torch.testing.assert_close(*results)
    one, other = (torch.autograd.grad(result.square().sum(), list(model.parameters())) for result in results)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right)


@every
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    model, ids = network(kind, torch.float32), tokens()
    state = State()
    model(ids[:, :6], labels()[:, :6], state=state)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    again = State()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = model(ids[:, 6:], labels()[:, 6:], state=state)
    assert torch.equal(model(ids[:, 6:], labels()[:, 6:], state=again), expected)
    assert not torch.equal(model(ids[:, 6:], labels()[:, 6:]), expected)


@every
def test_a_detached_state_has_no_gradient_beyond(kind):
    model, ids, state = network(kind), tokens(), State()
    seen = []
    model.embedding.register_forward_hook(lambda *args: seen.append(args[2]))
    model(ids[:, :6], state=state)
    state.detach()
    late = model(ids[:, 6:], state=state)
    torch.testing.assert_close(late, model(ids)[:, 6:])
    (grad,) = torch.autograd.grad(late.square().sum(), seen[0], allow_unused=True)
    assert grad is None


@every
def test_the_future_is_not_seen(kind):
    model, ids = network(kind), tokens()
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 1) % VOCAB
    assert torch.equal(model(ids)[:, :8], model(other)[:, :8])
    assert not torch.equal(model(ids)[:, 8:], model(other)[:, 8:])
    # What was read once is remembered to the end.
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    assert (model(ids)[:, -1] - model(other)[:, -1]).abs().max() > 1e-6


@every
def test_the_loss_is_of_the_log_probabilities(kind):
    model, ids = network(kind), tokens()
    targets = tokens(1).masked_fill(torch.arange(TIME) % 3 == 0, -100)
    log_p = model(ids, labels())
    torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros_like(log_p[..., 0]))
    expected = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(model.loss(ids, targets, labels()), expected.masked_fill(targets < 0, 0.0))


@every
def test_every_parameter_is_trained(kind):
    model = network(kind)
    model.loss(tokens(), tokens(1)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@every
def test_the_bill_is_complete_and_the_same_without_data(kind):
    bills = []
    for device in ("cpu", "meta"):
        model = network(kind, torch.float32).to(device)
        given = [x[:, 2:6].to(device) for x in (tokens(), tokens(1), labels())]
        with Ledger(model) as ledger:
            model.loss(*given).sum().backward()
        bills.append((ledger.flops, ledger.bytes))
    assert bills[0] == bills[1]
    assert bills[0][0] > 0


@every
def test_products_in_bfloat16_leave_the_memory_exact(kind):
    model = network(kind, torch.float32)
    state = State()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(tokens(), tokens(1), state=state)
    low.sum().backward()
    kinds = {v.dtype for values in state.state_dict()["tensors"].values() for v in values.values()}
    assert kinds <= {torch.float32, torch.int64}
    assert (low - model.loss(tokens(), tokens(1))).abs().mean() < 0.3


@every
def test_copies_are_the_same_network(kind):
    model = network(kind)
    expected = model(tokens())
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other(tokens()), expected)
    other = kind(VOCAB, d_model=8, d_hidden=12).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens()), expected)


@every
def test_extreme_inputs_stay_finite(kind):
    for scale in (1e3, 1e8):
        model = network(kind, torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        loss = model.loss(tokens(), tokens(1))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every
def test_trains_by_role(kind):
    model = kind(VOCAB, d_model=8, d_hidden=12)
    optimizer, losses = RoleOptimizer(model, RATES), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.loss(tokens(), tokens(), labels()).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(VOCAB).log().item(), abs=1e-4)
    assert losses[-1] < losses[0] - 0.1


def test_noise_on_the_cell_is_of_training_alone():
    cells = []
    for noise, training in ((0.5, True), (0.5, False), (0.0, True)):
        torch.manual_seed(0)
        model = NTM(VOCAB, d_model=8, d_hidden=64, n_rows=8, d_row=5, cell_noise=noise).train(training)
        torch.manual_seed(1)
        state = State()
        model(torch.ones(64, 1, dtype=torch.long), state=state)
        (held,) = state.state_dict()["tensors"].values()
        cells.append(held["lstm_cell"])
    noisy, quiet, without = cells
    assert torch.equal(quiet, without)
    assert (noisy - quiet).std() == pytest.approx(0.5, rel=0.1)
    assert abs((noisy - quiet).mean()) < 0.05


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"controller": "gru"}, "give one of lstm, feedforward"),
        ({"cell_noise": -0.1}, "cell_noise=-0.1"),
        ({"controller": "feedforward", "cell_noise": 0.1}, "and an LSTM"),
    ],
)
def test_controllers_that_there_are_not(settings, told):
    with pytest.raises(ValueError, match=told):
        NTM(VOCAB, **settings)


@every
def test_what_goes_wrong_is_said(kind):
    with pytest.raises(ValueError, match="d_hidden=0"):
        kind(VOCAB, d_hidden=0)
    with pytest.raises(ValueError, match=r"n_rows=0|0 rows"):
        kind(VOCAB, **{"n_rows": 0})
