from __future__ import annotations

import pytest
import torch
from lightning import seed_everything
from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import AddRandomWalkPE

from experiments.data.csl import csl_graphs
from experiments.ledger import LedgerCallback
from gnn import (
    GIN,
    AddExpander,
    Exphormer,
    GraphDataModule,
    GraphEncoder,
    GraphModule,
    Selection,
    fold_split,
    random_split,
)
from tests.gnn.graphs import random_graph, scattered
from tests.gnn.modules.test_node import trainer


def toy(count=20, target=torch.long):
    graphs = []
    for number in range(count):
        x, edges = random_graph(3 + number % 5, 6, 4, seed=number)
        graphs.append(Data(x=x.float(), edge_index=edges, y=torch.tensor([number % 2], dtype=target)))
    return graphs


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_pooling_is_that_of_each_graph(pool):
    encoder = scattered(GraphEncoder(GIN(4, 6, hidden=5, n_layers=2), 6, 3, pool=pool)).eval()
    graphs = [random_graph(n, 6, 4, seed=n) for n in (3, 5)]
    batch = torch.tensor([0] * 3 + [1] * 5)
    x, edges = torch.cat([g[0] for g in graphs]), torch.cat([graphs[0][1], graphs[1][1] + 3], dim=1)
    reduce = {"sum": lambda h: h.sum(0), "mean": lambda h: h.mean(0), "max": lambda h: h.amax(0)}[pool]
    expected = torch.stack([encoder.head(reduce(encoder.encoder(*graph))) for graph in graphs])
    torch.testing.assert_close(encoder(x, edges, batch), expected)
    torch.testing.assert_close(encoder(*graphs[0]), expected[:1])
    matrix = encoder.matrix(edges, 8, torch.float64)
    torch.testing.assert_close(encoder(x, matrix, batch, 2), expected)
    assert encoder(x, edges, batch, n_graphs=4).shape == (4, 3)  # the last two have no nodes
    with pytest.raises(ValueError, match="pool='median'"):
        GraphEncoder(GIN(4, 6), 6, 3, pool="median")


def test_measures_are_those_of_all_graphs_whatever_the_batches():
    found = []
    for size in (3, 20):
        encoder = scattered(GraphEncoder(GIN(4, 6, hidden=5, n_layers=2), 6, 1)).float()
        loaded = GraphDataModule(toy(), random_split(20, 0, (0.2, 0.4, 0.4)), batch_size=size)
        module = GraphModule(encoder, target="binary")
        found.append(trainer(1).validate(module, loaded, verbose=False))
    for few, all_at_once, part in zip(*found, ("val", "test"), strict=True):
        assert set(few) == {f"{part}_{name}" for name in ("loss", "accuracy", "roc_auc")}
        assert few == pytest.approx(all_at_once, rel=1e-5)


def test_a_number_is_judged_by_its_absolute_error():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.said = nn.Parameter(torch.tensor(0.25))

        def forward(self, x, adjacency, batch, n_graphs):
            return self.said.expand(n_graphs, 1)

    module = GraphModule(Half(), target="number", lr=0.1)
    loaded = GraphDataModule(toy(target=torch.float), random_split(20, 0), batch_size=5)
    (found,) = trainer(1).test(module, loaded, verbose=False)
    y = torch.tensor([loaded.graphs[i].y.item() for i in loaded.parts["test"].tolist()])
    assert found["test_absolute_error"] == found["test_loss"] == pytest.approx(float((y - 0.25).abs().mean()))


def test_the_order_of_training_is_its_own():
    loaded = GraphDataModule(toy(), random_split(20, 0), batch_size=4, seed=3)

    def order():
        return [batch.x.sum().item() for batch in loaded.train_dataloader()]

    torch.manual_seed(0)
    first = order()
    torch.manual_seed(1)
    assert order() == first
    loader = loaded.train_dataloader()
    assert [b.x.sum().item() for b in loader] != [b.x.sum().item() for b in loader]
    with pytest.raises(ValueError, match="names graph"):
        GraphDataModule(toy(3), random_split(20, 0))


def test_circular_skip_links_are_told_by_where_nodes_are():
    graphs = [AddRandomWalkPE(16, attr_name="x")(graph) for graph in csl_graphs(copies=3)]
    every = torch.cat([graph.x for graph in graphs])
    for graph in graphs:  # their differences are small
        graph.x = (graph.x - every.mean(0)) / (every.std(0) + 1e-6)
    y = torch.cat([graph.y for graph in graphs])
    seed_everything(0, verbose=False)
    network = GraphEncoder(GIN(16, 16, hidden=32, n_layers=2, norm="none"), 16, 10)
    selection, ledger = Selection(), LedgerCallback()
    loaded = GraphDataModule(graphs, fold_split(y, 0, 3), batch_size=10)
    trainer(40, [selection, ledger]).fit(GraphModule(network, lr=0.01), loaded)
    assert selection.split == "fold 0 of 3, seed 0"
    assert selection.chosen["best_val_loss"]["test_accuracy"] == 1.0
    assert ledger.train_flops > 0


def test_an_encoder_gets_what_else_it_asks_for():
    graphs = [AddExpander(2, seed=number)(graph) for number, graph in enumerate(toy())]
    network = GraphEncoder(Exphormer(4, 6, hidden=4, n_layers=1, heads=2), 6, 2)
    seen = []
    network.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("expander_index")), with_kwargs=True
    )
    loaded = GraphDataModule(graphs, random_split(20, 0), batch_size=20)
    trainer(1).test(GraphModule(network), loaded, verbose=False)
    assert seen[0].shape[1] == sum(graphs[i].expander_index.shape[1] for i in loaded.parts["test"].tolist())
