import itertools

import pytest
import torch

from mann import Context, SoftmaxReadout, Transformer
from mann.knn_store import _highest, build_datastore, tune
from mann.readout.knn import KNNReadout
from tests.contracts import SOURCE, VOCAB, batch, opened

D = 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    return opened(Transformer(VOCAB, D, 1, 1))


def with_store(model, store, **settings):
    """The same model, reading a store."""
    readout = KNNReadout(D, VOCAB, datastore=store, k=8, **settings)
    readout.softmax.load_state_dict(model.readout.state_dict())
    model.readout = readout
    return model


def test_entries_are_states_with_the_token_that_came_next(model, tmp_path):
    data, seen = batch(), []
    labels, places = data["documents"] + 3, torch.arange(160).view(2, 80)
    given = {"tokens": data["tokens"], "documents": labels, "positions": places}
    store = build_datastore(
        model.train(), [given, given], tmp_path / "store", progress=seen.append, dtype="float32"
    )
    assert model.training
    context = Context(data["tokens"], data["documents"])
    with torch.no_grad():
        x = model.hidden(context)
    rows = [
        (x[b, t], data["tokens"][b, t + 1], labels[b, t], places[b, t])
        for b, t in itertools.product(range(2), range(79))
        if labels[b, t] == labels[b, t + 1]
    ]
    assert seen == [len(rows), 2 * len(rows)]
    ids = torch.arange(len(rows))
    for column, wanted in zip(
        (store.keys, store.values, store.documents, store.positions), zip(*rows, strict=True), strict=True
    ):
        assert torch.equal(column(ids), torch.stack(wanted).to(column(ids).dtype))
    assert store.metric == "l2"


def test_targets_are_stored_where_they_are_given_and_rows_are_documents_by_default(model, tmp_path):
    data = batch()
    given = {"tokens": data["tokens"], "targets": data["targets"]}
    store = build_datastore(model, [given, given], tmp_path / "store")
    kept = data["targets"] >= 0
    assert torch.equal(store.values(store.ids()).long(), data["targets"][kept].repeat(2))
    rows = torch.arange(2)[:, None].expand(2, 80)[kept]
    assert torch.equal(store.documents(store.ids()), torch.cat([rows, rows + 2]))
    assert torch.equal(store.positions(store.ids()), torch.arange(80).expand(2, 80)[kept].repeat(2))


def quoting(seed, noise):
    """Text in which a rule holds: after a token comes its double, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (4, 30), generator=generator)
    follows = 2 * tokens % VOCAB
    other = torch.rand(4, 30, generator=generator) < noise
    targets = torch.where(other, torch.randint(0, VOCAB, (4, 30), generator=generator), follows)
    targets[:, ::6] = -100
    return {"tokens": tokens, "targets": targets}


def losses(model, batches):
    with torch.no_grad():
        return torch.cat([model.loss(**data)[data["targets"] >= 0] for data in batches]).mean().item()


def test_tuning_finds_the_smallest_loss(model, tmp_path):
    store = build_datastore(model, [quoting(seed, 0.3) for seed in range(8)], tmp_path / "store")
    held_out = [quoting(seed, 0.3) for seed in range(50, 53)]
    alone = losses(model, held_out)
    with_store(model, store)
    tuned = tune(model, held_out)
    readout = model.readout
    assert tuned.nats_alone == pytest.approx(alone, rel=1e-5)
    assert tuned.nats == pytest.approx(losses(model.eval(), held_out), rel=1e-4)
    assert tuned.nats < alone - 0.3
    assert 0.1 < tuned.weight < 0.999
    assert tuned.weight == pytest.approx(readout.logit.sigmoid().item(), rel=1e-5)
    assert tuned.temperature == pytest.approx(readout.log_temperature.exp().item(), rel=1e-5)
    for weight, temperature in itertools.product((0.8, 1.0, 1.2), (0.7, 1.0, 1.4)):
        with torch.no_grad():
            readout.logit.fill_(torch.tensor(min(tuned.weight * weight, 0.9999)).logit())
            readout.log_temperature.fill_(torch.tensor(tuned.temperature * temperature).log())
        assert losses(model, held_out) > tuned.nats - 1e-4


@pytest.mark.parametrize("peak", [0.3, -7.8, 9.4, -14.1])
def test_a_temperature_is_found_on_the_grid_and_beyond(peak):
    assert _highest(lambda at: -abs(at - peak), 0.0) == pytest.approx(peak, abs=0.03)


def test_an_adaptive_weight_is_left_as_it_is(model, tmp_path):
    store = build_datastore(model, [quoting(seed, 0.3) for seed in range(8)], tmp_path / "store")
    held_out = [quoting(seed, 0.3) for seed in range(50, 53)]
    before = losses(with_store(model, store, adaptive=True).eval(), held_out)
    kept = {name: value.clone() for name, value in model.readout.gate.state_dict().items()}
    tuned = tune(model, held_out)
    assert tuned.nats == pytest.approx(losses(model, held_out), rel=1e-4)
    assert tuned.nats <= before
    assert all(torch.equal(value, kept[name]) for name, value in model.readout.gate.state_dict().items())


def test_a_store_of_no_use_gets_hardly_any_weight(model, tmp_path):
    """Values that have nothing to do with their keys, and a model that knows: it is trained on what comes."""
    data = [quoting(seed, 0.0) for seed in range(8)]
    wrong = [{**one, "targets": (one["targets"] + 1).clamp(min=-1) % VOCAB} for one in data]
    store = build_datastore(model, wrong, tmp_path / "store")
    with_store(model, store)
    assert tune(model, data).weight < 1e-3


def test_errors_say_what_to_do(model, tmp_path):
    with pytest.raises(ValueError, match="KNNReadout"):
        tune(model, [batch()])
    assert isinstance(model.readout, SoftmaxReadout)
    model.readout = KNNReadout(D, VOCAB, SOURCE, 4)
    with pytest.raises(ValueError, match="targets"):
        tune(model, [{"tokens": batch()["tokens"], "targets": torch.full((2, 80), -100)}])
