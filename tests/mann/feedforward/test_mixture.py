"""A mixture against its experts run one by one on every token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from experiments.ledger import Ledger, predict
from mann import Transformer
from mann.feedforward.mixture import MixtureOfExperts
from mann.optim import RoleOptimizer
from tests.contracts import assert_feedforward, batch, opened
from tests.mann.inputs import randn
from tests.retrieval.distributed.worlds import World

SMALL: dict[str, Any] = {"n_experts": 5, "k": 3, "hidden": 4}


def layer(seed: int = 0, **options: Any) -> MixtureOfExperts:
    torch.manual_seed(seed)
    return opened(MixtureOfExperts(6, **{**SMALL, **options}).double(), seed)


def swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = (x @ up.T).chunk(2, -1)
    return (F.silu(gate) * value) @ down.T


def naive(mixture: MixtureOfExperts, x: Tensor) -> Tensor:
    n = mixture.n_experts
    # Scores are computed in float32.
    scores = (x @ mixture.router.weight.T).float().sigmoid()
    chosen = (scores + mixture.bias).topk(mixture.k, -1).indices
    share = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
    share = share / share.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert, (up, down) in enumerate(zip(mixture.up.chunk(n), mixture.down.chunk(n), strict=True)):
        y = y + share[..., expert : expert + 1] * swiglu(x, up, down)
    if mixture.shared_up is not None and mixture.shared_down is not None:
        y = y + swiglu(x, mixture.shared_up.weight, mixture.shared_down.weight)
    return y


@pytest.mark.parametrize("n_shared", [0, 1, 2])
@pytest.mark.parametrize("k", [2, 5])
def test_outputs_and_gradients_are_those_of_all_experts(n_shared, k):
    mixture, x = layer(n_shared=n_shared, k=k), randn(2, 9, 6)
    mixture.bias.copy_(torch.tensor([0.0, 0.3, -0.3, 0.1, 5.0]))
    given = [x, *mixture.parameters()]
    out, expected = mixture(x), naive(mixture, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weight = randn(2, 9, 6, seed=3).detach()
    found, due = (torch.autograd.grad((y * weight).sum(), given) for y in (out, expected))
    assert all(part.any() for part in found)
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_experts_that_are_all_the_same_are_one():
    mixture, x = layer(n_shared=0), randn(2, 9, 6)
    with torch.no_grad():
        for stack in (mixture.up, mixture.down):
            stack.copy_(stack[: len(stack) // 5].repeat(5, 1))
    expected = swiglu(x, mixture.up.chunk(5)[0], mixture.down.chunk(5)[0])
    torch.testing.assert_close(mixture(x), expected, rtol=1e-5, atol=1e-5)


def bias_of(mixture: MixtureOfExperts) -> Tensor:
    """What the next choice adds to the scores."""
    return mixture._balanced().clone()


def test_each_step_moves_the_bias_towards_who_was_chosen_less():
    mixture, x = layer(rate=0.25), randn(2, 9, 6)
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.0)
    expected, load = torch.zeros(5).double(), torch.zeros(5)
    for step in range(3):
        load.zero_()
        # Two batches make one step, in which nothing moves.
        for x in randn(2, 2, 9, 6, seed=step):
            chosen = mixture.route(x.flatten(0, 1))[1]
            load += torch.bincount(chosen.flatten(), minlength=5)
            mixture(x).sum().backward()
            torch.testing.assert_close(bias_of(mixture).double(), expected)
        optimizer.step()
        expected += 0.25 * (load.mean() - load).sign()
        torch.testing.assert_close(bias_of(mixture).double(), expected)
    assert len(set(expected.tolist())) > 1


def test_reading_moves_nothing():
    mixture, x = layer(rate=0.25), randn(2, 9, 6)
    with torch.no_grad():
        mixture(x)
    mixture.eval()(x).sum().backward()
    assert not mixture.load.any()


def test_the_bias_chooses_and_does_not_weigh():
    mixture, x = layer(), randn(4, 6).detach()
    before, experts = mixture.route(x)
    mixture.bias.fill_(-3.0)
    after, same = mixture.route(x)
    assert torch.equal(before, after)
    assert torch.equal(experts, same)
    mixture.bias[1] = 100.0
    assert (mixture.route(x)[1] == 1).any(-1).all()


def test_load_that_is_uneven_becomes_even():
    torch.manual_seed(0)
    mixture = MixtureOfExperts(6, n_experts=8, k=2, hidden=4, rate=0.01)
    with torch.no_grad():
        mixture.router.weight.add_(0.2 * torch.arange(8)[:, None])
    x = torch.randn(4, 64, 6) + 0.5

    def most() -> float:
        return float(torch.bincount(mixture.route(x.flatten(0, 1))[1].flatten(), minlength=8).max() / 64)

    start = most()
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.0)
    for _ in range(150):
        mixture(x).sum().backward()
        optimizer.step()
    assert start > 3
    assert most() < 1.5


def test_a_checkpoint_computes_the_same_again_and_counts_once():
    plain, again, x = layer(rate=0.25), layer(rate=0.25), randn(2, 9, 6)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (plain, again)]
    for _ in range(3):
        plain(x).square().sum().backward()
        checkpoint(again, x, use_reentrant=False).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert bias_of(plain).any()
    assert torch.equal(bias_of(plain), bias_of(again))
    assert torch.equal(plain.up.grad, again.up.grad)


def test_training_goes_on_bit_for_bit_from_a_saved_state():
    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for step in range(steps):
            optimizer.zero_grad()
            model(randn(2, 9, 6, seed=step)).square().sum().backward()
            optimizer.step()

    one = layer(rate=0.1)
    train(one, 4)
    other = layer(seed=5)
    other.rate = 0.1
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for model in (one, other):
        train(model, 4)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


RANKS, STEPS, BATCHES = 2, 4, 2


def part(rank: int, step: int, number: int) -> Tensor:
    """What one process reads, unlike what the other does: its experts are other ones."""
    return (randn(2, 9, 6, seed=100 * rank + 10 * step + number) + 1 - 2 * rank).detach()


def still() -> MixtureOfExperts:
    """One that steps change nothing in but the bias: processes whose gradients are not averaged would go apart."""
    mixture = layer(rate=0.25)
    mixture.requires_grad_(False).router.requires_grad_()
    mixture.router.weight.register_hook(torch.zeros_like)
    return mixture


def balanced(
    model: nn.Module, mixture: MixtureOfExperts, parts: Callable[[int, int], list[Tensor]]
) -> list[Tensor]:
    """The bias after each of some steps of several batches, and what the last ones have chosen."""
    optimizer, found = torch.optim.SGD(model.parameters(), 1e-3), []
    for step in range(STEPS):
        optimizer.zero_grad()
        for number in range(BATCHES):
            for x in parts(step, number):
                model(x).square().sum().backward()
        optimizer.step()
        found.append(bias_of(mixture))
    return [*found, mixture.load.clone()]


def balanced_on_a_rank(group: dist.ProcessGroup, wrapped: bool) -> list[list[float]]:
    mixture, rank = layer(rate=0.25) if wrapped else still(), dist.get_rank()
    model = DistributedDataParallel(mixture) if wrapped else mixture
    return [each.tolist() for each in balanced(model, mixture, lambda *where: [part(rank, *where)])]


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "DDP"])
def test_the_load_of_all_processes_is_one(wrapped, tmp_path):
    world = World(RANKS, tmp_path)
    try:
        one, other = world(RANKS, balanced_on_a_rank, wrapped)
    finally:
        world.close()
    assert isinstance(one, list), one
    assert one == other
    if not wrapped:
        # A single process that reads all of it has the same, and one that reads a part of it has not.
        for ranks in (range(RANKS), range(1)):
            mixture = still()
            alone = balanced(
                mixture, mixture, lambda *where, ranks=ranks: [part(rank, *where) for rank in ranks]
            )
            assert (one == [each.tolist() for each in alone]) == (len(ranks) == RANKS)


def test_the_optimiser_takes_each_expert_by_itself():
    """The length of a gradient does not matter to Muon, so one expert's says nothing to another."""
    moves = []
    for factor in (1.0, 100.0):
        mixture = layer().float()
        before = [stack.detach().clone() for stack in (mixture.up, mixture.down)]
        for stack, first in ((mixture.up, 4), (mixture.down, 6)):
            stack.grad = randn(*stack.shape, dtype=torch.float32).detach()
            stack.grad[:first] *= factor
        RoleOptimizer(mixture, {"matrix": 1.0}).step()
        moves.append([stack - old for stack, old in zip((mixture.up, mixture.down), before, strict=True)])
    torch.testing.assert_close(*moves, rtol=0.1, atol=0.1)


def test_its_bill_is_known_beforehand():
    build = partial(Transformer, 29, 16, 1, 2, feedforward=partial(MixtureOfExperts, n_experts=4))
    data = batch()
    predicted = predict(lambda: build(), data, train=True, loss=lambda model, data: model.loss(**data).mean())
    model = build()
    with Ledger(model) as ledger:
        model.loss(**data).mean().backward()
    assert predicted.matmul_flops == ledger.matmul_flops
    assert predicted.flops == ledger.flops


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 1}, "k=1 of 5 experts: give 2 <= k <= n_experts"),
        ({"k": 6}, "k=6 of 5 experts"),
        ({"n_shared": -1}, "n_shared=-1 experts: give 0 for none"),
    ],
)
def test_what_makes_no_mixture_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        MixtureOfExperts(6, **{**SMALL, **wrong})


@pytest.mark.parametrize("options", [{"n_shared": 0}, {"k": 4, "rate": 0.1}], ids=str)
def test_it_keeps_the_contracts(options):
    assert_feedforward(partial(MixtureOfExperts, **options))
