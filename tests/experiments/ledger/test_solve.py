from functools import partial

import pytest
import torch

from experiments.ledger import Match, match_size, predict, steps_for
from mann import LanguageModule, NGramMemory, SwiGLU, Transformer

TOKENS = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))


def step(width, device="meta", **slots):
    return predict(
        lambda: LanguageModule(Transformer(256, width, 2, 1, **slots), total_steps=100),
        {"tokens": TOKENS, "targets": TOKENS},
        device=device,
    )


def test_a_dense_model_with_the_step_of_one_with_memory():
    # Its optimizer updates the rows of the table that the tokens name, whose number is not a shape.
    memory = step(32, "cpu", feedforward=SwiGLU, memory={0: NGramMemory, 2: NGramMemory})
    asked = []

    def dense(hidden):
        return step(32, feedforward=partial(SwiGLU, hidden=hidden)).flops

    def cost(hidden):
        asked.append(hidden)
        return dense(hidden)

    match = match_size(cost, memory.flops, range(64, 1025))
    assert abs(match.residual) < 0.01
    assert match.flops == dense(match.size)
    assert match.residual == match.flops / memory.flops - 1
    assert match.size > 80
    assert len(asked) == len(set(asked)) <= 13


@pytest.mark.parametrize(("budget", "size"), [(9, 3), (12, 3), (13, 4), (16, 4), (1, 1), (100, 10)])
def test_the_nearest_size_on_either_side(budget, size):
    assert match_size(lambda n: n * n, budget, range(1, 11)) == Match(size, size**2, size**2 / budget - 1)


def test_budgets_out_of_reach_and_sizes_out_of_order():
    with pytest.raises(ValueError, match=r"more than sizes 1 to 9 can cost \(81\): widen"):
        match_size(lambda n: n * n, 100, range(1, 10))
    with pytest.raises(ValueError, match="less than sizes 2 to 9"):
        match_size(lambda n: n * n, 3, range(2, 10))
    with pytest.raises(ValueError, match="ascending"):
        match_size(lambda n: n * n, 9, range(9, 0, -1))
    with pytest.raises(ValueError, match="no sizes"):
        match_size(lambda n: n * n, 9, [])


def test_steps_a_budget_pays_for():
    assert steps_for(10, 99) == 9
    bill = step(16)
    assert steps_for(bill, 2 * bill.flops) == 2
    with pytest.raises(ValueError, match="costs nothing"):
        steps_for(0, 5)
