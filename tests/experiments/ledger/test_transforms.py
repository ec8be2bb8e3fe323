"""Compiled functions, function transforms and control flow are billed as what they compute."""

import pytest
import torch
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import register_flop_formula

from experiments.ledger import Ledger, UnpricedOperator

N, D, F = 5, 3, 4
X, W = torch.rand(N, D), torch.rand(D, F)
PRODUCT = 2 * N * D * F


def bill(function):
    with Ledger() as ledger:
        function()
    return ledger


def loss(x):
    return torch.relu(x @ W).sum()


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_function_has_the_bill_of_the_plain_one(fullgraph, warm):
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=fullgraph)
    x = X.clone().requires_grad_()
    if warm:
        compiled(x).backward()
    x.grad = None
    plain = bill(lambda: loss(X.clone().requires_grad_()).backward())
    assert bill(lambda: compiled(x).backward()).by_phase == plain.by_phase


def test_compiled_function_stays_compiled_after_the_ledger_closes():
    torch._dynamo.reset()
    ran = []

    def backend(graph, inputs):
        return lambda *args: ran.append(1) or graph(*args)

    compiled = torch.compile(loss, backend=backend)
    compiled(X)
    bill(lambda: compiled(X))
    compiled(X)
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("function", "matmul_flops"),
    [
        (lambda: vmap(lambda row: row @ W)(X), PRODUCT),
        (lambda: grad(loss)(X), 2 * PRODUCT),
        (lambda: vmap(grad(loss))(X), 2 * PRODUCT),
        # The derivative of the weight, which is zero, is multiplied as well.
        (lambda: jvp(lambda x: x @ W, (X,), (X,)), 3 * PRODUCT),
        (lambda: jacrev(lambda x: x @ W)(X[0]), 2 * D * F + 2 * D * F * F),
        (lambda: functional_call(torch.nn.Linear(D, F), {"weight": W.T, "bias": W[0]}, X), PRODUCT),
    ],
    ids=["vmap", "grad", "vmap of grad", "jvp", "jacrev", "functional_call"],
)
def test_transforms(function, matmul_flops):
    assert bill(function).matmul_flops == matmul_flops


def test_transforms_of_transforms_are_priced():
    assert bill(lambda: hessian(lambda x: (x @ W).square().sum())(X[0])).matmul_flops > 0
    assert bill(lambda: jacfwd(lambda x: torch.tanh(x @ W))(X[0])).matmul_flops > 0


def test_control_flow_costs_what_its_functions_do():
    true = torch.tensor(True)
    assert bill(lambda: torch.cond(true, lambda x: (x * 2,), lambda x: (x @ W @ W.T,), (X,))).flops == N * D
    counted = bill(
        lambda: while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x @ W @ W.T), (torch.tensor(0), X))
    )
    assert counted.matmul_flops == 3 * 2 * PRODUCT
    assert bill(lambda: scan(lambda c, x: (c + x, c * x), torch.zeros(D), X)).flops == 2 * N * D
    assert bill(lambda: associative_scan(lambda a, b: a + b, X, 0, combine_mode="generic")).flops > 0


@torch.library.custom_op("ledger_transforms::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x @ (2 * torch.eye(x.shape[-1], device=x.device))


@double.register_fake
def _(x):
    return torch.empty_like(x)


def test_operator_of_ones_own_is_refused_until_it_has_a_formula():
    with pytest.raises(UnpricedOperator, match=r"ledger_transforms.double") as refused:
        bill(lambda: double(X))
    assert "test_transforms.py" in refused.value.line
    assert "register_flop_formula" in str(refused.value)

    def formula(x_shape, *args, out_val=None, **kwargs):
        return 2 * x_shape.numel() * x_shape.shape[-1]

    formula.bytes_formula = lambda x, **kwargs: (x.nbytes, x.nbytes, 7)
    register_flop_formula(torch.ops.ledger_transforms.double, get_raw=True)(formula)
    for x in (X, X.to("meta")):
        ledger = bill(lambda x=x: double(x))
        assert ledger.flops == 2 * N * D * D
        assert (ledger.bytes_read, ledger.bytes_written, ledger.bytes_random) == (X.nbytes, X.nbytes, 7)


def test_tangents_laid_out_otherwise_are_written_anew():
    tangent = torch.ones(F, N).T
    ledger = bill(lambda: jvp(torch.sin, (torch.rand(N, F),), (tangent,)))
    assert ledger.flops == bill(lambda: jvp(torch.sin, (torch.rand(N, F),), (torch.ones(N, F),))).flops
    assert "aten._new_zeros_with_same_feature_meta" in ledger.by_operator
