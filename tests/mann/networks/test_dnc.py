from itertools import pairwise

import pytest
import torch
from torch import nn

from mann.networks import DNC
from mann.networks.base import EMPTY
from mann.networks.dnc import LEAST_USAGE, _Links, allocation
from tests.mann.inputs import randn

ROWS, WIDTH, READS = 5, 3, 2


def small():
    torch.manual_seed(0)
    model = DNC(7, d_model=4, d_hidden=5, n_rows=ROWS, d_row=WIDTH, n_read=READS).double()
    nn.init.normal_(model.readout.head.weight)
    nn.init.normal_(model.interface.weight)
    return model


def taking(values):
    """Takes so many at a time, in order."""
    left = iter(values)
    return lambda n: torch.stack([next(left) for _ in range(n)])


def length(x):
    return (x.square().sum() + EMPTY).sqrt()


def content(memory, key, strength):
    return (strength * torch.stack([key @ row / length(key) / length(row) for row in memory])).softmax(0)


def naive_allocation(usage):
    usage = [LEAST_USAGE + (1 - LEAST_USAGE) * u for u in usage]
    order = sorted(range(len(usage)), key=lambda i: (usage[i].item(), i))
    found, product = [None] * len(usage), torch.ones(()).double()
    for i in order:
        found[i] = (1 - usage[i]) * product
        product = product * usage[i]
    return torch.stack(found)


def write_rows(orders, links=None, precedence=None):
    """Links and precedence after writing with each of these weights, one after the other."""
    batch, rows = orders[0].shape
    links = torch.zeros(batch, rows, rows) if links is None else links
    precedence = torch.zeros(batch, rows) if precedence is None else precedence
    for written in orders:
        links, _, _ = _Links.apply(links, precedence, written, torch.zeros(batch, 1, rows))
        precedence = (1 - written.sum(1, keepdim=True)) * precedence + written
    return links, precedence


def naive(model, hidden):
    """The interface and memory of the paper for one example, row by row."""
    zeros = torch.zeros(ROWS).double()
    memory = [torch.zeros(WIDTH).double()] * ROWS
    usage, precedence, written = [zeros[0]] * ROWS, zeros, zeros
    links = [[zeros[0]] * ROWS for _ in range(ROWS)]
    reading = [zeros] * READS
    found = []
    for h in hidden:
        take = taking(model.interface(h))
        write_key, *read_keys = [take(WIDTH) for _ in range(READS + 1)]
        value = take(WIDTH)
        write_strength, *read_strengths = [1 + (1 + s.exp()).log() for s in take(READS + 1)]
        erased, free = take(WIDTH).sigmoid(), take(READS).sigmoid()
        allocate, write = take(1).sigmoid(), take(1).sigmoid()
        modes = [take(3).softmax(0) for _ in range(READS)]
        for i in range(ROWS):
            kept = torch.ones(()).double()
            for r in range(READS):
                kept = kept * (1 - free[r] * reading[r][i])
            usage[i] = (usage[i] + written[i] - usage[i] * written[i]) * kept
        likely = content(memory, write_key, write_strength)
        written = write * (allocate * naive_allocation(usage) + (1 - allocate) * likely)
        memory = [row * (1 - written[i] * erased) + written[i] * value for i, row in enumerate(memory)]
        links = [
            [
                zeros[0]
                if i == j
                else (1 - written[i] - written[j]) * links[i][j] + written[i] * precedence[j]
                for j in range(ROWS)
            ]
            for i in range(ROWS)
        ]
        precedence = (1 - written.sum()) * precedence + written
        for r in range(READS):
            after = torch.stack([sum(links[i][j] * reading[r][j] for j in range(ROWS)) for i in range(ROWS)])
            before = torch.stack([sum(links[j][i] * reading[r][j] for j in range(ROWS)) for i in range(ROWS)])
            likely = content(memory, read_keys[r], read_strengths[r])
            reading[r] = modes[r][0] * before + modes[r][1] * likely + modes[r][2] * after
        read = [sum(reading[r][i] * memory[i] for i in range(ROWS)) for r in range(READS)]
        found.append(torch.cat(read))
    return torch.stack(found)


def test_equals_the_equations_and_their_gradients():
    model, hidden = small(), randn(2, 6, 5)
    memory, found = model.start(2, hidden), []
    for h in hidden.unbind(1):
        read, memory = model.access(h, memory)
        found.append(read)
    results = [torch.stack(found, 1), torch.stack([naive(model, one) for one in hidden])]
    torch.testing.assert_close(*results)
    weight = randn(*results[0].shape, seed=1).detach()
    wanted = [hidden, *model.interface.parameters()]
    grads = [torch.autograd.grad((r * weight).sum(), wanted) for r in results]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_least_used_row_is_taken():
    usage = torch.tensor(
        [[0.9, 0.2, 0.0, 0.7], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 1.0, 0.5]]
    )
    taken = allocation(usage.double())
    expected = torch.stack([naive_allocation(row) for row in usage.double()])
    torch.testing.assert_close(taken, expected)
    torch.testing.assert_close(taken[0].round(), torch.tensor([0.0, 0, 1, 0]).double())
    torch.testing.assert_close(taken[1].round(), torch.tensor([1.0, 0, 0, 0]).double())
    # Nothing is free: nothing is taken.
    assert taken[2].sum() < 1e-5
    torch.testing.assert_close(taken[3], torch.tensor([0, 0.5, 0, 0.25]).double(), rtol=1e-5, atol=1e-5)
    assert (allocation(torch.rand(20, 9)).sum(1) <= 1 + 1e-6).all()


def test_links_are_the_order_of_writing():
    order = [3, 0, 4, 1]
    once = torch.eye(5)[:, None]
    links, precedence = write_rows([once[row] for row in order])
    expected = torch.zeros(1, 5, 5)
    for before, after in pairwise(order):
        expected[0, after, before] = 1
    assert torch.equal(links, expected)
    assert torch.equal(precedence[0], nn.functional.one_hot(torch.tensor(1), 5).float())
    # A row written again leaves its old place in the order.
    links, _ = write_rows([once[0]], links, precedence)
    assert links[0, 0].nonzero().flatten().tolist() == [1]
    assert not links[0, :, 0].any()


def test_links_are_distributions_at_most():
    generator, links, precedence = torch.Generator().manual_seed(0), None, None
    for _ in range(20):
        written = torch.rand(3, 7, generator=generator).softmax(1)[:, :6]
        links, precedence = write_rows([written], links, precedence)
        assert (links >= 0).all()
        assert links.sum(1).max() <= 1 + 1e-5
        assert links.sum(2).max() <= 1 + 1e-5
        assert precedence.sum(1).max() <= 1 + 1e-5


def test_what_was_written_in_order_is_read_in_order():
    model = small()
    values = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]).double()
    with torch.no_grad():
        model.interface.weight.zero_()
        model.interface.bias.zero_()
    vectors, strength, gates, modes = model.interface.bias.data.split(model.parts)
    strength[:] = 60.0
    gates[:WIDTH], gates[WIDTH : WIDTH + READS] = 50.0, -50.0
    gates[-2:] = 50.0
    memory, h = model.start(1, values), torch.zeros(1, 5).double()
    modes.view(READS, 3)[:, 1] = 50.0
    # Read by content what was written first.
    vectors[WIDTH : (READS + 1) * WIDTH] = values[0].repeat(READS)
    for value in values:
        vectors[-WIDTH:] = value
        read, memory = model.access(h, memory)
    torch.testing.assert_close(read, values[0].repeat(2)[None], rtol=1e-3, atol=1e-3)
    # Then without writing, follow the links, and back.
    gates[-1] = -50.0
    for mode, expected in ((2, 1), (2, 2), (0, 1), (0, 0)):
        modes.view(READS, 3)[:] = 0.0
        modes.view(READS, 3)[:, mode] = 50.0
        read, memory = model.access(h, memory)
        torch.testing.assert_close(read, values[expected].repeat(2)[None], rtol=1e-3, atol=1e-3)


def test_what_goes_wrong_is_said():
    with pytest.raises(ValueError, match="n_read=0"):
        DNC(7, n_read=0)
