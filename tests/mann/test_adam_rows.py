"""Adam on some rows of a table: what torch's Adam does to them, and nothing to the others."""

from __future__ import annotations

import pytest
import torch

from experiments.ledger import Ledger
from mann import adam_rows as module
from mann.adam_rows import adam_rows

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


def naive(table, mean, square, rows, grad, step):
    """The formulas of the paper, row by row."""
    (beta1, beta2), lr, eps = SETTINGS["betas"], SETTINGS["lr"], SETTINGS["eps"]
    for row, g in zip(rows.tolist(), grad, strict=True):
        mean[row] = beta1 * mean[row] + (1 - beta1) * g
        square[row] = beta2 * square[row] + (1 - beta2) * g**2
        corrected = (square[row].sqrt() + eps) / (1 - beta2**step) ** 0.5
        table[row] -= lr / (1 - beta1**step) * mean[row] / corrected


def draw(vocab: int, width: int, n: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    table, mean = (torch.randn(vocab, width, generator=generator, dtype=dtype) for _ in range(2))
    square = torch.rand(vocab, width, generator=generator, dtype=dtype)
    rows = torch.randperm(vocab, generator=generator)[:n].sort().values
    return (table, mean, square), rows, torch.randn(n, width, generator=generator, dtype=dtype)


# None, few, so many that all are moved and the rest put back, all; in one piece and in several.
@pytest.mark.parametrize("n", [0, 1, 30, 701, 999, 1000])
@pytest.mark.parametrize("width", [3, 700])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moves_the_rows_as_the_formulas_say_and_no_other(n, width, dtype):
    parts, rows, grad = draw(1000, width, n, dtype)
    expected, before = [part.clone() for part in parts], [part.clone() for part in parts]
    adam_rows(*parts, rows, grad, step=3, **SETTINGS)
    naive(*expected, rows, grad, 3)
    others = torch.ones(1000, dtype=torch.bool).index_fill(0, rows, False)
    for part, right, old in zip(parts, expected, before, strict=True):
        torch.testing.assert_close(part, right)
        assert torch.equal(part[others], old[others])


@pytest.mark.parametrize(
    "named", [range(1000), range(3, 1000), range(997), [*range(2, 400), *range(401, 990)]]
)
def test_runs_of_neighbours_are_moved_where_they_stand(monkeypatch, named):
    parts, _, _ = draw(1000, 16, 0, torch.float32)
    rows = torch.tensor(named)
    grad = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(0))
    copied, before = [part.clone() for part in parts], [part.clone() for part in parts]
    adam_rows(*parts, rows, grad, step=3, **SETTINGS)
    monkeypatch.setattr(module, "RUN", 1001)
    adam_rows(*copied, rows, grad, step=3, **SETTINGS)
    others = torch.ones(1000, dtype=torch.bool).index_fill(0, rows, False)
    for part, same, old in zip(parts, copied, before, strict=True):
        assert torch.equal(part, same)
        assert torch.equal(part[others], old[others])
        assert not torch.equal(part[rows], old[rows])


@pytest.mark.parametrize("n", [20, 45, 50])
def test_rows_of_a_view_and_of_a_trained_table(n):
    parts, rows, grad = draw(50, 16, n)
    wide = torch.nn.Parameter(torch.cat([parts[0], parts[0]], 1))
    expected = [part.clone() for part in parts]
    with torch.no_grad():
        adam_rows(wide[:, :16], *parts[1:], rows, grad, step=1, **SETTINGS)
    naive(*expected, rows, grad, 1)
    torch.testing.assert_close(wide.detach()[:, :16], expected[0])
    assert torch.equal(wide.detach()[:, 16:], parts[0])


@pytest.mark.parametrize("n", [30, 900])
def test_one_bill_for_a_row_however_it_is_moved(n):
    parts, rows, grad = draw(1000, 16, n, torch.float32)
    with Ledger() as bill:
        adam_rows(*parts, rows, grad, step=1, **SETTINGS)
    assert bill.flops == 13 * n * 16
    assert bill.bytes == n * 16 * 4 * (4 + 3) + 8 * n
