import pytest
import torch
from torch import nn

from mann import State
from mann.networks import SparseAccessMemory
from mann.networks.base import EMPTY
from mann.networks.sam import USED
from tests.mann.inputs import randn

ROWS, WIDTH, HEADS = 7, 3, 2


def small(k=3, **settings):
    torch.manual_seed(0)
    sizes = {"d_model": 4, "d_hidden": 5, "n_rows": ROWS, "d_row": WIDTH, "n_heads": HEADS} | settings
    model = SparseAccessMemory(9, k=k, **sizes).double()
    nn.init.normal_(model.readout.head.weight)
    nn.init.normal_(model.heads.weight, std=2.0)
    return model


def taking(values):
    """Takes so many at a time, in order."""
    left = iter(values)
    return lambda n: torch.stack([next(left) for _ in range(n)])


def length(x):
    return (x.square().sum() + EMPTY).sqrt()


def interface(model, h):
    take = taking(model.heads(h))
    heads = model.n_heads
    keys = [take(model.d_row).tanh() for _ in range(heads)]
    added = [take(model.d_row).tanh() for _ in range(heads)]
    strengths = 1 + (1 + take(heads).exp()).log()
    return keys, added, strengths, take(heads).sigmoid(), take(heads).sigmoid()


def naive(model, hidden, memory=None):
    """Dense vectors of weights, nothing in place, all of it seen by autograd; for one example."""
    rows, heads = model.n_rows, model.n_heads
    memory = torch.zeros(rows, model.d_row).double() if memory is None else memory
    last = list(range(-rows, 0))
    reading = [torch.zeros(rows).double()] * heads
    found = []
    for now, h in enumerate(hidden, 1):
        keys, added, strengths, write, again = interface(model, h)
        unused = sorted(range(rows), key=lambda i: (last[i], i))[:heads]
        writing = []
        for i in range(heads):
            spot = torch.eye(rows).double()[unused[i]]
            writing.append(write[i] * (again[i] * reading[i] + (1 - again[i]) * spot))
        emptied = torch.ones(rows).double()
        emptied[unused] = 0.0
        memory = emptied[:, None] * memory
        for i in range(heads):
            memory = memory + torch.outer(writing[i], added[i])
        for i in range(heads):
            likely = torch.stack([keys[i] @ row / length(keys[i]) / length(row) for row in memory])
            nearest = sorted(range(rows), key=lambda j: (-likely[j].item(), j))[: model.k]
            weights = (strengths[i] * likely[nearest]).softmax(0)
            reading[i] = torch.zeros(rows).double().index_put((torch.tensor(nearest),), weights)
            for j in range(rows):
                if reading[i][j] > USED or writing[i][j] > USED:
                    last[j] = now
        # A row that one head uses little and another much is used.
        found.append(torch.cat([weights @ memory for weights in reading]))
    return torch.stack(found), memory


def unrolled(model, hidden, memory=None):
    start = model.start(len(hidden), hidden)
    working = model.open(start if memory is None else start | {"memory": memory})
    found = []
    for h in hidden.unbind(1):
        read, working = model.access(h, working)
        found.append(read)
    held, read = model.close(working, torch.stack(found, 1))
    return read, held["memory"]


@pytest.mark.parametrize("k", [1, 3, ROWS])
def test_equals_the_equations_and_their_gradients(k):
    model, hidden, memory = small(k), randn(2, 9, 5), randn(2, ROWS, WIDTH, seed=2)
    results = []
    expected = [naive(model, *one) for one in zip(hidden, memory, strict=True)]
    results.append(unrolled(model, hidden, memory))
    results.append(tuple(torch.stack(part) for part in zip(*expected, strict=True)))
    grads = []
    wanted = [hidden, memory, *model.heads.parameters()]
    for read, left in results:
        weight = [randn(*x.shape, seed=3).detach() for x in (read, left)]
        loss = (read * weight[0]).sum() + (left * weight[1]).sum()
        grads.append(torch.autograd.grad(loss, wanted))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_all_rows_are_the_dense_read():
    model, hidden, memory = small(ROWS), randn(1, 1, 5), randn(1, ROWS, WIDTH, seed=2)
    read, left = unrolled(model, hidden, memory)
    keys, _, strengths, _, _ = interface(model, hidden[0, 0])
    for i in range(HEADS):
        cosines = torch.cosine_similarity(keys[i][None], left[0], -1)
        dense = (strengths[i] * cosines).softmax(0) @ left[0]
        torch.testing.assert_close(read[0, 0, i * WIDTH :][:WIDTH], dense, rtol=1e-4, atol=1e-4)


def test_only_rows_that_were_read_get_a_gradient():
    model, hidden, memory = small(2, n_rows=50), randn(1, 1, 5), randn(1, 50, WIDTH, seed=2)
    (grad,) = torch.autograd.grad(unrolled(model, hidden, memory)[0].square().sum(), memory)
    touched = grad[0].any(-1).sum()
    assert 1 <= touched <= 2 * HEADS


def test_gradients_can_be_taken_twice_and_of_a_part():
    model, hidden = small(), randn(2, 6, 5)
    read, _ = unrolled(model, hidden)
    weight = model.heads.weight
    # Of the weight alone: the way back does not reach the initial memory.
    grads = [torch.autograd.grad(read.square().sum(), weight, retain_graph=True)[0] for _ in range(2)]
    (last,) = torch.autograd.grad(read.square().sum(), hidden)
    assert torch.equal(*grads)
    (expected,) = torch.autograd.grad(unrolled(model, hidden)[0].square().sum(), hidden)
    assert torch.equal(last, expected)


@pytest.mark.parametrize("refresh", [1, 3, 100])
def test_a_flat_index_finds_what_a_comparison_finds(refresh):
    model, indexed = small(n_rows=40), small(n_rows=40, factory="Flat", refresh=refresh)
    tokens = torch.randint(0, 9, (2, 20), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(20) >= 12).long().expand(2, -1)
    results = [m.float().loss(tokens, tokens, documents) for m in (model, indexed)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    grads = [
        torch.autograd.grad(r.sum(), list(m.parameters()))
        for r, m in zip(results, (model, indexed), strict=True)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_state_is_not_changed_by_what_comes_after():
    model, state = small(), State()
    tokens = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    model(tokens[:, :6], state=state)
    before = state.state_dict()["tensors"]["network"]["memory"]
    model(tokens[:, 6:], state=state)
    kept = State()
    model(tokens[:, :6], state=kept)
    assert torch.equal(kept.state_dict()["tensors"]["network"]["memory"], before)
    assert not torch.equal(state.state_dict()["tensors"]["network"]["memory"], before)


def test_what_goes_wrong_is_said():
    with pytest.raises(ValueError, match="give n_rows >= 4"):
        SparseAccessMemory(9, n_rows=3)
    with pytest.raises(ValueError, match="refresh=0"):
        SparseAccessMemory(9, refresh=0)
