import logging
import warnings
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from experiments.ledger import Ledger
from mann import (
    CacheReadout,
    ChunkedCrossAttention,
    Engram,
    LanguageModule,
    NGramMemory,
    PointerReadout,
    Transformer,
    UltraMem,
)
from mann.auxiliary import Auxiliary, auxiliary_loss
from tests.contracts import SOURCE, VOCAB, batch, opened
from tests.mann.test_state import Total

STEPS = 20


def lesson(seed: int) -> dict[str, torch.Tensor]:
    """A batch in which the next token follows from the present one."""
    data = batch(seed)
    return {**data, "targets": ((5 * data["tokens"] + 1) % VOCAB).masked_fill(data["targets"] < 0, -100)}


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.values.append(outputs["loss"].item())


def module(seed: int = 0, steps: int = STEPS, **settings) -> LanguageModule:
    torch.manual_seed(seed)
    network = Transformer(VOCAB, 16, 2, 2, memory={1: partial(NGramMemory, n_rows=64)})
    return LanguageModule(network, steps, **settings)


def fit(model, folder, *, epochs=2, resume=None, save=False, **settings):
    """Two epochs of ten batches, saved after the first."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    losses = Losses()
    callbacks: list[L.Callback] = [losses]
    if save:
        callbacks.append(ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=save,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **settings,
        )
        data = [lesson(seed) for seed in range(STEPS // 2)]
        trainer.fit(model, DataLoader(data, batch_size=None), ckpt_path=resume, weights_only=True)
    return losses.values, trainer


def test_the_loss_falls_and_is_logged(tmp_path):
    losses, trainer = fit(module(), tmp_path)
    assert len(losses) == STEPS
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.callback_metrics["train/nats_per_token"].item() == pytest.approx(
        sum(losses) / STEPS, rel=1e-4
    )
    # One step before its end the schedule is all but at zero.
    assert all(group["lr"] < 0.1 * group["initial_lr"] for group in trainer.optimizers[0].param_groups)


def test_resuming_equals_not_stopping_bit_for_bit(tmp_path):
    whole = module()
    losses, _ = fit(whole, tmp_path, save=True)
    resumed = module(seed=1)
    rest, trainer = fit(resumed, tmp_path, resume=str(tmp_path / f"step={STEPS // 2}.ckpt"))
    assert trainer.global_step == STEPS
    assert rest == losses[STEPS // 2 :]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


STREAMING = {
    "one": {"memory": {1: Total}},
    "tables and a cache": {
        "memory": {
            0: partial(Engram, n_rows=64, vocab_size=VOCAB),
            1: partial(NGramMemory, orders=(2, 4), n_rows=64),
        },
        "readout": partial(CacheReadout, window=90),
    },
    "a store": {
        "memory": {1: partial(ChunkedCrossAttention, source=SOURCE, chunk=6)},
        "readout": partial(PointerReadout, source=SOURCE),
    },
}


@pytest.mark.parametrize("slots", STREAMING.values(), ids=STREAMING)
def test_carried_states_go_on_and_are_in_the_checkpoint(slots, tmp_path):
    def streaming(seed: int = 0, **settings):
        torch.manual_seed(seed)
        return LanguageModule(opened(Transformer(VOCAB, 16, 1, 2, **slots)), STEPS, **settings)

    # Every row of a batch goes on with the document that the row had in the batch before.
    data = [{**lesson(seed), "documents": torch.zeros(2, 80, dtype=torch.long)} for seed in range(4)]
    whole = streaming(carry=True)
    losses = [whole.training_step(each, 0) for each in data]
    alone = streaming()
    assert alone.training_step(data[0], 0) == losses[0]
    assert alone.training_step(data[1], 0) != losses[1]
    losses[1].backward()  # ends at the beginning of its own batch

    stopped, checkpoint = streaming(carry=True), {}
    for each in data[:2]:
        stopped.training_step(each, 0)
    stopped.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "half.ckpt")
    resumed = streaming(carry=True)
    resumed.on_load_checkpoint(torch.load(tmp_path / "half.ckpt", weights_only=True))
    assert [resumed.training_step(each, 0) for each in data[2:]] == losses[2:]
    resumed.on_train_epoch_end()
    assert resumed.training_step(data[0], 0) == losses[0]
    with pytest.raises(ValueError, match="streaming state of 0 processes"):
        resumed.on_load_checkpoint({})
    fit(streaming(carry=True), tmp_path, save=True)
    rest, _ = fit(streaming(1, carry=True), tmp_path, resume=str(tmp_path / f"step={STEPS // 2}.ckpt"))
    assert rest == fit(streaming(carry=True), tmp_path)[0][STEPS // 2 :]


def test_training_in_bfloat16_is_near(tmp_path):
    losses, _ = fit(module(), tmp_path)
    near, _ = fit(module(), tmp_path, precision="bf16-mixed")
    assert near[-1] == pytest.approx(losses[-1], rel=0.05)


@pytest.mark.parametrize("bad_step", [0, STEPS - 1])
def test_a_loss_that_is_not_a_number_stops_the_run_with_advice(tmp_path, bad_step):
    model = module()
    forward, calls = model.network.loss, []

    def breaking(*args):
        calls.append(1)
        return forward(*args) * (float("nan") if len(calls) == bad_step + 1 else 1.0)

    model.network.loss = breaking
    with pytest.raises(FloatingPointError, match=r"nan by step .*: lower the rates"):
        fit(model, tmp_path)


def test_a_batch_without_targets_costs_nothing():
    model, data = module(), batch()
    data["targets"] = torch.full_like(data["targets"], -100)
    loss = model(data)
    loss.backward()
    assert loss.item() == 0


def test_the_loss_is_per_scored_token():
    model, data = module(), batch()
    nll = model.network.loss(**data)
    assert model(data).item() == pytest.approx(nll[data["targets"] >= 0].mean().item())


class Asking(Auxiliary, torch.nn.Module):
    """A feedforward layer that wants its weight to be 3."""

    def __init__(self, d_model):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.weight

    def auxiliary_loss(self):
        return 0.5 * (self.weight - 3).square().sum()


def test_auxiliary_losses_are_minimised_and_reported_nowhere(tmp_path):
    torch.manual_seed(0)
    data = batch()
    model = LanguageModule(Transformer(VOCAB, 16, 2, 2, feedforward=Asking), STEPS)
    plain = model(data)
    asked = model.training_step(data, 0)
    assert asked.item() == pytest.approx(plain.item() + 2 * 4.5)
    assert model._losses.pop() == plain
    assert plain.item() == pytest.approx(model.network.loss(**data)[data["targets"] >= 0].mean().item())
    assert model.objective(data) == asked == plain + auxiliary_loss(model.network)
    asked.backward()
    assert all(block.feedforward.weight.grad < -1 for block in model.network.blocks)
    _, trainer = fit(model, tmp_path)
    assert trainer.callback_metrics["train/nats_per_token"].item() < plain.item()
    assert auxiliary_loss(module().network) is None


def test_the_core_of_ultramem_is_kept_near_rank_one_and_on_the_bill():
    torch.manual_seed(0)
    network = Transformer(
        VOCAB, 16, 1, 2, feedforward=partial(UltraMem, n_keys=8, k=4, sparse=False, core_weight=0.5)
    )
    cores = network.blocks[0].feedforward.cores
    with torch.no_grad():
        cores.copy_(torch.eye(2).expand(2, 2, 2))
    model, data = LanguageModule(network, STEPS), batch()
    assert (model.objective(data) - model(data)).item() == pytest.approx(0.5 * (2 - 0.15) ** 2)
    with Ledger(network) as plain:
        model(data).backward()
    assert not cores.grad.any()  # behind a projection of zeros
    with Ledger(network) as ledger:
        model.objective(data).backward()
    assert cores.grad.diagonal(dim1=1, dim2=2).any()
    assert ledger.flops > plain.flops


def test_rates_replace_defaults_one_by_one():
    rates = module(rates={"table": 0.5}).rates
    assert rates["table"] == 0.5
    assert rates.keys() == module().rates.keys()


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match="raise the budget"):
        module(steps=0)


def test_parts_and_parameters_assigned_later_are_registered():
    model = module()
    model.extra = torch.nn.Parameter(torch.zeros(3))
    model.part = torch.nn.Linear(2, 2)
    model._current_fx_name = "training_step"
    assert {"extra", "part.weight"} <= set(model.state_dict())
    assert model._current_fx_name == "training_step"


def test_tables_have_caught_up_when_training_ends(tmp_path):
    def trained(mode: str, kind=LanguageModule):
        torch.manual_seed(0)
        network = Transformer(VOCAB, 16, 1, 2, memory={1: partial(NGramMemory, n_rows=512)})
        network.memory["1"].table.weight.table_mode = mode
        fit(kind(network, STEPS).double(), tmp_path)
        return network.memory["1"].table.weight

    class Unsettled(LanguageModule):
        def on_train_end(self):
            pass

    def near(table):
        return torch.isclose(table, dense, rtol=1e-3, atol=1e-4).float().mean()

    dense = trained("dense")
    assert near(trained("catch_up")) > 0.99
    assert near(trained("catch_up", Unsettled)) < 0.95
