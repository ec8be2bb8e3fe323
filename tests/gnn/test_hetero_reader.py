from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError

from experiments.ledger import Ledger
from gnn import HeteroReader, assert_blind, assert_causal, assert_incremental
from gnn.layers import HeteroAttention
from retrieval.neighbors import Neighbors
from tests.gnn.inputs import opened, random_inputs

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
ENTRIES = 5


def store(w=4, vocab_size=11):
    """Windows of a few entries, some places outside the passage, and one entry whose retrieved place is none."""
    windows = torch.randint(1, vocab_size, (ENTRIES, w), generator=torch.Generator().manual_seed(5))
    windows[1, 3], windows[2, 0], windows[4, 1] = 0, 0, 0
    return windows


def inputs(w=4, **sizes):
    """States and neighbours that are entries of the store; what is masked says nonsense."""
    x, neighbors, noise = random_inputs(w=w, **sizes)
    ids = torch.randint(0, ENTRIES, neighbors.ids.shape, generator=torch.Generator().manual_seed(4))
    ids = ids * neighbors.mask
    return (
        x,
        dataclasses.replace(neighbors, ids=ids),
        torch.where(neighbors.mask[..., None], store(w)[ids], noise),
    )


def build(*, softmax="joint", score="hgt", **settings):
    torch.manual_seed(0)
    layer = partial(HeteroAttention, n_heads=2, softmax=softmax, score=score)
    settings = {"before": 1, "after": 2, "width": 6, "layer": layer} | settings
    return opened(HeteroReader(8, 11, **settings).double())


def results(reader, x, neighbors, window, *rest):
    x = x.clone().requires_grad_()
    update = reader(x, neighbors, window, *rest)
    weight = torch.randn(update.shape, generator=torch.Generator().manual_seed(3), dtype=update.dtype)
    (update * weight).sum().backward()
    return {"update": update.detach(), "x": x.grad} | {name: p.grad for name, p in reader.named_parameters()}


def assert_same(found, wanted, tolerance=1e-9):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("score", ["hgt", "gat", "gatv2", "mean"])
@pytest.mark.parametrize("softmax", ["joint", "per type"])
@pytest.mark.parametrize(("reach", "documents"), [(0, None), (2, DOCUMENTS), (None, None)])
@pytest.mark.parametrize("n_layers", [2, 3])
def test_once_for_each_entry_equals_message_passing(score, softmax, reach, documents, n_layers):
    stamps = torch.randint(0, 4, (2, 6, 4), generator=torch.Generator().manual_seed(2))
    settings = {"score": score, "softmax": softmax, "reach": reach, "n_layers": n_layers}
    naive = results(build(amortised=False, **settings), *inputs(), stamps, documents)
    assert naive["update"].abs().max() > 0.1
    assert all(grad is not None for grad in naive.values())
    assert_same(results(build(**settings), *inputs(), stamps, documents), naive)


def test_a_remembered_store_says_the_same_and_is_no_longer_trained():
    reader, (x, neighbors, window) = build(n_layers=3), inputs()
    before = results(reader, x, neighbors, window)
    reader.zero_grad()
    reader.remember(store(), chunk=2)
    assert reader.remembered.shape == (3, 2, ENTRIES, 2, 3)
    assert "remembered" not in reader.state_dict()
    after = results(reader, x, neighbors, window)
    assert_same(
        {name: after[name] for name in ("update", "x")}, {name: before[name] for name in ("update", "x")}
    )
    assert after["token.weight"] is None
    assert after["layers.0.query.token.weight"] is not None
    reader.forget()
    reader.zero_grad()
    assert_same(results(reader, x, neighbors, window), before)


def test_a_store_too_small_for_its_neighbours_is_an_error():
    reader, (x, neighbors, window) = build(), inputs()
    reader.remember(store()[:2])
    with pytest.raises(IndexError):
        reader(x, neighbors, window)


def test_each_distinct_entry_is_computed_once():
    x, neighbors, window = inputs(batch=2, time=30, k=8)
    flops = {}
    for name, settings in {"each": {"amortised": False}, "once": {}, "remembered": {}}.items():
        reader = build(**settings)
        if name == "remembered":
            reader.remember(store())
        with Ledger() as ledger, torch.no_grad():
            reader(x, neighbors, window)
        flops[name] = ledger.flops
    assert flops["each"] > 4 * flops["once"] > 4 * flops["remembered"]
    # What is left are the tokens' own matrices: entering, four and two relations a layer, leaving; and 2 * 8 rows each.
    tokens = 2 * 60 * (8 * 6 * 2 + 2 * (4 * 6 * 6 + 2 * 6 * 3))
    assert tokens < flops["remembered"] < 3 * tokens


@pytest.mark.parametrize("amortised", [True, False])
@pytest.mark.parametrize("reach", [0, 2, None])
def test_it_lets_nothing_of_the_future_through(amortised, reach):
    reader, (x, neighbors, window) = build(amortised=amortised, reach=reach), inputs()
    stamps = torch.randint(0, 6, neighbors.ids.shape, generator=torch.Generator().manual_seed(2))
    # A poisoned window must not pass for that of a visible entry: entries are told apart by their ids.
    apart = torch.arange(neighbors.ids.numel()).view_as(neighbors.ids)
    assert_blind(reader, x, dataclasses.replace(neighbors, ids=apart), window, stamps)
    assert_causal(lambda x: reader(x, neighbors, window, stamps), x)

    def first(n):
        of = Neighbors(neighbors.scores[:, :n], neighbors.ids[:, :n], neighbors.mask[:, :n])
        return reader(x[:, :n], of, window[:, :n], stamps[:, :n])

    assert_incremental(first, 6, tolerance=1e-12)


def test_documents_are_kept_apart():
    reader, (x, neighbors, window) = build(reach=None), inputs()
    found = reader(x, neighbors, window, None, DOCUMENTS)
    other = x.clone()
    other[0, 3:5] += 1
    changed = (reader(other, neighbors, window, None, DOCUMENTS) - found).abs().amax(-1) > 0
    assert changed.tolist() == [[False, False, False, True, True, False], [False] * 6]


def test_with_per_type_softmax_bad_neighbours_cannot_be_refused_with_joint_they_can():
    x, neighbors, window = inputs(time=3)
    nobody = dataclasses.replace(neighbors, mask=torch.zeros_like(neighbors.mask))
    for softmax, same in (("joint", True), ("per type", False)):
        reader = build(softmax=softmax)
        with torch.no_grad():  # a token hears itself far better than any entry, whose values are large
            for layer in reader.layers:
                layer.query["token"].weight.copy_(torch.eye(6))
                layer.key["token"].weight.copy_(torch.eye(6))
                layer.attend[0] = torch.eye(3)
                layer.prior.copy_(torch.tensor([[1e4], [0.0]]))
                layer.message[1] *= 100
        assert torch.allclose(reader(x, neighbors, window), reader(x, nobody, window)) == same


def test_it_starts_as_nothing():
    x, neighbors, window = inputs()
    reader = HeteroReader(8, 11, after=2).double()
    assert not reader(x, neighbors, window).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"after": 0}, "the answer stands one after"),
        ({"n_layers": 1}, "heard in the second round"),
        ({"reach": -1}, "reach >= 0 or None"),
        ({"width": 7}, "does not divide"),
        ({"softmax": "none"}, "softmax"),
        ({"score": "dot"}, "score"),
    ],
)
def test_what_makes_no_reader_is_refused(settings, message):
    with pytest.raises((ValueError, TypeCheckError), match=message):
        build(**settings)


def test_inputs_that_do_not_belong_together_are_refused():
    reader, (x, neighbors, window) = build(), inputs()
    with pytest.raises(ValueError, match="7 wide, this reader was built with d_model=8"):
        reader(x[..., :7], neighbors, window)
    with pytest.raises(ValueError, match=r"pass passages.window\(neighbors.ids, before=1, after=2\)"):
        reader(x, neighbors, window[..., :3])
    with pytest.raises(ValueError, match="neighbours of"):
        reader(x[:, :4], neighbors, window[:, :4])
