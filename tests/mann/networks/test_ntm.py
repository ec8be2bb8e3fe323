import pytest
import torch
from torch import nn

from mann.networks import NTM
from mann.networks.base import EMPTY, content_scores
from mann.networks.ntm import INITIAL, NO_WEIGHT, circular_shift, erase_and_add, sharpen
from mann.norm import EPSILON
from tests.mann.inputs import randn


def small(**settings):
    torch.manual_seed(0)
    sizes = {"d_model": 4, "d_hidden": 5, "n_rows": 6, "d_row": 3, "n_read": 2, "n_write": 2} | settings
    model = NTM(7, **sizes).double()
    nn.init.normal_(model.readout.head.weight)
    nn.init.normal_(model.heads.weight)
    return model


def norm(x):
    return x / (x.square().mean() + EPSILON).sqrt()


def taking(values):
    """Takes so many at a time, in order."""
    left = iter(values)
    return lambda n: torch.stack([next(left) for _ in range(n)])


def length(x):
    return (x.square().sum() + EMPTY).sqrt()


def lstm(model, x, h, c):
    """A step of torch's own."""
    size = model.d_hidden
    cell = nn.LSTMCell(model.d_model, size).double()
    # Torch has the candidate third.
    order = torch.cat(
        [torch.arange(2 * size), torch.arange(3 * size, 4 * size), torch.arange(2 * size, 3 * size)]
    )
    weight_hidden, bias = model.recurrent.weight[order], model.input.bias[order]
    weights = {
        "weight_ih": torch.cat([model.input.weight[order], weight_hidden[:, size:]], 1),
        "weight_hh": weight_hidden[:, :size],
        "bias_ih": bias,
        "bias_hh": torch.zeros_like(bias),
    }
    h, c = torch.func.functional_call(cell, weights, (x[None], (h[None], c[None])))
    return h[0], c[0]


def naive(model, tokens):
    """The paper's equations, one row of one head of one example at a time."""
    size, reads = model.d_hidden, model.n_read
    found = []
    for text in tokens:
        h, c = torch.zeros(size).double(), torch.zeros(size).double()
        read = [torch.zeros(model.d_row).double() for _ in range(reads)]
        memory = [torch.full((model.d_row,), INITIAL).double() for _ in range(model.n_rows)]
        heads = model.n_read + model.n_write
        before = [torch.eye(model.n_rows).double()[0] for _ in range(heads)]
        for token in text:
            x = norm(model.embedding.weight[token])
            if model.controller == "lstm":
                h, c = lstm(model, torch.cat([x, *read]), h, c)
            else:
                h = (
                    model.input.weight @ x + model.input.bias + model.recurrent.weight @ torch.cat(read)
                ).tanh()
            take = taking(model.heads(h))
            keys = [take(model.d_row).tanh() for _ in range(heads)]
            added = [take(model.d_row).tanh() for _ in range(model.n_write)]
            erased = [take(model.d_row).sigmoid() for _ in range(model.n_write)]
            gates, strengths = take(heads).sigmoid(), (take(heads).exp() + 1).log()
            powers = 1 + (take(heads).exp() + 1).log()
            moves = [take(3).softmax(0) for _ in range(heads)]
            now = []
            for i in range(heads):
                cosines = [keys[i] @ row / length(keys[i]) / length(row) for row in memory]
                content = (strengths[i] * torch.stack(cosines)).softmax(0)
                mixed = gates[i] * content + (1 - gates[i]) * before[i]
                moved = [
                    sum(moves[i][1 + step] * mixed[(row - step) % model.n_rows] for step in (-1, 0, 1))
                    for row in range(model.n_rows)
                ]
                sharp = (torch.stack(moved) + NO_WEIGHT) ** powers[i]
                now.append(sharp / sharp.sum())
            for row in range(model.n_rows):
                for j in range(model.n_write):
                    memory[row] = memory[row] * (1 - now[j][row] * erased[j])
                for j in range(model.n_write):
                    memory[row] = memory[row] + now[j][row] * added[j]
            read = [
                sum(now[model.n_write + j][row] * memory[row] for row in range(model.n_rows))
                for j in range(reads)
            ]
            before = now
            y = norm(model.output.weight @ torch.cat([h, *read]))
            found.append((model.readout.head.weight @ y).log_softmax(0))
    return torch.stack(found).view(*tokens.shape, -1)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_equals_the_equations_and_their_gradients(controller):
    model = small(controller=controller)
    tokens = torch.tensor([[1, 2, 2, 6], [0, 5, 3, 1]])
    results = [model(tokens), naive(model, tokens)]
    torch.testing.assert_close(*results)
    weight = randn(*results[0].shape, seed=1).detach()
    grads = [torch.autograd.grad((r * weight).sum(), list(model.parameters())) for r in results]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_move_by_one_is_a_roll():
    weights = randn(2, 1, 7)
    for places, move in ((3, 1), (3, -1), (3, 0), (5, 2), (5, -2)):
        moves = torch.zeros(2, 1, places).double()
        moves[..., places // 2 + move] = 1
        torch.testing.assert_close(circular_shift(weights, moves), weights.roll(move, -1))
    assert circular_shift(weights, torch.ones(2, 1, 1).double()) is weights
    # Probabilities stay probabilities.
    spread = circular_shift(weights.softmax(-1), randn(2, 1, 5, seed=1).softmax(-1))
    torch.testing.assert_close(spread.sum(-1), torch.ones(2, 1).double())


def test_sharpening():
    weights = randn(2, 3, 9).softmax(-1)
    one, two, many = (sharpen(weights, torch.full((2, 3), power).double()) for power in (1.0, 2.0, 1e4))
    torch.testing.assert_close(one, weights, rtol=1e-6, atol=1e-6)
    expected = weights.square() / weights.square().sum(-1, keepdim=True)
    torch.testing.assert_close(two, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(many.round(), nn.functional.one_hot(weights.argmax(-1), 9).double())
    # Where nearly all powers are smaller than any number of their type.
    even = sharpen(torch.full((1, 1, 128), 1 / 128), torch.tensor([[50.0]]))
    torch.testing.assert_close(even, torch.full((1, 1, 128), 1 / 128))


def test_content_is_the_nearest_if_strong():
    keys, rows = randn(2, 3, 4), randn(2, 9, 4, seed=1)
    cosines = torch.cosine_similarity(keys[:, :, None], rows[:, None], -1)
    scores = content_scores(keys, rows, torch.ones(2, 3).double())
    torch.testing.assert_close(scores, cosines, rtol=1e-5, atol=1e-5)
    strong = content_scores(keys, rows, torch.full((2, 3), 1e5).double()).softmax(-1)
    assert torch.equal(strong.argmax(-1), cosines.argmax(-1))
    torch.testing.assert_close(strong.amax(-1), torch.ones(2, 3).double())
    # An empty row is like nothing, and an empty key finds no row likelier than another.
    assert not content_scores(keys, torch.zeros_like(rows), torch.ones(2, 3).double()).any()
    assert not content_scores(torch.zeros_like(keys), rows, torch.ones(2, 3).double()).any()


def test_what_is_erased_and_added():
    rows, added = randn(1, 4, 3), randn(1, 2, 3, seed=1)
    where = nn.functional.one_hot(torch.tensor([[1, 3]]), 4).double()
    one, none = torch.ones(1, 2, 3).double(), torch.zeros(1, 2, 3).double()
    replaced = erase_and_add(rows, where, one, added)
    torch.testing.assert_close(replaced[0, [1, 3]], added[0])
    torch.testing.assert_close(replaced[0, [0, 2]], rows[0, [0, 2]])
    both = where[:, :1].expand(-1, 2, -1)
    torch.testing.assert_close(erase_and_add(rows, both, none, added)[0, 1], rows[0, 1] + added.sum(1)[0])
    torch.testing.assert_close(erase_and_add(rows, where * 0, one, added), rows)


def steered(model, strength=0.0, gate=0.0, move=(0.0, 0.0, 0.0), sharpness=0.0):
    """Heads that always say the same."""
    with torch.no_grad():
        model.heads.weight.zero_()
        _, gates, strengths, moves = model.heads.bias.split(model.parts)
        heads = model.n_read + model.n_write
        gates[-heads:] = gate
        strengths[:heads], strengths[heads:] = strength, sharpness
        moves.view(heads, -1)[:] = torch.tensor(move)
    return model


def test_heads_walk_around_the_memory():
    model = steered(small(), gate=-50.0, move=(0.0, 0.0, 60.0), sharpness=20.0)
    memory = model.start(1, torch.zeros(1).double())
    for step in range(1, 9):
        _, memory = model.access(torch.zeros(1, 5).double(), memory)
        place = nn.functional.one_hot(torch.tensor(step % 6), 6).double()
        torch.testing.assert_close(memory["weights"], place.expand(1, 4, 6), rtol=1e-6, atol=1e-6)


def test_heads_that_stay_read_what_they_wrote():
    model = steered(small(n_read=1, n_write=1), gate=-50.0, move=(0.0, 60.0, 0.0), sharpness=20.0)
    with torch.no_grad():
        model.heads.bias[6:9] = torch.tensor([0.3, -0.2, 4.0])
        model.heads.bias[9:12] = 50.0
    memory = model.start(1, torch.zeros(1).double())
    for _ in range(3):
        read, memory = model.access(torch.zeros(1, 5).double(), memory)
        expected = torch.tensor([[0.3, -0.2, 4.0]]).double().tanh()
        torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)


def test_what_goes_wrong_is_said():
    with pytest.raises(ValueError, match="give 0 to 2"):
        NTM(7, n_rows=6, shifts=3)
    with pytest.raises(ValueError, match="n_write=0"):
        NTM(7, n_write=0)
