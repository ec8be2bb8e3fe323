import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from experiments.ledger import Ledger
from mann import PEER, ProductKeyMemory, Transformer
from mann.module import RATES
from mann.optim import ROLES, TABLE_MODES, RoleOptimizer, parameter_roles
from mann.table_optim import CatchUpAdam, RowAdam, RowScalarAdam, clip_factor, round_stochastically
from tests.mann.inputs import randn

KINDS = [RowAdam, CatchUpAdam, RowScalarAdam]
# Rows of each step: some twice, some rest for long, one is touched once, and the last is never.
TOUCHED = [[0, 1, 1], [1], [2, 0], [], [1, 3], *([[1]] * 6), [0, 1], [2]]
WIDTH = 3


def table(n_rows=5, dtype=torch.float64):
    return nn.Parameter(randn(n_rows, WIDTH, dtype=torch.float32).detach().to(dtype))


def sparse(weight, rows, number):
    """A gradient of those rows, by the number of the step."""
    values = randn(len(rows), weight.shape[1], seed=number).detach().to(weight.dtype)
    return torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), values, weight.shape)


def rate(number):
    return 0.1 / (1 + number % 3)


def step(optimizer, weight, number, rows, dense=False):
    for group in optimizer.param_groups:
        group["lr"] = rate(number)
    grad = sparse(weight, rows, number)
    weight.grad = grad.to_dense() if dense else grad
    optimizer.step()


def pair(betas, eps, **settings):
    ours, theirs = table(), table()
    return (
        ours,
        CatchUpAdam([ours], betas=betas, eps=eps, **settings),
        theirs,
        torch.optim.Adam([theirs], betas=betas, eps=eps),
    )


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.0, 0.9)], ids=str)
def test_catching_up_equals_adam_on_dense_gradients(betas):
    # An epsilon that is none, because torch divides 0 by it in rows without a gradient.
    ours, one, theirs, other = pair(betas, 1e-60)
    for number, rows in enumerate([*TOUCHED, *([[4]] * 300), [0, 1, 2, 3]]):
        before = theirs.detach().clone()
        step(one, ours, number, rows)
        step(other, theirs, number, rows, dense=True)
        torch.testing.assert_close(ours[rows], theirs[rows], rtol=1e-10, atol=1e-10)
        if number == len(TOUCHED) and betas[0]:
            # Adam moves rows that have no gradient, and ours has not yet.
            assert (theirs != before).any(1).sum() == 5
            assert not torch.allclose(ours[:4], theirs[:4], rtol=1e-6)
    one.settle()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(one.state[ours][name], other.state[theirs][name], rtol=1e-10, atol=1e-30)
    kept = ours.detach().clone()
    one.settle()
    assert torch.equal(ours, kept)


def test_a_large_epsilon_is_exact_for_rests_of_one_step():
    ours, one, theirs, other = pair((0.9, 0.999), 0.3)
    for number in range(12):
        rows = [[0, 1], [2, 3]][number % 2]
        step(one, ours, number, rows)
        step(other, theirs, number, rows, dense=True)
    one.settle()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_error_of_epsilon_is_of_second_order():
    errors = []
    for eps in (1e-2, 5e-3, 2.5e-3):
        ours, one, theirs, other = pair((0.8, 0.95), eps)
        for number in range(30):
            rows = [0, 1, 2, 3] if number == 0 else [4]
            step(one, ours, number, rows)
            step(other, theirs, number, rows, dense=True)
        one.settle()
        errors.append((ours - theirs)[:4].abs().max().item())
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_without_movement_the_moments_alone_catch_up():
    ours, one, theirs, other = pair((0.9, 0.99), 1e-60, movement=False)
    for number, rows in enumerate(TOUCHED):
        kept = ours.detach().clone()
        step(one, ours, number, rows)
        step(other, theirs, number, rows, dense=True)
        resting = sorted(set(range(5)) - set(rows))
        assert torch.equal(ours[resting], kept[resting])
    kept = ours.detach().clone()
    one.settle()
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(one.state[ours][name], other.state[theirs][name], rtol=1e-12, atol=1e-30)
    assert torch.equal(ours, kept)
    assert not torch.allclose(ours, theirs)


def test_betas_that_never_come_to_rest_are_refused():
    with pytest.raises(ValueError, match="a first beta less than the second"):
        CatchUpAdam([table()], betas=(0.9, 0.9))


def naive_row_scalar(weight, mean, square, grad, number, betas, eps, lr):
    for row in grad.coalesce().indices()[0].tolist():
        g = grad.to_dense()[row]
        mean[row] = betas[0] * mean[row] + (1 - betas[0]) * g
        square[row] = betas[1] * square[row] + (1 - betas[1]) * (g * g).sum() / len(g)
        unbiased = mean[row] / (1 - betas[0] ** (number + 1)), (1 - betas[1] ** (number + 1)) ** 0.5
        weight[row] -= lr * unbiased[0] * unbiased[1] / (square[row].sqrt() + eps)


@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_one_scalar_a_row(beta1):
    weight = table()
    optimizer = RowScalarAdam([weight], betas=(beta1, 0.95), eps=1e-3)
    expected, mean, square = weight.detach().clone(), torch.zeros(5, WIDTH).double(), torch.zeros(5).double()
    for number, rows in enumerate(TOUCHED):
        step(optimizer, weight, number, rows)
        grad = sparse(weight, rows, number)
        naive_row_scalar(expected, mean, square, grad, number, (beta1, 0.95), 1e-3, rate(number))
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
    assert ("exp_avg" in optimizer.state[weight]) == bool(beta1)
    assert optimizer.state[weight]["exp_avg_sq"].shape == (5, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_resumed_from_its_state_equals_not_stopping(kind, dtype, tmp_path):
    weight = table(dtype=dtype)
    optimizer = kind([weight], lr=0.1)
    for number, rows in enumerate(TOUCHED):
        step(optimizer, weight, number, rows)
    torch.save({"weight": weight.data, "state": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = nn.Parameter(saved["weight"])
    resumed = kind([again], lr=0.5)
    resumed.load_state_dict(saved["state"])
    for name, value in optimizer.state[weight].items():
        if isinstance(value, torch.Tensor):
            assert resumed.state[again][name].dtype == value.dtype
            assert torch.equal(resumed.state[again][name], value)
    for number, rows in enumerate(TOUCHED):
        step(optimizer, weight, 50 + number, rows)
        step(resumed, again, 50 + number, rows)
    assert torch.equal(weight, again)
    # The state that was loaded is not the one that was trained with.
    assert saved["state"]["state"][0]["step"] == len(TOUCHED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_costs_the_rows_it_touches(kind):
    bills = []
    for n_rows in (10, 1000):
        weight = table(n_rows, torch.float32)
        optimizer = kind([weight], clip_norm=0.1)
        for number in range(3):
            step(optimizer, weight, number, [1, 2])
        weight.grad = sparse(weight, [1, 7], 9)
        with Ledger() as ledger:
            optimizer.step()
        bills.append((ledger.flops, ledger.bytes))
    assert bills[0] == bills[1]
    assert 0 < bills[0][0] < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_gradient_is_refused(kind):
    weight = table()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="sparse=True"):
        kind([weight]).step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_clipped_to_its_norm(kind):
    weights = [table(), table()]
    one, other = kind([weights[0]], lr=0.1, clip_norm=0.5), kind([weights[1]], lr=0.1)
    for number, rows in enumerate(TOUCHED):
        step(one, weights[0], number, rows)
        grad = sparse(weights[1], rows, number).coalesce()
        scale = 0.5 / max(grad.values().norm().item() + 1e-6, 0.5)
        weights[1].grad = grad * scale
        other.param_groups[0]["lr"] = rate(number)
        other.step()
    torch.testing.assert_close(*weights)
    assert clip_factor(torch.tensor([3.0, 4.0]), 10.0) == 1
    assert clip_factor(torch.tensor([3.0, 4.0]), 1.0) == pytest.approx(0.2)


def test_rounding_by_chance_takes_a_neighbour_and_is_right_on_average():
    value = torch.full((40_000,), 1.0 + 2**-7 * 0.3)
    rounded = round_stochastically(value, seed=1)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert (rounded == 1).float().mean() == pytest.approx(0.7, abs=0.01)
    assert torch.equal(rounded, round_stochastically(value, seed=1))
    assert not torch.equal(rounded, round_stochastically(value, seed=2))
    assert torch.equal(round_stochastically(-value, seed=1), -rounded)
    exact = torch.tensor([0.0, -0.5, 3.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(exact, seed=1).float(), exact)
    assert round_stochastically(torch.tensor([float("nan")]), seed=1).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_half_precision_learns_from_steps_below_its_resolution(kind):
    weight = nn.Parameter(torch.ones(4, 64, dtype=torch.bfloat16))
    optimizer = kind([weight], lr=1e-4)
    for _ in range(200):
        grad = torch.ones(1, 64, dtype=torch.bfloat16)
        weight.grad = torch.sparse_coo_tensor(torch.tensor([[2]]), grad, weight.shape)
        optimizer.step()
    # 200 steps of 1e-4; the nearest neighbour of 1 below is 1 - 2 ** -8, too far for any of them.
    assert weight[2].float().mean().item() == pytest.approx(0.98, abs=2e-3)
    assert (weight[[0, 1, 3]] == 1).all()


class Bags(nn.Module):
    """Sums of rows of a table, and what a line of weights makes of them."""

    def __init__(self, mode: str, **tags: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 4, sparse=True, dtype=torch.float64)
        self.out = nn.Parameter(torch.randn(4, dtype=torch.float64))
        for name, value in {"table_mode": mode, **tags}.items():
            setattr(self.table.weight, name, value)

    def forward(self, rows):
        return self.table(rows).sum(1).tanh() @ self.out


def trained(mode, steps=60, **tags):
    """Losses on the way, the model, and its optimizer."""
    model, losses = Bags(mode, **tags), []
    optimizer = RoleOptimizer(model, {"table": 0.02, "scalar": 0.02})
    for number in range(steps):
        # Few rows a step, so that most rest.
        rows = torch.randint(0, 40, (3, 2), generator=torch.Generator().manual_seed(number))
        for group in optimizer.param_groups:
            group.setdefault("start", group["lr"])
            group["lr"] = group["start"] * (1 - number / steps)
        optimizer.zero_grad()
        loss = (model(rows) - rows.double().sum(1).cos()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model, optimizer


@pytest.mark.parametrize("tags", [{}, {"clip_norm": 0.3, "rate_multiplier": 3.0}], ids=str)
def test_a_model_whose_table_catches_up_equals_one_with_dense_adam(tags):
    dense, one, _ = trained("dense", **tags)
    caught, other, optimizer = trained("catch_up", **tags)
    assert caught == pytest.approx(dense, rel=1e-5)
    lazy, _, _ = trained("lazy", **tags)
    assert lazy != pytest.approx(dense, rel=1e-2)
    # Evaluation reads what it should, and so does whoever takes the weights once they have settled.
    rows = torch.arange(40).view(20, 2)
    assert not torch.allclose(other.table.weight, one.table.weight, rtol=1e-3)
    torch.testing.assert_close(copy.deepcopy(other)(rows), one(rows), rtol=1e-5, atol=1e-5)
    optimizer.settle()
    torch.testing.assert_close(other.table.weight, one.table.weight, rtol=1e-5, atol=1e-5)


def test_another_optimizer_takes_over_and_a_model_that_is_followed_can_be_copied():
    _, model, first = trained("catch_up", steps=5)
    second = RoleOptimizer(model, dict.fromkeys(ROLES, 0.02))
    rows = torch.arange(40).view(20, 2)
    kept = model.table.weight.detach().clone()
    expected = model(rows)
    # The first knew of movement to come, the second of none.
    assert torch.equal(model.table.weight, kept)
    assert len(model.table._forward_pre_hooks) == 1
    assert len(second.parts) == len(first.parts)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(rows), expected)


def test_rows_that_catch_up_have_a_price_when_they_are_read():
    _, model, _ = trained("catch_up", steps=5)
    with Ledger(model) as ledger, torch.no_grad():
        model(torch.tensor([[1, 2]]))
    assert 0 < ledger.flops < 200


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_every_mode_learns_a_small_regression(mode):
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 4, sparse=True)
    embedding.weight.table_mode = mode  # type: ignore[assignment]
    target = torch.randn(50, 4)
    optimizer = RoleOptimizer(embedding, {"table": 0.05})
    for number in range(400):
        rows = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(number))
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - number / 400)
        optimizer.zero_grad()
        (embedding(rows) - target[rows]).square().sum().backward()
        optimizer.step()
    optimizer.settle()
    assert (embedding.weight - target).square().mean() < 1e-3


def test_attributes_of_parameters_are_heard():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "table": nn.Embedding(6, 4, sparse=True)})
    body, rows = model["body"].get_parameter("weight"), model["table"].get_parameter("weight")
    body.decay, body.rate_multiplier = False, 2.0  # type: ignore[attr-defined]
    rows.table_mode, rows.rate_multiplier, rows.clip_norm = "row_scalar", 5.0, 1.0  # type: ignore[attr-defined]
    optimizer = RoleOptimizer(model, dict.fromkeys(ROLES, 0.1), weight_decay=0.3)
    matrix, scalars, rowwise = optimizer.param_groups
    assert (matrix["lr"], matrix["weight_decay"]) == (0.2, 0.0)
    assert (scalars["lr"], scalars["weight_decay"]) == (0.1, 0.0)
    assert (rowwise["lr"], rowwise["clip_norm"]) == (0.5, 1.0)
    assert isinstance(optimizer.parts[2], RowScalarAdam)
    delattr(body, "decay")
    assert (
        RoleOptimizer(model, dict.fromkeys(ROLES, 0.1), weight_decay=0.3).param_groups[0]["weight_decay"]
        == 0.3
    )


def test_attributes_that_say_nothing_are_named():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "table": nn.Embedding(6, 4, sparse=True)})
    model["body"].get_parameter("weight").clip_norm = 1.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="tables alone are clipped"):
        RoleOptimizer(model, dict.fromkeys(ROLES, 0.1))
    delattr(model["body"].get_parameter("weight"), "clip_norm")
    model["table"].get_parameter("weight").table_mode = "eager"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'eager': use one of lazy, catch_up, row_scalar, dense"):
        RoleOptimizer(model, dict.fromkeys(ROLES, 0.1))


@pytest.mark.parametrize("kind", [ProductKeyMemory, PEER])
def test_tables_that_are_read_without_a_call_catch_up_too(kind):
    def trained(mode):
        torch.manual_seed(0)
        build = partial(kind, n_keys=8, k=2, n_heads=1)
        model = Transformer(29, 16, 2, 2, feedforward_at={1: build}).double()
        for table in parameter_roles(model)["table"]:
            table.table_mode = mode
        optimizer, losses = RoleOptimizer(model, RATES), []
        for number in range(6):
            tokens = torch.randint(0, 29, (2, 25), generator=torch.Generator().manual_seed(number))
            loss = model.loss(tokens[:, :-1], tokens[:, 1:]).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    dense = trained("dense")
    assert trained("catch_up") == pytest.approx(dense, abs=1e-6)
    assert trained("lazy") != pytest.approx(dense, abs=1e-6)
