import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mann.linear import WORTH, Linear, product, weight_gradient
from tests.mann.inputs import assert_same, randn


@pytest.mark.parametrize(("d_in", "d_out"), [(96, 200), (200, 96), (128, 128)])
@pytest.mark.parametrize("shape", [(64,), (3, 31), (2, 5, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_its_formula(d_in, d_out, shape, dtype):
    layer = Linear(d_in, d_out).to(dtype)
    x = randn(*shape, d_in, dtype=dtype)
    assert x.numel() * d_out >= WORTH
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert_same(
        lambda x, weight: layer(x),
        lambda x, weight: torch.einsum("...i,oi->...o", x, weight),
        x,
        layer.weight,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(0, 8, 4), (1, 3, 5), (7, 64, 32), (300, 64, 96)])
def test_products_of_every_size_and_stride(rows, d_in, d_out):
    x, weight = randn(d_in, rows, dtype=torch.float32).detach().t(), randn(d_out, d_in, dtype=torch.float32)
    grad = randn(rows, d_out, seed=1, dtype=torch.float32).detach()
    torch.testing.assert_close(product(x, weight.detach()), x @ weight.detach().t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(weight_gradient(grad, x), grad.t() @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer = Linear(128, 128)
    x = randn(128, 128, dtype=torch.float32).requires_grad_(frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    layer(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (layer.weight.grad is None) == (frozen == "weight")


def test_autocast_decides_the_type():
    layer = Linear(128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(128, 128)).dtype == torch.bfloat16


def test_the_flops_do_not_depend_on_the_library():
    layer, x = Linear(128, 256), randn(64, 128, dtype=torch.float32)
    counted = []
    for dtype in (torch.float32, torch.float64):
        with FlopCounterMode(display=False) as counter:
            layer.to(dtype)(x.detach().to(dtype).requires_grad_()).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted == [3 * 2 * 64 * 128 * 256] * 2
