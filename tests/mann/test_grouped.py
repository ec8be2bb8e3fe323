"""Grouped products against one product after the other."""

import pytest
import torch

from experiments.ledger import Ledger
from mann.grouped import grouped_linear
from tests.mann.inputs import assert_same, randn

SIZES = [(3, 0, 4, 1), (0, 0, 5), (0, 0), (7,)]


@pytest.mark.parametrize("sizes", SIZES)
def test_each_group_meets_its_own_matrix(sizes):
    x, weight = randn(sum(sizes), 5), randn(len(sizes), 3, 5, seed=1)
    ends = torch.tensor(sizes).cumsum(0)

    def naive(x, weight):
        parts = [rows @ matrix.T for rows, matrix in zip(x.split(list(sizes)), weight, strict=True)]
        return torch.cat(parts)

    if sum(sizes):
        assert_same(lambda x, weight: grouped_linear(x, weight, ends), naive, x, weight)
    else:
        assert grouped_linear(x, weight, ends).shape == (0, 3)


def test_wide_groups_are_as_exact_as_narrow_ones():
    x, weight = randn(300, 64, dtype=torch.float32), randn(2, 96, 64, seed=1, dtype=torch.float32)
    ends = torch.tensor([200, 300])
    expected = torch.cat([x[:200] @ weight[0].T, x[200:] @ weight[1].T])
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected, rtol=1e-4, atol=1e-4)


def test_autocast_multiplies_in_its_type_and_gives_gradients_in_theirs():
    x, weight = randn(6, 5, dtype=torch.float32), randn(2, 3, 5, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, weight, torch.tensor([2, 6]))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_bill_is_that_of_products_however_rows_are_shared_out(device):
    bills = set()
    for ends in ([2, 6], [0, 6]):
        x = randn(6, 5).detach().to(device).requires_grad_()
        weight = randn(2, 3, 5).detach().to(device).requires_grad_()
        with Ledger() as ledger:
            grouped_linear(x, weight, torch.tensor(ends, device=device)).sum().backward()
        bills.add(ledger.matmul_flops)
    assert bills == {3 * 2 * 6 * 5 * 3}
