from __future__ import annotations

import pytest
import torch
from lightning import seed_everything
from torch_geometric.data import Data

from experiments.ledger import LedgerCallback
from gnn import GCN, LinkDataModule, LinkModule, Selection
from tests.gnn.modules.test_node import trainer


def communities(n=40):
    """Nodes of two groups, joined with most of their own."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(n) % 2
    chance = torch.where(group[:, None] == group, 0.6, 0.02)
    upper = torch.rand(n, n, generator=generator).triu(1)
    edges = ((upper > 0) & (upper < chance)).nonzero().t()
    return Data(x=torch.eye(n), edge_index=torch.cat([edges, edges.flip(0)], dim=1))


def pairs(index):
    return {tuple(sorted(pair)) for pair in index.t().tolist()}


def test_no_part_knows_the_edges_it_is_asked_for():
    data = communities()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    loaded = LinkDataModule(data, seed=3, val=0.1, test=0.2)
    assert torch.equal(torch.rand(2), expected)
    assert loaded.split == "random links seed 3, 70/10/20"
    every = pairs(data.edge_index)
    asked = {}
    for name, part in loaded.parts.items():
        true = part.edge_label.bool()
        asked[name] = pairs(part.edge_label_index[:, true])
        assert asked[name] <= every
        assert not pairs(part.edge_label_index[:, ~true]) & every
        assert int(true.sum()) == (len(true) if name == "train" else len(true) // 2)
        assert part["split"] == loaded.split
    assert pairs(loaded.parts["train"].edge_index) == asked["train"]
    assert pairs(loaded.parts["val"].edge_index) == asked["train"]
    assert pairs(loaded.parts["test"].edge_index) == asked["train"] | asked["val"]
    assert asked["train"] | asked["val"] | asked["test"] == every
    assert sum(map(len, asked.values())) == len(every)
    again = LinkDataModule(data, seed=3, val=0.1, test=0.2)
    assert torch.equal(again.parts["test"].edge_label_index, loaded.parts["test"].edge_label_index)


def test_refusals():
    with pytest.raises(ValueError, match="one direction only"):
        LinkDataModule(Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]])), seed=0)
    with pytest.raises(ValueError, match="none in val"):
        LinkDataModule(communities(6), seed=0, val=0.01)


def test_missing_edges_are_found():
    seed_everything(0, verbose=False)
    encoder = GCN(40, 8, hidden=16, dropout=0.0)
    loaded = LinkDataModule(communities(), seed=1, val=0.1, test=0.2, matrix=encoder.matrix)
    selection, ledger = Selection("roc_auc"), LedgerCallback(evaluation=True)
    module = LinkModule(encoder, lr=0.02)
    trainer(60, [selection, ledger]).fit(module, loaded)
    assert selection.split == "random links seed 1, 70/10/20"
    assert selection.chosen["best_val_measure"]["test_roc_auc"] > 0.75
    (tested,) = trainer(1).test(module, loaded, verbose=False)
    assert tested["test_roc_auc"] == pytest.approx(selection.chosen["last"]["test_roc_auc"])
    assert ledger.train_flops > 0
    assert ledger.bill()["validate"]["flops"] > 0


def test_negative_pairs_are_its_own_and_survive_a_checkpoint():
    data = LinkDataModule(communities(), seed=1).parts["train"]

    def losses(module, count, global_seed):
        torch.manual_seed(global_seed)
        module.log_dict = lambda *args, **kwargs: None
        return [module.training_step(data, 0).item() for _ in range(count)]

    torch.manual_seed(5)
    encoder = GCN(40, 8, dropout=0.0)
    whole = losses(LinkModule(encoder, seed=2), 4, 0)
    assert losses(LinkModule(encoder, seed=3), 4, 0) != whole
    stopped, checkpoint = LinkModule(encoder, seed=2), {}
    begun = losses(stopped, 2, 1)
    stopped.on_save_checkpoint(checkpoint)
    resumed = LinkModule(encoder, seed=9)
    resumed.on_load_checkpoint(checkpoint)
    assert begun + losses(resumed, 2, 2) == whole
    assert len(set(whole)) == 4


def test_a_score_is_an_inner_product():
    encoder = GCN(40, 8).eval()
    part = LinkDataModule(communities(), seed=1).parts["val"]
    module = LinkModule(encoder).eval()
    z = encoder(part.x, part.edge_index)
    expected = torch.stack([z[i] @ z[j] for i, j in part.edge_label_index.t().tolist()])
    torch.testing.assert_close(module(part, part.edge_label_index), expected)
