import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import Ledger
from mann.linear import WORTH, Linear, product, weight_gradient
from tests.mann.inputs import assert_same, randn

LARGE = [(300, 64, 96), (300, 96, 64), (300, 64, 64)]


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


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(0, 8, 4), (1, 3, 5), (7, 64, 32), *LARGE])
def test_products_of_every_size_and_stride(rows, d_in, d_out):
    x, weight = randn(d_in, rows, dtype=torch.float32).detach().t(), randn(d_out, d_in, dtype=torch.float32)
    grad = randn(rows, d_out, seed=1, dtype=torch.float32).detach()
    torch.testing.assert_close(product(x, weight.detach()), x @ weight.detach().t(), rtol=1e-5, atol=1e-4)
    found = weight_gradient(grad, x)
    torch.testing.assert_close(found, grad.t() @ x, rtol=1e-5, atol=1e-4)
    # Autograd clones any other.
    assert found.is_contiguous()


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


@pytest.mark.parametrize(("d_in", "d_out"), [(16, 16), (256, 256), (128, 256), (256, 128), (1024, 1024)])
@pytest.mark.parametrize("shape", [(), (64,), (8, 64)])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("wants", [False, True])
def test_the_bill_does_not_depend_on_the_device(d_in, d_out, shape, strided, wants):
    bills = []
    for device in ("cpu", "meta"):
        layer = Linear(d_in, d_out).to(device)
        x = torch.randn(*shape, d_in, device=device)
        if strided:
            x = torch.stack([x, x], -1)[..., 0]
        x.requires_grad_(wants)
        upstream = torch.ones(*shape, d_out, device=device)
        with Ledger() as ledger:
            layer(x).backward(upstream)
        bills.append(ledger.to_dict())
    assert bills[0] == bills[1]
    assert set(bills[0]["by_operator"]) <= {"aten.mm", "aten.clone"}
    assert bills[0]["matmul_flops"] == bills[0]["flops"]


@pytest.mark.parametrize("width", [8, 1024])
def test_one_vector_is_enough(width):
    layer = Linear(width, width)
    assert_same(
        lambda x, weight: layer(x),
        lambda x, weight: weight @ x,
        randn(width, dtype=torch.float32),
        layer.weight,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("rows", [2, 128])
def test_transforms_of_functions(rows):
    layer, xs = Linear(128, 128), randn(3, rows, 128, dtype=torch.float32).detach()

    def loss(weight, x):
        return torch.func.functional_call(layer, {"weight": weight}, x).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), xs)
    wanted = 2 * torch.einsum("bto,bti->boi", layer(xs), xs)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-3)
