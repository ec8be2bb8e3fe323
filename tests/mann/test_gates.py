"""How far gates are open, counted by hand."""

from __future__ import annotations

import math
from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from mann import (
    CompressiveMemory,
    Engram,
    GateCallback,
    GateHistogram,
    KNNAttention,
    LanguageModule,
    MemorySlots,
    NativeSparseAttention,
    NGramMemory,
    Transformer,
    ValueEmbeddingAttention,
)
from mann.gates import watch_gates
from tests.contracts import VOCAB, batch, opened

VALUES = partial(ValueEmbeddingAttention, values=partial(NGramMemory, n_rows=64))


def model(**slots) -> Transformer:
    torch.manual_seed(0)
    return opened(Transformer(VOCAB, 16, 2, 2, **slots))


def test_it_says_what_counting_by_hand_says():
    gate = GateHistogram(bins=10)
    values = [0.0, 0.04, 0.1, 0.55, 0.95, 1.0, 1.0, math.nan]
    gate.update(torch.tensor(values[:3]))
    gate.update(torch.tensor([values[3:]], dtype=torch.float64))
    assert gate.result() == {
        "values": 7,
        "mean": pytest.approx(3.64 / 7),
        "shut": pytest.approx(2 / 7),
        "open": pytest.approx(3 / 7),
        "histogram": pytest.approx([2 / 7, 1 / 7, 0, 0, 0, 1 / 7, 0, 0, 0, 3 / 7]),
    }
    gate.reset()
    assert gate.result()["values"] == 0
    assert math.isnan(gate.result()["mean"])
    with pytest.raises(ValueError, match="bins=0"):
        GateHistogram(0)


@pytest.mark.parametrize(
    ("slots", "name", "count"),
    [
        ({"memory": {0: partial(Engram, vocab_size=VOCAB, n_rows=64)}}, "memory.0", 1),
        ({"memory": {0: MemorySlots}}, "memory.0", 16),
        ({"memory": {0: CompressiveMemory}}, "memory.0", None),
        ({"mixer_at": {1: VALUES}}, "blocks.1.mixer", 2),
        ({"mixer_at": {1: NativeSparseAttention}}, "blocks.1.mixer", 3 * 2),
        ({"mixer_at": {1: partial(KNNAttention, window=16, combine="gate")}}, "blocks.1.mixer", None),
        ({"mixer_at": {1: partial(KNNAttention, window=16, combine="softmax")}}, "blocks.1.mixer", 2),
    ],
)
def test_the_gates_of_a_mechanism_are_watched(slots, name, count):
    network, data = model(**slots), batch()
    with watch_gates(network) as gates:
        before = network(data["tokens"])
    assert set(gates) == {name}
    told = gates[name].result()
    assert 0 < told["mean"] < 1
    assert count is None or told["values"] == count * data["tokens"].numel()
    assert sum(told["histogram"]) == pytest.approx(1)
    assert torch.equal(network(data["tokens"]), before)
    assert told == gates[name].result(), "no longer watched"
    assert not any(part._forward_hooks for part in network.modules())


def test_the_callback_logs_and_lets_go(tmp_path):
    module = LanguageModule(model(mixer_at={1: VALUES}), 4)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[GateCallback(every=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader([batch(seed) for seed in range(4)], batch_size=None))
    told = trainer.callback_metrics
    assert 0 < told["gates/network.blocks.1.mixer/mean"] < 1
    assert {name.rpartition("/")[2] for name in told if name.startswith("gates/")} == {"mean", "shut", "open"}
    assert not any(part._forward_hooks for part in module.modules())
    with pytest.raises(ValueError, match="every=0"):
        GateCallback(every=0)
