import pytest
import torch
from torch import nn

from experiments.ledger import Ledger
from mann.optim import RowAdam

N = 12


def step(optimizer, parameter, times=2):
    parameter.grad = torch.ones_like(parameter)
    for _ in range(times - 1):
        optimizer.step()
    with Ledger() as ledger:
        optimizer.step()
    return ledger


@pytest.fixture
def parameter():
    return nn.Parameter(torch.ones(3, 4))


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_adamw_costs_fourteen_a_parameter_in_every_implementation(parameter, how):
    ledger = step(torch.optim.AdamW([parameter], **how), parameter)
    assert ledger.by_phase == {"optimizer": 14 * N + 1}


def test_sgd_with_momentum_and_decay(parameter):
    ledger = step(torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.1), parameter)
    # decay 2, momentum 1 + 1 (without dampening its factor is 1), step 2
    assert ledger.flops == 6 * N


def test_adagrad(parameter):
    assert step(torch.optim.Adagrad([parameter], foreach=False), parameter).flops == 7 * N + 1


def test_muon_pays_for_its_products(parameter):
    ledger = step(torch.optim.Muon([parameter]), parameter)
    once = 2 * 3 * 3 * 4 + 2 * 3 * 3 * 3 + 2 * 3 * 3 * 4
    assert ledger.matmul_flops == 5 * once
    assert set(ledger.by_phase) == {"optimizer"}


def sparse_step(kind):
    table = nn.Embedding(1000, 4, sparse=True)
    optimizer = kind(table.parameters())
    table(torch.tensor([1, 2, 2])).sum().backward()
    optimizer.step()
    with Ledger() as ledger:
        optimizer.step()
    return ledger


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, RowAdam])
def test_sparse_adam_touches_stored_rows(kind):
    ledger = sparse_step(kind)
    assert 0 < ledger.flops < 40 * 3 * 4
    assert ledger.bytes < 1000 * 4 * 4


def test_row_adam_computes_as_much_and_moves_less():
    ours, theirs = sparse_step(RowAdam), sparse_step(torch.optim.SparseAdam)
    rows = 2 * 4
    # Torch's fused Adam on rows that were gathered, and the sums over repeated rows.
    assert ours.flops == 13 * rows + 3 * 4
    assert ours.flops <= theirs.flops
    assert ours.bytes < theirs.bytes


def test_clipping_costs_a_norm_and_a_product(parameter):
    parameter.grad = torch.ones_like(parameter)
    with Ledger() as ledger, ledger.phase("optimizer"):
        nn.utils.clip_grad_norm_([parameter], 1.0)
    assert set(ledger.by_phase) == {"optimizer"}
    # norm 2N + 1 and N for the product; the norm of one norm 3; four operations on the coefficient
    assert ledger.flops == 3 * N + 1 + 3 + 4


def test_closure_is_forward_and_backward_not_optimizer(parameter):
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter * parameter).sum()
        loss.backward()
        return loss

    with Ledger() as ledger:
        optimizer.step(closure)
    assert ledger.by_phase == {"forward": 2 * N, "backward": 3 * N, "optimizer": 2 * N}


def parameters():
    return [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 2))]


SIZE = 3 * 4 + 4 * 2
OPTIMIZERS = [
    "AdamW",
    "Adam",
    "SGD",
    "Adagrad",
    "RMSprop",
    "NAdam",
    "RAdam",
    "Adamax",
    "ASGD",
    "Rprop",
    "Adadelta",
    "Adafactor",
]
OPTIONS = [
    {},
    *({"weight_decay": 0.0}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}, {"momentum": 0.9}),
    {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
]
# Their forms over many parameters at once do more than their loops.
COSTLIER = {"RAdam", "ASGD", "Rprop"}


def step_flops(kind, **options):
    given = parameters()
    optimizer = kind(given, lr=0.1, **options)
    for parameter in given:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    with Ledger() as ledger:
        optimizer.step()
    return ledger.flops


def arguments(name):
    return set(getattr(torch.optim, name).__init__.__code__.co_varnames)


TAKEN = [(name, options) for name in OPTIMIZERS for options in OPTIONS if set(options) <= arguments(name)]


@pytest.mark.parametrize(("name", "options"), TAKEN, ids=str)
def test_every_form_of_an_optimizer_costs_the_same(name, options):
    kind = getattr(torch.optim, name)
    loop = step_flops(kind, foreach=False, **options)
    assert loop >= 2 * SIZE
    assert (step_flops(kind, foreach=True, **options) == loop) or name in COSTLIER
    if "fused" in arguments(name):
        assert step_flops(kind, fused=True, **options) == loop


def test_lbfgs_pays_for_its_closure_and_its_history(parameter):
    optimizer = torch.optim.LBFGS([parameter], max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (parameter - 2).square().sum() + parameter.prod()
        loss.backward()
        return loss

    with Ledger() as ledger:
        optimizer.step(closure)
    assert set(ledger.by_phase) == {"forward", "backward", "optimizer"}
    assert all(ledger.by_phase.values())


def test_gradient_scaler(parameter):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with Ledger() as ledger:
        scaler.scale((parameter * 2).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    # Unscaling is a product a gradient, and one reciprocal; looking whether they are finite compares.
    assert ledger.by_operator["aten._amp_foreach_non_finite_check_and_unscale"] == N
    assert ledger.by_operator["aten.reciprocal"] == 1
    assert ledger.by_phase["optimizer"] == 2 * N
