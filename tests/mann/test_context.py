import pytest
import torch

from mann import Context, State, Transformer, context
from retrieval import Passages
from tests.contracts import SOURCE, VOCAB, batch
from tests.mann.inputs import labels, runs
from tests.mann.segments import LENGTHS, TIME, changing, numbered


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("back", [1, 2, 5, 11, 12, 30])
def test_same_document_counts_back_to_the_last_change(packed, back):
    documents = labels(3, 12) if packed else None
    run, inside = (
        runs(documents, 3, 12),
        Context(torch.zeros(3, 12, dtype=torch.int64), documents).same_document(back),
    )
    for row in range(3):
        for t in range(12):
            assert inside[row, t] == (t >= back and run[row, t] == run[row, t - back])


def test_a_label_that_returns_is_another_document():
    tokens = torch.ones(1, 5, dtype=torch.int64)
    inside = Context(tokens, torch.tensor([[3, 3, 8, 3, 3]])).same_document(2)
    assert not inside.any()
    mask = Context(tokens, torch.tensor([[3, 3, 8, 3, 3]])).attention_masks(8, torch.float32)[0][0]
    assert (mask[4] == 0).tolist() == [False, False, False, True, True]


def test_only_changes_of_label_matter():
    tokens, documents = torch.ones(2, 9, dtype=torch.int64), labels(2, 9)
    one = Context(tokens, documents).attention_masks(4, torch.float32)
    other = Context(tokens, 100 - 7 * documents).attention_masks(4, torch.float32)
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_it_searches_once_per_forward_pass():
    data = batch()
    here = Context(data["tokens"], data["documents"])
    found = here.retrieve(SOURCE, 3)
    assert here.retrieve(SOURCE, 3) is found
    assert here.retrieve(SOURCE, 2).k == 2
    given = Context(data["tokens"], data["documents"], found)
    assert given.retrieve(SOURCE, 5) is found


@pytest.mark.parametrize("earlier", [0, 1, 5, 30])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_a_stream_begins_in_earlier_segments_of_the_same_document(earlier, documents):
    tokens = numbered(torch.empty(3, TIME)) + 1
    run, state, begin = runs(documents, 3, TIME), State(), 0
    for length in LENGTHS:
        here = slice(begin, begin + length)
        labels = None if documents is None else documents[:, here]
        stream, found = Context(tokens[:, here], labels, state=state).stream(earlier)
        assert stream.shape == found.shape == (3, earlier + length)
        for b, place in [(b, place) for b in range(3) for place in range(earlier + length)]:
            t = begin - earlier + place
            there = t >= 0 and (t >= begin or run[b, t] == run[b, begin])
            assert stream[b, place] == (tokens[b, t] if there else 0)
            assert found[b, place] == (run[b, t] - run[b, begin] if there else -1)
        begin += length


def test_a_search_is_told_what_to_leave_out_and_where():
    tokens, exclude = batch()["tokens"], torch.ones(2, 80, dtype=torch.int64)
    own = Context(tokens, exclude=exclude).retrieve(SOURCE, 4)
    assert torch.equal(own.ids, SOURCE.search(tokens, 4, exclude=exclude).ids)
    assert not torch.equal(own.ids, Context(tokens).retrieve(SOURCE, 4).ids)
    here, at = Context(tokens, exclude=exclude), torch.arange(80).expand(2, 80) % 3 == 0
    some = here.retrieve(SOURCE, 4, at)
    assert torch.equal(some.ids, torch.where(at[..., None], own.ids, 0))
    assert here.retrieve(SOURCE, 4, at.clone()) is some
    assert here.retrieve(SOURCE, 4, ~at) is not some
    everywhere = here.retrieve(SOURCE, 4)
    assert torch.equal(everywhere.ids, own.ids)
    first = Context(tokens)
    assert first.retrieve(SOURCE, 4) is first.retrieve(SOURCE, 4, at)


def test_wrong_shapes_are_named():
    with pytest.raises((ValueError, TypeError), match="exclude"):
        Context(torch.zeros(2, 3, dtype=torch.int64), exclude=torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises((ValueError, TypeError), match=r"add a batch dimension|tokens"):
        Context(torch.zeros(4, dtype=torch.int64))
    with pytest.raises((ValueError, TypeError), match=r"one document label per token|documents"):
        Context(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))


def test_a_window_is_read_once_for_all_who_want_no_more_of_it(monkeypatch):
    calls = []
    read = Passages.window

    def counted(self, *args):
        calls.append(args[1:])
        return read(self, *args)

    here = Context(batch()["tokens"])
    ids = here.retrieve(SOURCE, 3).ids
    monkeypatch.setattr(Passages, "window", counted)
    for before, after in ((1, 2), (0, 1), (1, 2), (2, 0), (2, 0)):
        assert torch.equal(here.window(SOURCE, 3, before, after), read(SOURCE.passages, ids, before, after))
    assert calls == [(1, 2), (2, 0)]


def test_layers_of_one_forward_pass_share_what_positions_turn_by(monkeypatch):
    calls = []
    made = context.rotary_tables

    def counted(*args):
        calls.append(args)
        return made(*args)

    monkeypatch.setattr(context, "rotary_tables", counted)
    Transformer(VOCAB, 16, 3, 2)(batch()["tokens"])
    assert len(calls) == 1
    here = Context(batch()["tokens"])
    tables = {key: here.rotations(*key) for key in ((8, 1e4, torch.float32), (8, 1e2, torch.float32))}
    for key, found in tables.items():
        expected = made(here.tokens.shape[1], *key[:2], torch.device("cpu"), key[2])
        assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
        assert here.rotations(*key) is found
