import torch

from experiments.ledger.prices import PRICES, SECTIONS


def test_every_name_is_an_operator_and_is_priced_once():
    assert sum(map(len, SECTIONS.values())) == len(PRICES)
    for name in PRICES:
        namespace, operator = name.split(".", 1)
        home = getattr(torch.ops, namespace)
        assert hasattr(home, operator) or hasattr(home, f"{operator}_"), f"{name} does not exist in torch"


def test_every_price_is_explained():
    assert not [name for name, price in PRICES.items() if not price.because]
