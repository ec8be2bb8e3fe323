import pytest
import torch
from torch import nn

from mann import Context, Transformer
from mann.memory.bigram import MULTIPLIERS, BigramMemory
from mann.optim import ROLES, RoleOptimizer, parameter_roles
from tests.contracts import grad_of, opened
from tests.mann.inputs import assert_same, labels, randn, runs
from tests.mann.segments import TIME, Weighing, assert_goes_on, assert_segments, changing

TOKENS = torch.tensor([[0, 17, 4, 17, 4, 901, 2047, 3]])
GOLDEN = [643, 42073, 45806, 54634, 45806, 7974, 47507, 8652]


@pytest.mark.parametrize("n_rows", [1, 7, 64, 2**20])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_rows_are_those_of_the_formula(n_rows, packed):
    tokens = torch.randint(0, 50_000, (2, 9), generator=torch.Generator().manual_seed(0))
    documents = labels(2, 9) if packed else None
    run, found = runs(documents, 2, 9), BigramMemory(4, n_rows).rows(Context(tokens, documents))
    for b, t in [(b, t) for b in range(2) for t in range(9)]:
        before = int(tokens[b, t - 1]) if t and run[b, t] == run[b, t - 1] else 0
        mixed = (int(tokens[b, t]) + 1) * MULTIPLIERS[0] ^ (before + 1) * MULTIPLIERS[1]
        assert found[b, t] == (mixed % 2**63 >> 24) % n_rows


def test_golden_rows():
    # Saved tables mean nothing once these change.
    assert all(number % 2 and number.bit_length() <= 62 for number in MULTIPLIERS)
    assert BigramMemory(4).rows(Context(TOKENS))[0].tolist() == GOLDEN


def test_rows_are_spread_as_by_chance():
    tokens = torch.randint(0, 2048, (1, 4096), generator=torch.Generator().manual_seed(0))
    for n_rows in (1000, 1024):
        counts = torch.bincount(BigramMemory(4, n_rows).rows(Context(tokens))[0], minlength=n_rows).float()
        # About as uneven as balls thrown into bins, whose variance is their mean.
        assert 0.7 * counts.mean() < counts.var() < 1.4 * counts.mean()


def test_updates_and_gradients_are_those_of_the_formula():
    memory = opened(BigramMemory(3, 8, sparse=False).double())
    context = Context(TOKENS, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]))
    rows = memory.rows(context)

    def naive(x, share, table):
        return torch.stack([share * table[row] for row in rows[0].tolist()])[None] + 0 * x

    x = randn(1, 8, 3)
    assert_same(
        lambda x, *_: memory(x, context) + 0 * x, naive, x, memory.share, memory.get_parameter("table.weight")
    )


def model(memory, seed=0):
    torch.manual_seed(seed)
    built = Transformer(50, 16, 2, 2, memory=memory)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(built.readout.get_parameter("head.weight"), generator=generator)
    return built


def test_layers_share_a_table_and_models_do_not():
    memory = BigramMemory.at_layers((2, 0, 1), n_rows=20)
    models = [model(memory), model(memory)]
    places = [
        {layer.get_parameter("table.weight").data_ptr() for layer in one.memory.values()} for one in models
    ]
    assert [len(place) for place in places] == [1, 1]
    assert not places[0] & places[1]
    assert len(parameter_roles(models[0])["table"]) == 1
    assert len({layer.get_parameter("share").data_ptr() for layer in models[0].memory.values()}) == 3


def test_the_gradient_of_the_table_is_the_sum_over_layers():
    tokens, grads = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1)), []
    for memory in (
        BigramMemory.at_layers((0, 1), n_rows=20),
        {layer: lambda width: BigramMemory(width, n_rows=20) for layer in (0, 1)},
    ):
        built = model(memory)
        built.loss(tokens[:, :-1], tokens[:, 1:]).sum().backward()
        tables = {layer.get_parameter("table.weight") for layer in built.memory.values()}
        grads.append(torch.stack([grad_of(table) for table in tables]).sum(0))
    assert grads[0].any()
    torch.testing.assert_close(*grads)


def test_nothing_at_the_start_and_both_parts_train():
    built = model(BigramMemory.at_layers((0, 1), n_rows=20))
    dense = model({})
    tokens = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    assert torch.equal(built(tokens), dense(tokens))
    optimizer = RoleOptimizer(built, dict.fromkeys(ROLES, 0.01))
    for _ in range(2):
        optimizer.zero_grad()
        built.loss(tokens[:, :-1], tokens[:, 1:]).sum().backward()
        optimizer.step()
    assert built.memory["0"].get_parameter("table.weight").any()
    assert built.memory["1"].get_parameter("share").item() != pytest.approx(0.1)


def test_tables_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"has \(5, 4\) numbers, 6 rows of 4 need \(6, 4\)"):
        BigramMemory(4, n_rows=6, table=nn.Embedding(5, 4))
    with pytest.raises(ValueError, match="n_rows=0"):
        BigramMemory(4, n_rows=0)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(documents, tmp_path):
    memory = Weighing(opened(BigramMemory(6, 64, sparse=False)).double())
    assert_segments(memory, randn(3, TIME, 6), documents)
    assert_goes_on(memory, randn(3, TIME, 6), documents, tmp_path)
