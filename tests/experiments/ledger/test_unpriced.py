"""What the error says to type is typed, and the operator has a price; so has whatever else a price can be put on."""

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from experiments.ledger import Ledger, UnpricedOperator, elementwise
from experiments.ledger.price import Price, priced
from experiments.ledger.prices import PRICES

N, D = 3, 4


@torch.library.custom_op("ledgertypes::mm", mutates_args=())
def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left @ right


@torch.library.custom_op("ledgertypes::halves", mutates_args=())
def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[:1].clone(), x[1:].clone()


@torch.library.custom_op("ledgertypes::count", mutates_args={"x"})
def count_up(x: torch.Tensor) -> None:
    x.add_(1)


X = torch.ones(N, D)
OPERATORS = {
    "ledgertypes.mm": (lambda: product(X, X.T), N * N, N * N),
    "ledgertypes.halves": (lambda: halves(X), N * D, N * D),
    "ledgertypes.count": (lambda: count_up(X.clone()), N * D, 1),
}


def remedies(call) -> list[str]:
    """The lines of the error that are to be typed, in order."""
    with pytest.raises(UnpricedOperator) as error, Ledger():
        call()
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  module: ")
    assert lines[2].startswith("  called at: ")
    return [line.strip() for line in lines[3:] if line.startswith("  ")]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_lines_for_one_ledger_price_it(name):
    call, elements, _ = OPERATORS[name]
    space = {"torch": torch}
    for line in remedies(call)[:2]:
        exec(line, space)
    with space["ledger"] as ledger:
        call()
    assert ledger.by_operator.get(name) == elements
    assert ledger.matmul_flops == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_the_lines_for_every_ledger_price_it(name):
    call, _, flops = OPERATORS[name]
    lines = remedies(call)[2:]
    operator = getattr(torch.ops.ledgertypes, name.split(".")[1])
    space = {"torch": torch}
    try:
        for line in lines:
            exec(line, space)
        with Ledger() as ledger:
            call()
    finally:
        flop_registry.pop(operator, None)
    assert ledger.by_operator.get(name) == flops


def unpriced():
    return torch.ops.aten._fake_quantize_learnable_per_tensor_affine(X, torch.ones(1), torch.zeros(1), 0, 255)


def test_the_lines_for_an_operator_of_torch_price_it(monkeypatch):
    *lines, entry = remedies(unpriced)
    space = {"torch": torch}
    for line in lines:
        exec(line, space)
    with space["ledger"] as ledger:
        unpriced()
    assert ledger.flops == N * D
    table = eval(f"{{{entry}}}", {"priced": priced, "elementwise": elementwise})
    for name, price in table.items():
        monkeypatch.setitem(PRICES, name, price)
    with Ledger() as ledger:
        unpriced()
    assert ledger.flops == N * D


PRICE = elementwise(7, "seven")


@pytest.mark.parametrize(
    "operator",
    [
        torch.ops.aten.add,
        torch.ops.aten.add.Tensor,
        "aten.add",
        "aten::add",
        "aten.add.Tensor",
        "aten::add.Tensor",
    ],
    ids=str,
)
def test_a_price_is_put_on_an_operator_an_overload_or_a_name(operator):
    with Ledger(prices={operator: PRICE}) as ledger:
        X + X
    assert ledger.by_operator == {"aten.add": 7 * N * D}


def test_an_overload_goes_before_its_operator_and_leaves_others_alone():
    prices = {torch.ops.aten.add: Price(), torch.ops.aten.add.Tensor: PRICE, "aten.mul.Scalar": PRICE}
    with Ledger(prices=prices) as ledger:
        X * X
        X + X
        X.clone().add_(X)
    costs = {"aten.mul": N * D, "aten.add": 7 * N * D, "aten.add_": 0, "aten.clone": 0}
    assert ledger.by_operator == costs


@pytest.mark.parametrize(
    ("operator", "error", "named"),
    [
        (product, TypeError, "CustomOpDef"),
        (torch.add, TypeError, "add"),
        ("add", ValueError, "'add'"),
        ("aten.addd", ValueError, "'aten.addd'"),
        ("aten", ValueError, "'aten'"),
        ("aten.add.tensor", ValueError, "'aten.add.tensor'"),
    ],
)
def test_what_is_no_operator_is_refused_by_name(operator, error, named):
    with pytest.raises(error, match=named):
        Ledger(prices={operator: PRICE})
