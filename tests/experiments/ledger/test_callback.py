import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from experiments.ledger import Ledger, LedgerCallback

D = 4


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, D)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def trainer(callback, folder, **kwargs):
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "gradient_clip_val": 1.0, "logger": False}
    return lightning.Trainer(
        callbacks=[callback],
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **settings, **kwargs},
    )


def loader(count, batch_size=2):
    return DataLoader(torch.randn(count, D), batch_size=batch_size)


def by_hand(sizes, accumulate=1):
    model, total = Model(), Ledger()
    optimizer = model.configure_optimizers()
    with total:
        for number, size in enumerate(sizes, 1):
            with torch.enable_grad():
                loss = model.training_step(torch.randn(size, D), 0)
                # Lightning divides by the number of accumulated batches, even if that is one.
                (loss / accumulate).backward()
            if number % accumulate == 0 or number == len(sizes):
                with total.phase("optimizer"):
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return total


@pytest.mark.parametrize(("count", "sizes"), [(8, [2, 2, 2, 2]), (7, [2, 2, 2, 1])])
def test_multiplied_bill_is_that_of_every_step_watched(tmp_path, count, sizes):
    callback = LedgerCallback()
    run = trainer(callback, tmp_path)
    run.fit(Model(), loader(count))
    expected = by_hand(sizes)
    assert callback.steps == len(sizes)
    assert {phase: row["flops"] for phase, row in callback.bill().items()} == expected.by_phase
    assert {phase: row["matmul_flops"] for phase, row in callback.bill().items() if row["matmul_flops"]} == {
        phase: cost.matmul_flops for phase, cost in expected.costs("phase").items() if cost.matmul_flops
    }
    assert callback.train_flops == expected.flops
    assert callback.total().by_module["layer"] == expected.by_module["Linear"]
    assert run.callback_metrics["train_flops"] == callback.train_flops


def test_it_prints_as_its_bill(tmp_path):
    callback = LedgerCallback()
    assert "0 FLOPs" in str(callback)
    trainer(callback, tmp_path).fit(Model(), loader(8))
    assert str(callback) == str(callback.total())
    assert f"{callback.train_flops:,} FLOPs" in str(callback)
    assert repr(callback).startswith(f"LedgerCallback(train_flops={callback.train_flops:,}, ")
    assert "steps=4" in repr(callback)


def test_gradient_accumulation_is_another_kind_of_step(tmp_path):
    callback = LedgerCallback()
    trainer(callback, tmp_path, accumulate_grad_batches=2).fit(Model(), loader(10))
    assert callback.bill()["optimizer"]["flops"] == by_hand([2] * 5, accumulate=2).by_phase["optimizer"]


def test_only_new_kinds_are_watched(tmp_path, monkeypatch):
    opened = []
    enter = Ledger.__enter__
    monkeypatch.setattr(Ledger, "__enter__", lambda self: opened.append(1) or enter(self))
    trainer(LedgerCallback(), tmp_path).fit(Model(), loader(20))
    assert len(opened) == 2


def test_state_survives_a_checkpoint(tmp_path):
    whole, first, second = LedgerCallback(), LedgerCallback(), LedgerCallback()
    trainer(whole, tmp_path, max_epochs=2).fit(Model(), loader(6))
    run = trainer(first, tmp_path)
    run.fit(Model(), loader(6))
    first.add("search", flops=5, bytes_read=6)
    run.save_checkpoint(tmp_path / "half.ckpt")
    trainer(second, tmp_path, max_epochs=2).fit(Model(), loader(6), ckpt_path=tmp_path / "half.ckpt")
    assert second.steps == whole.steps == 6
    assert second.bill()["search"]["flops"] == 5
    assert second.bill()["search"]["bytes"] == 6
    assert second.train_flops == whole.train_flops + 5
    assert second.train_bytes == whole.train_bytes + 6


def test_failure_stops_watching(tmp_path):
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    dropout = nn.functional.dropout
    with pytest.raises(ZeroDivisionError):
        trainer(LedgerCallback(), tmp_path).fit(Broken(), loader(4))
    assert nn.functional.dropout is dropout
