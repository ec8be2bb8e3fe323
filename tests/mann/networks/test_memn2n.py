import numpy as np
import pytest
import torch

from experiments.data.babi import BabiCorpus
from experiments.ledger import Ledger
from mann.networks import EndToEndMemoryNetwork
from mann.networks.memn2n import position_encoding
from tests.mann.inputs import randn

VOCAB, WIDTH = 12, 5


def small(**settings):
    torch.manual_seed(0)
    return EndToEndMemoryNetwork(VOCAB, WIDTH, **({"n_hops": 3, "n_ages": 4} | settings)).double()


def story(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sentences = torch.randint(1, VOCAB, (3, 6, 5), generator=generator)
    sentences[0, 4:], sentences[1, 2, 3:], sentences[2, :, 1:] = 0, 0, 0
    question = torch.randint(1, VOCAB, (3, 3), generator=generator)
    question[1, 2] = 0
    return sentences, question


def naive(model, sentences, question):
    found = []
    for told, asked in zip(sentences.tolist(), question.tolist(), strict=True):
        told = [[word for word in words if word] for words in told]
        told, asked = [words for words in told if words], [word for word in asked if word]

        def encode(table, words):
            total = torch.zeros(WIDTH).double()
            for j, word in enumerate(words, 1):
                share = j / len(words)
                weights = [(1 - share) - (k / WIDTH) * (1 - 2 * share) for k in range(1, WIDTH + 1)]
                total = total + torch.tensor(weights).double() * table.weight[word]
            return total

        u = encode(model.words[0], asked)
        for hop in range(3):
            rows = []
            for table, ages in zip(model.words[hop : hop + 2], model.ages[hop : hop + 2], strict=True):
                rows.append(
                    torch.stack(
                        [
                            encode(table, words) + ages.weight[min(len(told) - 1 - i, model.n_ages - 1)]
                            for i, words in enumerate(told)
                        ]
                    )
                )
            match = rows[0] @ u
            u = u + (match if model.linear else match.softmax(0)) @ rows[1]
        found.append((model.words[-1].weight @ u).log_softmax(0))
    return torch.stack(found)


@pytest.mark.parametrize("linear", [False, True])
def test_equals_the_equations_and_their_gradients(linear):
    model = small(linear=linear).eval()
    results = [model(*story()), naive(model, *story())]
    torch.testing.assert_close(*results)
    weight = randn(3, VOCAB).detach()
    grads = [torch.autograd.grad((r * weight).sum(), list(model.parameters())) for r in results]
    for one, other in zip(*grads, strict=True):
        # Padding has no gradient; a naive sum never meets it.
        torch.testing.assert_close(one[1:], other[1:])
    torch.testing.assert_close(grads[0][-1], grads[1][-1])


def test_position_encoding_is_the_formula():
    weights = position_encoding(torch.tensor([[3, 1, 2, 0]])).double()
    share = torch.arange(1, 4).double() / 3
    for k in (1, 3, WIDTH):
        total = weights[0, 0] + k / WIDTH * weights[0, 1]
        torch.testing.assert_close(total[:3], (1 - share) - k / WIDTH * (1 - 2 * share), rtol=1e-6, atol=1e-6)
        assert total[3] == 0


def test_what_is_not_there_does_not_count():
    model = small().eval()
    sentences, question = story()
    more = torch.zeros(3, 9, 8, dtype=torch.long)
    more[:, :6, :5] = sentences
    torch.testing.assert_close(model(more, question), model(sentences, question))
    nothing = model(torch.zeros_like(sentences), question)
    assert torch.isfinite(nothing).all()
    # Order matters, of words and of sentences.
    assert not torch.allclose(
        model(sentences[1:2].flip(1), question[1:2]), model(sentences[1:2], question[1:2])
    )
    assert not torch.allclose(
        model(sentences[1:2].flip(2), question[1:2]), model(sentences[1:2], question[1:2])
    )


def test_noise_is_for_training_only():
    model = small(noise=0.5)
    assert not torch.equal(model(*story()), model(*story()))
    model.eval()
    assert torch.equal(model(*story()), model(*story()))
    assert torch.equal(small(noise=0.0)(*story()), small(noise=0.0)(*story()))
    # The last sentence stays the last, and ages grow backwards.
    ages = model.train()._ages(torch.ones(50, 4, dtype=torch.bool))
    assert not ages[:, -1].any()
    assert (ages[:, :-1].sum(1) > 3).any()
    assert (ages[:, :-1] >= ages[:, 1:]).all()


def test_the_loss_is_of_the_log_probabilities_and_has_a_price():
    model = small().eval()
    answers = torch.tensor([1, 5, 7])
    with Ledger(model) as ledger:
        loss = model.loss(*story(), answers)
        loss.sum().backward()
    torch.testing.assert_close(loss, -model(*story())[torch.arange(3), answers])
    assert ledger.flops > 0
    assert model.to("meta").loss(*(x.to("meta") for x in story()), answers.to("meta")).shape == (3,)


def test_what_goes_wrong_is_said():
    with pytest.raises(ValueError, match="n_hops=0"):
        EndToEndMemoryNetwork(VOCAB, n_hops=0)
    with pytest.raises(ValueError, match="noise=1"):
        EndToEndMemoryNetwork(VOCAB, noise=1.0)


def test_solves_task_1_of_babi():
    corpus = BabiCorpus(task=1)
    train, test = (
        [torch.from_numpy(x) for x in (found.sentences, found.questions, found.answers)]
        for found in (corpus.stories("train"), corpus.stories("test"))
    )
    torch.manual_seed(0)
    model = EndToEndMemoryNetwork(corpus.vocab_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator, epochs = np.random.default_rng(0), 12
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - epoch / epochs)
        for rows in torch.from_numpy(generator.permutation(len(train[2]))).split(32):
            optimizer.zero_grad()
            model.loss(*(x[rows] for x in train)).mean().backward()
            optimizer.step()
    model.eval()
    right = (model(*test[:2]).argmax(-1) == test[2]).float().mean()
    assert right >= 0.95
