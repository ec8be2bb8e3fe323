"""Rows of a table against plain indexing: numbers and gradients, with and without autocast."""

import pytest
import torch

from experiments.ledger import Ledger
from retrieval.rows import gradient_rows, match_rows, row_reader, row_writer, sum_rows


def _inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(*shape[:-1], 8, generator=generator).requires_grad_()
    weight = torch.rand(shape, generator=generator).requires_grad_()
    table = torch.randn(11, 8, generator=generator).requires_grad_()
    rows = torch.randint(0, 11, shape, generator=generator)
    return query, weight, table, rows


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 3), (0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 5, 0), (3,), (0,)])
def test_rows_are_matched_and_summed_as_indexing_would(shape: tuple[int, ...], autocast: bool) -> None:
    query, weight, table, rows = _inputs(*shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = match_rows(table, rows, query), sum_rows(table, rows, weight)
    plain = (table[rows] * query[..., None, :]).sum(-1), (table[rows] * weight[..., None]).sum(-2)
    for x, given in zip((query, weight), range(2), strict=True):
        torch.testing.assert_close(ours[given], plain[given])
        upstream = torch.randn_like(plain[given])
        found = torch.autograd.grad(ours[given], (x, table), upstream)
        wanted = torch.autograd.grad(plain[given], (x, table), upstream)
        torch.testing.assert_close(found, wanted)


def test_a_narrow_query_is_matched_in_the_type_of_the_table() -> None:
    query, _, table, rows = _inputs(2, 5, 3)
    assert match_rows(table, rows, query.bfloat16()).dtype == table.dtype


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [6, 4000, 40_000])
@pytest.mark.parametrize("width", [8, 300])
def test_rows_are_matched_in_any_order_of_work(width: int, size: int, kind: torch.dtype) -> None:
    """Few rows of a table are named, or all; in types with an order of work of their own, and in one without."""
    generator = torch.Generator().manual_seed(0)
    table, query = (torch.randn(n, width, generator=generator).to(kind) for n in (size, 700))
    rows = torch.randint(0, size, (700, 3), generator=generator)
    expected = (table[rows].double() * query[:, None].double()).sum(-1)
    bound = (2e-2 if kind == torch.bfloat16 else 1e-5) * (width / 8) ** 0.5
    torch.testing.assert_close(match_rows(table, rows, query).double(), expected, rtol=bound, atol=bound)


def test_a_second_derivative_is_refused_in_words() -> None:
    query, weight, table, rows = _inputs(2, 5, 3)
    for x, y in ((query, match_rows(table, rows, query)), (weight, sum_rows(table, rows, weight))):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_without_weights_rows_are_added_up() -> None:
    _, weight, table, rows = _inputs(4, 6)
    ours, plain = sum_rows(table, rows), sum_rows(table, rows, torch.ones_like(weight))
    torch.testing.assert_close(ours, table[rows].sum(-2))
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), table) for y in (ours, plain)))


def test_a_table_of_many_rows_needs_wider_numbers() -> None:
    table = torch.zeros(70_000, 2, requires_grad=True)
    rows = torch.tensor([[0, 69_999], [40_000, 69_999]])
    (found,) = torch.autograd.grad(sum_rows(table, rows).sum(), table)
    assert found[[0, 40_000, 69_999]].tolist() == [[1, 1], [1, 1], [2, 2]]
    assert found.sum() == 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_putting_gradients_into_a_table_costs_a_product_and_a_sum_an_element(device: str) -> None:
    query, weight, table, rows = (x.detach().to(device) for x in _inputs(5, 3))
    table.requires_grad_()
    with Ledger() as ledger:
        (match_rows(table, rows, query).sum() + sum_rows(table, rows, weight).sum()).backward()
    assert ledger.by_operator["mnemograph.add_to_rows"] == 2 * (2 * 5 * 3 * 8)
    assert ledger.matmul_flops == 2 * 5 * 3 * 8


@pytest.mark.parametrize("kind", ["matched", "weighted", "plain"])
@pytest.mark.parametrize("shape", [(2, 5, 3), (0, 5, 3), (2, 5, 0), (3,)])
def test_a_sparse_gradient_holds_what_was_named_once_and_in_order(shape: tuple[int, ...], kind: str) -> None:
    query, weight, table, rows = _inputs(*shape)
    pairs = [
        (match_rows(table, rows, query, sparse=True), match_rows(table, rows, query)),
        (sum_rows(table, rows, weight, sparse=True), sum_rows(table, rows, weight)),
        (sum_rows(table, rows, sparse=True), sum_rows(table, rows)),
    ]
    sparse, dense = pairs[("matched", "weighted", "plain").index(kind)]
    assert torch.equal(sparse, dense)
    upstream = torch.randn_like(dense)
    others = {"matched": (query,), "weighted": (weight,), "plain": ()}[kind]
    (found, *rest), (wanted, *right) = (
        torch.autograd.grad(y, (table, *others), upstream) for y in (sparse, dense)
    )
    torch.testing.assert_close(rest, right)
    assert found.is_sparse
    assert found.is_coalesced()
    assert found.indices()[0].tolist() == sorted(set(rows.flatten().tolist()))
    torch.testing.assert_close(found.to_dense(), wanted)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "part", [(slice(None), slice(None)), (slice(0, 50, 2), slice(None)), (slice(None), slice(1, 3))]
)
def test_rows_are_read_and_written(part: tuple[slice, slice], kind: torch.dtype) -> None:
    whole = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(kind).requires_grad_()
    table, before = whole[part], whole.detach().clone()
    read = row_reader(table, 5)
    for rows in ([], [3], [7, 0, 7, 24, 1]):
        found = read(torch.tensor(rows, dtype=torch.int64))
        assert torch.equal(found, before[part][rows])
        assert not found.requires_grad
        found.fill_(0)
    assert torch.equal(whole.detach(), before)
    rows, values = torch.tensor([7, 0, 24]), torch.ones(3, table.shape[1], dtype=kind)
    row_writer(table)(rows, values)
    assert torch.equal(table.detach()[rows], values)
    assert whole.detach().ne(before).sum() == values.numel()


def test_rows_of_a_gradient_are_taken_as_they_are_where_they_are_in_order() -> None:
    table = torch.randn(11, 8).requires_grad_()
    read = sum_rows(table, torch.tensor([[7, 2, 7], [0, 2, 9]]), sparse=True)
    read.sum().backward()
    assert table.grad is not None
    rows, values = gradient_rows(table.grad)
    assert rows.tolist() == [0, 2, 7, 9]
    assert values.data_ptr() == table.grad._values().data_ptr()
    torch.testing.assert_close(values[:, 0], torch.tensor([1.0, 2.0, 2.0, 1.0]))
    # A second pass is put behind the first.
    sum_rows(table, torch.tensor([[3, 2]]), sparse=True).sum().backward()
    rows, values = gradient_rows(table.grad)
    assert rows.tolist() == [0, 2, 3, 7, 9]
    torch.testing.assert_close(values[:, 0], torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]))
