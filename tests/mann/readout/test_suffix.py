from collections import Counter

import numpy as np
import pytest
import torch

import mann.readout.suffix
from experiments.ledger import Ledger
from mann import Context, Transformer
from mann.readout.suffix import SuffixReadout
from retrieval import BM25Source, Neighbors, SuffixSource
from tests.contracts import SOURCE, VOCAB, batch, opened
from tests.mann.inputs import assert_same, randn
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing, quoting
from tests.retrieval.stores import contexts, documents, match_length, queries, seen, windows

D = 5


def counted(source, tokens, labels, b, t, banned=-1):
    """Length of the longest match, and how often which token follows: all entries looked at."""
    asked = seen(tokens, labels, b, t)[-source.depth :]
    found: dict[int, Counter] = {}
    for p, context, document in contexts(source.passages):
        if document != banned:
            length = min(match_length(asked, context), source.depth)
            found.setdefault(length, Counter())[int(source.passages.tokens[p + 1])] += 1
    best = max(found, default=0)
    return best, found[best] if best else Counter()


@pytest.mark.parametrize("make", [documents, windows])
@pytest.mark.parametrize("piece", [1, 7, 1 << 22])
@pytest.mark.parametrize("hide", [False, True])
def test_counts_are_those_of_looking_at_every_entry(make, piece, hide, monkeypatch):
    monkeypatch.setattr(mann.readout.suffix, "PIECE", piece)
    source = SuffixSource(make(3), max_order=5)
    source.chunk = 20
    model, given = SuffixReadout(D, 6, source), queries(4, source.passages)
    tokens, labels, exclude = given["tokens"], given["documents"], given["exclude"] if hide else None
    targets = torch.randint(-1, 6, tokens.shape, generator=torch.Generator().manual_seed(0))
    targets[targets < 0] = -100
    assert model.counts is not None
    counts, length, total = model.counts.search(Context(tokens, labels), exclude, None)
    hits, again, matches = model.counts.search(Context(tokens, labels), exclude, targets)
    assert torch.equal(length, again)
    assert torch.equal(total, matches)
    for b, t in np.ndindex(*tokens.shape):
        best, expected = counted(source, tokens, labels, b, t, int(exclude[b, t]) if hide else -1)
        assert length[b, t] == best
        assert counts[b, t].tolist() == [expected[v] for v in range(6)]
        assert total[b, t] == sum(expected.values())
        assert hits[b, t] == expected[int(targets[b, t])]


def naive_log_probabilities(model, x, counts):
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        p = model.softmax.head(x[b, t]).softmax(0)
        length, found = counts[b][t]
        if found:
            n = sum(found.values())
            share = torch.sigmoid(model.by_length[length] + model.by_count * np.log(n))
            followed = torch.tensor([found[v] / n for v in range(VOCAB)], dtype=x.dtype)
            p = (1 - share) * p + share * followed
        rows.append(p.log())
    return torch.stack(rows).view(*x.shape[:2], VOCAB)


@pytest.mark.parametrize("with_targets", [False, True], ids=["log-probabilities", "loss"])
@pytest.mark.parametrize("given", [False, True], ids=["searched", "found beforehand"])
def test_it_equals_its_formula(with_targets, given):
    torch.manual_seed(0)
    model = opened(SuffixReadout(D, VOCAB, SOURCE, k=3)).double()
    data = {name: tensor[:, 5:25] for name, tensor in batch().items()}
    tokens, labels, targets = data["tokens"], data["documents"], data["targets"]
    here = Context(
        tokens,
        labels,
        SOURCE.search(tokens, 3, documents=labels) if given else None,
        exclude=torch.full_like(tokens, -1),
    )
    counts = [[counted(SOURCE, tokens, labels, b, t) for t in range(20)] for b in range(2)]
    if given:
        found = SOURCE.search(tokens, 3, documents=labels)
        answers = SOURCE.passages.window(found.ids, 0, 1)[..., 1]
        for b, t in np.ndindex(2, 20):
            best = found.scores[b, t].max()
            longest = found.mask[b, t] & (found.scores[b, t] == best)
            counts[b][t] = int(best), Counter(answers[b, t][longest].tolist())

    def fast(x, *_):
        return model(x, here, targets if with_targets else None)

    def naive(x, *_):
        log_p = naive_log_probabilities(model, x, counts)
        nll = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return nll.masked_fill(targets < 0, 0) if with_targets else log_p

    assert_same(fast, naive, randn(2, 20, D), *model.parameters(), tolerance=1e-9)


def test_gradients_are_those_of_differences():
    model, data = (
        opened(SuffixReadout(D, VOCAB, SOURCE)).double(),
        {n: x[:, 15:25] for n, x in batch().items()},
    )
    here = Context(data["tokens"], data["documents"], exclude=data["exclude"])
    assert torch.autograd.gradcheck(lambda x: model(x, here, data["targets"]), (randn(2, 10, D),))


def test_hidden_documents_are_not_counted():
    """A row that is in the store, and predicts itself unless its own document is left out."""
    tokens = torch.from_numpy(SOURCE.passages.tokens[90:130].astype(np.int64))[None]
    model = opened(SuffixReadout(D, VOCAB, SOURCE))
    with torch.no_grad():
        model.by_length.fill_(5.0)
        model.by_count.zero_()
    own, none = torch.ones_like(tokens[:, :-1]), torch.full_like(tokens[:, :-1], -1)
    here, x = Context(tokens[:, :-1], exclude=none), torch.zeros(1, 39, D)
    open_loss = model(x, here, tokens[:, 1:])
    with model.hiding(own):
        hidden_loss = model(x, here, tokens[:, 1:])
        log_p = model(x, here)
    assert open_loss[:, 5:].mean() < 0.1 < 2 < hidden_loss[:, 5:].mean()
    torch.testing.assert_close(hidden_loss, -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1))
    assert torch.equal(model(x, here, tokens[:, 1:]), open_loss)
    told = Context(tokens[:, :-1], exclude=own)
    assert torch.equal(model(x, told, tokens[:, 1:]), hidden_loss)
    assert torch.equal(model(x, told), log_p)
    with pytest.raises(ValueError, match="gives the answers away: give exclude="):
        model(x, Context(tokens[:, :-1]), tokens[:, 1:])
    # Reading teaches nothing.
    assert torch.equal(model(x, Context(tokens[:, :-1])), model(x, here))
    assert torch.equal(model.eval()(x, Context(tokens[:, :-1]), tokens[:, 1:]), open_loss)


def test_without_a_match_it_is_the_softmax():
    model, tokens = opened(SuffixReadout(D, VOCAB, SOURCE)), batch()["tokens"]
    nobody = Context(tokens, None, Neighbors.none(*tokens.shape, 4))
    x = torch.randn(*tokens.shape, D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x, nobody), model.softmax(x, nobody))
    torch.testing.assert_close(model(x, nobody, tokens), model.softmax(x, nobody, tokens))


def test_the_count_is_on_the_bill():
    model = Transformer(VOCAB, D + 1, 1, 1, readout=lambda d, v: SuffixReadout(d, v, SOURCE)).eval()
    with Ledger(model) as ledger:
        model.loss(**batch()).sum().backward()
    context, targets = Context(batch()["tokens"], batch()["documents"]), batch()["targets"]
    found = model.readout.counts
    total = found.search(context, None, targets)[2]
    assert 0 < ledger.by_operator["mnemograph.search"] <= total.sum()
    assert ledger.bytes_by_module["readout"] > 12 * ledger.by_operator["mnemograph.search"]


def test_other_sources_are_counted_by_their_neighbors():
    source = BM25Source(SOURCE.passages)
    model, data = opened(SuffixReadout(D, VOCAB, source, k=4)), batch()
    x = torch.zeros(*data["tokens"].shape, D)
    log_p = model(x, Context(data["tokens"], data["documents"]))
    torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros(2, 80), rtol=0, atol=1e-5)
    # Only counts of its own can be told to hide something by it.
    with model.hiding(data["exclude"]), pytest.raises(ValueError, match="gives the answers away"):
        model(x, Context(data["tokens"], data["documents"]), data["targets"])


@pytest.mark.parametrize(
    "source", [quoting(VOCAB), BM25Source(quoting(VOCAB).passages, depth=5)], ids=["counts", "neighbours"]
)
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(source, documents, tmp_path):
    model = opened(SuffixReadout(D, VOCAB, source, k=4)).double()
    assert_segments(model, randn(3, TIME, D), documents)
    assert_goes_on(model, randn(3, TIME, D), documents, tmp_path)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="tokenizer"):
        SuffixReadout(D, VOCAB + 1, SOURCE)
    model = SuffixReadout(D, VOCAB, SOURCE)
    with pytest.raises(ValueError, match="vocabulary"):
        model(torch.zeros(1, 2, D), Context(torch.tensor([[0, VOCAB]])))
