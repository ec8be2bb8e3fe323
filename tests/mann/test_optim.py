import copy
import math

import pytest
import torch
from torch import nn

from mann import NGramMemory, PointerReadout, Transformer, optim
from mann.optim import (
    ROLES,
    Muon,
    RoleOptimizer,
    RowAdam,
    linear_schedule,
    orthogonalize,
    parameter_roles,
)
from tests.contracts import SOURCE, VOCAB, batch
from tests.mann.inputs import randn

RATES = dict.fromkeys(ROLES, 0.02)


def matrices(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    return [
        nn.Parameter(randn(*shape, seed=i, dtype=torch.float32).detach()) for i, shape in enumerate(shapes)
    ]


def step(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], number: int) -> None:
    for i, weight in enumerate(weights):
        weight.grad = randn(*weight.shape, seed=100 * number + i, dtype=torch.float32).detach()
    optimizer.step()


def naive_newton_schulz(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """One matrix at a time, in float64."""
    x = x.double() / x.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("shape", [(5, 12), (1, 7), (31, 90)], ids=str)
def test_orthogonalize_is_newton_schulz_of_each_matrix(shape, steps):
    x = randn(3, *shape, dtype=torch.float32).detach()
    for one, matrix in zip(orthogonalize(x, steps), x, strict=True):
        # In bfloat16, and rounding grows with each step.
        assert relative(one, naive_newton_schulz(matrix, steps)) < 0.05


def test_enough_steps_bring_every_singular_value_near_one():
    values = torch.linalg.svdvals(orthogonalize(randn(4, 12, 30, dtype=torch.float32).detach(), 5))
    assert (values > 0.6).all()
    assert (values < 1.3).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_a_loop_over_matrices(monkeypatch, weight_decay):
    # Without the rounding of bfloat16, which Newton-Schulz amplifies, equal means equal.
    monkeypatch.setattr(
        optim,
        "orthogonalize",
        lambda batch, steps: torch.stack([naive_newton_schulz(x, steps) for x in batch]),
    )
    # Equal shapes share a batch, tall ones are turned over, and a weight may be several matrices on each other.
    weights = matrices((8, 8), (8, 8), (6, 15), (15, 6), (24, 8), (24, 8), (8, 24), (32, 8))
    cut = weights[4]
    cut.matrices = 3
    start = [weight.detach().clone() for weight in weights]
    optimizer = Muon(weights, lr=0.1, momentum=0.9, weight_decay=weight_decay, steps=5)
    expected = [weight.double().clone() for weight in start]
    momenta = [torch.zeros_like(weight) for weight in expected]
    for number in range(4):
        step(optimizer, weights, number)
        for weight, new, momentum in zip(weights, expected, momenta, strict=True):
            assert weight.grad is not None
            grad = weight.grad.double()
            momentum.mul_(0.9).add_(grad)
            new.mul_(1 - 0.1 * weight_decay)
            pieces = 3 if weight is cut else 1
            for part, update in zip(new.chunk(pieces), (grad + 0.9 * momentum).chunk(pieces), strict=True):
                height, width = part.shape
                tall = height > width
                direction = naive_newton_schulz(update.T if tall else update)
                part.sub_(0.1 * max(1, height / width) ** 0.5 * (direction.T if tall else direction))
    for weight, new, old in zip(weights, expected, start, strict=True):
        assert relative(weight.detach() - old, new - old.double()) < 1e-4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (6, 20), (20, 6), (30, 90)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_that_of_torch(shape, weight_decay):
    ours, theirs = matrices(shape), matrices(shape)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": weight_decay}
    one = Muon(ours, steps=5, **settings)
    other = torch.optim.Muon(theirs, ns_steps=5, adjust_lr_fn="original", **settings)
    start = ours[0].detach().clone()
    for number in range(3):
        step(one, ours, number)
        step(other, theirs, number)
    assert relative(ours[0].detach() - start, theirs[0].detach() - start) < 0.05


def test_muon_skips_what_has_no_gradient_and_differentiates_its_closure():
    (used, unused) = matrices((4, 4), (4, 4))
    before = unused.detach().clone()
    optimizer = Muon([used, unused])

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() > 0
    assert used.grad is not None
    assert torch.equal(unused, before)


def arm(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(
        VOCAB,
        16,
        2,
        2,
        memory={1: lambda width: NGramMemory(width, n_rows=64)},
        readout=lambda width, vocab: PointerReadout(width, vocab, SOURCE, k=4),
    )


@pytest.mark.parametrize("maximize", [False, True])
def test_row_adam_equals_torchs_sparse_adam(maximize):
    tables = [nn.Embedding(9, 4, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    kinds = RowAdam, torch.optim.SparseAdam
    optimizers = [
        kind(table.parameters(), lr=0.1, betas=(0.8, 0.95), eps=1e-10, maximize=maximize)
        for kind, table in zip(kinds, tables, strict=True)
    ]
    # Rows read twice in a step, rows that rest for a while, and no row at all.
    for number, rows in enumerate(([1, 1, 3], [3, 8], [], [1, 2, 8, 8])):
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            weights = randn(len(rows), 4, seed=number, dtype=torch.float32).detach()
            (table(torch.tensor(rows, dtype=torch.int64)) * weights).sum().backward()
            optimizer.step()
        torch.testing.assert_close(tables[0].weight, tables[1].weight)
    ours, theirs = (optimizer.state_dict() for optimizer in optimizers)
    assert ours["state"][0].keys() == theirs["state"][0].keys()
    for name, value in theirs["state"][0].items():
        torch.testing.assert_close(ours["state"][0][name], value)


def test_row_adam_refuses_a_dense_gradient():
    table = nn.Embedding(3, 2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=True"):
        RowAdam(table.parameters()).step()


def test_roles_are_told_from_what_a_parameter_is():
    model = arm()
    roles = {
        name: role
        for role, params in parameter_roles(model).items()
        for name, p in model.named_parameters()
        if any(p is other for other in params)
    }
    assert set(roles) == {name for name, _ in model.named_parameters()}
    assert roles["embedding.weight"] == roles["readout.answers.weight"] == "embedding"
    assert roles["readout.softmax.head.weight"] == "head"
    assert roles["memory.1.table.weight"] == "table"
    assert roles["blocks.0.mixer.qkv.weight"] == roles["memory.1.projection.weight"] == "matrix"
    assert roles["blocks.1.mixer.shift"] == roles["readout.sink.bias"] == "scalar"


def test_a_tag_overrides_the_rule_and_a_wrong_one_is_named():
    model = nn.Linear(3, 3)
    model.weight.role = "table"
    assert [p is model.weight for p in parameter_roles(model)["table"]] == [True]
    model.weight.role = "matricks"
    with pytest.raises(ValueError, match=r"'weight' has role 'matricks': use one of matrix, embedding"):
        parameter_roles(model)


def test_shared_and_frozen_parameters():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    assert [len(params) for params in parameter_roles(model).values()] == [1, 0, 0, 0, 0]


def test_every_role_takes_its_own_rate():
    for role in ROLES:
        model = arm()
        optimizer = RoleOptimizer(model, {**dict.fromkeys(ROLES, 1e-30), role: 0.1})
        nn.init.normal_(model.readout.softmax.head.weight)
        nn.init.normal_(model.memory["1"].projection.weight)
        kept = copy.deepcopy(model.state_dict())
        model.loss(**batch()).mean().backward()
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if (p - kept[name]).abs().max() > 1e-6}
        own = {id(p) for p in parameter_roles(model)[role]}
        assert moved
        assert moved <= {name for name, p in model.named_parameters() if id(p) in own}


def test_a_role_without_a_rate_is_named():
    with pytest.raises(ValueError, match="no rate for head, table"):
        RoleOptimizer(arm(), {"matrix": 0.1, "embedding": 0.1, "scalar": 0.1})


def train(model, optimizer, schedule, steps):
    for number in steps:
        optimizer.zero_grad()
        loss = model.loss(**batch(seed=number)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.detach()


def scheduled(model):
    optimizer = RoleOptimizer(model, RATES, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, 10))
    return optimizer, rate


def test_training_resumed_from_its_state_equals_not_stopping(tmp_path):
    model = arm()
    optimizer, rate = scheduled(model)
    train(model, optimizer, rate, range(5))
    parts = {"model": model, "optimizer": optimizer, "rate": rate}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")
    expected = train(model, optimizer, rate, range(5, 9))
    again = arm(seed=1)
    optimizer, rate = scheduled(again)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for name, part in {"model": again, "optimizer": optimizer, "rate": rate}.items():
        part.load_state_dict(state[name])
    assert torch.equal(train(again, optimizer, rate, range(5, 9)), expected)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_schedulers_reach_the_parts_before_and_after_loading():
    optimizer, _ = scheduled(arm())
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 0.123
        assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.123}
        optimizer.load_state_dict(optimizer.state_dict())


def test_the_state_of_another_arm_is_refused():
    dense = RoleOptimizer(Transformer(VOCAB, 16, 1), RATES)
    with pytest.raises(ValueError, match="another arm"):
        dense.load_state_dict(RoleOptimizer(arm(), RATES).state_dict())


def test_the_schedule_rises_stays_and_falls_to_zero():
    rates = [linear_schedule(step, 100, warmup=0.1, decay=0.4) for step in range(101)]
    assert 0 < rates[0] < 0.2
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:60]) == {1.0}
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0
    assert linear_schedule(7, 10, warmup=0.0, decay=0.0) == 1.0
    assert all(0 < linear_schedule(step, total) <= 1 for total in (1, 2, 7) for step in range(total))
    assert not math.isnan(linear_schedule(10, 10, decay=0.0))
