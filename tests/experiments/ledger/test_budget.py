import csv
import time
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader

from experiments.ledger import BudgetTooSmall, FlopBudget, LedgerCallback
from tests.experiments.ledger.test_callback import D, Model, loader, trainer


def spent(count, tmp_path, **options):
    """FLOPs after that many rows, in batches of two."""
    callback = LedgerCallback(every_step=True)
    trainer(callback, tmp_path, **options).fit(Model(), loader(count))
    return callback.train_flops


@pytest.mark.parametrize("short", [0, 1])
def test_training_ends_when_the_next_step_would_not_fit(tmp_path, short):
    budget = FlopBudget(spent(10, tmp_path) - short)
    run = trainer(budget, tmp_path, max_epochs=-1)
    run.fit(Model(), loader(8))
    assert budget.steps == run.global_step == 5 - short
    assert budget.train_flops == spent(10 - 2 * short, tmp_path) <= budget.max_flops
    assert budget.flops_left == budget.max_flops - budget.train_flops


@pytest.mark.parametrize("parts", [1, 3, 30])
def test_a_budget_below_the_first_step_says_what_it_takes(tmp_path, parts):
    options = {"accumulate_grad_batches": parts}
    price = spent(2 * parts, tmp_path, **options)
    for given in (1, price - 1):
        budget, module = FlopBudget(given), Model()
        before = module.layer.weight.clone()
        run = trainer(budget, tmp_path, max_epochs=-1, **options)
        with pytest.raises(BudgetTooSmall, match=f"One takes {price:,} FLOPs: give at least max_flops="):
            run.fit(module, loader(2 * parts + 2))
        assert run.global_step == 0
        assert budget.train_flops <= given
        # One less ends within the optimizer.
        assert torch.equal(module.layer.weight, before) == (given == 1)
    enough = FlopBudget(price)
    trainer(enough, tmp_path, max_epochs=-1, **options).fit(Model(), loader(2 * parts))
    assert enough.train_flops == price


def test_the_budget_that_is_named_is_enough(tmp_path):
    with pytest.raises(BudgetTooSmall) as found:
        trainer(FlopBudget(1), tmp_path).fit(Model(), loader(8))
    named = float(str(found.value).split("max_flops=")[1])
    assert found.value.price <= named < 1.01 * found.value.price
    run = trainer(FlopBudget(named), tmp_path, max_epochs=-1)
    run.fit(Model(), loader(8))
    assert run.global_step == 1


def test_a_first_step_that_cannot_be_predicted_is_given_up_too(tmp_path):
    class ByHand(Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.kept = []

        def training_step(self, batch, batch_idx):
            self.kept.append(loss := super().training_step(batch, batch_idx))
            self.manual_backward(loss)
            self.optimizers().step()

    run = trainer(FlopBudget(1), tmp_path, gradient_clip_val=None)
    with pytest.raises(BudgetTooSmall, match="cannot be predicted for this model: give several times"):
        run.fit(ByHand(), loader(8))
    assert run.global_step == 0


@pytest.mark.parametrize("short", [0, 1])
def test_accumulated_batches_are_taken_together_or_not_at_all(tmp_path, short):
    options = {"accumulate_grad_batches": 3}
    budget = FlopBudget(spent(24, tmp_path, **options) - short)
    run = trainer(budget, tmp_path, max_epochs=-1, **options)
    run.fit(Model(), loader(60))
    assert budget.steps == 12 - 3 * short
    assert run.global_step == 4 - short
    assert budget.train_flops <= budget.max_flops


def test_a_whole_window_is_refused_where_the_short_one_of_an_epochs_end_would_fit(tmp_path):
    options = {"accumulate_grad_batches": 3}
    epoch = spent(14, tmp_path, **options)
    short = epoch - spent(12, tmp_path, **options)
    budget = FlopBudget(epoch + short)
    trainer(budget, tmp_path, max_epochs=-1, **options).fit(Model(), loader(14))
    assert budget.steps == 7
    assert budget.train_flops == epoch


def test_a_dear_batch_is_refused_where_a_cheap_one_would_have_fitted(tmp_path):
    class Ragged(lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader([torch.randn(rows, D) for rows in (4, 1, 4, 1, 1, 4, 4)], batch_size=None)

    exact = LedgerCallback(every_step=True)
    trainer(exact, tmp_path, max_steps=5).fit(Model(), Ragged())
    # The fifth step leaves enough for another of one row, but the sixth has four.
    budget = FlopBudget(exact.train_flops + spent(1, tmp_path) + 1)
    module = Model()
    trainer(budget, tmp_path, max_epochs=-1).fit(module, Ragged())
    assert budget.steps == 5
    assert budget.train_flops == exact.train_flops
    assert not module.trainer.interrupted


def test_an_ended_run_goes_on_with_a_larger_budget(tmp_path):
    whole = FlopBudget(spent(16, tmp_path))
    trainer(whole, tmp_path, max_epochs=-1).fit(Model(), loader(6))
    first, second, third = FlopBudget(spent(8, tmp_path)), FlopBudget(whole.max_flops), FlopBudget(1)
    options = {"max_epochs": -1, "enable_checkpointing": True}
    run = trainer(first, tmp_path, **options)
    run.callbacks.append(ModelCheckpoint(tmp_path, "last", every_n_train_steps=4, save_top_k=-1))
    run.fit(Model(), loader(6))
    assert first.steps == 4
    for callback in (second, third):
        trainer(callback, tmp_path, max_epochs=-1).fit(
            Model(), loader(6), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
    assert second.steps == whole.steps == 8
    assert second.train_flops == whole.train_flops
    assert third.steps == 4


def test_what_a_budget_pays_for(tmp_path):
    budget = FlopBudget(1e9)
    with pytest.raises(RuntimeError, match="train one first"):
        budget.max_steps_for(1e9)
    trainer(budget, tmp_path).fit(Model(), loader(8))
    assert budget.max_steps_for(2.5 * budget.train_flops / 4) == 2


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_flops=1e13"):
        FlopBudget(0)
    for given in (float("nan"), -1, "x", None, "1e13"):
        with pytest.raises(ValueError, match=f"max_flops is {given!r}: give what training may spend"):
            FlopBudget(given)


class Judged(Model):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", super().training_step(batch, batch_idx))


def test_every_row_of_a_log_tells_the_flops(tmp_path):
    budget = FlopBudget(spent(24, tmp_path))
    logger = CSVLogger(tmp_path, "log", "0")
    trainer(budget, tmp_path, max_epochs=-1, logger=logger, log_every_n_steps=2).fit(
        Judged(), loader(10), loader(4)
    )
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert (
        {row["train/loss"] != "" for row in rows}
        == {row["valid/loss"] != "" for row in rows}
        == {True, False}
    )
    flops = [float(row["train_flops"]) for row in rows]
    assert flops == sorted(flops)
    # The last steps were logged, and what validation found after them.
    assert flops[-1] == budget.train_flops == spent(24, tmp_path)


def test_wandb_draws_every_curve_over_flops(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), offline=True, project="test")
    run = logger.experiment
    budget = FlopBudget(spent(12, tmp_path))
    trainer(budget, tmp_path, max_epochs=-1, logger=logger).fit(Judged(), loader(10), loader(4))
    (path,) = Path(run.dir).parent.glob("*.wandb")
    run.finish()
    kinds: set[str | None] = set()
    # The process that writes for W&B may be a moment behind.
    end = time.monotonic() + 30
    while "exit" not in kinds and time.monotonic() < end:
        records = list(wandb_records(path))
        kinds = {record.WhichOneof("record_type") for record in records}
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    # Lightning defines its own before; of two for one pattern the later one holds.
    assert [m.step_metric for m in metrics if m.glob_name == "*"][-1] == "train_flops"
    rows = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert any("valid/loss" in row for row in rows)
    assert all("train_flops" in row for row in rows if "valid/loss" in row or "train/loss" in row)
    assert max(float(row["train_flops"]) for row in rows if "train_flops" in row) == budget.train_flops


def wandb_records(path):
    """What a run wrote: protocol buffers in the log format of LevelDB, behind seven bytes that say so."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = -place % 2**15 or 2**15
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class Embedder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, D)

    def training_step(self, batch, batch_idx):
        return self.embedding(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_two_processes_share_a_budget_and_bill_their_own(tmp_path):
    alone = LedgerCallback(every_step=True)
    trainer(alone, tmp_path, max_steps=3).fit(Embedder(), words())
    # Gradients of two processes are added up and halved.
    each = alone.train_flops + 3 * 2 * 50 * D
    budget = FlopBudget(2 * each)
    run = trainer(budget, tmp_path, max_epochs=-1, devices=2, strategy="ddp_fork")
    run.callbacks.append(Note(tmp_path))
    run.fit(Embedder(), words())
    told = [(tmp_path / f"{rank}").read_text() for rank in (0, 1)]
    assert told == [f"3 {each}"] * 2


def words():
    return DataLoader(torch.randint(0, 50, (16, 5)), batch_size=2)


class Note(lightning.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        budget = next(one for one in trainer.callbacks if isinstance(one, FlopBudget))
        (self.folder / f"{trainer.global_rank}").write_text(f"{budget.steps} {budget.train_flops}")
