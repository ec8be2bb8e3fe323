from __future__ import annotations

import math

import pytest
import torch
from lightning import seed_everything
from torch import nn
from torch_geometric.data import Data

from experiments.ledger import Ledger, LedgerCallback
from gnn import (
    GCN,
    MLP,
    SIGN,
    Distillation,
    NodeDataModule,
    NodeModule,
    RowDataModule,
    Selection,
    observed,
    random_split,
    soft_targets,
)
from tests.gnn.graphs import random_graph
from tests.gnn.modules.test_node import toy, trainer


def taught(**options):
    return Distillation(MLP(9, 3, hidden=8, dropout=0.0), teacher_flops=7, **options)


@pytest.fixture
def data():
    torch.manual_seed(0)
    return soft_targets(GCN(9, 3), random_split(40, 7).onto(toy()))


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.3, 2.5), (1.0, 1.0)])
def test_the_loss_is_that_of_the_formula(data, weight, temperature):
    module = taught(weight=weight, temperature=temperature)
    module.log_dict = lambda *_, **__: None
    said, expected = module(data), 0.0
    labelled = data.train_mask.nonzero().flatten().tolist()
    for node in range(40):
        z = [math.exp(float(v) / temperature) for v in data.teacher[node]]
        s = [math.exp(float(v) / temperature) for v in said[node]]
        for a, b in zip(z, s, strict=True):
            share = a / sum(z) * math.log(a / sum(z) * sum(s) / b)
            expected += (1 - weight) * temperature**2 * share / 40
        if node in labelled:
            expected -= weight * float(said[node].log_softmax(0)[data.y[node]]) / len(labelled)
    assert float(module.training_step(data, 0)) == pytest.approx(expected, rel=1e-4)


def test_the_soft_loss_pulls_towards_the_teacher_and_no_further():
    module, teacher = taught(temperature=3.0), torch.randn(5, 3)
    scores = teacher.clone().requires_grad_()
    loss = module.soft_loss(scores, teacher)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores.grad, torch.zeros(5, 3), atol=1e-6, rtol=0)
    assert float(module.soft_loss(scores + torch.tensor([0.0, 0.0, 1.0]), teacher)) > 0.01


def test_a_teacher_scores_in_evaluation_and_stays_as_it_was():
    torch.manual_seed(0)
    given, teacher = random_split(40, 7).onto(toy()), GCN(9, 3).train()
    soft = soft_targets(teacher, given)
    assert teacher.training
    assert torch.equal(soft.teacher, teacher.eval()(given.x, given.edge_index))
    assert torch.equal(soft.teacher, soft_targets(NodeModule(teacher), given).teacher)
    assert not soft.teacher.requires_grad
    assert soft.soft_mask.all()
    assert "teacher" not in given


@pytest.mark.parametrize("sparse", [False, True])
def test_an_inductive_teacher_hears_nothing_of_unseen_nodes(sparse):
    torch.manual_seed(0)
    given, teacher = random_split(40, 7).onto(toy()), GCN(9, 3).eval()
    dense = given.x
    given.x = dense.to_sparse_csr() if sparse else dense
    unseen = given.test_mask.clone()
    soft = soft_targets(teacher, given, unseen=unseen)
    assert soft.teacher[unseen].isnan().all()
    assert torch.equal(soft.soft_mask, ~unseen)
    changed = given.clone()
    changed.x = torch.where(unseen.unsqueeze(1), torch.nan, dense)
    again = soft_targets(teacher, changed, unseen=unseen)
    torch.testing.assert_close(again.teacher[~unseen], soft.teacher[~unseen])
    assert not torch.allclose(soft_targets(teacher, given).teacher[~unseen], soft.teacher[~unseen])
    left = observed(given, unseen)
    assert left.num_nodes == int((~unseen).sum())
    assert torch.equal(left.train_mask, given.train_mask[~unseen])
    seed_everything(0, verbose=False)
    module = taught(weight=0.5)
    trainer(2).fit(module, RowDataModule(soft, train_on="soft_mask", batch_size=16))
    assert all(p.isfinite().all() for p in module.parameters())
    with pytest.raises(ValueError, match="among those to train on"):
        observed(given, given.train_mask)


def test_a_batch_without_labels_learns_from_the_teacher_alone(data):
    data.train_mask = torch.zeros(40, dtype=torch.bool)
    module = taught(weight=0.5)
    module.log_dict = lambda *_, **__: None
    half = 0.5 * module.soft_loss(module(data), data.teacher)
    torch.testing.assert_close(module.training_step(data, 0), half)


def test_the_student_is_taught_and_the_arm_pays_for_the_teacher():
    seed_everything(0, verbose=False)
    x, edges = random_graph(40, 120, 6)
    given = random_split(40, 7).onto(Data(x=x.float(), edge_index=edges, y=torch.arange(40) % 3))
    teacher, paid = GCN(6, 3), LedgerCallback()
    trainer(5, [paid]).fit(NodeModule(teacher), NodeDataModule(given))
    with Ledger() as scoring:
        soft = soft_targets(teacher, given)
    spent = paid.train_flops + scoring.flops
    assert spent > 0
    before = soft.teacher.clone()
    module = Distillation(MLP(6, 3, hidden=32, dropout=0.0), teacher_flops=spent, weight_decay=0.0)
    ledger, selection = LedgerCallback(), Selection()
    far = float(module.soft_loss(module.eval()(soft), soft.teacher))
    trainer(60, [ledger, selection]).fit(module, RowDataModule(soft, train_on="soft_mask", batch_size=20))
    assert float(module.soft_loss(module.eval()(soft), soft.teacher)) < far / 2
    assert torch.equal(soft.teacher, before)
    assert ledger.steps == 120
    assert selection.split == "random seed 7, 60/20/20"
    student = ledger.train_flops
    ledger.add("teacher", module.teacher_flops)
    assert module.arm_flops(student) == student + spent == ledger.train_flops
    assert dict(module.hparams) == {"teacher_flops": spent, "weight": 0.0, "temperature": 1.0}
    assert not any(name.startswith("teacher") for name in module.state_dict())


def test_sign_trains_on_rows():
    seed_everything(0, verbose=False)
    given = random_split(40, 7).onto(toy())
    encoder = SIGN(9, 3, hidden=8, dropout=0.2)
    rows = given.clone()
    rows.x = encoder.precompute(given.x, given.edge_index).joined()
    selection, ledger = Selection(), LedgerCallback()
    trainer(40, [selection, ledger]).fit(NodeModule(encoder), RowDataModule(rows, batch_size=8))
    assert selection.chosen["last"]["val_accuracy"] > 0.7  # the class is among the features
    assert ledger.watched_steps < ledger.steps == 120


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": 1.5}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"penalized": "last"}, "penalized"),
    ],
)
def test_refusals_name_what_is_wrong(options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        taught(**options)


def test_a_graph_without_soft_targets_and_a_teacher_without_a_price_are_refused():
    with pytest.raises(ValueError, match="soft_targets"):
        taught().training_step(random_split(40, 7).onto(toy()), 0)
    with pytest.raises(ValueError, match="teacher_flops=-1"):
        Distillation(nn.Linear(1, 1), teacher_flops=-1)
    with pytest.raises(TypeError, match="teacher_flops"):
        Distillation(nn.Linear(1, 1))
