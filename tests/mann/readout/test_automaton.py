import pytest
import torch
from jaxtyping import TypeCheckError

from experiments.ledger import Ledger
from mann import Context
from mann.readout.automaton import Automaton
from mann.readout.knn import KNNReadout
from retrieval import Datastore
from tests.contracts import VOCAB, opened
from tests.mann.inputs import labels, randn

D, K = 4, 5


def text(seed, n_documents=6, length=12, vocab=4):
    """Documents, and a state for each place: what its last two tokens give, about."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (n_documents, length), generator=generator)
    table = torch.randn(vocab, 2, D // 2, generator=torch.Generator().manual_seed(1))
    before = tokens.roll(1, 1)
    states = torch.cat([table[tokens, 0], 0.3 * table[before, 1]], -1)
    return tokens, states + 0.05 * torch.randn(states.shape, generator=generator)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    tokens, states = text(0)
    # In one document a place is missing; the one after it goes on counting where it ends.
    places = torch.arange(11) + ((torch.arange(6)[:, None] == 2) & (torch.arange(11) >= 6))
    places[3] += 12
    entries = [(states[d, :-1], tokens[d, 1:], torch.full((11,), d), places[d]) for d in range(len(tokens))]
    made = Datastore.build(
        tmp_path_factory.mktemp("automaton") / "store", entries, metric="l2", dtype="float32"
    )
    made.delete([30])
    return made


def naive(store, queries, k, pointers, tokens, documents, rules):
    """Row by row, step by step, entry by entry."""
    ids = store.ids()
    columns = (column(ids) for column in (store.keys, store.values, store.documents, store.positions))
    entries = dict(zip(ids.tolist(), zip(*columns, strict=True), strict=True))
    found, searches = [], 0
    for b in range(tokens.shape[0]):
        before = []
        for t in range(tokens.shape[1]):
            if t and documents is not None and documents[b, t] != documents[b, t - 1]:
                before = []
            follow = []
            for i in before:
                _, value, document, position = entries[i]
                if value != tokens[b, t] or i + 1 not in entries:
                    continue
                key, _, next_document, next_position = entries[i + 1]
                if (next_document, next_position) != (document, position + 1):
                    continue
                if "exclude" in rules and rules["exclude"][b, t] == document:
                    continue
                late = "visible_at" in rules and next_position >= rules["visible_at"][b, t]
                if late and ("own" not in rules or rules["own"][b, t] in (document, -1)):
                    continue
                follow.append((float((queries[b, t] - key).square().sum()), i + 1))
            if len(follow) < pointers:
                searches += 1
                one = {name: rule[b, t] for name, rule in rules.items()}
                result = store.search(queries[b, t], k, **one)
                before = result.ids[result.mask].tolist()
            else:
                before = [i for _, i in sorted(follow)]
            found.append(before)
    return found, searches


def all_rules(tokens):
    at, generator = torch.arange(tokens.shape[1]).expand_as(tokens), torch.Generator().manual_seed(8)

    def some(low, high):
        return torch.randint(low, high, tokens.shape, generator=generator)

    return [
        {},
        {"exclude": torch.arange(len(tokens))[:, None].expand_as(tokens)},
        {"visible_at": at, "own": torch.arange(len(tokens))[:, None].expand_as(tokens)},
        {"visible_at": at},
        {"exclude": some(-1, len(tokens)), "visible_at": some(0, 20), "own": some(-1, len(tokens))},
    ]


@pytest.mark.parametrize("pointers", [1, 2, K + 1])
@pytest.mark.parametrize("rule", range(5))
@pytest.mark.parametrize("apart", [False, True], ids=["one document", "documents"])
def test_it_finds_what_walking_finds(store, pointers, rule, apart):
    tokens, states = text(0)
    documents = labels(*tokens.shape) if apart else None
    rules = all_rules(tokens)[rule]
    automaton = Automaton(store, pointers)
    found = automaton.search(states, K, tokens=tokens, documents=documents, **rules)
    expected, searches = naive(store, states, K, pointers, tokens, documents, rules)
    got = [
        ids[mask].tolist()
        for ids, mask in zip(found.ids.flatten(0, 1), found.mask.flatten(0, 1), strict=True)
    ]
    assert got == expected
    assert automaton.asked == tokens.numel()
    assert automaton.searched == searches
    assert automaton.saved == 1 - searches / tokens.numel()
    scores = -(states[..., None, :] - store.keys(found)).square().sum(-1)
    torch.testing.assert_close(found.scores, scores.masked_fill(~found.mask, 0.0))


def test_with_more_pointers_than_neighbors_it_is_the_store(store):
    tokens, states = text(3)
    automaton = Automaton(store, K + 1)
    found, plain = automaton.search(states, K, tokens=tokens), store.search(states, K)
    assert torch.equal(found.ids, plain.ids)
    assert torch.equal(found.scores, plain.scores)
    assert automaton.saved == 0


def test_it_saves_searches_and_their_price(store):
    tokens, states = text(3)
    automaton = Automaton(store)
    with Ledger() as saved:
        automaton.search(states, K, tokens=tokens)
    with Ledger() as whole:
        store.search(states, K)
    assert 0.3 < automaton.saved < 1
    assert 0 < saved.flops < 0.8 * whole.flops


def test_what_comes_later_changes_nothing(store):
    tokens, states = text(3)
    whole = Automaton(store).search(states, K, tokens=tokens)
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 4
    again = Automaton(store).search(states, K, tokens=changed)
    assert torch.equal(again.ids[:, :7], whole.ids[:, :7])
    assert not torch.equal(again.ids[:, 7:], whole.ids[:, 7:])
    one = Automaton(store).search(states[2:3], K, tokens=tokens[2:3])
    assert torch.equal(one.ids[0], whole.ids[2])


def test_a_readout_reads_it_as_a_store(store):
    tokens, states = text(3)
    automaton = Automaton(store, 2)
    model = opened(KNNReadout(D, VOCAB, datastore=automaton, k=K)).eval()
    documents = labels(*tokens.shape)
    here, targets = Context(tokens, documents), randn(*tokens.shape).abs().long() % VOCAB
    log_p = model(states, here)
    found, answers = model.find(states, here)
    direct = automaton.search(states, K, tokens=tokens, documents=here.documents)
    assert torch.equal(found.ids, direct.ids)
    assert torch.equal(answers[found.mask], store.values(found.ids[found.mask]).long())
    torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros(tokens.shape), rtol=0, atol=1e-5)
    loss = model(states, here, targets)
    torch.testing.assert_close(loss, -log_p.gather(-1, targets[..., None]).squeeze(-1))


def test_errors_say_what_to_do(store):
    with pytest.raises(ValueError, match="1 or more"):
        Automaton(store, 0)
    tokens, states = text(3)
    with pytest.raises((ValueError, TypeCheckError), match="tokens"):
        Automaton(store).search(states, K, tokens=tokens[:, :-1])
    with pytest.raises((ValueError, TypeCheckError), match="own"):
        Automaton(store).search(states, K, tokens=tokens, own=tokens[:1])
    assert Automaton(store).search(states[:, :0], K, tokens=tokens[:, :0]).ids.shape == (6, 0, K)
