from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch_geometric.data import Data
from torchmetrics.functional.classification import binary_auroc

from experiments.data.planetoid import read_planetoid
from experiments.ledger import LedgerCallback
from gnn import GCN, MLP, NodeDataModule, NodeModule, Selection, TunedGNN, random_split
from tests.gnn.graphs import random_graph

CORA = Path(__file__).parents[4] / "shared" / "data" / "planetoid" / "cora.npz"


def trainer(epochs, callbacks=(), **settings):
    warnings.filterwarnings("ignore", ".*(num_workers|log_every_n_steps|litlogger).*")
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "num_sanity_val_steps": 0, **settings},
    )


def toy(n=40, classes=3):
    x, edges = random_graph(n, 3 * n, 6)
    y = torch.arange(n) % classes
    return Data(x=torch.cat([x.float(), nn.functional.one_hot(y).float()], dim=1), edge_index=edges, y=y)


class Fixed(nn.Module):
    """Says the same in every call."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x, adjacency):
        return 1.0 * self.scores


def test_measures_are_means_over_the_nodes_of_a_part():
    data, generator = toy(), torch.Generator().manual_seed(0)
    module = NodeModule(Fixed(torch.randn(40, 3, generator=generator)), lr=0.0)
    loaded = NodeDataModule(data, random_split(40, 1))
    (validated,) = trainer(1).validate(module, loaded, verbose=False)
    (tested,) = trainer(1).test(module, loaded, verbose=False)
    given = loaded.data
    for part in ("val", "test"):
        scores, y = module.encoder.scores[given[f"{part}_mask"]], given.y[given[f"{part}_mask"]]
        assert validated[f"{part}_accuracy"] == pytest.approx(float((scores.argmax(1) == y).float().mean()))
        assert validated[f"{part}_loss"] == pytest.approx(float(nn.functional.cross_entropy(scores, y)))
    assert tested["test_loss"] == pytest.approx(validated["test_loss"])


def test_two_classes_are_one_score_and_an_area():
    data = toy(classes=2)
    scores = 30 * torch.randn(40, 1, generator=torch.Generator().manual_seed(2))  # as good as 0 and 1
    module = NodeModule(Fixed(scores), target="binary")
    loaded = NodeDataModule(data, random_split(40, 1))
    (found,) = trainer(1).validate(module, loaded, verbose=False)
    mask = loaded.data.val_mask
    assert found["val_roc_auc"] == pytest.approx(float(binary_auroc(scores[mask, 0].double(), data.y[mask])))
    assert found["val_accuracy"] == pytest.approx(
        float(((scores[mask, 0] > 0) == data.y[mask].bool()).float().mean())
    )
    with pytest.raises(ValueError, match="one output"):
        trainer(1).validate(NodeModule(Fixed(torch.zeros(40, 2)), target="binary"), loaded, verbose=False)


@pytest.mark.parametrize("penalized", ["first", "all"])
def test_the_penalty_is_where_it_belongs(penalized):
    module = NodeModule(GCN(5, 3), weight_decay=0.1, penalized=penalized)
    first, rest = list(module.encoder.convs[0].parameters()), list(module.encoder.convs[1].parameters())
    decays = {
        id(p): group["weight_decay"]
        for group in module.configure_optimizers().param_groups
        for p in group["params"]
    }
    assert {decays[id(p)] for p in first} == {0.1}
    assert {decays[id(p)] for p in rest} == {0.1 if penalized == "all" else 0.0}
    blocks = NodeModule(TunedGNN(5, 3), weight_decay=0.1).configure_optimizers()
    assert [group["weight_decay"] for group in blocks.param_groups] == [0.1]
    assert len(blocks.param_groups[0]["params"]) == len(list(TunedGNN(5, 3).parameters()))


def test_splits_have_names_and_are_logged(tmp_path):
    data = toy()
    with pytest.raises(ValueError, match="have no name"):
        NodeDataModule(data)
    seed_everything(0, verbose=False)
    encoder = GCN(9, 3)
    loaded = NodeDataModule(data, random_split(40, 7), matrix=encoder.matrix)
    selection = Selection(path=tmp_path / "sub" / "result.json")
    logger = CSVLogger(tmp_path)
    trainer(3, [selection], logger=logger, log_every_n_steps=1).fit(NodeModule(encoder), loaded)
    assert "random seed 7, 60/20/20" in (Path(logger.log_dir) / "hparams.yaml").read_text()
    written = json.loads((tmp_path / "sub" / "result.json").read_text())
    assert written == selection.result()
    assert written["split"] == "random seed 7, 60/20/20"
    assert "adj_t" not in data
    many = loaded.data.clone()
    many.train_mask = many.val_mask.unsqueeze(1).repeat(1, 10)
    with pytest.raises(ValueError, match="choose one of its splits"):
        trainer(1).fit(NodeModule(GCN(9, 3)), NodeDataModule(many))


def test_a_step_on_edges_and_one_on_a_matrix_learn_the_same_and_are_billed():
    learned, bills = [], []
    for matrix in (False, True):
        seed_everything(0, verbose=False)
        encoder = GCN(9, 3, dropout=0.0)
        loaded = NodeDataModule(toy(), random_split(40, 7), matrix=encoder.matrix if matrix else None)
        ledger = LedgerCallback(evaluation=True)
        trainer(3, [ledger]).fit(NodeModule(encoder), loaded)
        learned.append([p.detach().clone() for p in encoder.parameters()])
        bills.append(ledger)
    for by_edges, by_rows in zip(*learned, strict=True):
        torch.testing.assert_close(by_edges, by_rows, atol=1e-5, rtol=1e-4)
    assert bills[0].steps == bills[1].steps == 3
    assert 0 < bills[1].train_flops < bills[0].train_flops  # edges are weighed again in each step


@pytest.mark.skipif(not CORA.exists(), reason=f"Cora is not at {CORA.parent}")
@pytest.mark.parametrize(("encoder", "low", "high"), [(GCN, 0.79, 0.84), (MLP, 0.5, 0.62)])
def test_cora(encoder, low, high):
    seed_everything(0, verbose=False)
    data = read_planetoid(CORA)
    network = encoder(data.x.shape[1], 7)
    selection = Selection()
    loaded = NodeDataModule(data, matrix=network.matrix)
    trainer(200, [selection], check_val_every_n_epoch=10).fit(NodeModule(network), loaded)
    assert selection.split == "public"
    for rule in ("last", "best_val_loss", "best_val_measure"):
        assert low < selection.chosen[rule]["test_accuracy"] < high
