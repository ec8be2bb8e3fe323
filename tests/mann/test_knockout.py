"""Memories switched off or read wrong, and what that costs."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from mann import KnockoutCallback, LanguageModule, NGramMemory, ProductKeyMemory, Transformer
from mann.knockout import shuffled_rows, without_memory
from tests.contracts import VOCAB, batch, opened


def model(**slots) -> Transformer:
    torch.manual_seed(0)
    return opened(Transformer(VOCAB, 16, 2, 2, **slots))


def test_shuffled_rows_are_read_wrong_and_come_back():
    network, data = model(memory={0: partial(NGramMemory, n_rows=64)}), batch()
    before = network(data["tokens"])
    kept = network.memory["0"].table.weight.clone()
    with shuffled_rows(network):
        assert not torch.equal(network(data["tokens"]), before)
        assert torch.equal(network.memory["0"].table.weight.sort(0).values, kept.sort(0).values)
    assert torch.equal(network(data["tokens"]), before)
    dense = model()
    alone = dense(data["tokens"])
    with shuffled_rows(dense):
        assert torch.equal(dense(data["tokens"]), alone)


def test_without_memory_the_backbone_is_left():
    network, data = model(memory={0: partial(NGramMemory, n_rows=64)}), batch()
    before, dense = network(data["tokens"]), model()
    dense.load_state_dict({name: p for name, p in network.state_dict().items() if name in dense.state_dict()})
    with without_memory(network):
        assert torch.equal(network(data["tokens"]), dense(data["tokens"]))
    assert torch.equal(network(data["tokens"]), before)
    with without_memory(torch.nn.Linear(2, 2)) as nothing:
        assert nothing is None


class Validated(LanguageModule):
    """As whoever validates has it."""

    def validation_step(self, batch, batch_index):
        self.log("valid", self(batch), batch_size=1)


def trained(network: Transformer, folder, **options) -> tuple[L.Trainer, LanguageModule]:
    module = Validated(network, 2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[KnockoutCallback(**options)],
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    held = DataLoader([batch(seed) for seed in range(5, 8)], batch_size=None)
    trainer.fit(module, DataLoader([batch(0), batch(1)], batch_size=None), held)
    return trainer, module


@pytest.mark.parametrize("batches", [None, 2])
def test_the_callback_says_what_is_lost(tmp_path, batches):
    slots = {
        "memory": {0: partial(NGramMemory, n_rows=64)},
        "feedforward_at": {1: partial(ProductKeyMemory, n_keys=8, k=4)},
    }
    trainer, module = trained(model(**slots), tmp_path, batches=batches)
    asked = [batch(seed) for seed in range(5, 8)][:batches]
    with torch.no_grad():
        whole = sum(float(module(data)) for data in asked) / len(asked)
        for name, knocked in (("memory_off", without_memory), ("rows_shuffled", shuffled_rows)):
            with knocked(module.network):
                without = sum(float(module(data)) for data in asked) / len(asked)
            assert float(trainer.callback_metrics[f"knockout/{name}"]) == pytest.approx(
                without - whole, abs=1e-5
            )


def test_where_there_is_no_memory_nothing_is_said(tmp_path):
    trainer, _ = trained(model(), tmp_path)
    assert not [name for name in trainer.callback_metrics if name.startswith("knockout")]
    with pytest.raises(ValueError, match="batches=0"):
        KnockoutCallback(batches=0)
