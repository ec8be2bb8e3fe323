"""The golden table: calls whose cost is known in closed form, on every device they run on."""

import json

import pytest
import torch

from experiments.ledger import Ledger
from tests.experiments.ledger.golden import FILE, golden

ROWS = json.loads(FILE.read_text(encoding="utf-8"))
NUMBERS = ("flops", "matmul_flops", "bytes_read", "bytes_written")


def test_the_file_holds_what_the_formulas_say():
    assert golden() == ROWS


@pytest.mark.parametrize(
    ("row", "device"),
    [(row, device) for row in ROWS for device in row["devices"]],
    ids=lambda x: x if x is str else None,
)
def test_row(row, device):
    space = {"torch": torch, "device": device}
    exec(row["code"], space)
    with Ledger() as ledger:
        space["call"]()
    expected = {name: row[name] for name in NUMBERS if row[name] is not None}
    assert {name: getattr(ledger, name) for name in expected} == expected, row["case"]
