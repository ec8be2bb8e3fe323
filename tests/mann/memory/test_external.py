from functools import partial

import pytest
import torch

from experiments.ledger import Ledger
from mann import AttentionReader, Context, ExternalMemory, PointerReadout, Reader, Transformer
from mann.norm import rms_norm
from retrieval import SuffixSource
from tests.contracts import SOURCE, VOCAB, batch, opened, small_source


def model(source=SOURCE, **settings):
    torch.manual_seed(0)
    memory = partial(ExternalMemory, source=source, k=4, **settings)
    return opened(Transformer(VOCAB, 16, 2, 2, memory={1: memory}))


def test_neighbors_given_beforehand_are_those_found():
    data = batch()
    tokens, documents = data["tokens"], data["documents"]
    found = SOURCE.search(tokens, 4, documents=documents)
    assert torch.equal(model()(tokens, documents), model()(tokens, documents, found))
    other = SOURCE.search(tokens.flip(1), 4)
    assert not torch.equal(model()(tokens, documents), model()(tokens, documents, other))


def test_memory_and_readout_of_one_source_search_once(monkeypatch):
    calls = []
    search = SuffixSource.search

    def counted(self, *args, **kwargs):
        calls.append(self)
        return search(self, *args, **kwargs)

    monkeypatch.setattr(SuffixSource, "search", counted)
    memory = partial(ExternalMemory, source=SOURCE, k=4)
    net = Transformer(
        VOCAB, 16, 2, 2, memory={0: memory, 2: memory}, readout=partial(PointerReadout, source=SOURCE, k=4)
    )
    net(batch()["tokens"])
    assert len(calls) == 1
    net(batch()["tokens"], neighbors=SOURCE.search(batch()["tokens"], 4))
    assert len(calls) == 2  # the one in this line


def test_the_reader_gets_normalised_states_and_the_window_it_asks_for():
    class Spy(Reader):
        before, after = 2, 3

        def __init__(self, d_model, vocab_size):
            super().__init__()
            assert (d_model, vocab_size) == (16, VOCAB)

        def forward(self, x, neighbors, window):
            self.seen = x, neighbors, window
            return torch.zeros_like(x)

    memory, tokens = ExternalMemory(16, SOURCE, k=3, reader=Spy), batch()["tokens"]
    x = 5 * torch.randn(*tokens.shape, 16)
    memory(x, Context(tokens))
    found = SOURCE.search(tokens, 3)
    got, neighbors, window = memory.reader.seen
    torch.testing.assert_close(got, rms_norm(x))
    assert torch.equal(neighbors.ids, found.ids)
    assert torch.equal(window, SOURCE.passages.window(found.ids, 2, 3))


def test_a_checkpoint_refuses_another_store():
    state = model().state_dict()
    model(small_source()).load_state_dict(state)
    with pytest.raises((ValueError, RuntimeError), match="rebuild the store it was trained with"):
        model(small_source(seed=1)).load_state_dict(state)


def test_more_neighbors_than_the_reader_takes_are_named():
    memory = partial(ExternalMemory, source=SOURCE, k=20)
    with pytest.raises(ValueError, match="k=20"):
        Transformer(VOCAB, 16, 1, 1, memory={0: memory})(batch()["tokens"])
    more = partial(ExternalMemory, source=SOURCE, k=20, reader=partial(AttentionReader, k=20))
    Transformer(VOCAB, 16, 1, 1, memory={0: more})(batch()["tokens"])


def test_a_reader_that_asks_is_told_documents_and_what_to_leave_out():
    told = {}

    class Asking(torch.nn.Module):
        before, after = 0, 1

        def __init__(self, d_model, vocab_size):
            super().__init__()

        def forward(self, x, neighbors, window, documents, exclude=None):
            told.update(documents=documents, exclude=exclude)
            return 0 * x

    data = batch()
    exclude = torch.full_like(data["tokens"], 3)
    memory = partial(ExternalMemory, source=SOURCE, reader=Asking)
    net = Transformer(VOCAB, 16, 1, 1, memory={0: memory})
    context = Context(data["tokens"], data["documents"], exclude=exclude)
    net.hidden(context)
    assert torch.equal(told["documents"], context.documents)
    assert torch.equal(told["exclude"], exclude)


def test_it_learns_to_say_what_its_neighbors_said():
    losses = []
    for memory in ({}, {1: partial(ExternalMemory, source=SOURCE, k=1)}):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        net = Transformer(VOCAB, 16, 1, 2, memory=memory)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
        for _ in range(60):
            tokens = torch.randint(0, VOCAB, (8, 12), generator=generator)
            found = SOURCE.search(tokens, 1)
            answers = SOURCE.passages.window(found.ids, 0, 1)[:, :, 0, 1]
            optimizer.zero_grad()
            loss = net.loss(tokens, answers, neighbors=found).mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] / 2


def test_its_search_is_on_the_bill_unless_made_beforehand():
    data = batch()
    found = SOURCE.search(data["tokens"], 4)
    for neighbors in (None, found):
        net = model()
        with Ledger(net) as ledger:
            net(data["tokens"], neighbors=neighbors)
        assert (ledger.bytes_by_phase.get("search", 0) > 0) == (neighbors is None)
