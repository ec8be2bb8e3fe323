import pytest
import torch

from experiments.ledger import Ledger
from mann import Context, Transformer
from mann.readout.knn import KNNReadout
from retrieval import Datastore, Neighbors
from tests.contracts import SOURCE, VOCAB, batch, opened
from tests.mann.inputs import assert_same, randn

D, ENTRIES = 6, 50


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ten documents of five entries; positions are places in a document."""
    ids = torch.arange(ENTRIES)
    keys = randn(ENTRIES, D, seed=5, dtype=torch.float32).detach()
    entries = (keys, (7 * ids) % VOCAB, ids // 5, ids % 5)
    return Datastore.build(tmp_path_factory.mktemp("knn") / "store", [entries], metric="l2", dtype="float32")


def readout(**settings) -> KNNReadout:
    torch.manual_seed(0)
    return opened(KNNReadout(D, VOCAB, **settings)).double().eval()


def naive_log_probabilities(model, x, lists):
    """Position by position, neighbour by neighbour, of (score, answer)."""
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        p = model.softmax.head(x[b, t]).softmax(0)
        if lists[b][t]:
            logit = model.logit if model.gate is None else model.gate(x[b, t])[0]
            share = torch.sigmoid(logit)
            weights = [torch.exp(score / model.log_temperature.exp()) for score, _ in lists[b][t]]
            p = (1 - share) * p
            for weight, (_, answer) in zip(weights, lists[b][t], strict=True):
                p = p + share * weight / sum(weights) * torch.eye(VOCAB, dtype=x.dtype)[answer]
        rows.append(p.log())
    return torch.stack(rows).view(*x.shape[:2], VOCAB)


def compare(model, x, here, targets, lists, with_targets):
    def fast(x, *_):
        return model(x, here, targets if with_targets else None)

    def naive(x, *_):
        log_p = naive_log_probabilities(model, x, lists)
        nll = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return nll.masked_fill(targets < 0, 0) if with_targets else log_p

    assert_same(fast, naive, x, *model.parameters(), tolerance=1e-5)


def true_neighbors(store, x, k, banned=None):
    """What stands nearest, all of it looked at; and what each position must not be given is left out."""
    keys, answers = (column(store.ids()) for column in (store.keys, store.values))
    documents = store.documents(store.ids())
    lists = []
    for b in range(x.shape[0]):
        lists.append([])
        for t in range(x.shape[1]):
            squared = (x[b, t].detach() - keys.double()).square().sum(-1)
            if banned is not None:
                squared[documents == banned[b, t]] = torch.inf
            nearest = squared.argsort()[:k].tolist()
            lists[-1].append([(-squared[i], int(answers[i])) for i in nearest if squared[i] < torch.inf])
    return lists


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_over_a_source_it_equals_its_formula(with_targets, adaptive):
    model, data = readout(source=SOURCE, k=4, adaptive=adaptive), {n: x[:, 5:20] for n, x in batch().items()}
    found = SOURCE.search(data["tokens"], 4)
    found.mask[:, ::5, 2:], found.mask[:, ::7] = False, False
    answers = SOURCE.passages.window(found.ids, 0, 1)[..., 1]
    lists = [
        [
            [(found.scores[b, t, i], answers[b, t, i]) for i in range(4) if found.mask[b, t, i]]
            for t in range(15)
        ]
        for b in range(2)
    ]
    here = Context(data["tokens"], None, found)
    compare(model, randn(2, 15, D), here, data["targets"], lists, with_targets)


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
def test_over_a_datastore_it_equals_its_formula(store, with_targets):
    """Queries fixed: nothing is learned through a store."""
    model, data = readout(datastore=store, k=4), {n: x[:, 5:20] for n, x in batch().items()}
    x = randn(2, 15, D)
    with torch.no_grad():
        x.copy_(x.float())
    compare(model, x, Context(data["tokens"]), data["targets"], true_neighbors(store, x, 4), with_targets)


def test_gradients_are_those_of_differences():
    model, data = readout(source=SOURCE, k=4, adaptive=True), {n: x[:, 15:25] for n, x in batch().items()}
    here = Context(data["tokens"], None, SOURCE.search(data["tokens"], 4))
    assert torch.autograd.gradcheck(lambda x: model(x, here, data["targets"]), (randn(2, 10, D),))


def test_distances_are_those_of_stored_keys_whatever_finds_them(tmp_path):
    keys = randn(600, D, seed=5, dtype=torch.float32).detach()
    entries = (keys, torch.arange(600) % VOCAB)
    coded = Datastore.build(tmp_path / "coded", [entries], metric="l2", factory="IVF4,PQ2x4", dtype="float32")
    model = readout(datastore=coded, k=3)
    x = randn(1, 8, D).detach()
    found, answers = model.find(x, Context(torch.zeros(1, 8, dtype=torch.int64)))
    exact = -(x.float()[..., None, :] - keys[found.ids]).square().sum(-1)
    torch.testing.assert_close(found.scores, exact)
    assert torch.equal(answers, found.ids % VOCAB)


def test_in_train_mode_a_store_is_asked_only_when_it_is_said_what_to_hide(store):
    model, data = readout(datastore=store, k=4).train(), {n: x[:, :15] for n, x in batch().items()}
    here, x = Context(data["tokens"]), randn(2, 15, D).detach()
    with pytest.raises(ValueError, match="hiding"):
        model(x, here)
    with model.hiding():
        whole = model(x, here)
    banned = torch.arange(15).expand(2, 15) % 10
    with model.hiding(exclude=banned):
        hidden = model(x, here)
        found, _ = model.find(x, here)
    assert (store.documents(found) != banned[..., None]).all()
    assert not torch.equal(hidden, whole)
    expected = naive_log_probabilities(model, x, true_neighbors(store, x, 4, banned))
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="hiding"):
        model(x, here)


def test_a_row_is_not_given_its_own_future(store):
    """Every state asks for its own entry: stamps leave it those of its document that it has read the answers of."""
    model = readout(datastore=store, k=ENTRIES)
    x = store.keys(torch.arange(15))[None].double()
    at, document = torch.arange(15)[None] % 5, torch.arange(15)[None] // 5
    with model.hiding(visible_at=at, own=document):
        found, _ = model.find(x, Context(torch.zeros(1, 15, dtype=torch.int64)))
    own = found.mask & (store.documents(found) == document[..., None])
    assert own.sum(-1).tolist() == at.tolist()
    assert (store.positions(found) < at[..., None])[own].all()


def test_searches_are_saved_where_the_weight_is_small(store):
    model = readout(datastore=store, k=4, adaptive=True, threshold=0.5)
    x, here = randn(2, 15, D).detach(), Context(torch.zeros(2, 15, dtype=torch.int64))
    model.threshold = model.gates(x).sigmoid().median().item()
    wanted = model.gates(x).sigmoid() >= model.threshold
    assert 0 < wanted.sum() < wanted.numel()
    with Ledger(model) as some:
        log_p = model(x, here)
    found, _ = model.find(x, here)
    assert torch.equal(found.mask.any(-1), wanted)
    torch.testing.assert_close(log_p[~wanted], model.softmax(x, here)[~wanted])
    model.threshold = 0.0
    with Ledger(model) as every:
        torch.testing.assert_close(model(x, here)[wanted], log_p[wanted])
    assert some.by_operator["mnemograph.search"] < every.by_operator["mnemograph.search"]
    model.threshold, banned = model.gates(x).sigmoid().median().item(), torch.arange(15).expand(2, 15) % 10
    with model.hiding(exclude=banned):
        found, _ = model.find(x, here)
    assert (store.documents(found) != banned[..., None])[wanted].all()


def test_the_search_is_on_the_bill(store):
    model = Transformer(VOCAB, D, 1, 1, readout=lambda d, v: KNNReadout(d, v, datastore=store, k=4)).eval()
    data = {n: x[:, :15] for n, x in batch().items()}
    with Ledger(model) as ledger:
        model.loss(**data).sum().backward()
    searched = ledger.by_operator["mnemograph.search"]
    # Three operations a number of each pair of a query and a key.
    assert searched >= 3 * D * ENTRIES * 30
    assert ledger.by_module["readout"] >= searched


def test_without_neighbors_it_is_the_softmax():
    model, data = readout(source=SOURCE, k=4), batch()
    nobody = Context(data["tokens"], None, Neighbors.none(*data["tokens"].shape, 4))
    x = randn(*data["tokens"].shape, D)
    torch.testing.assert_close(model(x, nobody), model.softmax(x, nobody))
    nll = model(x, nobody, data["targets"])
    torch.testing.assert_close(nll, model.softmax(x, nobody, data["targets"]))
    assert torch.autograd.grad(nll.sum(), x)[0].isfinite().all()


def test_errors_say_what_to_do(store):
    with pytest.raises(ValueError, match="one of them"):
        KNNReadout(D, VOCAB)
    with pytest.raises(ValueError, match="one of them"):
        KNNReadout(D, VOCAB, SOURCE, datastore=store)
    with pytest.raises(ValueError, match="threshold"):
        KNNReadout(D, VOCAB, datastore=store, threshold=0.1)
