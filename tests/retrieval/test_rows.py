"""Rows of a table against plain indexing: numbers and gradients, with and without autocast."""

import pytest
import torch

from retrieval.rows import match_rows, sum_rows


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


def test_a_second_derivative_is_refused_in_words() -> None:
    query, weight, table, rows = _inputs(2, 5, 3)
    for x, y in ((query, match_rows(table, rows, query)), (weight, sum_rows(table, rows, weight))):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
