"""Use of tables, counted by hand."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from mann import Context, LanguageModule, NGramMemory, ProductKeyMemory, TableHealthCallback, Transformer
from mann.table_health import TableHealth, watch_tables
from tests.contracts import VOCAB, batch, opened


def test_it_says_what_counting_by_hand_says():
    rows = torch.randint(0, 200, (3, 4, 50), generator=torch.Generator().manual_seed(0)).square() % 250
    health = TableHealth(250)
    for part in rows:
        health.update(part)
    counts = Counter(rows.flatten().tolist())
    share = [count / rows.numel() for count in counts.values()]
    found = health.result()
    assert found == {
        "reads": rows.numel(),
        "used": len(counts) / 250,
        "dead": 250 - len(counts),
        "kl_to_uniform": pytest.approx(sum(p * math.log(p * 250) for p in share)),
        "top_percent": pytest.approx(sum(sorted(share)[-2:])),
    }
    assert 0.1 < found["used"] < 1


def test_even_use_and_collapse_are_the_ends():
    even, collapsed = TableHealth(300), TableHealth(300)
    even.update(torch.arange(300).repeat(7))
    collapsed.update(torch.full((11,), 42))
    assert even.result() == {
        "reads": 2100,
        "used": 1,
        "dead": 0,
        "kl_to_uniform": pytest.approx(0, abs=1e-9),
        "top_percent": 0.01,
    }
    assert even.result()["kl_to_uniform"] >= 0
    assert collapsed.result() == {
        "reads": 11,
        "used": 1 / 300,
        "dead": 299,
        "kl_to_uniform": pytest.approx(math.log(300)),
        "top_percent": 1,
    }


def test_nothing_read_is_no_number_and_what_was_read_is_forgotten():
    health = TableHealth(3)
    health.update(torch.zeros(0, dtype=torch.int64))
    health.update(torch.tensor(2))
    assert health.counts.tolist() == [0, 0, 1]
    health.reset()
    found = health.result()
    assert (found["reads"], found["used"], found["dead"]) == (0, 0, 3)
    assert math.isnan(found["kl_to_uniform"])
    assert math.isnan(found["top_percent"])


def test_it_takes_what_product_keys_name():
    torch.manual_seed(0)
    layer, health = ProductKeyMemory(16, n_keys=8, k=4), TableHealth(64)
    health.update(layer.look_up(torch.randn(2, 30, 16))[1])
    assert health.result()["reads"] == 2 * 30 * 4 * 4


@pytest.mark.parametrize("rows", [[3], [0, -1]])
def test_a_row_that_there_is_not_is_refused(rows):
    with pytest.raises(ValueError, match="of a table of 3: give TableHealth the table's number of rows"):
        TableHealth(3).update(torch.tensor(rows))


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="give n_rows >= 1"):
        TableHealth(0)


def model(**slots) -> Transformer:
    torch.manual_seed(0)
    return opened(Transformer(VOCAB, 16, 2, 2, **slots))


def test_watching_counts_what_each_table_reads():
    memory = partial(NGramMemory, orders=(2,), n_heads=1, n_rows=64)
    keys = partial(ProductKeyMemory, n_keys=8, k=2, n_heads=3)
    network, data = model(memory={0: memory}, feedforward_at={1: keys}), batch()
    with watch_tables(network) as tables:
        network(data["tokens"])
    network(data["tokens"])  # no longer watched
    assert set(tables) == {"memory.0.table", "blocks.1.feedforward.keys"}
    reads = data["tokens"].numel()
    assert tables["memory.0.table"].result()["reads"] == reads
    assert tables["blocks.1.feedforward.keys"].result()["reads"] == reads * 6
    rows = network.memory["0"].rows(Context(data["tokens"]))
    assert torch.equal(tables["memory.0.table"].counts, torch.bincount(rows.flatten(), minlength=64))
    assert not any(part._forward_hooks for part in network.modules())


def test_the_callback_logs_and_lets_go(tmp_path):
    module = LanguageModule(model(memory={0: partial(NGramMemory, n_rows=64)}), 4)
    callback = TableHealthCallback(every=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader([batch(seed) for seed in range(4)], batch_size=None))
    told = trainer.callback_metrics
    assert 0 < told["tables/network.memory.0.table/used"] <= 1
    assert told["tables/network.memory.0.table/kl_to_uniform"] > 0
    assert not any(part._forward_hooks for part in module.modules())
    with pytest.raises(ValueError, match="every=0"):
        TableHealthCallback(every=0)
