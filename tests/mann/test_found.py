import pytest
import torch

from experiments.ledger import Ledger
from mann.found import attend_found
from tests.mann.inputs import assert_same, randn

QUERIES, K, WIDTH, LONG = 7, 5, 4, (6, 9)


def named(tables, seed=0):
    """Rows of all tables, some of them twice, some hidden; one query has none."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, sum(LONG[:tables]), (QUERIES, K), generator=generator)
    mask = torch.rand(QUERIES, K, generator=generator) < 0.7
    mask[2] = False
    return rows, mask


def naive(q, rows, mask, keys, values):
    """Query by query, out of one table."""
    keys, values, read, totals = torch.cat(keys), torch.cat(values), [], []
    for t in range(len(q)):
        there = rows[t][mask[t]]
        scores = keys[there] @ q[t]
        read.append(scores.softmax(0) @ values[there])
        totals.append(scores.logsumexp(0) if len(there) else q.new_zeros(()))
    return torch.stack(read), torch.stack(totals)


def found(q, rows, mask, keys, values):
    """As a search would call it, whose scores have no gradient."""
    scores = torch.einsum("td,tkd->tk", q, torch.cat(keys)[rows]).detach()
    return attend_found(q, scores, rows, mask, keys, values)


def together(answer, mask):
    read, total = answer
    return torch.cat([read, total.where(mask.any(-1), 0.0)[:, None]], -1)


@pytest.mark.parametrize("tables", [1, 2])
def test_it_is_attention_to_the_rows_that_are_named(tables):
    rows, mask = named(tables)
    leaves = [randn(n, WIDTH) for n in LONG[:tables] * 2]

    def run(attend, q, *leaves):
        return together(attend(q, rows, mask, leaves[:tables], leaves[tables:]), mask)

    assert_same(
        lambda *x: run(found, *x), lambda *x: run(naive, *x), randn(QUERIES, WIDTH), *leaves, tolerance=1e-9
    )


@pytest.mark.parametrize("only", [0, 1])
def test_a_table_that_nobody_names_changes_nothing(only):
    q, leaves = randn(QUERIES, WIDTH), [randn(n, WIDTH) for n in LONG * 2]
    rows, mask = named(2)
    rows = rows % LONG[only]
    alone = found(q, rows, mask, [leaves[only]], [leaves[2 + only]])
    both = found(q, rows + only * LONG[0], mask, leaves[:2], leaves[2:])
    for one, other in zip(alone, both, strict=True):
        assert torch.equal(one, other)
    grads = torch.autograd.grad(both[0].square().sum(), leaves)
    assert not grads[1 - only].any()
    assert not grads[3 - only].any()
    assert grads[only].any()


def test_a_table_without_gradient_gets_none():
    q, leaves = randn(QUERIES, WIDTH), [randn(n, WIDTH) for n in LONG * 2]
    fixed = [leaf.detach() if n % 2 else leaf for n, leaf in enumerate(leaves)]
    rows, mask = named(2)
    whole = torch.autograd.grad(
        found(q, rows, mask, leaves[:2], leaves[2:])[0].square().sum(), [q, leaves[0]]
    )
    part = torch.autograd.grad(found(q, rows, mask, fixed[:2], fixed[2:])[0].square().sum(), [q, fixed[0]])
    for one, other in zip(whole, part, strict=True):
        assert torch.equal(one, other)


def test_tables_of_several_types_are_read_in_their_own():
    q, rows = randn(QUERIES, WIDTH).detach(), named(2)
    exact = [randn(n, WIDTH).detach() for n in LONG * 2]
    types = [torch.bfloat16, torch.float32] * 2
    leaves = [leaf.to(kind).requires_grad_() for leaf, kind in zip(exact, types, strict=True)]
    y, _ = found(q, *rows, [leaf.double() for leaf in leaves[:2]], leaves[2:])
    wide = [leaf.detach().double() for leaf in leaves]
    torch.testing.assert_close(y, found(q, *rows, wide[:2], wide[2:])[0], rtol=1e-2, atol=1e-2)
    narrow = q.bfloat16().requires_grad_()
    scores = torch.einsum("td,tkd->tk", q, torch.cat(wide[:2])[rows[0]]).float()
    y, _ = attend_found(narrow, scores, *rows, leaves[:2], leaves[2:])
    grads = torch.autograd.grad(y.square().sum(), [*leaves, narrow])
    assert y.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [*types, torch.bfloat16]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_its_bill_is_the_same_on_every_device(device):
    rows, mask = (part.to(device) for part in named(2))
    q, *leaves = (randn(n, WIDTH).detach().to(device).requires_grad_() for n in (QUERIES, *LONG, *LONG))
    scores = torch.zeros(QUERIES, K, dtype=torch.double, device=device)
    with Ledger() as ledger:
        attend_found(q, scores, rows, mask, leaves[:2], leaves[2:])[0].sum().backward()
    once = 2 * QUERIES * K * WIDTH
    # What is read, and the gradient of queries; that of weights; keys and values of both tables.
    assert ledger.by_operator["mnemograph.sum_found"] == 2 * once
    assert ledger.by_operator["aten.bmm"] == once
    assert ledger.by_operator["mnemograph.add_found"] == 2 * 2 * once
