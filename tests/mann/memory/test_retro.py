import numpy as np
import pytest
import torch

from mann import Context, State
from mann.memory.retro import ChunkedCrossAttention
from retrieval import Neighbors, Passages, Source
from tests.contracts import SOURCE, opened, small_source
from tests.mann.inputs import assert_same, labels, randn, runs
from tests.mann.segments import (
    TIME,
    assert_goes_on,
    assert_segments,
    changing,
    in_segments,
    numbered,
    quoting,
)

WIDTH, CHUNK, K, VOCAB = 6, 4, 2, 11


class LastToken(Source):
    """The first places after which the stored text has the same token, whatever came before."""

    depth = 1

    def __init__(self, documents=None):
        tokens = (np.arange(60) * 5 % VOCAB).astype(np.uint16)
        offsets = np.array([0, 20, 40, 60])
        self.passages = Passages(tokens, offsets, documents, vocab_size=VOCAB)
        self.build_flops, self.build_bytes, self.build_seconds = {}, {}, 0.0
        self.fingerprint = "last-token"

    def find(self, context, k, exclude):
        ids = np.full((len(context), k), -1)
        for row, (token, banned) in enumerate(zip(context[:, 0], exclude, strict=True)):
            same = [
                i
                for i in self.passages.entries()
                if self.passages.tokens[i] == token and self.passages.labels[i] != banned
            ]
            ids[row, : len(same[:k])] = same[:k]
        return Neighbors.of(torch.zeros(ids.shape), torch.from_numpy(ids))


STORE = LastToken()


def memory(**settings):
    torch.manual_seed(0)
    settings = {"source": STORE, "k": K, "chunk": CHUNK, "d_read": 8} | settings
    return opened(ChunkedCrossAttention(WIDTH, **settings).double())


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def naive_attention(query, keys, values, heads, sink=None):
    """One query of all heads."""
    read, size = [], len(query) // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = keys[:, part] @ query[part] / size**0.5
        if sink is not None:
            scores = torch.cat([scores, sink[h : h + 1]])
        read.append(scores.softmax(0)[: len(keys)] @ values[:, part])
    return torch.cat(read)


def naive_memory(module, x, found, run):
    """Position by position, neighbour by neighbour."""
    rows, time, _ = x.shape
    width, heads = module.position.shape[1], module.n_heads
    outputs = []
    for b in range(rows):
        for t in range(time):
            start = next(s for s in range(t, -1, -1) if s == 0 or run[b, s - 1] != run[b, s])
            at = start + (t - start + 1) // module.chunk * module.chunk - 1
            if at < start:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            keys, values = [], []
            for i in range(found.k):
                if not found.mask[b, at, i]:
                    continue
                window = module.source.passages.window(found.ids[b, at, i], module.before, module.after)
                e = module.embedding(window) + module.position + module.condition(unit(x[b, at]))
                query, key, value = module.mix(unit(e)).split(width, -1)
                e = e + module.mixed(torch.stack([naive_attention(one, key, value, heads) for one in query]))
                e = e + module.down(module.up(unit(e)).relu().square())
                key, value = module.keys(unit(e)).split(width, -1)
                keys.append(key)
                values.append(value)
            if not keys:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            query = module.query(unit(x[b, t])) + module.place[(t - at) % module.chunk]
            read = naive_attention(query, torch.cat(keys), torch.cat(values), heads, module.sink)
            outputs.append(module.out(read))
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize(("time", "chunk"), [(3, 4), (14, 4), (9, 1), (13, 3)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_it_equals_position_by_position(time, chunk, packed):
    module, x = memory(chunk=chunk), randn(2, time, WIDTH)
    documents, tokens = labels(2, time) if packed else None, numbered(x)
    found = STORE.search(tokens, K, documents=documents)
    # Some are missing.
    found = Neighbors(found.scores, found.ids, found.mask & (torch.arange(time)[:, None] % 3 != 1))
    here = Context(tokens, documents, found)
    if time < chunk:
        assert not module(x, here).any()
        return
    assert_same(
        lambda x, *_: module(x, here),
        lambda x, *_: naive_memory(module, x, found, runs(documents, 2, time)),
        x,
        *module.parameters(),
        tolerance=1e-9,
    )


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("store", [STORE, quoting(VOCAB + 13)], ids=["last token", "six tokens"])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(chunk, store, documents, tmp_path):
    module = memory(chunk=chunk, source=store)
    assert_segments(module, randn(3, TIME, WIDTH), documents)
    if chunk > 1 or store is not STORE:
        assert_goes_on(module, randn(3, TIME, WIDTH), documents, tmp_path)


class Asked(LastToken):
    """Remembers how many contexts each search was for."""

    def __init__(self, documents=None):
        super().__init__(documents)
        self.asked = []

    def find(self, context, k, exclude):
        self.asked.append(context[:, 0].tolist())
        return super().find(context, k, exclude)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_a_search_is_made_once_for_each_chunk_at_its_end(documents):
    store, x = Asked(), randn(3, TIME, WIDTH)
    first, second, tokens = memory(source=store), memory(source=store, chunk=2 * CHUNK), numbered(x)
    labels = torch.zeros_like(tokens) if documents is None else documents
    run = runs(labels, 3, TIME)
    ends = torch.tensor(
        [
            [(t + 1 - int((run[b] == run[b, t]).nonzero()[0])) % CHUNK == 0 for t in range(TIME)]
            for b in range(3)
        ]
    )
    here = Context(tokens, documents)
    y = first(x, here)
    assert store.asked == [tokens[ends].tolist()]
    # Another memory of the same chunks shares the search, one of others does not.
    assert torch.equal(memory(source=store)(x, here), y)
    assert len(store.asked) == 1
    second(x, here)
    assert len(store.asked) == 2
    assert len(store.asked[1]) <= ends.sum() / 2
    # Neighbours of every position, there already, say the same; so do those of the ends of chunks alone.
    found = store.search(tokens, K, documents=documents)
    assert torch.equal(first(x, Context(tokens, documents, found)), y)
    sparse = store.search(tokens, K, documents=documents, at=ends)
    assert sparse.mask.any(-1)[ends].all()
    assert not sparse.mask[~ends].any()
    assert torch.equal(first(x, Context(tokens, documents, sparse)), y)
    assert first.every == CHUNK


def test_over_segments_chunks_are_searched_once_too():
    store, x = Asked(), randn(1, TIME, WIDTH)
    in_segments(memory(source=store), x, None, State())
    assert [token for asked in store.asked for token in asked] == numbered(x)[0, CHUNK - 1 :: CHUNK].tolist()


def test_what_is_excluded_is_not_found():
    store, x = LastToken(documents=np.array([5, 5, 6])), randn(1, 16, WIDTH)
    module, tokens = memory(source=store), numbered(x)
    own = torch.full_like(tokens, 5)
    found = store.search(tokens, K, exclude=own)
    y = module(x, Context(tokens, exclude=own))
    assert torch.equal(y, module(x, Context(tokens, neighbors=found)))
    assert not torch.equal(y, module(x, Context(tokens)))


@pytest.mark.parametrize("changed", range(16))
def test_a_token_is_heard_from_the_end_of_its_chunk_on(changed):
    module, x = memory(), randn(1, 16, WIDTH)
    tokens = numbered(x)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 3) % VOCAB
    same = (module(x, Context(tokens)) == module(x, Context(other))).all(-1)[0].tolist()
    # The search sees the last token alone: one within a chunk is not heard, the last of one in its span.
    last = changed % CHUNK == CHUNK - 1
    assert same == [not (last and changed <= t < changed + CHUNK) for t in range(16)]


def test_a_search_that_sees_more_is_heard_from_the_end_of_the_chunk_on():
    module, x = memory(source=SOURCE), randn(1, 16, WIDTH)
    tokens = torch.from_numpy(SOURCE.passages.tokens[100:116].astype(np.int64))[None]
    other = tokens.clone()
    other[0, 6] = 1
    same = (module(x, Context(tokens)) == module(x, Context(other))).all(-1)[0]
    assert same[:7].all()
    assert not same[7:11].any()


def test_a_state_is_heard_at_its_place_and_in_the_span_that_it_opens():
    module, x = memory(), randn(1, 16, WIDTH)
    for t in range(16):
        (grad,) = torch.autograd.grad(module(x, Context(numbered(x)))[0, t].sum(), x)
        heard = grad[0].any(-1).nonzero().flatten().tolist()
        opens = (t + 1) // CHUNK * CHUNK - 1
        assert heard == (sorted({opens, t}) if opens >= 0 else [])


def test_what_is_missing_is_never_read():
    # All that matches stands in the excluded document: nothing may be put in its place.
    store = LastToken(documents=np.array([5, 5, 5]))
    x = randn(1, 16, WIDTH)
    tokens = numbered(x)
    own = store.search(tokens, K, exclude=torch.full_like(tokens, 5))
    assert not own.mask.any()
    assert not memory(source=store)(x, Context(tokens, neighbors=own)).any()
    # One document is left, which has fewer neighbours than asked for.
    store = LastToken(documents=np.array([5, 5, 6]))
    found = store.search(tokens, K, exclude=torch.full_like(tokens, 5))
    assert (store.passages.labels[found.ids[found.mask]] == 6).all()
    assert (found.mask.sum(-1) == 1).any()
    y = memory(source=store)(x, Context(tokens, neighbors=found))
    anything = torch.where(found.mask, found.ids, 7)
    assert y.any()
    assert torch.equal(
        memory(source=store)(x, Context(tokens, neighbors=Neighbors(found.scores, anything, found.mask))), y
    )


def test_a_checkpoint_refuses_another_store():
    state = memory(source=SOURCE).state_dict()
    memory(source=small_source()).load_state_dict(state)
    with pytest.raises((ValueError, RuntimeError), match="rebuild the store it was trained with"):
        memory(source=small_source(seed=1)).load_state_dict(state)


def test_it_works_without_numbers():
    tokens = torch.zeros(2, 14, dtype=torch.long, device="meta")
    for documents in (None, tokens):
        here = Context(tokens, documents)
        for module in (memory(), memory()):
            y = module.to("meta")(torch.empty(2, 14, WIDTH, device="meta").double(), here)
            assert y.shape == (2, 14, WIDTH)


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="at least 1 token"):
        memory(chunk=0)
    with pytest.raises(ValueError, match="choose a divisor"):
        memory(n_heads=3)
