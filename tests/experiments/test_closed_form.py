"""The ledger's total for the arms of the default comparison is the one worked out by hand, to the integer."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.arms import ARMS
from experiments.evaluation import read_bill
from experiments.ledger import Bill
from experiments.step import step_bill
from mann import Context, NGramMemory, Transformer
from retrieval import Neighbors, Passages
from tests.experiments.closed_form import BLOCK, Sizes, Work, billed_pairs
from tests.experiments.closed_form_memory import ORDERS, RETRIEVING, reading, step

# Times that blocks divide and do not, fewer neighbours than a reader has ranks for, windows that hold fewer nodes
# than there are tokens (the last: 12 * 16 * 3).
SIZES = (
    Sizes(vocab=300, width=64, layers=2, batch=2, time=100),
    Sizes(vocab=128, width=32, layers=1, batch=3, time=64),
    Sizes(vocab=500, width=96, layers=3, batch=1, time=130, k=5),
    Sizes(vocab=2000, width=64, layers=1, batch=1, time=12, heads=4),
)
DERIVED = (
    "dense",
    "ngram",
    "unigram table",
    "knn",
    "random neighbours",
    "graph",
    "suffix graph",
    "shuffled edges",
)


def name(s: Sizes) -> str:
    return f"width {s.width}, time {s.time}"


def billed(arm: str, s: Sizes, precision: str = "bf16-mixed") -> Bill:
    settings = {name: getattr(s, name) for name in ("layers", "batch", "time", "k", "heads")}
    return step_bill(ARMS[arm], s.vocab, s.width, {**settings, "precision": precision})


def by_phase(bill: Bill) -> dict[str, Work]:
    costs = bill.costs("phase").items()
    return {phase: Work(cost.matmul_flops, cost.flops - cost.matmul_flops) for phase, cost in costs}


def text(s: Sizes) -> Tensor:
    """The tokens of the step that is billed."""
    made_up = torch.Generator().manual_seed(0)
    return torch.randint(1, s.vocab, (s.batch, s.time + 1), generator=made_up)[:, :-1]


def rows_read(arm: str, s: Sizes) -> int:
    if arm not in ORDERS:
        return 0
    orders, n_heads = ORDERS[arm]
    memory = NGramMemory(s.width, orders=orders, n_heads=n_heads)
    return len(memory.rows(Context(text(s))).unique())


@pytest.mark.parametrize("s", SIZES, ids=name)
@pytest.mark.parametrize("arm", DERIVED)
def test_a_training_step_costs_what_a_hand_arrives_at(arm: str, s: Sizes) -> None:
    expected = step(arm, s, rows_read(arm, s))
    assert by_phase(billed(arm, s)) == vars(expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("arm", ["dense", "graph"])
def test_so_does_one_of_the_default_size(arm: str, precision: str) -> None:
    s = Sizes(vocab=4096, width=64)
    assert by_phase(billed(arm, s, precision)) == vars(step(arm, s))


@pytest.mark.parametrize("s", SIZES, ids=name)
@pytest.mark.parametrize("arm", ["dense", "ngram", "knn", "graph"])
def test_a_reading_costs_what_a_hand_arrives_at(arm: str, s: Sizes) -> None:
    tokens = text(s)
    store = Passages(tokens.flatten().numpy().astype(np.uint16), np.array([0, s.tokens]), vocab_size=s.vocab)
    make = ARMS[arm].source
    source = None if make is None else make(store)
    network = Transformer(s.vocab, s.width, s.layers, s.heads, **ARMS[arm].slots(s.layers, source))
    batch: dict[str, Any] = {"tokens": tokens, "documents": torch.zeros_like(tokens)}
    if arm in RETRIEVING:
        shape = (s.batch, s.time, s.k)
        ids, mask = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
        batch["neighbors"] = Neighbors(torch.ones(shape), ids, mask)
    assert by_phase(read_bill(network, batch)) == {"forward": reading(arm, s)}


@pytest.mark.parametrize("s", SIZES[:3], ids=name)
def test_products_are_six_a_weight_and_token_and_attention_and_muon(s: Sizes) -> None:
    d, time = s.width, s.time
    weights = s.layers * 12 * d * d + d * s.vocab
    blocks = sum(min(BLOCK, time - start) * min(BLOCK + start, time) for start in range(0, time, BLOCK))
    attention = 6 * s.layers * s.batch * 2 * d * blocks
    square, oblong = 2 * 3 * d**3, 2 * (4 + 1 + 4) * d**3
    muon = 3 * s.layers * (4 * square + 2 * oblong)
    assert billed("dense", s).matmul_flops == 6 * weights * s.tokens + attention + muon


@pytest.mark.parametrize("time", [64, 128, 256, 1024])
def test_attention_bills_more_than_the_causal_half_by_63_in_time_and_one(time: int) -> None:
    s = Sizes(vocab=64, width=32, layers=1, batch=1, time=time)
    pairs, left = divmod(billed("dense", s).by_operator["aten._softmax"], 5)
    half = time * (time + 1) // 2
    # A quarter more at 256, one in sixteen at 1024.
    assert (left, pairs) == (0, billed_pairs(time))
    assert (pairs - half) * (time + 1) == (BLOCK - 1) * half


def test_dead_pairs_are_two_in_a_hundred_of_a_dense_step() -> None:
    s = Sizes(vocab=4096, width=64)
    dead = billed_pairs(s.time) - s.time * (s.time + 1) // 2
    # Six products forward and backward; mask, softmax and its gradient.
    each = 6 * 2 * (s.width // s.n_heads) + 1 + 5 + 4
    spent = s.layers * s.batch * s.n_heads * dead * each
    assert spent / step("dense", s).total.flops == pytest.approx(0.02, abs=0.001)
