from __future__ import annotations

import math

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from gnn import Selection
from tests.gnn.modules.test_node import trainer

EPOCHS = [(0.9, 0.5, 0.1), (0.3, 0.6, 0.2), (0.5, 0.8, 0.3), (0.3, 0.8, 0.4), (0.6, 0.7, 0.5)]


class Scripted(LightningModule):
    """Logs the validation loss, accuracy and test accuracy it is told to log in each epoch."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs, self.weight = epochs, torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        # A sanity check sees what no epoch reaches.
        told = (-9.0, 9.0, 9.0) if self.trainer.sanity_checking else self.epochs[self.current_epoch]
        names = ("val_loss", "val_accuracy", "test_accuracy")
        self.log_dict(dict(zip(names, told, strict=True)), batch_size=1)
        self.log("test_loss", -float(self.current_epoch), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Loaded(LightningDataModule):
    def __init__(self, split):
        super().__init__()
        self.split = split

    def train_dataloader(self):
        return DataLoader([0])

    def val_dataloader(self):
        return DataLoader([0])


def run(selection, epochs, split="public", **settings):
    fitting = trainer(len(epochs), [selection], **settings)
    fitting.fit(Scripted(epochs), Loaded(split))
    return selection


def chosen(selection):
    return {rule: int(kept["epoch"]) for rule, kept in selection.chosen.items()}


def test_each_rule_chooses_by_its_own_and_of_equals_the_first():
    selection = run(Selection(), EPOCHS, num_sanity_val_steps=1)
    assert chosen(selection) == {"last": 4, "best_val_loss": 1, "best_val_measure": 2}
    result = selection.result()
    assert (result["split"], result["measure"]) == ("public", "accuracy")
    assert result["best_val_loss"]["test_accuracy"] == pytest.approx(0.2)
    assert set(result["last"]) == {"epoch", "val_loss", "val_accuracy", "test_loss", "test_accuracy"}


def test_less_may_be_better_and_the_test_split_chooses_nothing():
    assert chosen(run(Selection(maximize=False), EPOCHS))["best_val_measure"] == 0
    other = [(loss, accuracy, 1 - test) for loss, accuracy, test in EPOCHS]
    assert chosen(run(Selection(), other)) == {"last": 4, "best_val_loss": 1, "best_val_measure": 2}


def test_a_number_is_better_than_none():
    epochs = [(math.nan, math.nan, 0.1), (2.0, 0.1, 0.2), (math.nan, math.nan, 0.3)]
    assert chosen(run(Selection(), epochs)) == {"last": 2, "best_val_loss": 1, "best_val_measure": 1}


def test_goes_on_from_a_checkpoint(tmp_path):
    stopped = trainer(3, [Selection()])
    stopped.fit(Scripted(EPOCHS), Loaded("public"))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Selection()
    trainer(5, [resumed]).fit(Scripted(EPOCHS), Loaded("public"), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.result() == run(Selection(), EPOCHS).result()


def test_no_result_without_a_split_or_a_measure():
    with pytest.raises(ValueError, match="name of its split"):
        run(Selection(), EPOCHS, split="")
    with pytest.raises(ValueError, match="val_roc_auc, test_roc_auc was not logged"):
        run(Selection("roc_auc"), EPOCHS)
