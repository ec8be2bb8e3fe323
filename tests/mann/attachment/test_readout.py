from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from mann import CacheReadout, Context, KNNReadout, TRIMEReadout
from mann.attachment import Attached, attach
from mann.attachment.head import OwnHead
from mann.knn_store import build_datastore, tune
from tests.contracts import SOURCE
from tests.mann.attachment.models import NGRAM, POINTER, VOCAB, bare, ids, trained

DOCUMENTS = torch.tensor([[3] * 5 + [1] * 7, [0] * 9 + [3] * 3])


@pytest.mark.parametrize("build", [POINTER, CacheReadout, partial(KNNReadout, source=SOURCE, k=4)])
@pytest.mark.parametrize("name", ["GPT2", "Gemma2"])
def test_mixes_with_what_the_model_says(name: str, build: Any) -> None:
    model = bare(name)
    logits, states = model(ids()).logits, model(ids(), output_hidden_states=True).hidden_states[-1]
    attached = trained(attach(model, readout=build))
    got = model(ids()).logits
    torch.testing.assert_close(got.logsumexp(-1), torch.zeros(2, 12), rtol=0, atol=1e-5)
    readout = attached.readout
    readout.softmax.know(states, logits)
    torch.testing.assert_close(got, readout(states, Context(ids())), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, logits.log_softmax(-1), atol=0.01)
    # Half of the positions are given the logits of others: they must count.
    readout.softmax.know(states, logits.flip(1))
    assert not torch.allclose(got, readout(states, Context(ids())), atol=0.01)


def test_the_loss_is_what_it_says() -> None:
    attached, targets = trained(attach(bare(), [0], memory=NGRAM, readout=CacheReadout)), ids(seed=1)
    targets[:, 3] = -100
    places = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    log_p = attached(ids(), position_ids=places, use_cache=False).logits
    expected = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1).masked_fill(targets < 0, 0.0)
    torch.testing.assert_close(attached.loss(ids(), targets, DOCUMENTS), expected, rtol=1e-4, atol=1e-4)


def test_the_models_own_loss_follows() -> None:
    attached, targets = trained(attach(bare(), readout=POINTER)), ids(seed=1)
    targets[:, 3] = -100
    output = attached(ids(), labels=targets, num_items_in_batch=torch.tensor(7))
    nll = attached.loss(ids()[:, :-1], targets[:, 1:])
    torch.testing.assert_close(output.loss, nll.sum() / 7, rtol=1e-4, atol=1e-4)


def test_a_store_of_its_states(tmp_path: Any) -> None:
    """kNN-LM on a model that is there: filled, tuned, better on text that it holds."""
    attached = attach(bare("GPT2"), {1: NGRAM})
    batches = [{"tokens": ids(4, 16, seed)} for seed in range(2)]
    assert attached.readout is None
    attached.detach()
    with attach(attached.model, [1], memory=NGRAM) as filled:
        store = build_datastore(filled, batches, tmp_path / "store")
    with attach(
        attached.model, [1], memory=NGRAM, readout=partial(KNNReadout, datastore=store, k=4)
    ) as found:
        tokens = batches[0]["tokens"]
        chosen = tune(found, [{"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}])
        assert chosen.nats < chosen.nats_alone - 1
        nll = found.loss(tokens[:, :-1], tokens[:, 1:])
        torch.testing.assert_close(nll.mean().item(), chosen.nats, rtol=1e-4, atol=1e-4)
        # A step of generation looks for the neighbours of the last state alone.
        cache = found(tokens[:, :8]).past_key_values
        step = found(tokens[:, 8:9], past_key_values=cache).logits
        torch.testing.assert_close(step, found(tokens[:, :9]).logits[:, 8:], rtol=1e-3, atol=1e-3)
        found.save_pretrained(tmp_path / "memory")
        with pytest.raises(ValueError, match="may hold the text"):
            found.train()(tokens)
    given = {"datastore": store}
    with Attached.from_pretrained(attached.model.eval(), tmp_path / "memory", sources=given) as again:
        torch.testing.assert_close(again.loss(tokens[:, :-1], tokens[:, 1:]), nll)
    store.close()


def test_a_readout_that_takes_the_weights_of_the_head_is_refused() -> None:
    attached = attach(bare(), readout=TRIMEReadout)
    with pytest.raises(ValueError, match="multiplies by the weights of the head"):
        attached(ids())


def test_what_it_cannot_read_out() -> None:
    attached = attach(bare(), readout=POINTER)
    for settings in ({"return_dict": False}, {"logits_to_keep": torch.tensor([0, 3])}):
        with pytest.raises(ValueError, match="a readout needs"):
            attached(ids(), **settings)
    assert attached(ids(), logits_to_keep=2).logits.shape == (2, 2, VOCAB)
    torch.testing.assert_close(attached(ids(), logits_to_keep=2).logits, attached(ids()).logits[:, -2:])
    with pytest.raises(ValueError, match="states that the model has just computed"):
        OwnHead(VOCAB)(torch.zeros(1, 2, 16), Context(ids(1, 2)))
