"""The multiplied bill is that of every step watched, whatever makes steps differ."""

from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from experiments.ledger import LedgerCallback
from retrieval import ContextSource, Passages
from tests.experiments.ledger.test_callback import D, Model, loader, trainer


def both(tmp_path, make, data, callbacks=lambda: [], **options: Any) -> LedgerCallback:
    """Train twice, count by kinds and at every step; they agree to the last integer."""
    exact, counted = LedgerCallback(every_step=True), LedgerCallback()
    for callback in (exact, counted):
        torch.manual_seed(0)
        run = trainer(callback, tmp_path, **options)
        run.callbacks[:0] = callbacks()
        run.fit(make(), data())
    assert exact.steps == counted.steps > counted.summary()["watched_steps"]
    assert counted.total().to_dict() == exact.total().to_dict()
    assert (counted.train_flops, counted.train_bytes) == (exact.train_flops, exact.train_bytes)
    assert exact.train_flops == exact.total().flops
    assert counted.summary()["estimated_steps"] == 0
    return counted


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
def test_accumulation_and_mixed_precision(tmp_path, options):
    both(tmp_path, Model, lambda: loader(22), max_epochs=2, **options)


class Growing(Model):
    def __init__(self):
        super().__init__()
        self.rounds = 1

    def work_signature(self):
        return self.rounds

    def training_step(self, batch, batch_idx):
        for _ in range(self.rounds):
            batch = self.layer(batch)
        return batch.square().mean()


def test_a_module_says_what_else_its_work_depends_on(tmp_path):
    class Grow(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.rounds = 1 + batch_idx // 4

    counted = both(tmp_path, Growing, lambda: loader(24), lambda: [Grow()])
    assert counted.summary()["watched_steps"] == 4


class Deep(Model):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(D, D)

    def training_step(self, batch, batch_idx):
        return self.layer(self.first(batch).relu()).square().mean()


class Thaw(lightning.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.first.requires_grad_(trainer.current_epoch > 0)


def test_frozen_parameters_cost_less_until_they_thaw(tmp_path):
    counted = both(tmp_path, Deep, lambda: loader(8), lambda: [Thaw()], max_epochs=2)
    # First; later; the first that trains what was frozen, whose state is set up; later.
    assert counted.summary()["watched_steps"] == 4


class Adversaries(lightning.LightningModule):
    """Two optimizers that take turns, one of them rarely."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(D, D), nn.Linear(D, 1)

    def training_step(self, batch, batch_idx):
        make, judge = self.optimizers()
        judge.zero_grad()
        self.manual_backward(self.judge(batch).mean() - self.judge(self.maker(batch).detach()).mean())
        judge.step()
        if batch_idx % 3 == 2:
            make.zero_grad()
            self.manual_backward(self.judge(self.maker(batch)).mean())
            make.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.maker.parameters()), torch.optim.SGD(self.judge.parameters())]


def test_optimizers_that_take_turns(tmp_path):
    both(tmp_path, Adversaries, lambda: loader(60), gradient_clip_val=None)


class Skipping(Model):
    """As a gradient scaler does, leaves a step out that nobody could foresee."""

    def __init__(self, skipped):
        super().__init__()
        self.skipped = skipped

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx in self.skipped:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def test_steps_left_out_unforeseen(tmp_path):
    both(tmp_path, lambda: Skipping({4, 9}), lambda: loader(40), gradient_clip_val=None)


def test_a_kind_never_watched_is_billed_as_the_dearest_alike(tmp_path):
    exact, counted = LedgerCallback(every_step=True), LedgerCallback()
    for callback in (exact, counted):
        run = trainer(callback, tmp_path, gradient_clip_val=None)
        run.fit(Skipping({18}), loader(40))
    assert counted.summary()["estimated_steps"] == 1
    assert exact.train_flops < counted.train_flops < exact.train_flops * 1.1


@pytest.fixture(scope="module")
def source() -> ContextSource:
    words = np.random.default_rng(0).zipf(1.5, 9000).clip(1, 49).astype(np.uint16)
    words[::500] = 0
    passages = Passages(words, np.arange(0, 9001, 500), np.arange(18), vocab_size=50)
    return ContextSource(passages, scan=256, shortlist=8)


class Searching(nn.Module):
    def __init__(self, source):
        super().__init__()
        self.source, self.spent = source, 0

    def forward(self, tokens):
        found = self.source.search(tokens, 3)
        self.spent += found.flops
        return found.scores.sum()


class Asking(Model):
    def __init__(self, source):
        super().__init__()
        self.memory = Searching(source)

    def training_step(self, batch, batch_idx):
        return self.layer(torch.ones(D)).sum() + self.memory(batch)

    validation_step = training_step


def questions():
    # Searches of one shape that cost differently.
    words = torch.randint(1, 50, (24, 20), generator=torch.Generator().manual_seed(0))
    words[::3] = 1
    return DataLoader(list(words), batch_size=2)


def test_searches_are_billed_as_they_were_in_every_step(tmp_path, source):
    modules = []

    def make():
        modules.append(Asking(source))
        return modules[-1]

    counted = both(tmp_path, make, questions)
    assert counted.summary()["watched_steps"] == 2
    assert counted.bill()["search"]["flops"] == modules[-1].memory.spent > 0
    assert counted.total().by_module["memory"] >= modules[-1].memory.spent


def test_searches_of_one_shape_do_cost_differently(source):
    assert len({source.search(batch, 3).flops for batch in questions()}) > 2


class Reviewing(Asking):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.memory(batch)


@pytest.mark.parametrize("evaluation", [False, True])
def test_searches_between_steps_are_billed_and_those_of_validation_are_apart(tmp_path, source, evaluation):
    memory, module = Searching(source), Reviewing(source)

    def collate(rows):
        memory(torch.stack(rows))
        return torch.stack(rows)

    data = DataLoader(list(torch.cat(list(questions()))), batch_size=2, collate_fn=collate)
    counted = LedgerCallback(evaluation=evaluation)
    trainer(counted, tmp_path, num_sanity_val_steps=1).fit(module, data, questions())
    # Each batch was searched for when it was collated, in its step and after it.
    in_validation = sum(source.search(batch, 3).flops for batch in questions())
    sanity_check = source.search(next(iter(questions())), 3).flops
    assert (
        counted.bill()["search"]["flops"] == memory.spent + module.memory.spent - in_validation - sanity_check
    )
    assert ("validate" in counted.bill()) == evaluation
    if evaluation:
        searched = counted.total().costs("phase")["validate"].flops
        assert searched > in_validation > 0
    phases = counted.bill()
    assert counted.train_flops == sum(row["flops"] for phase, row in phases.items() if phase != "validate")


def test_evaluation_is_a_phase_of_its_own(tmp_path):
    class Judged(Model):
        def validation_step(self, batch, batch_idx):
            self.layer(batch)

        predict_step = test_step = validation_step

    plain, counted = LedgerCallback(), LedgerCallback(evaluation=True)
    trainer(plain, tmp_path, max_epochs=2).fit(Judged(), loader(8), loader(7))
    run = trainer(counted, tmp_path, max_epochs=2)
    module = Judged()
    run.fit(module, loader(8), loader(7))
    assert counted.train_flops == plain.train_flops
    rows = {phase: row["flops"] for phase, row in counted.bill().items()}
    assert rows["validate"] == 2 * 7 * (2 * D * D + D)
    assert counted.total().by_module["layer"] == plain.total().by_module["layer"] + rows["validate"]
    assert "validate" not in plain.bill()
    run.test(module, loader(4), verbose=False)
    run.predict(module, loader(6))
    rows = {phase: row["flops"] for phase, row in counted.bill().items()}
    assert (rows["test"], rows["predict"]) == (4 * (2 * D * D + D), 6 * (2 * D * D + D))
    assert counted.train_flops == plain.train_flops


def test_the_middle_of_an_epoch_is_a_place_to_go_on_from(tmp_path):
    whole, first, second = LedgerCallback(), LedgerCallback(), LedgerCallback()
    options = {"accumulate_grad_batches": 2, "max_epochs": 2, "enable_checkpointing": True}
    trainer(whole, tmp_path, **options).fit(Model(), loader(24))
    saving = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=4, save_top_k=-1)
    run = trainer(first, tmp_path, **options, max_steps=4)
    run.callbacks.append(saving)
    run.fit(Model(), loader(24))
    assert first.steps == 8
    trainer(second, tmp_path, **options).fit(
        Model(), loader(24), ckpt_path=tmp_path / "middle.ckpt", weights_only=True
    )
    assert second.steps == whole.steps == 24
    assert second.total().to_dict() == whole.total().to_dict()
    assert second.summary()["seconds"] > first.summary()["seconds"]


def test_batches_of_ever_new_shapes_are_watched_and_said_to_be(tmp_path):
    count, callback = 70, LedgerCallback()
    batches = [torch.randn(1 + number, D) for number in range(count)]
    with pytest.warns(UserWarning, match="each of the 64 steps so far was of a kind of its own"):
        trainer(callback, tmp_path).fit(Model(), DataLoader(batches, batch_size=None))
    assert callback.watched_steps == callback.steps == count


def test_line_searches_are_watched_every_step(tmp_path):
    class Searching(Model):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    callback = LedgerCallback()
    trainer(callback, tmp_path, gradient_clip_val=None).fit(Searching(), loader(12))
    assert callback.watched_steps == callback.steps == 6
