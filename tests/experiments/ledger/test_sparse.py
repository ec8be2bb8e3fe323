"""Sparse operands: arithmetic by stored entries, forward and backward, and bytes at places that the indices name."""

import pytest
import torch

from experiments.ledger import Ledger

N, F = 12, 6
DENSE = torch.zeros(N, N)
DENSE[torch.arange(N), torch.arange(N) * 5 % N] = 1.0
DENSE[0, :4] = 2.0
NNZ = int(DENSE.count_nonzero())
X = torch.rand(N, F)

LAYOUTS = {
    "coo": DENSE.to_sparse_coo(),
    "csr": DENSE.to_sparse_csr(),
    "csc": DENSE.to_sparse_csc(),
    "bsr": DENSE.to_sparse_bsr((2, 2)),
}


def stored(layout):
    values = LAYOUTS[layout].values() if layout != "coo" else LAYOUTS[layout]._values()
    return values.numel()


def bill(function):
    with Ledger() as ledger:
        function()
    return ledger


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "product", [torch.mm, torch.sparse.mm, lambda a, x: a @ x], ids=["mm", "sparse.mm", "@"]
)
def test_products_by_stored_entries(layout, product):
    ledger = bill(lambda: product(LAYOUTS[layout], X))
    assert ledger.flops == ledger.matmul_flops == 2 * stored(layout) * F
    # what is read of the dense operand is where the indices say
    assert ledger.bytes_random >= X.nbytes


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_backward_to_the_dense_operand_is_the_transposed_product(layout):
    x, gradient = X.clone().requires_grad_(), torch.ones(N, F)
    ledger = bill(lambda: torch.sparse.mm(LAYOUTS[layout], x).backward(gradient))
    assert ledger.by_phase == {"forward": 2 * NNZ * F, "backward": 2 * NNZ * F}


def test_backward_to_stored_values_computes_only_those():
    adjacency, x = LAYOUTS["csr"].clone().requires_grad_(), X.clone().requires_grad_()
    ledger = bill(lambda: torch.sparse.mm(adjacency, x).backward(torch.ones(N, F)))
    assert ledger.matmul_flops == 6 * NNZ * F


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
def test_reducing_products(reduce):
    x = X.clone().requires_grad_()
    ledger = bill(lambda: torch.sparse.mm(LAYOUTS["csr"], x, reduce).backward(torch.ones(N, F)))
    assert ledger.by_phase == {"forward": 2 * NNZ * F, "backward": 2 * NNZ * F}


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_times_sparse_costs_the_entries_that_meet(layout):
    meetings = int((DENSE.bool().sum(0) * DENSE.bool().sum(1)).sum())
    assert bill(lambda: LAYOUTS[layout] @ LAYOUTS[layout]).flops == 2 * meetings


@pytest.mark.parametrize("function", [torch.sparse.softmax, torch.sparse.log_softmax])
def test_softmax_over_stored_entries(function):
    assert bill(lambda: function(LAYOUTS["coo"], 1)).flops == 5 * NNZ


def test_sums_and_sampled_products():
    assert bill(lambda: torch.sparse.sum(LAYOUTS["coo"], 1)).flops == NNZ
    sampled = bill(lambda: torch.sparse.sampled_addmm(LAYOUTS["csr"], X, X.T, beta=0.0))
    assert sampled.matmul_flops == 2 * NNZ * F


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_arithmetic_on_stored_values(layout):
    sparse = LAYOUTS[layout]
    assert bill(lambda: sparse * 2.0).flops == NNZ
    assert bill(lambda: sparse + sparse).flops == NNZ
    assert bill(lambda: sparse.to_dense()).flops == 0
    for target in ("to_sparse_coo", "to_sparse_csr", "to_sparse_csc"):
        assert bill(getattr(sparse, target)).flops == 0
