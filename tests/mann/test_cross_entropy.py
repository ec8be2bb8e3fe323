import pytest
import torch
import torch.nn.functional as F

from mann.cross_entropy import linear_cross_entropy, linear_cross_entropy_and_total
from tests.mann.inputs import assert_same, randn


@pytest.mark.parametrize("rows", [1, 7, 127, 128, 129, 300])
@pytest.mark.parametrize(("width", "vocab"), [(5, 11), (16, 2), (3, 260)])
def test_it_is_cross_entropy_of_a_product(rows, width, vocab):
    x, weight = randn(rows, width), randn(vocab, width, seed=1)
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(2))
    assert_same(
        lambda x, weight: linear_cross_entropy(x, weight, targets),
        lambda x, weight: F.cross_entropy(x @ weight.T, targets, reduction="none"),
        x,
        weight,
    )


def test_a_row_without_upstream_gradient_gets_none():
    x, weight = randn(4, 3), randn(5, 3, seed=1)
    nll = linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 3]))
    (grad,) = torch.autograd.grad(nll[2], x)
    assert grad[2].any()
    grad[2] = 0
    assert not grad.any()


def test_bfloat16_autocast_is_near_and_summed_in_float32():
    x = randn(200, 64, dtype=torch.float32)
    weight = (0.1 * randn(500, 64, seed=1, dtype=torch.float32)).detach().requires_grad_()
    targets = torch.arange(200)
    with torch.autocast("cpu", torch.bfloat16):
        nll = linear_cross_entropy(x, weight, targets)
    exact = F.cross_entropy(x @ weight.T, targets, reduction="none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, exact, rtol=1e-2, atol=2e-2)
    near = torch.autograd.grad(nll.mean(), [x, weight])
    right = torch.autograd.grad(exact.mean(), [x, weight])
    for one, other in zip(near, right, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_huge_logits_stay_finite():
    x = torch.tensor([[1e4, -1e4]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    nll = linear_cross_entropy(x, weight, torch.tensor([1]))
    assert nll.item() == pytest.approx(2e4)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(nll.sum(), [x, weight]))


def test_float16_holds_the_error_of_a_uniform_distribution():
    # A sum of 70,000 exponentials is more than float16 can hold.
    x, weight = torch.ones(2, 4, requires_grad=True), torch.zeros(70_000, 4, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        nll = linear_cross_entropy(x, weight, torch.tensor([0, 1]))
    torch.testing.assert_close(nll, torch.full((2,), 70_000.0).log())
    (grad,) = torch.autograd.grad(nll.sum(), weight)
    torch.testing.assert_close(grad[0], torch.full((4,), -1.0), rtol=1e-3, atol=1e-3)
    assert (grad[2:] > 0).all()


@pytest.mark.parametrize("rows", [1, 128, 129])
def test_with_it_comes_the_log_of_the_sum(rows):
    x, weight = randn(rows, 5), randn(11, 5, seed=1)
    targets = torch.randint(0, 11, (rows,), generator=torch.Generator().manual_seed(2))
    assert_same(
        lambda x, weight: linear_cross_entropy_and_total(x, weight, targets),
        lambda x, weight: (
            F.cross_entropy(x @ weight.T, targets, reduction="none"),
            (x @ weight.T).logsumexp(-1),
        ),
        x,
        weight,
    )


def test_the_log_of_the_sum_is_near_under_bfloat16_autocast():
    x = randn(200, 64, dtype=torch.float32)
    weight = (0.1 * randn(500, 64, seed=1, dtype=torch.float32)).detach().requires_grad_()
    targets = torch.arange(200)
    with torch.autocast("cpu", torch.bfloat16):
        nll, total = linear_cross_entropy_and_total(x, weight, targets)
    exact = (x @ weight.T).logsumexp(-1)
    assert nll.dtype == total.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=1e-2, atol=2e-2)
    near = torch.autograd.grad(total.mean(), [x, weight], retain_graph=True)
    right = torch.autograd.grad(exact.mean(), [x, weight])
    for one, other in zip(near, right, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm()
