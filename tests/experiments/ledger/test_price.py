"""What is read and what is written: a place for results is written only, what is changed in place is both."""

import pytest
import torch
from torch import Tensor

from experiments.ledger import Ledger

N, K = 8, 4
FLOATS = 4 * N * N
X, Y = torch.rand(N, N), torch.rand(N, N)
POSITIVE = X @ X.T + N * torch.eye(N)
RIGHT = torch.rand(N, K)


def bill(call):
    with Ledger() as ledger:
        call()
    return ledger.flops, ledger.bytes_read, ledger.bytes_written


FUNCTIONS = {
    "mm": (torch.mm, (X, Y), {}),
    "addmm": (torch.addmm, (X, X, Y), {"beta": 2}),
    "bmm": (torch.bmm, (X[None], Y[None]), {}),
    "exp": (torch.exp, (X,), {}),
    "add": (torch.add, (X, Y), {"alpha": 3}),
    "sum": (torch.sum, (X, 0), {}),
    "sort": (torch.sort, (X,), {}),
    "topk": (torch.topk, (X, 3), {}),
    "cat": (torch.cat, ([X, Y],), {}),
    "take": (torch.take, (X, torch.arange(N)), {}),
    "index_select": (torch.index_select, (X, 0, torch.arange(3)), {}),
    "solve_triangular": (torch.linalg.solve_triangular, (X, RIGHT), {"upper": True}),
    "inv_ex": (torch.linalg.inv_ex, (POSITIVE,), {}),
    "softmax": (torch.softmax, (X, 1), {}),
    "log_softmax": (torch.log_softmax, (X, 1), {}),
    "linear": (torch.nn.functional.linear, (X, Y, Y[0]), {}),
    "max": (torch.max, (X, Y), {}),
    "max along": (torch.max, (X, 0), {}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_place_for_results_makes_no_difference(name):
    function, args, kwargs = FUNCTIONS[name]
    out = function(*args, **kwargs)
    place = torch.empty_like(out) if isinstance(out, Tensor) else tuple(map(torch.empty_like, out))
    plain = bill(lambda: function(*args, **kwargs))
    assert bill(lambda: function(*args, **kwargs, out=place)) == plain


def test_a_product_put_into_a_place():
    assert bill(lambda: torch.mm(X, Y, out=torch.empty(N, N))) == (2 * N**3, 2 * FLOATS, FLOATS)


def test_what_is_changed_in_place_is_read():
    x = X.clone()
    assert bill(lambda: x.add_(Y)) == (N * N, 2 * FLOATS, FLOATS)
    assert bill(lambda: torch._foreach_add_([x], [Y])) == (N * N, 2 * FLOATS, FLOATS)
    assert bill(lambda: x.addmm_(X, Y))[1:] == (3 * FLOATS, FLOATS)
