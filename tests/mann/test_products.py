"""Products of pairs of matrices, beside torch's, whichever library makes them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import Ledger
from mann import products as module
from mann.products import products


def drawn(n: int, rows: int, columns: int, turned: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    if turned:
        return torch.randn(n, columns, rows, generator=generator).to(dtype).mT
    return torch.randn(n, rows, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("n", "rows", "d", "columns"), [(3, 128, 64, 256), (1, 7, 5, 3), (0, 4, 4, 4), (2, 1, 1, 1)]
)
def test_it_is_the_product(monkeypatch, fast, turned, n, rows, d, columns):
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: fast and module._onednn is not None)
    a, b = drawn(n, rows, d, turned[0]), drawn(n, d, columns, turned[1])
    torch.testing.assert_close(products(a, b), a @ b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_matrices_with_gaps(monkeypatch, dtype):
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: module._onednn is not None)
    a, b = drawn(2, 128, 64, False, dtype), drawn(2, 64, 256, False, dtype)
    assert torch.equal(products(a, b), a @ b)
    a, b = drawn(2, 128, 64, False), drawn(2, 64, 512, False)[:, :, ::2]
    assert not module._pays(a, b)
    torch.testing.assert_close(products(a, b), a @ b)


def test_it_is_billed_as_torchs():
    bills = []
    for call in (products, torch.bmm):
        for device in ("cpu", "meta"):
            a, b = (x.to(device) for x in (drawn(2, 128, 64, False), drawn(2, 64, 256, True)))
            with Ledger() as ledger, FlopCounterMode(display=False) as counter:
                call(a, b)
            assert ledger.flops == counter.get_total_flops() == 2 * 2 * 128 * 64 * 256
            bills.append((ledger.flops, ledger.bytes))
    assert len(set(bills)) == 1


def test_the_operator_passes_torchs_own_checks():
    a, b = drawn(2, 8, 4, False), drawn(2, 4, 8, False)
    torch.library.opcheck(torch.ops.mnemograph.products.default, (a, b))
