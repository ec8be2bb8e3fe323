import pytest
import torch

from mann import Context
from mann.chunks import document_chunks
from tests.mann.inputs import labels, runs


def naive_chunks(run, size, filled, lead):
    """For each row the list of its chunks, each a list of places that hold a position or None."""
    found = []
    for row, taken in zip(run.tolist(), filled, strict=True):
        chunks = [[None] * taken]
        for t, document in enumerate(row):
            if t and document != row[t - 1]:
                chunks.append([None] * (lead % size))
            elif len(chunks[-1]) == size:
                chunks.append([])
            chunks[-1].append(t)
        found.append(chunks)
    return found


@pytest.mark.parametrize("size", [1, 3, 4, 50])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("carried", [None, (0, 2, 0)], ids=["", "carried"])
@pytest.mark.parametrize("lead", [0, 1])
def test_documents_are_cut_from_their_first_token(size, packed, carried, lead):
    rows, time = 3, 23
    documents = labels(rows, time) if packed else None
    filled = [count % size for count in carried or (lead, lead, lead)]
    given = None if carried is None else torch.tensor(filled)
    chunks = document_chunks(Context(torch.zeros(rows, time, dtype=torch.long), documents), size, given, lead)
    run = runs(documents, rows, time)
    expected = naive_chunks(run, size, filled, lead)
    assert chunks.count == max(len(row) for row in expected)
    x = torch.arange(1, rows * time + 1).view(rows, time, 1).double().requires_grad_()
    split = chunks.split(x)
    for b, row in enumerate(expected):
        for n in range(chunks.count):
            places = row[n] if n < len(row) else []
            places = [*places, *[None] * (size - len(places))]
            assert split[b, n, :, 0].tolist() == [0 if t is None else x[b, t].item() for t in places]
            first = next((t for t in places if t is not None), None)
            new = first not in (None, 0) and bool(run[b, first] != run[b, first - 1])
            assert new == (chunks.begins is not None and bool(chunks.begins[b, n]))
            if chunks.complete is not None:
                assert bool(chunks.complete[b, n]) == (places[-1] is not None)
        if chunks.filled is not None:
            assert chunks.filled[b] == len(row[-1]) % size
    assert torch.equal(chunks.merge(split), x)
    (grad,) = torch.autograd.grad((chunks.merge(split) * x.detach()).sum(), x)
    assert torch.equal(grad, x)


def test_shapes_without_numbers_have_as_many_chunks_as_one_document():
    tokens = torch.zeros(2, 23, dtype=torch.long, device="meta")
    chunks = document_chunks(Context(tokens, tokens), 4, tokens[:, 0])
    assert chunks.split(torch.empty(2, 23, 5, device="meta")).shape == (2, 6, 4, 5)
    assert chunks.merge(torch.empty(2, 6, 4, 5, device="meta")).shape == (2, 23, 5)
