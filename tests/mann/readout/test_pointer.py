import pytest
import torch

from mann import Context, PointerReadout
from retrieval import Neighbors
from tests.contracts import SOURCE, VOCAB, batch, opened
from tests.mann.inputs import assert_same, randn
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing, quoting


def readout(k: int = 4) -> PointerReadout:
    torch.manual_seed(0)
    return opened(PointerReadout(6, VOCAB, SOURCE, k=k, d_pointer=5))


def naive_log_probabilities(model, x, found):
    """Position by position, neighbour by neighbour."""
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        kept = [i for i in range(found.k) if found.mask[b, t, i]]
        answers = [int(SOURCE.passages.tokens[found.ids[b, t, i] + 1]) for i in kept]
        a, c = model.score.slope
        logits = [
            model.query(x[b, t]) @ model.answers.weight[answer]
            + a * found.scores[b, t, i]
            + c * torch.log1p(found.scores[b, t, i])
            + model.score.rank[i]
            for i, answer in zip(kept, answers, strict=True)
        ]
        weights = torch.stack([*logits, model.sink(x[b, t])[0]]).softmax(0)
        p = weights[-1] * model.softmax.head(x[b, t]).softmax(0)
        for weight, answer in zip(weights, answers, strict=False):
            p = p + weight * torch.eye(VOCAB, dtype=x.dtype)[answer]
        rows.append(p.log())
    return torch.stack(rows).view(*x.shape[:2], VOCAB)


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
def test_it_equals_its_formula(with_targets):
    model, data = readout(), {name: tensor[:, 5:25] for name, tensor in batch().items()}
    found = SOURCE.search(data["tokens"], 4)
    found.mask[:, ::5, 2:], found.mask[:, ::7] = False, False
    here, targets = Context(data["tokens"], None, found), data["targets"]

    def fast(x, *_):
        return model(x, here, targets if with_targets else None)

    def naive(x, *_):
        log_p = naive_log_probabilities(model, x, found)
        nll = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return nll.masked_fill(targets < 0, 0) if with_targets else log_p

    x = randn(2, 20, 6, dtype=torch.float32)
    assert_same(fast, naive, x, *model.parameters(), tolerance=1e-4)


def test_without_neighbors_it_is_the_softmax():
    model, data = readout(), batch()
    nobody = Context(data["tokens"], None, Neighbors.none(*data["tokens"].shape, 4))
    x = torch.randn(*data["tokens"].shape, 6)
    torch.testing.assert_close(model(x, nobody), model.softmax(x, nobody))
    torch.testing.assert_close(model(x, nobody, data["targets"]), model.softmax(x, nobody, data["targets"]))


@pytest.mark.parametrize("sink", [3.0, 95.0])
def test_the_loss_of_what_only_neighbors_foresee_is_exact_and_finite(sink):
    model, tokens = readout(), torch.ones(1, 1, dtype=torch.int64)
    found = SOURCE.search(tokens, 4)
    (answer,) = SOURCE.passages.window(found.ids, 0, 1)[0, 0, :1, 1].tolist()
    with torch.no_grad():
        model.softmax.head.weight.zero_()
        model.softmax.head.weight[answer] = -50.0
        model.query.weight.zero_()
        model.sink.weight.zero_()
        model.sink.bias.fill_(sink)
    x = torch.ones(1, 1, 6, requires_grad=True)
    here = Context(tokens, None, found)
    assert model.softmax(x, here)[0, 0, answer] < -290
    # Below -87, float32 has no exact number for a weight.
    assert (model.log_weights(x, here)[0][..., :-1].max() < -90) == (sink > 90)
    leaves = [x, *model.parameters()]
    nll, log_p = model(x, here, torch.tensor([[answer]]))[0, 0], model(x, here)[0, 0, answer]
    torch.testing.assert_close(nll, -log_p)
    for loss in (nll, log_p):
        for grad in torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True):
            assert grad is None or grad.isfinite().all()


def test_a_neighbor_that_is_right_lowers_the_loss():
    model, data = readout(), batch()
    here = Context(data["tokens"], None, exclude=data["exclude"])
    answer = SOURCE.passages.window(here.retrieve(SOURCE, 4).ids, 0, 1)[..., 0, 1]
    x = torch.randn(*data["tokens"].shape, 6)
    with torch.no_grad():
        model.sink.weight.zero_()
        model.sink.bias.fill_(20.0)
        closed = model(x, here, answer).mean()
        model.sink.bias.fill_(-20.0)
        assert model(x, here, answer).mean() < closed


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(documents, tmp_path):
    model = opened(PointerReadout(6, VOCAB, quoting(VOCAB), k=2, d_pointer=5)).double()
    # Scores are in single precision.
    assert_segments(model, randn(3, TIME, 6), documents, tolerance=1e-5)
    assert_goes_on(model, randn(3, TIME, 6), documents, tmp_path)


def test_a_store_of_the_training_text_is_not_learned_from_unless_it_is_hidden():
    tokens = torch.from_numpy(SOURCE.passages.tokens[90:130].astype("int64"))[None]
    tokens, targets = tokens[:, :-1], tokens[:, 1:]
    model, x = readout(), torch.zeros(1, 39, 6)
    with torch.no_grad():
        model.sink.bias.fill_(-20.0)
        model.answers.weight.zero_()
    with pytest.raises(ValueError, match=r"gives the answers away: give exclude=.*all -1 if"):
        model(x, Context(tokens), targets)
    own, none = torch.ones_like(tokens), torch.full_like(tokens, -1)
    seen, hidden = (model(x, Context(tokens, exclude=exclude), targets) for exclude in (none, own))
    found = Context(tokens, neighbors=SOURCE.search(tokens, 4, exclude=own))
    assert torch.equal(model(x, found, targets), hidden)
    assert torch.equal(model.eval()(x, Context(tokens), targets), seen)
    # A token that finds itself copies its own answer.
    assert (Context(tokens).retrieve(SOURCE, 4).ids[0, 5:] == torch.arange(95, 129)[:, None]).any(-1).all()
    assert not (SOURCE.passages.labels[Context(tokens, exclude=own).retrieve(SOURCE, 4).ids] == 1).any()
    assert seen[0, 5:].mean() < 1 < hidden[0, 5:].mean()
