import pytest
import torch

from mann import Context, NGramMemory
from mann.optim import ROLES, RoleOptimizer
from tests.contracts import opened
from tests.mann.inputs import labels, randn, runs
from tests.mann.segments import TIME, Weighing, assert_goes_on, assert_segments, changing

TOKENS = torch.tensor([[0, 17, 4, 17, 4, 901, 2047, 3]])


def rows(tokens, documents=None, **settings):
    return NGramMemory(4, **{"orders": (2, 3), "n_heads": 2, "n_rows": 2**16, "d_row": 2, **settings}).rows(
        Context(tokens, documents)
    )


def naive_row(memory, slot, order, tokens):
    """The hash of the last tokens, most recent first, in Python's integers."""
    multipliers, mixed = memory.multipliers[slot].tolist(), 0
    for k in range(order):
        mixed = ((mixed ^ multipliers[k] * (tokens[k] + 1)) * (multipliers[0] if k else 1)) % 2**64
    bits = memory.n_rows.bit_length() - 1
    return (mixed % 2**63 >> (63 - bits)) + slot * memory.n_rows


@pytest.mark.parametrize("orders", [(1,), (2, 3), (4, 1), (5,)])
@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize("n_rows", [2, 512, 2**20])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_rows_are_those_of_the_formula(orders, n_heads, n_rows, packed):
    memory = NGramMemory(4, orders=orders, n_heads=n_heads, n_rows=n_rows, d_row=1)
    tokens = torch.randint(0, 50_000, (2, 9), generator=torch.Generator().manual_seed(0))
    documents = labels(2, 9) if packed else None
    run, found = runs(documents, 2, 9), memory.rows(Context(tokens, documents))
    assert found.shape == (2, 9, len(orders) * n_heads)
    for b, t in [(b, t) for b in range(2) for t in range(9)]:
        # Before the document began stands the marker.
        past = [
            int(tokens[b, t - k]) if t >= k and run[b, t] == run[b, t - k] else 0 for k in range(max(orders))
        ]
        expected = [
            naive_row(memory, i * n_heads + j, order, past)
            for i, order in enumerate(orders)
            for j in range(n_heads)
        ]
        assert found[b, t].tolist() == expected


def test_golden_rows():
    # Saved tables mean nothing once these change.
    golden = [35987, 106915, 188664, 223006, 57471, 72156, 178710, 235419]
    assert rows(TOKENS)[0, [2, 6]].flatten().tolist() == golden


def test_a_row_depends_on_its_last_tokens_alone():
    found = rows(TOKENS)[0]
    assert torch.equal(found[2, :2], found[4, :2])  # (17, 4) again
    assert not (found[2, 2:] == found[4, 2:]).any()  # after 0, and after 4


def test_heads_collide_apart():
    tokens = torch.randint(0, 2048, (1, 4096), generator=torch.Generator().manual_seed(0))
    found = rows(tokens, n_rows=2**10)[0] % 2**10
    pairs = torch.stack([tokens[0, :-1], tokens[0, 1:]], 1).unique(dim=0)
    counts = torch.bincount(found[:, 0], minlength=2**10).float()
    # About as uneven as balls thrown into bins, whose variance is their mean.
    assert counts.var() < 2 * counts.mean()
    same = found[:, 0] == found[:, 0].roll(1)
    assert (found[same, 1] != found[:, 1].roll(1)[same]).any()
    assert len(pairs) > len(found[:, 0].unique())


def test_sparse_and_dense_gradients_take_the_same_first_step():
    tables = []
    for sparse in (True, False):
        torch.manual_seed(0)
        memory = opened(NGramMemory(4, n_rows=64, d_row=3, sparse=sparse))
        before = memory.table.weight.detach().clone()
        optimizer = RoleOptimizer(memory, dict.fromkeys(ROLES, 0.1))
        memory(torch.zeros(1, 8, 4), Context(TOKENS % 7)).square().sum().backward()
        assert memory.table.weight.grad.is_sparse == sparse
        optimizer.step()
        touched = (memory.table.weight != before).any(1)
        assert set(touched.nonzero().flatten().tolist()) == set(
            memory.rows(Context(TOKENS % 7)).flatten().tolist()
        )
        tables.append(memory.table.weight.detach())
    torch.testing.assert_close(*tables, rtol=1e-5, atol=1e-6)


def test_the_unigram_control_is_a_value_embedding():
    memory = opened(NGramMemory(4, orders=(1,), n_heads=1, n_rows=2**12, d_row=3))
    update = memory(torch.zeros(1, 8, 4), Context(TOKENS))
    assert torch.equal(update[0, 1], update[0, 3])
    assert not torch.equal(update[0, 1], update[0, 2])


@pytest.mark.parametrize("n_rows", [0, 1, 3, 1000])
def test_row_counts_that_do_not_fit_are_named(n_rows):
    with pytest.raises(ValueError, match="power of two"):
        NGramMemory(4, n_rows=n_rows)


@pytest.mark.parametrize("orders", [(), (0, 2), (-1,)])
def test_orders_that_make_no_sense_are_named(orders):
    with pytest.raises(ValueError, match="positive n-gram lengths"):
        NGramMemory(4, orders=orders)


@pytest.mark.parametrize("orders", [(1,), (2, 3), (5,)])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(orders, documents, tmp_path):
    memory = Weighing(opened(NGramMemory(6, orders=orders, n_rows=64, d_row=2, sparse=False)).double())
    assert_segments(memory, randn(3, TIME, 6), documents)
    if max(orders) > 1:
        assert_goes_on(memory, randn(3, TIME, 6), documents, tmp_path)
