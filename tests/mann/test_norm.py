import pytest
import torch
import torch.nn.functional as F

from mann.norm import EPSILON, rms_norm
from tests.mann.inputs import assert_same, randn


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_it_is_rms_norm(shape, size):
    x = (size * randn(*shape)).detach().requires_grad_()
    assert_same(rms_norm, lambda x: F.rms_norm(x, x.shape[-1:], eps=EPSILON), x)


def test_zero_has_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_autocast_gives_its_type_and_a_gradient_of_the_input_type():
    x = randn(4, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), rms_norm(x), rtol=1e-2, atol=1e-2)
    weight = randn(4, 64, dtype=torch.float32, seed=1)
    (exact,) = torch.autograd.grad((rms_norm(x) * weight).sum(), x)
    (grad,) = torch.autograd.grad((y * weight.bfloat16()).sum(), x)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, exact, rtol=5e-2, atol=5e-2)


def test_length_in_bfloat16_is_summed_in_float32():
    x = torch.full((1, 4096), 3.0, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x), torch.ones_like(x))


def test_second_derivatives_are_refused():
    x = randn(3, 5)
    (first,) = torch.autograd.grad(rms_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
