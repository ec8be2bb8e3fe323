"""Ledgers that overlap: closed in any order, in several threads, they leave nothing behind and miss nothing."""

import threading

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout as imported_dropout
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, is_in_torch_dispatch_mode

from experiments.ledger import FlopBudget, Ledger, LedgerCallback
from tests.experiments.ledger.test_callback import Model, loader

NAMES = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout_")


def fit(folder, module, *callbacks, count=8, **kwargs):
    lightning.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    ).fit(module, loader(count))


def replaced():
    """Everything of torch's that a ledger changes while it is open."""
    return (
        F.scaled_dot_product_attention,
        *(getattr(home, name) for name in NAMES for home in (torch, torch._VF)),
        torch.backends.mha.get_fastpath_enabled(),
        torch._dynamo.eval_frame._stance.stance,
        torch.fx.experimental._config.meta_nonzero_assume_all_nonzero,
        _get_current_dispatch_mode_stack(),
        is_in_torch_dispatch_mode(),
    )


@pytest.fixture
def untouched():
    import torch._dynamo

    assert torch._dynamo
    before = replaced()
    yield
    assert replaced() == before


@pytest.fixture
def layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def test_ledgers_closed_in_the_order_they_were_opened_in(untouched, layer):
    x = torch.randn(2, 3, 8)
    with Ledger() as alone:
        layer(x)
    first, second = Ledger(), Ledger()
    first.__enter__()
    layer(x)
    second.__enter__()
    layer(x)
    first.__exit__(None, None, None)
    layer(x)
    second.__exit__(None, None, None)
    layer(x)
    assert first.flops == second.flops == 2 * alone.flops


@pytest.mark.usefixtures("untouched")
def test_three_closed_from_the_middle():
    ledgers = [Ledger() for _ in range(3)]
    for ledger in ledgers:
        ledger.__enter__()
    for ledger in (ledgers[1], ledgers[0], ledgers[2]):
        torch.ones(4) + 1
        ledger.__exit__(None, None, None)
    assert [ledger.flops for ledger in ledgers] == [8, 4, 12]


def test_ledgers_of_two_threads_bill_their_own_work(untouched, layer):
    x = torch.randn(2, 3, 8)
    with Ledger() as alone:
        layer(x)
    opened, closed = threading.Event(), threading.Event()
    there = Ledger()

    def work():
        with there:
            opened.set()
            closed.wait(30)
            layer(x)

    thread = threading.Thread(target=work)
    with Ledger() as here:
        thread.start()
        opened.wait(30)
        layer(x)
    closed.set()
    thread.join()
    assert here.flops == there.flops == alone.flops


def test_a_ledger_closed_in_another_thread_says_so(untouched):
    ledger, errors = Ledger(), []
    ledger.__enter__()

    def work():
        try:
            ledger._watch.__exit__(None, None, None)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ledger.__exit__(None, None, None)
    assert errors == ["a ledger is closed by the thread that opened it, and this is another one"]


class EveryStep(LedgerCallback):
    """Another type, as Lightning wants it of a second one."""

    def __init__(self):
        super().__init__(every_step=True)


class Stopped(Model):
    """Leaves an epoch early, as a LightningModule may."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == self.at else None

    at = 0


class Failing(Model):
    error: type[BaseException] = RuntimeError

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise self.error("stop")
        return super().training_step(batch, batch_idx)


def test_two_callbacks_in_one_trainer(untouched, tmp_path):
    ledger, budget = LedgerCallback(), FlopBudget(1e12)
    fit(tmp_path, Model(), ledger, budget, max_epochs=2)
    assert ledger.bill() == budget.bill()
    assert ledger.steps == budget.steps > 0


@pytest.mark.parametrize("at", [0, 1])
def test_an_epoch_left_early(untouched, tmp_path, at):
    module, ledger, every = Stopped(), LedgerCallback(), EveryStep()
    module.at = at
    fit(tmp_path, module, ledger, every, max_epochs=3)
    assert ledger.steps == every.steps == 3 * at
    assert ledger.train_flops == every.train_flops


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_fails(untouched, tmp_path, error):
    module = Failing()
    module.error = error
    with pytest.raises((error, SystemExit)):
        fit(tmp_path, module, LedgerCallback(every_step=True), FlopBudget(1e12))


class Imported(nn.Module):
    """Calls dropout by every name there is."""

    def forward(self, x):
        x = torch.dropout(x, 0.5, True) + torch.alpha_dropout(x, 0.5, True)
        x = torch.feature_dropout_(x.clone(), 0.5, True) + torch.feature_alpha_dropout(x, 0.5, True)
        return imported_dropout(F.dropout1d(x, 0.5), 0.5)


def test_dropout_is_free_by_any_name(untouched):
    x = torch.randn(2, 3, 4, requires_grad=True)
    with Ledger() as ledger:
        Imported()(x).sum().backward()
    assert {name for name, flops in ledger.by_operator.items() if flops} == {"aten.add", "aten.sum"}


def test_a_batch_without_a_loss_is_another_kind_of_step(untouched, tmp_path):
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (0, 3) else super().training_step(batch, batch_idx)

    ledger, every = LedgerCallback(), EveryStep()
    fit(tmp_path, Skips(), ledger, every, max_epochs=2)
    assert ledger.train_flops == every.train_flops
    assert ledger.watched_steps < every.watched_steps


def test_a_budget_is_spent_though_the_first_batch_has_no_loss(untouched, tmp_path):
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            skip = batch_idx == 0 and not self.trainer.current_epoch
            return None if skip else super().training_step(batch, batch_idx)

    whole = LedgerCallback()
    fit(tmp_path, Model(), whole, max_epochs=1)
    budget = FlopBudget(whole.train_flops * 1.5)
    fit(tmp_path, Skips(), budget, max_epochs=20)
    assert 0.5 * budget.max_flops < budget.train_flops <= budget.max_flops
