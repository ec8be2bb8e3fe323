from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from lightning import seed_everything

from experiments.ledger import Ledger, LedgerCallback
from gnn import GAT, GCN, MemoryGraphClassifier, NodeDataModule, NodeModule, TunedGNN, random_split
from retrieval.index import Index
from tests.gnn.graphs import random_graph, scattered
from tests.gnn.modules.test_node import toy, trainer

N, FEATURES, CLASSES, WIDTH = 12, 5, 3, 4


def graph():
    x, edges = random_graph(N, n_features=FEATURES)
    mask = torch.zeros(N, dtype=torch.bool)
    mask[[0, 1, 3, 4, 7, 10]] = True
    return x, edges, torch.arange(N) % CLASSES, mask


def classifier(k=3, every=1, n_heads=2, dropout=0.0, **options):
    encoder = GCN(FEATURES, WIDTH, dropout=0.0)
    return scattered(
        MemoryGraphClassifier(
            encoder, WIDTH, CLASSES, k=k, n_heads=n_heads, dropout=dropout, every=every, **options
        )
    )


def naive(module, x, edges, y, mask):
    """A node, an entry and a head at a time, over all pairs."""
    states, scores = module.encoder(x, edges), []
    stored = states.detach() / states.detach().norm(dim=1, keepdim=True)
    attend, scale = module.attend, WIDTH**0.5
    for i in range(N):
        others = [j for j in range(N) if mask[j] and j != i]
        near = sorted(others, key=lambda j: -float(stored[i] @ stored[j]))[: module.k]
        token = scale * states[i] / states[i].norm()
        closeness = [(stored[i] @ stored[j]).float().double() for j in near]
        closeness = [s.sign() * s.abs().log1p() for s in closeness]
        entries = [scale * stored[j] + module.label.weight[y[j]] for j in near]
        update = 0.0
        for head in range(attend.n_heads):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            query = attend.query.weight[rows] @ token / WIDTH**0.5
            one, slope, lead = (attend.trust.weight @ token + attend.trust.bias)[3 * head : 3 * head + 3]
            logits = [
                query @ z + one + slope * s + lead * (s - max(closeness))
                for z, s in zip(entries, closeness, strict=True)
            ]
            shares = torch.stack([*logits, query @ attend.null]).softmax(0)
            heard = sum(share * z for share, z in zip(shares, [*entries, attend.null], strict=True))
            update = update + attend.out.weight[:, rows] @ heard
        scores.append(module.head.weight @ (states[i] + update) + module.head.bias)
    return torch.stack(scores)


def gradients(module, y):
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return torch.autograd.grad((weights * y).sum(), list(module.parameters()))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_all_pairs(k, training):
    x, edges, y, mask = graph()
    module = classifier(k)
    module.rebuild(x, edges, y=y, train_mask=mask)
    module.train(training)
    got, wanted = module(x, edges, y=y, train_mask=mask), naive(module, x, edges, y, mask)
    if training:  # only training nodes ask: they alone have a loss
        torch.testing.assert_close(got[~mask], module.head(module.encoder(x, edges))[~mask])
        got, wanted = got[mask], wanted[mask]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(module, got), gradients(module, wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_it_starts_as_encoder_and_head_alone():
    x, edges, y, mask = graph()
    module = MemoryGraphClassifier(GCN(FEATURES, WIDTH, dropout=0.0), WIDTH, CLASSES, k=3).double()
    for _ in range(2):
        alone = module.head(module.encoder(x, edges))
        torch.testing.assert_close(module.train()(x, edges, y=y, train_mask=mask), alone)
        torch.testing.assert_close(module.eval()(x, edges), alone)
    grads = torch.autograd.grad(module(x, edges).square().sum(), module.attend.out.weight)
    assert grads[0].abs().max() > 0  # it can open


@pytest.mark.parametrize("training", [False, True])
def test_no_label_of_its_own_and_none_of_a_test_node_reaches_a_score(training):
    x, edges, y, mask = graph()
    module = classifier(k=5)  # all other training nodes
    others_changed = 0
    for node in range(N):
        said = []
        for label in range(CLASSES):
            told = y.clone()
            told[node] = label
            module.rebuild(x, edges, y=told, train_mask=mask)
            said.append(module.train(training)(x, edges, y=told, train_mask=mask).detach())
        for other in said[1:]:
            assert torch.equal(other[node], said[0][node])
            if mask[node]:
                others_changed += int((other != said[0]).any(1).sum())
            else:
                assert torch.equal(other, said[0])
    assert others_changed >= 5 * mask.sum()  # those that do hear it


def test_training_says_no_label_back_even_from_a_memory_of_before():
    # The memory is built once, then the weights move: a node's entry no longer equals its state, and is left out still.
    x, edges, y, mask = graph()
    scores = []
    for label in range(CLASSES):
        told = y.clone()
        told[3] = label
        module = classifier(k=5, every=100).train()
        module(x, edges, y=told, train_mask=mask)
        with torch.no_grad():
            for parameter in module.encoder.parameters():
                parameter.mul_(-1.5)
        scores.append(module(x, edges, y=told, train_mask=mask)[3])
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_in_training_a_share_of_the_nodes_hears_nothing_and_the_rest_more():
    x, edges, y, mask = graph()
    module = classifier(dropout=0.5).train()
    alone = module.head(module.encoder(x, edges))
    module.dropout = 0.0
    update = (module(x, edges, y=y, train_mask=mask) - alone)[mask]
    module.dropout = 0.5
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        share = (module(x, edges, y=y, train_mask=mask) - alone)[mask] / update
        torch.testing.assert_close(share, share[:, :1].round().expand_as(share))
        seen |= set(share[:, 0].round().int().tolist())
    assert seen == {0, 2}


def test_a_training_node_is_given_others_and_another_graph_everyone():
    x, edges, y, mask = graph()
    module = classifier(k=6).eval()
    module.rebuild(x, edges, y=y, train_mask=mask)
    states = module.encoder(x, edges)
    found = module.search(states, torch.arange(N), mask)
    for node in range(N):
        heard = module.nodes[found.ids[node][found.mask[node]]].tolist()
        assert sorted(heard) == [j for j in mask.nonzero().flatten().tolist() if j != node]
    everyone = module.search(states, torch.arange(N), torch.zeros(N, dtype=torch.bool))
    assert everyone.mask.all()
    assert module(x, edges).shape == (N, CLASSES)
    assert not torch.allclose(module(x, edges)[mask], module(x, edges, y=y, train_mask=mask)[mask])


def test_a_memory_of_one_gives_its_node_nobody():
    x, edges, y, mask = graph()
    only = torch.zeros_like(mask)
    only[3] = True
    module = classifier().train()
    assert module(x, edges, y=y, train_mask=only).isfinite().all()
    assert not module.search(module.encoder(x, edges)[3:4], torch.tensor([3]), only[3:4]).mask.any()
    assert module.eval()(x, edges, y=y, train_mask=only).isfinite().all()


def test_the_memory_is_built_every_few_steps_as_in_evaluation():
    x, edges, y, mask = graph()
    module = MemoryGraphClassifier(GCN(FEATURES, WIDTH), WIDTH, CLASSES, k=2, every=3).double()
    kept, signatures = [], []
    for _ in range(7):
        signatures.append(module.train().work_signature())
        with torch.no_grad():
            module.encoder.convs[1].lin.weight.add_(torch.randn(WIDTH, 16))
        module(x, edges, y=y, train_mask=mask)
        assert module.encoder.training
        kept.append(module.keys.clone())
    changed = [not torch.equal(a, b) for a, b in zip(kept[1:], kept[:-1], strict=True)]
    assert changed == [False, False, True, False, False, True]
    assert [text.startswith("builds: True") for text in signatures] == [True, *changed]
    clean = module.eval().encoder(x, edges)[mask]
    torch.testing.assert_close(module.keys, clean / clean.norm(dim=1, keepdim=True))
    assert module.labels.tolist() == y[mask].tolist()


def test_it_is_saved_and_loaded_without_running_code(tmp_path):
    x, edges, y, mask = graph()
    module = classifier().train()
    module(x, edges, y=y, train_mask=mask)
    torch.save(module.state_dict(), tmp_path / "module.pt")
    other = classifier()
    with torch.no_grad():
        other.head.bias.add_(1.0)
    smaller = mask.clone()
    smaller[0] = False
    other.train()(x, edges, y=y, train_mask=smaller)
    other.load_state_dict(torch.load(tmp_path / "module.pt", weights_only=True))
    expected = module.eval()(x, edges, y=y, train_mask=mask)
    assert torch.equal(other.eval()(x, edges, y=y, train_mask=mask), expected)
    assert torch.equal(copy.deepcopy(module)(x, edges, y=y, train_mask=mask), expected)
    assert int(other.steps) == 1


def test_searches_and_what_an_index_trains_are_billed():
    x, edges, y, mask = graph()
    module = classifier(index=partial(Index, "IVF2,Flat", nprobe=2)).eval()
    module.rebuild(x, edges, y=y, train_mask=mask)
    with Ledger() as ledger:
        module(x, edges, y=y, train_mask=mask)
    costs = ledger.costs("operator")
    assert costs["mnemograph.search"].flops >= 2 * N * int(mask.sum()) * WIDTH
    assert module.build_work.flops > 0
    flat = classifier().eval()
    flat.rebuild(x, edges, y=y, train_mask=mask)
    flat(x, edges)
    assert flat.build_work.flops == 0
    assert flat.build_work.bytes > 0


@pytest.mark.parametrize(
    "encoder", [partial(GCN, dropout=0.0), partial(GAT, dropout=0.0), partial(TunedGNN, hidden=8, n_layers=1)]
)
def test_it_trains_as_an_encoder_and_steps_that_build_are_billed_apart(encoder):
    seed_everything(0, verbose=False)
    module = MemoryGraphClassifier(encoder(9, 16), 16, 3, k=4, every=4)
    loaded = NodeDataModule(toy(), random_split(40, 7), matrix=module.matrix)
    bills = []
    for every_step in (False, True):
        fresh, run = (
            NodeModule(copy.deepcopy(module)),
            trainer(30, [ledger := LedgerCallback(every_step=every_step)]),
        )
        run.fit(fresh, loaded)
        bills.append(ledger)
        assert run.callback_metrics["train_loss"] < 1.05  # log 3 is 1.0986
        assert fresh.encoder.attend.out.weight.abs().max() > 0
    assert bills[0].train_flops == bills[1].train_flops
    assert bills[0].watched_steps < 6
    first = set(module.convs[0].parameters()) if hasattr(module, "convs") else set(module.parameters())
    groups = NodeModule(module, weight_decay=0.1).configure_optimizers().param_groups
    assert {p for group in groups if group["weight_decay"] for p in group["params"]} == first


@pytest.mark.parametrize("name", ["k", "n_heads", "every"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        MemoryGraphClassifier(GCN(3, 2), 2, 2, **{name: 0})


def test_a_dropout_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="dropout=1"):
        classifier(dropout=1.0)


def test_training_needs_labels_and_refuses_what_is_no_number():
    x, edges, y, mask = graph()
    module = classifier()
    with pytest.raises(ValueError, match="y and train_mask"):
        module.train()(x, edges)
    with pytest.raises(ValueError, match="not finite"):
        module(torch.full_like(x, torch.nan), edges, y=y, train_mask=mask)
